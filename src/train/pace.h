/* The learning rate over a run, and which windows of the text it visits in which order.  Pure. */
#ifndef TRAIN_PACE_H
#define TRAIN_PACE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The factor on the learning rate in step 0 .. steps-1: linear from 1/W to 1 over the first W = round(warmup * steps) steps, then half a
 * cosine from 1 down to `ratio`, which the last step has. */
double pace_factor(int64_t step, int64_t steps, double warmup, double ratio);

/* Every pass over the text visits all windows once, each pass in another order, from (seed, pass) alone: a place in the sequence is two
 * numbers, so a checkpoint needs no generator's state. */
struct visit {
    uint64_t seed;
    int windows;
    int64_t pass; /* of the window that comes next */
    int at;       /* its place in the pass */
    int *order;   /* [windows] of this pass */
};

status visit_init(struct visit *v, uint64_t seed, int windows, struct err *e); /* windows > 0 */
void visit_clear(struct visit *v);
void visit_seek(struct visit *v, int64_t pass, int at);
int visit_peek(const struct visit *v);
void visit_next(struct visit *v);

#endif
