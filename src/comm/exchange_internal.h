/* What the two sides of the exchange share.
 *
 * A head of fixed size goes first; a payload of up to INLINE bytes goes with it.  Heads to and from a follower on the coordinator's host go through
 * its mailbox (mailbox.h), else through MPI.
 *
 * A larger payload lies in memory that both share, where the sender wrote it: it does not travel.  The coordinator makes this region when the exchange
 * is opened, offers it in the heads of its requests until the follower has said whether it reaches it, and only then is it used.
 * Without it, a larger payload travels through MPI as messages of its own, its parts from where they lie, in pieces of at most comm->chunk bytes, and
 * arrives in the receiver's buffer one behind the other.
 *
 * Requests of both slots have one tag for the head, so that a follower takes them in the order in which they were posted; bodies and
 * answers have one per slot.  A follower offers a receive for the next head only inside exchange_next(): what comes while it closes one
 * exchange and opens the next waits inside MPI, or in the mailbox.
 */
#ifndef COMM_EXCHANGE_INTERNAL_H
#define COMM_EXCHANGE_INTERNAL_H

#include "comm/comm_internal.h"
#include "comm/exchange.h"

enum { INLINE = 16384, KIND_PING = -1 };
enum { TAG_REQUEST = 1, TAG_REQUEST_BODY = 2, TAG_ANSWER = 2 + EXCHANGE_SLOTS, TAG_ANSWER_BODY = 2 + 2 * EXCHANGE_SLOTS };

/* Of a head: its payload lies in the region; of an answer: what became of the offer. */
enum { HEAD_IN_REGION = 1, HEAD_REACHES = 2, HEAD_CANNOT = 4 };

struct request_head {
    struct request r;
    uint64_t bytes0;                            /* of the first part */
    uint64_t region_id, region_bytes, share_at; /* the offer: a region, and where this follower's share of it begins */
    int32_t region_file;                        /* -1: no offer */
    int32_t slot;
    int32_t flags;
    char pad[4];
};

struct answer_head {
    struct answer a;
    int32_t flags;
    char pad[36];
};

_Static_assert(sizeof(struct request_head) == 128 && sizeof(struct answer_head) == 64, "payloads behind heads are aligned to 64");

/* One follower's share of the region, or the same in memory of our own: where payloads larger than INLINE lie. */
struct share {
    char *request[EXCHANGE_SLOTS], *answer[EXCHANGE_SLOTS];
};

/* FREE -post-> HEAD -head of the answer-> BODY -> DONE -next round-> FREE
 *                ^----- STALE <-- an answer to an exchange that was given up; not by mail */
enum lane_state { FREE, HEAD, BODY, STALE, DONE };

struct lane { /* of the coordinator: one (slot, rank) */
    enum lane_state state;
    double posted, heard;
    bool sent; /* the whole request */
    int n_out, n_in;
    uint64_t stale; /* bytes that such an answer still has */
    MPI_Request *out, *in;
    struct mail *mail;            /* NULL: heads go through MPI */
    struct request_head *request; /* with room for INLINE bytes behind it, as has the answer */
    struct answer_head *answer;
    char *room, *buffer; /* of request and answer if they are larger */
    const void *payload;
};

enum offer_state { OFFER_NONE, OFFER_OPEN, OFFER_TAKEN };

struct exchange {
    struct comm *comm;
    struct exchange_limits limits;
    struct exchange_stats stats;
    struct err over; /* OK, or why nothing is posted and waited for any more */
    struct region region;
    struct bell *bell; /* this process's, NULL: nobody rings */
    bool crowded;      /* more threads than processors on this host */
    char note[160];    /* see exchange_note() */
    int asker, ranks;  /* who posts; the lowest ranks that answer, itself perhaps among them */

    /* coordinator */
    struct lane *lanes;      /* [slot][rank]; its own are not used */
    enum offer_state *offer; /* [rank] */
    bool collected[EXCHANGE_SLOTS];
    double pinged;
    double spoke, silent;           /* when something was sent last; when a silence longer than the deadline ended, 0 never */
    struct exchange *const *others; /* see exchange_serve() */
    int n_others;
    struct exchange *first; /* see exchange_keep_alive(), or NULL */
    exchange_answering *answering;
    void *answering_ctx;
    struct exchange *aside; /* see exchange_move_along(), or NULL */
    bool leaves;            /* another exchange has a request to leave this one */
    int lost;               /* the rank whose loss ended it, and one more */

    /* follower */
    struct mailbox *box;          /* NULL: heads come through MPI */
    struct request_head *request; /* as in a lane */
    struct request last;          /* taken; for messages, while MPI writes over the head */
    struct answer_head *answer;
    struct share share;  /* of the region, if it was reached */
    bool offered;        /* and tried */
    char *buffer, *room; /* of request and answer if they are larger and there is no region */
    MPI_Request *out, *in;
    bool asked;              /* a request was taken and not answered yet */
    bool listening;          /* MPI receives the next head */
    uint64_t heard;          /* pings that came through MPI */
    struct exchange *beside; /* this process's own, which must move while this one sends; or NULL */
};

/* How a wait passes its time: it looks all the time for a moment, which is long if each thread has a processor of its own, then it sleeps: until the
 * bell rings where everything it waits for rings it, else an eighth of what was waited already, up to 1 ms. */
struct pause {
    double start, now, look;
    double idle;          /* since when there was nothing to do */
    double stop;          /* since when STOP_NOW is seen, 0 never */
    double quick;         /* until then a body is on its way: only yield, because MPI moves it a piece at each call */
    bool crowded, yields; /* MPI yields by itself */
    struct bell *bell;
    uint32_t seen; /* rings before the last look */
};

#define QUICK_SECONDS 0.01

struct pause pause_begin(const struct exchange *x);
/* rings: all that is waited for rings the bell.  True every 50 ms: time to look at signals, processes and deadlines. */
bool pause_step(struct pause *p, bool rings);

/* Tags of a channel are apart from those of all others. */
static inline int exchange_tag(const struct exchange *x, int tag)
{
    return x->limits.channel * 16 + tag;
}

enum direction { TO, FROM };
/* Sends or receives `bytes` in pieces and adds the requests to q; `code` keeps the first error of MPI. */
int exchange_move(struct exchange *x, enum direction where, int rank, void *bytes, size_t n_bytes, int tag, MPI_Request *q, int n,
                  int *code);

/* Lanes of the coordinator. */
static inline struct lane *lane_of(const struct exchange *x, int slot, int rank)
{
    BUG_ON(!x->lanes || slot < 0 || slot >= EXCHANGE_SLOTS || rank < 0 || rank >= x->ranks);
    return &x->lanes[slot * x->ranks + rank];
}
static inline bool lane_busy(const struct lane *l) /* a request is under way */
{
    return l->state != FREE && l->state != DONE;
}
/* A request leaves now, on a lane that is not busy; parts as exchange_post() has them.  These two return an error of MPI or 0. */
int lane_post(struct exchange *x, int slot, int rank, const struct request *r, const void *part0, size_t bytes0,
              const void *part1, size_t bytes1, double now);
/* Moves it as far as it goes now. */
int lane_advance(struct exchange *x, int slot, int rank);

/* Where a share's parts are, from its beginning; returns the bytes of a share.  `share` may be NULL. */
size_t exchange_share(struct share *share, char *begin, struct exchange_limits limits);

/* Puts a part of a payload into its place, unless it lies there. */
void exchange_place(char *to, const void *from, size_t bytes);

/* Ends requests that will not be waited for: receives are cancelled, sends get a moment.  What MPI still holds after that stays with it:
 * the requests are left alone, the memory must stay until the process ends, and comm->dirty keeps us out of MPI from then on. */
void exchange_settle(struct exchange *x, MPI_Request *q, int n, bool receives);

/* Takes a request that is there, without waiting. */
bool exchange_take(struct exchange *x, struct request *r, const void **payload);

/* The coordinator's part of opening and closing. */
void exchange_open_lanes(struct exchange *x);
void exchange_close_lanes(struct exchange *x);

#endif
