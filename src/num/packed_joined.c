/* Matrices side by side as one, whose outputs begin at any lane of a panel. */
#include <string.h>

#include "base/err.h"
#include "num/packed_joined.h"

/* The word of output `row` in line `step` of its panel. */
static uint32_t *word(const struct packed *p, int row, int step)
{
    size_t steps = (size_t)packed_steps(p->format, p->cols);

    return (uint32_t *)p->lines + ((size_t)(row / PANEL_LANES) * steps + (size_t)step) * PANEL_LANES + row % PANEL_LANES;
}

static uint16_t *scale(const struct packed *p, int row, int block)
{
    size_t blocks = (size_t)packed_blocks(p->cols);

    return (uint16_t *)p->scale + ((size_t)(row / PANEL_LANES) * blocks + (size_t)block) * PANEL_LANES + row % PANEL_LANES;
}

void pack_nothing(const struct packed *out)
{
    static const int zero[FORMAT_COUNT] = {[FORMAT_Q8] = 0x80, [FORMAT_Q4] = 0x88};

    memset((void *)out->lines, zero[out->format], packed_line_bytes(out->format, out->rows, out->cols));
    if (out->scale) memset((void *)out->scale, 0, packed_scale_bytes(out->format, out->rows, out->cols));
}

void pack_outputs(const struct packed *out, int at, const struct packed *w)
{
    int steps = packed_steps(out->format, out->cols);

    BUG_ON(at < 0 || at + w->rows > out->rows || w->cols != out->cols);
    BUG_ON(w->format != out->format && out->format != FORMAT_F32);
    for (int row = 0; row < w->rows; row++) {
        if (w->format == out->format)
            for (int i = 0; i < steps; i++) *word(out, at + row, i) = *word(w, row, i);
        else
            for (int i = 0; i < steps; i++) *(float *)(void *)word(out, at + row, i) = packed_at(w, row, i);
        for (int i = 0; out->scale && i < packed_blocks(out->cols); i++) *scale(out, at + row, i) = *scale(w, row, i);
    }
}

void pack_inputs(const struct packed *out, int at, const struct packed *w)
{
    BUG_ON(at < 0 || at + w->cols > out->rows || w->rows != out->cols || out->format != FORMAT_F32);
    for (int col = 0; col < w->cols; col++)
        for (int row = 0; row < w->rows; row++) *(float *)(void *)word(out, at + col, row) = packed_at(w, row, col);
}
