/* Rows of activations, ready for products: as they are for f32 and bf16 weights, and quantized for q8 and q4 weights, once for all the
 * products they go into. */
#ifndef NUM_ROWS_H
#define NUM_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "num/isa.h"

/* Between 2^23 and 2^24 floats are the integers, and their bits follow each other: n + ROWS_BIG_BITS are those of the float ROWS_BIG + n, if |n| < 2^22. */
enum { ROWS_BIG = 3 << 22, ROWS_BIG_BITS = 0x4b400000 };

/* A block of 32 quantized inputs as kernels want it that multiply pairs of 16 bits. */
struct rows_wide {
    int16_t x[32]; /* of every four inputs 0, 2, 1, 3 */
    float scale;
    int32_t start; /* -128 * the sum of x: weights are stored with a bias */
    float pairs;   /* ROWS_BIG + the sum of x[k] x[k + 1], k even, + 128 * the sum of x: what kernel_quant_many.h takes off */
};

struct rows {
    const float *x; /* row t at x + t * ld */
    size_t ld;
    int n, cols;
    /* Set by rows_quantize(), all or only `wide`, else NULL.  Blocks of 32 inputs as in packed.h: x ~ scale * q, scale = max |x| / 127, q = x * (1 / scale) rounded to even.
     * A block that holds an infinity or a NaN has the scale NaN, which every product of its row then is. */
    enum isa isa;           /* the level whose instructions quantize, which this processor has; all give the same bits */
    int8_t *q;              /* [n][blocks * 32], zeros behind cols; aligned to 32 */
    float *scale;           /* [n][blocks] */
    int32_t *sum;           /* [n][blocks] of the q of a block: weights are stored with a bias */
    struct rows_wide *wide; /* [n][blocks], or NULL: place given by rows_wide_room(); the same once more */
    bool only_wide;         /* q, scale and sum need not be filled: no product that these rows go into reads them */
    /* Place given by half_room() of half.h, else NULL: x as bfloat16, [n][half_ld()], zeros behind cols up to whole blocks; aligned to 64. */
    uint16_t *half;
};

/* Bytes that rows_room(), rows_wide_room() and half_room() (of half.h) together need, aligned to 64; of whole blocks of a row at most ROWS_BLOCK_BYTES each. */
enum { ROWS_BLOCK_BYTES = 32 + 4 + 4 + 64 + 4 + sizeof(struct rows_wide) };
size_t rows_bytes(int n, int cols);
/* Places q, scale and sum in `memory` (aligned to 64). */
void rows_room(struct rows *r, void *memory, enum isa isa);
/* Places `wide` there, for rows that rows_room() has given its places. */
void rows_wide_room(struct rows *r, void *memory);
/* Quantizes rows first .. first + n - 1, and rounds them if half_room() gave them a place; one of the two came before.  Any thread. */
void rows_quantize(struct rows *r, int first, int n);
/* The same for blocks block .. block + blocks - 1 only, of rows that come block by block, from wherever they are: inputs block * 32 .. of row first + t at x + t * ld. */
void rows_quantize_part(struct rows *r, const float *x, size_t ld, int first, int n, int block, int blocks);
/* Where part `part` of `parts` of n rows begins (n for part = parts): nearly equal parts of whole tiles of rows, be they of 4 or 6, or at levels with larger ones of 8 or 16.
 * Of no more rows than `most`, a multiple of 48 (of 12 below AVX-512), if parts * most >= n. */
static inline int rows_cut(int n, int parts, int part, enum isa isa)
{
    const int tile = isa < ISA_AVX512 ? 12 : 48, at = (n + tile - 1) / tile * part / parts * tile;

    return at < n ? at : n;
}
/* Whether rows_quantize() has to be called before products. */
static inline bool rows_wait(const struct rows *r)
{
    return r->q || r->half;
}
/* Input k of row t as products with q8 weights take it; it is quantized. */
float rows_input(const struct rows *r, int t, int k);
/* What `wide` has of `blocks` blocks. */
void rows_widen(struct rows_wide *to, const int8_t *q, const float *scale, const int32_t *sum, int blocks, enum isa isa);

#endif
