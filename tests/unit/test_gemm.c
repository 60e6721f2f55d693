/* Matrix products: right against the definition, and every row the same bits in any company. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "num/gemm.h"
#include "num/ref.h"
#include "num/widen.h"

static struct gemm *open_gemm(int threads)
{
    struct gemm *g;
    struct err e;

    assert_int_equal(gemm_open(&g, threads, isa_best(), &e), OK);
    return g;
}

static float *normals(size_t n, uint64_t seed)
{
    float *x = malloc((n + 1) * sizeof(*x));
    struct rng r;

    assert_non_null(x);
    rng_seed(&r, seed, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(&r);
    return x;
}

/* A random matrix with a stride of cols + 3, as elements of t; free(m.data) */
static struct mat random_mat(int rows, int cols, enum dtype t, uint64_t seed)
{
    size_t n = (size_t)rows * (size_t)(cols + 3);
    float *x = normals(n, seed);
    uint16_t *half;

    if (t == DT_F32) return (struct mat){x, t, rows, cols, (size_t)cols + 3};
    half = malloc(n * sizeof(*half) + 1);
    assert_non_null(half);
    for (size_t i = 0; i < n; i++) half[i] = t == DT_BF16 ? narrow_bf16(x[i]) : narrow_f16(x[i]);
    free(x);
    return (struct mat){half, t, rows, cols, (size_t)cols + 3};
}

static void check_product(struct gemm *g, int rows, int n, int k, enum dtype t, int with_bias)
{
    struct mat w = random_mat(n, k, t, 7);
    size_t ldx = (size_t)k + 5, ldy = (size_t)n + 2;
    float *x = normals((size_t)rows * ldx, 8), *bias = normals((size_t)n, 9);
    float *y = normals((size_t)rows * ldy, 10), *want = malloc((size_t)rows * ldy * sizeof(*want) + 1);

    memcpy(want, y, (size_t)rows * ldy * sizeof(*y));
    ref_xwt(want, ldy, x, ldx, rows, &w, with_bias ? bias : NULL);
    gemm_xwt(g, y, ldy, x, ldx, rows, &w, with_bias ? bias : NULL);
    for (size_t i = 0; i < (size_t)rows * ldy; i++) { /* what lies between the rows is compared, too: it must not change */
        double room = i % ldy < (size_t)n ? 2e-7 * (k + 10.0) : 0.0;
        if (fabs((double)y[i] - (double)want[i]) > room)
            fail_msg("%d rows, %d x %d %s: element %zu is %g, not %g", rows, n, k, dtype_name(t), i, (double)y[i],
                     (double)want[i]);
    }
    free((void *)w.data);
    free(x);
    free(bias);
    free(y);
    free(want);
}

static void products_match_the_definition(void **state)
{
    static const int rows[] = {1, 2, 3, 5, 13, 64, 67}, n[] = {1, 11, 44, 129, 200}, k[] = {1, 3, 11, 48, 385};
    struct gemm *g = open_gemm(2);

    (void)state;
    for (size_t a = 0; a < sizeof(rows) / sizeof(*rows); a++)
        for (size_t b = 0; b < sizeof(n) / sizeof(*n); b++)
            for (size_t c = 0; c < sizeof(k) / sizeof(*k); c++)
                check_product(g, rows[a], n[b], k[c], (enum dtype)((a + b + c) % 3), (int)(a + c) % 2);
    check_product(g, 600, 33, 17, DT_BF16, 1); /* more than one chunk of rows */
    check_product(g, 515, 5, 1500, DT_F16, 0);
    check_product(g, 2, 70, 4100, DT_F32, 1);
    check_product(g, 0, 4, 4, DT_F32, 0);
    check_product(g, 3, 0, 4, DT_F32, 0);
    check_product(g, 3, 4, 0, DT_F32, 1);
    gemm_close(g);
}

/* Rows alone, and in batches of 7, 64, 129 and 700 at every position a batch gives them, on 1 and 3 threads. */
static void check_invariance(int n, int k, enum dtype t)
{
    static const int batch[] = {7, 64, 129, 700};
    enum { ROWS = 700 };
    struct mat w = random_mat(n, k, t, 17);
    float *x = normals((size_t)ROWS * k, 18), *bias = normals((size_t)n, 19);
    float *alone = malloc((size_t)ROWS * n * sizeof(*alone)), *y = malloc((size_t)ROWS * n * sizeof(*y));
    struct gemm *one = open_gemm(1), *three = open_gemm(3);

    assert_true(alone && y);
    for (int i = 0; i < ROWS; i++) gemm_xwt(one, alone + (size_t)i * n, (size_t)n, x + (size_t)i * k, (size_t)k, 1, &w, bias);
    for (size_t b = 0; b < sizeof(batch) / sizeof(*batch); b++)
        for (int first = 0; first < 5; first++) {
            int rows = first + batch[b] <= ROWS ? batch[b] : ROWS - first;
            size_t bytes = (size_t)rows * n * sizeof(*y);

            for (int threads = 0; threads < 2; threads++) {
                memset(y, 0x7f, bytes);
                gemm_xwt(threads ? three : one, y, (size_t)n, x + (size_t)first * k, (size_t)k, rows, &w, bias);
                if (memcmp(y, alone + (size_t)first * n, bytes))
                    fail_msg("%d x %d: rows %d .. %d together differ from each alone", n, k, first, first + rows - 1);
            }
        }
    free((void *)w.data);
    free(x);
    free(bias);
    free(alone);
    free(y);
    gemm_close(one);
    gemm_close(three);
}

static void rows_are_invariant(void **state)
{
    (void)state;
    check_invariance(1, 1, DT_F32);
    check_invariance(11, 48, DT_F32);
    check_invariance(48, 11, DT_BF16);
    check_invariance(44, 48, DT_F16);
    check_invariance(131, 385, DT_F32);
    check_invariance(150, 64, DT_BF16);
    check_invariance(67, 1100, DT_F32);
}

/* A row with infinities or NaN keeps them to itself. */
static void bad_rows_stay_alone(void **state)
{
    struct gemm *g = open_gemm(1);
    struct mat w = random_mat(20, 30, DT_F32, 27);
    float *x = normals(9 * 30, 28), good[9 * 20], bad[9 * 20];

    (void)state;
    gemm_xwt(g, good, 20, x, 30, 9, &w, NULL);
    x[4 * 30 + 2] = NAN;
    x[5 * 30] = INFINITY;
    gemm_xwt(g, bad, 20, x, 30, 9, &w, NULL);
    assert_true(isnan(bad[4 * 20]) && !isfinite(bad[5 * 20]));
    assert_memory_equal(good, bad, 4 * 20 * sizeof(float));
    assert_memory_equal(good + 6 * 20, bad + 6 * 20, 3 * 20 * sizeof(float));
    free((void *)w.data);
    free(x);
    gemm_close(g);
}

static void gradients_match_and_do_not_depend_on_threads(void **state)
{
    static const int shape[][3] = {{1, 1, 1}, {3, 50, 7}, {64, 11, 200}, {65, 48, 33}, {130, 5, 2}};
    struct gemm *one = open_gemm(1), *three = open_gemm(3);

    (void)state;
    for (size_t i = 0; i < sizeof(shape) / sizeof(*shape); i++) {
        int n = shape[i][0], d = shape[i][1], rows = shape[i][2];
        size_t bytes = (size_t)n * d * sizeof(float);
        float *a = normals((size_t)rows * n, 31), *b = normals((size_t)rows * d, 32);
        float *c = normals((size_t)n * d, 33), *c3 = normals((size_t)n * d, 33), *want = normals((size_t)n * d, 33);

        ref_atb(want, a, n, b, d, rows);
        gemm_atb(one, c, a, n, b, d, rows);
        gemm_atb(three, c3, a, n, b, d, rows);
        assert_memory_equal(c, c3, bytes);
        for (int j = 0; j < n * d; j++) assert_true(fabs((double)c[j] - (double)want[j]) <= 2e-7 * (rows + 10.0));
        free(a);
        free(b);
        free(c);
        free(c3);
        free(want);
    }
    gemm_close(one);
    gemm_close(three);
}

/* y += x m in plain loops in double; and the bits of the gradient of x across, on any number of threads. */
static void errors_match_and_do_not_depend_on_threads(void **state)
{
    static const int shape[][3] = {{1, 1, 1}, {3, 50, 7}, {300, 70, 200}, {32, 128, 193}, {5, 130, 400}};
    struct gemm *one = open_gemm(1), *three = open_gemm(3);

    (void)state;
    for (size_t i = 0; i < sizeof(shape) / sizeof(*shape); i++) {
        int n = shape[i][0], cols = shape[i][1], rows = shape[i][2];
        size_t cells = (size_t)rows * cols;
        float *x = normals((size_t)rows * n, 31), *m = normals((size_t)n * cols, 32), *across = normals((size_t)rows * n, 31);
        float *y = normals(cells, 33), *y3 = normals(cells, 33), *was = normals(cells, 33), *other = normals(cells, 33);

        for (int t = 0; t < rows; t++)
            for (int k = 0; k < n; k++) across[k * rows + t] = x[t * n + k];
        gemm_xw(one, y, x, n, rows, m, cols);
        gemm_xw(three, y3, x, n, rows, m, cols);
        gemm_atb(one, other, across, rows, m, cols, n);
        assert_memory_equal(y, y3, cells * sizeof(float));
        assert_memory_equal(y, other, cells * sizeof(float));
        for (int t = 0; t < rows; t++)
            for (int c = 0; c < cols; c++) {
                double want = (double)was[t * cols + c];

                for (int k = 0; k < n; k++) want += (double)x[t * n + k] * (double)m[k * cols + c];
                assert_true(fabs((double)y[t * cols + c] - want) <= 2e-6 * (n + 10.0));
            }
        free(x), free(m), free(across), free(y), free(y3), free(was), free(other);
    }
    gemm_close(one);
    gemm_close(three);
}

struct marks {
    int count[1000], worker[3], bad;
};

static void mark(void *ctx, int i, int worker)
{
    struct marks *m = ctx;

    if (worker < 0 || worker > 2) m->bad = 1;
    else __atomic_fetch_add(&m->worker[worker], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&m->count[i], 1, __ATOMIC_RELAXED);
}

static void every_task_runs_once(void **state)
{
    struct gemm *g = open_gemm(3);
    int runs = 0;

    (void)state;
    assert_int_equal(threads_count(gemm_threads(g)), 3);
    assert_non_null(strstr(gemm_describe(g), "3 threads"));
    for (int n = 0; n < 1000; n = n * 2 + 1, runs++) {
        struct marks m = {.bad = 0};

        gemm_parallel(g, n, mark, &m);
        assert_false(m.bad);
        assert_int_equal(m.worker[0] + m.worker[1] + m.worker[2], n);
        for (int i = 0; i < 1000; i++) assert_int_equal(m.count[i], i < n);
    }
    assert_int_equal(runs, 10);
    gemm_close(g);
}

/* Loops one behind the other, of few tasks, some after the workers have gone to sleep. */
static void loops_follow_each_other(void **state)
{
    struct gemm *g = open_gemm(3);

    (void)state;
    for (int loop = 0; loop < 3000; loop++) {
        struct marks m = {.bad = 0};
        int n = loop % 9;

        if (loop % 600 == 300) usleep(20000);
        gemm_parallel(g, n, mark, &m);
        assert_int_equal(m.worker[0] + m.worker[1] + m.worker[2], n);
        for (int i = 0; i < 9; i++) assert_int_equal(m.count[i], i < n);
    }
    gemm_close(g);
}

/* Three matrices over the same rows, as Q, K and V: whatever the level and the threads, the bits of the plain level on one thread. */
static void check_packed(enum format f, int rows, int cols)
{
    static const int out[] = {40, 16, 333};
    struct gemm *g[] = {NULL, open_gemm(1), open_gemm(3)};
    float *x = normals((size_t)rows * cols, 41), *bias = normals(333, 42), *y[3][3];
    struct packed w[3];
    const struct packed *each[] = {&w[0], &w[1], &w[2]};
    const float *some_bias[] = {bias, NULL, bias};
    size_t ldy[3];
    struct err e;

    assert_int_equal(gemm_open(&g[0], 1, ISA_PLAIN, &e), OK);
    void *memory = aligned_alloc(64, rows_bytes(rows, cols));
    for (int i = 0; i < 3; i++) {
        struct mat m = random_mat(out[i], cols, DT_F32, 43 + (uint64_t)i);
        void *lines = aligned_alloc(64, packed_line_bytes(f, out[i], cols));
        uint16_t *scale = format_has_scales(f) ? malloc(packed_scale_bytes(f, out[i], cols)) : NULL;

        pack_panels(lines, scale, f, &m, 0, packed_panels(out[i]));
        w[i] = (struct packed){lines, scale, f, out[i], cols};
        ldy[i] = (size_t)out[i] + 3;
        for (int k = 0; k < 3; k++) y[k][i] = normals((size_t)rows * ldy[i], 47); /* what lies between rows must stay */
        free((void *)m.data);
    }
    for (int k = 0; k < 3; k++) {
        struct rows r = {.x = x, .ld = (size_t)cols, .n = rows, .cols = cols};
        enum isa isa = gemm_kernel(g[k])->isa;
        bool scales = format_has_scales(f), both = scales && k == 2; /* for weights of either format */

        memset(memory, 0x55, rows_bytes(rows, cols)); /* not what another level left */
        if (both) {
            assert_true(gemm_rows(g[k], &r, f == FORMAT_Q8 ? FORMAT_Q4 : FORMAT_Q8, memory));
            gemm_quantize(g[k], &r);
        }
        if (gemm_rows(g[k], &r, f, memory)) gemm_quantize(g[k], &r);
        else assert_true(!scales || both);
        assert_false(gemm_rows(g[k], &r, f, memory));
        if (scales) assert_int_equal(r.isa, isa); /* a level that is forced holds for quantizing too */
        assert_int_equal(r.only_wide, f == FORMAT_Q8 && !both && (isa == ISA_AVX2 || isa == ISA_AVX512));
        gemm_products(g[k], 3, y[k], ldy, &r, each, some_bias);
        for (int i = 0; i < 3; i++)
            if (memcmp(y[k][i], y[0][i], (size_t)rows * ldy[i] * sizeof(float)))
                fail_msg("%s, %d rows of %d: %s differs from plain in matrix %d", format_name(f), rows, cols, gemm_describe(g[k]),
                         i);
    }
    for (int i = 0; i < 3; i++) {
        free((void *)w[i].lines);
        free((void *)w[i].scale);
        for (int k = 0; k < 3; k++) free(y[k][i]);
        gemm_close(g[i]);
    }
    free(x);
    free(bias);
    free(memory);
}

static void levels_and_threads_agree(void **state)
{
    static const int rows[] = {1, 2, 5, 17, 200}, cols[] = {130, 33, 520, 40, 16};

    (void)state;
    for (int f = 0; f < FORMAT_COUNT; f++)
        for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) check_packed((enum format)f, rows[i], cols[i]);
}

static void widening_has_the_bits_of_the_slow_way(void **state)
{
    enum { COLS = 257, ROWS = 256 };
    uint16_t *all = malloc(ROWS * COLS * sizeof(*all));
    float *fast = malloc(ROWS * COLS * sizeof(*fast)), *slow = malloc(ROWS * COLS * sizeof(*slow));
    struct mat m = {all, DT_F16, ROWS, COLS, COLS};

    (void)state;
    assert_true(all && fast && slow);
    for (int i = 0; i < ROWS * COLS; i++) all[i] = (uint16_t)i; /* every bit pattern */
    for (int t = 0; t < 2; t++, m.dtype = DT_BF16) {
        widen_rows(fast, &m, 0, ROWS);
        mat_widen(slow, &m, 0, ROWS);
        for (int i = 0; i < ROWS * COLS; i++)
            if (isnan(slow[i])) assert_true(isnan(fast[i]));
            else assert_memory_equal(&fast[i], &slow[i], sizeof(float));
    }
    free(all);
    free(fast);
    free(slow);
}

/* Every upper half with the lower ones at which rounding turns; every length up to some vectors and a rest. */
static void rounding_has_the_bits_of_the_slow_way(void **state)
{
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { LOWER = 6, ALL = 65536 * LOWER, LENGTHS = 40 };
    float *x = malloc(ALL * sizeof(*x));
    uint16_t *fast = malloc((ALL + 1) * sizeof(*fast));

    (void)state;
    assert_true(x && fast);
    for (uint32_t i = 0; i < ALL; i++) {
        uint32_t bits = i / LOWER << 16 | lower[i % LOWER];

        memcpy(x + i, &bits, sizeof(bits));
    }
    for (int n = 0; n <= LENGTHS; n++) {
        int from = n < LENGTHS ? n * 9973 : 0, some = n < LENGTHS ? n : ALL;

        fast[some] = 0xa5a5;
        narrow_many(fast, x + from, (size_t)some);
        for (int i = 0; i < some; i++)
            if (fast[i] != narrow_bf16(x[from + i]))
                fail_msg("%a is rounded to %04x, not %04x", x[from + i], fast[i], narrow_bf16(x[from + i]));
        assert_int_equal(fast[some], 0xa5a5);
    }
    free(x);
    free(fast);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_the_definition),
        cmocka_unit_test(rows_are_invariant),
        cmocka_unit_test(bad_rows_stay_alone),
        cmocka_unit_test(gradients_match_and_do_not_depend_on_threads),
        cmocka_unit_test(errors_match_and_do_not_depend_on_threads),
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(widening_has_the_bits_of_the_slow_way),
        cmocka_unit_test(rounding_has_the_bits_of_the_slow_way),
        cmocka_unit_test(loops_follow_each_other),
        cmocka_unit_test(levels_and_threads_agree),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
