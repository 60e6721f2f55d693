/* AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) and bias correction.
 *
 * Moments are float32, so that a saved state (m, v, step) is the state, bit for bit; a step is computed in double.
 */
#ifndef NUM_ADAMW_H
#define NUM_ADAMW_H

#include <stddef.h>
#include <stdint.h>

struct adamw_options {
    double beta1, beta2, epsilon;
    double weight_decay; /* of lr: p -= lr * weight_decay * p */
};

struct adamw { /* of n parameters; arrays are the caller's, zero at the start */
    size_t n;
    float *m, *v;
    int64_t steps; /* done */
};

/* One step on p[n] with gradient gscale * g[n]. */
void adamw_step(struct adamw *a, float *p, const float *g, double gscale, double lr, const struct adamw_options *o);

/* Clipping by the global norm: sum the squares of all gradients, take the root, scale all of them by clip_scale().
 * clip_scale(norm, limit) is min(1, limit / norm); a limit of 0 does not clip. */
double sum_of_squares(const float *x, size_t n);
double clip_scale(double norm, double limit);

#endif
