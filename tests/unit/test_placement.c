/* Placement: hand tables, and what must hold for every shape. */
#include <string.h>

#include "../check.h"
#include "moe/placement.h"

static void test_tables(void **state)
{
    static const struct {
        enum placement_kind kind;
        int experts, ranks;
        bool too;
        int rank_of[2][8]; /* two layers */
    } cases[] = {
        {PLACEMENT_BLOCK, 4, 1, false, {{0, 0, 0, 0}, {0, 0, 0, 0}}},
        {PLACEMENT_BLOCK, 4, 3, false, {{1, 1, 2, 2}, {1, 1, 2, 2}}},
        {PLACEMENT_BLOCK, 7, 3, true, {{0, 0, 0, 1, 1, 2, 2}, {0, 0, 0, 1, 1, 2, 2}}},
        {PLACEMENT_BLOCK, 2, 5, false, {{1, 2}, {1, 2}}},
        {PLACEMENT_ROUND_ROBIN, 4, 3, false, {{1, 2, 1, 2}, {2, 1, 2, 1}}},
        {PLACEMENT_ROUND_ROBIN, 4, 3, true, {{0, 1, 2, 0}, {1, 2, 0, 1}}},
        {PLACEMENT_ROUND_ROBIN, 3, 1, true, {{0, 0, 0}, {0, 0, 0}}},
    };

    (void)state;
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct placement p;
        struct err e = {0};

        assert_int_equal(placement_make(&p, cases[c].kind, 2, cases[c].experts, cases[c].ranks, cases[c].too, &e), OK);
        for (int l = 0; l < 2; l++) {
            for (int i = 0; i < cases[c].experts; i++) assert_int_equal(placement_rank(&p, l, i), cases[c].rank_of[l][i]);
        }
        placement_free(&p);
    }
}

static void test_split(void **state)
{
    static const int mine[] = {0, 1, 3, 7};

    (void)state;
    for (int ranks = 1; ranks <= 5; ranks++) {
        struct placement p;
        struct err e = {0};

        assert_int_equal(placement_split(&p, mine, 4, 7, ranks, &e), OK);
        for (int l = 0; l < 4; l++) {
            assert_int_equal(placement_count(&p, l, 0), ranks == 1 ? 7 : mine[l]);
            for (int r = 1; r < ranks; r++)
                assert_in_range(placement_count(&p, l, r), (7 - mine[l]) / (ranks - 1), (7 - mine[l] + ranks - 2) / (ranks - 1));
        }
        placement_free(&p);
    }
    /* spread: 3 of 7 on rank 0 */
    struct placement p;
    struct err e = {0};
    const int expected[] = {1, 1, 0, 1, 0, 1, 0};

    assert_int_equal(placement_split(&p, mine + 2, 1, 7, 2, &e), OK);
    for (int i = 0; i < 7; i++) assert_int_equal(placement_rank(&p, 0, i), expected[i]);
    placement_free(&p);
}

static void test_properties(void **state)
{
    static const int sizes[] = {0, 1, 2, 5, 16, 63, 64, 65, 70};

    (void)state;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (int ranks = 1; ranks <= 9; ranks++) {
            for (int variant = 0; variant < 4; variant++) {
                bool too = variant & 1;
                int first = too || ranks == 1 ? 0 : 1, holders = ranks - first, total = 0;
                struct placement p;
                struct err e = {0};

                assert_int_equal(
                    placement_make(&p, variant & 2 ? PLACEMENT_ROUND_ROBIN : PLACEMENT_BLOCK, 3, sizes[s], ranks, too, &e), OK);
                for (int r = 0; r < ranks; r++) {
                    int in_all = 0;

                    for (int l = 0; l < 3; l++) {
                        int n = placement_count(&p, l, r);

                        in_all += n;
                        if (r < first) assert_int_equal(n, 0);
                        else assert_in_range(n, sizes[s] / holders, (sizes[s] + holders - 1) / holders);
                    }
                    assert_int_equal(placement_count(&p, -1, r), in_all);
                    total += in_all;
                }
                assert_int_equal(total, 3 * sizes[s]); /* every expert lives exactly once */
                placement_free(&p);
            }
        }
    }
}

static void test_set(void **state)
{
    int table[6] = {0, 1, 2, 2, 1, 0};
    struct placement p;
    struct err e = {0};

    (void)state;
    assert_int_equal(placement_set(&p, table, 2, 3, 3, "p.yaml", &e), OK);
    table[0] = 2; /* it is a copy */
    assert_int_equal(placement_rank(&p, 0, 0), 0);
    assert_int_equal(placement_rank(&p, 1, 0), 2);
    placement_free(&p);

    table[4] = 3;
    assert_int_equal(placement_set(&p, table, 2, 3, 3, "p.yaml", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "p.yaml: layer 1, expert 1"));
    assert_non_null(strstr(e.text, "found 3"));
    table[4] = -1;
    assert_int_equal(placement_set(&p, table, 2, 3, 3, "p.yaml", &e), ERR_SPEC);
    assert_int_equal(placement_make(&p, PLACEMENT_BLOCK, 1, 1, 40000, true, &e), ERR_LIMIT); /* ranks are kept in 16 bits */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_set),
    };

    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
