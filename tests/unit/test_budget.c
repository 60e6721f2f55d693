/* The allocation of experts to layers, against all allocations there are. */
#include <math.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "moe/budget.h"

enum { LAYERS = 4, N = 8 };

static double loss_of(const double loss[LAYERS][N + 1], const int *k)
{
    double sum = 0;

    for (int l = 0; l < LAYERS; l++) sum += loss[l][k[l]];
    return sum;
}

/* The least sum with at most so many experts in all. */
static double best_of(const double loss[LAYERS][N + 1], int total)
{
    double least = INFINITY;
    int k[LAYERS];

    for (k[0] = 1; k[0] <= N; k[0]++)
        for (k[1] = 1; k[1] <= N; k[1]++)
            for (k[2] = 1; k[2] <= N; k[2]++)
                for (k[3] = 1; k[3] <= N; k[3]++)
                    if (k[0] + k[1] + k[2] + k[3] <= total) least = fmin(least, loss_of(loss, k));
    return least;
}

static void test_convex_losses(void **state)
{
    static const double cost[LAYERS] = {11, 11, 11, 11};
    struct rng r;

    (void)state;
    rng_seed(&r, 3, 0);
    for (int round = 0; round < 40; round++) {
        struct budget_point point[LAYERS][N + 2];
        double loss[LAYERS][N + 1];
        int k[LAYERS], sum = 0, total = LAYERS + round % (LAYERS * (N - 1));

        for (int l = 0; l < LAYERS; l++) {
            double fall = 0;

            loss[l][N] = 0;
            for (int i = N - 1; i >= 0; i--) loss[l][i] = loss[l][i + 1] + (fall += rng_unit(&r));
            for (int i = 1; i <= N; i++) point[l][i - 1] = (struct budget_point){i, loss[l][i]};
            point[l][N] = point[l][N + 1] = point[l][N - 1]; /* stand twice */
        }
        budget_allocate(k, point[0], LAYERS, N + 2, cost, 11 * total);
        for (int l = 0; l < LAYERS; l++) {
            assert_in_range(k[l], 1, N);
            sum += k[l];
        }
        assert_int_equal(sum, total);
        assert_true(fabs(loss_of(loss, k) - best_of(loss, total)) < 1e-12);
    }
}

/* Points far apart, a bump that the hull passes by, dear experts, a layer that loses nothing. */
static void test_hull_and_costs(void **state)
{
    static const struct budget_point point[3][4] = {
        {{2, 9}, {4, 8.9}, {6, 1}, {8, 0}}, /* two steps at once are worth it: 2 an expert */
        {{2, 4}, {4, 2}, {6, 1}, {8, 0}},
        {{2, 0}, {4, 0}, {6, 0}, {8, 0}}};
    static const double same[3] = {10, 10, 10}, dear[3] = {30, 10, 10};
    int k[3];

    (void)state;
    budget_allocate(k, point[0], 3, 4, same, 100); /* 6 given, 4 more: all to the first */
    assert_true(k[0] == 6 && k[1] == 2 && k[2] == 2);
    budget_allocate(k, point[0], 3, 4, same, 120);
    assert_true(k[0] == 6 && k[1] == 4 && k[2] == 2);
    budget_allocate(k, point[0], 3, 4, dear,
                    120); /* 2/30 an expert against 1/10: the second first; then .67/10 of the first is more than .5/10 */
    assert_true(k[0] == 2 && k[1] == 4 && k[2] == 2);
    budget_allocate(k, point[0], 3, 4, same, 1000); /* more than there is */
    assert_true(k[0] == 8 && k[1] == 8 && k[2] == 8);
    budget_allocate(k, point[0], 3, 4, same, 60); /* nothing left */
    assert_true(k[0] == 2 && k[1] == 2 && k[2] == 2);
}

/* Two ways of every layer, against all choices there are: within the total, and no further from the best than one expert of one layer is worth. */
static void test_ways(void **state)
{
    enum { M = 6 };
    struct rng r;

    (void)state;
    rng_seed(&r, 7, 0);
    for (int round = 0; round < 60; round++) {
        struct budget_point point[2][2][M];
        struct budget_way way[2][2];
        int which[2], k[2], total = 20 + round;
        double best = INFINITY, step = 0, found = 0, neurons = 0;

        for (int l = 0; l < 2; l++)
            for (int q = 0; q < 2; q++) {
                double loss = 0, fall = 0;

                for (int i = M - 1; i >= 0; i--) {
                    point[l][q][i] = (struct budget_point){i + 1, loss};
                    step = fmax(step, fall);
                    loss += fall += rng_unit(&r);
                }
                way[l][q] = (struct budget_way){q ? 6 : 0, q ? 5 : 7, point[l][q], M};
            }
        for (int i = 0; i < 4 * M * M; i++) {
            int q0 = i % 2, q1 = i / 2 % 2, k0 = i / 4 % M, k1 = i / 4 / M;
            double n = way[0][q0].fixed + way[0][q0].cost * (k0 + 1) + way[1][q1].fixed + way[1][q1].cost * (k1 + 1);

            if (n <= total) best = fmin(best, point[0][q0][k0].loss + point[1][q1][k1].loss);
        }
        budget_choose(which, k, way[0], 2, 2, total);
        for (int l = 0; l < 2; l++) {
            assert_in_range(k[l], 1, M);
            assert_in_range(which[l], 0, 1);
            found += point[l][which[l]][k[l] - 1].loss;
            neurons += way[l][which[l]].fixed + way[l][which[l]].cost * k[l];
        }
        assert_true(neurons <= total);
        assert_true(found >= best - 1e-12 && found <= best + 2 * step);
    }
}

/* Where one way is better at every size it is taken, and points far apart are joined by a line. */
static void test_better_way(void **state)
{
    static const struct budget_point bad[] = {{1, 9}, {9, 1}}, good[] = {{1, 4}, {9, 0}};
    const struct budget_way way[2][2] = {{{0, 2, bad, 2}, {0, 2, good, 2}}, {{0, 2, good, 2}, {0, 2, bad, 2}}};
    int which[2], k[2];

    (void)state;
    budget_choose(which, k, way[0], 2, 2, 2 * 10);
    assert_true(which[0] == 1 && which[1] == 0 && k[0] + k[1] == 10);
    budget_choose(which, k, way[0], 2, 2, 1000);
    assert_true(k[0] == 9 && k[1] == 9);
    budget_choose(which, k, way[0], 2, 2, 4);
    assert_true(k[0] == 1 && k[1] == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convex_losses),
        cmocka_unit_test(test_ways),
        cmocka_unit_test(test_better_way),
        cmocka_unit_test(test_hull_and_costs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
