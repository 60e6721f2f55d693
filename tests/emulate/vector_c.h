/* Vectors of 16 in plain C, of src/num/vector_avx512.h what kernel_amx.c uses, for EMULATE_AMX. */
#ifndef TESTS_EMULATE_VECTOR_C_H
#define TESTS_EMULATE_VECTOR_C_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/mat.h"

#define VECTOR static inline
#define EACH   for (int i = 0; i < 16; i++)

typedef struct {
    float f[16];
} vf;
typedef struct {
    int32_t i[16];
} vi;

VECTOR vf vf_zero(void)
{
    return (vf){{0}};
}
VECTOR vf vf_loadu(const float *p)
{
    vf out;

    memcpy(out.f, p, sizeof(out.f));
    return out;
}
VECTOR void vf_storeu(float *p, vf a)
{
    memcpy(p, a.f, sizeof(a.f));
}
VECTOR vf vf_splat(const float *p)
{
    vf out;

    EACH out.f[i] = *p;
    return out;
}
VECTOR vf vf_mul(vf a, vf b)
{
    EACH a.f[i] *= b.f[i];
    return a;
}
VECTOR vf vf_fma(vf a, vf b, vf c)
{
    EACH c.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
    return c;
}
VECTOR vf vf_from_int(vi a)
{
    vf out;

    EACH out.f[i] = (float)a.i[i];
    return out;
}
VECTOR vf vf_widen(const uint16_t *p)
{
    vf out;

    EACH out.f[i] = widen_bf16(p[i]);
    return out;
}
VECTOR vi vi_load(const void *p)
{
    vi out;

    memcpy(out.i, p, sizeof(out.i));
    return out;
}
VECTOR vi vi_splat(const void *p)
{
    vi out;

    EACH memcpy(out.i + i, p, sizeof(*out.i));
    return out;
}
VECTOR vi vi_add32(vi a, vi b)
{
    EACH a.i[i] += b.i[i];
    return a;
}
VECTOR vi vi_sub32(vi a, vi b)
{
    EACH a.i[i] -= b.i[i];
    return a;
}

#endif
