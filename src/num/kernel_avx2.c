/* Kernels for AVX2 and FMA: 16 registers, so 6 rows by one panel of floats, 4 of integers, and less high but wider tiles for few rows. */
#include "num/kernel_levels.h"

#if defined(__AVX2__) && defined(__FMA__)

#include "num/vector_avx2.h"

enum { TILE = 6, MOST_WIDE = 4, QUANT_TILE = 4, QUANT_WIDE = 2 };
#define TILES(X)       X(1, 4) X(1, 1) X(2, 2) X(2, 1) X(3, 2) X(3, 1) X(4, 1) X(5, 1) X(6, 1)
#define QUANT_TILES(X) X(1, 2) X(1, 1) X(2, 1) X(3, 1) X(4, 1)
#define BYTE_DOTS      0
#define PAIR_SUMS      1

#include "num/kernel_float.h"
#include "num/kernel_quant.h"

const struct kernel kernel_avx2 = {ISA_AVX2, TILE, product};

#endif
