/* The factorized FFNs of a model over the ranks: route, dispatch, compute, combine.
 *
 *   yhat(h) = e_s(h) + sum_{i in A} scale * e_i(h) + sum_{i not in A} mu_i (+ B A h + d)
 *
 * The coordinator routes and holds the shared experts; every rank (the coordinator too, if the placement says so) holds the experts its placement gives it.
 * A token costs one row out and one row back per rank that holds an active expert of it: the rank sums there, exactly (exact.h), so all placements give
 * the same bits.
 * A dense model is the case of no routed expert: the whole FFN is the shared expert.
 * Split phase: moe_begin() routes and posts, moe_end() computes what is local, waits and adds; two slots may be in flight, which is how attention
 * of one micro-batch overlaps the experts of the other.
 * Memory: everything is taken from the arena at open, from the limits.
 * Errors: ERR_LIMIT if outputs of experts, or their sums, are too large to be exact (SUM_LIMIT in exact.h) or are no numbers: an error and no warning,
 *     because the bits would then depend on the placement, or mean nothing.  After one from the exchange (a rank lost, stopped) nothing but moe_close() may follow.
 */
#ifndef MOE_MOE_H
#define MOE_MOE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/timing.h"
#include "comm/exchange.h"
#include "moe/expert.h"
#include "moe/placement.h"
#include "moe/router.h"
#include "num/adamw.h"
#include "num/gemm.h"

/* One layer as a rank sees it.  Arrays are owned by whoever bound the weights (model/weights), and live longer than the moe. */
struct moe_layer {
    int experts;           /* N routed, over all ranks; 0: dense */
    int active;            /* k of top-k; for a threshold the intended mean */
    struct expert *expert; /* [experts]; not held here: down.lines == NULL */
    const float *mu;       /* [experts][D] mean outputs, rows of held experts filled; NULL: no compensation in this model */
    /* coordinator only */
    struct expert shared;   /* down.lines == NULL: none */
    const double *mu_total; /* [D] sum over i of grid(mu_i), or NULL */
    int64_t neurons_active; /* of a token in the mean by design: shared + k * m, for reports */
};

enum route {
    ROUTE_ALL,
    ROUTE_ROUTER,
    ROUTE_RANDOM,
    ROUTE_PAPER,
    ROUTE_GRAM,
    ROUTE_STATIC,
    ROUTE_GRAM_VARIABLE,
    ROUTE_NEURONS,
    ROUTE_SETS
};

/* How a forward pass routes.  `paper`, `gram` and what follows are oracles: they look at what experts or neurons give for the state that arrives.
 *   ROUTE_STATIC         the same neurons for all, the most important ones
 *   ROUTE_GRAM_VARIABLE  as many experts as have a gain above the layer's threshold (labels.h), the best set of that size
 *   ROUTE_NEURONS        no experts: of the layer's neurons the A = neurons[layer] with the largest |z_j| |w_down_j|, shared ones among them; the others add
 *                        nothing, nor do their means.  What any choice of so many neurons can hardly pass: the neuron-level ceiling. */
struct routing {
    enum route route;
    const struct router *router; /* for ROUTE_ROUTER */
    int active;                  /* k of top-k, of ROUTE_ROUTER and ROUTE_RANDOM; 0: the layer's */
    const double *gain;          /* [layers] for ROUTE_GRAM_VARIABLE */
    const int *neurons; /* [layers] of a token, for ROUTE_STATIC and ROUTE_NEURONS; NULL: as many as are active by design */
    float scale;        /* of active experts; ignored by ROUTE_ALL, ROUTE_STATIC and ROUTE_NEURONS */
    bool
        compensate; /* add mu_i of inactive experts (the router's, if it has them) and its term of low rank; ignored by the same */
    double batch_experts; /* of ROUTE_ROUTER: share of a layer's experts that the rows touch between them (route.h); 0: any */
    uint64_t seed;        /* for ROUTE_RANDOM: the set of a row depends on (seed, layer, key of the row) alone */
    const uint64_t *sets; /* for ROUTE_SETS: [rows][bits_words(N)] of one layer, somebody else's choice */
};

/* What travels between ranks.  With the first of each a result has the same bits wherever the experts are; with any other it depends on the placement. */
enum moe_rows { MOE_ROWS_F32, MOE_ROWS_BF16 };
enum moe_answers { MOE_ANSWERS_EXACT, MOE_ANSWERS_F32, MOE_ANSWERS_BF16 };
struct moe_wire {
    enum moe_rows rows;
    enum moe_answers answers;
};

struct moe_limits {
    int rows;    /* most rows of one slot */
    bool oracle; /* room for scores and expert rows too (finetune, eval) */
    bool train;  /* room for moe_backward(); experts have in_t */
    bool adapt;  /* experts whose weights are trained: moe_adapt_*(), */
    int lora;    /* by updates of this rank, 0: whole */
    bool notes;  /* room for what moe_note() keeps, */
    int sample;  /* of so many tokens */
    struct moe_wire wire;
    int coordinators; /* the lowest ranks, which route and hold the shared experts; 0: one.  Several answer each other, and have no oracle */
};

struct moe_stats {
    uint64_t tokens;   /* rows that passed a layer, summed over layers */
    uint64_t rows_out; /* rows sent to other ranks (as many come back) */
    uint64_t neurons;  /* active neurons, summed over rows and layers: neurons / (tokens * F) is the realised f */
    uint64_t
        merged; /* sums of a thread that went into another's: few rows, many small experts, threads (here, not on other ranks) */
    uint64_t *load; /* [layers][experts]: tokens that activated the expert */
};

struct moe;

/* Bytes of the arena for this rank. */
size_t moe_cost(const struct placement *p, int rank, int layers, int experts, int width, int neurons, struct moe_limits limits);
/* Largest request and answer of these limits, for exchange_open(). */
void moe_exchange_limits(struct exchange_limits *x, int layers, int experts, int width, int neurons, struct moe_limits limits);

/* Local.  `layers`, `p`, `g`, `x` (NULL with one rank) are borrowed.  ERR_LIMIT. */
status moe_open(struct moe **out, struct moe_layer *layers, int n_layers, int width, int neurons, const struct placement *p,
                int rank, struct moe_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e);
void moe_close(struct moe *m);
/* Where this rank's time is counted from now on; NULL: nowhere.  Sections route, pack, expert, wait, combine. */
void moe_time(struct moe *m, struct timing *t);
int moe_rank_of(const struct moe *m, int layer, int expert); /* who holds it */
/* No other rank holds an expert: nothing travels, and there is nothing that attention could overlap with. */
bool moe_alone(const struct moe *m);

/* Coordinator.  h: [rows, D], unchanged until the end; key: [rows] for ROUTE_RANDOM, or NULL (0 .. rows-1).
 * The oracles (ROUTE_PAPER, ROUTE_GRAM, ROUTE_GRAM_VARIABLE, ROUTE_NEURONS; limits.oracle) ask the ranks and wait before they dispatch; the other slot may be in flight. */
status moe_begin(struct moe *m, int slot, int layer, const float *h, const uint64_t *key, int rows, const struct routing *how,
                 struct err *e);
/* Between pieces of other work while a slot is in flight: lets its messages move.  Cheap. */
void moe_progress(struct moe *m);
/* Before a router with means of its own is used (r->mu): gives them to the ranks that hold the experts; others need nothing.  They stay until the next call
 * with such a router, beside the model's own, which all other routes use.  Coordinator; synchronous, over slot 0, nothing in flight.  ERR_LIMIT. */
status moe_select(struct moe *m, const struct router *r, struct err *e);
status moe_select_layer(struct moe *m, const struct router *r, int layer,
                        struct err *e); /* the same when only this layer's have changed since */
/* What moe_select() does on this rank alone: another coordinator's part, whose experts' means rank 0 sends. */
status moe_select_here(struct moe *m, const struct router *r, struct err *e);

/* x[t] += yhat(h_t).  active, if not NULL, gets the sets: [rows][bits_words(N)]; after ROUTE_NEURONS they mean nothing. */
status moe_end(struct moe *m, int slot, float *x, uint64_t *active, struct err *e);

/* Coordinator: what the teacher knows; needs limits.oracle.  Synchronous, over slot 0, which must not be in flight.
 * y: [rows, D] the dense FFN's output. */
status moe_dense(struct moe *m, int layer, const float *h, int rows, float *y, struct err *e);
/* score: [rows][N] = paper_score of every expert, computed where the expert lives; y as from moe_dense(). */
status moe_paper_scores(struct moe *m, int layer, const float *h, const float *y, int rows, int k, float *score, struct err *e);
/* set: [rows][bits_words(N)], the Gram set of every row; centred rows come back from the ranks in pieces that fit the limits. */
status moe_gram_sets(struct moe *m, int layer, const float *h, int rows, int k, bool compensate, uint64_t *set, struct err *e);
/* gain: [rows][N], gram_gains() of every row. */
status moe_gram_gains(struct moe *m, int layer, const float *h, int rows, bool compensate, float *gain, struct err *e);
/* value: [rows][N] of every expert, computed where it lives: its energy sum_j (z_j |w_down_j|)^2, or the square of its output's norm |e_i|^2. */
enum moe_value { MOE_ENERGY, MOE_NORM };
status moe_values(struct moe *m, enum moe_value what, int layer, const float *h, int rows, float *value, struct err *e);
/* The mean output of every expert over the rows that do not select it: mu_i = W_down mean(z).  Rows with their sets [rows][bits_words(N)] are added in calls, the
 * first of which begins anew; sums are kept by the ranks, per neuron, in double, in the order of the rows.  An expert that all rows select has the mean 0. */
status moe_rest_add(struct moe *m, int layer, const float *h, const uint64_t *set, int rows, bool first, struct err *e);
status moe_rest_means(struct moe *m, int layer, float *mu, struct err *e); /* [N][D] */

/* Coordinator: gradients of a loss that knows y = e_s(h) + sum_{i in set} scale * e_i(h) by dy [rows, D]; needs limits.train.  Synchronous, over slot 0.
 *   dh[t] += (dL/dy J)_t, through the shared and the active experts, as exact sums; NULL: nobody asks (and rows do not come back)
 *   dgate[t][i] = <dy_t, scale * e_i(h_t)> for all N experts, active or not: what a gate in front of the expert would have as gradient */
status moe_backward(struct moe *m, int layer, const float *h, const uint64_t *set, const float *dy, int rows, float scale,
                    float *dh, float *dgate, struct err *e);

/* Experts whose weights are trained, with limits.adapt (adapted.h); the experts have their `adapted`.  Coordinator; synchronous, over slot 0, nothing in flight; ERR_RANK.
 * moe_adapt_use()   which weights all ranks compute with from now on: the student's, or those that the model was opened with.  Backward passes are the student's.
 * moe_adapt_clear() gradients to zero.  moe_backward_learn() is moe_backward() and adds to them.
 * moe_adapt_squares() of all gradients, in the order of layers and experts, whoever holds them
 * moe_adapt_step()  one step of AdamW, number steps + 1, and the kernels' copies follow */
status moe_adapt_use(struct moe *m, bool student, struct err *e);
status moe_adapt_clear(struct moe *m, struct err *e);
status moe_backward_learn(struct moe *m, int layer, const float *h, const uint64_t *set, const float *dy, int rows, float scale,
                          float *dh, float *dgate, struct err *e);
status moe_adapt_squares(struct moe *m, double *sum, struct err *e);
status moe_adapt_step(struct moe *m, int64_t steps, double gscale, double rate, const struct adamw_options *o, struct err *e);
/* An array of one part (gate, up, down transposed) of an expert, -1: the shared one: what is trained, its moments and gradient, or the weights that come of it, [n][D].
 * Who puts parameters calls moe_adapt_pack() when all of them are there.  floats: of such an array, 0: there is no shared expert. */
enum moe_adapted { MOE_ADAPTED_PARAM, MOE_ADAPTED_M, MOE_ADAPTED_V, MOE_ADAPTED_SLOPE, MOE_ADAPTED_WEIGHTS };
size_t moe_adapted_floats(const struct moe *m, int layer, int expert, enum moe_adapted what);
status moe_adapt_get(struct moe *m, int layer, int expert, int part, enum moe_adapted what, float *out, struct err *e);
status moe_adapt_put(struct moe *m, int layer, int expert, int part, enum moe_adapted what, const float *in, struct err *e);
status moe_adapt_pack(struct moe *m, struct err *e);

/* Coordinator, of a model with no shared neurons; needs limits.notes.  Synchronous, over slot 0: x[t] += the sum of all experts, and every rank keeps of each of its
 * neurons z = silu(gate h) * (up h) the sums of z and z^2 over all rows that it ever saw, in the order in which they came, and of row t the value as bfloat16
 * where place[t] in 0 .. sample - 1 says.  place: [rows], -1: not in the sample.  The sums have the same bits on any number of ranks and in any cut into calls.
 * Memory, of the rank that holds the neuron: 16 + 2 * sample bytes a neuron. */
status moe_note(struct moe *m, int layer, const float *h, const int32_t *place, int rows, float *x, struct err *e);
/* What was kept of an expert's n neurons: sum[n], square[n], sample[n][limits.sample], or NULL. */
status moe_notes(struct moe *m, int layer, int expert, double *sum, double *square, uint16_t *sample, struct err *e);

const struct moe_stats *moe_stats(const struct moe *m);
void moe_stats_clear(struct moe *m);

/* Follower, or a coordinator that waits: answers one request of this moe's kinds, which came in x.  Kinds are MOE_KIND_FIRST .. MOE_KIND_LAST. */
enum {
    MOE_KIND_FIRST = 100,
    MOE_KIND_SUM = 100,
    MOE_KIND_STATIC,
    MOE_KIND_SCORES,
    MOE_KIND_ROWS,
    MOE_KIND_NEURON_SCORES,
    MOE_KIND_NEURON_SUM,
    MOE_KIND_MEANS,
    MOE_KIND_BACKWARD,
    MOE_KIND_VALUES,
    MOE_KIND_REST,
    MOE_KIND_REST_MEANS,
    MOE_KIND_NOTE,
    MOE_KIND_NOTES,
    MOE_KIND_ADAPT,
    MOE_KIND_LAST = MOE_KIND_ADAPT
};
void moe_answer(struct moe *m, struct exchange *x, const struct request *r, const void *payload);

#endif
