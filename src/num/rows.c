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

static void widen_block(struct rows_wide *to, const int8_t *q, float scale, int32_t sum)
{
    static const uint8_t order[4] = {0, 2, 1, 3};

    int pairs = ROWS_BIG;

    for (int i = 0; i < QUANT_BLOCK; i++) to->x[i] = q[i / 4 * 4 + order[i % 4]];
    for (int i = 0; i < QUANT_BLOCK; i += 2) pairs += q[i] * q[i + 1];
    to->scale = scale, to->start = -128 * sum, to->pairs = (float)pairs;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static void widen_avx2(struct rows_wide *to, const int8_t *q, const float *scale,
                                                       const int32_t *sum, int blocks)
{
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));

    for (int b = 0; b < blocks; b++, to++, q += QUANT_BLOCK) {
        __m256i bytes = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(const void *)q), order);
        __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
        __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
        /* of every four inputs 0 and 2 lie in the lower 32 bits, 1 and 3 in the upper ones */
        __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_srli_epi64(low, 32)),
                                         _mm256_madd_epi16(high, _mm256_srli_epi64(high, 32)));
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));

        _mm256_storeu_si256((__m256i *)(void *)to->x, low);
        _mm256_storeu_si256((__m256i *)(void *)(to->x + 16), high);
        to->scale = scale[b], to->start = -128 * sum[b];
        to->pairs = (float)(ROWS_BIG + _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2));
    }
}

__attribute__((target("avx2"))) static int32_t most_of(__m256i a)
{
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));

    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

/* quantize_block() of whole blocks, the same bits. */
__attribute__((target("avx2"))) static void quantize_avx2(int8_t *q, float *scale, int32_t *sum, const float *x, int blocks)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

    for (int b = 0; b < blocks; b++, x += QUANT_BLOCK, q += QUANT_BLOCK) {
        __m256i v[4], most = _mm256_setzero_si256(), bytes, sums;
        float by;

        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_si256((const __m256i *)(const void *)(x + 8 * i));
            most = _mm256_max_epi32(most, _mm256_and_si256(v[i], magnitude));
        }
        scale[b] = block_scale((uint32_t)most_of(most), &by);
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(v[i]), _mm256_set1_ps(by)));
            if (isnan(scale[b])) v[i] = _mm256_setzero_si256();
        }
        bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        _mm256_storeu_si256((__m256i *)(void *)q, _mm256_permutevar8x32_epi32(bytes, order)); /* packs work in halves */
        sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
        sum[b] = _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
    }
}

static int quantize_fast(int8_t *q, float *scale, int32_t *sum, const float *x, int blocks, enum isa isa)
{
    if (isa < ISA_AVX2) return 0;
    quantize_avx2(q, scale, sum, x, blocks);
    return blocks;
}

static int widen_fast(struct rows_wide *to, const int8_t *q, const float *scale, const int32_t *sum, int blocks, enum isa isa)
{
    if (isa < ISA_AVX2) return 0;
    widen_avx2(to, q, scale, sum, blocks);
    return blocks;
}
#else
static int widen_fast(struct rows_wide *to, const int8_t *q, const float *scale, const int32_t *sum, int blocks, enum isa isa)
{
    (void)to, (void)q, (void)scale, (void)sum, (void)blocks, (void)isa;
    return 0;
}

static int quantize_fast(int8_t *q, float *scale, int32_t *sum, const float *x, int blocks, enum isa isa)
{
    (void)q, (void)scale, (void)sum, (void)x, (void)blocks, (void)isa;
    return 0;
}
#endif

void rows_widen(struct rows_wide *to, const int8_t *q, const float *scale, const int32_t *sum, int blocks, enum isa isa)
{
    for (int b = widen_fast(to, q, scale, sum, blocks, isa); b < blocks; b++)
        widen_block(to + b, q + b * QUANT_BLOCK, scale[b], sum[b]);
}

static void quantize(struct rows *r, int first, int n, int block, int blocks)
{
    int all = packed_blocks(r->cols);

    BUG_ON(!r->q || first < 0 || first + n > r->n || block < 0 || block + blocks > all);
    for (int t = first; t < first + n; t++) {
        const float *x = r->x + (size_t)t * r->ld;
        size_t row = (size_t)t * (size_t)all;
        int b = block, end = block + blocks, whole = r->cols / QUANT_BLOCK < end ? r->cols / QUANT_BLOCK : end;

        if (whole > b)
            b += quantize_fast(r->q + (row + (size_t)b) * QUANT_BLOCK, r->scale + row + b, r->sum + row + b,
                               x + (size_t)b * QUANT_BLOCK, whole - b, r->isa);
        for (; b < end; b++) {
            int left = r->cols - b * QUANT_BLOCK;

            quantize_block(r->q + (row + (size_t)b) * QUANT_BLOCK, r->scale + row + b, r->sum + row + b,
                           x + (size_t)b * QUANT_BLOCK, left < QUANT_BLOCK ? left : QUANT_BLOCK);
        }
        if (!r->wide) continue;
        row += (size_t)block;
        rows_widen(r->wide + row, r->q + row * QUANT_BLOCK, r->scale + row, r->sum + row, blocks, r->isa);
    }
}

void rows_quantize(struct rows *r, int first, int n)
{
    rows_quantize_part(r, first, n, 0, packed_blocks(r->cols));
}

void rows_quantize_part(struct rows *r, int first, int n, int block, int blocks)
{
    BUG_ON(!rows_wait(r));
    if (r->q) quantize(r, first, n, block, blocks);
    if (r->half) half_fill(r, first, n, block, blocks);
}
