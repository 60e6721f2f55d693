/* The small operations against their definition, over odd shapes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/rng.h"
#include "num/ops.h"
#include "num/ref.h"

enum { MOST = 20000 };

static void fill(float *x, size_t n, uint64_t seed, double spread)
{
    struct rng r;

    rng_seed(&r, seed, 1);
    for (size_t i = 0; i < n; i++) x[i] = (float)(rng_normal(&r) * spread);
}

static void near(const float *x, const float *want, size_t n, double relative, double absolute)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)x[i] - (double)want[i]) <= relative * fabs((double)want[i]) + absolute))
            fail_msg("element %zu of %zu is %.9g, not %.9g", i, n, (double)x[i], (double)want[i]);
}

static void norm(void **state)
{
    static float x[MOST], w[MOST], y[MOST], want[MOST], one[MOST];

    (void)state;
    for (int width = 1; width < 80; width += 3) {
        fill(x, (size_t)width * 9, (uint64_t)width, 3.0);
        fill(w, (size_t)width, 99, 1.0);
        memset(x, 0, (size_t)width * sizeof(*x)); /* a row of zeros: eps keeps it zero */
        rms_norm(y, x, w, 9, width, 1e-5f);
        ref_rms_norm(want, x, w, 9, width, 1e-5f);
        near(y, want, (size_t)width * 9, 3e-7, 0.0);
        for (int t = 0; t < 9; t++) {
            rms_norm(one, x + t * width, w, 1, width, 1e-5f);
            assert_memory_equal(one, y + t * width, (size_t)width * sizeof(*one));
        }
        rms_norm(x, x, w, 9, width, 1e-5f); /* in place */
        assert_memory_equal(x, y, (size_t)width * 9 * sizeof(*x));
    }
}

static void silu(void **state)
{
    static float gate[MOST], up[MOST], want[MOST], whole[MOST];
    static const float odd[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 60.0f, -60.0f, 90.0f, -90.0f, 1e4f, -1e4f, 3e38f, -80.0f};
    size_t n_odd = sizeof(odd) / sizeof(*odd);

    (void)state;
    fill(gate, 999, 5, 6.0);
    memcpy(gate, odd, sizeof(odd));
    fill(up, 999, 6, 1.0);
    for (size_t i = 0; i < n_odd; i++) up[i] = 1.0f;
    memcpy(want, gate, sizeof(want));
    memcpy(whole, gate, sizeof(whole));
    ref_silu_mul(want, up, 999);
    silu_mul(whole, up, 999);
    near(whole, want, 999, 1e-6, 1e-33);
    for (size_t first = 0; first < 999; first += 7) { /* where an element stands does not matter */
        size_t n = first + 7 <= 999 ? 7 : 999 - first;
        silu_mul(gate + first, up + first, n);
    }
    assert_memory_equal(gate, whole, 999 * sizeof(float));
    gate[0] = NAN;
    silu_mul(gate, up, 1);
    assert_true(isnan(gate[0]));
}

static void rope(void **state)
{
    static const struct rope kinds[] = {
        {.kind = ROPE_PLAIN, .theta = 10000.0},
        {.kind = ROPE_LINEAR, .theta = 10000.0, .factor = 4.0},
        {ROPE_LLAMA3, 500000.0, 8.0, 1.0, 4.0, 64.0},
    };
    static const int dims[] = {2, 6, 12, 64};
    static const int32_t pos[] = {0, 1, 127, 5, 5, 80};
    static float table[MOST], x[MOST], want[MOST];

    (void)state;
    for (int kind = 0; kind < 3; kind++)
        for (int i = 0; i < 4; i++) {
            int d = dims[i];

            rope_table(table, 128, d, &kinds[kind]);
            fill(x, (size_t)(6 * 3 * d), 3, 1.0);
            memcpy(want, x, sizeof(want));
            rope_apply(x, pos, 6, 3, d, table);
            ref_rope_apply(want, pos, 6, 3, d, &kinds[kind]);
            near(x, want, (size_t)(6 * 3 * d), 1e-6, 1e-6);
        }
}

/* Numbers worked out by hand: theta 100, head_dim 4, so that the pairs turn by 1 and by 0.1 per position; position 2. */
static void rope_by_hand(void **state)
{
    const struct rope r = {.kind = ROPE_PLAIN, .theta = 100.0};
    float table[3 * 4], x[4] = {1.0f, 0.0f, 0.0f, 2.0f};
    const float want[4] = {-0.4161468f, -0.3973387f, 0.9092974f, 1.9601332f}; /* cos 2, -2 sin 0.2, sin 2, 2 cos 0.2 */
    const int32_t pos = 2;

    (void)state;
    rope_table(table, 3, 4, &r);
    rope_apply(x, &pos, 1, 1, 4, table);
    near(x, want, 4, 0.0, 2e-7);
}

/* Many of many: with equals, both zeros, infinities and NaN among them. */
static void largest_of_many(void **state)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 1e-40f, -1e-40f};
    enum { N = 700 };
    static float x[N];
    uint64_t set[(N + 63) / 64], expected[(N + 63) / 64];

    (void)state;
    for (int coarse = 0; coarse < 3; coarse++) {
        fill(x, N, 77, 30.0);
        for (int i = 0; coarse && i < N; i++) x[i] = roundf(x[i] / 10.0f);
        for (int i = 0; coarse == 2 && i < N; i += 5) x[i] = odd[(i / 5) % 8];
        for (int n = 120; n <= N; n += 29)
            for (int k = 15; k <= n; k += 1 + n / 6) {
                top_k(set, x, n, k);
                ref_top_k(expected, x, n, k);
                assert_memory_equal(set, expected, (size_t)bits_words(n) * sizeof(*set));
            }
    }
}

static void scores(void **state)
{
    static float x[MOST], want[MOST];
    const float ties[] = {1.0f, 3.0f, NAN, 3.0f, 2.0f, 3.0f}, none[] = {NAN, NAN}, low[] = {NAN, -INFINITY, -INFINITY};
    uint64_t set[4], expected[4];

    (void)state;
    for (int n = 1; n < 200; n += 13) {
        fill(x, (size_t)n, (uint64_t)n, 30.0);
        assert_true(fabs(log_sum_exp(x, n) - ref_log_sum_exp(x, n)) < 1e-12);
        assert_int_equal(argmax(x, n), ref_argmax(x, n));
        for (int i = 0; i < n; i++) x[i] = roundf(x[i] / 20.0f); /* many equals */
        for (int k = 0; k <= n; k += 1 + n / 7) {
            top_k(set, x, n, k);
            ref_top_k(expected, x, n, k);
            assert_int_equal(bits_count(set, n), k);
            assert_memory_equal(set, expected, (size_t)bits_words(n) * sizeof(*set));
        }
        memcpy(want, x, sizeof(want));
        softmax(x, n);
        ref_softmax(want, n);
        near(x, want, (size_t)n, 1e-6, 1e-30);
    }
    assert_int_equal(argmax(ties, 6), 1);
    assert_int_equal(argmax(none, 2), 0);
    assert_int_equal(argmax(low, 3), 1);
    top_k(set, ties, 6, 2);
    assert_int_equal(set[0], 1u << 1 | 1u << 3);
    top_k(set, ties, 6, 6);
    assert_int_equal(set[0], 63);
    top_k(set, ties, 6, 5);
    assert_int_equal(set[0], 63 - 4);
    above(set, ties, 6, 2.0f);
    assert_int_equal(set[0], 1u << 1 | 1u << 3 | 1u << 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm),         cmocka_unit_test(silu),   cmocka_unit_test(rope),
        cmocka_unit_test(rope_by_hand), cmocka_unit_test(scores), cmocka_unit_test(largest_of_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
