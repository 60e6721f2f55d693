/* One trainer, as its parts see it: stage2.c memory, passes, the step; stage2_gates.c what is chosen, left out and relaxed; stage2_terms.c the terms of the loss that know
 * the whole pass; stage2_head.c losses of the logits; stage2_threshold.c thresholds. */
#ifndef TRAIN_STAGE2_INTERNAL_H
#define TRAIN_STAGE2_INTERNAL_H

#include "base/bits.h"
#include "train/stage2.h"

enum { STAGE2_HEAD_ROWS = 128, STAGE2_TASK_ROWS = 8 };

struct stage2 {
    struct router *router;
    struct model *model;
    struct moe *moe;
    struct gemm *gemm;
    const struct shape *shape;
    struct stage2_options o;
    struct arena *arena;
    struct router_model *trained;
    struct backward *backward;
    struct router_param means; /* n 0: none */
    struct stage2_tally tally;
    double temperature;
    bool learned; /* there is a batch to update from */

    /* one pass: states, scores and sets of every layer */
    int32_t *token, *position, *session, *target;
    float *entrance, *middle; /* [layers + 1][rows][D], the last is behind the last layer; [layers][rows][D] */
    float *z;                 /* [layers][rows][N] */
    uint64_t *set;            /* [layers][rows][words] */
    double *spread;           /* [layers] standard deviation of the scores */
    uint64_t *load;           /* [layers][N] of the pass */
    double *pull;             /* [layers][N] of the budget and the load term: dL/dg of every row */
    double *group;            /* [groups] */
    /* one layer, or the head */
    float *h, *dx, *dh;            /* [rows][D]; dx goes through all layers */
    float *hidden;                 /* [rows][D] behind the final norm */
    float *taught, *taught_h;      /* [rows][D] the teacher's states and FFN input; at the end behind the final norm */
    float *off;                    /* [rows][N] 1 of an expert that is left out */
    double *sums;                  /* [tasks][2] of scores and their squares */
    float *dgate, *dz;             /* [rows][N] */
    float *low, *lifted;           /* [rows][low_rank], [rows][D] */
    float *logits, *taught_logits; /* [STAGE2_HEAD_ROWS][V] */
    double *kl, *nll;              /* [STAGE2_HEAD_ROWS] */
    float *threshold;              /* [layers] before a shift */
    /* a batch of stage2_thresholds(), else NULL: scores of all its passes */
    float *scores; /* [layers][score_rows][N], malloc'ed */
    size_t score_rows;
};

/* Of a layer: states in front of its attention (layer may be the number of layers) and behind it, scores and sets. */
static inline float *stage2_entrance(const struct stage2 *s, int layer)
{
    return s->entrance + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->width;
}

static inline float *stage2_middle(const struct stage2 *s, int layer)
{
    return s->middle + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->width;
}

static inline float *stage2_scores(const struct stage2 *s, int layer)
{
    return s->z + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->experts;
}

static inline uint64_t *stage2_sets(const struct stage2 *s, int layer)
{
    return s->set + (size_t)layer * (size_t)s->o.rows * (size_t)bits_words(s->shape->experts);
}

/* ---- gates ---- */

/* Scores of s->h, sets, loads and the deviation of the scores. */
void stage2_choose(struct stage2 *s, int layer, int rows);
float stage2_scale(const struct stage2 *s, int layer);
/* x += what inference adds in moe_end() for what is left out: here it changes in every step. */
void stage2_compensate(struct stage2 *s, int layer, int rows, float *x);
/* From s->dx: gradients of the means, s->dh += what goes back through the term of low rank (if anything is below), and all that pulls at gates: s->dgate, which has
 * <dy, scale e_i>, becomes dL/dg. */
void stage2_gates_backward(struct stage2 *s, int layer, int rows, bool below);
/* s->dz, of the scores, from s->dgate. */
void stage2_relax(struct stage2 *s, int layer, int rows);

/* ---- losses ---- */

/* Shares of the pass, and what the budget and the load term add to the loss of its rows; s->pull. */
double stage2_whole_pass(struct stage2 *s, int rows);
/* Losses of all rows, some rows of logits at a time, added to the tally; with `learn` what goes back to the states behind the last layer, in s->dx. */
void stage2_losses(struct stage2 *s, int rows, bool learn);

#endif
