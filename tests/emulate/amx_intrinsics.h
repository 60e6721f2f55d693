/* Tiles in plain C, as Intel's manual describes them: so that the logic of kernel_amx.c is checked on processors without AMX (compile with EMULATE_AMX).
 *
 * TDPBF16PS: for every element of the sums, the products of the even inputs are added up in order with fused multiply-adds, those of the odd ones as well; the two are
 * added, and then to the sum.  Round to nearest even, denormals are zero going in and coming out. */
#ifndef TESTS_EMULATE_AMX_INTRINSICS_H
#define TESTS_EMULATE_AMX_INTRINSICS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct emulated_tiles {
    uint8_t loaded, rows[8];
    uint16_t row_bytes[8];
    uint8_t data[8][16][64];
};

/* Each file that includes this has its own. */
static struct emulated_tiles emulated_tiles;

static inline void emulated_require(int right)
{
    if (!right) abort(); /* the processor would trap */
}

static inline void _tile_loadconfig(const void *config)
{
    const uint8_t *c = config;

    emulated_require(c[0] == 1 && c[1] == 0);
    memset(&emulated_tiles, 0, sizeof(emulated_tiles));
    for (int i = 0; i < 8; i++) {
        memcpy(&emulated_tiles.row_bytes[i], c + 16 + 2 * i, 2);
        emulated_tiles.rows[i] = c[48 + i];
        emulated_require(emulated_tiles.rows[i] <= 16 && emulated_tiles.row_bytes[i] <= 64);
        emulated_require(!emulated_tiles.rows[i] == !emulated_tiles.row_bytes[i]);
    }
    emulated_tiles.loaded = 1;
}

static inline void _tile_release(void)
{
    memset(&emulated_tiles, 0, sizeof(emulated_tiles));
}

static inline void _tile_zero(int t)
{
    emulated_require(emulated_tiles.loaded && emulated_tiles.rows[t]);
    memset(emulated_tiles.data[t], 0, sizeof(emulated_tiles.data[t]));
}

static inline void _tile_loadd(int t, const void *from, size_t stride)
{
    _tile_zero(t);
    for (int r = 0; r < emulated_tiles.rows[t]; r++)
        memcpy(emulated_tiles.data[t][r], (const char *)from + (size_t)r * stride, emulated_tiles.row_bytes[t]);
}

static inline void _tile_stored(int t, void *to, size_t stride)
{
    emulated_require(emulated_tiles.loaded && emulated_tiles.rows[t]);
    for (int r = 0; r < emulated_tiles.rows[t]; r++)
        memcpy((char *)to + (size_t)r * stride, emulated_tiles.data[t][r], emulated_tiles.row_bytes[t]);
}

static inline float emulated_flush(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}

static inline float emulated_bf16(const uint8_t *at)
{
    uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
    float x;

    memcpy(&x, &bits, sizeof(x));
    return emulated_flush(x);
}

static inline void _tile_dpbf16ps(int sums, int a, int b)
{
    struct emulated_tiles *t = &emulated_tiles;
    int inner = t->row_bytes[a] / 4;

    emulated_require(t->loaded && t->rows[sums] == t->rows[a] && t->row_bytes[sums] == t->row_bytes[b] && t->rows[b] == inner);
    emulated_require(sums != a && sums != b && a != b);
    for (int m = 0; m < t->rows[sums]; m++)
        for (int n = 0; n < t->row_bytes[sums] / 4; n++) {
            float part[2] = {0.0f, 0.0f}, sum;

            for (int k = 0; k < inner; k++)
                for (int i = 0; i < 2; i++)
                    part[i] = emulated_flush(fmaf(emulated_bf16(&t->data[a][m][4 * k + 2 * i]),
                                                  emulated_bf16(&t->data[b][k][4 * n + 2 * i]), part[i]));
            memcpy(&sum, &t->data[sums][m][4 * n], sizeof(sum));
            sum = emulated_flush(emulated_flush(sum) + emulated_flush(part[0] + part[1]));
            memcpy(&t->data[sums][m][4 * n], &sum, sizeof(sum));
        }
}

/* What TDPBSSD, TDPBSUD, TDPBUSD and TDPBUUD have in common; the letters say whether the bytes of a and of b are signed. */
static inline void emulated_bytes(int sums, int a, int b, int signed_a, int signed_b)
{
    struct emulated_tiles *t = &emulated_tiles;
    int inner = t->row_bytes[a] / 4;

    emulated_require(t->loaded && t->rows[sums] == t->rows[a] && t->row_bytes[sums] == t->row_bytes[b] && t->rows[b] == inner);
    emulated_require(sums != a && sums != b && a != b);
    for (int m = 0; m < t->rows[sums]; m++)
        for (int n = 0; n < t->row_bytes[sums] / 4; n++) {
            uint32_t sum;

            memcpy(&sum, &t->data[sums][m][4 * n], sizeof(sum));
            for (int k = 0; k < t->row_bytes[a]; k++) {
                uint8_t x = t->data[a][m][k], w = t->data[b][k / 4][4 * n + k % 4];

                sum += (uint32_t)((signed_a ? (int8_t)x : (int)x) * (signed_b ? (int8_t)w : (int)w));
            }
            memcpy(&t->data[sums][m][4 * n], &sum, sizeof(sum));
        }
}

static inline void _tile_dpbssd(int sums, int a, int b)
{
    emulated_bytes(sums, a, b, 1, 1);
}

static inline void _tile_dpbsud(int sums, int a, int b)
{
    emulated_bytes(sums, a, b, 1, 0);
}

static inline void _tile_dpbusd(int sums, int a, int b)
{
    emulated_bytes(sums, a, b, 0, 1);
}

static inline void _tile_dpbuud(int sums, int a, int b)
{
    emulated_bytes(sums, a, b, 0, 0);
}

#endif
