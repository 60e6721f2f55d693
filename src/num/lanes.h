/* What the small loops are written with.
 *
 * Every loop's result is fixed by the C text: element-wise arithmetic without fused multiply-add, and reductions in explicit lanes that are added in a stated
 * order.  A body is compiled twice, for the base processor and for AVX2 (without FMA), with the same bits; which one runs is asked of the processor.
 */
#ifndef NUM_LANES_H
#define NUM_LANES_H

#include <stdint.h>
#include <string.h>

enum { LANES = 8 };

#define BODY static inline __attribute__((always_inline))

/* Defines `linkage name parameters` from name_body. */
#if defined(__x86_64__)
#define TWICE(linkage, name, parameters, arguments)                                                                              \
    __attribute__((target("avx2"))) static void name##_avx2 parameters                                                           \
    {                                                                                                                            \
        name##_body arguments;                                                                                                   \
    }                                                                                                                            \
    linkage void name parameters                                                                                                 \
    {                                                                                                                            \
        if (__builtin_cpu_supports("avx2")) name##_avx2 arguments;                                                               \
        else name##_body arguments;                                                                                              \
    }
#else
#define TWICE(linkage, name, parameters, arguments)                                                                              \
    linkage void name parameters                                                                                                 \
    {                                                                                                                            \
        name##_body arguments;                                                                                                   \
    }
#endif

/* As vectors rather than loops: compilers turn clamps of scalars into branches, which no loop of theirs then vectorizes. */
typedef float lanes8 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits8 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

BODY void pick_lanes(lanes8 *out, const bits8 *mask, const lanes8 *a, const lanes8 *b) /* a where the mask is set, else b */
{
    *out = (lanes8)((*mask & (bits8)*a) | (~*mask & (bits8)*b));
}

BODY void raise_lanes(lanes8 *a, const lanes8 *b) /* a = b where b is larger */
{
    bits8 mask = *b > *a;

    pick_lanes(a, &mask, b, a);
}

/* exp(x) within 2 ulp for -87 <= x <= 88, clamped outside: 2^n * e^r with r in [-ln 2 / 2, ln 2 / 2], e^r by its Taylor series. */
BODY void exp_lanes(lanes8 *at)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, which then stands in the low bits */
    lanes8 x = *at, low = (lanes8){0} - 87.0f, high = (lanes8){0} + 88.0f, shifted, n, r, p;
    bits8 mask;

    mask = x < low;
    pick_lanes(&x, &mask, &low, &x);
    mask = x > high;
    pick_lanes(&x, &mask, &high, &x);
    shifted = x * 0x1.715476p0f + magic;
    n = shifted - magic;
    r = x - n * 0x1.62e4p-1f; /* ln 2 in two parts, the first short enough that n times it is exact */
    r = r - n * 0x1.7f7d1cp-20f;
    p = r * 0x1.a01a02p-13f + 0x1.6c16c2p-10f;
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    *at = p * (lanes8)(((bits8)shifted << 23) + 0x3f800000);
}

BODY float exp_lane(float x) /* what is left over, with the same bits */
{
    lanes8 all = (lanes8){0} + x;

    exp_lanes(&all);
    return all[0];
}

#endif
