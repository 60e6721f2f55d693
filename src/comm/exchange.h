/* Requests from the coordinator to its followers and their answers: addressed point-to-point messages with a sequence number and a
 * deadline.  Knows bytes and rows, nothing of models.
 *
 * Coordinator, per slot (micro-batch): exchange_post() to any number of ranks, then exchange_wait() for all their answers; two slots may be
 * in flight at once.  Follower: exchange_next(), exchange_answer(), in a loop.
 * Deadline: the coordinator gives a rank up that has not answered for `deadline` seconds (or the request's own), or whose process is gone; a follower gives
 *     the coordinator up that has sent nothing, not even a ping, for `deadline` seconds, or whose process is gone.  ERR_RANK: one line that
 *     names rank, host, what it was doing (the request's `what`, its layer) and how long it was waited for.
 * Pings: exchange_ping() must be called now and then by a coordinator that works long alone; it sends at most one ping per deadline / 8.
 *     Followers swallow pings in exchange_next().  While a follower computes long it need not do anything: the coordinator's
 *     deadline counts from the post.
 * Waiting: looks all the time for a moment, then sleeps: ranks of one host wake each other, others look with a growing sleep (up to 1 ms), so that
 *     an idle rank does not burn a core.
 * Memory: what payloads need is taken at open, from `limits`; nothing later.  Ranks that share memory with the coordinator read a payload where the
 *     sender wrote it; a sender that asks for the place first (exchange_room(), exchange_answer_room()) copies nothing at all.
 * Several coordinators: each has an exchange of its own in a channel of its own (comm_share()), which all who answer open, too; for one exchange its asker is
 *     "the coordinator" of this file.  Who waits for answers serves the others meanwhile (exchange_serve()), so that two that ask each other both
 *     get their answer.  That rank 0 lives is watched in channel 0.
 * Signals: STOP_NOW ends a wait with STOPPED, unless a peer on this host is gone: then ERR_RANK, because then the signal is mpirun cleaning up.
 */
#ifndef COMM_EXCHANGE_H
#define COMM_EXCHANGE_H

#include <stdint.h>

#include "base/arena.h"
#include "comm/comm.h"

enum { EXCHANGE_SLOTS = 2 };

struct exchange;

struct exchange_limits {
    size_t request_bytes; /* largest payload of a request */
    size_t answer_bytes;  /* largest payload of an answer */
    double deadline;      /* seconds */
    int threads;          /* that this rank computes with, 0: one; a rank that has no processor of its own waits otherwise */
    bool apart;           /* no memory is shared, also on one host; the same on all ranks */
    /* With several coordinators: who posts here, in which channel (0: rank 0), and how many ranks answer, 0: all.  The same on all ranks that open it. */
    int asker, channel, ranks;
};

/* Payloads may also be so large. */
static inline void exchange_raise(struct exchange_limits *x, size_t request_bytes, size_t answer_bytes)
{
    if (x->request_bytes < request_bytes) x->request_bytes = request_bytes;
    if (x->answer_bytes < answer_bytes) x->answer_bytes = answer_bytes;
}

struct request {   /* travels in front of the payload, as it is: ranks are one architecture */
    int32_t kind;  /* meaning is the caller's; >= 0 */
    int32_t layer; /* for messages: -1 none */
    int32_t rows;
    int32_t flags;
    double number[2];  /* small arguments */
    double deadline;   /* seconds for the answer, 0: the exchange's */
    uint64_t sequence; /* filled by post */
    uint64_t bytes;    /* of payload, filled by post */
    char what[24];     /* phase in words, for messages: "experts", "scores", "open model" */
};

struct answer {
    int32_t code; /* a status: not OK means the payload is the error text */
    int32_t rows;
    uint64_t sequence, bytes;
};

struct exchange_stats {
    uint64_t messages, bytes_out, bytes_back;
    double wait_seconds; /* the coordinator's time inside exchange_wait */
};
void exchange_stats_add(struct exchange_stats *to, const struct exchange_stats *s);

/* Bytes exchange_open() takes from the arena on a coordinator / a follower of `size` ranks. */
size_t exchange_cost(bool coordinator, int size, struct exchange_limits limits);
/* What a rank takes for the exchanges of so many coordinators (0: one) with these limits, and for the one in which rank 0 asks the others. */
size_t exchange_costs(int rank, int size, struct exchange_limits limits, int coordinators);
/* Local.  May be closed and opened again with other limits between jobs: the sequence goes on in `comm`. */
status exchange_open(struct exchange **out, struct comm *c, struct exchange_limits limits, struct arena *a, struct err *e);
void exchange_close(struct exchange *x);

/* Why ranks of one host do not share memory though they might (for a person to know; some is known only after a first request to all), or NULL. */
const char *exchange_note(const struct exchange *x);

/* Coordinator.  Where the next request to `rank` in this slot has its payload of so many bytes in all (aligned to 64): what is written there and then posted
 * is not copied.  Nothing may be in flight to it in this slot.  There always is a place. */
void *exchange_room(struct exchange *x, int slot, int rank, size_t bytes);
/* Coordinator.  `payload` (up to two parts) must stay unchanged until exchange_wait() of the slot returns. */
void exchange_post(struct exchange *x, int slot, int rank, const struct request *r, const void *part0, size_t bytes0,
                   const void *part1, size_t bytes1);
/* Waits for the answers to everything posted in the slot.  ERR_RANK; or the first failed answer's status and "rank R (HOST): text"; or STOPPED.
 * After an error nothing is in flight in any slot.  After ERR_RANK (and after a stop that came between a request and its answer) the
 * exchange is over: posts do nothing and every wait returns the same; MPI may then still write into the arena, so keep it until comm_abort(). */
status exchange_wait(struct exchange *x, int slot, struct err *e);
/* After a wait: the answer of `rank`, valid until the next post to it in this slot.  NULL if nothing was posted to it. */
const struct answer *exchange_answer_of(const struct exchange *x, int slot, int rank, const void **payload);
/* Lets pending messages move (MPI has no progress thread): call it between pieces of local work.  Cheap. */
void exchange_progress(struct exchange *x);
void exchange_ping(struct exchange *x);
/* While answers are waited for in x, requests that come in the others (which this rank answers) are given to `answering`, which ends in exchange_answer(): it must not
 * wait itself.  False: it has not answered, and will after the wait, because the request is to leave what x is used for: this wait and all later ones of x end with
 * STOPPED, as after a signal.  The array belongs to the caller, and lives as long as x is used. */
typedef bool exchange_answering(void *ctx, int which, const struct request *r, const void *payload);
void exchange_serve(struct exchange *x, struct exchange *const *others, int n, exchange_answering *answering, void *ctx);
/* Rank 0: while it waits in x, pings go out in channel 0. */
void exchange_keep_alive(struct exchange *x, struct exchange *first);
/* While answers are waited for in x, what is under way in `aside` moves, too: its payloads may go through MPI, which stands still where only mail is looked at. */
void exchange_move_along(struct exchange *x, struct exchange *aside);
const struct exchange_stats *exchange_stats(const struct exchange *x);
/* Coordinator.  The rank whose loss has ended x with ERR_RANK, or -1. */
int exchange_lost(const struct exchange *x);

/* Follower.  The request's payload is valid until exchange_answer(). */
status exchange_next(struct exchange *x, struct request *r, const void **payload, struct err *e);
/* The same for a rank that answers in several: the next request in any of them, and which it was.  x[0] is the one of rank 0, channel 0. */
status exchange_next_of(struct exchange *const *x, int n, int *which, struct request *r, const void **payload, struct err *e);
/* Where the answer to the request taken last has its payload of so many bytes: what is written there and then answered is not copied. */
void *exchange_answer_room(struct exchange *x, size_t bytes);
void exchange_answer(struct exchange *x, const struct request *r, status code, int rows, const void *payload, size_t bytes);

#endif
