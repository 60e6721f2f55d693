/* Router selection: hand tables, and what must hold for random scores. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "moe/route.h"

static void test_top_k_table(void **state)
{
    static const struct {
        float z[4];
        int k;
        uint64_t set;
    } cases[] = {
        {{0, 9, 0, 0}, 1, 2},      {{1, 3, 2, 0}, 2, 6}, {{5, 5, 5, 5}, 2, 3},
        {{0, 0, 1, 0}, 4, 15},     {{1, 2, 3, 4}, 0, 0}, {{-INFINITY, -1, -2, -3}, 3, 14},
        {{NAN, 1, NAN, 2}, 2, 10}, {{0, 7, 7, 7}, 2, 6}, {{-1, -1, -2, -1}, 2, 3},
    };

    (void)state;
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        const struct router r = {.experts = 4};
        uint64_t set = ~UINT64_C(0);

        route_select(&set, cases[c].z, 1, 4, cases[c].k, &r, 0);
        assert_int_equal(set, cases[c].set);
    }
}

static void test_threshold_select(void **state)
{
    float threshold[2] = {0, 1.5f};
    const struct router r = {.layers = 2, .experts = 3, .by_threshold = true, .threshold = threshold};
    const float z[3][3] = {{1, 2, -1}, {0, -1, -2}, {1.5f, 1.6f, NAN}};
    uint64_t set[3];

    (void)state;
    route_select(set, z[0], 3, 3, 1, &r, 0);
    assert_int_equal(set[0], 3);
    assert_int_equal(set[1], 0); /* 0 is not above 0: no expert at all */
    assert_int_equal(set[2], 3);
    route_select(set, z[0], 3, 3, 1, &r, 1);
    assert_int_equal(set[0], 2);
    assert_int_equal(set[1], 0);
    assert_int_equal(set[2], 2);
}

static void test_random_sets(void **state)
{
    enum { N = 70, ROWS = 2000, WORDS = 2 };
    static uint64_t set[ROWS][WORDS], again[ROWS][WORDS], key[ROWS];
    int hits[N] = {0}, pairs = 0;

    (void)state;
    for (int t = 0; t < ROWS; t++) key[t] = 1000 + (uint64_t)t;
    for (int k = 0; k <= N; k += 35) {
        route_random(set[0], key, ROWS, N, k, 7, 3);
        for (int t = 0; t < ROWS; t++) assert_int_equal(bits_count(set[t], N), k);
    }
    route_random(set[0], key, ROWS, N, 7, 7, 3);
    for (int t = 0; t < ROWS; t++) {
        for (int i = 0; i < N; i++) hits[i] += bits_has(set[t], i);
        pairs += bits_has(set[t], 0) && bits_has(set[t], N - 1);
    }
    /* each expert 200 of 2000 in the mean with deviation 13.4: 6 of them either way; a given pair 17.4, deviation 4.1 */
    for (int i = 0; i < N; i++) assert_in_range(hits[i], 200 - 80, 200 + 80);
    assert_in_range(pairs, 1, 42);

    /* The set of a key does not depend on its row or neighbours, but on seed, layer and key. */
    uint64_t one = key[1234];
    route_random(again[0], &one, 1, N, 7, 7, 3);
    assert_memory_equal(again[0], set[1234], sizeof(again[0]));
    for (int v = 0; v < 2; v++) {
        int same = 0;

        route_random(again[0], key, ROWS, N, 7, v ? 8 : 7, v ? 3 : 4);
        for (int t = 0; t < ROWS; t++) same += !memcmp(again[t], set[t], sizeof(set[t]));
        assert_int_equal(same, 0);
    }
}

static int fall(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x < y) - (x > y);
}

static void test_threshold_of_mean(void **state)
{
    enum { ROWS = 200, N = 7, ALL = ROWS * N };
    static float z[ALL], copy[ALL];
    static const double means[] = {0, 0.001, 0.4, 1, 2.5, 3, 6.99, 7, 9};
    struct rng r;

    (void)state;
    rng_seed(&r, 1, 2);
    for (int ties = 0; ties < 2; ties++) {
        for (size_t m = 0; m < sizeof(means) / sizeof(means[0]); m++) {
            int wanted = (int)llround(means[m] * ROWS), active = 0;

            for (int i = 0; i < ALL; i++) z[i] = copy[i] = ties ? (float)rng_below(&r, 5) : (float)rng_normal(&r);
            float t = route_threshold(z, ROWS, N, means[m]);
            qsort(z, ALL, sizeof(*z), fall);
            qsort(copy, ALL, sizeof(*copy), fall);
            assert_memory_equal(z, copy, sizeof(z)); /* reordered, nothing lost */
            for (int i = 0; i < ALL; i++) active += z[i] > t;
            if (wanted > ALL) wanted = ALL;
            if (!ties) assert_int_equal(active, wanted);
            assert_true(active <= wanted);
            /* with ties one step lower would already be too many, or there is no lower step */
            int with = 0;
            for (int i = 0; i < ALL; i++) with += z[i] >= t;
            assert_true(with > wanted || with == ALL);
        }
    }
    float odd[4] = {NAN, 1, INFINITY, -INFINITY};
    assert_true(route_threshold(odd, 1, 4, 1) == 1);
    assert_true(route_threshold(odd, 0, 4, 1) == -FLT_MAX);
}

/* By the words of route.h: q by trying one after the other, then every row's best of the common experts. */
static void together_plainly(bool *in, const float *z, int rows, int n, int most)
{
    enum { ROWS = 64, N = 200 };
    static int order[ROWS][N], own[ROWS];
    static bool common[N], now[N];
    int have = 0;

    for (int t = 0; t < rows; t++) {
        own[t] = 0;
        for (int i = 0; i < n; i++) own[t] += in[t * n + i], order[t][i] = i;
        for (int i = 1; i < n; i++)
            for (int j = i; j > 0 && z[t * n + order[t][j]] > z[t * n + order[t][j - 1]]; j--) {
                int swap = order[t][j];

                order[t][j] = order[t][j - 1], order[t][j - 1] = swap;
            }
    }
    for (int q = 1; q <= n; q++) {
        int count = 0;

        memset(now, 0, sizeof(now));
        for (int t = 0; t < rows; t++)
            for (int i = 0; i < own[t] && i < q; i++) now[order[t][i]] = true;
        for (int i = 0; i < n; i++) count += now[i];
        if (q > 1 && count > most) break;
        memcpy(common, now, sizeof(now));
        have = count;
    }
    memset(in, 0, (size_t)(rows * n) * sizeof(*in));
    for (int t = 0; t < rows; t++)
        for (int i = 0, left = own[t] < have ? own[t] : have; i < n && left > 0; i++)
            if (common[order[t][i]]) in[t * n + order[t][i]] = true, left--;
}

static void test_together(void **state)
{
    enum { ROWS = 33, N = 130, WORDS = 3, K = 20 };
    static float z[ROWS * N], before[ROWS * N];
    static bool in[ROWS * N];
    static uint64_t set[ROWS][WORDS];
    float threshold = 1.2f;
    struct rng g;

    (void)state;
    rng_seed(&g, 5, 6);
    for (int by_threshold = 0; by_threshold < 2; by_threshold++)
        for (int rows = 1; rows <= ROWS; rows += 8)
            for (int most = 1; most <= N; most += 43) {
                const struct router r = {.layers = 1, .experts = N, .by_threshold = by_threshold, .threshold = &threshold};
                uint64_t all[WORDS] = {0};

                /* in steps, so that there are equals */
                for (int i = 0; i < rows * N; i++) z[i] = before[i] = (float)(int)(rng_normal(&g) * 20) / 20;
                route_select(set[0], z, rows, N, K, &r, 0);
                for (int i = 0; i < rows * N; i++) in[i] = bits_has(set[i / N], i % N);
                together_plainly(in, before, rows, N, most);
                route_together(set[0], z, rows, N, most);
                for (int i = 0; i < rows * N; i++) assert_int_equal(bits_has(set[i / N], i % N), in[i]);
                for (int t = 0; t < rows; t++)
                    for (int w = 0; w < WORDS; w++) all[w] |= set[t][w];
                if (most >= rows) assert_in_range(bits_count(all, N), 1, most);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_together),    cmocka_unit_test(test_top_k_table),       cmocka_unit_test(test_threshold_select),
        cmocka_unit_test(test_random_sets), cmocka_unit_test(test_threshold_of_mean),
    };

    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
