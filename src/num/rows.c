#include "num/rows.h"

#include <math.h>
#include <string.h>

#include "base/err.h"
#include "num/packed.h"

static size_t up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

size_t rows_bytes(int n, int cols)
{
    size_t blocks = (size_t)n * (size_t)packed_blocks(cols);

    return up(blocks * QUANT_BLOCK) + up(blocks * sizeof(float)) + up(blocks * sizeof(int32_t));
}

void rows_room(struct rows *r, void *memory)
{
    size_t blocks = (size_t)r->n * (size_t)packed_blocks(r->cols);
    char *at = memory;

    r->q = (int8_t *)at;
    r->scale = (float *)(void *)(at + up(blocks * QUANT_BLOCK));
    r->sum = (int32_t *)(void *)(at + up(blocks * QUANT_BLOCK) + up(blocks * sizeof(float)));
}

static void quantize_block(int8_t *q, float *scale, int32_t *sum, const float *x, int n)
{
    float most = 0.0f, by;
    int32_t total = 0;

    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    *scale = most / 127.0f;
    by = *scale > 0.0f ? 1.0f / *scale : 0.0f;
    if (isinf(by)) by = 0.0f; /* numbers whose scale is denormal are as good as zero */
    for (int i = 0; i < n; i++) {
        float v = rintf(x[i] * by);

        v = v < -127.0f ? -127.0f : v;
        v = v > 127.0f ? 127.0f : v;
        q[i] = (int8_t)v;
        total += q[i];
    }
    memset(q + n, 0, (size_t)(QUANT_BLOCK - n));
    *sum = total;
}

void rows_quantize(struct rows *r, int first, int n)
{
    int blocks = packed_blocks(r->cols);

    BUG_ON(!r->q || first < 0 || first + n > r->n);
    for (int t = first; t < first + n; t++)
        for (int b = 0; b < blocks; b++) {
            size_t at = (size_t)t * (size_t)blocks + (size_t)b;
            int left = r->cols - b * QUANT_BLOCK;

            quantize_block(r->q + at * QUANT_BLOCK, r->scale + at, r->sum + at,
                           r->x + (size_t)t * r->ld + (size_t)b * QUANT_BLOCK, left < QUANT_BLOCK ? left : QUANT_BLOCK);
        }
}
