/* The inner products: rows of activations against panels of packed weights, on one thread.
 *
 * The definition (kernel_plain.c is its text; every level gives the same bits as it does):
 *   f32, bf16  chains of CHAIN = 256 inputs: s = 0, s = fma(x[k], w[k], s) in the order of k; the chains' results are added in order:
 *              y = s_0, y = y + s_1, ...
 *   q8, q4     for every block b of 32 inputs: n = sum of q_x[k] * q_w[k], exact in integers; y = 0, y = fma((float)n, scale_x * scale_w, y) in the order of b
 * So a result depends on its row and its weights alone: not on the other rows, not on threads, ranks, or the processor.  (With `half` activations, see
 * below, it does depend on the processor.)
 */
#ifndef NUM_KERNEL_H
#define NUM_KERNEL_H

#include "num/isa.h"
#include "num/packed.h"
#include "num/rows.h"

enum { CHAIN = 256 };

struct kernel {
    enum isa isa;
    int tile; /* rows that go through a panel at once: multiples of it are best */
    /* y[i * ldy + c] = row (index ? index[i] : i) of x times output PANEL_LANES * first + c, for c = 0 .. PANEL_LANES * panels - 1: whole panels are written, the padding's
     * outputs too (zeros), so ldy >= PANEL_LANES * panels.  y does not overlap x.  scratch: kernel_scratch_bytes(), one for each thread, aligned to 64. */
    void (*product)(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch);
};

/* The best kernels up to `most`: there may be none of just that level. */
const struct kernel *kernel_for(enum isa most);
size_t kernel_scratch_bytes(void);

#endif
