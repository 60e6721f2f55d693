/* Widening of weights and rounding to bfloat16 at full speed: mat_widen() and narrow_bf16() of base/mat.h with vector instructions where the processor has them. */
#ifndef NUM_WIDEN_H
#define NUM_WIDEN_H

#include <stddef.h>
#include <stdint.h>

#include "base/mat.h"

/* out[rows * cols] = rows first .. first + rows - 1 of m as float32; the bits of mat_widen(). */
void widen_rows(float *out, const struct mat *m, int first, int rows);

/* out[i] = narrow_bf16(x[i]), for n values. */
void narrow_many(uint16_t *out, const float *x, size_t n);

#endif
