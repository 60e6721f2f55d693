/* AdamW against steps worked out by hand, and its promise that (m, v, steps) is the whole state. */
#include <math.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/adamw.h"

#define NEAR(a, b, tolerance) assert_true(fabs((double)(a) - (double)(b)) <= (tolerance))

static const struct adamw_options plain = {.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8};

/* The first step is lr * sign(g), whatever g's size: the bias corrections take the betas out.  The second, with g = 1 then g = -1:
 * m = .9*.1 - .1 = -.01, /(1-.81) = -.0526316; v = .99*.01 + .01 = .0199, /(1-.9801) = 1; step = -.0526316. */
static void by_hand(void **state)
{
    float m[2] = {0}, v[2] = {0}, p[2] = {1, -1};
    struct adamw a = {.n = 2, .m = m, .v = v};

    (void)state;
    adamw_step(&a, p, (float[]){1, -1000}, 1, 0.1, &plain);
    NEAR(p[0], 0.9, 1e-6);
    NEAR(p[1], -0.9, 1e-6);
    assert_int_equal(a.steps, 1);
    adamw_step(&a, p, (float[]){-1, 0}, 1, 0.1, &plain);
    NEAR(p[0], 0.9 + 0.1 * 0.0526316, 1e-6);
}

/* Decay is decoupled: with no gradient p shrinks by lr * decay, and the moments know nothing of it. */
static void decay(void **state)
{
    float m[1] = {0}, v[1] = {0}, p[1] = {2};
    struct adamw a = {.n = 1, .m = m, .v = v};
    struct adamw_options o = plain;

    (void)state;
    o.weight_decay = 0.5;
    adamw_step(&a, p, (float[]){0}, 1, 0.1, &o);
    NEAR(p[0], 2 * (1 - 0.05), 1e-6);
    assert_true(m[0] == 0 && v[0] == 0);
    adamw_step(&a, p, (float[]){0}, 1, 0.1, &o);
    NEAR(p[0], 2 * 0.95 * 0.95, 1e-6);
}

static void clipping(void **state)
{
    float a[2] = {3, 0}, b[1] = {4};
    double norm = sqrt(sum_of_squares(a, 2) + sum_of_squares(b, 1));

    (void)state;
    NEAR(norm, 5, 1e-12);
    NEAR(clip_scale(norm, 1), 0.2, 1e-12);
    NEAR(clip_scale(norm, 10), 1, 0);
    NEAR(clip_scale(norm, 0), 1, 0); /* 0 does not clip */
    NEAR(clip_scale(0, 1), 1, 0);
    assert_true(sum_of_squares(NULL, 0) == 0);

    /* the scale of a step is a scale of the gradient */
    float m1[1] = {0}, v1[1] = {0}, p1[1] = {1}, m2[1] = {0}, v2[1] = {0}, p2[1] = {1};
    struct adamw x = {.n = 1, .m = m1, .v = v1}, y = {.n = 1, .m = m2, .v = v2};

    adamw_step(&x, p1, (float[]){8}, 0.25, 0.1, &plain);
    adamw_step(&y, p2, (float[]){2}, 1, 0.1, &plain);
    assert_memory_equal(m1, m2, sizeof(m1));
    assert_memory_equal(v1, v2, sizeof(v1));
    assert_memory_equal(p1, p2, sizeof(p1));
}

/* Minimizes (p - 3)^2 from far away. */
static void goes_down(void **state)
{
    float m[1] = {0}, v[1] = {0}, p[1] = {-20};
    struct adamw a = {.n = 1, .m = m, .v = v};

    (void)state;
    for (int i = 0; i < 600; i++) adamw_step(&a, p, (float[]){2 * (p[0] - 3)}, 1, 0.3 * (1 - i / 600.0), &plain);
    NEAR(p[0], 3, 0.01);
}

/* A run that is saved and gone on with has the bits of one that never stopped. */
static void state_is_whole(void **state)
{
    enum { N = 37 };
    float m[2][N] = {0}, v[2][N] = {0}, p[2][N] = {0}, g[N];
    struct adamw a = {.n = N, .m = m[0], .v = v[0]}, b = {.n = N, .m = m[1], .v = v[1]};
    struct adamw_options o = plain;
    struct rng r, saved;

    (void)state;
    o.weight_decay = 0.01;
    rng_seed(&r, 3, 0);
    for (int i = 0; i < 20; i++) {
        if (i == 9) { /* "save" */
            memcpy(m[1], m[0], sizeof(m[0]));
            memcpy(v[1], v[0], sizeof(v[0]));
            memcpy(p[1], p[0], sizeof(p[0]));
            b.steps = a.steps;
            saved = r;
        }
        for (int j = 0; j < N; j++) g[j] = (float)rng_normal(&r);
        adamw_step(&a, p[0], g, 0.7, 0.01, &o);
    }
    for (int i = 9; i < 20; i++) {
        for (int j = 0; j < N; j++) g[j] = (float)rng_normal(&saved);
        adamw_step(&b, p[1], g, 0.7, 0.01, &o);
    }
    assert_memory_equal(p[0], p[1], sizeof(p[0]));
    assert_int_equal(a.steps, b.steps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand),   cmocka_unit_test(decay),          cmocka_unit_test(clipping),
        cmocka_unit_test(goes_down), cmocka_unit_test(state_is_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
