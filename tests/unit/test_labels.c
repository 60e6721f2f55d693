/* Pseudo-labels against plain enumeration, and tables worked out by hand. */
#include <math.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "moe/labels.h"

static void test_paper_by_hand(void **state)
{
    const float e[3] = {1, 2, 3}, y[3] = {2, 2, 2};

    (void)state;
    /* share 1/2: misses 0, 1, 2 -> -(0 + 1 + 4) / 3 */
    assert_true(paper_score(e, y, 0.5f, 3) == (float)(-5.0 / 3.0));
    assert_true(paper_score(e, e, 1, 3) == 0);
    assert_true(isnan(paper_score((float[]){NAN}, y, 1, 1)));

    /* any width: lanes and tail see every element once */
    float a[40], zero[40] = {0};
    for (int width = 1; width <= 40; width++) {
        double sum = 0;

        for (int d = 0; d < width; d++) a[d] = (float)(d + 1), sum += (d + 1) * (d + 1);
        assert_true(paper_score(a, zero, 1, width) == (float)(-sum / width));
    }
}

static void test_gram_matrix(void **state)
{
    const float c[2][3] = {{1, 2, 3}, {-1, 0, 4}};
    double g[4];
    float wide[2][37];
    double want = 0;

    (void)state;
    gram_matrix(g, c[0], 2, 3);
    assert_true(g[0] == 14 && g[1] == 11 && g[2] == 11 && g[3] == 17);
    for (int d = 0; d < 37; d++) wide[0][d] = (float)d, wide[1][d] = (float)(d % 5), want += d * (d % 5);
    gram_matrix(g, wide[0], 2, 37);
    assert_true(g[1] == want && g[2] == want);
}

static void test_gram_by_hand(void **state)
{
    /* Experts 0 and 1 cancel: leaving both out costs nothing, so the best pair is {2, 3}; the best single one is 3. */
    const float c[4][2] = {{5, 0}, {-5, 0}, {0, 1}, {0, 2}};
    double g[16];
    uint64_t set;

    (void)state;
    gram_matrix(g, c[0], 4, 2);
    assert_true(gram_best(&set, g, 4, 2) == 0);
    assert_int_equal(set, 12);
    assert_true(gram_best(&set, g, 4, 1) == 1);
    assert_int_equal(set, 8);
    assert_true(gram_best(&set, g, 4, 0) == 9);
    assert_int_equal(set, 0);
    assert_true(gram_best(&set, g, 4, 4) == 0);
    assert_int_equal(set, 15);

    double same[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1}; /* all sets tie: the first in lexicographic order */
    assert_true(gram_best(&set, same, 3, 2) == 1);
    assert_int_equal(set, 3);
    double bad[4] = {NAN, NAN, NAN, NAN}, endless[4] = {INFINITY, 0, 0, INFINITY};
    gram_best(&set, bad, 2, 1);
    assert_int_equal(bits_count(&set, 2), 1);
    gram_best(&set, endless, 2, 1);
    assert_int_equal(bits_count(&set, 2), 1);
    gram_best(&set, NULL, 0, 0);
}

/* Gains by their definition: the error of the best greedy choice of s experts less that of s - 1, never rising. */
static void test_gains(void **state)
{
    const float c[4][2] = {{5, 0}, {-5, 0}, {0, 1}, {0, 2}};
    double g[16], gain[4];
    uint64_t set;

    (void)state;
    gram_matrix(g, c[0], 4, 2);
    /* error 9 with none; + {3}: 1, + {2}: 0; each of the two that cancel makes it worse before both make it 0 again */
    gram_gains(gain, g, 4);
    assert_true(gain[0] == 8 / 3.0 && gain[1] == 1 / 3.0 && gain[2] == -25 / 3.0 &&
                gain[3] == -25 / 3.0); /* over the root of 9 */
    assert_int_equal(gram_variable(&set, gain, g, 4, 8 / 3.0), 0);
    assert_int_equal(set, 0);
    assert_int_equal(gram_variable(&set, gain, g, 4, 1 / 3.0), 1);
    assert_int_equal(set, 8);
    assert_int_equal(gram_variable(&set, gain, g, 4, 0), 2);
    assert_int_equal(set, 12);
    assert_int_equal(gram_variable(&set, gain, g, 4, -INFINITY), 4);
    assert_int_equal(set, 15);
    gram_gains(NULL, NULL, 0);
}

static void random_gram(double *g, int n, int width, uint64_t seed)
{
    static float c[128 * 16];
    struct rng r;

    rng_seed(&r, seed, 5);
    for (int i = 0; i < n * width; i++) c[i] = (float)rng_normal(&r);
    gram_matrix(g, c, n, width);
}

static bool outside(const uint64_t *set, int i)
{
    return !bits_has(set, i);
}

static double plain_error(const double *g, int n, const uint64_t *set)
{
    double error = 0;

    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) error += outside(set, i) && outside(set, j) ? g[i * n + j] : 0;
    }
    return error;
}

/* All subsets of up to 10 experts by counting. */
static void test_gram_enumeration(void **state)
{
    double g[100];

    (void)state;
    for (int n = 1; n <= 10; n++) {
        for (int k = 0; k <= n; k++) {
            uint64_t best = 0, set = 0;
            double least = INFINITY;

            random_gram(g, n, 6, (uint64_t)(n * 100 + k));
            for (uint64_t s = 0; s < UINT64_C(1) << n; s++) {
                if (bits_count(&s, n) == k && plain_error(g, n, &s) < least) least = plain_error(g, n, &s), best = s;
            }
            double error = gram_best(&set, g, n, k);
            assert_int_equal(bits_count(&set, n), k);
            assert_true(fabs(error - plain_error(g, n, &set)) <= 1e-12 * fabs(g[0]) * n * n);
            assert_true(error <= least + 1e-9);
            if (k < n && n - k < 6) assert_int_equal(set, best); /* below full rank the best set is unique */
        }
    }
}

/* Too many sets to try: no swap of one expert lowers the greedy set's error, and it beats random sets. */
static void check_greedy(int n, int k, int width, uint64_t seed)
{
    static double g[100 * 100];
    uint64_t set[2], other[2];
    int order[100];
    struct rng r;

    rng_seed(&r, 4, seed);
    random_gram(g, n, width, seed);
    double error = gram_best(set, g, n, k);

    assert_int_equal(bits_count(set, n), k);
    assert_true(fabs(error - plain_error(g, n, set)) < 1e-7);
    for (int a = 0; a < n; a++) {
        for (int b = 0; b < n; b++) {
            if (!bits_has(set, a) || bits_has(set, b)) continue;
            memcpy(other, set, sizeof(set));
            other[a / 64] &= ~(UINT64_C(1) << (a % 64));
            bits_set(other, b);
            assert_true(gram_error(g, n, other) >= error - 1e-6);
        }
    }
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = 0; i < 50; i++) {
        memset(other, 0, sizeof(other));
        rng_shuffle(&r, order, n);
        for (int j = 0; j < k; j++) bits_set(other, order[j]);
        assert_true(gram_error(g, n, other) >= error);
    }
}

static void test_gram_greedy(void **state)
{
    static double bad[100 * 100];
    uint64_t set[2];

    (void)state;
    check_greedy(100, 20, 16, 77);
    for (uint64_t seed = 0; seed < 10; seed++) check_greedy(40, 4, 6, seed); /* here adding alone ends short of a swap */
    memset(bad, 0xff, sizeof(bad));                                          /* NaN */
    gram_best(set, bad, 100, 20);
    assert_int_equal(bits_count(set, 100), 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paper_by_hand), cmocka_unit_test(test_gram_matrix),      cmocka_unit_test(test_gram_by_hand),
        cmocka_unit_test(test_gains),         cmocka_unit_test(test_gram_enumeration), cmocka_unit_test(test_gram_greedy),
    };

    return cmocka_run_group_tests_name("labels", tests, NULL, NULL);
}
