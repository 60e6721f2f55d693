/* Several coordinators over one model: each has attention and the caches of its own sessions, and all use the experts of all ranks.
 *
 * Rank 0 drives: it gives every coordinator the rows of its sessions, and gets their hidden states back (channel `coordinators`); meanwhile each of them runs
 * the forward pass and asks all ranks for experts (channel of its own number), and whoever waits answers the others.  Session s belongs to coordinator
 * s mod C and has slot s / C there.  A row's result does not depend on the other rows, so the bits are those of one coordinator.
 * Only cluster.c uses this.
 */
#ifndef ENGINE_SPREAD_H
#define ENGINE_SPREAD_H

#include "model/forward.h"

enum {
    SPREAD_MAX = 64,
    SPREAD_KIND_FIRST = 10,
    SPREAD_KIND_FORWARD = 10,
    SPREAD_KIND_ROUTER,
    SPREAD_KIND_LOGITS,
    SPREAD_KIND_LAST = SPREAD_KIND_LOGITS
};

struct spread {
    int coordinators, rank; /* coordinators 0: closed */
    struct model *model;
    struct gemm *gemm;
    double deadline;
    struct exchange *channel[SPREAD_MAX]; /* by coordinator; [0] is the cluster's */
    struct exchange *work;                /* NULL: not a coordinator */
    struct exchange *others[SPREAD_MAX];  /* in which this rank answers for its experts */
    struct exchange *all[SPREAD_MAX + 1]; /* what a follower listens to, rank 0's first */
    int n_others, n_all;
    struct router router; /* of coordinators but rank 0; width 0: none yet */
    bool kept;            /* a request of rank 0's that came in the middle of a pass, and is not answered yet: */
    struct request request;
    const void *payload;
    /* rank 0: its own rows of a batch */
    int32_t *token, *position, *session;
    uint64_t *key;
    int *at; /* where in the batch they are, of one coordinator after the other */
    float *hidden;
};

/* What payloads need, to be added to the limits of all its exchanges; and the bytes of the arena besides those. */
void spread_limits(struct exchange_limits *x, int rows, int width, int vocab);
size_t spread_cost(int rank, int rows, int width);
/* Local.  first: the exchange of rank 0, open with these limits.  Afterwards spread_own() is for the moe of this rank. */
status spread_open(struct spread *s, struct comm *c, int coordinators, struct exchange_limits limits, struct exchange *first,
                   int rows, int width, struct gemm *g, struct arena *a, struct err *e);
void spread_close(struct spread *s); /* the first one stays open */
struct exchange *spread_own(const struct spread *s);
/* The model is there: from now on whoever waits answers. */
void spread_begin(struct spread *s, struct model *m);
void spread_traffic(const struct spread *s, struct exchange_stats *to);

/* Rank 0.  The router of later passes, to all coordinators; NULL is fine. */
status spread_router(struct spread *s, const struct router *r, struct err *e);
/* Rank 0.  As forward(), but all rows are taken for asked. */
status spread_forward(struct spread *s, const struct batch *b, const struct routing *how, int micro_batches, float *hidden,
                      struct err *e);
/* Rank 0.  logits: [n, V] of n rows of hidden, in equal shares by all coordinators. */
status spread_logits(struct spread *s, const float *hidden, int n, float *logits, struct err *e);
/* Another coordinator: answers a request of the kinds above.  ERR_RANK if it cannot go on. */
status spread_answer(struct spread *s, const struct request *r, const void *payload, struct err *e);
/* Another coordinator: what came in rank 0's exchange meanwhile and is not for its experts (to close the model, or to stop): a pass ends with STOPPED for it.  Once. */
bool spread_kept(struct spread *s, struct request *r, const void **payload);

#endif
