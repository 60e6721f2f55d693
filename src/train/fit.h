/* What of a router is fitted in closed form: its start, and what it needs when it is in use.
 *
 * fit_start() walks through the dense model and gives every layer's W and b by least squares (num/moments.h) on what the loss is about: 2 for an expert in the label and -2
 * for another, or of values the targets of loss_regression(); rows weigh what they do in the loss (stage1_weights()).  V of low_rank and of a bottleneck are the
 * directions in which that solution varies most over these rows (moments_reduced(), which is not the SVD of W); of the bottleneck they are made small, where silu is
 * nearly linear, and W is solved for once more.  Of a gate V and U stay as they are: what they give are the inputs.
 * fit_compensation() walks through the student, front to back: the states that enter a layer are those that the compensated layers below give.  In a layer, in this
 * order, what is asked for: the threshold at which k are active in the mean; mu_i over the rows that do not select i; the scale s with the least sum |y - e_s - comp - s e_A|^2;
 * and the term of low rank, or the constant, for what then is still missing of the dense output y of the same state.
 * Both need a model with limits.oracle, and the same text gives the same bits on any number of ranks.
 */
#ifndef TRAIN_FIT_H
#define TRAIN_FIT_H

#include "model/model.h"
#include "train/stage1.h"

struct fit_options {
    int rows, sessions; /* of a pass */
    double ridge;
    const int *active;        /* [layers] k */
    bool (*alive)(void *ctx); /* as in stage1_options */
    void *alive_ctx;
};

/* Bytes that the two below take at most, one after the other, for so many tokens in passes of `rows`. */
size_t fit_cost(const struct router *r, int64_t tokens, int rows);

/* s: opened with the labels and the loss, of router r. */
status fit_start(struct router *r, struct stage1 *s, enum spec_loss loss, struct model *m, struct gemm *g, const struct window *w,
                 int n, const struct fit_options *o, struct err *e);

/* routing: what the model adds where r has nothing of its own (scale, compensate).  r has room for what is to be fitted: mu, scale, low_rank, offset; by_threshold:
 * thresholds, too.  Afterwards r is selected (moe_select()).  error, if not NULL: [layers] of what is missing after all over the size of y, both as sums of squares. */
status fit_compensation(struct router *r, struct model *m, struct gemm *g, const struct routing *routing, const struct window *w,
                        int n, const struct fit_options *o, double *error, struct err *e);

#endif
