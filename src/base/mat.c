#include "base/mat.h"

#include <string.h>

#include "base/err.h"

size_t dtype_bytes(enum dtype t)
{
    return t == DT_F32 ? 4 : 2;
}

const char *dtype_name(enum dtype t)
{
    static const char *const names[] = {[DT_F32] = "F32", [DT_F16] = "F16", [DT_BF16] = "BF16"};

    return names[t];
}

float widen_bf16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

uint16_t narrow_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Half precision through float arithmetic: exact, because the scale factors are powers of two and float32 has every half. */
float widen_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = x >> 10 & 0x1f, fraction = x & 0x3ffu, bits;
    float f;

    if (exponent == 31) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    memcpy(&f, &bits, sizeof(f));
    return f;
}

uint16_t narrow_f16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00u;
    if (bits >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and more round to infinity */
    if (bits < 0x38800000u) {                       /* subnormal: adding 0.5 leaves the rounded fraction in the low bits */
        float f;
        uint32_t shifted;

        memcpy(&f, &bits, sizeof(f));
        f += 0.5f;
        memcpy(&shifted, &f, sizeof(shifted));
        return sign | (uint16_t)(shifted - 0x3f000000u);
    }
    bits += 0xfffu + (bits >> 13 & 1);
    return sign | (uint16_t)((bits - 0x38000000u) >> 13);
}

void mat_widen(float *out, const struct mat *m, int first_row, int rows)
{
    size_t cols = (size_t)m->cols;

    BUG_ON(first_row < 0 || rows < 0 || first_row + rows > m->rows);
    for (int r = 0; r < rows; r++, out += cols) {
        size_t at = (size_t)(first_row + r) * m->stride;

        if (m->dtype == DT_F32) {
            memcpy(out, (const float *)m->data + at, cols * sizeof(float));
        } else if (m->dtype == DT_BF16) {
            const uint16_t *in = (const uint16_t *)m->data + at;
            for (size_t c = 0; c < cols; c++) out[c] = widen_bf16(in[c]);
        } else {
            const uint16_t *in = (const uint16_t *)m->data + at;
            for (size_t c = 0; c < cols; c++) out[c] = widen_f16(in[c]);
        }
    }
}

float mat_at(const struct mat *m, int row, int col)
{
    size_t at = (size_t)row * m->stride + (size_t)col;

    BUG_ON(row < 0 || row >= m->rows || col < 0 || col >= m->cols);
    if (m->dtype == DT_F32) return ((const float *)m->data)[at];
    if (m->dtype == DT_BF16) return widen_bf16(((const uint16_t *)m->data)[at]);
    return widen_f16(((const uint16_t *)m->data)[at]);
}
