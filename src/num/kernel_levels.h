/* The levels there are kernels for.  Private to num. */
#ifndef NUM_KERNEL_LEVELS_H
#define NUM_KERNEL_LEVELS_H

#include "num/kernel.h"

extern const struct kernel kernel_plain, kernel_avx2; /* the latter on x86-64 only */

enum { KERNEL_SCRATCH_BYTES = 1 << 18 };

#endif
