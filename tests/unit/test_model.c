/* Binding: a factorized directory against plain loops over the tensors it was made of, memory as planned, and refusals. */
#include <math.h>
#include <unistd.h>

#include "../open_model.h"
#include "base/file.h"
#include "base/rng.h"
#include "moe/expert.h"
#include "moe/grouping.h"
#include "num/half.h"
#include "num/ref.h"

static const char toy[] = "tests/golden/toy-llama";
enum { LAYERS = 3, D = 48, F = 44, N = 3, SHARED = 9, ACTIVE = 1, ROWS = 5 };

static char directory[] = "/tmp/test-model-XXXXXX";

/* What the factorized directory was written from: contiguous experts of toy-llama with made-up means. */
struct parts {
    struct safetensors *dense;
    struct mat gate[LAYERS], up[LAYERS], down[LAYERS];
    float mu[LAYERS][N][D], mean[LAYERS][F], importance[LAYERS][F];
};

static void path_in(char out[512], const char *name)
{
    snprintf(out, 512, "%s/%s", directory, name);
}

static void ok(status s, const struct err *e)
{
    if (s) fail_msg("%s", e->text);
}

static void declare(struct safetensors_writer *w, const char *name, enum dtype t, int rows, int cols)
{
    safetensors_declare(w, name, t, cols ? 2 : 1, (int64_t[]){rows, cols});
}

static void write_columns(struct safetensors_writer *w, const struct mat *m, int first, int n)
{
    struct err e;

    for (int r = 0; r < m->rows; r++)
        ok(safetensors_write(w, (const float *)m->data + (size_t)r * m->stride + first, (size_t)n * 4, &e), &e);
}

static void write_rows(struct safetensors_writer *w, const struct mat *m, int first, int n)
{
    struct err e;

    ok(safetensors_write(w, (const float *)m->data + (size_t)first * m->stride, (size_t)n * m->stride * 4, &e), &e);
}

/* The expert `which` of layer l, neurons first .. first + n - 1. */
static void declare_expert(struct safetensors_writer *w, int l, const char *which, int n)
{
    static const char *const part[] = {"gate", "up", "down"};
    char name[128];

    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.%s.%s_proj.weight", l, which, part[i]);
        declare(w, name, DT_F32, i < 2 ? n : D, i < 2 ? D : n);
    }
}

static void write_expert(struct safetensors_writer *w, const struct parts *p, int l, int first, int n)
{
    write_rows(w, &p->gate[l], first, n);
    write_rows(w, &p->up[l], first, n);
    write_columns(w, &p->down[l], first, n);
}

static void each_expert(struct safetensors_writer *w, const struct parts *p, bool declaring)
{
    char which[32], name[128];
    struct err e;

    for (int l = 0; l < LAYERS; l++) {
        if (declaring) declare_expert(w, l, "shared_expert", SHARED);
        else write_expert(w, p, l, 0, SHARED);
        for (int i = 0, first = SHARED; i < N; first += group_size(F, SHARED, N, i++)) {
            snprintf(which, sizeof(which), "experts.%d", i);
            if (declaring) declare_expert(w, l, which, group_size(F, SHARED, N, i));
            else write_expert(w, p, l, first, group_size(F, SHARED, N, i));
        }
        snprintf(name, sizeof(name), "model.layers.%d.mlp.compensation", l);
        if (declaring) declare(w, name, DT_F32, N, D);
        else ok(safetensors_write(w, p->mu[l], sizeof(p->mu[l]), &e), &e);
    }
}

static bool is_mlp(const char *name)
{
    return strstr(name, ".mlp.") != NULL;
}

static void write_weights(const struct parts *p)
{
    struct safetensors_writer *w;
    struct mat m;
    struct err e;

    ok(safetensors_create(&w, directory, 0, &e), &e);
    for (size_t i = 0; i < safetensors_count(p->dense); i++) {
        const struct tensor_info *t = safetensors_info(p->dense, i);

        if (!is_mlp(t->name)) safetensors_declare(w, t->name, DT_F32, t->dims, t->shape);
    }
    each_expert(w, p, true);
    for (size_t i = 0; i < safetensors_count(p->dense); i++) {
        const struct tensor_info *t = safetensors_info(p->dense, i);
        int rows = t->dims == 2 ? (int)t->shape[0] : 1, cols = (int)t->shape[t->dims - 1];

        if (is_mlp(t->name)) continue;
        ok(safetensors_mat(&m, p->dense, t->name, rows, cols, &e), &e);
        ok(safetensors_write(w, m.data, t->bytes, &e), &e);
    }
    each_expert(w, p, false);
    ok(safetensors_commit(w, &e), &e);
}

static void write_calibration(const struct parts *p)
{
    struct safetensors_writer *w;
    char path[512], name[128];
    struct err e;

    path_in(path, "calibration.safetensors");
    ok(safetensors_create_file(&w, path, &e), &e);
    for (int l = 0; l < LAYERS; l++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_mean", l);
        declare(w, name, DT_F32, F, 0);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_importance", l);
        declare(w, name, DT_F32, F, 0);
    }
    for (int l = 0; l < LAYERS; l++) {
        ok(safetensors_write(w, p->mean[l], sizeof(p->mean[l]), &e), &e);
        ok(safetensors_write(w, p->importance[l], sizeof(p->importance[l]), &e), &e);
    }
    ok(safetensors_commit(w, &e), &e);
}

static void write_config(const char *compensation)
{
    char path[512];
    struct json_t *c, *f = json_object_new(), *shared = json_array_new();
    struct err e;

    snprintf(path, sizeof(path), "%s/config.json", toy);
    ok(json_read(&c, path, 1 << 20, &e), &e);
    json_put_int(f, "version", 1);
    json_put_text(f, "method", "factorllm");
    json_put_text(f, "grouping", "contiguous");
    json_put_int(f, "experts", N);
    json_put_int(f, "active", ACTIVE);
    for (int l = 0; l < LAYERS; l++) json_append(shared, json_int_new(SHARED));
    json_put(f, "shared", shared);
    json_put_real(f, "scale", 1.0);
    json_put_text(f, "compensation", compensation);
    json_put_bool(f, "calibrated", true);
    json_put(c, "factorization", f);
    path_in(path, "config.json");
    ok(json_write(path, c, &e), &e);
    json_free(c);
}

static int set_up(void **state)
{
    struct parts *p = calloc(1, sizeof(*p));
    struct rng r;
    char name[128];
    struct err e;

    if (!p || !mkdtemp(directory)) return -1;
    rng_seed(&r, 3, 0);
    ok(safetensors_open(&p->dense, toy, &e), &e);
    for (int l = 0; l < LAYERS; l++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.gate_proj.weight", l);
        ok(safetensors_mat(&p->gate[l], p->dense, name, F, D, &e), &e);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.up_proj.weight", l);
        ok(safetensors_mat(&p->up[l], p->dense, name, F, D, &e), &e);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.down_proj.weight", l);
        ok(safetensors_mat(&p->down[l], p->dense, name, D, F, &e), &e);
        for (int i = 0; i < N * D; i++) p->mu[l][i / D][i % D] = (float)rng_normal(&r);
        for (int j = 0; j < F; j++) p->mean[l][j] = (float)rng_normal(&r);
        for (int j = 0; j < F; j++) p->importance[l][j] = (float)(rng_below(&r, 30)); /* with ties */
    }
    write_weights(p);
    write_calibration(p);
    write_config("mean");
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    static const char *const files[] = {"config.json", "model.safetensors", "calibration.safetensors"};
    struct parts *p = *state;
    char path[512];

    for (int i = 0; i < 3; i++) {
        path_in(path, files[i]);
        unlink(path);
    }
    safetensors_close(p->dense);
    free(p);
    return rmdir(directory);
}

/* ---- what the FFN of a layer must give ---- */

/* z: [F] neurons of the dense layer for one row. */
static void neurons(double z[F], const struct parts *p, int l, const float *h)
{
    for (int j = 0; j < F; j++) {
        double gate = 0.0, up = 0.0;

        for (int d = 0; d < D; d++) {
            gate += (double)mat_at(&p->gate[l], j, d) * (double)h[d];
            up += (double)mat_at(&p->up[l], j, d) * (double)h[d];
        }
        z[j] = gate / (1.0 + exp(-gate)) * up;
    }
}

static void add_neurons(double y[D], const struct parts *p, int l, const double z[F], int first, int n)
{
    for (int d = 0; d < D; d++)
        for (int j = first; j < first + n; j++) y[d] += (double)mat_at(&p->down[l], d, j) * z[j];
}

static void run_ffn(struct model *m, int l, const float *h, const struct routing *how, float *y)
{
    struct err e;

    memset(y, 0, (size_t)ROWS * D * sizeof(*y));
    ok(moe_begin(model_moe(m), 0, l, h, NULL, ROWS, how, &e), &e);
    ok(moe_end(model_moe(m), 0, y, NULL, &e), &e);
}

static void same_row(const float *y, const double *want)
{
    for (int d = 0; d < D; d++)
        if (!(fabs((double)y[d] - want[d]) <= 1e-5)) fail_msg("element %d is %.8g, not %.8g", d, (double)y[d], want[d]);
}

static void random_rows(float *h)
{
    struct rng r;

    rng_seed(&r, 9, 0);
    for (int i = 0; i < ROWS * D; i++) h[i] = (float)rng_normal(&r);
}

static const struct model_limits limits = {.rows = 64, .sessions = 2, .positions = 64, .verify = true, .calibration = true};

static void experts_shared_and_compensation_are_bound(void **state)
{
    const struct parts *p = *state;
    float h[ROWS * D], y[ROWS * D], weight[LAYERS * N * D] = {0}, bias[LAYERS * N] = {0};
    const struct router router = {.layers = LAYERS, .experts = N, .width = D, .weight = weight, .bias = bias};
    const struct routing how = {.route = ROUTE_ROUTER, .router = &router, .scale = 1.5f, .compensate = true};
    const struct routing all = {.route = ROUTE_ALL};
    struct opened o;

    random_rows(h);
    opened_open(&o, directory, limits, 1);
    for (int l = 0; l < LAYERS; l++) {
        int chosen = (l + 1) % N, first = SHARED, n = group_size(F, SHARED, N, chosen);

        for (int i = 0; i < chosen; i++) first += group_size(F, SHARED, N, i);
        bias[l * N + chosen] = 1.0f;
        run_ffn(o.model, l, h, &how, y);
        for (int t = 0; t < ROWS; t++) {
            double z[F], want[D] = {0}, scaled[D] = {0};

            neurons(z, p, l, h + t * D);
            add_neurons(want, p, l, z, 0, SHARED);
            add_neurons(scaled, p, l, z, first, n);
            for (int d = 0; d < D; d++) {
                want[d] += 1.5 * scaled[d];
                for (int i = 0; i < N; i++) want[d] += i == chosen ? 0.0 : (double)p->mu[l][i][d];
            }
            same_row(y + t * D, want);
        }
        run_ffn(o.model, l, h, &all, y);
        for (int t = 0; t < ROWS; t++) {
            double z[F], want[D] = {0};

            neurons(z, p, l, h + t * D);
            add_neurons(want, p, l, z, 0, F);
            same_row(y + t * D, want);
        }
    }
    opened_close(&o);
}

/* By rank: neuron j stays if fewer than `kept` are more important, or as important and before it. */
static void check_control(const struct parts *p, bool compensate, const int *given)
{
    const struct routing how = {.route = ROUTE_STATIC, .neurons = given};
    float h[ROWS * D], y[ROWS * D];
    struct opened o;

    random_rows(h);
    opened_open(&o, directory, limits, 1);
    double active = 0.0; /* f by design, (shared + k * m) / F with m = routed / N in the mean */
    for (int l = 0; l < LAYERS; l++) active += (SHARED + (double)ACTIVE * (F - SHARED) / N) / F / LAYERS;
    int kept = (int)lround(F * active);

    assert_in_range(kept, 20, 22); /* 9 + 35 / 3 = 20.7 of 44 */
    for (int l = 0; l < LAYERS; l++) {
        run_ffn(o.model, l, h, &how, y);
        for (int t = 0; t < ROWS; t++) {
            double z[F], want[D] = {0};

            neurons(z, p, l, h + t * D);
            for (int j = 0; j < F; j++) {
                int before = 0;

                for (int i = 0; i < F; i++)
                    before += p->importance[l][i] > p->importance[l][j] || (p->importance[l][i] == p->importance[l][j] && i < j);
                if (before >= (given ? given[l] : kept)) z[j] = compensate ? (double)p->mean[l][j] : 0.0;
            }
            add_neurons(want, p, l, z, 0, F);
            same_row(y + t * D, want);
        }
    }
    opened_close(&o);
}

static void the_static_control_keeps_the_most_important_neurons(void **state)
{
    check_control(*state, true, NULL);
    check_control(*state, true, (const int[LAYERS]){5, F, 0});
    write_config("none");
    check_control(*state, false, NULL);
    write_config("mean");
}

/* In the last layer rows that are not asked for are left out: the others keep their experts, which are drawn by key, or without keys by number; and nobody may be asked for. */
static void rows_that_are_asked_for(void **state)
{
    enum { T = 20 };
    static float all[T * D], some[T * D];
    int32_t ids[T], position[T], session[T] = {0};
    const struct routing how = {.route = ROUTE_RANDOM, .scale = 1, .seed = 3};
    uint64_t key[T];
    struct opened o;
    struct err e;

    (void)state;
    opened_open(&o, directory, (struct model_limits){.rows = T, .sessions = 1, .positions = T}, 1);
    for (int t = 0; t < T; t++) ids[t] = 3 + 7 * t, position[t] = t, key[t] = (uint64_t)(1000 - t);
    for (int parts = 0; parts < 3; parts++) { /* 0: one, without keys */
        struct batch b = {.rows = T, .token = ids, .position = position, .session = session, .key = parts ? key : NULL};
        bool asked[T];

        if (forward_parts(o.model, &b, &how, parts ? parts : 1, all, &e)) fail_msg("%s", e.text);
        for (int few = 0; few < 2; few++) {
            for (int t = 0; t < T; t++) asked[t] = few && t % 7 == 3;
            b.asked = asked;
            memset(some, 0, sizeof(some));
            if (forward_parts(o.model, &b, &how, parts ? parts : 1, some, &e)) fail_msg("%s", e.text);
            for (int t = 0; t < T; t++)
                assert_memory_equal(some + t * D, asked[t] ? all + t * D : (float[D]){0}, D * sizeof(float));
        }
    }
    opened_close(&o);
}

/* All experts active: the dense model, but for the order of sums. */
static void all_experts_are_the_dense_model(void **state)
{
    static float dense[64 * D], factorized[64 * D];
    int32_t ids[64];
    struct opened a, b;

    (void)state;
    for (int i = 0; i < 64; i++) ids[i] = (i * 37 + 5) % 384;
    opened_open(&a, toy, (struct model_limits){.rows = 64, .sessions = 1, .positions = 64}, 1);
    opened_open(&b, directory, limits, 1);
    run_rows(a.model, ids, 0, 64, 0, dense);
    run_rows(b.model, ids, 0, 64, 0, factorized);
    for (int i = 0; i < 64 * D; i++) assert_true(fabsf(dense[i] - factorized[i]) < 1e-4f);
    opened_close(&a);
    opened_close(&b);
}

/* The plan is what is taken, to the byte: of the arena, and of memory for weights. */
static void memory_is_as_planned(void **state)
{
    struct model_cost c;
    struct opened o;

    (void)state;
    for (int i = 0; i < 4; i++) {
        const struct model_limits l = {
            .rows = 3 + 50 * i, .sessions = 1 + i, .positions = 128 >> i, .oracle = i % 2, .calibration = i == 2};
        opened_open(&o, i == 2 ? directory : toy, l, 2);
        model_cost(&c, &o.shape, &o.placement, 0, 1, model_weights(o.model), l);
        assert_int_equal(c.kv + c.work, arena_used(o.arena));
        assert_true(c.kv >= 2 * (size_t)LAYERS * (size_t)(l.sessions * l.positions) * 24 * 4);
        assert_int_equal(c.exchange, 0);
        assert_int_equal(model_packed_bytes(o.model), c.weights);
        assert_int_equal(c.mapped, 384 * D * 4); /* the embedding */
        assert_memory_equal(model_limits_of(o.model), &l, sizeof(l));
        opened_close(&o);
    }
}

static void rank_without_experts_plans_less(void **state)
{
    struct model_cost holder, empty, lead;
    struct placement p;
    struct shape s;
    struct err e;
    const struct model_limits l = {.rows = 8, .sessions = 1, .positions = 16};
    const struct weights_plan f32 = {.format = {FORMAT_F32, FORMAT_F32, FORMAT_F32}, .embedding = DT_F32};

    (void)state;
    ok(shape_read(&s, directory, &e), &e);
    ok(placement_make(&p, PLACEMENT_BLOCK, LAYERS, N, 5, false, &e), &e); /* 3 experts for ranks 1 .. 4 */
    model_cost(&lead, &s, &p, 0, 5, &f32, l);
    model_cost(&holder, &s, &p, 1, 5, &f32, l);
    model_cost(&empty, &s, &p, 4, 5, &f32, l);
    assert_int_equal(empty.weights, 0);
    assert_int_equal(empty.kv, 0);
    assert_int_equal(holder.weights,
                     LAYERS * (2 * 16 * D + D * 12) * 4); /* an expert of 12 neurons in each layer, by panels of 16 */
    assert_true(lead.weights > holder.weights && holder.mapped == 0 && lead.mapped == 384 * D * 4 && lead.exchange > 0 &&
                holder.exchange > 0);
    placement_free(&p);
}

/* However the ranks of a host share it, a packed file is there once: together they map what one rank maps alone. */
static void ranks_of_a_host_map_a_file_once(void **state)
{
    struct weights_plan plan = {.packed = true, .format = {FORMAT_F32, FORMAT_F32, FORMAT_F32}, .embedding = DT_F32};
    struct model_cost one, c;
    struct placement p;
    struct shape s;
    struct err e;

    (void)state;
    ok(shape_read(&s, directory, &e), &e);
    for (int ranks = 1; ranks <= 4; ranks++)
        for (int coordinators = 0; coordinators <= ranks; coordinators++) /* 0: a split */
            for (int packed = 0; packed < 2; packed++) {
                const struct model_limits l = {
                    .rows = 8, .sessions = 4, .positions = 16, .coordinators = coordinators, .split = !coordinators};
                struct host_cost host = {0}, mapped = {0};
                size_t sum = 0;

                plan.packed = packed;
                ok(placement_make(&p, PLACEMENT_BLOCK, LAYERS, N, 1, true, &e), &e);
                model_cost(&one, &s, &p, 0, 1, &plan, l);
                placement_free(&p);
                ok(placement_make(&p, PLACEMENT_ROUND_ROBIN, LAYERS, N, ranks, true, &e), &e);
                for (int rank = 0; rank < ranks; rank++) {
                    model_cost(&c, &s, &p, rank, ranks, &plan, l);
                    host_cost_add(&host, &c);
                    host_cost_add(&mapped, &(struct model_cost){.mapped = c.mapped, .common = c.common});
                    sum += model_cost_total(&c) - c.mapped;
                }
                placement_free(&p);
                assert_int_equal(host_cost_total(&mapped), one.mapped);
                assert_int_equal(host_cost_total(&host), sum + one.mapped);
            }
}

/* ---- refusals ---- */

static void refused(const char *where, struct model_limits l, status code, const char *word)
{
    struct opened o;
    struct err e;

    assert_int_equal(opened_try(&o, where, l, 1, &e), code);
    if (!strstr(e.text, word)) fail_msg("\"%s\" is not in: %s", word, e.text);
    opened_close(&o);
}

/* A dense model of one layer and zeros, in bf16. */
static void write_wide(const char *where, int width, int neurons)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                        "mlp.down_proj",    "input_layernorm",  "post_attention_layernorm"};
    enum { TENSORS = sizeof(names) / sizeof(*names), VOCAB = 4 };
    void *zeros = calloc((size_t)width * (size_t)neurons, 2);
    struct safetensors_writer *w;
    struct json_t *c;
    char text[600];
    struct err e;

    assert_non_null(zeros);
    ok(safetensors_create(&w, where, 0, &e), &e);
    declare(w, "model.embed_tokens.weight", DT_BF16, VOCAB, width);
    declare(w, "model.norm.weight", DT_BF16, width, 0);
    for (int i = 0; i < TENSORS; i++) {
        snprintf(text, sizeof(text), "model.layers.0.%s.weight", names[i]);
        declare(w, text, DT_BF16, i == 4 || i == 5 ? neurons : width, i > 6 ? 0 : i == 6 ? neurons : width);
    }
    ok(safetensors_write(w, zeros, (size_t)(VOCAB + 1) * (size_t)width * 2, &e), &e);
    for (int i = 0; i < TENSORS; i++)
        ok(safetensors_write(w, zeros, (size_t)width * (i > 6 ? 1 : (size_t)(i < 4 ? width : neurons)) * 2, &e), &e);
    ok(safetensors_commit(w, &e), &e);
    free(zeros);
    snprintf(text, sizeof(text), "%s/config.json", toy);
    ok(json_read(&c, text, 1 << 20, &e), &e);
    json_put_int(c, "vocab_size", VOCAB);
    json_put_int(c, "hidden_size", width);
    json_put_int(c, "intermediate_size", neurons);
    json_put_int(c, "num_hidden_layers", 1);
    json_put_int(c, "num_attention_heads", 1);
    json_put_int(c, "num_key_value_heads", 1);
    json_put_bool(c, "tie_word_embeddings", true);
    snprintf(text, sizeof(text), "%s/config.json", where);
    ok(json_write(text, c, &e), &e);
    json_free(c);
}

static void rounded_inputs_have_a_limit(void **state)
{
    struct model_limits l = {.rows = 2, .sessions = 1, .positions = 8, .half = true};
    char where[] = "/tmp/test-model-wide-XXXXXX", path[512];
    struct opened o;

    (void)state;
    assert_non_null(mkdtemp(where));
    write_wide(where, 8, HALF_COLS);
    opened_open(&o, where, l, 1);
    opened_close(&o);
    write_wide(where, 8, HALF_COLS + 1);
    refused(where, l, ERR_LIMIT, "down_proj.weight: at most 65536 inputs with precision.activations: bf16, found 65537");
    l.half = false;
    opened_open(&o, where, l, 1);
    opened_close(&o);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", where, i ? "config.json" : "model.safetensors");
        unlink(path);
    }
    rmdir(where);
}

static void what_cannot_work_is_refused(void **state)
{
    const struct model_limits plain = {.rows = 4, .sessions = 1, .positions = 8};
    struct model_limits l = plain;
    struct err e;
    char path[512], *bytes;
    size_t length;

    (void)state;
    l.positions = 129;
    refused(toy, l, ERR_LIMIT, "129");
    l = plain;
    l.calibration = true;
    refused(toy, l, ERR_SPEC, "calibration");
    l = plain;
    l.rows = l.sessions = 1 << 20; /* gigabytes, in an arena of one */
    l.positions = 128;
    refused(toy, l, ERR_LIMIT, "test");

    /* NaN in the last element of the file is found when asked for, by name, and only then. */
    path_in(path, "model.safetensors");
    ok(file_read(&bytes, &length, path, 1 << 24, &e), &e);
    memset(bytes + length - 4, 0xff, 4);
    ok(file_write(path, bytes, length, &e), &e);
    l = plain;
    l.verify = true;
    refused(directory, l, ERR_FORMAT, "model.layers.2.mlp.compensation");
    struct opened o;
    opened_open(&o, directory, plain, 1);
    opened_close(&o);

    /* A tensor that is not there, and one of another shape. */
    char *name = memmem(bytes, length, "layers.1.self_attn.k_proj", 25);
    assert_non_null(name);
    char was = name[24];
    name[24] = 'x';
    ok(file_write(path, bytes, length, &e), &e);
    refused(directory, plain, ERR_FORMAT, "model.layers.1.self_attn.k_proj.weight");
    name[24] = was;
    ok(file_write(path, bytes, length, &e), &e);
    free(bytes);
    path_in(path, "config.json");
    ok(file_read(&bytes, &length, path, 1 << 20, &e), &e);
    char *vocab = memmem(bytes, length, "384", 3);
    assert_non_null(vocab);
    vocab[2] = '5';
    ok(file_write(path, bytes, length, &e), &e);
    refused(directory, plain, ERR_FORMAT, "expected shape [385, 48], found [384, 48]");
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_shared_and_compensation_are_bound),
        cmocka_unit_test(the_static_control_keeps_the_most_important_neurons),
        cmocka_unit_test(rows_that_are_asked_for),
        cmocka_unit_test(all_experts_are_the_dense_model),
        cmocka_unit_test(memory_is_as_planned),
        cmocka_unit_test(rank_without_experts_plans_less),
        cmocka_unit_test(ranks_of_a_host_map_a_file_once),
        cmocka_unit_test(rounded_inputs_have_a_limit),
        cmocka_unit_test(what_cannot_work_is_refused), /* last: it breaks the directory */
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
