/* The levels there are kernels for.  Private to num. */
#ifndef NUM_KERNEL_LEVELS_H
#define NUM_KERNEL_LEVELS_H

#include "num/kernel.h"

extern const struct kernel kernel_plain;
#if defined(__x86_64__)
extern const struct kernel kernel_avx2, kernel_avx512, kernel_vnni;
extern const struct kernel kernel_bf16; /* of rows with `half`: half.h */
extern const struct kernel kernel_amx;  /* of those, and of quantized ones */
#endif

/* What product() gets: a part for every kernel, and behind it one for those of half.c. */
enum { KERNEL_SCRATCH_BYTES = 1 << 18, HALF_SCRATCH_BYTES = 1 << 18 };

#endif
