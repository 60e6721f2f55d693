/* The doctor: what is wrong with a launch, from what was gathered. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/comm_internal.h"

enum { MOST = 8 };

struct world {
    struct comm_peer peers[MOST];
    int host_cores[MOST];
    struct doctor_view view;
};

/* `ranks` ranks on each of `hosts` hosts with `cores` processors, each rank bound to `mask` of them. */
static void build(struct world *w, int hosts, int ranks, int cores, int mask)
{
    memset(w, 0, sizeof(*w));
    w->view = (struct doctor_view){.size = hosts * ranks, .peers = w->peers, .host_cores = w->host_cores, .yields = true};
    for (int r = 0; r < hosts * ranks; r++) {
        w->peers[r] =
            (struct comm_peer){.rank = r, .pid = 100 + r, .cores = mask, .ranks_on_host = ranks, .host_rank = r - r % ranks};
        snprintf(w->peers[r].host, sizeof(w->peers[r].host), "node%d", r / ranks);
        w->host_cores[r] = cores;
    }
}

static char *lines(const struct world *w, int threads)
{
    struct str s = {0};

    doctor_lines(&w->view, threads, &s);
    return s.text ? s.text : str_dup("");
}

static int count(const char *text, const char *what)
{
    int n = 0;

    for (const char *at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

static void nothing_wrong(void **state)
{
    struct world w;

    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        build(&w, 2, 2, 8, 8);
        char *text = lines(&w, threads);
        assert_string_equal(text, "");
        free(text);
    }
    build(&w, 1, 1, 1, 1);
    char *text = lines(&w, 1);
    assert_string_equal(text, "");
    free(text);
}

static void too_many_threads(void **state)
{
    struct world w;

    (void)state;
    build(&w, 2, 2, 8, 8);
    char *text = lines(&w, 5);
    assert_int_equal(count(text, "\n"), 2); /* one line a host, not a rank */
    assert_non_null(strstr(text, "node0: 2 ranks x 5 threads on 8 processors: use cluster.threads: 4\n"));
    assert_non_null(strstr(text, "node1: "));
    free(text);
    build(&w, 1, 2, 8, 8);
    text = lines(&w, 2000000000); /* the product does not fit an int */
    assert_int_equal(count(text, "\n"), 1);
    free(text);
}

static void too_many_ranks(void **state)
{
    struct world w;

    (void)state;
    build(&w, 1, 5, 2, 2);
    char *text = lines(&w, 1);
    assert_int_equal(count(text, "\n"), 1);
    assert_non_null(strstr(text, "node0: 5 ranks share 2 processors"));
    free(text);
    w.view.yields = false;
    text = lines(&w, 1);
    assert_int_equal(count(text, "\n"), 2);
    assert_non_null(strstr(text, "OMPI_MCA_mpi_yield_when_idle=1"));
    free(text);
}

static void bound_too_narrowly(void **state)
{
    struct world w;

    (void)state;
    build(&w, 1, 2, 8, 1);
    char *text = lines(&w, 4);
    assert_int_equal(count(text, "\n"), 2);
    assert_non_null(strstr(text, "rank 0 (node0) has 4 threads but is bound to 1 processor:"));
    assert_non_null(strstr(text, "rank 1 (node0)"));
    assert_non_null(strstr(text, "PE=4"));
    free(text);
    text = lines(&w, 1);
    assert_string_equal(text, "");
    free(text);
}

static void recovery_hides_a_loss(void **state)
{
    struct world w;

    (void)state;
    build(&w, 1, 2, 8, 8);
    w.view.recovery = true;
    char *text = lines(&w, 1);
    assert_int_equal(count(text, "--enable-recovery"), 1);
    free(text);
    build(&w, 1, 1, 8, 8);
    w.view.recovery = true;
    text = lines(&w, 1);
    assert_string_equal(text, "");
    free(text);
}

/* A process is not mistaken for another: of another kernel, another container, an earlier holder of its PID. */
static void who_is_gone(void **state)
{
    struct process me, other;
    struct comm_peer peer = {0};
    pid_t child = fork();

    (void)state;
    if (child == 0) _exit(0);
    process_describe(&me, &peer);
    assert_int_equal(peer.pid, getpid());
    assert_true(peer.cores >= 1 && peer.memory_bytes > 0 && peer.host[0]);
    assert_int_equal(process_host_cores(&me, 1, &me), peer.cores);
    assert_false(process_gone(&me, &me, peer.pid));
    other = me;
    other.started--;
    assert_true(process_gone(&other, &me, peer.pid)); /* the PID was given out again */
    other.pid_namespace++;
    assert_false(process_gone(&other, &me, peer.pid)); /* cannot be known */
    other = me;
    other.boot[0] = other.boot[0] == 'x' ? 'y' : 'x';
    other.started--;
    assert_false(process_same_host(&other, &me));
    assert_false(process_gone(&other, &me, peer.pid));
    usleep(100000);
    assert_true(process_gone(&me, &me, child)); /* a zombie */
    waitpid(child, NULL, 0);
    assert_true(process_gone(&me, &me, child)); /* and nothing at all */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_wrong),      cmocka_unit_test(too_many_threads),      cmocka_unit_test(too_many_ranks),
        cmocka_unit_test(bound_too_narrowly), cmocka_unit_test(recovery_hides_a_loss), cmocka_unit_test(who_is_gone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
