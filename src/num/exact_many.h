/* The part of exact_product() for many rows; its header says what it does.  Only for x86 with AVX2 and FMA. */
#ifndef NUM_EXACT_MANY_H
#define NUM_EXACT_MANY_H

#include "num/exact.h"
#include "num/kernel.h"

/* sum[i] += scale * (row i of x, at x + i * ld, times the outputs of panels from .. from + panels - 1), i < n; no two alike.  f32 and bf16, 1 .. CHAIN inputs.
 * next: the weights of the caller's next product, or NULL.  The largest magnitude of a term comes back, as the bits of a float. */
uint32_t exact_many(const float *x, size_t ld, uint64_t *const *sum, int n, const struct packed *w, int from, int panels,
                    float scale, const char *next);

#endif
