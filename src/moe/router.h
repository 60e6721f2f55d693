/* A router: per layer a map from the state h that enters the FFN to N scores.  One version of it may carry what belongs to its choices: thresholds, a scale,
 * the means of what it leaves out, and a term of low rank.
 *
 *   linear      z = W h + b                                   W [N, D]
 *   low_rank    z = W V h + b                                 V [r, D], W [N, r]: what a linear one is, with fewer products if r < N D / (N + D)
 *   bottleneck  z = W silu(V h) + b                           V [r, D], W [N, r]
 *   gate        z = W (silu(V h) * (U h)) + b                 V, U [r, D], W [N, r]: an FFN of r neurons whose outputs are the scores, because what
 *               is to be predicted, how much the neurons of an expert say, is itself a sum of such products
 *
 * Arrays are of all layers, one layer behind the other, f32; router_parts() lists them.
 */
#ifndef MOE_ROUTER_H
#define MOE_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "num/gemm.h"

enum router_kind { ROUTER_LINEAR, ROUTER_BOTTLENECK, ROUTER_GATE, ROUTER_LOW_RANK, ROUTER_KINDS };
const char *router_kind_name(enum router_kind k); /* as in the table above */

struct router {
    int layers, experts, width;
    float *weight;               /* [layers][experts][router_inner()]: W */
    float *bias;                 /* [layers][experts] */
    const struct packed *packed; /* [4][layers]: W, V, A, B, used in place of the arrays (which a training needs); or NULL */
    bool by_threshold;
    float *threshold; /* [layers]: active are all z > threshold */
    enum router_kind kind;
    int rank;      /* r; 0 of a linear one; at most D */
    float *factor; /* [layers][router_factors()][D]: V, of a gate with U below; NULL: linear */
    /* What is added for experts that are not active (struct routing, compensate); each may be missing. */
    float *mu;               /* [layers][experts][D]; NULL: the model's own */
    int low_rank;            /* c; 0: no A and B; at most D */
    float *inward, *outward; /* x += B (A h) + d: A [layers][c][D], B [layers][D][c] */
    float *offset;           /* [layers][D]: d; not NULL if c > 0, and with c == 0 a constant of its own */
    float *scale;            /* [layers]: of active experts, in place of routing.scale; NULL: that one */
};

static inline int router_inner(const struct router *r) /* inputs of W */
{
    return r->kind == ROUTER_LINEAR ? r->width : r->rank;
}
static inline int router_factors(const struct router *r) /* rows of V and U */
{
    return r->kind == ROUTER_LINEAR ? 0 : r->kind == ROUTER_GATE ? 2 * r->rank : r->rank;
}

/* Its arrays: `where` is a member of *r, [layers][rows][cols]; none of what this router does not have.  Names are those of router_file.h. */
enum { ROUTER_PARTS = 9 };
struct router_part {
    const char *name;
    float **where;
    size_t rows, cols;
};
int router_parts(struct router *r, struct router_part out[ROUTER_PARTS]);

/* Something of its own is added, or taken away, for experts that are not active. */
static inline bool router_compensates(const struct router *r)
{
    return r->mu || r->offset;
}

/* Multiply-adds of one token in one layer. */
struct router_cost {
    double scores;   /* products of the router */
    double low_rank; /* of the compensation's */
    double
        additions; /* of means, of k active experts in the mean (sums begin with that of all means), and of d: no products, but work */
};
/* means: the model has some, which are used if r has none. */
struct router_cost router_cost(const struct router *r, double active, bool means);

/* z[rows][N] of the rows h (h->n of them).  room: router_room() bytes aligned to 64; quantized: rows_bytes() for h, if r->packed wants that, or NULL.
 * Row-invariant; with packed f32 matrices the bits are those without. */
size_t router_room(const struct router *r, int rows);
void router_scores(const struct router *r, struct gemm *g, int layer, struct rows *h, void *quantized, void *room, float *z);
/* in[rows][r]: what W of all but a linear one takes; in has router_room() bytes. */
void router_inputs(const struct router *r, struct gemm *g, int layer, const float *h, int rows, float *in);
/* y[rows][D] = B (A h) + d of the term of low rank, or d; a: [rows][c], scratch. */
void router_low_rank(const struct router *r, struct gemm *g, int layer, const struct rows *h, float *a, float *y);
/* a[rows][r] = V h, silu(V h), or silu(V h) * (U h), from v[rows][router_factors()], which it may be. */
void router_bend(const struct router *r, float *a, const float *v, int rows);

#endif
