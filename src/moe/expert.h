/* One expert: a group of neurons of an FFN, and its share of the output. */
#ifndef MOE_EXPERT_H
#define MOE_EXPERT_H

#include <stdbool.h>
#include <stdint.h>

#include "num/exact.h"
#include "num/gemm.h"

struct adapted;

struct expert {
    struct packed gate, up; /* [neurons, D]; lines NULL: not held by this rank */
    struct packed down;     /* [D, neurons] */
    /* For a training end to end, or lines NULL: what gradients go back to h through, W_gate' and W_up' side by side, [D, 2 neurons]. */
    struct packed in_t;
    struct packed down_t; /* with limits.adapt: [neurons, D] */
    /* For the static control, or NULL: every neuron's place in the layer by importance, 0 the first, and what replaces those that do not stay. [neurons] */
    const int32_t *place;
    const float *fill;
    struct adapted *adapted; /* its weights are trained (adapted.h), or NULL */
};

/* z[t][j] = silu(gate_j . h_t) * (up_j . h_t): [rows, neurons]; `up` is scratch of the same size.  Not for q8 and q4: an FFN is looked at before it
 * is factorized, in the format that keeps every value. */
void expert_neurons(struct gemm *g, float *z, float *up, const struct expert *x, const float *h, int rows);

#endif
