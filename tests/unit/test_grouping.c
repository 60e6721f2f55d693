/* Grouping: always a permutation with the right sizes, and what was planted is found. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "moe/assign.h"
#include "moe/grouping_dense.h"

static struct gemm *gemm; /* set up in main() */

static struct group_cut cut(int neurons, int shared, int experts, const float *importance, uint64_t seed)
{
    return (struct group_cut){
        .neurons = neurons, .shared = shared, .experts = experts, .importance = importance, .seed = seed, .gemm = gemm};
}

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

        assert_int_equal(group_coactivation(order, &(struct group_cut){96, 0, 8, NULL, seed, gemm, NULL}, strong, 200, &e), OK);
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
    struct group_cut c = cut(F, SHARED, 5, importance, 1);

    for (int j = 0; j < F; j++) importance[j] = j % 7 == 2 ? 10.0f + (float)j : 1; /* 2, 9, ..., 58: nine of them */
    assert_int_equal(group_coactivation(order, &c, strong, 128, &e), OK);
    assert_true(is_permutation(order, F));
    for (int i = 0; i < SHARED; i++) assert_int_equal(order[i], 2 + 7 * i);
    assert_int_equal(group_coactivation(again, &c, strong, 128, &e), OK);
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
            struct group_cut k = cut(cases[c].neurons, cases[c].shared, cases[c].experts, importance, 9);

            assert_int_equal(group_coactivation(order, &k, strong, cases[c].tokens, &e), OK);
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
    struct group_cut c = cut(F, 0, N, NULL, 1);

    assert_int_equal(group_coactivation(order, &c, strong, T, &e), OK);
    assert_true(is_permutation(order, F));
    group_random(random, F, 1, 0);
    assert_true(cost(order, strong, F, T, N) < 0.6 * cost(random, strong, F, T, N));
    free(strong);
}

/* ---- assignment ---- */

/* The largest sum there is: over items in order, for every number of places left (all vectors of them; small cases only). */
static double exact_best(const float *score, int items, int groups, const int *size, int *left, int item)
{
    double most = -1e300;

    if (item == items) return 0;
    for (int g = 0; g < groups; g++) {
        if (!left[g]) continue;
        left[g]--;
        double sum = (double)score[item * groups + g] + exact_best(score, items, groups, size, left, item + 1);

        left[g]++;
        if (sum > most) most = sum;
    }
    return most;
}

static double sum_of(const float *score, int items, int groups, const int *of, const int *size)
{
    int n[64] = {0};
    double sum = 0;

    for (int j = 0; j < items; j++) {
        assert_in_range(of[j], 0, groups - 1);
        n[of[j]]++;
        sum += (double)score[j * groups + of[j]];
    }
    for (int g = 0; g < groups; g++) assert_int_equal(n[g], size[g]);
    return sum;
}

static void test_assignment_against_all(void **state)
{
    static const int sizes[][4] = {{3, 3, 2, 2}, {9, 1, 0, 0}, {1, 2, 3, 4}, {5, 5, 0, 0}, {10, 0, 0, 0}};
    float score[10 * 4];
    int of[10], left[4];
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 4, 0);
    for (int round = 0; round < 60; round++) {
        const int *size = sizes[round % 5];
        double spread = 0;

        for (int j = 0; j < 10; j++) {
            double most = -1e9, all = 0;

            for (int g = 0; g < 4; g++) {
                /* smooth, with many equals, and of very different scales */
                double x = round % 3 == 0 ? rng_normal(&r) : round % 3 == 1 ? (double)rng_below(&r, 3) : exp(8 * rng_normal(&r));

                score[j * 4 + g] = (float)x;
                most = fmax(most, x);
                all += x;
            }
            spread += most - all / 4;
        }
        assert_int_equal(assign_balanced(of, score, 10, 4, size, NULL, &e), OK);
        memcpy(left, size, sizeof(left));
        double best = exact_best(score, 10, 4, size, left, 0), found = sum_of(score, 10, 4, of, size);
        assert_true(found <= best + 1e-3 * fabs(best) && found >= best - 1.01 * ASSIGN_STEP * spread - 1e-6 * fabs(best));
    }
}

/* Planted: item j belongs to group j % groups, and the best sum is known; a size that greedy choice does not solve in a blink. */
static void test_assignment_large(void **state)
{
    enum { ITEMS = 2816, GROUPS = 352 };
    float *score = malloc((size_t)ITEMS * GROUPS * sizeof(*score));
    int *of = malloc(ITEMS * sizeof(*of)), size[GROUPS], right = 0;
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 8, 0);
    for (int j = 0; j < ITEMS; j++)
        for (int g = 0; g < GROUPS; g++)
            score[(size_t)j * GROUPS + (size_t)g] = (float)rng_unit(&r) + (g == j % GROUPS ? 1.0f : 0);
    for (int g = 0; g < GROUPS; g++) size[g] = ITEMS / GROUPS;
    assert_int_equal(assign_balanced(of, score, ITEMS, GROUPS, size, NULL, &e), OK);
    for (int j = 0; j < ITEMS; j++) right += of[j] == j % GROUPS;
    assert_int_equal(right, ITEMS); /* any other place is worth less */
    for (size_t i = 0; i < (size_t)ITEMS * GROUPS; i++) score[i] = 1;
    assert_int_equal(assign_balanced(of, score, ITEMS, GROUPS, size, NULL, &e), OK); /* nothing to choose */
    free(score);
    free(of);
}

/* ---- groups from weights ---- */

static void test_kmeans_finds_directions(void **state)
{
    enum { F = 90, D = 24, N = 6 };
    float x[F * D], direction[N * D];
    int order[F], again[F];
    struct group_cut c = cut(F, 0, N, NULL, 3);
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 6, 0);
    for (int i = 0; i < N * D; i++) direction[i] = (float)rng_normal(&r);
    for (int j = 0; j < F; j++) {
        float length = (float)exp(2 * rng_normal(&r)); /* means nothing */

        for (int d = 0; d < D; d++) x[j * D + d] = length * (direction[j % N * D + d] + 0.5f * (float)rng_normal(&r));
    }
    assert_int_equal(group_kmeans(order, &c, x, D, &e), OK);
    assert_true(is_permutation(order, F));
    assert_true(purity(order, F, 0, N, N) == 1);
    assert_int_equal(group_kmeans(again, &c, x, D, &e), OK);
    assert_memory_equal(order, again, sizeof(order));
}

static void test_importance(void **state)
{
    static const float importance[6] = {1, 5, 3, 5, 0, 4};
    static const int right[6] = {1, 3, 5, 2, 0, 4};
    int order[6];

    (void)state;
    group_importance(order, 6, importance);
    assert_memory_equal(order, right, sizeof(order));
}

/* ---- what h says ---- */

/* W from the normal equations by elimination, in double, as the header says. */
static void ridge(double *z, const float *h, const float *y, int rows, int width, int skip, int end, const float *at)
{
    double a[16][17] = {{0}}, mean[16] = {0}, my = 0, trace = 0;
    int n = rows - (end - skip);

    for (int t = 0; t < rows; t++) {
        if (t >= skip && t < end) continue;
        for (int d = 0; d < width; d++) mean[d] += (double)h[t * width + d] / n;
        my += (double)y[t] / n;
    }
    for (int t = 0; t < rows; t++)
        for (int i = 0; (t < skip || t >= end) && i < width; i++) {
            for (int j = 0; j < width; j++)
                a[i][j] += ((double)h[t * width + i] - mean[i]) * ((double)h[t * width + j] - mean[j]);
            a[i][width] += ((double)h[t * width + i] - mean[i]) * ((double)y[t] - my);
        }
    for (int i = 0; i < width; i++) trace += a[i][i];
    for (int i = 0; i < width; i++) a[i][i] += PREDICT_RIDGE * trace / width;
    for (int i = 0; i < width; i++)
        for (int k = 0; k < width; k++) {
            double by = a[k][i] / a[i][i];

            for (int j = 0; k != i && j <= width; j++) a[k][j] -= by * a[i][j];
        }
    *z = my;
    for (int i = 0; i < width; i++) *z += a[i][width] / a[i][i] * ((double)at[i] - mean[i]);
}

static void test_prediction(void **state)
{
    enum { T = 100, D = 9, N = 3 };
    float h[T * D], y[T * N], z[T * N], weight[N * D], bias[N], one[T];
    struct predictor *p;
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 12, 0);
    for (int i = 0; i < T * D; i++) h[i] = 0.3f + (float)rng_normal(&r);
    for (int t = 0; t < T; t++)
        for (int i = 0; i < N; i++) y[t * N + i] = 2 + h[t * D + i] - 0.5f * h[t * D + i + 4] + 0.3f * (float)rng_normal(&r);
    assert_int_equal(predictor_open(&p, h, T, D, gemm, NULL, &e), OK);
    assert_int_equal(predictor_cross(p, z, y, N, &e), OK);
    assert_int_equal(predictor_fit(p, weight, bias, y, N, &e), OK);
    for (int i = 0; i < N; i++) {
        for (int t = 0; t < T; t++) one[t] = y[t * N + i];
        for (int t = 0; t < T; t++) {
            int fold = 0;
            double right, whole, found = (double)bias[i];

            while (t >= T * (fold + 1) / PREDICT_FOLDS) fold++;
            ridge(&right, h, one, T, D, T * fold / PREDICT_FOLDS, T * (fold + 1) / PREDICT_FOLDS, h + t * D);
            assert_true(fabs(right - (double)z[t * N + i]) < 1e-4);
            ridge(&whole, h, one, T, D, T, T, h + t * D);
            for (int d = 0; d < D; d++) found += (double)weight[i * D + d] * (double)h[t * D + d];
            assert_true(fabs(whole - found) < 1e-4);
        }
    }
    predictor_close(p);
    memset(h, 0, sizeof(h)); /* nothing to learn from: the mean */
    assert_int_equal(predictor_open(&p, h, T, D, gemm, NULL, &e), OK);
    assert_int_equal(predictor_cross(p, z, y, N, &e), OK);
    assert_true(z[0] == z[1 * N] && isfinite(z[0]));
    predictor_close(p);
}

/* Neuron j is strong when its group's direction of h is large; half of each group is strong together with another group by chance that h does not
 * say: groups by co-activation alone mix them. */
static void test_predicted_groups(void **state)
{
    enum { F = 64, T = 600, D = 8, N = 8, SHARED = 0 };
    float *h = malloc(T * D * sizeof(*h)), *energy = malloc(T * F * sizeof(*energy));
    int order[F], again[F], chance[F];
    double captured, by_chance, same;
    struct group_cut c = cut(F, SHARED, N, NULL, 2);
    struct group_sample s = {T, D, h, energy};
    struct predictor *p;
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 30, 0);
    for (int i = 0; i < T * D; i++) h[i] = (float)rng_normal(&r);
    for (int t = 0; t < T; t++)
        for (int j = 0; j < F; j++) energy[t * F + j] = expf(2 * h[t * D + j % N]) * (float)(0.5 + rng_unit(&r));
    assert_int_equal(predictor_open(&p, h, T, D, gemm, NULL, &e), OK);
    assert_int_equal(group_predicted(order, &c, &s, p, 2, &captured, &e), OK);
    assert_true(is_permutation(order, F));
    assert_true(purity(order, F, SHARED, N, N) == 1);
    assert_int_equal(group_predicted(again, &c, &s, p, 2, NULL, &e), OK);
    assert_memory_equal(order, again, sizeof(order));
    assert_int_equal(group_captured(&same, order, &c, &s, p, 2, &e), OK);
    assert_true(fabs(same - captured) < 1e-9);
    group_random(chance, F, 1, 0);
    assert_int_equal(group_captured(&by_chance, chance, &c, &s, p, 2, &e), OK);
    assert_true(captured > by_chance + 0.2);
    /* all experts hold all; shared neurons count; sizes that do not divide */
    assert_int_equal(group_captured(&same, order, &c, &s, p, N, &e), OK);
    assert_true(fabs(same - 1) < 1e-6);
    float importance[F] = {[3] = 2, [7] = 1, [11] = 3};
    struct group_cut odd = cut(F, 3, 7, importance, 2);
    assert_int_equal(group_predicted(order, &odd, &s, p, 3, &captured, &e), OK);
    assert_true(is_permutation(order, F) && captured > 0.4 && captured < 1);
    assert_true(order[0] == 3 && order[1] == 7 && order[2] == 11);
    predictor_close(p);
    free(h);
    free(energy);
}

/* On any number of threads. */
static void test_threads_change_nothing(void **state)
{
    enum { F = 176, T = 500, D = 48, N = 22 };
    float *h = malloc(T * D * sizeof(*h)), *energy = malloc(T * F * sizeof(*energy));
    struct gemm *own = gemm, *three;
    int order[2][F];
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 31, 0);
    for (int i = 0; i < T * D; i++) h[i] = (float)rng_normal(&r);
    for (int i = 0; i < T * F; i++) energy[i] = (float)(rng_normal(&r) * rng_normal(&r)) * h[i / F * D + i % D];
    for (int i = 0; i < T * F; i++) energy[i] *= energy[i];
    assert_int_equal(gemm_open(&three, 3, isa_best(), &e), OK);
    for (int k = 0; k < 2; k++) {
        struct group_sample s = {T, D, h, energy};
        struct predictor *p;

        gemm = k ? three : own;
        struct group_cut c = cut(F, 0, N, NULL, 5);
        assert_int_equal(predictor_open(&p, h, T, D, gemm, NULL, &e), OK);
        assert_int_equal(group_predicted(order[k], &c, &s, p, 6, NULL, &e), OK);
        predictor_close(p);
    }
    gemm = own;
    gemm_close(three);
    assert_memory_equal(order[0], order[1], sizeof(order[0]));
    free(h);
    free(energy);
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
        cmocka_unit_test(test_assignment_against_all),
        cmocka_unit_test(test_assignment_large),
        cmocka_unit_test(test_kmeans_finds_directions),
        cmocka_unit_test(test_importance),
        cmocka_unit_test(test_prediction),
        cmocka_unit_test(test_predicted_groups),
        cmocka_unit_test(test_threads_change_nothing),
    };

    struct err e;

    if (gemm_open(&gemm, 1, isa_best(), &e)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gemm_close(gemm);
    return failed;
}
