/* What a fine-tuning takes on the coordinator beside the open model.  From the spec, the shape and the text's length, so that plan says what the job refuses. */
#ifndef JOBS_TRAINING_H
#define JOBS_TRAINING_H

#include "data/spec.h"
#include "model/shape.h"

enum training_part {
    TRAINING_ROUTER, /* its numbers, and gradient and two moments of those that are trained and not fitted */
    TRAINING_NORMS,  /* the same of trained norms, and what they were */
    TRAINING_PASS,   /* stage 2: what is kept of a pass (train/stage2.h) */
    /* of these, which come one after the other, only the largest: */
    TRAINING_FIT,        /* stage 1, if something is fitted: states of the tokens for that, and its sums (train/fit.h) */
    TRAINING_SCORES,     /* of the text that thresholds are found on */
    TRAINING_CHECKPOINT, /* trained experts of all ranks, while one is written (train/adapt.h) */
    TRAINING_PARTS
};

struct training_cost {
    size_t bytes[TRAINING_PARTS];
};

/* rows: of a pass.  Arrays of the sizes that they are taken with, no more of the text than the spec says there is, or its file has.  The version that stage 2 starts from is
 * not looked at: what it must have to train what the spec says, at least.  A form of a router that is refused costs nothing: the job will say so. */
void training_cost(struct training_cost *c, const struct spec *s, const struct shape *shape, int rows);
size_t training_total(const struct training_cost *c);
/* "router 0.1, fit_tokens 7.5": MiB of every part that there is. */
void training_say(struct str *out, const struct training_cost *c);
/* "fit_tokens (8192), ": keys of the spec that make it smaller, but limits.batch_rows; each with a comma behind it. */
void training_keys(struct str *out, const struct training_cost *c, const struct spec *s);

#endif
