/* What plan says before anything runs: expected remote ranks against counting, and shapes against the files that factorize writes. */
#include "../check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/plan.h"

/* By counting: over all sets of k of n experts, the ranks but 0 that hold at least one of the set. */
static double by_counting(const struct placement *p, int k)
{
    double sum = 0;

    for (int l = 0; l < p->layers; l++) {
        long sets = 0, ranks = 0;

        for (unsigned set = 0; set < 1u << p->experts; set++) {
            unsigned holders = 0;

            if (__builtin_popcount(set) != k) continue;
            sets++;
            for (int x = 0; x < p->experts; x++)
                if (set >> x & 1) holders |= 1u << placement_rank(p, l, x);
            ranks += __builtin_popcount(holders & ~1u);
        }
        sum += (double)ranks / (double)sets;
    }
    return sum / p->layers;
}

static void test_remote_ranks(void **state)
{
    struct err e;

    (void)state;
    for (int ranks = 1; ranks <= 6; ranks++)
        for (int experts = 1; experts <= 9; experts += 2)
            for (int k = 1; k <= experts; k++)
                for (int how = 0; how < 4; how++) {
                    struct placement p;

                    assert_int_equal(
                        placement_make(&p, how & 1 ? PLACEMENT_BLOCK : PLACEMENT_ROUND_ROBIN, 3, experts, ranks, how & 2, &e),
                        OK);
                    assert_true(fabs(plan_remote_ranks(&p, k) - by_counting(&p, k)) < 1e-12);
                    placement_free(&p);
                }
}

static struct spec *factorize(const char *more)
{
    struct str text = {0};
    struct err e = {0};
    struct spec *s;

    str_addf(&text, "kind: factorize\nmodel: m\noutput: o\n%s", more);
    if (spec_parse(&s, text.text, text.length, "job.yaml", NULL, 0, &e)) fail_msg("%s", e.text);
    str_free(&text);
    return s;
}

static void test_factorized_shape(void **state)
{
    struct shape
        dense = {.layers = 3, .width = 8, .neurons = 100, .heads = 2, .kv_heads = 2, .head_dim = 4, .vocab = 9, .positions = 16},
        made;
    struct err e = {0};
    struct spec *s = factorize("experts: 7\nactive: 3\nshared: 0.2\nscale: paper\ncompensation: mean\n");

    (void)state;
    assert_int_equal(plan_factorized(&made, &dense, s, &e), OK);
    assert_int_equal(made.experts, 7);
    assert_int_equal(made.shared[2], 20);
    assert_true(made.compensate && made.calibrated);
    assert_true(fabsf(made.scale - 7.0f / 3) < 1e-6f);
    /* 80 routed neurons in 7 experts: 3 of 12, 4 of 11; cutting adds no parameter but the mean outputs */
    assert_int_equal(shape_expert_neurons(&made, 0, 2), 12);
    assert_int_equal(shape_expert_neurons(&made, 0, 3), 11);
    assert_int_equal(shape_ffn_parameters(&made), shape_ffn_parameters(&dense));
    spec_free(s);

    s = factorize("experts: 81\nactive: 3\nshared: 0.2\n");
    assert_int_equal(plan_factorized(&made, &dense, s, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "experts: expected 1 to 80"));
    spec_free(s);
    /* of every layer its own */
    s = factorize("experts: 7\nactive: [3, 1, 4]\nshared: [0.2, 0, 0.1]\n");
    assert_int_equal(plan_factorized(&made, &dense, s, &e), OK);
    assert_true(made.shared[0] == 20 && made.shared[1] == 0 && made.shared[2] == 10);
    assert_true(made.active_of[0] == 3 && made.active_of[1] == 1 && made.active_of[2] == 4 && made.active == 3);
    double share = (20 + 3 * 80 / 7.0 + 100 / 7.0 + 10 + 4 * 90 / 7.0) / 300;
    assert_true(fabs(shape_active_share(&made) - share) < 1e-12);
    spec_free(s);
    s = factorize("experts: 7\nactive: [3, 1]\n");
    assert_int_equal(plan_factorized(&made, &dense, s, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "active: expected one number, or 3, one for every layer of"));
    spec_free(s);
    s = factorize("experts: 7\nactive: 3\nshared: [0.1, 0.2, 0.3, 0.4]\n");
    assert_int_equal(plan_factorized(&made, &dense, s, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "shared: expected one number, or 3, one for every layer of"));
    spec_free(s);
    s = factorize("");
    dense.experts = 4;
    assert_int_equal(plan_factorized(&made, &dense, s, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "factorized already"));
    spec_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_remote_ranks),
        cmocka_unit_test(test_factorized_shape),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
