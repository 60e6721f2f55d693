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

/* Asks for a line of memory.  Not the compilers' builtin: gcc takes a loop for empty that does nothing else. */
VECTOR void v_ask(const void *p)
{
    __asm__ volatile("prefetcht0 (%0)" : : "r"(p));
}

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

VECTOR vi vi_splat(const void *p) /* 32 bits */
{
    return _mm256_set1_epi32(*(const int32_t *)__builtin_assume_aligned(p, 4));
}
VECTOR vi vi_zero(void)
{
    return _mm256_setzero_si256();
}
VECTOR vi vi_add32(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
/* *a is ready in a register from here on: compilers would put it off, and then lack registers. */
VECTOR void vi_hold(vi *a)
{
    __asm__ volatile("" : "+x"(*a));
}
VECTOR vi vi_sub32(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}
VECTOR vf vf_from_int(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
VECTOR vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
VECTOR vf vf_bits(vi a)
{
    return _mm256_castsi256_ps(a);
}
VECTOR vf vf_widen(const uint16_t *p) /* V_FLOATS bfloat16 */
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}

/* Of each 32 bits: bytes 0 and 2, and bytes 1 and 3, as 16 bits each; the low and the high halves of the bytes. */
VECTOR vi vi_even_bytes(vi a)
{
    return _mm256_and_si256(a, _mm256_set1_epi16(0xff));
}
VECTOR vi vi_odd_bytes(vi a)
{
    return _mm256_srli_epi16(a, 8);
}
VECTOR vi vi_low_nibbles(vi a)
{
    return _mm256_and_si256(a, _mm256_set1_epi8(15));
}
VECTOR vi vi_high_nibbles(vi a)
{
    return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15));
}
/* Products of neighbours, added to *sum: of 16 bits into 32; of unsigned and signed bytes into 16, which must not overflow.  In place, as vf_add_product() is. */
VECTOR void vi_add_pairs16(vi *sum, vi a, vi b)
{
    vi product;

    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(product) : "x"(a), "x"(b));
}
/* (x + w')(x' + w) of 16 bits, neighbours added to 32 and to *sum and *next: x and x' are two words each at `x`, for all lanes; w is `even` and `even_next`, w' `odd` and `odd_next`.
 * As one piece of text with registers of its own, because compilers that may choose run out of them, or move sums about.  Both halves go side by side: one behind the other takes 2 % longer.
 * Of each instruction the operand that is written first here is one of the lower eight registers: so its code is a byte shorter, and more of it fits where the processor keeps it decoded. */
#define PAIR_SUMS_TEXT                                                                                                           \
    "vpbroadcastd %2, %%ymm0\n\tvpbroadcastd %3, %%ymm1\n\t"                                                                     \
    "vpaddw %%ymm0, %5, %%ymm2\n\tvpaddw %%ymm1, %4, %%ymm3\n\t"                                                                 \
    "vpaddw %%ymm0, %7, %%ymm0\n\tvpaddw %%ymm1, %6, %%ymm1\n\t"                                                                 \
    "vpmaddwd %%ymm3, %%ymm2, %%ymm2\n\tvpmaddwd %%ymm1, %%ymm0, %%ymm0\n\t"
#define PAIR_SUMS_FROM                                                                                                           \
    "m"(*(const int16_t(*)[2])x), "m"(*(const int16_t(*)[2])(x + 2)), "x"(even), "x"(odd), "x"(even_next), "x"(odd_next)
VECTOR void vi_add_pair_sums(vi *sum, vi *next, const int16_t *x, vi even, vi odd, vi even_next, vi odd_next)
{
    __asm__ volatile(PAIR_SUMS_TEXT "vpaddd %%ymm2, %0, %0\n\tvpaddd %%ymm0, %1, %1"
                     : "+&x"(*sum), "+&x"(*next)
                     : PAIR_SUMS_FROM
                     : "xmm0", "xmm1", "xmm2", "xmm3");
}
/* The same, added to what lies at `start` (two vectors), which comes with the addition. */
VECTOR void vi_first_pair_sums(vi *sum, vi *next, const int16_t *x, vi even, vi odd, vi even_next, vi odd_next, const vi *start)
{
    __asm__ volatile(PAIR_SUMS_TEXT "vpaddd %8, %%ymm2, %0\n\tvpaddd %9, %%ymm0, %1"
                     : "=&x"(*sum), "=&x"(*next)
                     : PAIR_SUMS_FROM, "m"(start[0]), "m"(start[1])
                     : "xmm0", "xmm1", "xmm2", "xmm3");
}
#undef PAIR_SUMS_TEXT
#undef PAIR_SUMS_FROM
VECTOR void vi_add_pairs8(vi *sum, vi a, vi b)
{
    vi product;

    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(*sum), "=&x"(product) : "x"(a), "x"(b));
}
VECTOR vi vi_pairs16(vi a, vi b)
{
    return _mm256_madd_epi16(a, b);
}
VECTOR vi vi_pairs8(vi a, vi b)
{
    return _mm256_maddubs_epi16(a, b);
}
VECTOR void vi_store(void *p, vi a) /* aligned */
{
    _mm256_store_si256(p, a);
}
VECTOR vi vi_widen_pairs(vi a) /* neighbours of 16 bits, added, as 32 */
{
    return _mm256_madd_epi16(a, _mm256_set1_epi16(1));
}

#endif
#endif
