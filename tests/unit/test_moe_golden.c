/* Expert outputs, the teacher's output, scores and labels on real weights against numbers from PyTorch in float64 (shared/golden).
 * s7 is the beginning of s40, and attention looks back only, so the FFN inputs of s7 go with the first 7 rows of what s40 has. */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "../moe_world.h"
#include "base/file.h"
#include "base/str.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "moe/labels.h"

enum { N = 4, ROWS = 7, ALL_ROWS = 40, SETS_MAX = 6 };

struct golden {
    char *directory;
    struct json_t *json;
    struct safetensors *weights;
    int layers, width, neurons;
    struct expert expert[2][N]; /* first and last layer */
    struct moe_layer layer[2];
    float *mean;
    double *mu_total[2];
};

/* The values of an array, and its last two extents. */
static float *array(const struct golden *g, const char *name, int *rows, int *cols)
{
    const struct json_t *arrays = json_at(g->json, "arrays");
    struct err e = {0};

    for (size_t i = 0; i < json_length(arrays); i++) {
        const struct json_t *a = json_item(arrays, i), *extent = json_at(a, "shape");
        size_t dims = json_length(extent), length, want = sizeof(float);
        char *path, *bytes = NULL;

        if (strcmp(json_text(json_at(a, "name")), name)) continue;
        path = str_join(g->directory, json_text(json_at(a, "file")));
        for (size_t d = 0; d < dims; d++) want *= (size_t)json_int(json_item(extent, d));
        if (rows) *rows = (int)json_int(json_item(extent, dims - 2));
        if (cols) *cols = (int)json_int(json_item(extent, dims - 1));
        assert_int_equal(file_read(&bytes, &length, path, 1 << 24, &e), OK);
        assert_int_equal(length, want);
        free(path);
        return (float *)bytes;
    }
    fail_msg("golden array %s is missing", name);
    return NULL;
}

static float *array_of(const struct golden *g, const char *format, int k)
{
    char name[64];

    snprintf(name, sizeof(name), "%s_k%d_s40", format, k);
    return array(g, name, NULL, NULL);
}

static void near(const float *found, const float *want, int n)
{
    float largest = 0;

    for (int i = 0; i < n; i++) largest = fmaxf(largest, fabsf(want[i]));
    for (int i = 0; i < n; i++) {
        if (!(fabsf(found[i] - want[i]) <= 1e-4f * largest))
            fail_msg("element %d: %g, expected %g", i, (double)found[i], (double)want[i]);
    }
}

static void bind(struct golden *g, int which, int layer)
{
    struct moe_layer *y = &g->layer[which];
    struct mat gate, up, down;
    struct err e = {0};
    char name[96];
    const char *parts[3] = {"gate", "up", "down"};
    struct mat *out[3] = {&gate, &up, &down};

    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.%s_proj.weight", layer, parts[i]);
        int rows = i < 2 ? g->neurons : g->width, cols = i < 2 ? g->width : g->neurons;
        assert_int_equal(safetensors_mat(out[i], g->weights, name, rows, cols, &e), OK);
    }
    *y = (struct moe_layer){.experts = N, .active = 1, .expert = g->expert[which], .mu = g->mean + (long)layer * N * g->width};
    for (int i = 0; i < N; i++) {
        int begin = group_begin(g->neurons, 0, N, i), n = group_size(g->neurons, 0, N, i);
        struct mat of_gate = gate, of_up = up, of_down = down;

        of_gate.rows = of_up.rows = of_down.cols = n;
        of_gate.data = (const char *)gate.data + (size_t)begin * gate.stride * dtype_bytes(gate.dtype);
        of_up.data = (const char *)up.data + (size_t)begin * up.stride * dtype_bytes(up.dtype);
        of_down.data = (const char *)down.data + (size_t)begin * dtype_bytes(down.dtype);
        y->expert[i] =
            (struct expert){.gate = world_packed(&of_gate), .up = world_packed(&of_up), .down = world_packed(&of_down)};
    }
    g->mu_total[which] = world_alloc((size_t)g->width, sizeof(double));
    for (int i = 0; i < N * g->width; i++) g->mu_total[which][i % g->width] += grid(y->mu[i]);
    y->mu_total = g->mu_total[which];
}

static void golden_close(struct golden *g)
{
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < N; i++) world_free_expert(&g->expert[which][i]);
    safetensors_close(g->weights);
    json_free(g->json);
    free(g->directory), free(g->mean), free(g->mu_total[0]), free(g->mu_total[1]);
}

/* Labels must agree where the best score leads the next by more than the tolerance. */
static void check_labels(const struct golden *g, const char *kind, int k, int layer, const uint64_t *set, const float *gap,
                         float tolerance)
{
    const struct json_t *routing = json_at(json_at(g->json, "factorization"), "routing");
    const struct json_t *labels = json_item(json_at(json_item(routing, (size_t)k - 1), kind), (size_t)layer);
    int sure = 0;

    assert_int_equal(json_length(labels), ALL_ROWS);
    for (int t = 0; t < ROWS; t++) {
        if (gap[t] <= tolerance) continue;
        assert_int_equal(set[t], json_int(json_item(labels, (size_t)t)));
        sure++;
    }
    assert_true(sure > 0);
}

static float largest_of(const float *x, int n)
{
    float most = 0;

    for (int i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    return most;
}

static int fall(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x < y) - (x > y);
}

static void check_paper(struct golden *g, struct moe *m, int which, int layer, int k, const float *h, const float *y)
{
    float *want = array_of(g, "pa_score", k), *rows = want + (long)layer * ALL_ROWS * N, score[ROWS * N], gap[ROWS];
    uint64_t set[ROWS];
    float x[ROWS * 1024] = {0};
    struct err e = {0};

    assert_int_equal(moe_paper_scores(m, which, h, y, ROWS, k, score, &e), OK);
    near(score, rows, ROWS * N);
    for (int t = 0; t < ROWS; t++) {
        float sorted[N];

        memcpy(sorted, rows + t * N, sizeof(sorted));
        qsort(sorted, N, sizeof(*sorted), fall);
        gap[t] = sorted[k - 1] - sorted[k];
    }
    g->layer[which].active = k;
    assert_int_equal(moe_begin(m, 0, which, h, NULL, ROWS, &(struct routing){.route = ROUTE_PAPER, .scale = 2}, &e), OK);
    assert_int_equal(moe_end(m, 0, x, set, &e), OK);
    check_labels(g, "pa_labels", k, layer, set, gap, 2e-4f * largest_of(rows, ROWS * N));
    free(want);
}

static void check_gram(struct golden *g, struct moe *m, int which, int layer, int k, const float *h, const float *e_out)
{
    const struct json_t *routing = json_item(json_at(json_at(g->json, "factorization"), "routing"), (size_t)k - 1);
    const struct json_t *sets = json_at(routing, "gram_sets");
    int n_sets = (int)json_length(sets);
    float *want = array_of(g, "gram_error", k), *rows = want + (long)layer * ALL_ROWS * n_sets, error[ROWS * SETS_MAX], gap[ROWS];
    float centred[N * 1024];
    double gram[N * N];
    uint64_t set[ROWS];
    struct err e = {0};

    assert_true(n_sets <= SETS_MAX);
    for (int t = 0; t < ROWS; t++) {
        float sorted[SETS_MAX];

        for (int i = 0; i < N; i++) {
            for (int d = 0; d < g->width; d++) {
                centred[i * g->width + d] = e_out[(i * ROWS + t) * g->width + d] - g->layer[which].mu[i * g->width + d];
            }
        }
        gram_matrix(gram, centred, N, g->width);
        for (int s = 0; s < n_sets; s++) {
            uint64_t members = (uint64_t)json_int(json_item(sets, (size_t)s));

            error[t * n_sets + s] = (float)gram_error(gram, N, &members);
        }
        memcpy(sorted, rows + t * n_sets, (size_t)n_sets * sizeof(float));
        qsort(sorted, (size_t)n_sets, sizeof(*sorted), fall);
        gap[t] = sorted[n_sets - 2] - sorted[n_sets - 1];
    }
    near(error, rows, ROWS * n_sets);
    assert_int_equal(moe_gram_sets(m, which, h, ROWS, k, true, set, &e), OK);
    check_labels(g, "gram_labels", k, layer, set, gap, 2e-4f * largest_of(rows, ROWS * n_sets));
    free(want);
}

/* out[t] = e_i(h_t) */
static void output(struct gemm *gemm, float *out, const struct expert *x, const float *h, float *scratch)
{
    int neurons = x->gate.rows;
    struct rows z = {.x = scratch, .ld = (size_t)neurons, .n = ROWS, .cols = neurons};

    expert_neurons(gemm, scratch, scratch + ROWS * neurons, x, h, ROWS);
    gemm_product(gemm, out, (size_t)x->down.rows, &z, &x->down, NULL);
}

static void check_model(const char *shared, const char *model)
{
    static const char *const places[2] = {"first", "last"};
    struct golden g = {0};
    struct placement p;
    struct arena *a;
    struct gemm *gemm;
    struct moe *m;
    struct moe_limits limits = {.rows = ROWS, .oracle = true};
    struct err e = {0};
    char path[512];

    snprintf(path, sizeof(path), "%s/golden/%s", shared, model);
    g.directory = str_dup(path);
    snprintf(path, sizeof(path), "%s/golden.json", g.directory);
    assert_int_equal(json_read(&g.json, path, 1 << 24, &e), OK);
    snprintf(path, sizeof(path), "%s/models/%s", shared, model);
    assert_int_equal(safetensors_open(&g.weights, path, &e), OK);
    free(array(&g, "neuron_var_s40", &g.layers, &g.neurons));
    g.mean = array(&g, "expert_mean_s40", NULL, &g.width);
    bind(&g, 0, 0);
    bind(&g, 1, g.layers - 1);

    assert_int_equal(gemm_open(&gemm, 1, isa_best(), &e), OK);
    assert_int_equal(placement_make(&p, PLACEMENT_BLOCK, 2, N, 1, true, &e), OK);
    assert_int_equal(arena_open(&a, "golden", moe_cost(&p, 0, 2, N, g.width, g.neurons, limits), &e), OK);
    assert_int_equal(moe_open(&m, g.layer, 2, g.width, g.neurons, &p, 0, limits, gemm, NULL, a, &e), OK);
    for (int which = 0; which < 2; which++) {
        char name[64];
        int layer = which ? g.layers - 1 : 0, n = ROWS * g.width;
        float *scratch = world_alloc((size_t)(2 * ROWS * g.neurons), sizeof(float)), *y = world_alloc((size_t)n, sizeof(float));
        float *out = world_alloc((size_t)(N * n), sizeof(float));

        snprintf(name, sizeof(name), "ffn_in_%s_s7", places[which]);
        float *h = array(&g, name, NULL, NULL);
        snprintf(name, sizeof(name), "ffn_out_%s_s7", places[which]);
        float *want_y = array(&g, name, NULL, NULL);
        snprintf(name, sizeof(name), "expert_out_%s_s7", places[which]);
        float *want_e = array(&g, name, NULL, NULL);

        for (int i = 0; i < N; i++) output(gemm, out + (long)i * n, &g.expert[which][i], h, scratch);
        near(out, want_e, N * n);
        assert_int_equal(moe_dense(m, which, h, ROWS, y, &e), OK);
        near(y, want_y, n);
        for (int k = 1; k <= 2; k++) {
            check_paper(&g, m, which, layer, k, h, y);
            check_gram(&g, m, which, layer, k, h, out);
        }
        free(scratch), free(y), free(out), free(h), free(want_y), free(want_e);
    }
    moe_close(m);
    arena_close(a);
    placement_free(&p);
    gemm_close(gemm);
    golden_close(&g);
}

static void test_golden(void **state)
{
    static const char *const models[] = {"quillan-6m", "tiny1m", "stories260K", "stories260K-sharded"};
    const char *shared = getenv("FACTORLLM_SHARED");
    char path[512];

    (void)state;
    if (!shared) shared = "../shared";
    snprintf(path, sizeof(path), "%s/golden/README.md", shared);
    if (!file_exists(path)) skip_because("%s is not there", path);
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) check_model(shared, models[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};

    return cmocka_run_group_tests_name("moe, golden numbers", tests, NULL, NULL);
}
