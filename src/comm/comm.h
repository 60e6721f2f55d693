/* Ranks.  This directory is the one door to MPI.
 *
 * World: rank 0 is the coordinator, all others follow it.  With one rank there is nobody to talk to and no call here does anything;
 * nothing else in the program asks whether it runs under mpirun.
 * Collectives: comm_open(), and at start-up comm_broadcast() (the spec) and comm_agree() (all have read it, all have opened what they need);
 *     comm_close() at the very end, after every follower has answered "stop", and with a deadline.  A rank that dies inside one of
 *     those at start-up is noticed by mpirun alone.  Everything between is addressed point-to-point messages (exchange.h) and calls
 *     no collective, because a collective hangs for ever when a rank has died.
 * Threads: only the thread that opened it (MPI_THREAD_FUNNELED).
 */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct comm;

struct comm_peer { /* gathered at start: every rank knows of every rank */
    int rank;
    long pid;
    char host[64];
    int cores;            /* processors this rank may run on (its affinity mask) */
    int64_t memory_bytes; /* available on its host at start */
    int ranks_on_host;
    int host_rank; /* the lowest rank on the same host: the same kernel, whatever name it goes by */
};

/* Collective.  A program that was not started by mpirun or srun is one rank. */
status comm_open(struct comm **out, int *argc, char ***argv, struct err *e);
/* Collective, at start-up: as many ranks as this (or all, if there are fewer) will post requests (exchange.h), each in a channel of its own, and one channel is for rank 0 to ask them. */
status comm_share(struct comm *c, int coordinators, struct err *e);
/* An orderly end: collective, only after the followers were told to stop.  A rank that does not come within 10 s is not waited for: the coordinator
 * says so, and this process exits with `verdict`, or with ERR_RANK in place of OK. */
void comm_close(struct comm *c, status verdict);
/* The end after a rank was lost: no collective, ends every rank of the job with exit code `code`.  Does not return. */
_Noreturn void comm_abort(struct comm *c, int code);

int comm_rank(const struct comm *c);
int comm_size(const struct comm *c);
const struct comm_peer *comm_peer(const struct comm *c, int rank);

/* Collective: the coordinator's bytes on every rank; *bytes is malloc'ed on the others, untouched on the coordinator. */
status comm_broadcast(struct comm *c, uint8_t **bytes, size_t *n, struct err *e);
/* Collective: every rank returns the status of the lowest rank that has one, with its text "rank R (HOST): ...". */
status comm_agree(struct comm *c, status mine, struct err *e);

/* What is wrong with this launch, as lines for a person (empty: nothing): more ranks than processors without yield, threads x ranks
 * over the cores of a host, ...  Pure: on what was gathered.  `threads` per rank. */
struct str;
void comm_doctor(const struct comm *c, int threads, struct str *warnings);

/* Is the process of this rank known to be gone?  Only known for ranks on this host; false otherwise. */
bool comm_peer_gone(const struct comm *c, int rank);

#endif
