/* The vectors that the kernels' bodies are written in: AVX-512 F, BW, DQ, VL, and VNNI where the compiler may use it.  vector_avx2.h says what the names mean. */
#ifndef NUM_VECTOR_AVX512_H
#define NUM_VECTOR_AVX512_H

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>
#include <stdint.h>

#define VECTOR static inline __attribute__((always_inline))

typedef __m512 vf;
typedef __m512i vi;

enum { V_BYTES = 64, V_FLOATS = 16, V_PER_LINE = 1 };

VECTOR vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
VECTOR vf vf_load(const void *p)
{
    return _mm512_load_ps(p);
}
VECTOR vf vf_loadu(const float *p)
{
    return _mm512_loadu_ps(p);
}
VECTOR void vf_storeu(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}
VECTOR vf vf_splat(const float *p)
{
    return _mm512_set1_ps(*p);
}
VECTOR vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VECTOR vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VECTOR vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VECTOR void vf_add_product(vf *sum, vf a, vf b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
VECTOR vi vi_load(const void *p)
{
    return _mm512_load_si512(p);
}
VECTOR vf vf_low_half(vi a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
}
VECTOR vf vf_high_half(vi a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xffff0000u)));
}
VECTOR vi vi_splat(const void *p)
{
    return _mm512_set1_epi32(*(const int32_t *)__builtin_assume_aligned(p, 4));
}
VECTOR vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
VECTOR vi vi_add32(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
VECTOR vi vi_sub32(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
VECTOR vf vf_from_int(vi a)
{
    return _mm512_cvtepi32_ps(a);
}
VECTOR vf vf_widen(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}
VECTOR vi vi_even_bytes(vi a)
{
    return _mm512_and_si512(a, _mm512_set1_epi16(0xff));
}
VECTOR vi vi_odd_bytes(vi a)
{
    return _mm512_srli_epi16(a, 8);
}
VECTOR vi vi_low_nibbles(vi a)
{
    return _mm512_and_si512(a, _mm512_set1_epi8(15));
}
VECTOR vi vi_high_nibbles(vi a)
{
    return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
}
VECTOR void vi_add_pairs16(vi *sum, vi a, vi b)
{
    vi product;

    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(*sum), "=&v"(product) : "v"(a), "v"(b));
}
VECTOR void vi_add_pairs8(vi *sum, vi a, vi b)
{
    vi product;

    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(*sum), "=&v"(product) : "v"(a), "v"(b));
}
VECTOR vi vi_pairs16(vi a, vi b)
{
    return _mm512_madd_epi16(a, b);
}
VECTOR vi vi_pairs8(vi a, vi b)
{
    return _mm512_maddubs_epi16(a, b);
}
VECTOR vi vi_widen_pairs(vi a)
{
    return _mm512_madd_epi16(a, _mm512_set1_epi16(1));
}
#ifdef __AVX512VNNI__
/* Four unsigned bytes times four signed ones, added to *sum, 32 bits. */
VECTOR void vi_add_dots(vi *sum, vi a, vi b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
#endif

#endif
#endif
