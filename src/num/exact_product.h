/* Products that go from registers into exact sums: what is left of an expert of few neurons when its output need not be stored and read again. */
#ifndef NUM_EXACT_PRODUCT_H
#define NUM_EXACT_PRODUCT_H

#include "num/exact.h"
#include "num/kernel.h"

enum { EXACT_PRODUCT_ROWS = 128 };

/* Row at[i] - first of *e += scale * (row i of x times the outputs of panels from .. from + panels - 1), i = 0 .. x->n - 1, no row twice: the same terms as k->product() and
 * exact_add(), panel by panel; e->cols >= PANEL_LANES * panels.
 * next: where the weights of the caller's next product begin, or NULL: those of many rows are asked for before this one is done.
 * false: nothing was done, exact_product_has() is false. */
bool exact_product(struct exact *e, const struct kernel *k, const int *at, int first, const struct rows *x,
                   const struct packed *w, int from, int panels, float scale, const void *next);
/* There is such a kernel: of the level AVX2 (where it was measured; higher ones have wider products of their own), f32 and bf16 of at most CHAIN inputs, at most EXACT_PRODUCT_ROWS rows that are not rounded. */
bool exact_product_has(const struct kernel *k, const struct rows *x, const struct packed *w);

#endif
