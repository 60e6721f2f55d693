/* What the files of this directory know of each other; nobody else includes it but their tests. */
#ifndef COMM_COMM_INTERNAL_H
#define COMM_COMM_INTERNAL_H

#include <sys/types.h>

#include <mpi.h>

#include "base/str.h"
#include "comm/comm.h"
#include "comm/region.h"

enum { COMM_CHUNK = 1 << 30, COMM_CHANNELS = 66 };

struct comm {
    int rank, size;
    bool started; /* MPI_Init was called */
    bool dirty;   /* requests were given up that MPI may still move: no call of MPI any more but MPI_Abort */
    MPI_Comm world;
    struct comm_peer *peers;
    struct process *processes;
    int *host_cores;                  /* per rank: processors that the ranks on its host may use together */
    uint64_t sequence[COMM_CHANNELS]; /* of requests, per channel: posted, or taken */
    size_t chunk;                     /* a longer piece of payload travels as several messages: MPI counts in int */
    MPI_Request *ping;
    bool yields, recovery;
    bool *closed; /* see watch_fork(); NULL when nobody watches */
    /* Ranks that share memory with rank 0, itself included (mailbox.h). */
    struct region region;
    int channels;    /* that there are mailboxes for */
    int *by_mail;    /* [rank] */
    char apart[160]; /* why some do not though they are on its host, or empty */
    /* Tests: as if the memory for payloads could not be had, or the followers could not open it. */
    bool no_region, no_attach;
};

/* process.c: which process a rank is, beyond its number: its kernel, its PID namespace and when it started, so that neither a container
 * nor a PID that was given out again is mistaken for it. */
struct process {
    char boot[40];
    uint64_t pid_namespace, started;
    uint64_t processors[16]; /* affinity mask */
};

void process_describe(struct process *p, struct comm_peer *peer);
bool process_same_host(const struct process *a, const struct process *b);
bool process_gone(const struct process *p, const struct process *mine, long pid);
/* Processors set in any of the masks of the n processes on p's host. */
int process_host_cores(const struct process *all, int n, const struct process *p);

/* watch.c: between mpirun and the rank a process that does nothing but outlive it.
 *
 * Open MPI 4.1.4 ends a job at once when a rank is killed: it returns 128 + the signal, and nobody names the rank and what it was doing.  It
 * does not look at grandchildren.  So the process that mpirun started forks before MPI_Init, the child is the rank, and when the
 * child is killed the parent lives on for a moment, in which the coordinator sees the loss and ends the job with its own line
 * and ERR_RANK.  If nobody did by then, the parent prints the line and exits with ERR_RANK.  An exit code is passed on.
 * Returns in the child only: a flag that the parent sees, to be set when the rank ends in order; exit(0) without it is a loss, too. */
bool *watch_fork(int rank);

/* doctor.c */
struct doctor_view {
    int size;
    const struct comm_peer *peers;
    const int *host_cores;
    bool yields, recovery;
};
void doctor_lines(const struct doctor_view *v, int threads, struct str *warnings);

#endif
