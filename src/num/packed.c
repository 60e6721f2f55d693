#include "num/packed.h"

#include <math.h>
#include <string.h>

#include "base/err.h"
#include "num/widen.h"

static const char *const names[FORMAT_COUNT] = {"f32", "bf16", "q8", "q4"};
static const int per_line[FORMAT_COUNT] = {1, 2, 4, 8};
/* Values of a quantized weight: -bias .. top. */
static const int bias[FORMAT_COUNT] = {0, 0, 128, 8}, top[FORMAT_COUNT] = {0, 0, 127, 7};

const char *format_name(enum format f)
{
    return names[f];
}

bool format_parse(const char *name, enum format *out)
{
    for (int i = 0; i < FORMAT_COUNT; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum format)i;
            return true;
        }
    return false;
}

bool format_has_scales(enum format f)
{
    return f == FORMAT_Q8 || f == FORMAT_Q4;
}

int format_per_line(enum format f)
{
    return per_line[f];
}

enum format format_of(enum dtype t)
{
    return t == DT_BF16 ? FORMAT_BF16 : FORMAT_F32;
}

int packed_steps(enum format f, int cols)
{
    return (cols + per_line[f] - 1) / per_line[f];
}

size_t packed_line_bytes(enum format f, int rows, int cols)
{
    return (size_t)packed_panels(rows) * (size_t)packed_steps(f, cols) * LINE_BYTES;
}

size_t packed_scale_bytes(enum format f, int rows, int cols)
{
    if (!format_has_scales(f)) return 0;
    return (size_t)packed_panels(rows) * (size_t)packed_blocks(cols) * PANEL_LANES * sizeof(uint16_t);
}

/* ---- packing ---- */

/* The least bfloat16 that is not below x in magnitude. */
static uint16_t bf16_away(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits >> 16) + ((bits & 0xffff) != 0));
}

static uint16_t scale_of(const float *w, int n, enum format f)
{
    float most = 0.0f;

    for (int k = 0; k < n; k++)
        if (fabsf(w[k]) > fabsf(most)) most = w[k];
    return f == FORMAT_Q8 ? bf16_away(fabsf(most) / 127.0f) : bf16_away(most / -8.0f);
}

static uint8_t quantize(float w, float scale, enum format f)
{
    float q = scale == 0.0f ? 0.0f : rintf(w / scale); /* to even, as everywhere */

    q = q < (float)-bias[f] ? (float)-bias[f] : q;
    q = q > (float)top[f] ? (float)top[f] : q;
    return (uint8_t)((int)q + bias[f]);
}

/* One output, QUANT_BLOCK or fewer inputs from k, into its lane of the panel. */
static void pack_block(uint8_t *panel, enum format f, int lane, const float *w, int k, int n, uint16_t *scale_out)
{
    uint16_t narrow = scale_of(w, n, f);
    float scale = widen_bf16(narrow);
    int per = per_line[f], end = (n + per - 1) / per * per;

    *scale_out = narrow;
    for (int i = 0; i < end; i++) {
        uint8_t q = i < n ? quantize(w[i], scale, f) : (uint8_t)bias[f];
        int j = (k + i) % per;
        uint8_t *at = panel + (size_t)((k + i) / per) * LINE_BYTES + lane * 4 + j % 4;

        if (f == FORMAT_Q8) *at = q;
        else if (j < 4) *at = q;
        else *at = (uint8_t)(*at | q << 4);
    }
}

static void pack_lane(uint8_t *panel, uint16_t *scale, enum format f, int lane, const float *w, int k, int n)
{
    if (format_has_scales(f)) {
        for (int i = 0; i < n; i += QUANT_BLOCK) {
            int block = n - i < QUANT_BLOCK ? n - i : QUANT_BLOCK;

            pack_block(panel, f, lane, w + i, k + i, block, scale + (size_t)(k + i) / QUANT_BLOCK * PANEL_LANES + lane);
        }
    } else if (f == FORMAT_F32) {
        float *out = (float *)(void *)panel + (size_t)k * PANEL_LANES + lane;

        for (int i = 0; i < n; i++) out[(size_t)i * PANEL_LANES] = w[i];
    } else {
        uint16_t *out = (uint16_t *)(void *)panel;

        for (int i = 0; i < n; i++) out[(size_t)((k + i) / 2) * 2 * PANEL_LANES + 2 * lane + (k + i) % 2] = narrow_bf16(w[i]);
        if ((k + n) % 2) out[(size_t)((k + n) / 2) * 2 * PANEL_LANES + 2 * lane + 1] = 0;
    }
}

void pack_panels(void *lines, uint16_t *scale, enum format f, const struct mat *w, int first, int panels)
{
    enum { CHUNK = 256 }; /* even, and whole blocks */
    static const float zeros[CHUNK];
    int steps = packed_steps(f, w->cols), blocks = packed_blocks(w->cols);
    float chunk[CHUNK];

    BUG_ON(first < 0 || panels < 0 || first + panels > packed_panels(w->rows));
    for (int p = first; p < first + panels; p++) {
        uint8_t *panel = (uint8_t *)lines + (size_t)p * (size_t)steps * LINE_BYTES;
        uint16_t *panel_scale = scale ? scale + (size_t)p * (size_t)blocks * PANEL_LANES : NULL;

        for (int k = 0; k < w->cols; k += CHUNK) {
            struct mat part = *w;

            part.data = (const char *)w->data + (size_t)k * dtype_bytes(w->dtype);
            part.cols = w->cols - k < CHUNK ? w->cols - k : CHUNK;
            for (int lane = 0; lane < PANEL_LANES; lane++) {
                bool real = p * PANEL_LANES + lane < w->rows;

                if (real) widen_rows(chunk, &part, p * PANEL_LANES + lane, 1);
                pack_lane(panel, panel_scale, f, lane, real ? chunk : zeros, k, part.cols);
            }
        }
    }
}

float packed_at(const struct packed *p, int row, int col)
{
    int panel = row / PANEL_LANES, lane = row % PANEL_LANES, per = per_line[p->format], j = col % per;
    const char *line = (const char *)p->lines +
                       ((size_t)panel * (size_t)packed_steps(p->format, p->cols) + (size_t)(col / per)) * LINE_BYTES + lane * 4;
    int q;

    if (p->format == FORMAT_F32) return *(const float *)(const void *)line;
    if (p->format == FORMAT_BF16) return widen_bf16(((const uint16_t *)(const void *)line)[j]);
    q = ((const uint8_t *)line)[j % 4];
    if (p->format == FORMAT_Q4) q = j < 4 ? q & 15 : q >> 4;
    size_t block = (size_t)panel * (size_t)packed_blocks(p->cols) + (size_t)(col / QUANT_BLOCK);
    return (float)(q - bias[p->format]) * widen_bf16(p->scale[block * PANEL_LANES + (size_t)lane]);
}
