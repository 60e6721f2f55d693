/* What the AVX2 products of few inputs or few rows share: a line of f32 or bf16 weights as floats, and floats on their way into exact sums (exact.h).
 * Includers may be built for any processor: whoever calls these has looked which one runs. */
#ifndef NUM_LINE_AVX2_H
#define NUM_LINE_AVX2_H

#include <immintrin.h>
#include <stdbool.h>

#include "num/exact.h"

#define VECTORS __attribute__((target("avx2,fma")))
#define INLINE  VECTORS static inline __attribute__((always_inline))

/* Half a line, of eight outputs; of a bf16 line the inputs in the low or in the high 16 bits. */
INLINE __m256 line_of(const char *w, bool half, bool high)
{
    __m256i bits = _mm256_load_si256((const __m256i *)(const void *)w);

    if (!half) return _mm256_castsi256_ps(bits);
    return _mm256_castsi256_ps(high ? _mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000u)) : _mm256_slli_epi32(bits, 16));
}

/* *sum = a * b + *sum, in place: left to itself gcc shuffles the sums among too few registers. */
INLINE void add_product(__m256 *sum, __m256 a, __m256 b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
}

/* Four outputs into their sums. */
INLINE void lift4(uint64_t *sum, __m128 x)
{
    __m256i *to = (__m256i *)(void *)sum;
    __m256d lifted = _mm256_add_pd(_mm256_cvtps_pd(x), _mm256_set1_pd(EXACT_MAGIC));

    _mm256_store_si256(to, _mm256_add_epi64(_mm256_load_si256(to), _mm256_castpd_si256(lifted)));
}

/* most: of each lane the largest magnitude of a term, as bits. */
INLINE __m256i larger(__m256i most, __m256 x)
{
    return _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
}

/* Eight terms scale * y into their sums; `most` with them. */
INLINE __m256i lift8(uint64_t *sum, __m256 y, __m256 scale, __m256i most)
{
    __m256 x = _mm256_mul_ps(scale, y);

    lift4(sum, _mm256_castps256_ps128(x));
    lift4(sum + 4, _mm256_extractf128_ps(x, 1));
    return larger(most, x);
}

VECTORS static inline uint32_t largest(__m256i most)
{
    uint32_t lane[8], all = 0;

    _mm256_storeu_si256((__m256i *)(void *)lane, most);
    for (int l = 0; l < 8; l++) all = lane[l] > all ? lane[l] : all;
    return all;
}

#endif
