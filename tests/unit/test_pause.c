/* The clock of everyone who waits for another rank. */
#include <unistd.h>

#include "../check.h"
#include "comm/exchange_internal.h"

static struct comm nobody;
static const struct exchange alone = {.comm = &nobody};

static void test_waiting_counts(void **state)
{
    struct pause p = pause_begin(&alone);
    bool looked = false;

    (void)state;
    while (p.now - p.start < 0.2) looked |= pause_step(&p, false);
    assert_true(looked);
}

/* A process that was stopped wakes up long after its deadline, and does not take the others for silent. */
static void test_absence_does_not_count(void **state)
{
    struct pause p = pause_begin(&alone);

    (void)state;
    usleep(1300 * 1000);
    assert_true(pause_step(&p, false));
    assert_true(p.now - p.start < 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waiting_counts),
        cmocka_unit_test(test_absence_does_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
