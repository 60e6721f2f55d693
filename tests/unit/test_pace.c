/* The learning rate over a run, and the order of its windows. */
#include <math.h>
#include <string.h>

#include "../check.h"
#include "train/pace.h"

#define NEAR(a, b) assert_true(fabs((a) - (b)) <= 1e-12)

/* 11 steps, 2 of warm-up, down to 0.1: step 2 is the top, step 10 the end, step 6 the middle of the cosine. */
static void by_hand(void **state)
{
    (void)state;
    NEAR(pace_factor(0, 11, 0.2, 0.1), 0.5);
    NEAR(pace_factor(1, 11, 0.2, 0.1), 1.0);
    NEAR(pace_factor(2, 11, 0.2, 0.1), 1.0);
    NEAR(pace_factor(6, 11, 0.2, 0.1), 0.55);
    NEAR(pace_factor(10, 11, 0.2, 0.1), 0.1);
    NEAR(pace_factor(0, 5, 0, 0), 1.0); /* no warm-up */
    NEAR(pace_factor(4, 5, 0, 0), 0.0);
}

static void small_and_odd(void **state)
{
    (void)state;
    for (int steps = 1; steps < 30; steps++)
        for (int w = 0; w <= 10; w++)
            for (int s = 0; s < steps; s++) {
                double f = pace_factor(s, steps, w / 10.0, 0.05);

                assert_true(f > 0 && f <= 1 + 1e-12);
                if (s) { /* up, then down, never up again */
                    double before = pace_factor(s - 1, steps, w / 10.0, 0.05);

                    if (s < llround(w / 10.0 * steps)) assert_true(f > before);
                    else assert_true(f <= before + 1e-12);
                }
            }
}

/* Every pass visits every window once, passes differ, and a place can be sought. */
static void visits(void **state)
{
    enum { WINDOWS = 23, PASSES = 4 };
    int seen[PASSES][WINDOWS];
    struct visit v, w;
    struct err e;

    (void)state;
    assert_int_equal(visit_init(&v, 7, WINDOWS, &e), OK);
    assert_int_equal(visit_init(&w, 7, WINDOWS, &e), OK);
    for (int p = 0; p < PASSES; p++) {
        int count[WINDOWS] = {0};

        for (int i = 0; i < WINDOWS; i++, visit_next(&v)) {
            assert_int_equal(v.pass, p);
            assert_int_equal(v.at, i);
            seen[p][i] = visit_peek(&v);
            count[seen[p][i]]++;
            visit_seek(&w, p, i);
            assert_int_equal(visit_peek(&w), seen[p][i]);
        }
        for (int i = 0; i < WINDOWS; i++) assert_int_equal(count[i], 1);
        for (int q = 0; q < p; q++) assert_memory_not_equal(seen[p], seen[q], sizeof(seen[p]));
    }
    visit_clear(&w);
    assert_int_equal(visit_init(&w, 8, WINDOWS, &e), OK);
    assert_memory_not_equal(w.order, seen[0], sizeof(seen[0]));
    visit_clear(&v);
    visit_clear(&w);

    assert_int_equal(visit_init(&v, 1, 1, &e), OK); /* one window, again and again */
    for (int i = 0; i < 5; i++, visit_next(&v)) assert_int_equal(visit_peek(&v), 0);
    assert_int_equal(v.pass, 5);
    visit_clear(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(by_hand), cmocka_unit_test(small_and_odd), cmocka_unit_test(visits)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
