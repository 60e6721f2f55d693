/* Ranks: what each knows of the others, the start-up collectives, a start without mpirun. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm_internal.h"

static struct comm *world;

static void every_rank_knows_every_rank(void **state)
{
    int size = comm_size(world), rank = comm_rank(world);

    (void)state;
    assert_true(rank >= 0 && rank < size);
    assert_int_equal(comm_peer(world, rank)->pid, getpid());
    for (int r = 0; r < size; r++) {
        const struct comm_peer *p = comm_peer(world, r);

        assert_int_equal(p->rank, r);
        assert_true(p->host[0] && p->cores >= 1 && p->memory_bytes > 0);
        assert_int_equal(p->ranks_on_host, size); /* the tests run on one host */
        assert_false(comm_peer_gone(world, r));
        for (int q = 0; q < r; q++) assert_int_not_equal(p->pid, comm_peer(world, q)->pid);
    }
}

static void launched_size_is_the_size(void **state)
{
    const char *launched = getenv("OMPI_COMM_WORLD_SIZE");

    (void)state;
    assert_int_equal(comm_size(world), launched ? atoi(launched) : 1);
}

static void broadcast(void **state)
{
    static const size_t lengths[] = {0, 1, 999, 1000, 1001, 2000, 123457};
    size_t whole = world->chunk;

    (void)state;
    world->chunk = 1000; /* as if it were more than MPI can count */
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        bool coordinator = comm_rank(world) == 0;
        uint8_t *bytes = coordinator ? malloc(lengths[i] + 1) : NULL, *mine = bytes;
        size_t n = coordinator ? lengths[i] : 12345;
        struct err e = {0};

        for (size_t k = 0; coordinator && k < n; k++) bytes[k] = (uint8_t)(k * 7 + i);
        assert_int_equal(comm_broadcast(world, &bytes, &n, &e), OK);
        assert_int_equal(n, lengths[i]);
        if (coordinator) assert_ptr_equal(bytes, mine);
        assert_non_null(bytes);
        for (size_t k = 0; k < n; k++) assert_int_equal(bytes[k], (uint8_t)(k * 7 + i));
        free(bytes);
    }
    world->chunk = whole;
}

static void agree_on_nothing_wrong(void **state)
{
    struct err e = {.text = "untouched"};

    (void)state;
    assert_int_equal(comm_agree(world, OK, &e), OK);
    assert_string_equal(e.text, "untouched");
}

/* Whoever fails, and however many: every rank leaves with the same status and text, of the lowest of them. */
static void agree_on_the_lowest(void **state)
{
    int size = comm_size(world), rank = comm_rank(world);

    (void)state;
    for (int first = 0; first < size; first++) {
        struct err e = {0};
        status mine = OK;
        char expected[256];

        if (rank == first) mine = err_set(&e, ERR_IO, "no file on %d", rank);
        else if (rank > first) mine = err_set(&e, ERR_LIMIT, "too much on %d", rank);
        assert_int_equal(comm_agree(world, mine, &e), ERR_IO);
        if (size == 1) strcpy(expected, "no file on 0");
        else snprintf(expected, sizeof(expected), "rank %d (%s): no file on %d", first, comm_peer(world, first)->host, first);
        assert_string_equal(e.text, expected);
        assert_int_equal(e.code, ERR_IO);
    }
}

static void doctor_sees_this_launch(void **state)
{
    struct str s = {0};

    (void)state;
    comm_doctor(world, 100000, &s);
    assert_non_null(s.text);
    assert_non_null(strstr(s.text, comm_peer(world, 0)->host));
    assert_int_equal(s.text[s.length - 1], '\n');
    str_free(&s);
}

/* A program that nobody launched is one rank, at once. */
static void alone(void **state)
{
    struct comm *c;
    struct err e = {0};
    uint8_t byte = 7, *bytes = &byte;
    size_t n = 1;
    int argc = 0;
    char **argv = NULL;
    clock_t start = clock();

    (void)state;
    assert_int_equal(comm_open(&c, &argc, &argv, &e), OK);
    assert_true(clock() - start < CLOCKS_PER_SEC / 5); /* processor time: MPI was not started */
    assert_int_equal(comm_size(c), 1);
    assert_int_equal(comm_rank(c), 0);
    assert_int_equal(comm_peer(c, 0)->pid, getpid());
    assert_int_equal(comm_broadcast(c, &bytes, &n, &e), OK);
    assert_ptr_equal(bytes, &byte);
    assert_int_equal(comm_agree(c, ERR_SPEC, &e), ERR_SPEC);
    comm_close(c, OK);
    comm_close(NULL, OK);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_knows_every_rank),
        cmocka_unit_test(launched_size_is_the_size),
        cmocka_unit_test(broadcast),
        cmocka_unit_test(agree_on_nothing_wrong),
        cmocka_unit_test(agree_on_the_lowest),
        cmocka_unit_test(doctor_sees_this_launch),
        cmocka_unit_test(alone), /* the last: only without mpirun */
    };
    size_t n = sizeof(tests) / sizeof(tests[0]) - (getenv("OMPI_COMM_WORLD_SIZE") != NULL);
    struct err e = {0};

    if (comm_open(&world, &argc, &argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return e.code;
    }
    int failed = _cmocka_run_group_tests("comm", tests, n, NULL, NULL);
    comm_close(world, OK);
    return failed;
}
