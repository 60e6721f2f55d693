/* The vectors that the kernels' bodies are written in: AVX2.  vector_avx512.h gives the same names 64 bytes wide. */
#ifndef NUM_VECTOR_AVX2_H
#define NUM_VECTOR_AVX2_H

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>
#include <stdint.h>

#define VECTOR static inline __attribute__((always_inline))

typedef __m256 vf;  /* floats */
typedef __m256i vi; /* bits, or integers of the width in a function's name */

enum { V_BYTES = 32, V_FLOATS = 8, V_PER_LINE = 2 };

VECTOR vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
VECTOR vf vf_load(const void *p) /* aligned */
{
    return _mm256_load_ps(p);
}
VECTOR vf vf_loadu(const float *p)
{
    return _mm256_loadu_ps(p);
}
VECTOR void vf_storeu(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}
VECTOR vf vf_splat(const float *p)
{
    return _mm256_broadcast_ss(p);
}
VECTOR vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
VECTOR vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
VECTOR vf vf_fma(vf a, vf b, vf c) /* a * b + c */
{
    return _mm256_fmadd_ps(a, b, c);
}
/* *sum = a * b + *sum, in place: compilers that choose among the forms of an FMA shuffle long sums until they run out of registers. */
VECTOR void vf_add_product(vf *sum, vf a, vf b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
}
VECTOR vi vi_load(const void *p) /* aligned */
{
    return _mm256_load_si256(p);
}
VECTOR vf vf_low_half(vi a) /* the bfloat16 in the low 16 bits of each 32 */
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16));
}
VECTOR vf vf_high_half(vi a)
{
    return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32((int)0xffff0000u)));
}

#endif
#endif
