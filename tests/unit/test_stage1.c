/* Stage 1 on synthetic layers: routers learn a rule that is there to be learned, layers do not disturb each other, a batch in passes is the
 * batch, and a saved state is the whole state. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "num/ops.h"
#include "train/stage1.h"

enum { LAYERS = 2, N = 6, D = 12, K = 2, ROWS = 64 };

struct world {
    float weight[LAYERS * N * D], bias[LAYERS * N]; /* of the router in training */
    float rule[LAYERS][N * D];                      /* labels are the top K of rule * h */
    float threshold[LAYERS];
    struct router router;
    struct gemm *gemm;
    struct stage1 *s;
    struct rng r;
    float h[ROWS * D];
    uint64_t label[ROWS];
};

static void world_open_weighted(struct world *w, enum spec_loss loss, enum spec_token_weights weights)
{
    static const int active[LAYERS] = {K, K};
    struct stage1_options o = {.loss = loss,
                               .token_weights = weights,
                               .active = active,
                               .rows = ROWS,
                               .sessions = 1,
                               .adamw = {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.01},
                               .clip = 1};
    struct err e;

    memset(w, 0, sizeof(*w));
    w->router = (struct router){
        .layers = LAYERS, .experts = N, .width = D, .weight = w->weight, .bias = w->bias, .threshold = w->threshold};
    rng_seed(&w->r, 21, 0);
    for (int i = 0; i < LAYERS * N * D; i++) w->rule[i / (N * D)][i % (N * D)] = (float)rng_normal(&w->r);
    for (int i = 0; i < LAYERS * N * D; i++) w->weight[i] = 0.01f * (float)rng_normal(&w->r);
    assert_int_equal(gemm_open(&w->gemm, 1, isa_best(), &e), OK);
    assert_int_equal(stage1_open(&w->s, &w->router, NULL, w->gemm, &o, &e), OK);
}

static void world_open(struct world *w, enum spec_loss loss)
{
    world_open_weighted(w, loss, TOKENS_EVEN);
}

static void world_close(struct world *w)
{
    stage1_close(w->s);
    gemm_close(w->gemm);
}

static void draw(struct world *w, int layer, int rows)
{
    for (int i = 0; i < rows * D; i++) w->h[i] = (float)rng_normal(&w->r);
    for (int t = 0; t < rows; t++) {
        float z[N] = {0};

        for (int i = 0; i < N; i++)
            for (int d = 0; d < D; d++) z[i] += w->rule[layer][i * D + d] * w->h[t * D + d];
        top_k(w->label + t, z, N, K);
    }
}

static void batch(struct world *w, enum stage1_mode mode)
{
    stage1_begin(w->s, ROWS);
    for (int l = 0; l < LAYERS; l++) {
        draw(w, l, ROWS);
        stage1_learn(w->s, mode, l, w->h, NULL, w->label, NULL, ROWS);
    }
    stage1_end(w->s);
}

static void learns(void **state)
{
    (void)state;
    for (int loss = LOSS_PAPER; loss <= LOSS_BCE; loss++) {
        struct world w;

        world_open(&w, (enum spec_loss)loss);
        batch(&w, STAGE1_MEASURE);
        double before = stage1_tally(w.s)->loss[0];
        for (int l = 0; l < LAYERS; l++) assert_true(fabs(stage1_tally(w.s)->agreement[l] - (double)K / N) < 0.3);
        for (int i = 0; i < 250; i++) {
            batch(&w, STAGE1_LEARN);
            assert_true(stage1_update(w.s, 0.03) > 0);
        }
        batch(&w, STAGE1_MEASURE);
        for (int l = 0; l < LAYERS; l++) {
            uint64_t load = 0;

            assert_true(stage1_tally(w.s)->agreement[l] > 0.85);
            for (int i = 0; i < N; i++) load += stage1_tally(w.s)->load[l * N + i];
            assert_int_equal(load, ROWS * K);
        }
        assert_true(stage1_tally(w.s)->loss[0] < before);
        assert_int_equal(stage1_steps(w.s), 250);
        world_close(&w);
    }
}

/* Labels that have nothing to do with the states: agreement stays near chance, K / N. */
static void does_not_learn_noise(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, LOSS_BCE);
    for (int i = 0; i <= 100; i++) {
        stage1_begin(w.s, ROWS);
        for (int l = 0; l < LAYERS; l++) {
            draw(&w, l, ROWS);
            for (int t = 0; t < ROWS; t++) {
                int order[N] = {0, 1, 2, 3, 4, 5};

                rng_shuffle(&w.r, order, N);
                w.label[t] = UINT64_C(1) << order[0] | UINT64_C(1) << order[1];
            }
            stage1_learn(w.s, STAGE1_LEARN, l, w.h, NULL, w.label, NULL, ROWS);
        }
        stage1_end(w.s);
        stage1_update(w.s, 0.01);
    }
    for (int l = 0; l < LAYERS; l++) assert_true(fabs(stage1_tally(w.s)->agreement[l] - (double)K / N) < 0.2);
    world_close(&w);
}

/* The gradient of the whole: a small step against it lowers the loss by what it promises.  AdamW's first step is lr * sign(gradient), so a
 * measured batch before and after tells whether all signs are right. */
static void the_first_step_goes_down(void **state)
{
    struct world w;
    double before[LAYERS];

    (void)state;
    world_open(&w, LOSS_PAPER);
    struct rng here = w.r;
    batch(&w, STAGE1_LEARN);
    memcpy(before, stage1_tally(w.s)->loss, sizeof(before));
    stage1_update(w.s, 1e-3);
    w.r = here;
    batch(&w, STAGE1_MEASURE);
    for (int l = 0; l < LAYERS; l++) assert_true(stage1_tally(w.s)->loss[l] < before[l]);
    world_close(&w);
}

/* What is measured, not learned, changes nothing; and layers are separate. */
static void measuring_changes_nothing(void **state)
{
    struct world w;
    float kept[LAYERS * N * D];

    (void)state;
    world_open(&w, LOSS_BCE);
    memcpy(kept, w.weight, sizeof(kept));
    batch(&w, STAGE1_MEASURE);
    assert_memory_equal(kept, w.weight, sizeof(kept));

    stage1_begin(w.s, ROWS); /* layer 1 alone: layer 0 only decays, which without a gradient is p * (1 - lr * decay) */
    draw(&w, 1, ROWS);
    stage1_learn(w.s, STAGE1_LEARN, 1, w.h, NULL, w.label, NULL, ROWS);
    stage1_update(w.s, 0.01);
    for (int i = 0; i < N * D; i++) assert_true(fabsf(w.weight[i] - kept[i] * (1 - 1e-4f)) < 1e-9f);
    int moved = 0;
    for (int i = N * D; i < LAYERS * N * D; i++) moved += w.weight[i] != kept[i];
    assert_int_equal(moved, N * D);
    for (int i = 0; i < N; i++) assert_true(w.bias[i] == 0);
    world_close(&w);
}

/* One batch in three passes has the tally of the batch in one, and gives the same step but for rounding. */
static void passes_are_the_batch(void **state)
{
    struct world one, three;

    (void)state;
    world_open(&one, LOSS_PAPER);
    world_open(&three, LOSS_PAPER);
    batch(&one, STAGE1_LEARN);
    stage1_begin(three.s, ROWS);
    for (int l = 0; l < LAYERS; l++) {
        draw(&three, l, ROWS);
        stage1_learn(three.s, STAGE1_LEARN, l, three.h, NULL, three.label, NULL, 10);
        stage1_learn(three.s, STAGE1_LEARN, l, three.h + 10 * D, NULL, three.label + 10, NULL, 30);
        stage1_learn(three.s, STAGE1_LEARN, l, three.h + 40 * D, NULL, three.label + 40, NULL, ROWS - 40);
    }
    stage1_end(three.s);
    const struct stage1_tally *a = stage1_tally(one.s), *b = stage1_tally(three.s);
    for (int l = 0; l < LAYERS; l++) {
        assert_true(a->agreement[l] == b->agreement[l]);
        assert_true(fabs(a->loss[l] - b->loss[l]) < 1e-12);
    }
    assert_memory_equal(a->load, b->load, LAYERS * N * sizeof(uint64_t));
    double norm = stage1_update(one.s, 0.01), other = stage1_update(three.s, 0.01);
    assert_true(fabs(norm - other) < 1e-5 * norm);
    world_close(&one);
    world_close(&three);
}

static void a_saved_state_goes_on(void **state)
{
    struct world a, b;
    struct checkpoint_array from[STAGE1_ARRAYS], to[STAGE1_ARRAYS];

    (void)state;
    world_open(&a, LOSS_BCE);
    world_open(&b, LOSS_BCE);
    for (int i = 0; i < 12; i++) {
        if (i == 5) {
            stage1_arrays(a.s, from);
            int n = stage1_arrays(b.s, to);
            assert_int_equal(n, 6);
            for (int j = 0; j < n; j++) {
                assert_string_equal(from[j].name, to[j].name);
                memcpy(to[j].data, from[j].data, from[j].n * sizeof(float));
            }
            stage1_set_steps(b.s, stage1_steps(a.s));
            b.r = a.r;
        }
        batch(&a, STAGE1_LEARN);
        stage1_update(a.s, 0.02);
        if (i < 5) continue;
        batch(&b, STAGE1_LEARN);
        stage1_update(b.s, 0.02);
    }
    assert_memory_equal(a.weight, b.weight, sizeof(a.weight));
    assert_memory_equal(a.bias, b.bias, sizeof(a.bias));
    world_close(&a);
    world_close(&b);
}

/* One token in 64 whose output is ten times as long, and whose experts are those that all others leave out: with even weights a short training hardly sees it. */
static void a_costly_token_counts(void **state)
{
    float y[ROWS * D];

    (void)state;
    for (int weights = TOKENS_EVEN; weights <= TOKENS_SQUARE; weights++) {
        struct world w;

        world_open_weighted(&w, LOSS_BCE, (enum spec_token_weights)weights);
        for (int i = 0; i < 40; i++) {
            draw(&w, 0, ROWS);
            for (int d = 0; d < D; d++) w.h[d] = d < 2 ? 2 : 0;
            for (int t = 0; t < ROWS; t++) w.label[t] = t ? 3 : 12;
            for (int j = 0; j < ROWS * D; j++) y[j] = j < D ? 10 : 1;
            stage1_begin(w.s, ROWS);
            stage1_learn(w.s, STAGE1_LEARN, 0, w.h, y, w.label, NULL, 24); /* in two passes: weights are of the batch */
            stage1_learn(w.s, STAGE1_LEARN, 0, w.h + 24 * D, y + 24 * D, w.label + 24, NULL, ROWS - 24);
            stage1_end(w.s);
            stage1_update(w.s, 0.03);
        }
        stage1_begin(w.s, 1);
        stage1_learn(w.s, STAGE1_MEASURE, 0, w.h, y, w.label, NULL, 1);
        stage1_end(w.s);
        assert_true(stage1_tally(w.s)->agreement[0] == (weights == TOKENS_EVEN ? 0 : 1));
        world_close(&w);
    }
}

/* Weights are of the sum 1 in a batch: the loss of rows that are all alike is theirs, however long their outputs. */
static void weights_have_a_mean(void **state)
{
    float y[ROWS * D];
    double loss[3], norm[3];

    (void)state;
    for (int weights = TOKENS_EVEN; weights <= TOKENS_SQUARE; weights++) {
        struct world w;

        world_open_weighted(&w, LOSS_BCE, (enum spec_token_weights)weights);
        draw(&w, 0, ROWS);
        for (int t = 0; t < ROWS; t++)
            for (int d = 0; d < D; d++) w.h[t * D + d] = w.h[d], y[t * D + d] = (float)(1 + t);
        for (int t = 0; t < ROWS; t++) w.label[t] = 3;
        stage1_begin(w.s, ROWS);
        for (int l = 0; l < LAYERS; l++) stage1_learn(w.s, STAGE1_LEARN, l, w.h, y, w.label, NULL, ROWS);
        stage1_end(w.s);
        loss[weights] = stage1_tally(w.s)->loss[0];
        norm[weights] = stage1_update(w.s, 0.01);
        world_close(&w);
    }
    for (int i = 1; i < 3; i++) assert_true(fabs(loss[i] - loss[0]) < 1e-9 && fabs(norm[i] - norm[0]) < 1e-5 * norm[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learns),
        cmocka_unit_test(does_not_learn_noise),
        cmocka_unit_test(the_first_step_goes_down),
        cmocka_unit_test(measuring_changes_nothing),
        cmocka_unit_test(passes_are_the_batch),
        cmocka_unit_test(a_costly_token_counts),
        cmocka_unit_test(weights_have_a_mean),
        cmocka_unit_test(a_saved_state_goes_on),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
