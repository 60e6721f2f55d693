#include "num/rows.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "num/half.h"
#include "num/packed.h"

enum { INFINITE = 0x7f800000 }; /* the bits of infinity */

static size_t up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

size_t rows_bytes(int n, int cols)
{
    size_t blocks = (size_t)n * (size_t)packed_blocks(cols);

    return up(blocks * QUANT_BLOCK) + up(blocks * sizeof(float)) + up(blocks * sizeof(int32_t)) +
           up(blocks * sizeof(struct rows_wide)) + half_bytes(n, cols);
}

void rows_room(struct rows *r, void *memory, enum isa isa)
{
    size_t blocks = (size_t)r->n * (size_t)packed_blocks(r->cols);
    char *at = memory;

    r->isa = isa;
    r->q = (int8_t *)at;
    r->scale = (float *)(void *)(at + up(blocks * QUANT_BLOCK));
    r->sum = (int32_t *)(void *)(at + up(blocks * QUANT_BLOCK) + up(blocks * sizeof(float)));
}

void rows_wide_room(struct rows *r, void *memory)
{
    size_t blocks = (size_t)r->n * (size_t)packed_blocks(r->cols);

    BUG_ON(!r->q);
    r->wide = (struct rows_wide *)(void *)((char *)memory + up(blocks * QUANT_BLOCK) + up(blocks * sizeof(float)) +
                                           up(blocks * sizeof(int32_t)));
}

/* The scale of a block whose largest |x| has these bits, and what x is multiplied by. */
static float block_scale(uint32_t most, float *by)
{
    float x, scale;

    memcpy(&x, &most, sizeof(x));
    scale = x / 127.0f;
    *by = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (isinf(*by)) *by = 0.0f; /* numbers whose scale is denormal are as good as zero */
    if (most < INFINITE) return scale;
    *by = 0.0f;
    return NAN;
}

static void quantize_block(int8_t *q, float *scale, int32_t *sum, const float *x, int n)
{
    uint32_t most = 0, bits;
    int32_t total = 0;
    float by;

    for (int i = 0; i < n; i++) {
        memcpy(&bits, x + i, sizeof(bits));
        bits &= 0x7fffffff; /* which order as |x| does, infinity and NaN above all */
        most = bits > most ? bits : most;
    }
    *scale = block_scale(most, &by);
    for (int i = 0; i < n; i++) {
        q[i] = most < INFINITE ? (int8_t)rintf(x[i] * by) : 0; /* |x * by| < 127.5 */
        total += q[i];
    }
    memset(q + n, 0, (size_t)(QUANT_BLOCK - n));
    *sum = total;
}

static const uint8_t wide_order[4] = {0, 2, 1, 3}; /* of every four inputs in rows_wide; the other way round, too */

float rows_input(const struct rows *r, int t, int k)
{
    size_t block = (size_t)t * (size_t)packed_blocks(r->cols) + (size_t)(k / QUANT_BLOCK);
    int i = k % QUANT_BLOCK;

    if (!r->wide) return r->scale[block] * (float)r->q[block * QUANT_BLOCK + (size_t)i];
    return r->wide[block].scale * (float)r->wide[block].x[i / 4 * 4 + wide_order[i % 4]];
}

static void widen_block(struct rows_wide *to, const int8_t *q, float scale, int32_t sum)
{
    int pairs = ROWS_BIG;

    for (int i = 0; i < QUANT_BLOCK; i++) to->x[i] = q[i / 4 * 4 + wide_order[i % 4]];
    for (int i = 0; i < QUANT_BLOCK; i += 2) pairs += q[i] * q[i + 1];
    to->scale = scale, to->start = -128 * sum, to->pairs = (float)(pairs + 128 * sum);
}

#if defined(__x86_64__)
#include <immintrin.h>

/* A block of 16-bit numbers in its order, 16 each, and the sums of all and of the products of neighbours. */
__attribute__((target("avx2"))) static inline void put_wide(struct rows_wide *to, __m256i low, __m256i high, float scale,
                                                            int64_t sums)
{
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));

    _mm256_storeu_si256((__m256i *)(void *)to->x, _mm256_shuffle_epi8(low, order));
    _mm256_storeu_si256((__m256i *)(void *)(to->x + 16), _mm256_shuffle_epi8(high, order));
    to->scale = scale, to->start = -128 * (int32_t)sums, to->pairs = (float)(ROWS_BIG + (int32_t)(sums >> 32) - to->start);
}

/* Those sums: of all in the lower half, of products in the upper one. */
__attribute__((target("avx2"))) static inline int64_t sums_of(__m256i low, __m256i high)
{
    const __m256i ones = _mm256_set1_epi16(1), even = _mm256_set1_epi32(0xffff);
    __m256i sum = _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
    /* the upper half of each 32 bits, moved down, meets the lower one */
    __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(low, even), _mm256_srli_epi32(low, 16)),
                                     _mm256_madd_epi16(_mm256_and_si256(high, even), _mm256_srli_epi32(high, 16)));
    __m256i both = _mm256_hadd_epi32(sum, pairs);
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));

    return _mm_cvtsi128_si64(_mm_hadd_epi32(half, half));
}

__attribute__((target("avx2"))) static void widen_avx2(struct rows_wide *to, const int8_t *q, const float *scale, int blocks)
{
    for (int b = 0; b < blocks; b++, q += QUANT_BLOCK) {
        __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)q));
        __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(q + 16)));

        put_wide(to + b, low, high, scale[b], sums_of(low, high));
    }
}

__attribute__((target("avx2"))) static int32_t most_of(__m256i a)
{
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));

    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

/* quantize_block() of whole blocks unless q is NULL, and widen_block() unless `wide` is: the same bits. */
__attribute__((target("avx2"))) static void quantize_avx2(int8_t *q, float *scale, int32_t *sum, struct rows_wide *wide,
                                                          const float *x, int blocks)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);

    for (int b = 0; b < blocks; b++, x += QUANT_BLOCK) {
        __m256i v[4], most = _mm256_setzero_si256(), low, high;
        int64_t sums;
        float by, one;

        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_si256((const __m256i *)(const void *)(x + 8 * i));
            most = _mm256_max_epi32(most, _mm256_and_si256(v[i], magnitude));
        }
        one = block_scale((uint32_t)most_of(most), &by);
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(v[i]), _mm256_set1_ps(by)));
            if (isnan(one)) v[i] = _mm256_setzero_si256();
        }
        /* packs work in halves */
        low = _mm256_permute4x64_epi64(_mm256_packs_epi32(v[0], v[1]), 0xd8);
        high = _mm256_permute4x64_epi64(_mm256_packs_epi32(v[2], v[3]), 0xd8);
        sums = sums_of(low, high);
        if (q) {
            __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);

            _mm256_storeu_si256((__m256i *)(void *)(q + b * QUANT_BLOCK), bytes);
            scale[b] = one, sum[b] = (int32_t)sums;
        }
        if (wide) put_wide(wide + b, low, high, one, sums);
    }
}

static int quantize_fast(int8_t *q, float *scale, int32_t *sum, struct rows_wide *wide, const float *x, int blocks, enum isa isa)
{
    if (isa < ISA_AVX2) return 0;
    quantize_avx2(q, scale, sum, wide, x, blocks);
    return blocks;
}

static int widen_fast(struct rows_wide *to, const int8_t *q, const float *scale, int blocks, enum isa isa)
{
    if (isa < ISA_AVX2) return 0;
    widen_avx2(to, q, scale, blocks);
    return blocks;
}
#else
static int widen_fast(struct rows_wide *to, const int8_t *q, const float *scale, int blocks, enum isa isa)
{
    (void)to, (void)q, (void)scale, (void)blocks, (void)isa;
    return 0;
}

static int quantize_fast(int8_t *q, float *scale, int32_t *sum, struct rows_wide *wide, const float *x, int blocks, enum isa isa)
{
    (void)q, (void)scale, (void)sum, (void)wide, (void)x, (void)blocks, (void)isa;
    return 0;
}
#endif

void rows_widen(struct rows_wide *to, const int8_t *q, const float *scale, const int32_t *sum, int blocks, enum isa isa)
{
    for (int b = widen_fast(to, q, scale, blocks, isa); b < blocks; b++)
        widen_block(to + b, q + b * QUANT_BLOCK, scale[b], sum[b]);
}

static void quantize(struct rows *r, const float *x, size_t ld, int first, int n, int block, int blocks)
{
    int all = packed_blocks(r->cols), whole = r->cols / QUANT_BLOCK - block;

    BUG_ON(!r->q || first < 0 || first + n > r->n || block < 0 || block + blocks > all);
    whole = whole < 0 ? 0 : whole < blocks ? whole : blocks;
    for (int t = first; t < first + n; t++, x += ld) {
        size_t at = (size_t)t * (size_t)all + (size_t)block;
        struct rows_wide *wide = r->wide ? r->wide + at : NULL;
        int8_t *q = r->q + at * QUANT_BLOCK;

        for (int b = quantize_fast(r->only_wide ? NULL : q, r->scale + at, r->sum + at, wide, x, whole, r->isa); b < blocks;
             b++) {
            int left = r->cols - (block + b) * QUANT_BLOCK;

            quantize_block(q + b * QUANT_BLOCK, r->scale + at + b, r->sum + at + b, x + (size_t)b * QUANT_BLOCK,
                           left < QUANT_BLOCK ? left : QUANT_BLOCK);
            if (wide) widen_block(wide + b, q + b * QUANT_BLOCK, r->scale[at + (size_t)b], r->sum[at + (size_t)b]);
        }
    }
}

void rows_quantize(struct rows *r, int first, int n)
{
    rows_quantize_part(r, r->x + (size_t)first * r->ld, r->ld, first, n, 0, packed_blocks(r->cols));
}

void rows_quantize_part(struct rows *r, const float *x, size_t ld, int first, int n, int block, int blocks)
{
    BUG_ON(!rows_wait(r));
    if (r->q) quantize(r, x, ld, first, n, block, blocks);
    if (r->half) half_fill(r, x, ld, first, n, block, blocks);
}
