/* As much of cmocka as tests use that run on the emulated machine, where there are no shared libraries. */
#ifndef TESTS_EMULATE_CMOCKA_H
#define TESTS_EMULATE_CMOCKA_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
    void *state;
};

#define fail_msg(...)         (printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), printf("\n"), exit(1))
#define assert_true(what)     ((what) ? (void)0 : fail_msg("not true: %s", #what))
#define assert_false(what)    assert_true(!(what))
#define assert_non_null(what) assert_true((what) != NULL)
#define assert_null(what)     assert_true((what) == NULL)
#define assert_int_equal(a, b)                                                                                                   \
    ((intmax_t)(a) == (intmax_t)(b) ? (void)0 : fail_msg("%s is %jd, not %jd", #a, (intmax_t)(a), (intmax_t)(b)))
#define assert_memory_equal(a, b, n) assert_true(!memcmp(a, b, n))
#define assert_string_equal(a, b)    assert_true(!strcmp(a, b))
#define print_message(...)           printf(__VA_ARGS__)
#define skip()                       return

#define cmocka_unit_test(function) cmocka_unit_test_prestate(function, NULL)
#define cmocka_unit_test_prestate(function, state)                                                                               \
    {                                                                                                                            \
#function, function, state                                                                                               \
    }
#define cmocka_run_group_tests(tests, setup, teardown) run_group(tests, sizeof(tests) / sizeof(*(tests)))

static inline int run_group(const struct CMUnitTest *tests, size_t n)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < n; i++) {
        void *state = tests[i].state;

        printf("%s\n", tests[i].name);
        tests[i].run(&state);
    }
    printf("%zu tests passed\n", n);
    return 0;
}

#endif
