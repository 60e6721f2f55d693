/* Kernels for AVX-512 F, BW, DQ and VL: 32 registers of 16 floats. */
#include "num/kernel_levels.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include "num/vector_avx512.h"

enum { TILE = 12, MOST_WIDE = 4, QUANT_TILE = 8, QUANT_WIDE = 4 };
/* clang-format off */
#define TILES(X) \
    X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4) \
    X(6, 2) X(7, 2) X(8, 2) X(9, 2) X(10, 2) X(11, 2) X(12, 2) \
    X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1) X(9, 1) X(10, 1) X(11, 1) X(12, 1)
#define QUANT_TILES(X) \
    X(1, 4) X(2, 4) \
    X(3, 2) X(4, 2) X(5, 2) X(6, 2) X(7, 2) X(8, 2) \
    X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1)
/* clang-format on */
#define BYTE_DOTS 0
#define PAIR_SUMS 0

#include "num/kernel_float.h"
#include "num/kernel_quant.h"

const struct kernel kernel_avx512 = {ISA_AVX512, TILE, product};

#endif
