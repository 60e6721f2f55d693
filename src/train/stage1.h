/* Stage 1 of fine-tuning: layer-local, teacher-forced training of the Prior-Approximate router.
 *
 * The dense model itself is the teacher: its states run through all layers, and in every layer the router learns from the state that enters the
 * FFN which experts approximate the FFN's output best (moe/labels.h).  No weight but the routers' changes, and nothing is backpropagated
 * through the network, so a step costs little more than a dense forward pass and the labels.
 * A batch is cut into passes of whole windows that fit the model's rows; gradients accumulate over the passes in order, and stage1_update()
 * takes one AdamW step for all layers together.
 *
 * Ranks   coordinator; the others answer moe's requests.
 * Order   all sums of a batch have one order, and what comes back from other ranks is exact, so a run has the same bits for every number of ranks.
 * Memory  taken at open.
 */
#ifndef TRAIN_STAGE1_H
#define TRAIN_STAGE1_H

#include <stdbool.h>

#include "data/spec.h"
#include "model/model.h"
#include "num/adamw.h"
#include "train/checkpoint.h"
#include "train/router_model.h"
#include "train/windows.h"

struct stage1_options {
    enum spec_labels labels;
    enum spec_loss loss;
    const int *active; /* [layers]: k of the labels; borrowed */
    enum spec_token_weights
        token_weights;          /* each row's loss counts w_t of the sum of w: 1, |y_t| or |y_t|^2 of the dense FFN's output */
    bool compensate;            /* Gram labels with the model's compensation */
    int rows;                   /* of one pass; a window is at most this long */
    int sessions;               /* windows of one pass */
    struct adamw_options adamw; /* decay is for weights; biases have none */
    double clip;                /* of the global norm of the gradient */
    /* Called in every layer of a pass, may be NULL: a sign of life to the followers.  true ends the batch with STOPPED. */
    bool (*alive)(void *ctx);
    void *alive_ctx;
};

/* What the last batch showed, per layer. */
struct stage1_tally {
    int64_t rows;
    double *loss;      /* [layers] weighted mean over rows */
    double *agreement; /* [layers] mean over rows of |top_k(z) & label| / k */
    uint64_t *load;    /* [layers][experts] rows whose top_k has the expert */
};

struct stage1;

/* r is trained in place; m may be NULL if only stage1_learn() is called.  All are borrowed.  ERR_LIMIT. */
status stage1_open(struct stage1 **out, struct router *r, struct model *m, struct gemm *g, const struct stage1_options *o,
                   struct err *e);
void stage1_close(struct stage1 *s); /* NULL is fine */

enum stage1_mode {
    STAGE1_LEARN,   /* labels, losses, gradients */
    STAGE1_MEASURE, /* the same without gradients */
    STAGE1_SCORES,  /* router scores only: no labels */
};
/* One batch.  scores, for STAGE1_SCORES: [layers][rows of all windows][experts].  ERR_RANK, STOPPED: the routers are as they were. */
status stage1_batch(struct stage1 *s, enum stage1_mode mode, const struct window *w, int n, float *scores, struct err *e);
/* What the teacher says of rows h of a layer: sets [rows][bits_words(N)] and, for labels that have them, values [rows][N] (else NULL), both until the next call; y: the dense
 * output, [rows, D]. */
status stage1_teach(struct stage1 *s, int layer, const float *h, const float *y, int rows, const uint64_t **label,
                    const float **value, struct err *e);
/* One optimizer step with the gradients of the last STAGE1_LEARN batch.  Returns their norm before clipping. */
double stage1_update(struct stage1 *s, double learning_rate);
const struct stage1_tally *stage1_tally(const struct stage1 *s);

/* What rows of these dense outputs y [rows, D] weigh: [rows], before they are made to have the sum 1. */
void stage1_weights(const struct stage1 *s, const float *y, int rows, double *weight);

/* The pieces of stage1_batch(), for states that come from elsewhere: begin a batch of `rows`, then rows of one layer with their dense outputs (NULL with
 * even weights), their labels, and values if the loss is about those. */
void stage1_begin(struct stage1 *s, int64_t rows);
void stage1_learn(struct stage1 *s, enum stage1_mode mode, int layer, const float *h, const float *y, const uint64_t *label,
                  const float *value, int rows);
void stage1_end(struct stage1 *s);

/* The state, for a checkpoint: routers and moments, returns how many arrays; and the number of steps done. */
enum { STAGE1_ARRAYS = ROUTER_MODEL_ARRAYS };
int stage1_arrays(struct stage1 *s, struct checkpoint_array out[STAGE1_ARRAYS]);
int64_t stage1_steps(const struct stage1 *s);
void stage1_set_steps(struct stage1 *s, int64_t steps);

#endif
