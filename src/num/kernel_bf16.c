/* Kernels for AVX-512 BF16: rows of bfloat16 against bf16 weights, two inputs in one step.  All else is the level below. */
#include "num/half.h"
#include "num/kernel_levels.h"

#if defined(__AVX512BF16__)

#include <immintrin.h>
#include <string.h>

#include "base/err.h"

enum { TILE = 6, WIDE = 4, AHEAD = 2048, STEPS_OF_CHAIN = CHAIN / 2 };

#define INLINE static inline __attribute__((always_inline))

/* One chain of `steps` pairs: y[r] = or += x[r] times `wide` panels whose lines begin at w, w + panel, ...  24 sums, 4 lines and a pair fill the registers. */
INLINE void tile(int rows, int wide, float *y, size_t ldy, const uint16_t *const *x, size_t at, const char *w, size_t panel,
                 int steps, bool add)
{
    __m512 sum[TILE][WIDE];

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int p = 0; p < wide; p++) sum[r][p] = _mm512_setzero_ps();
    for (int s = 0; s < steps; s++, w += LINE_BYTES) {
        __m512bh line[WIDE];

#pragma GCC unroll 4
        for (int p = 0; p < wide; p++) {
            __builtin_prefetch(w + (size_t)p * panel + AHEAD);
            line[p] = (__m512bh)_mm512_load_si512(w + (size_t)p * panel);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            uint32_t bits;

            memcpy(&bits, x[r] + at + 2 * (size_t)s, sizeof(bits));
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)bits);
#pragma GCC unroll 4
            for (int p = 0; p < wide; p++) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], pair, line[p]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int p = 0; p < wide; p++) {
            float *out = y + (size_t)r * ldy + (size_t)p * PANEL_LANES;

            _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), sum[r][p]) : sum[r][p]);
        }
}

typedef void tile_of(float *y, size_t ldy, const uint16_t *const *x, size_t at, const char *w, size_t panel, int steps, bool add);

#define TILES(X) X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4) X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1)
#define DEFINE(rows, wide)                                                                                                       \
    static void tile_##rows##x##wide(float *y, size_t ldy, const uint16_t *const *x, size_t at, const char *w, size_t panel,     \
                                     int steps, bool add)                                                                        \
    {                                                                                                                            \
        tile(rows, wide, y, ldy, x, at, w, panel, steps, add);                                                                   \
    }
#define ENTRY(rows, wide) [rows][wide > 1] = tile_##rows##x##wide,
TILES(DEFINE)
static tile_of *const tiles[TILE + 1][2] = {TILES(ENTRY)};

/* A chain of some panels stays in the first cache while all rows pass. */
static void product_half(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                         int panels)
{
    size_t ld = half_ld(x->cols), steps = (size_t)packed_steps(FORMAT_BF16, x->cols), panel = steps * LINE_BYTES;
    const char *lines = (const char *)w->lines + (size_t)first * panel;
    int groups = (n + TILE - 1) / TILE;

    for (int p = 0, wide; p < panels; p += wide) {
        wide = panels - p >= WIDE ? WIDE : 1;
        for (size_t s = 0; s < steps; s += STEPS_OF_CHAIN) {
            int some = (int)(steps - s < STEPS_OF_CHAIN ? steps - s : STEPS_OF_CHAIN);

            for (int g = 0; g < groups; g++) {
                int from = n * g / groups, rows = n * (g + 1) / groups - from;
                const uint16_t *row[TILE];

                for (int r = 0; r < rows; r++) row[r] = x->half + (size_t)(index ? index[from + r] : from + r) * ld;
                tiles[rows][wide > 1](y + (size_t)from * ldy + (size_t)p * PANEL_LANES, ldy, row, 2 * s,
                                      lines + (size_t)p * panel + s * LINE_BYTES, panel, some, s > 0);
            }
        }
    }
}

static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    if (!x->half || w->format != FORMAT_BF16 || !w->cols) kernel_vnni.product(y, ldy, x, index, n, w, first, panels, scratch);
    else {
        BUG_ON(x->cols != w->cols);
        product_half(y, ldy, x, index, n, w, first, panels);
    }
}

const struct kernel kernel_bf16 = {ISA_BF16, TILE, product};

#endif
