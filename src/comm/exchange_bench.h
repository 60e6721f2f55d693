/* The exchange against plain MPI: the same bytes out and back between the coordinator and one follower after the other, in the manner of the OSU
 * micro-benchmarks.
 *
 * ours  exchange_post() from the caller's memory, exchange_answer() of as many bytes from the follower's memory, exchange_wait()
 * raw   MPI_Irecv, MPI_Isend, MPI_Waitall on the one side, the same on the other
 * On both sides and on both ranks the receiver reads a word of every cache line that came, because a payload that is read where it was written is not
 * delivered before.  Bytes are checked in full before a size is timed, on both sides of both.  Figures are the median, the least and the most over the
 * rounds of the mean of a round; rounds of the two alternate, and so does which goes first.
 * A rank that is lost while plain MPI is timed is seen by mpirun alone.
 */
#ifndef COMM_EXCHANGE_BENCH_H
#define COMM_EXCHANGE_BENCH_H

#include "comm/exchange.h"

struct exchange_bench { /* the same on all ranks */
    size_t least, most; /* payload of the first and last size, doubled from one to the next */
    int rounds;         /* odd */
    double deadline;
    int threads;
    bool apart; /* as in exchange_limits */
};

struct exchange_bench_figure { /* us, there and back */
    double median, least, most;
};

struct exchange_bench_row {
    int rank; /* the follower */
    size_t bytes;
    struct exchange_bench_figure ours, raw;
    double ratio;   /* of the medians, raw / ours: above 1 the exchange is faster */
    double idle_us; /* first size only, else 0: the exchange, after both had nothing to do for a while */
};

/* How many rows there will be. */
int exchange_bench_rows(const struct exchange_bench *b, int ranks);
/* Coordinator: fills `row`.  ERR_FORMAT if bytes arrive wrong; ERR_LIMIT, ERR_RANK, STOPPED.  No other exchange may be open. */
status exchange_bench_lead(struct comm *c, const struct exchange_bench *b, struct exchange_bench_row *row, struct err *e);
/* Follower, at the same time. */
status exchange_bench_follow(struct comm *c, const struct exchange_bench *b, struct err *e);

#endif
