/* Widening of weights at full speed: mat_widen() of base/mat.h with vector instructions where the processor has them. */
#ifndef NUM_WIDEN_H
#define NUM_WIDEN_H

#include "base/mat.h"

/* out[rows * cols] = rows first .. first + rows - 1 of m as float32; the bits of mat_widen(). */
void widen_rows(float *out, const struct mat *m, int first, int rows);

#endif
