/* cmocka with what it needs in front of it, in the order it needs it. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
/* clang-format on */

/* Ends a test whose input or tool is not on this machine: one line with the reason, which scripts/run_tests.sh repeats, and counted as
 * skipped, not as passed.  What cannot apply (so many ranks, this program) is left out of the list of tests instead. */
#define skip_because(...)                                                                                                        \
    do {                                                                                                                         \
        print_message("# skipped: " __VA_ARGS__);                                                                                \
        print_message("\n");                                                                                                     \
        skip();                                                                                                                  \
    } while (0)

#endif
