/* One expert: a group of neurons of an FFN, and its share of the output.
 *
 * Exact sums.  Outputs of experts are added in double on a grid of 2^-36: grid() rounds a term to a multiple of 2^-36 (for |x| < 2^15), and sums of
 * such terms below 2^17 in magnitude are exact in double.  Every sum is looked at after every addition and must stay below 2^16 (SUM_LIMIT): if all
 * did on every rank, the result is the exact one, which any other order would have given; else it is an error (moe.h), never a
 * result that depends on the placement.  Exact sums do not depend on order or grouping, so the bits of a layer's output are the same
 * for every placement, number of ranks and arrival order, although each rank adds its experts before it answers.  An f32 output
 * of magnitude 1 has an ulp of 2^-23, so the grid costs no accuracy.
 */
#ifndef MOE_EXPERT_H
#define MOE_EXPERT_H

#include <stdbool.h>
#include <stdint.h>

#include "num/gemm.h"

struct expert {
    struct packed gate, up; /* [neurons, D]; lines NULL: not held by this rank */
    struct packed down;     /* [D, neurons] */
    /* For the static control, or NULL: which neurons stay, and what replaces the others. [neurons] */
    const uint8_t *keep;
    const float *fill;
};

#define SUM_LIMIT 0x1p16

static inline double grid(float x)
{
    const double magic = 0x1.8p16; /* ulp of [2^16, 2^17) is 2^-36 */

    return ((double)x + magic) - magic;
}

/* z[t][j] = silu(gate_j . h_t) * (up_j . h_t): [rows, neurons]; `up` is scratch of the same size. */
void expert_neurons(struct gemm *g, float *z, float *up, const struct expert *x, const float *h, int rows);
/* out[t] = e_i(h_t): [rows, D].  scratch: 2 * rows * neurons floats.  With `fixed` the static control's neurons: z = keep ? z : fill. */
void expert_output(struct gemm *g, float *out, const struct expert *x, const float *h, int rows, bool fixed, float *scratch);

#endif
