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

/* CHUNK inputs of all lanes at a time, first as the words that stand in a lane one after another, then across the lanes.  Whole blocks, and few enough to
 * stay in the first cache; rows of words are WORDS apart, so that a column of them does not fall on one set of it. */
enum { CHUNK = 256, WORDS = CHUNK + 16 };

/* The least bfloat16 that is not below x in magnitude. */
static uint16_t bf16_away(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits >> 16) + ((bits & 0xffff) != 0));
}

/* The largest in magnitude of n > 0 values, the first of equals. */
static float largest(const float *w, int n)
{
    uint32_t bits[QUANT_BLOCK], most = 0;

    memcpy(bits, w, (size_t)n * sizeof(*w));
    for (int k = 0; k < n; k++) {
        uint32_t magnitude = bits[k] & 0x7fffffff;

        most = magnitude > most ? magnitude : most;
    }
    for (int k = 0; k < n; k++)
        if ((bits[k] & 0x7fffffff) == most) return w[k];
    return w[0];
}

static uint16_t scale_of(const float *w, int n, enum format f)
{
    float most = largest(w, n);

    return f == FORMAT_Q8 ? bf16_away(fabsf(most) / 127.0f) : bf16_away(most / -8.0f);
}

/* q[i] = w[i] / scale, rounded to even as everywhere, with the format's bias. */
static void quantize(uint8_t *q, const float *w, int n, float scale, enum format f)
{
    const float magic = 0x1.8p23f; /* x + magic - magic is x rounded to even, for |x| < 2^22: here it is below 256 */
    float least = (float)-bias[f], most = (float)top[f];

    if (scale == 0.0f) {
        memset(q, bias[f], (size_t)n);
        return;
    }
    for (int k = 0; k < n; k++) {
        float x = (w[k] / scale + magic) - magic;

        x = x < least ? least : x;
        x = x > most ? most : x;
        q[k] = (uint8_t)((int)x + bias[f]);
    }
}

/* n inputs of a lane into words; scale: of the first block, those of one lane are PANEL_LANES apart. */
static void quantized_words(uint32_t *words, uint16_t *scale, enum format f, const float *w, int n)
{
    uint8_t q[CHUNK], *bytes = (uint8_t *)words;

    for (int k = 0; k < n; k += QUANT_BLOCK) {
        int m = n - k < QUANT_BLOCK ? n - k : QUANT_BLOCK;
        uint16_t narrow = scale_of(w + k, m, f);

        scale[(size_t)(k / QUANT_BLOCK) * PANEL_LANES] = narrow;
        quantize(q + k, w + k, m, widen_bf16(narrow), f);
    }
    for (int k = n; k % 8; k++) q[k] = (uint8_t)bias[f];
    if (f == FORMAT_Q8) {
        memcpy(bytes, q, (size_t)(n + 3) / 4 * 4);
        return;
    }
    for (int k = 0; k < n; k += 8)
        for (int j = 0; j < 4; j++) bytes[k / 2 + j] = (uint8_t)(q[k + j] | q[k + 4 + j] << 4);
}

static void bf16_words(uint32_t *words, const float *w, int n)
{
    uint16_t out[CHUNK];

    narrow_many(out, w, (size_t)n);
    words[n / 2] = 0; /* the other half of an odd row's last word */
    memcpy(words, out, (size_t)n * sizeof(*out));
}

/* Inputs k .. k + n - 1 of one row. */
static void row_words(uint32_t *words, uint16_t *scale, enum format f, const struct mat *w, int row, int k, int n)
{
    struct mat part = *w;
    float chunk[CHUNK];
    size_t element = dtype_bytes(w->dtype);

    part.data = (const char *)w->data + (size_t)k * element;
    part.cols = n;
    if ((f == FORMAT_F32 && w->dtype == DT_F32) || (f == FORMAT_BF16 && w->dtype == DT_BF16)) { /* as it stands */
        words[n / 2] = 0; /* the other half of an odd row's last word */
        memcpy(words, (const char *)part.data + (size_t)row * w->stride * element, (size_t)n * element);
        return;
    }
    widen_rows(chunk, &part, row, 1);
    if (f == FORMAT_F32) memcpy(words, chunk, (size_t)n * sizeof(*chunk));
    else if (f == FORMAT_BF16) bf16_words(words, chunk, n);
    else quantized_words(words, scale, f, chunk, n);
}

/* Rows beyond the matrix: zeros. */
static void padding_words(uint32_t *words, uint16_t *scale, enum format f, int n)
{
    memset(words, f == FORMAT_Q8 ? 0x80 : f == FORMAT_Q4 ? 0x88 : 0, WORDS * sizeof(*words));
    for (int k = 0; scale && k < n; k += QUANT_BLOCK) scale[(size_t)(k / QUANT_BLOCK) * PANEL_LANES] = 0;
}

void pack_panels(void *lines, uint16_t *scale, enum format f, const struct mat *w, int first, int panels)
{
    int steps = packed_steps(f, w->cols), blocks = packed_blocks(w->cols), per = per_line[f];
    uint32_t words[PANEL_LANES][WORDS];

    BUG_ON(first < 0 || panels < 0 || first + panels > packed_panels(w->rows) || (format_has_scales(f) && !scale));
    if (!format_has_scales(f)) scale = NULL;
    for (int p = first; p < first + panels; p++)
        for (int k = 0; k < w->cols; k += CHUNK) {
            int n = w->cols - k < CHUNK ? w->cols - k : CHUNK, count = (n + per - 1) / per;
            uint32_t *out = (uint32_t *)lines + ((size_t)p * (size_t)steps + (size_t)(k / per)) * PANEL_LANES;
            uint16_t *block = scale ? scale + ((size_t)p * (size_t)blocks + (size_t)(k / QUANT_BLOCK)) * PANEL_LANES : NULL;

            for (int lane = 0; lane < PANEL_LANES; lane++) {
                int row = p * PANEL_LANES + lane;

                if (row < w->rows) row_words(words[lane], block ? block + lane : NULL, f, w, row, k, n);
                else padding_words(words[lane], block ? block + lane : NULL, f, n);
            }
            for (int i = 0; i < count; i++)
                for (int lane = 0; lane < PANEL_LANES; lane++) out[(size_t)i * PANEL_LANES + (size_t)lane] = words[lane][i];
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

void pack_transposed(void *lines, int inputs, int at, const struct packed *w, int first, int panels)
{
    BUG_ON(!w->lines || at < 0 || at + w->rows > inputs || first < 0 || first + panels > packed_panels(w->cols));
    for (int p = first; p < first + panels; p++) {
        float *line = (float *)lines + ((size_t)p * (size_t)inputs + (size_t)at) * PANEL_LANES;

        for (int row = 0; row < w->rows; row++, line += PANEL_LANES)
            for (int lane = 0; lane < PANEL_LANES; lane++) {
                int col = p * PANEL_LANES + lane;

                line[lane] = col < w->cols ? packed_at(w, row, col) : 0.0f;
            }
    }
}
