/* Least squares against what was put in, against the conditions that define it, and for every number of threads and calls the same bits. */
#include <math.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/moments.h"

enum { IN = 19, OUT = 7, ROWS = 400 };

struct world {
    struct gemm *g;
    struct moments m;
    float x[ROWS * IN], y[ROWS * OUT];
    double w[OUT][IN], b[OUT];
    struct rng r;
};

/* y = W x + b + noise, W of this rank. */
static void world_open(struct world *w, int rank, double noise, int threads)
{
    struct err e;

    memset(w, 0, sizeof(*w));
    rng_seed(&w->r, 4, 0);
    for (int q = 0; q < rank; q++) {
        double u[OUT], v[IN];

        for (int j = 0; j < OUT; j++) u[j] = rng_normal(&w->r);
        for (int i = 0; i < IN; i++) v[i] = rng_normal(&w->r);
        for (int j = 0; j < OUT; j++)
            for (int i = 0; i < IN; i++) w->w[j][i] += u[j] * v[i];
    }
    for (int j = 0; j < OUT; j++) w->b[j] = rng_normal(&w->r);
    for (int t = 0; t < ROWS; t++) {
        for (int i = 0; i < IN; i++) w->x[t * IN + i] = (float)(rng_normal(&w->r) + (i == 3 ? 5 : 0));
        for (int j = 0; j < OUT; j++) {
            double sum = w->b[j] + noise * rng_normal(&w->r);

            for (int i = 0; i < IN; i++) sum += w->w[j][i] * w->x[t * IN + i];
            w->y[t * OUT + j] = (float)sum;
        }
    }
    assert_int_equal(gemm_open(&w->g, threads, isa_best(), &e), OK);
    assert_int_equal(moments_open(&w->m, IN, OUT, w->g, &e), OK);
    moments_add(&w->m, w->x, w->y, NULL, 100);
    moments_add(&w->m, w->x + 100 * IN, w->y + 100 * OUT, NULL, ROWS - 100);
    assert_int_equal(w->m.rows, ROWS);
}

static void world_close(struct world *w)
{
    moments_close(&w->m);
    gemm_close(w->g);
}

static void finds_what_was_put_in(void **state)
{
    static struct world w;
    float found[OUT * IN], bias[OUT];
    struct err e;

    (void)state;
    world_open(&w, OUT, 0, 1);
    assert_int_equal(moments_solve(&w.m, 1e-9, found, bias, &e), OK);
    for (int j = 0; j < OUT; j++) {
        for (int i = 0; i < IN; i++) assert_true(fabs(found[j * IN + i] - w.w[j][i]) < 1e-4);
        assert_true(fabs(bias[j] - w.b[j]) < 1e-3);
    }
    world_close(&w);
}

/* At the minimum the residuals have the mean 0 and their products with each input are ridge * s * W. */
static void normal_equations(void **state)
{
    static struct world w;
    float found[OUT * IN], bias[OUT];
    double mean[IN] = {0}, variance = 0;
    struct err e;

    (void)state;
    world_open(&w, 3, 2, 1);
    assert_int_equal(moments_solve(&w.m, 0.1, found, bias, &e), OK);
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < IN; i++) mean[i] += w.x[t * IN + i] / (double)ROWS;
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < IN; i++) variance += pow(w.x[t * IN + i] - mean[i], 2) / IN;
    for (int j = 0; j < OUT; j++) {
        double left[IN] = {0}, sum = 0;

        for (int t = 0; t < ROWS; t++) {
            double r = (double)w.y[t * OUT + j] - bias[j];

            for (int i = 0; i < IN; i++) r -= (double)found[j * IN + i] * w.x[t * IN + i];
            sum += r;
            for (int i = 0; i < IN; i++) left[i] += r * (w.x[t * IN + i] - mean[i]);
        }
        assert_true(fabs(sum) < 1e-2);
        for (int i = 0; i < IN; i++) assert_true(fabs(left[i] - 0.1 * variance * found[j * IN + i]) < 1e-2);
    }
    world_close(&w);
}

/* A row of weight 3 is three rows, one of weight 0 none; weights of a common factor are no weights. */
static void weights_are_rows(void **state)
{
    enum { MORE = 2 * ROWS };
    static struct world w;
    static float x[MORE * IN], y[MORE * OUT], weight[ROWS];
    float as_rows[OUT * IN], weighted[OUT * IN], bias[2][OUT];
    struct err e;
    int n = 0;

    (void)state;
    world_open(&w, 3, 2, 1);
    for (int t = 0; t < ROWS; t++) {
        int times = t % 3 == 0 ? 3 : t % 3 == 1;

        weight[t] = 0.125f * (float)times;
        for (int i = 0; i < times; i++, n++) {
            memcpy(x + n * IN, w.x + t * IN, IN * sizeof(*x));
            memcpy(y + n * OUT, w.y + t * OUT, OUT * sizeof(*y));
        }
    }
    moments_clear(&w.m);
    moments_add(&w.m, x, y, NULL, n);
    assert_int_equal(moments_solve(&w.m, 0.1, as_rows, bias[0], &e), OK);
    moments_clear(&w.m);
    moments_add(&w.m, w.x, w.y, weight, 70);
    moments_add(&w.m, w.x + 70 * IN, w.y + 70 * OUT, weight + 70, ROWS - 70);
    assert_int_equal(moments_solve(&w.m, 0.1, weighted, bias[1], &e), OK);
    for (int i = 0; i < OUT * IN; i++) assert_true(fabs(as_rows[i] - weighted[i]) < 1e-4);
    for (int j = 0; j < OUT; j++) assert_true(fabs(bias[0][j] - bias[1][j]) < 1e-4);
    world_close(&w);
}

/* Means that are large beside the variances take no digits away from these. */
static void large_means(void **state)
{
    static struct world w;
    float found[OUT * IN], bias[OUT];
    struct err e;

    (void)state;
    world_open(&w, OUT, 0, 1);
    moments_clear(&w.m);
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < IN; i++) w.x[t * IN + i] += 512; /* and y is what it was: the bias tells */
    moments_add(&w.m, w.x, w.y, NULL, ROWS);
    assert_int_equal(moments_solve(&w.m, 1e-9, found, bias, &e), OK);
    for (int j = 0; j < OUT; j++) {
        double want = w.b[j];

        for (int i = 0; i < IN; i++) want -= 512 * w.w[j][i];
        for (int i = 0; i < IN; i++) assert_true(fabs(found[j * IN + i] - w.w[j][i]) < 1e-3);
        assert_true(fabs(bias[j] - want) < 0.5);
    }
    world_close(&w);
}

static double missing(const struct world *w, const float *a, const float *b, const float *bias, int rank)
{
    double sum = 0;

    for (int t = 0; t < ROWS; t++)
        for (int j = 0; j < OUT; j++) {
            double y = bias[j];

            for (int q = 0; q < rank; q++) {
                double inner = 0;

                for (int i = 0; i < IN; i++) inner += (double)a[q * IN + i] * w->x[t * IN + i];
                y += b[j * rank + q] * inner;
            }
            sum += pow(y - w->y[t * OUT + j], 2);
        }
    return sum;
}

static void low_rank(void **state)
{
    static struct world w;
    float a[OUT * IN], b[OUT * OUT], bias[OUT], whole[OUT * IN], whole_bias[OUT];
    double last = INFINITY;
    struct err e;

    (void)state;
    world_open(&w, 2, 0, 1); /* two directions are all of it */
    for (int rank = 1; rank <= 3; rank++) {
        assert_int_equal(moments_reduced(&w.m, 1e-9, rank, a, b, bias, &e), OK);
        double left = missing(&w, a, b, bias, rank);

        assert_true(rank == 1 ? left > 100 : left < 1e-2);
    }
    world_close(&w);
    world_open(&w, OUT, 1, 1);
    for (int rank = 1; rank <= OUT; rank++) { /* more is better, and all of them are the whole solution */
        assert_int_equal(moments_reduced(&w.m, 1e-3, rank, a, b, bias, &e), OK);
        double left = missing(&w, a, b, bias, rank);

        assert_true(left < last);
        last = left;
        for (int p = 0; p < rank; p++)
            for (int q = 0; q <= p; q++) {
                double dot = 0;

                for (int j = 0; j < OUT; j++) dot += (double)b[j * rank + p] * b[j * rank + q];
                assert_true(fabs(dot - (p == q)) < 1e-5);
            }
    }
    assert_int_equal(moments_solve(&w.m, 1e-3, whole, whole_bias, &e), OK);
    for (int j = 0; j < OUT; j++)
        for (int i = 0; i < IN; i++) {
            double product = 0;

            for (int q = 0; q < OUT; q++) product += (double)b[j * OUT + q] * a[q * IN + i];
            assert_true(fabs(product - whole[j * IN + i]) < 1e-4);
        }
    world_close(&w);
}

static void same_bits(void **state)
{
    static struct world one, three;
    float w[2][OUT * IN], bias[2][OUT];
    struct err e;

    (void)state;
    world_open(&one, OUT, 1, 1);
    world_open(&three, OUT, 1, 3);
    moments_clear(&three.m);
    for (int t = 0; t < ROWS; t += 50) moments_add(&three.m, three.x + t * IN, three.y + t * OUT, NULL, 50);
    assert_int_equal(moments_solve(&one.m, 0.01, w[0], bias[0], &e), OK);
    assert_int_equal(moments_solve(&three.m, 0.01, w[1], bias[1], &e), OK);
    assert_memory_equal(w[0], w[1], sizeof(w[0]));
    assert_memory_equal(bias[0], bias[1], sizeof(bias[0]));
    world_close(&one);
    world_close(&three);
}

static void no_numbers(void **state)
{
    static struct world w;
    float found[OUT * IN], bias[OUT];
    struct err e;

    (void)state;
    world_open(&w, 1, 0, 1);
    w.x[5] = NAN;
    moments_add(&w.m, w.x, w.y, NULL, 1);
    assert_int_equal(moments_solve(&w.m, 0.01, found, bias, &e), ERR_FORMAT);
    moments_clear(&w.m); /* nothing at all: nothing to say */
    assert_int_equal(moments_solve(&w.m, 0.01, found, bias, &e), OK);
    for (int i = 0; i < OUT * IN; i++) assert_true(found[i] == 0);
    for (int j = 0; j < OUT; j++) assert_true(bias[j] == 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_was_put_in),
        cmocka_unit_test(normal_equations),
        cmocka_unit_test(weights_are_rows),
        cmocka_unit_test(large_means),
        cmocka_unit_test(low_rank),
        cmocka_unit_test(same_bits),
        cmocka_unit_test(no_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
