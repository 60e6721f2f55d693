/* Losses against numbers worked out apart from the code, and gradients against finite differences. */
#include <math.h>

#include "../check.h"
#include "base/bits.h"
#include "base/rng.h"
#include "train/loss.h"

#define NEAR(a, b, tolerance) assert_true(fabs((double)(a) - (double)(b)) <= (tolerance))

static const double one[1] = {1}, uneven[3] = {0.1, 0.5, 2}, third[3] = {1.0 / 3, 1.0 / 4, 1.0 / 5};

/* Four experts, the first two labelled, scores 0: the router is uniform, the target is e/(2e+2) = .3655293 and 1/(2e+2) = .1344707.
 * KL = 2 * .3655293 * ln(4 * .3655293) + 2 * .1344707 * ln(4 * .1344707) = .2777156 - .1668046 = .1109441 */
static void paper_by_hand(void **state)
{
    float z[4] = {0}, dz[4];
    uint64_t label = 3;

    (void)state;
    NEAR(loss_paper(dz, z, &label, 1, 4, one), 0.1109441, 1e-6);
    NEAR(dz[0], 0.25 - 0.3655293, 1e-6);
    NEAR(dz[1], 0.25 - 0.3655293, 1e-6);
    NEAR(dz[2], 0.25 - 0.1344707, 1e-6);
    NEAR(dz[3], 0.25 - 0.1344707, 1e-6);
}

/* The loss is zero exactly where the scores are the label plus a constant. */
static void paper_minimum(void **state)
{
    float z[6] = {5, 4, 5, 4, 4, 5}, dz[6];
    uint64_t label = 0x25;

    (void)state;
    NEAR(loss_paper(dz, z, &label, 1, 6, one), 0, 1e-12);
    for (int i = 0; i < 6; i++) NEAR(dz[i], 0, 1e-8);
}

/* ln(1 + e^-2) = .1269280 for a right score of 2, ln(1 + e^2) = 2.1269280 for a wrong one, ln 2 for 0. */
static void bce_by_hand(void **state)
{
    float z[3] = {2, 2, 0}, dz[3];
    uint64_t label = 1;

    (void)state;
    NEAR(loss_bce(dz, z, &label, 1, 3, one), 0.1269280 + 2.1269280 + 0.6931472, 1e-6);
    NEAR(dz[0], -0.1192029, 1e-6);
    NEAR(dz[1], 0.8807971, 1e-6);
    NEAR(dz[2], 0.5, 1e-7);
}

typedef double loss_function(float *, const float *, const uint64_t *, int, int, const double *);

static void against_differences(loss_function *loss)
{
    enum { ROWS = 3, N = 70, WORDS = 2 }; /* more than one word of a set */
    float z[ROWS * N], dz[ROWS * N], ignored[ROWS * N];
    uint64_t label[ROWS * WORDS] = {0};
    struct rng r;

    rng_seed(&r, 11, 0);
    for (int i = 0; i < ROWS * N; i++) z[i] = (float)(3 * rng_normal(&r));
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < N; i++)
            if (rng_unit(&r) < 0.3) bits_set(label + t * WORDS, i);
    double base = loss(dz, z, label, ROWS, N, uneven);
    assert_true(base > 0);
    for (int i = 0; i < ROWS * N; i++) {
        float kept = z[i], up = kept + 0x1p-7f, down = kept - 0x1p-7f;

        z[i] = up;
        double above = loss(ignored, z, label, ROWS, N, uneven);
        z[i] = down;
        double below = loss(ignored, z, label, ROWS, N, uneven);
        z[i] = kept;
        NEAR(dz[i], (above - below) / ((double)up - down), 1e-5);
    }
}

static void gradients(void **state)
{
    (void)state;
    against_differences(loss_paper);
    against_differences(loss_bce);
}

/* Values 3, 1, 0 are the softmax 3/4, 1/4, 0; scores 0: KL = 3/4 ln(9/4) + 1/4 ln(3/4) = .5362775. */
static void listwise_by_hand(void **state)
{
    float z[3] = {0}, dz[3], v[3] = {3, 1, 0}, nothing[3] = {0};

    (void)state;
    NEAR(loss_listwise(dz, z, v, 1, 3, one), 0.5362775, 1e-6);
    NEAR(dz[0], 1.0 / 3 - 0.75, 1e-7);
    NEAR(dz[2], 1.0 / 3, 1e-7);
    z[0] = logf(3), z[1] = 0, z[2] = -40;
    NEAR(loss_listwise(dz, z, v, 1, 3, one), 0, 1e-6);
    NEAR(loss_listwise(dz, nothing, nothing, 1, 3, one), 0, 1e-12); /* no values: all are alike */
}

/* Targets ln(4)/2 = .6931472, 0, and for what is too small ln(4e-4)/2 = -3.9120230. */
static void regression_by_hand(void **state)
{
    float z[3] = {1, 0.5f, -4}, dz[3], v[3] = {4, 1, 0};

    (void)state;
    double a = 1 - 0.6931472, b = 0.5, c = -4 + 3.9120230, two = 2;

    NEAR(loss_regression(dz, z, v, 1, 3, &two), a * a + b * b + c * c, 1e-5);
    NEAR(dz[0], 2 * a, 1e-5);
    NEAR(dz[1], 2 * b, 1e-6);
    NEAR(dz[2], 2 * c, 1e-5);
}

static void gradients_of_values(void **state)
{
    enum { ROWS = 3, N = 9 };
    float z[ROWS * N], v[ROWS * N], dz[ROWS * N], ignored[ROWS * N];
    struct rng r;

    (void)state;
    rng_seed(&r, 12, 0);
    for (int i = 0; i < ROWS * N; i++) z[i] = (float)rng_normal(&r), v[i] = (float)exp(3 * rng_normal(&r));
    for (int which = 0; which < 2; which++) {
        double (*loss)(float *, const float *, const float *, int, int, const double *) = which ? loss_regression : loss_listwise;

        loss(dz, z, v, ROWS, N, uneven);
        for (int i = 0; i < ROWS * N; i++) {
            float kept = z[i], up = kept + 0x1p-7f, down = kept - 0x1p-7f;

            z[i] = up;
            double above = loss(ignored, z, v, ROWS, N, uneven);
            z[i] = down;
            double below = loss(ignored, z, v, ROWS, N, uneven);
            z[i] = kept;
            NEAR(dz[i], (above - below) / ((double)up - down), 1e-5);
        }
    }
}

/* A batch in passes is the batch: each row has its own weight. */
static void passes_add_up(void **state)
{
    float z[12] = {1, -2, 3, 0, 0.5f, 2, -1, 4, 0, 0, 7, -7}, whole[12], parts[12];
    uint64_t label[3] = {5, 2, 12};

    (void)state;
    for (int which = 0; which < 2; which++) {
        loss_function *loss = which ? loss_bce : loss_paper;
        double all = loss(whole, z, label, 3, 4, third);
        double first = loss(parts, z, label, 1, 4, third), rest = loss(parts + 4, z + 4, label + 1, 2, 4, third + 1);

        NEAR(all, first + rest, 1e-12);
        assert_memory_equal(whole, parts, sizeof(whole));
    }
}

static void huge_scores_stay_finite(void **state)
{
    float z[4] = {3e4f, -3e4f, 1e30f, -1e30f}, dz[4];
    uint64_t label = 10;

    (void)state;
    for (int which = 0; which < 2; which++) {
        double l = which ? loss_bce(dz, z, &label, 1, 4, one) : loss_paper(dz, z, &label, 1, 4, one);

        assert_true(isfinite(l) && l > 0);
        for (int i = 0; i < 4; i++) assert_true(isfinite(dz[i]) && fabsf(dz[i]) <= 1);
    }
}

static void all_or_none_labelled(void **state)
{
    float z[3] = {1, 1, 1}, dz[3];
    uint64_t all = 7, none = 0;

    (void)state;
    NEAR(loss_paper(dz, z, &all, 1, 3, one), 0, 1e-12); /* softmax of a constant is uniform, and so is the router */
    NEAR(loss_paper(dz, z, &none, 1, 3, one), 0, 1e-12);
    NEAR(loss_bce(dz, z, &all, 1, 3, one), 3 * 0.3132617, 1e-6);
    NEAR(loss_bce(dz, z, &none, 1, 3, one), 3 * 1.3132617, 1e-6);
    NEAR(loss_bce(dz, z, &none, 0, 3, one), 0, 0); /* no rows */
}

static void common(void **state)
{
    uint64_t a[4] = {0xf, 1, 0x3, 0}, b[4] = {0x6, 1, 0xc, 1};

    (void)state;
    assert_int_equal(sets_common(a, b, 2, 70), 3);
    assert_int_equal(sets_common(a, b, 0, 70), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(listwise_by_hand), cmocka_unit_test(regression_by_hand),   cmocka_unit_test(gradients_of_values),
        cmocka_unit_test(paper_by_hand),    cmocka_unit_test(paper_minimum),        cmocka_unit_test(bce_by_hand),
        cmocka_unit_test(gradients),        cmocka_unit_test(passes_add_up),        cmocka_unit_test(huge_scores_stay_finite),
        cmocka_unit_test(common),           cmocka_unit_test(all_or_none_labelled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
