/* A router in training: its parameters, their gradients and AdamW's moments, its scores and how errors of scores go back.
 *
 * Parameters are the arrays of a struct router, which is changed in place: weight, bias and, of kinds that have it, factor; thresholds, means and the rest
 * are not (whoever trains those adds them to the norm and steps them).
 * Order   backward() adds the rows of a call in a fixed order to the gradients, calls in the order in which they come; nothing depends on the threads.
 * Memory  malloc'ed when it is opened.
 */
#ifndef TRAIN_ROUTER_MODEL_H
#define TRAIN_ROUTER_MODEL_H

#include "moe/router.h"
#include "num/adamw.h"
#include "train/checkpoint.h"

enum { ROUTER_PARAMS = 3 };
struct router_param {
    const char *name; /* "weight", "bias", "factor" */
    float *value, *gradient;
    size_t n;          /* of all layers */
    bool decays;       /* weight decay is for matrices */
    struct adamw adam; /* its moments */
};

struct router_model;

/* r and g are borrowed; rows: most of one call.  ERR_LIMIT. */
status router_model_open(struct router_model **out, struct router *r, struct gemm *g, int rows, struct err *e);
void router_model_close(struct router_model *m); /* NULL is fine */
int router_model_params(struct router_model *m, struct router_param *out[ROUTER_PARAMS]);

/* z[rows][N] of the states h[rows][D]. */
void router_model_scores(struct router_model *m, int layer, const float *h, int rows, float *z);
/* dz[rows][N]: the error with respect to the scores of h.  Adds to the gradients of the layer, and, unless dh is NULL, the error with respect to h to dh[rows][D]. */
void router_model_backward(struct router_model *m, int layer, const float *h, const float *dz, int rows, float *dh);

void router_model_clear(struct router_model *m);                       /* gradients to zero */
void router_model_scale(struct router_model *m, int layer, double by); /* gradients of a layer */
double router_model_squares(const struct router_model *m);             /* of all gradients: for the global norm */
/* One AdamW step with gscale * gradient. */
void router_model_step(struct router_model *m, double gscale, double learning_rate, const struct adamw_options *o);
int64_t router_model_steps(const struct router_model *m); /* done */
void router_model_set_steps(struct router_model *m, int64_t steps);
/* Parameters and moments, for a checkpoint; returns how many. */
enum { ROUTER_MODEL_ARRAYS = 3 * ROUTER_PARAMS };
int router_model_arrays(struct router_model *m, struct checkpoint_array out[ROUTER_MODEL_ARRAYS]);

#endif
