/* Which rank gets how many experts when the coordinator has work of its own. */
#include <string.h>

#include "../check.h"
#include "engine/place.h"

static struct shape shape_of(int width, int neurons, int experts, int active)
{
    return (struct shape){.layers = 4,
                          .active_of = {active, active, active, active},
                          .width = width,
                          .neurons = neurons,
                          .heads = width / 64,
                          .kv_heads = width / 64,
                          .head_dim = 64,
                          .vocab = 1000,
                          .experts = experts,
                          .active = active};
}

/* Nobody has more to do than with one expert more or less on rank 0. */
static void balanced(void **state)
{
    struct shape s = shape_of(256, 1024, 64, 32);

    (void)state;
    assert_int_equal(place_coordinator_experts(&s, 0, 1, false), 64);
    int two = place_coordinator_experts(&s, 0, 2, false), before = two;

    assert_in_range(two, 1, 31); /* attention is work, too */
    for (int ranks = 3; ranks <= 64; ranks++) {
        int n = place_coordinator_experts(&s, 0, ranks, false);

        assert_true(n <= before);
        before = n;
    }
    assert_int_equal(before, 0); /* with many ranks it has enough to do */
    s.shared[0] = 512;
    s.neurons = 1536;
    assert_true(place_coordinator_experts(&s, 0, 2, false) < two);
    assert_true(place_coordinator_experts(&s, 0, 2, true) > place_coordinator_experts(&s, 0, 2, false)); /* attention is shared */
    s.heads = s.kv_heads = 0, s.vocab = 0, s.shared[0] = 0, s.neurons = 1 << 20;
    assert_int_equal(place_coordinator_experts(&s, 0, 2, false), 32); /* nothing of its own */
}

static void as_the_spec_says(void **state)
{
    struct shape s = shape_of(256, 1024, 64, 32);
    struct spec spec = {.cluster = {.placement = PLACE_BALANCE}};
    struct placement p;
    struct err e = {0};

    (void)state;
    assert_int_equal(place_experts(&p, &spec, &s, false, 3, &e), OK);
    for (int l = 0; l < s.layers; l++) {
        assert_int_equal(placement_count(&p, l, 0), place_coordinator_experts(&s, l, 3, false));
        assert_in_range(placement_count(&p, l, 1) - placement_count(&p, l, 2) + 1, 0, 2);
    }
    placement_free(&p);
    /* how the model is opened counts, not what the whole pipeline's spec says */
    for (int split = 0; split < 2; split++) {
        spec.cluster.tensor_parallel = !split;
        assert_int_equal(place_experts(&p, &spec, &s, split, 3, &e), OK);
        assert_int_equal(placement_count(&p, 0, 0), place_coordinator_experts(&s, 0, 3, split));
        placement_free(&p);
    }
    spec.cluster.tensor_parallel = false;
    spec.cluster.coordinator_share = 0.25;
    assert_int_equal(place_experts(&p, &spec, &s, false, 3, &e), OK);
    assert_int_equal(placement_count(&p, -1, 0), 64);
    placement_free(&p);
    spec.cluster.placement = PLACE_BLOCK, spec.cluster.coordinator_share = 0;
    assert_int_equal(place_experts(&p, &spec, &s, false, 3, &e), OK);
    assert_int_equal(placement_count(&p, -1, 0), 0);
    placement_free(&p);
    s.experts = 0; /* a dense model */
    spec.cluster.placement = PLACE_BALANCE;
    assert_int_equal(place_experts(&p, &spec, &s, false, 3, &e), OK);
    placement_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(balanced), cmocka_unit_test(as_the_spec_says)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
