/* Not a test by itself: a job of a coordinator and followers in which one rank fails on purpose, for tests/cli/lost_rank.bats.
 *
 *     lost_rank [VICTIM HOW [BUSY]]
 *     HOW    kill, segv, parent (SIGKILL to the process that mpirun knows), stop (SIGSTOP), exit (code 0, in the middle of a job), hang (no answer), usr1, term: what the victim does
 *            in its third request, late: SIGSTOP at the end of the job; the coordinator, if it is the victim, instead of posting it.  none: nothing, the job ends.
 *     BUSY   seconds that the coordinator computes alone after posting (it pings, but does not look at its followers then)
 * It does what launch.c does: one line, then comm_abort().  Alone it says so and ends. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/exchange.h"

enum { BYTES = 100000, ROUNDS = 6, KIND_WORK = 1, KIND_STOP };

static void fail_now(const char *how)
{
    if (strcmp(how, "kill") == 0) raise(SIGKILL);
    if (strcmp(how, "parent") == 0) kill(getppid(), SIGKILL), clock_sleep(60);
    if (strcmp(how, "segv") == 0) {
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
    }
    if (strcmp(how, "stop") == 0) raise(SIGSTOP);
    if (strcmp(how, "exit") == 0) _exit(0);
    if (strcmp(how, "hang") == 0) clock_sleep(60);
    if (strcmp(how, "usr1") == 0) kill(getppid(), SIGUSR1);
    if (strcmp(how, "term") == 0) kill(getppid(), SIGTERM);
}

/* Says so first: by then all ranks are at work, and whoever wants to disturb them need not guess when.  SIGUSR1 cuts it short. */
static void computes(struct exchange *x, double seconds)
{
    printf("computes\n");
    fflush(stdout);
    for (double start = clock_now(); clock_now() - start < seconds && stop_asked() != STOP_SOON; clock_sleep(0.01))
        exchange_ping(x);
}

static status lead(struct comm *c, struct exchange *x, const char *how, double busy, struct err *e)
{
    static char payload[BYTES];
    struct request r = {.kind = KIND_WORK, .rows = 1, .what = "experts"};
    status st = OK;
    int soon = 0;

    for (int round = 0; round < ROUNDS && !st; round++) {
        r.layer = round;
        if (how && round == 2) fail_now(how);
        for (int rank = 1; rank < comm_size(c); rank++) exchange_post(x, round % 2, rank, &r, payload, BYTES, NULL, 0);
        if (round == 2 && busy > 0) computes(x, busy);
        st = exchange_wait(x, round % 2, e);
        if (st == ERR_RANK) return st;
        clock_sleep(0.05);
        soon += stop_asked() == STOP_SOON;
    }
    r = (struct request){.kind = KIND_STOP, .layer = -1, .what = "stop"};
    for (int rank = 1; rank < comm_size(c); rank++) exchange_post(x, 0, rank, &r, NULL, 0, NULL, 0);
    if (exchange_wait(x, 0, e)) return e->code; /* STOPPED as well: the followers were told all the same */
    printf("done: %d rounds%s\n", ROUNDS, soon ? ", asked to stop soon" : "");
    return OK;
}

static status follow(struct exchange *x, const char *how, struct err *e)
{
    static char answer[BYTES];
    const void *payload;
    struct request r;

    for (;;) {
        if (exchange_next(x, &r, &payload, e)) return e->code;
        if (how && r.kind == KIND_WORK && r.layer == 2) fail_now(how);
        exchange_answer(x, &r, OK, r.rows, answer, r.kind == KIND_STOP ? 0 : BYTES);
        if (r.kind == KIND_STOP) return OK;
    }
}

int main(int argc, char **argv)
{
    struct exchange_limits limits = {.request_bytes = BYTES, .answer_bytes = BYTES, .deadline = argc > 4 ? atof(argv[4]) : 10};
    struct err e = {0};
    struct exchange *x;
    struct arena *a;
    struct comm *c;
    status st;

    stop_install();
    if (comm_open(&c, &argc, &argv, &e)) {
        fprintf(stderr, "lost_rank: %s\n", e.text);
        return e.code;
    }
    bool coordinator = comm_rank(c) == 0;
    const char *how = argc > 2 && atoi(argv[1]) == comm_rank(c) ? argv[2] : NULL;
    if (comm_size(c) == 1) {
        if (argc == 1) printf("lost_rank: run by lost_rank.bats with several ranks\n");
        comm_close(c, OK);
        return 0;
    }
    if (arena_open(&a, "exchange", exchange_cost(coordinator, comm_size(c), limits), &e) || exchange_open(&x, c, limits, a, &e)) {
        fprintf(stderr, "lost_rank: %s\n", e.text);
        return e.code;
    }
    st = coordinator ? lead(c, x, how, argc > 3 ? atof(argv[3]) : 0, &e) : follow(x, how, &e);
    if (st && (coordinator || st == ERR_RANK)) fprintf(stderr, "lost_rank: %s\n", e.text);
    if (st == ERR_RANK) comm_abort(c, st);
    exchange_close(x);
    arena_close(a);
    if (how && strcmp(how, "late") == 0) raise(SIGSTOP);
    comm_close(c, st);
    return st;
}
