/* Routers of every kind: scores against plain loops, what is trained against what is used, gradients against finite differences in double,
 * files that bring back every part. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"
#include "base/directory.h"
#include "base/rng.h"
#include "model/router_file.h"
#include "train/router_model.h"

enum { LAYERS = 2, N = 7, D = 21, RANK = 5, ROWS = 9 };

struct world {
    struct shape *shape;
    struct router r;
    struct gemm *g;
    struct router_model *m;
    struct rng rng;
    float h[ROWS * D], dz[ROWS * N];
};

static void draw(struct world *w, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(&w->rng);
}

/* low_rank 0 and with_constant: the constant alone. */
static void world_open_form(struct world *w, enum router_kind kind, int low_rank, bool with_constant)
{
    struct router_form form = {(int32_t)kind, kind == ROUTER_LINEAR ? 0 : RANK, low_rank > 0, low_rank > 0, low_rank,
                               with_constant};
    struct err e;

    memset(w, 0, sizeof(*w));
    w->shape = calloc(1, sizeof(*w->shape));
    w->shape->layers = LAYERS, w->shape->experts = N, w->shape->width = D, w->shape->neurons = 70, w->shape->active = 2;
    assert_int_equal(gemm_open(&w->g, 1, isa_best(), &e), OK);
    assert_int_equal(router_alloc_form(&w->r, w->shape, &form, &e), OK);
    rng_seed(&w->rng, 8, kind);
    draw(w, w->r.weight, (size_t)(LAYERS * N * router_inner(&w->r)));
    draw(w, w->r.bias, LAYERS * N);
    if (w->r.factor) draw(w, w->r.factor, (size_t)(LAYERS * router_factors(&w->r) * D));
    draw(w, w->h, ROWS * D);
    draw(w, w->dz, ROWS * N);
    assert_int_equal(router_model_open(&w->m, &w->r, w->g, ROWS, &e), OK);
}

static void world_open(struct world *w, enum router_kind kind, int low_rank)
{
    world_open_form(w, kind, low_rank, false);
}

static void world_close(struct world *w)
{
    router_model_close(w->m);
    router_free(&w->r);
    gemm_close(w->g);
    free(w->shape);
}

static double plain_score(const struct router *r, int layer, const float *h, int i)
{
    const float *w = r->weight + (size_t)(layer * N + i) * (size_t)router_inner(r);
    double z = r->bias[layer * N + i];

    if (r->kind == ROUTER_LINEAR) {
        for (int d = 0; d < D; d++) z += (double)w[d] * h[d];
        return z;
    }
    for (int j = 0; j < RANK; j++) {
        const float *v = r->factor + (size_t)(layer * router_factors(r) + j) * D, *u = v + (size_t)RANK * D;
        double a = 0, b = 0;

        for (int d = 0; d < D; d++) a += (double)v[d] * h[d];
        for (int d = 0; d < D && r->kind == ROUTER_GATE; d++) b += (double)u[d] * h[d];
        z += w[j] * (r->kind == ROUTER_LOW_RANK ? a : a / (1 + exp(-a))) * (r->kind == ROUTER_GATE ? b : 1);
    }
    return z;
}

/* dz . z, whose gradient is what backward() gives. */
static double objective(const struct world *w, int layer)
{
    double sum = 0;

    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < N; i++) sum += (double)w->dz[t * N + i] * plain_score(&w->r, layer, w->h + t * D, i);
    return sum;
}

static void check_slope(struct world *w, int layer, float *x, double found)
{
    float was = *x;
    double step = 1e-2, up, down;

    *x = was + (float)step;
    double top = *x;
    up = objective(w, layer);
    *x = was - (float)step;
    down = objective(w, layer);
    step = top - *x;
    *x = was;
    assert_true(fabs((up - down) / step - found) < 2e-3 * (1 + fabs(found)));
}

static void gradients(void **state)
{
    (void)state;
    for (int kind = 0; kind < ROUTER_KINDS; kind++) {
        struct router_param *p[ROUTER_PARAMS];
        float dh[ROWS * D], before[ROWS * D];
        struct world w;

        world_open(&w, (enum router_kind)kind, 0);
        int n = router_model_params(w.m, p);
        assert_int_equal(n, kind == ROUTER_LINEAR ? 2 : 3);
        router_model_clear(w.m);
        draw(&w, dh, ROWS * D); /* it is added to */
        memcpy(before, dh, sizeof(dh));
        router_model_backward(w.m, 1, w.h, w.dz, 4, dh);
        router_model_backward(w.m, 1, w.h + 4 * D, w.dz + 4 * N, ROWS - 4, dh + 4 * D);
        for (int i = 0; i < n; i++) {
            size_t half = p[i]->n / 2; /* layer 0 gets nothing */

            for (size_t j = 0; j < half; j++) assert_true(p[i]->gradient[j] == 0);
            for (size_t j = half; j < p[i]->n; j += 3) check_slope(&w, 1, &p[i]->value[j], p[i]->gradient[j]);
        }
        for (int i = 0; i < ROWS * D; i++) check_slope(&w, 1, &w.h[i], (double)dh[i] - before[i]);
        assert_true(router_model_squares(w.m) > 0);
        world_close(&w);
    }
}

static void scores(void **state)
{
    (void)state;
    for (int kind = 0; kind < ROUTER_KINDS; kind++) {
        float z[ROWS * N], used[ROWS * N], one[N];
        struct rows h = {.ld = D, .n = ROWS, .cols = D};
        struct world w;
        struct err e;

        world_open(&w, (enum router_kind)kind, 0);
        void *room = malloc(router_room(&w.r, ROWS) + 1);
        h.x = w.h;
        router_model_scores(w.m, 1, w.h, ROWS, z);
        for (int t = 0; t < ROWS; t++)
            for (int i = 0; i < N; i++) assert_true(fabs(z[t * N + i] - plain_score(&w.r, 1, w.h + t * D, i)) < 1e-4);
        for (int packed = 0; packed < 2; packed++) {
            if (packed) assert_int_equal(router_pack(&w.r, FORMAT_F32, w.g, &e), OK);
            router_scores(&w.r, w.g, 1, &h, NULL, room, used);
            assert_memory_equal(z, used, sizeof(z));
            router_scores(&w.r, w.g, 1, &(struct rows){.x = w.h + 3 * D, .ld = D, .n = 1, .cols = D}, NULL, room, one);
            assert_memory_equal(z + 3 * N, one, sizeof(one));
        }
        free(room);
        world_close(&w);
    }
}

/* Of weights in q8 the first product, which is the large one. */
static void quantized(void **state)
{
    (void)state;
    for (int kind = 0; kind < ROUTER_KINDS; kind++) {
        struct rows h = {.ld = D, .n = ROWS, .cols = D};
        float z[ROWS * N];
        struct world w;
        struct err e;

        world_open(&w, (enum router_kind)kind, 0);
        void *room = malloc(router_room(&w.r, ROWS) + 1), *place = aligned_alloc(64, rows_bytes(ROWS, D));
        h.x = w.h;
        assert_int_equal(router_pack(&w.r, FORMAT_Q8, w.g, &e), OK);
        router_scores(&w.r, w.g, 0, &h, place, room, z);
        double far = 0, size = 0;
        for (int t = 0; t < ROWS; t++)
            for (int i = 0; i < N; i++) {
                double want = plain_score(&w.r, 0, w.h + t * D, i);

                far += (z[t * N + i] - want) * (z[t * N + i] - want);
                size += want * want;
            }
        assert_true(far > 0 && far < 1e-3 * size);
        free(room);
        free(place);
        world_close(&w);
    }
}

static void low_rank(void **state)
{
    float a[ROWS * D], y[ROWS * D], again[ROWS * D];
    struct world w;
    struct err e;

    (void)state;
    world_open(&w, ROUTER_LINEAR, 3);
    draw(&w, w.r.inward, LAYERS * 3 * D);
    draw(&w, w.r.outward, LAYERS * D * 3);
    draw(&w, w.r.offset, LAYERS * D);
    struct rows h = {.x = w.h, .ld = D, .n = ROWS, .cols = D};
    router_low_rank(&w.r, w.g, 1, &h, a, y);
    for (int t = 0; t < ROWS; t++)
        for (int d = 0; d < D; d++) {
            double want = w.r.offset[D + d];

            for (int j = 0; j < 3; j++) {
                double of_j = 0;

                for (int k = 0; k < D; k++) of_j += (double)w.r.inward[(3 + j) * D + k] * w.h[t * D + k];
                want += w.r.outward[(D + d) * 3 + j] * of_j;
            }
            assert_true(fabs(y[t * D + d] - want) < 1e-4);
        }
    assert_int_equal(router_pack(&w.r, FORMAT_Q8, w.g, &e), OK); /* the term stays f32 */
    router_low_rank(&w.r, w.g, 1, &h, a, again);
    assert_memory_equal(y, again, sizeof(y));
    world_close(&w);
}

/* Without a term of low rank d is what is left of it. */
static void constant(void **state)
{
    float a[1], y[ROWS * D];
    struct world w;

    (void)state;
    world_open_form(&w, ROUTER_LINEAR, 0, true);
    draw(&w, w.r.offset, LAYERS * D);
    assert_true(router_compensates(&w.r) && !w.r.mu);
    router_low_rank(&w.r, w.g, 1, &(struct rows){.x = w.h, .ld = D, .n = ROWS, .cols = D}, a, y);
    for (int t = 0; t < ROWS; t++) assert_memory_equal(y + t * D, w.r.offset + D, D * sizeof(float));
    world_close(&w);
    world_open(&w, ROUTER_LINEAR, 0);
    assert_false(router_compensates(&w.r));
    world_close(&w);
}

static void files(void **state)
{
    for (int kind = 0; kind < ROUTER_KINDS; kind++)
        for (int c = 0; c < 4; c++) { /* 3: a constant, and no term of low rank */
            struct json_t *about = json_object_new();
            struct router_part a[ROUTER_PARTS], b[ROUTER_PARTS];
            struct router back;
            struct world w;
            struct err e;

            world_open_form(&w, (enum router_kind)kind, c % 3, c == 3);
            int n = router_parts(&w.r, a);
            for (int i = 0; i < n; i++) draw(&w, *a[i].where, a[i].rows * a[i].cols * LAYERS);
            w.r.by_threshold = c == 1;
            assert_int_equal(router_write(&w.r, *state, "v1", about, true, &e), OK);
            assert_int_equal(router_read(&back, *state, NULL, w.shape, &e), OK);
            assert_true(back.kind == w.r.kind && back.rank == w.r.rank && back.low_rank == c % 3 && !back.offset == !c &&
                        back.by_threshold == (c == 1));
            assert_int_equal(router_parts(&back, b), n);
            for (int i = 0; i < n; i++) {
                assert_string_equal(a[i].name, b[i].name);
                if (c == 1 || strcmp(a[i].name, "threshold"))
                    assert_memory_equal(*a[i].where, *b[i].where, a[i].rows * a[i].cols * LAYERS * sizeof(float));
            }
            router_free(&back);
            json_free(about);
            world_close(&w);
        }
}

static void costs(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, ROUTER_LINEAR, 3);
    assert_true(router_cost(&w.r, 2, true).scores == N * D && router_cost(&w.r, 2, true).low_rank == 2 * 3 * D);
    assert_true(router_cost(&w.r, 2, true).additions == 3 * D && router_cost(&w.r, 2, false).additions == 3 * D);
    world_close(&w);
    world_open_form(&w, ROUTER_LOW_RANK, 0, true); /* no means of its own: the model's, if that has some */
    assert_true(router_cost(&w.r, 2, false).additions == D && router_cost(&w.r, 2, true).additions == 3 * D);
    assert_true(router_cost(&w.r, 2, false).scores == RANK * D + N * RANK && router_cost(&w.r, 2, false).low_rank == 0);
    world_close(&w);
    world_open(&w, ROUTER_GATE, 0);
    assert_true(router_cost(&w.r, 2, false).scores == 2 * RANK * D + N * RANK);
    struct json_t *o = router_cost_json(&w.r, w.shape);
    assert_true(fabs(json_number(json_at(o, "share_of_ffn")) - (2.0 * RANK * D + N * RANK) / (3.0 * D * 70)) < 1e-12);
    json_free(o);
    world_close(&w);
}

/* Two routers have one digest only if all is the same: the last number of each part, and how they select. */
static void digests(void **state)
{
    (void)state;
    for (int kind = 0; kind < ROUTER_KINDS; kind++) {
        struct router_part part[ROUTER_PARTS];
        char first[65], other[65];
        struct world w;

        world_open(&w, (enum router_kind)kind, 3);
        int n = router_parts(&w.r, part);
        assert_int_equal(n, kind == ROUTER_LINEAR ? 8 : 9);
        router_digest(first, &w.r);
        for (int i = 0; i < n; i++) {
            float *last = *part[i].where + LAYERS * part[i].rows * part[i].cols - 1, was = *last;

            *last = nextafterf(was, INFINITY);
            router_digest(other, &w.r);
            assert_string_not_equal(first, other);
            *last = was;
        }
        w.r.by_threshold = !w.r.by_threshold;
        router_digest(other, &w.r);
        assert_string_not_equal(first, other);
        w.r.by_threshold = !w.r.by_threshold;
        router_digest(other, &w.r);
        assert_string_equal(first, other);
        world_close(&w);
    }
}

static int make_directory(void **state)
{
    static char directory[] = "/tmp/factorllm-routers-XXXXXX";

    *state = mkdtemp(directory);
    return *state == NULL;
}

static int remove_directory(void **state)
{
    struct err e;

    return directory_remove(*state, &e) != OK;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients), cmocka_unit_test(scores), cmocka_unit_test(quantized), cmocka_unit_test(low_rank),
        cmocka_unit_test(constant),  cmocka_unit_test(files),  cmocka_unit_test(costs),     cmocka_unit_test(digests),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
