#include "num/widen.h"

#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "num/lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static size_t widen_bf16_avx2(float *out, const uint16_t *in, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(in + i)));
        _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_slli_epi32(x, 16));
    }
    return i;
}

__attribute__((target("avx,f16c"))) static size_t widen_f16_f16c(float *out, const uint16_t *in, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(in + i))));
    return i;
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

/* gcc and clang know "f16c" here under different versions; every processor with AVX2 has it. */
static size_t widen_fast(float *out, const uint16_t *in, size_t n, enum dtype t)
{
    if (!has_avx2()) return 0;
    return t == DT_BF16 ? widen_bf16_avx2(out, in, n) : widen_f16_f16c(out, in, n);
}
#else
static size_t widen_fast(float *out, const uint16_t *in, size_t n, enum dtype t)
{
    (void)out, (void)in, (void)n, (void)t;
    return 0;
}
#endif

void widen_rows(float *out, const struct mat *m, int first, int rows)
{
    size_t cols = (size_t)m->cols;

    BUG_ON(first < 0 || rows < 0 || first + rows > m->rows);
    for (int r = 0; r < rows; r++, out += cols) {
        size_t at = (size_t)(first + r) * m->stride, i;

        if (m->dtype == DT_F32) {
            memcpy(out, (const float *)m->data + at, cols * sizeof(*out));
            continue;
        }
        const uint16_t *in = (const uint16_t *)m->data + at;
        i = widen_fast(out, in, cols, m->dtype);
        for (; i < cols; i++) out[i] = m->dtype == DT_BF16 ? widen_bf16(in[i]) : widen_f16(in[i]);
    }
}

/* Without branches, so that the compiler makes vectors of it; what is no number keeps its upper bits and becomes quiet. */
BODY void narrow_many_body(uint16_t *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits, rounded;

        memcpy(&bits, x + i, sizeof(bits));
        rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : rounded);
    }
}

TWICE(, narrow_many, (uint16_t * out, const float *x, size_t n), (out, x, n))
