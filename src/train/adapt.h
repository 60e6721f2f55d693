/* Weights that stage 2 trains beside the router and the means: what else the router version adds for what it leaves out, norms, the experts.
 *
 * What is trained here makes another model of the student.  The teacher stays what it was: adapt_use() says which of the two sets of weights forward passes run with, and
 * backward passes are the student's.  Gradients are sums over the rows of a batch, as stage2.h has them.
 *   term      A, B and d of the term B A h + d of the router version, as far as it has them; here.  The teacher has no such term
 *   scale     of active experts, one number a layer, of the router version; here.  The teacher has none: the sum of all experts is not scaled
 *   norms     of every layer in front of attention and in front of the FFN, and the last one; here
 *   experts   gate, up and down of all experts, the shared one too, or updates of low rank of them (limits.adapt, limits.lora): gradients, moments and steps on the
 *             ranks that hold them (moe/adapted.h)
 * Ranks   coordinator; the others answer moe's requests.
 * Order   fixed, and the same on any number of ranks.
 * Memory  malloc'ed at open: 4 floats a parameter that is trained here; while a checkpoint is written or read, 3 for each one of the experts.
 */
#ifndef TRAIN_ADAPT_H
#define TRAIN_ADAPT_H

#include "model/backward.h"
#include "num/adamw.h"
#include "train/checkpoint.h"
#include "train/router_model.h"

struct adapt_options {
    bool term, scale, norms, experts; /* scale: the router has one */
    double offset_rate,
        expert_rate; /* learning rates of d and of the experts over that of the router, which A, B, scales and norms have */
    int rows;        /* of a pass */
};

struct adapt;

/* m and r are borrowed and change.  m: opened with limits.train, and limits.adapt if experts are trained.  ERR_LIMIT. */
status adapt_open(struct adapt **out, struct model *m, struct router *r, const struct adapt_options *o, struct err *e);
void adapt_close(struct adapt *a); /* NULL is fine */

enum adapt_where { ADAPT_NORMS, ADAPT_EXPERTS };
bool adapt_learns(const struct adapt *a, enum adapt_where where); /* a may be NULL */
bool adapt_changes(const struct adapt *a);                        /* weights of the model: the teacher's differ */

/* All ranks.  ERR_RANK. */
status adapt_use(struct adapt *a, bool student, struct err *e);
status adapt_clear(struct adapt *a, struct err *e);                /* gradients to zero */
status adapt_squares(struct adapt *a, double *sum, struct err *e); /* of all gradients: for the global norm */
/* Step number `steps` + 1 with gscale * gradient. */
status adapt_step(struct adapt *a, int64_t steps, double gscale, double rate, const struct adamw_options *o, struct err *e);

/* From dy [rows, D], the error of what stands behind the layer, and the states h that entered its FFN. */
void adapt_term(struct adapt *a, int layer, const float *h, const float *dy, int rows);
/* From set [rows][words] and dgate [rows][N], <dy, scale e_i> (moe/moe.h), which is divided by the scale: one that is exactly 0 gets no gradient and never moves. */
void adapt_scale(struct adapt *a, int layer, const uint64_t *set, const float *dgate, int rows);
/* From dy, the error behind a norm, and x in front of it. */
enum adapt_norm { ADAPT_ATTENTION, ADAPT_FFN, ADAPT_LAST };
void adapt_norm(struct adapt *a, enum adapt_norm which, int layer, const float *dy, const float *x, int rows);

/* What is trained here. */
enum { ADAPT_PARAMS = 7 };
int adapt_params(struct adapt *a, struct router_param *out[ADAPT_PARAMS]);
/* For a checkpoint.  Those of the experts have a place here between adapt_gather(), with `fill` from the ranks, and adapt_scatter(), with `use` to the ranks. */
enum { ADAPT_ARRAYS = 3 * ADAPT_PARAMS + 3 };
int adapt_arrays(struct adapt *a, struct checkpoint_array out[ADAPT_ARRAYS]);
status adapt_gather(struct adapt *a, bool fill, struct err *e);
status adapt_scatter(struct adapt *a, bool use, struct err *e);

#endif
