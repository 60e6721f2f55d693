/* The bench of the exchange: it checks what arrives, fills all its rows, and leaves the ranks able to go on.  With arguments a table of figures:
 *
 *     mpirun -n 2 test_exchange_bench LEAST MOST ROUNDS [apart]
 */
#include "../check.h"

#include <stdlib.h>
#include <string.h>

#include "comm/exchange_bench.h"

enum { MOST_ROWS = 256 };

static struct comm *world;
static struct exchange_bench_row row[MOST_ROWS];

static void run(const struct exchange_bench *b)
{
    struct err e = {0};
    status st = comm_rank(world) == 0 ? exchange_bench_lead(world, b, row, &e) : exchange_bench_follow(world, b, &e);

    if (st) fprintf(stderr, "rank %d: %s\n", comm_rank(world), e.text);
    assert_int_equal(st, OK);
}

static void every_row(void **state)
{
    struct exchange_bench b = {.least = 8, .most = 100000, .rounds = 3, .deadline = 20};
    int sizes = 14; /* 8 .. 65536 */

    (void)state;
    for (int apart = 0; apart < 2; apart++) {
        b.apart = apart;
        memset(row, 0, sizeof(row));
        assert_int_equal(exchange_bench_rows(&b, comm_size(world)), sizes * (comm_size(world) - 1));
        run(&b);
        for (int i = 0; comm_rank(world) == 0 && i < sizes * (comm_size(world) - 1); i++) {
            assert_int_equal(row[i].rank, 1 + i / sizes);
            assert_int_equal(row[i].bytes, 8 << i % sizes);
            assert_true(row[i].ours.least > 0 && row[i].raw.least > 0 && row[i].ratio > 0);
            assert_true(row[i].ours.least <= row[i].ours.median && row[i].ours.median <= row[i].ours.most);
            assert_true(row[i].raw.least <= row[i].raw.median && row[i].raw.median <= row[i].raw.most);
            assert_true(row[i].ratio == row[i].raw.median / row[i].ours.median);
            assert_int_equal(row[i].idle_us > 0, i % sizes == 0);
        }
    }
}

static void one_size(void **state)
{
    struct exchange_bench b = {.least = 1000, .most = 1000, .rounds = 1, .deadline = 20, .threads = 64};

    (void)state;
    assert_int_equal(exchange_bench_rows(&b, comm_size(world)), comm_size(world) - 1);
    run(&b);
}

static void table(char **argument)
{
    struct exchange_bench b = {.least = (size_t)atoll(argument[0]),
                               .most = (size_t)atoll(argument[1]),
                               .rounds = atoi(argument[2]),
                               .deadline = 20,
                               .apart = argument[3] != NULL};

    if (exchange_bench_rows(&b, comm_size(world)) > MOST_ROWS) return;
    run(&b);
    for (int i = 0; comm_rank(world) == 0 && i < exchange_bench_rows(&b, comm_size(world)); i++) {
        printf("rank %d %8zu bytes: ours %9.2f us, MPI %9.2f us, ratio %.2f", row[i].rank, row[i].bytes, row[i].ours.median,
               row[i].raw.median, row[i].ratio);
        if (row[i].idle_us > 0) printf("; after idling %.1f us", row[i].idle_us);
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_row), cmocka_unit_test(one_size)};
    struct err e = {0};
    int failed = 0;

    if (comm_open(&world, &argc, &argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return e.code;
    }
    if (argc > 3) table(argv + 1);
    else failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_close(world, OK);
    return failed;
}
