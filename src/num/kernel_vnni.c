/* Kernels for AVX-512 with VNNI: q8 and q4 by products of bytes; f32 and bf16 are those of kernel_avx512.c. */
#include "num/kernel_levels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "num/vector_avx512.h"

enum { QUANT_TILE = 8, QUANT_WIDE = 4 };
/* clang-format off */
#define QUANT_TILES(X) \
    X(1, 4) X(2, 4) \
    X(3, 2) X(4, 2) X(5, 2) X(6, 2) X(7, 2) X(8, 2) \
    X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1)
/* clang-format on */
#define BYTE_DOTS 1
#define PAIR_SUMS 0

#include "base/err.h"
#include "num/kernel_quant.h"

static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    if (!format_has_scales(w->format)) {
        kernel_avx512.product(y, ldy, x, index, n, w, first, panels, scratch);
        return;
    }
    BUG_ON(x->cols != w->cols || !x->q || x->only_wide);
    if (n > 0) product_quant(y, ldy, x, index, n, w, first, panels, scratch);
}

const struct kernel kernel_vnni = {ISA_VNNI, 12, product};

#endif
