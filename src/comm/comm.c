#include "comm/comm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm_internal.h"
#include "comm/mailbox.h"

enum { CLOSE_SECONDS = 10 };

struct card { /* what a rank tells of itself at start */
    struct comm_peer peer;
    struct process process;
};

static bool variable_is_on(const char *name)
{
    const char *value = getenv(name);

    return value && (strcmp(value, "1") == 0 || strcmp(value, "true") == 0);
}

/* The rank that mpirun or srun gave to this process, and whether it is one of several; false if none of them started it. */
static bool launched(int *rank, bool *several)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE"), *mine = getenv("OMPI_COMM_WORLD_RANK");

    if (!mine) mine = getenv("PMIX_RANK");
    if (!mine) mine = getenv("PMI_RANK");
    if (!size) size = getenv("SLURM_STEP_NUM_TASKS");
    *rank = mine ? atoi(mine) : 0;
    *several = size ? atoi(size) > 1 : mine != NULL;
    /* srun without --mpi gives only the size: MPI_Init then says what is missing, instead of n programs that each think they are alone. */
    return mine || (size && *several);
}

static status fail(struct err *e, const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;

    MPI_Error_string(code, text, &n);
    return err_set(e, ERR_RANK, "MPI: %s: %s", what, text);
}

static status start_mpi(struct comm *c, int *argc, char ***argv, struct err *e)
{
    int level, code = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);

    if (code) return fail(e, "MPI_Init_thread", code);
    c->started = true;
    if (level < MPI_THREAD_FUNNELED) return err_set(e, ERR_RANK, "MPI: this library allows no threads (MPI_THREAD_FUNNELED)");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if ((code = MPI_Comm_dup(MPI_COMM_WORLD, &c->world))) return fail(e, "MPI_Comm_dup", code);
    MPI_Comm_set_name(c->world, "factorllm");
    MPI_Comm_set_errhandler(c->world, MPI_ERRORS_RETURN);
    MPI_Comm_rank(c->world, &c->rank);
    MPI_Comm_size(c->world, &c->size);
    return OK;
}

static status gather(struct comm *c, struct err *e)
{
    struct card *all = calloc((size_t)c->size, sizeof(*all)), mine;
    int code = 0;

    c->peers = calloc((size_t)c->size, sizeof(*c->peers));
    c->processes = calloc((size_t)c->size, sizeof(*c->processes));
    c->host_cores = calloc((size_t)c->size, sizeof(*c->host_cores));
    c->ping = calloc((size_t)c->size, sizeof(*c->ping));
    c->by_mail = calloc((size_t)c->size, sizeof(*c->by_mail));
    BUG_ON(!all || !c->peers || !c->processes || !c->host_cores || !c->ping || !c->by_mail);
    memset(&mine, 0, sizeof(mine));
    mine.peer.rank = c->rank;
    process_describe(&mine.process, &mine.peer);
    if (c->started) code = MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, all, sizeof(mine), MPI_BYTE, c->world);
    else all[0] = mine;
    for (int r = 0; r < c->size; r++) {
        c->peers[r] = all[r].peer;
        c->processes[r] = all[r].process;
        c->ping[r] = MPI_REQUEST_NULL;
    }
    free(all);
    for (int r = 0; r < c->size; r++) {
        c->peers[r].host_rank = r;
        for (int q = c->size - 1; q >= 0; q--) {
            if (q != r && !process_same_host(&c->processes[r], &c->processes[q])) continue;
            c->peers[r].ranks_on_host++;
            if (q < r) c->peers[r].host_rank = q;
        }
        c->host_cores[r] = process_host_cores(c->processes, c->size, &c->processes[r]);
        if (c->host_cores[r] < 1) c->host_cores[r] = c->peers[r].cores;
    }
    return code ? fail(e, "MPI_Allgather", code) : OK;
}

static void free_comm(struct comm *c)
{
    office_close(c);
    free(c->by_mail);
    free(c->peers);
    free(c->processes);
    free(c->host_cores);
    free(c->ping);
    free(c);
}

status comm_open(struct comm **out, int *argc, char ***argv, struct err *e)
{
    struct comm *c = calloc(1, sizeof(*c));
    bool several;
    int rank;

    *out = NULL;
    BUG_ON(!c);
    *c = (struct comm){.size = 1, .world = MPI_COMM_NULL, .chunk = COMM_CHUNK, .channels = 1, .region = {.file = -1}};
    c->yields = variable_is_on("OMPI_MCA_mpi_yield_when_idle") || variable_is_on("OMPI_MCA_mpi_oversubscribe");
    c->recovery = variable_is_on("OMPI_MCA_orte_enable_recovery");
    if (launched(&rank, &several)) {
        if (several) c->closed = watch_fork(rank);
        if (start_mpi(c, argc, argv, e)) {
            free_comm(c);
            return e->code;
        }
    }
    if (gather(c, e) || office_open(c, e)) {
        free_comm(c);
        return e->code;
    }
    *out = c;
    return OK;
}

/* What the end needs when another rank does not come to it.  Of this process, because a signal's handler gets nothing else. */
static struct {
    int rank;
    status verdict;
} leaving;

static void leave(int number)
{
    static const char text[] = "factorllm: the job is done, but a rank did not come to its end and was not waited for\n";

    (void)number;
    if (leaving.rank == 0 && write(STDERR_FILENO, text, sizeof(text) - 1) < 0) _exit(ERR_RANK);
    _exit(leaving.verdict);
}

void comm_close(struct comm *c, status verdict)
{
    if (!c) return;
    if (c->closed) *c->closed = true;
    if (c->started && !c->dirty) {
        leaving.rank = c->rank;
        leaving.verdict = verdict ? verdict : ERR_RANK; /* mpirun makes 1 of a 0 without MPI_Finalize */
        signal(SIGALRM, leave);
        alarm(CLOSE_SECONDS);
        /* Pings that nobody fetched are done with: they are small, and MPI has taken them. */
        MPI_Waitall(c->size, c->ping, MPI_STATUSES_IGNORE);
        MPI_Comm_free(&c->world);
        MPI_Finalize();
        alarm(0);
    }
    free_comm(c);
}

/* What was found out with Open MPI 4.1.4, mpirun -n 3, one node (tests/cli/lost_rank.bats keeps it so):
 *   a rank is killed, nothing between it and mpirun: mpirun has its exit code, 128 + signal, before anyone can do anything; MPI_Abort(6)
 *       and _exit(6) of the coordinator come too late, it returns 137 (139 for a segmentation fault, 1 for _exit(0)).  The
 *       coordinator does see the zombie within its next look, and there is 1 s between mpirun's SIGTERM and its SIGKILL.
 *   the same below the parent of watch.c: MPI_Abort(6) decides, 6, all gone after 0.3 to 1.3 s.  _exit(6) gives 6, too, 1 s later.
 *   a rank is stopped (SIGSTOP): MPI_Abort(6) gives 6; mpirun continues the stopped one and kills it.
 *   the coordinator is killed: the same as for a rank, with the first follower that calls MPI_Abort.
 *   mpirun --enable-recovery: MPI_Abort ends only its caller, the others run on (a stopped one for ever), and mpirun returns 0
 *       whatever the coordinator does.  comm_doctor() warns, and here the ranks on this host are killed by hand.
 * So it is MPI_Abort.  Its own lines on stderr ("MPI_ABORT was invoked ...") cannot be turned off. */
void comm_abort(struct comm *c, int code)
{
    fflush(NULL);
    if (c->recovery) {
        for (int r = 0; r < c->size; r++)
            if (r != c->rank && process_same_host(&c->processes[r], &c->processes[c->rank]) && !comm_peer_gone(c, r))
                kill((pid_t)c->peers[r].pid, SIGKILL);
    }
    if (c->started && c->size > 1) MPI_Abort(c->world, code);
    _exit(code);
}

int comm_rank(const struct comm *c)
{
    return c->rank;
}

int comm_size(const struct comm *c)
{
    return c->size;
}

const struct comm_peer *comm_peer(const struct comm *c, int rank)
{
    BUG_ON(rank < 0 || rank >= c->size);
    return &c->peers[rank];
}

status comm_broadcast(struct comm *c, uint8_t **bytes, size_t *n, struct err *e)
{
    uint64_t length = c->rank == 0 ? *n : 0;
    status st = OK;

    if (c->size == 1) return OK;
    int code = MPI_Bcast(&length, 1, MPI_UINT64_T, 0, c->world);

    if (code) return fail(e, "MPI_Bcast", code);
    if (c->rank != 0) {
        *n = (size_t)length;
        *bytes = malloc(length > 0 ? (size_t)length : 1);
        if (!*bytes) st = err_set(e, ERR_LIMIT, "no memory for %llu bytes from the coordinator", (unsigned long long)length);
    }
    st = comm_agree(c, st, e);
    for (size_t at = 0; !st && at < length; at += c->chunk) {
        size_t part = length - at < c->chunk ? (size_t)length - at : c->chunk;

        code = MPI_Bcast(*bytes + at, (int)part, MPI_BYTE, 0, c->world);
        if (code) st = fail(e, "MPI_Bcast", code);
    }
    if (st && c->rank != 0) {
        free(*bytes);
        *bytes = NULL;
        *n = 0;
    }
    return st;
}

status comm_agree(struct comm *c, status mine, struct err *e)
{
    int first = mine ? c->rank : c->size, lowest = first;
    struct err said = {0};

    if (c->size == 1) return mine;
    int code = MPI_Allreduce(&first, &lowest, 1, MPI_INT, MPI_MIN, c->world);

    if (code) return fail(e, "MPI_Allreduce", code);
    if (lowest == c->size) return OK;
    if (c->rank == lowest) err_set(&said, mine, "rank %d (%s): %s", c->rank, c->peers[c->rank].host, e->text);
    code = MPI_Bcast(&said, sizeof(said), MPI_BYTE, lowest, c->world);
    if (code) return fail(e, "MPI_Bcast", code);
    *e = said;
    return said.code;
}

void comm_doctor(const struct comm *c, int threads, struct str *warnings)
{
    struct doctor_view view = {c->size, c->peers, c->host_cores, c->yields, c->recovery};

    doctor_lines(&view, threads, warnings);
}

bool comm_peer_gone(const struct comm *c, int rank)
{
    BUG_ON(rank < 0 || rank >= c->size);
    return process_gone(&c->processes[rank], &c->processes[c->rank], c->peers[rank].pid);
}
