/* L L' is A, solutions solve, the inverse is one: over sizes around the blocks', and with the same bits on any number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/cholesky.h"

enum { MOST = 200, COLS = 37 };

static const int sizes[] = {1, 3, 63, 64, 65, 131, MOST};

struct world {
    double a[MOST * MOST], l[MOST * MOST], b[MOST * COLS], x[MOST * COLS];
    float inverse[MOST * MOST];
    int n;
};

/* A = M M' + n / 8, so that nothing is nearly singular. */
static void fill(struct world *w, int n)
{
    double *m = malloc((size_t)(n * n) * sizeof(*m));
    struct rng r;

    rng_seed(&r, 5, (uint64_t)n);
    w->n = n;
    for (int i = 0; i < n * n; i++) m[i] = rng_normal(&r);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = i == j ? n / 8.0 : 0;

            for (int k = 0; k < n; k++) sum += m[i * n + k] * m[j * n + k];
            w->a[i * n + j] = sum;
        }
    for (int i = 0; i < n * COLS; i++) w->b[i] = rng_normal(&r);
    free(m);
}

static void compute(struct world *w, int threads)
{
    size_t cells = (size_t)(w->n * w->n) * sizeof(double);
    struct gemm *g;
    struct err e;

    assert_int_equal(gemm_open(&g, threads, isa_best(), &e), OK);
    memcpy(w->l, w->a, cells);
    memcpy(w->x, w->b, (size_t)(w->n * COLS) * sizeof(double));
    assert_true(cholesky_factor(w->l, w->n, g, NULL));
    assert_int_equal(cholesky_solve(w->l, w->x, w->n, COLS, g, NULL, &e), OK);
    assert_int_equal(cholesky_invert(w->l, w->inverse, w->n, g, NULL, &e), OK);
    gemm_close(g);
}

static void check(const struct world *w)
{
    int n = w->n;

    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = 0, one = 0;

            for (int k = 0; k <= j; k++) sum += w->l[i * n + k] * w->l[j * n + k];
            assert_true(fabs(sum - w->a[i * n + j]) < 1e-10 * n);
            for (int k = 0; k < n; k++) one += w->a[i * n + k] * (double)w->inverse[k * n + j];
            assert_true(fabs(one - (i == j)) < 1e-4);
        }
        for (int c = 0; c < COLS; c++) {
            double sum = 0;

            for (int k = 0; k < n; k++) sum += w->a[i * n + k] * w->x[k * COLS + c];
            assert_true(fabs(sum - w->b[i * COLS + c]) < 1e-9);
        }
    }
}

static void solves(void **state)
{
    struct world *w = calloc(1, sizeof(*w)), *three = calloc(1, sizeof(*three));

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        fill(w, sizes[i]);
        fill(three, sizes[i]);
        compute(w, 1);
        check(w);
        compute(three, 3);
        for (int r = 0; r < w->n; r++)
            assert_memory_equal(w->l + r * w->n, three->l + r * w->n, (size_t)(r + 1) * sizeof(double));
        assert_memory_equal(w->x, three->x, (size_t)(w->n * COLS) * sizeof(double));
        assert_memory_equal(w->inverse, three->inverse, (size_t)(w->n * w->n) * sizeof(float));
    }
    free(w);
    free(three);
}

static void refuses(void **state)
{
    static const double wrong[] = {0, -1, NAN, INFINITY};
    struct world *w = calloc(1, sizeof(*w));
    struct gemm *g;
    struct err e;

    (void)state;
    assert_int_equal(gemm_open(&g, 1, isa_best(), &e), OK);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        for (int at = 0; at < 2; at++) {
            fill(w, 70);
            w->a[(at ? 69 : 0) * 71] = wrong[i];
            assert_false(cholesky_factor(w->a, 70, g, NULL));
        }
    gemm_close(g);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(solves), cmocka_unit_test(refuses)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
