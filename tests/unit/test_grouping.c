/* Grouping: always a permutation with the right sizes, and neurons that fire together come together. */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "moe/grouping.h"

static bool is_permutation(const int *order, int n)
{
    bool *seen = calloc((size_t)n, sizeof(*seen)), good = true;

    for (int j = 0; j < n; j++) {
        if (order[j] < 0 || order[j] >= n || seen[order[j]]) good = false;
        else seen[order[j]] = true;
    }
    free(seen);
    return good;
}

static void test_sizes(void **state)
{
    /* 172 neurons, 12 shared, 7 experts: 160 = 6 * 23 + 22 */
    static const int sizes[] = {23, 23, 23, 23, 23, 23, 22};

    (void)state;
    for (int i = 0, at = 12; i < 7; at += sizes[i], i++) {
        assert_int_equal(group_size(172, 12, 7, i), sizes[i]);
        assert_int_equal(group_begin(172, 12, 7, i), at);
    }
    for (int neurons = 1; neurons < 40; neurons++)
        for (int shared = 0; shared < neurons; shared++)
            for (int experts = 1; experts <= neurons - shared; experts++) {
                int at = shared;

                for (int i = 0; i < experts; i++) {
                    assert_int_equal(group_begin(neurons, shared, experts, i), at);
                    assert_true(group_size(neurons, shared, experts, i) >= 1);
                    at += group_size(neurons, shared, experts, i);
                }
                assert_int_equal(at, neurons);
            }
}

static void test_random(void **state)
{
    int a[100], b[100];

    (void)state;
    group_random(a, 100, 7, 3);
    group_random(b, 100, 7, 3);
    assert_true(is_permutation(a, 100));
    assert_memory_equal(a, b, sizeof(a));
    group_random(b, 100, 7, 4);
    assert_true(memcmp(a, b, sizeof(a)) != 0);
    group_random(b, 100, 8, 3);
    assert_true(memcmp(a, b, sizeof(a)) != 0);
    group_contiguous(a, 100);
    for (int j = 0; j < 100; j++) assert_int_equal(a[j], j);
}

static void test_shared_first(void **state)
{
    static const float importance[6] = {1, 5, 3, 5, 0, 5};
    static const int three[6] = {5, 3, 1, 4, 2, 0}, two[6] = {3, 1, 5, 4, 2, 0};
    int order[6] = {5, 4, 3, 2, 1, 0};

    (void)state;
    group_shared_first(order, 6, 3, importance);
    assert_memory_equal(order, three, sizeof(order));
    memcpy(order, (int[]){5, 4, 3, 2, 1, 0}, sizeof(order));
    group_shared_first(order, 6, 2, importance); /* of the three equals the lower two: 1 and 3 */
    assert_memory_equal(order, two, sizeof(order));
}

/* Neuron j belongs to hidden group j % groups and is strong on the tokens of that group, with `noise` of its bits flipped. */
static uint64_t *planted(int neurons, int tokens, int groups, double noise, uint64_t seed)
{
    size_t words = (size_t)bits_words(tokens);
    uint64_t *strong = calloc((size_t)neurons * words, sizeof(*strong));
    struct rng r;

    rng_seed(&r, seed, 0);
    for (int j = 0; j < neurons; j++)
        for (int t = 0; t < tokens; t++)
            if ((t % groups == j % groups) != (rng_unit(&r) < noise)) bits_set(strong + (size_t)j * words, t);
    return strong;
}

/* Mean share of an expert's neurons that are of its most frequent hidden group. */
static double purity(const int *order, int neurons, int shared, int experts, int groups)
{
    int *count = calloc((size_t)groups, sizeof(*count)), pure = 0;

    for (int i = 0; i < experts; i++) {
        int most = 0, begin = group_begin(neurons, shared, experts, i);

        memset(count, 0, (size_t)groups * sizeof(*count));
        for (int j = begin; j < begin + group_size(neurons, shared, experts, i); j++) count[order[j] % groups]++;
        for (int g = 0; g < groups; g++) most = count[g] > most ? count[g] : most;
        pure += most;
    }
    free(count);
    return (double)pure / (neurons - shared);
}

static void test_planted_groups_are_found(void **state)
{
    int order[96];
    struct err e;

    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        uint64_t *strong = planted(96, 200, 8, 0.08, seed);

        assert_int_equal(group_coactivation(order, strong, 96, 200, 0, 8, NULL, seed, NULL, &e), OK);
        assert_true(is_permutation(order, 96));
        assert_true(purity(order, 96, 0, 8, 8) > 0.9);
        free(strong);
    }
}

static void test_shared_neurons_leave_first(void **state)
{
    enum { F = 60, SHARED = 9 };
    uint64_t *strong = planted(F, 128, 6, 0.1, 3);
    float importance[F];
    int order[F], again[F];
    struct err e;

    (void)state;
    for (int j = 0; j < F; j++) importance[j] = j % 7 == 2 ? 10.0f + (float)j : 1; /* 2, 9, ..., 58: nine of them */
    assert_int_equal(group_coactivation(order, strong, F, 128, SHARED, 5, importance, 1, NULL, &e), OK);
    assert_true(is_permutation(order, F));
    for (int i = 0; i < SHARED; i++) assert_int_equal(order[i], 2 + 7 * i);
    assert_int_equal(group_coactivation(again, strong, F, 128, SHARED, 5, importance, 1, NULL, &e), OK);
    assert_memory_equal(order, again, sizeof(order));
    free(strong);
}

/* Nothing to tell the neurons apart, one neuron per expert, one expert, one token, sizes that do not divide. */
static void test_odd_cases(void **state)
{
    static const struct {
        int neurons, tokens, shared, experts;
    } cases[] = {{1, 1, 0, 1}, {5, 1, 0, 5}, {7, 64, 6, 1}, {7, 65, 0, 3}, {100, 63, 1, 99}, {33, 3, 0, 32}, {40, 10, 0, 1}};
    int order[100];
    float importance[100] = {0};
    struct err e;

    (void)state;
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        int words = bits_words(cases[c].tokens);
        uint64_t *strong = calloc((size_t)(cases[c].neurons * words), sizeof(*strong));

        for (int full = 0; full < 2; full++) {
            assert_int_equal(group_coactivation(order, strong, cases[c].neurons, cases[c].tokens, cases[c].shared,
                                                cases[c].experts, importance, 9, NULL, &e),
                             OK);
            assert_true(is_permutation(order, cases[c].neurons));
            for (int j = 0; j < cases[c].neurons; j++)
                for (int t = 0; t < cases[c].tokens; t++) bits_set(strong + j * words, t);
        }
        free(strong);
    }
}

/* The cost that clustering lowers is below that of chance on texts without planted structure but with some. */
static double cost(const int *order, const uint64_t *strong, int neurons, int tokens, int experts)
{
    int words = bits_words(tokens);
    double sum = 0;

    for (int i = 0; i < experts; i++) {
        int begin = group_begin(neurons, 0, experts, i), size = group_size(neurons, 0, experts, i);

        for (int t = 0; t < tokens; t++) {
            int set = 0;

            for (int j = begin; j < begin + size; j++) set += bits_has(strong + order[j] * words, t);
            sum += (double)set - (double)set * set / size; /* sum of squared distances of bits to their mean */
        }
    }
    return sum;
}

static void test_better_than_chance(void **state)
{
    enum { F = 352, T = 300, N = 32 };
    uint64_t *strong = calloc((size_t)F * (size_t)bits_words(T), sizeof(*strong));
    int order[F], random[F];
    float a[F][4], b[T][4];
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 5, 0);
    for (int j = 0; j < F; j++)
        for (int d = 0; d < 4; d++) a[j][d] = (float)rng_normal(&r);
    for (int t = 0; t < T; t++)
        for (int d = 0; d < 4; d++) b[t][d] = (float)rng_normal(&r);
    for (int j = 0; j < F; j++)
        for (int t = 0; t < T; t++) {
            float dot = a[j][0] * b[t][0] + a[j][1] * b[t][1] + a[j][2] * b[t][2] + a[j][3] * b[t][3];
            if (dot > 1) bits_set(strong + j * bits_words(T), t);
        }
    assert_int_equal(group_coactivation(order, strong, F, T, 0, N, NULL, 1, NULL, &e), OK);
    assert_true(is_permutation(order, F));
    group_random(random, F, 1, 0);
    assert_true(cost(order, strong, F, T, N) < 0.6 * cost(random, strong, F, T, N));
    free(strong);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_shared_first),
        cmocka_unit_test(test_planted_groups_are_found),
        cmocka_unit_test(test_shared_neurons_leave_first),
        cmocka_unit_test(test_odd_cases),
        cmocka_unit_test(test_better_than_chance),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
