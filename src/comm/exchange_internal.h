/* What the two sides of the exchange share.
 *
 * On the wire: a head of fixed size; a payload of up to INLINE bytes follows in the same message.  A larger one travels as messages of its
 * own, its parts from where they lie, in pieces of at most comm->chunk bytes, and arrives in the receiver's buffer one behind the other.
 *
 * Requests of both slots have one tag for the head, so that a follower takes them in the order in which they were posted; bodies and
 * answers have one per slot.  A follower offers a receive for the next head only inside exchange_next(): what comes while it closes one
 * exchange and opens the next waits inside MPI.
 */
#ifndef COMM_EXCHANGE_INTERNAL_H
#define COMM_EXCHANGE_INTERNAL_H

#include "comm/comm_internal.h"
#include "comm/exchange.h"

enum { INLINE = 16384, KIND_PING = -1 };
enum { TAG_REQUEST = 1, TAG_REQUEST_BODY = 2, TAG_ANSWER = 2 + EXCHANGE_SLOTS, TAG_ANSWER_BODY = 2 + 2 * EXCHANGE_SLOTS };

struct request_head {
    struct request r;
    uint64_t bytes0; /* of the first part */
    int32_t slot;
    char pad[36];
};

struct answer_head {
    struct answer a;
    char pad[40];
};

_Static_assert(sizeof(struct request_head) == 128 && sizeof(struct answer_head) == 64, "payloads behind heads are aligned to 64");

/* FREE -post-> HEAD -head of the answer-> BODY -> DONE -next round-> FREE
 *                ^----- STALE <-- an answer to an exchange that was given up */
enum lane_state { FREE, HEAD, BODY, STALE, DONE };

struct lane { /* of the coordinator: one (slot, rank) */
    enum lane_state state;
    double posted, heard;
    bool sent; /* the whole request */
    int n_out, n_in;
    MPI_Request *out, *in;
    struct request_head *request; /* with room for INLINE bytes behind it, as has the answer */
    struct answer_head *answer;
    char *buffer;
    const void *payload;
};

struct exchange {
    struct comm *comm;
    struct exchange_limits limits;
    struct exchange_stats stats;
    struct err over; /* OK, or why nothing is posted and waited for any more */

    /* coordinator */
    struct lane *lanes; /* [slot][rank] */
    bool collected[EXCHANGE_SLOTS];
    double pinged;
    double spoke, silent; /* when something was sent last; when a silence longer than the deadline ended, 0 never */

    /* follower */
    struct request_head *request; /* as in a lane */
    struct request last;          /* taken; for messages, while MPI writes over the head */
    struct answer_head *answer;
    char *buffer;
    MPI_Request *out, *in;
    bool asked; /* a request was taken and not answered yet */
};

/* How a wait passes its time: yield at first, then sleep an eighth of what was waited already, up to 1 ms. */
struct pause {
    double start, now, look;
    double stop;  /* since when STOP_NOW is seen, 0 never */
    double quick; /* until then a body is on its way: only yield, because MPI moves it a piece at each call */
};

#define QUICK_SECONDS 0.01

struct pause pause_begin(void);
bool pause_step(struct pause *p); /* true every 50 ms: time to look at signals, processes and deadlines */

/* Sends or receives `bytes` in pieces and adds the requests to q; `code` keeps the first error of MPI. */
int exchange_send(struct exchange *x, MPI_Request *q, int n, const void *from, size_t bytes, int to, int tag, int *code);
int exchange_receive(struct exchange *x, MPI_Request *q, int n, void *to, size_t bytes, int from, int tag, int *code);

/* Ends requests that will not be waited for: receives are cancelled, sends get a moment.  What MPI still holds after that stays with it:
 * the requests are left alone, the memory must stay until the process ends, and comm->dirty keeps us out of MPI from then on. */
void exchange_settle(struct exchange *x, MPI_Request *q, int n, bool receives);

#endif
