/* Exact sums, and the products that go straight into them, against the plain definitions: the same bits. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/exact.h"
#include "num/exact_product.h"
#include "num/pair_product.h"

enum { ROWS = 37, COLS = 48 };

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) & ~(size_t)63);

    if (!p) abort();
    memset(p, 0, (bytes + 64) & ~(size_t)63);
    return p;
}

static float number(struct rng *r)
{
    return (float)(rng_normal(r) * pow(10, rng_unit(r) * 12 - 10)); /* from 1e-10 to 1e2 */
}

static struct exact sums(int rows, int cols)
{
    return (struct exact){room((size_t)(rows * cols) * sizeof(int64_t)), room((size_t)rows * sizeof(int)), rows, cols, 0};
}

/* Calls check for every level that this processor has. */
static void each_level(void (*check)(enum isa))
{
    for (int isa = ISA_PLAIN; isa <= (int)isa_best(); isa++) check((enum isa)isa);
}

static void free_sums(struct exact *e)
{
    free(e->sum), free(e->terms);
}

/* Terms of some rows at a time, and means taken off, against sums of exact_of(). */
static void check_sums(enum isa isa)
{
    struct exact e = sums(ROWS, COLS);
    int64_t want[ROWS * COLS];
    double start[COLS], found = 0;
    float *y = room(ROWS * COLS * sizeof(float)), mean[COLS];
    struct rng r;

    rng_seed(&r, 1, 1);
    for (int begun = 0; begun < 2; begun++) {
        for (int c = 0; c < COLS; c++) start[c] = grid(number(&r));
        exact_begin(&e, begun ? start : NULL, COLS - 3); /* what is behind has no beginning */
        for (int i = 0; i < ROWS * COLS; i++)
            want[i] = begun && i % COLS < COLS - 3 ? (int64_t)(start[i % COLS] / EXACT_UNIT) : 0;
        for (int n = 0; n < 50; n++) {
            float scale = n % 2 ? 1.0f : 1.3f;
            int at[ROWS], some = (int)rng_below(&r, ROWS + 1);

            for (int i = 0; i < ROWS; i++) at[i] = 100 + i;
            rng_shuffle(&r, at, ROWS);
            for (int i = 0; i < some * COLS; i++) y[i] = number(&r);
            for (int c = 0; c < COLS; c++) mean[c] = number(&r);
            exact_add(&e, isa, at, 100, some, y, COLS, scale);
            exact_take(&e, at, 100, some, mean, COLS - 3);
            for (int i = 0; i < some * COLS; i++) {
                int c = i % COLS;

                want[(at[i / COLS] - 100) * COLS + c] += exact_of(scale * y[i]) - (c < COLS - 3 ? exact_of(mean[c]) : 0);
            }
        }
        assert_true(exact_settle(&e, &found));
        assert_memory_equal(e.sum, want, sizeof(want));
    }
    free_sums(&e);
    free(y);
}

static void test_sums(void **state)
{
    (void)state;
    each_level(check_sums);
}

/* Whatever leaves the range is seen: terms, sums, beginnings, and what is no number. */
static void check_range(enum isa isa)
{
    static const float bad[] = {0x1p15f, -0x1p15f, 1e9f, -1e30f, FLT_MAX, INFINITY, -INFINITY, NAN};
    struct exact e = sums(2, 16);
    const int at[] = {0, 1};
    double found = 0, start[16] = {0};
    float y[32] = {0};

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        for (int c = 0; c < 32; c += 5) {
            memset(y, 0, sizeof(y));
            y[c] = bad[i];
            exact_begin(&e, NULL, 0);
            exact_add(&e, isa, at, 0, 2, y, 16, 1.0f);
            assert_false(exact_settle(&e, &found));
            assert_true(found != 0);
        }
        start[3] = grid(bad[i]);
        exact_begin(&e, start, 16);
        assert_false(exact_settle(&e, &found));
        exact_begin(&e, NULL, 0);
        exact_take(&e, at, 0, 2, &bad[i], 1);
        assert_false(exact_settle(&e, &found));
    }
    for (int c = 0; c < 32; c++) y[c] = 32767;
    exact_begin(&e, NULL, 0);
    exact_add(&e, isa, at, 0, 2, y, 16, -1.0f);
    assert_true(exact_settle(&e, &found));
    exact_begin(&e, NULL, 0);
    for (int i = 0; i < EXACT_TERMS; i++) exact_add(&e, isa, at, 0, 2, y, 16, 1.0f); /* as many as may be: nothing wraps around */
    assert_false(exact_settle(&e, &found));
    assert_true(found > 1e8);
    exact_begin(&e, NULL, 0);
    for (int i = 0; i < EXACT_TERMS - 1; i++) exact_add(&e, isa, at, 0, 2, y, 16, i % 2 ? 1.0f : -1.0f);
    assert_true(exact_settle(&e, &found));
    for (int c = 0; c < 32; c++) assert_int_equal(e.sum[c], 0);
    free_sums(&e);
}

static void test_range(void **state)
{
    (void)state;
    each_level(check_range);
}

static void test_join(void **state)
{
    int64_t a[COLS], b[COLS], both[COLS];
    float x[COLS], y[COLS], half[COLS];
    double found = 0;
    struct rng r;

    (void)state;
    rng_seed(&r, 4, 4);
    for (int i = 0; i < COLS; i++) a[i] = exact_of(number(&r)), b[i] = exact_of(number(&r)), x[i] = y[i] = number(&r);
    exact_to_float(half, a, COLS);
    for (int i = 0; i < COLS; i++) assert_true(half[i] == (float)exact_value(a[i]));
    exact_finish(x, a, COLS);
    for (int i = 0; i < COLS; i++) assert_true(x[i] == y[i] + (float)exact_value(a[i]));
    memcpy(both, b, sizeof(both));
    assert_true(exact_join(both, a, COLS, &found));
    for (int i = 0; i < COLS; i++) assert_int_equal(both[i], a[i] + b[i]);
    assert_true(exact_join_float(b, half, COLS, &found));
    for (int i = 0; i < COLS; i++) assert_int_equal(b[i] - exact_of(half[i]), both[i] - a[i]);
    a[7] = INT64_C(1) << 50, b[7] = 1;
    assert_false(exact_join(a, b, COLS, &found));
    half[3] = NAN;
    assert_false(exact_join_float(b, half, COLS, &found));
    half[3] = -40000;
    assert_false(exact_join_float(b, half, COLS, &found));
    assert_true(found == -40000);
}

static struct packed weights(enum format f, int rows, int cols, struct rng *r)
{
    float *w = room((size_t)(rows * cols) * sizeof(*w));
    struct mat m = {w, DT_F32, rows, cols, (size_t)cols};
    struct packed p = {.format = f, .rows = rows, .cols = cols};
    void *lines = room(packed_line_bytes(f, rows, cols));
    uint16_t *scale = room(packed_scale_bytes(f, rows, cols));

    for (int i = 0; i < rows * cols; i++) w[i] = (float)rng_normal(r);
    pack_panels(lines, scale, f, &m, 0, packed_panels(rows));
    free(w);
    p.lines = lines, p.scale = scale;
    return p;
}

static void free_weights(struct packed *p)
{
    free((void *)p->lines), free((void *)p->scale);
}

static struct rows inputs(int n, int cols, struct rng *r)
{
    size_t ld = (size_t)cols + 3;
    float *x = room((size_t)n * ld * sizeof(*x));

    for (size_t i = 0; i < (size_t)n * ld; i++) x[i] = (float)rng_normal(r);
    return (struct rows){.x = x, .ld = ld, .n = n, .cols = cols};
}

enum { OUT = 100, PANELS = 7, WIDE = PANELS * PANEL_LANES };

/* The level that has these products, or what this processor has below it. */
static const struct kernel *few_inputs(void)
{
    return kernel_for(ISA_AVX2);
}

/* One case; false: there is no such product. */
static bool check_product(const struct packed *w, const struct rows *x, int from, float scale, const void *next)
{
    const struct kernel *k = few_inputs(), *plain = kernel_for(ISA_PLAIN);
    struct exact a = sums(ROWS, WIDE);
    float *y = room(ROWS * WIDE * sizeof(*y));
    void *scratch = room(kernel_scratch_bytes());
    int at[ROWS], panels = PANELS - from;

    for (int t = 0; t < x->n; t++) at[t] = 5 + (ROWS - 1 - t);
    exact_begin(&a, NULL, 0);
    bool done = exact_product(&a, k, at, 5, x, w, from, panels, scale, next);

    plain->product(y, WIDE, x, NULL, x->n, w, from, panels, scratch);
    for (int t = 0; done && t < x->n; t++) {
        int64_t *sum = a.sum + (at[t] - 5) * WIDE;

        assert_int_equal(a.terms[at[t] - 5], 1);
        for (int o = 0; o < WIDE; o++)
            assert_int_equal(sum[o], o < panels * PANEL_LANES ? exact_of(scale * y[t * WIDE + o]) + EXACT_BIAS : 0);
    }
    free_sums(&a);
    free(y), free(scratch);
    return done;
}

static void test_product_into_sums(void **state)
{
    static const int cols[] = {1, 2, 11, 16, 17, 64, 255, 256}, n_of[] = {1, 2, 3, 4, 5, 6, 7, 13, 31, ROWS};
    bool fast = few_inputs()->isa == ISA_AVX2;
    struct rng r;

    (void)state;
    rng_seed(&r, 2, 2);
    for (size_t c = 0; c < sizeof(cols) / sizeof(*cols); c++) {
        for (int f = FORMAT_F32; f <= FORMAT_BF16; f++) {
            struct packed w = weights((enum format)f, OUT, cols[c], &r);

            for (size_t i = 0; i < sizeof(n_of) / sizeof(*n_of); i++) {
                struct rows x = inputs(n_of[i], cols[c], &r);
                int from = (int)rng_below(&r, PANELS);

                assert_int_equal(check_product(&w, &x, from, i % 2 ? 1.0f : 0.7f, i % 3 ? w.lines : NULL), fast);
                free((void *)x.x);
            }
            free_weights(&w);
        }
    }
    /* a term out of range is seen here too */
    struct packed w = weights(FORMAT_F32, 16, 16, &r);
    struct rows x = inputs(1, 16, &r);
    struct exact e = sums(1, 16);
    double found;

    exact_begin(&e, NULL, 0);
    if (exact_product(&e, few_inputs(), (int[]){0}, 0, &x, &w, 0, 1, 1e9f, NULL)) assert_false(exact_settle(&e, &found));
    free_weights(&w), free((void *)x.x), free_sums(&e);
}

static void test_pairs(void **state)
{
    static const int cols[] = {1, 2, 17, 255, 256, 257, 512, 700, 1024, 1281};
    const struct kernel *k = few_inputs(), *plain = kernel_for(ISA_PLAIN);
    void *scratch = room(kernel_scratch_bytes());
    struct rng r;

    (void)state;
    rng_seed(&r, 3, 3);
    for (size_t c = 0; c < sizeof(cols) / sizeof(*cols); c++) {
        for (int f = FORMAT_F32; f <= FORMAT_BF16; f++) {
            struct packed a = weights((enum format)f, 40, cols[c], &r), b = weights((enum format)f, 40, cols[c], &r);
            struct rows x = inputs(6, cols[c], &r);
            int index[] = {4, 0, 5, 1};

            for (int n = 1; n <= 4; n++) {
                float ya[4 * 20], yb[4 * 20], want[4 * PANEL_LANES];
                int panel = (int)rng_below(&r, 3);
                bool done = pair_product(k, ya, yb, 20, &x, index, n, &a, &b, panel);

                assert_int_equal(done, k->isa == ISA_AVX2 && n <= PAIR_ROWS);
                for (int m = 0; done && m < 2; m++) {
                    plain->product(want, PANEL_LANES, &x, index, n, m ? &b : &a, panel, 1, scratch);
                    for (int t = 0; t < n; t++)
                        assert_memory_equal((m ? yb : ya) + t * 20, want + t * PANEL_LANES, PANEL_LANES * sizeof(float));
                }
            }
            free_weights(&a), free_weights(&b), free((void *)x.x);
        }
    }
    free(scratch);
}

/* Terms that two threads added are what one would have added, an error too. */
static void check_merge(enum isa isa)
{
    enum { N = 3, COLUMNS = 24 };
    struct exact one = sums(N, COLUMNS), a = sums(N, COLUMNS), b = sums(N, COLUMNS);
    float y[N * COLUMNS], z[2 * COLUMNS];
    double start[COLUMNS], found;
    struct rng r;

    rng_seed(&r, 4, 4);
    for (int i = 0; i < N * COLUMNS; i++) y[i] = (float)rng_normal(&r);
    for (int i = 0; i < 2 * COLUMNS; i++) z[i] = (float)rng_normal(&r);
    for (int i = 0; i < COLUMNS; i++) start[i] = grid((float)rng_normal(&r));
    for (int pass = 0; pass < 2; pass++) {
        exact_begin(&one, start, COLUMNS), exact_begin(&a, start, COLUMNS), exact_begin(&b, NULL, COLUMNS);
        exact_add(&one, isa, (int[]){0, 1, 2}, 0, N, y, COLUMNS, 0.3f),
            exact_add(&a, isa, (int[]){0, 1, 2}, 0, N, y, COLUMNS, 0.3f);
        exact_add(&one, isa, (int[]){2, 0}, 0, 2, z, COLUMNS, pass ? 1e9f : 1.0f);
        exact_add(&b, isa, (int[]){2, 0}, 0, 2, z, COLUMNS, pass ? 1e9f : 1.0f);
        exact_merge(&a, &b);
        assert_memory_equal(a.terms, one.terms, N * sizeof(int));
        assert_memory_equal(a.sum, one.sum, N * COLUMNS * sizeof(int64_t));
        assert_int_equal(exact_settle(&a, &found), pass == 0);
    }
    free_sums(&one), free_sums(&a), free_sums(&b);
}

static void test_merge(void **state)
{
    (void)state;
    each_level(check_merge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),  cmocka_unit_test(test_range),
        cmocka_unit_test(test_join),  cmocka_unit_test(test_product_into_sums),
        cmocka_unit_test(test_merge), cmocka_unit_test(test_pairs),
    };

    return cmocka_run_group_tests_name("exact sums", tests, NULL, NULL);
}
