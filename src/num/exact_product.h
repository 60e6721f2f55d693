/* Products that go from registers into exact sums: what is left of an expert of few neurons when its output need not be stored and read again. */
#ifndef NUM_EXACT_PRODUCT_H
#define NUM_EXACT_PRODUCT_H

#include "num/exact.h"
#include "num/kernel.h"

enum { EXACT_PRODUCT_ROWS = 128 };

/* Row at[i] - first of *e += scale * (row i of x times the outputs of panels from .. from + panels - 1), i = 0 .. x->n - 1, no row twice: the same terms as k->product() and
 * exact_add(), panel by panel; e->cols >= PANEL_LANES * panels.
 * next: where the weights of the caller's next product begin, or NULL: few rows ask for them before they are done.
 * false: nothing was done, these weights or this processor have no such kernel (f32 and bf16 of at most CHAIN inputs have one, with rows that are not rounded), or there are more than
 * EXACT_PRODUCT_ROWS rows. */
bool exact_product(struct exact *e, const struct kernel *k, const int *at, int first, const struct rows *x,
                   const struct packed *w, int from, int panels, float scale, const void *next);

#endif
