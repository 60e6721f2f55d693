/* Weights in training: packed copies say what the parameters do, and the gradient of an update of low rank is that of a central difference. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "moe/adapted.h"

enum { WIDTH = 20, NEURONS = 21 };

static struct {
    struct arena *arena;
    struct expert x;
    struct adapted a;
} world;

static struct packed room(struct arena_taker *t, int rows, int cols, struct rng *r)
{
    float *lines = arena_take(t, packed_line_bytes(FORMAT_F32, rows, cols), 1), w[NEURONS * WIDTH * 2];
    struct mat m = {.data = w, .dtype = DT_F32, .rows = rows, .cols = cols, .stride = (size_t)cols};

    assert_non_null(lines);
    for (int i = 0; i < rows * cols; i++) w[i] = (float)rng_normal(r);
    pack_panels(lines, NULL, FORMAT_F32, &m, 0, packed_panels(rows));
    return (struct packed){.lines = lines, .format = FORMAT_F32, .rows = rows, .cols = cols};
}

static void begin(int rank)
{
    struct err e;
    struct arena_taker t = {.e = &e};
    struct rng r;

    assert_int_equal(arena_open(&world.arena, "test", 1 << 20, &e), OK);
    t.arena = world.arena;
    rng_seed(&r, 3, 3);
    world.x = (struct expert){
        .gate = room(&t, NEURONS, WIDTH, &r), .up = room(&t, NEURONS, WIDTH, &r), .down = room(&t, WIDTH, NEURONS, &r)};
    world.x.in_t = room(&t, WIDTH, 2 * NEURONS, &r);
    world.x.down_t = room(&t, NEURONS, WIDTH, &r);
    adapted_take(&world.a, &t, NEURONS, WIDTH, rank);
    assert_false(t.failed);
    adapted_start(&world.a, &world.x, 7);
    adapted_pack(&world.a, &world.x);
}

/* What every copy has of neuron j and input d, of a part. */
static void same_everywhere(void)
{
    float w[NEURONS * WIDTH];

    for (int part = 0; part < 3; part++) {
        adapted_weights(&world.a, part, 0, NEURONS, w);
        for (int j = 0; j < NEURONS; j++)
            for (int d = 0; d < WIDTH; d++) {
                const struct packed *own = &world.a.own[part];

                assert_true(packed_at(own, part < 2 ? j : d, part < 2 ? d : j) == w[j * WIDTH + d]);
                if (part < 2) assert_true(packed_at(&world.x.in_t, d, part * NEURONS + j) == w[j * WIDTH + d]);
                else assert_true(packed_at(&world.x.down_t, j, d) == w[j * WIDTH + d]);
            }
    }
}

/* sum of gradient * W. */
static double along(void)
{
    float w[NEURONS * WIDTH];
    double sum = 0;

    for (int part = 0; part < 3; part++) {
        adapted_weights(&world.a, part, 0, NEURONS, w);
        for (int i = 0; i < NEURONS * WIDTH; i++) sum += (double)w[i] * (double)world.a.gradient[part * NEURONS * WIDTH + i];
    }
    return sum;
}

static void train(int rank)
{
    const struct adamw_options o = {0.9, 0.95, 1e-8, 0.01};
    struct adapted *a = &world.a;
    float first[WIDTH];
    struct rng r;

    begin(rank);
    same_everywhere();
    adapted_weights(a, 2, 4, 1, first);
    for (int d = 0; d < WIDTH; d++) assert_true(first[d] == packed_at(&world.x.down, d, 4)); /* as it was opened */
    rng_seed(&r, 5, 5);
    for (int i = 0; i < 3 * NEURONS * WIDTH; i++) a->gradient[i] = (float)rng_normal(&r);
    for (size_t i = 0; rank && i < 3 * a->each; i++) a->param[i] += (float)(0.3 * rng_normal(&r));
    adapted_slope(a);
    for (size_t i = 0; i < 3 * a->each; i += 17) {
        const float step = 0x1p-6f;
        float was = a->param[i];

        a->param[i] = was + step;
        double up = along();
        a->param[i] = was - step;
        double slope = (up - along()) / (2 * (double)step);
        a->param[i] = was;
        if (fabs(slope - (double)a->slope[i]) > 2e-3) fail_msg("%zu: expected %g, found %g", i, slope, (double)a->slope[i]);
    }
    double before = along();
    assert_true(adapted_squares(a) > 0);
    adapted_step(a, 0, 1, 1e-2, &o);
    assert_true(along() < before);
    adapted_pack(a, &world.x);
    same_everywhere();
    adapted_use(a, &world.x, true);
    assert_ptr_equal(world.x.gate.lines, a->own[0].lines);
    adapted_use(a, &world.x, false);
    assert_ptr_equal(world.x.gate.lines, a->first[0].lines);
    arena_close(world.arena);
}

static void whole(void **state)
{
    (void)state;
    train(0);
}

static void low_rank(void **state)
{
    (void)state;
    train(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole), cmocka_unit_test(low_rank)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
