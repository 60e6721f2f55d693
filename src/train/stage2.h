/* Stage 2 of fine-tuning: end to end, with frozen weights; or with those that adapt.h says.
 *
 * The student is the factorized model as inference runs it, with hard choices; the teacher is the same weights with all experts, over the same windows.  Trained are the
 * router's parameters and the means of the experts that are left out (router.mu), by backpropagation through the whole network:
 *   loss of a token   KL(teacher || student) of the logits + lm * (-log q of the next token)
 *   per pass          budget * 100 * (f - target)^2 for threshold routers, f the mean share of active neurons;
 *                     load * the mean over groups of (load of the group / mean load - 1)^2, a group being an expert, or what a rank holds
 * A choice has no gradient.  Instead of it (straight-through, Bengio et al., arXiv 1308.3432) the gate g_i of expert i has that of sigmoid((z_i - threshold) / T), with
 * T = temperature * the standard deviation of the layer's scores in the pass, which passes nothing on.  A threshold passes nothing on either; that of a row of top-k lies midway
 * between its k-th and its next score and moves so that sum sigmoid stays what it is: what all gates of a row ask for in common (mostly more experts) is taken off, else the scores that are
 * near it rise past those above.  With y = e_s + sum g_i (scale e_i) + (1 - g_i) mu_i a gate has dL/dg_i = <dy, scale e_i - mu_i>.
 *
 * Gradients are sums over the rows of a batch; they are divided by their number in the step.  A batch is cut into passes of whole windows that fit the model's rows.
 * Of a pass the states in front of and behind every attention are kept, and queries, keys and values; all else is computed once more on the way back (model/backward.h).
 *
 * Ranks   coordinator; the others answer moe's requests: rows of h and dy go out, one row and one number for each expert come back.
 * Order   what comes back from other ranks is exact or an expert's own, and all other sums have one order: a run has the same bits for every number of ranks.
 * Memory  taken at open: see stage2_cost().
 */
#ifndef TRAIN_STAGE2_H
#define TRAIN_STAGE2_H

#include "train/adapt.h"
#include "train/windows.h"

struct stage2_options {
    double lm, budget, load; /* weights of the terms */
    double target;           /* f of the budget term; <= 0: by the shape */
    const int *group;        /* [layers][experts] of the load term, each 0 .. groups - 1; NULL: every expert its own */
    int groups;
    double temperature;             /* of the gates' gradients, > 0 */
    bool train_router, train_means; /* means: the router has mu */
    double means_rate;              /* learning rate of the means over that of the router */
    bool compensate;                /* add means, and the router's term of low rank */
    float scale;                    /* of active experts, if the router has no own */
    int rows;                       /* of one pass; a window is at most this long */
    int sessions;                   /* windows of one pass */
    struct adamw_options adamw;     /* decay is for matrices of the router */
    struct adapt *adapt;            /* more that is trained (adapt.h), or NULL */
    double clip;                    /* of the global norm of the gradient of the mean loss */
    /* Called in every layer of a pass, may be NULL: a sign of life to the followers.  true ends the batch with STOPPED. */
    bool (*alive)(void *ctx);
    void *alive_ctx;
};

/* What the last batch showed. */
struct stage2_tally {
    int64_t rows;
    double kl, nll;   /* means over rows; nll: of the student */
    double share;     /* f, mean over rows and layers */
    double loss;      /* all terms */
    double *share_of; /* [layers] */
    uint64_t *load;   /* [layers][experts] rows that activated the expert */
};

struct stage2;

size_t stage2_cost(const struct shape *s, const struct router *r, const struct stage2_options *o);
/* r is trained in place; it has mu if means are used.  m: opened with limits.train.  All are borrowed.  ERR_LIMIT. */
status stage2_open(struct stage2 **out, struct router *r, struct model *m, const struct stage2_options *o, struct err *e);
void stage2_close(struct stage2 *s); /* NULL is fine */

enum stage2_mode {
    STAGE2_LEARN,   /* losses and gradients */
    STAGE2_MEASURE, /* losses */
    STAGE2_SHARES,  /* no teacher: shares and loads only */
};
/* One batch.  ERR_RANK, ERR_LIMIT, STOPPED: nothing was learned. */
status stage2_batch(struct stage2 *s, enum stage2_mode mode, const struct window *w, int n, struct err *e);
/* Of the gates' gradients from now on, > 0. */
void stage2_set_temperature(struct stage2 *s, double temperature);
/* One optimizer step with the gradients of the last STAGE2_LEARN batch; norm: theirs before clipping.  ERR_RANK. */
status stage2_update(struct stage2 *s, double learning_rate, double *norm, struct err *e);
const struct stage2_tally *stage2_tally(const struct stage2 *s);
/* Gives every layer the threshold at which k experts of a token are active in the mean over these windows, on the states that the router's choices of top-k make.
 * The scores of all windows are kept meanwhile: layers * tokens * N floats.  Also ERR_LIMIT. */
status stage2_thresholds(struct stage2 *s, const struct window *w, int n, struct err *e);
/* Adds one number to the thresholds of all layers, so that the share of active neurons over these windows is the target as nearly as it can be. */
status stage2_shift(struct stage2 *s, const struct window *w, int n, double *shift, struct err *e);

/* What is trained on the coordinator, with its gradients: the router's parameters, the means, what else there is (adapt.h). */
enum { STAGE2_PARAMS = ROUTER_PARAMS + 1 + ADAPT_PARAMS };
int stage2_params(struct stage2 *s, struct router_param *out[STAGE2_PARAMS]);

/* The state, for a checkpoint: parameters and moments; returns how many.  And the number of steps done. */
enum { STAGE2_ARRAYS = ROUTER_MODEL_ARRAYS + 3 + ADAPT_ARRAYS };
int stage2_arrays(struct stage2 *s, struct checkpoint_array out[STAGE2_ARRAYS]);
int64_t stage2_steps(const struct stage2 *s);
void stage2_set_steps(struct stage2 *s, int64_t steps);

#endif
