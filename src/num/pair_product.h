/* Few rows times one panel of each of two matrices, side by side: gate and up of an expert of few neurons, whose panels are too few for a product to have
 * enough sums in flight. */
#ifndef NUM_PAIR_PRODUCT_H
#define NUM_PAIR_PRODUCT_H

#include <stdbool.h>

#include "num/kernel.h"

enum { PAIR_ROWS = 3 };

/* a[i * ld + c] and b[i * ld + c], c = 0 .. PANEL_LANES - 1: what k->product() gives for panel `panel` of wa and of wb, with rows index[i], i < n.
 * false: nothing was done; pair_product_has() is false, or rows are too many. */
bool pair_product(const struct kernel *k, float *a, float *b, size_t ld, const struct rows *x, const int *index, int n,
                  const struct packed *wa, const struct packed *wb, int panel);
/* There is such a kernel for up to PAIR_ROWS rows: of the level AVX2 (as in exact_product.h), f32 and bf16, rows that are not rounded nor too long. */
bool pair_product_has(const struct kernel *k, const struct rows *x, const struct packed *wa, const struct packed *wb);

#endif
