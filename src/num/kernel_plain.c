/* The definition of a product, in plain loops: kernel.h. */
#include <math.h>

#include "base/err.h"
#include "base/mat.h"
#include "num/kernel_levels.h"

static void chains(float *y, const float *x, const struct packed *w, int panel)
{
    for (int lane = 0; lane < PANEL_LANES; lane++) {
        float total = 0.0f;

        for (int begin = 0; begin < w->cols; begin += CHAIN) {
            int end = w->cols - begin < CHAIN ? w->cols : begin + CHAIN;
            float s = 0.0f;

            for (int k = begin; k < end; k++) s = fmaf(x[k], packed_at(w, panel * PANEL_LANES + lane, k), s);
            total = begin ? total + s : s;
        }
        y[lane] = total;
    }
}

static void blocks(float *y, const struct rows *x, int row, const struct packed *w, int panel)
{
    int n = packed_blocks(w->cols), per = format_per_line(w->format), bias = w->format == FORMAT_Q8 ? 128 : 8;
    size_t steps = (size_t)packed_steps(w->format, w->cols);
    const uint8_t *lines = (const uint8_t *)w->lines + (size_t)panel * steps * LINE_BYTES;
    const uint16_t *scale = w->scale + (size_t)panel * (size_t)n * PANEL_LANES;

    for (int lane = 0; lane < PANEL_LANES; lane++) {
        float total = 0.0f;

        for (int b = 0; b < n; b++) {
            size_t at = (size_t)row * (size_t)n + (size_t)b;
            int32_t sum = -bias * x->sum[at];

            for (int i = 0; i < QUANT_BLOCK && b * QUANT_BLOCK + i < (int)steps * per; i++) {
                int k = b * QUANT_BLOCK + i, j = k % per;
                int q = lines[(size_t)(k / per) * LINE_BYTES + (size_t)(lane * 4 + j % 4)];

                if (w->format == FORMAT_Q4) q = j < 4 ? q & 15 : q >> 4;
                sum += q * x->q[at * QUANT_BLOCK + (size_t)i];
            }
            total = fmaf((float)sum, x->scale[at] * widen_bf16(scale[b * PANEL_LANES + lane]), total);
        }
        y[lane] = total;
    }
}

static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    (void)scratch;
    BUG_ON(x->cols != w->cols || (format_has_scales(w->format) && (!x->q || x->only_wide)));
    for (int i = 0; i < n; i++)
        for (int p = 0; p < panels; p++) {
            int row = index ? index[i] : i;
            float *out = y + (size_t)i * ldy + (size_t)p * PANEL_LANES;

            if (format_has_scales(w->format)) blocks(out, x, row, w, first + p);
            else chains(out, x->x + (size_t)row * x->ld, w, first + p);
        }
}

const struct kernel kernel_plain = {ISA_PLAIN, 1, product};
