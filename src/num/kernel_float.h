/* Products with f32 and bf16 weights, for any width of vector: the body of kernel_avx2.c and kernel_avx512.c.
 *
 * The includer has defined the vectors (vector_*.h), TILE (rows at once), MOST_WIDE (panels at once) and TILES(X), a list of X(rows, wide): the sizes there is a
 * tile for, (rows, 1) among them for all rows up to TILE.  rows * wide * V_PER_LINE sums should fit the registers, and be 8 or more where they can: an FMA takes 4 cycles and
 * two start in each. */
#ifdef TILES

#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "num/kernel_levels.h"

enum {
    FLOAT_AHEAD = 2048,       /* bytes of a panel that are asked for ahead of their use */
    FLOAT_COPIED = 192,       /* rows whose chain is laid side by side in scratch */
    FLOAT_CACHED = 64 * 1024, /* elements of x that stay in the second cache while panels stream through it */
};
_Static_assert(FLOAT_COPIED *CHAIN * sizeof(float) <= KERNEL_SCRATCH_BYTES, "scratch holds the rows");

/* One chain: y[r][c] = or += sum over k < inputs of x[r][k] w[k][c], for `wide` panels whose lines begin at w, w + panel, ... */
typedef void float_tile(float *y, size_t ldy, const float *const *x, const char *w, size_t panel, int inputs, bool add);

/* w[k] of all panels times x[r][k]; for bf16 the line at w holds k and k + 1, and `high` says which. */
VECTOR void float_step(int rows, int wide, bool half, bool high, vf (*sum)[MOST_WIDE * V_PER_LINE], const float *const *x, int k,
                       const char *w, size_t panel)
{
    vf line[MOST_WIDE * V_PER_LINE];

#pragma GCC unroll 16
    for (int i = 0; i < wide * V_PER_LINE; i++) {
        const char *at = w + (size_t)(i / V_PER_LINE) * panel + (i % V_PER_LINE) * V_BYTES;

        if (!half) line[i] = vf_load(at);
        else line[i] = high ? vf_high_half(vi_load(at)) : vf_low_half(vi_load(at));
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        vf a = vf_splat(x[r] + k);
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) sum[r][i] = vf_fma(a, line[i], sum[r][i]);
    }
}

VECTOR void float_tile_body(int rows, int wide, bool half, float *y, size_t ldy, const float *const *x, const char *w,
                            size_t panel, int inputs, bool add)
{
    vf sum[TILE][MOST_WIDE * V_PER_LINE];
    const float *row[TILE];

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        row[r] = x[r];
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) sum[r][i] = vf_zero();
    }
    for (int k = 0; k < inputs; k += half ? 2 : 1, w += LINE_BYTES) {
#pragma GCC unroll 16
        for (int p = 0; p < wide; p++) __builtin_prefetch(w + (size_t)p * panel + FLOAT_AHEAD);
        float_step(rows, wide, half, false, sum, row, k, w, panel);
        if (half && k + 1 < inputs) float_step(rows, wide, half, true, sum, row, k + 1, w, panel);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) {
            float *out = y + (size_t)r * ldy + i * V_FLOATS;

            vf_storeu(out, add ? vf_add(vf_loadu(out), sum[r][i]) : sum[r][i]);
        }
}

#define FLOAT_TILE(rows, wide)                                                                                                   \
    static void f32_##rows##x##wide(float *y, size_t ldy, const float *const *x, const char *w, size_t panel, int inputs,        \
                                    bool add)                                                                                    \
    {                                                                                                                            \
        float_tile_body(rows, wide, false, y, ldy, x, w, panel, inputs, add);                                                    \
    }                                                                                                                            \
    static void bf16_##rows##x##wide(float *y, size_t ldy, const float *const *x, const char *w, size_t panel, int inputs,       \
                                     bool add)                                                                                   \
    {                                                                                                                            \
        float_tile_body(rows, wide, true, y, ldy, x, w, panel, inputs, add);                                                     \
    }
TILES(FLOAT_TILE)
#define FLOAT_ENTRY(rows, wide) [0][rows][wide] = f32_##rows##x##wide, [1][rows][wide] = bf16_##rows##x##wide,
static float_tile *const float_tiles[2][TILE + 1][MOST_WIDE + 1] = {TILES(FLOAT_ENTRY)};

struct float_job {
    float *y;
    size_t ldy;
    const float *x; /* row i at x + (index ? index[i] : i) * ld */
    size_t ld;
    const int *index;
    int n;
    const struct packed *w;
    const char *lines; /* of the first panel */
    size_t panel;      /* bytes */
    bool half;
};

/* Panels p .. p + wide - 1, the chain that begins at input k, which is x[0] of each row: all rows, in tiles of nearly equal height. */
static void float_group(const struct float_job *j, int p, int wide, int k)
{
    int inputs = j->w->cols - k < CHAIN ? j->w->cols - k : CHAIN, tiles = (j->n + TILE - 1) / TILE;
    const char *w = j->lines + (size_t)p * j->panel + (size_t)(j->half ? k / 2 : k) * LINE_BYTES;
    float *y = j->y + (size_t)p * PANEL_LANES;

    for (int t = 0; t < tiles; t++) {
        int from = j->n * t / tiles, rows = j->n * (t + 1) / tiles - from;
        const float *row[TILE];

        for (int r = 0; r < rows; r++) row[r] = j->x + (size_t)(j->index ? j->index[from + r] : from + r) * j->ld;
        float_tiles[j->half][rows][wide](y + (size_t)from * j->ldy, j->ldy, row, w, j->panel, inputs, k > 0);
    }
}

/* How many panels the tiles of n rows take at once; the lower ones decide. */
static int float_wide(int n, int panels)
{
    int tiles = (n + TILE - 1) / TILE, wide = panels < MOST_WIDE ? panels : MOST_WIDE;

    while (!float_tiles[0][n / tiles][wide] || !float_tiles[0][(n + tiles - 1) / tiles][wide]) wide--;
    return wide;
}

/* Rows stay where they are, a panel is read from one end to the other. */
static void float_direct(const struct float_job *j, int panels)
{
    for (int p = 0, wide; p < panels; p += wide) {
        struct float_job part = *j;

        wide = float_wide(j->n, panels - p);
        for (int k = 0; k < j->w->cols; k += CHAIN, part.x += CHAIN) float_group(&part, p, wide, k);
    }
}

/* Rows too many for the second cache, or so spaced that they meet in few of its lines: a chain of them is laid side by side, and all panels pass. */
static void float_copied(const struct float_job *j, int panels, float *scratch)
{
    for (int from = 0; from < j->n; from += FLOAT_COPIED) {
        struct float_job part = *j;

        part.y += (size_t)from * j->ldy;
        part.n = j->n - from < FLOAT_COPIED ? j->n - from : FLOAT_COPIED;
        part.x = scratch, part.ld = CHAIN, part.index = NULL;
        for (int k = 0; k < j->w->cols; k += CHAIN) {
            int inputs = j->w->cols - k < CHAIN ? j->w->cols - k : CHAIN;

            for (int i = 0; i < part.n; i++)
                memcpy(scratch + (size_t)i * CHAIN, j->x + (size_t)(j->index ? j->index[from + i] : from + i) * j->ld + k,
                       (size_t)inputs * sizeof(float));
            for (int p = 0, wide; p < panels; p += wide) {
                wide = float_wide(part.n, panels - p);
                float_group(&part, p, wide, k);
            }
        }
    }
}

static void product_float(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                          int panels, void *scratch)
{
    size_t panel = (size_t)packed_steps(w->format, w->cols) * LINE_BYTES;
    struct float_job j = {.y = y, .ldy = ldy, .x = x->x, .ld = x->ld, .index = index, .n = n, .w = w, .panel = panel};

    j.lines = (const char *)w->lines + (size_t)first * panel;
    j.half = w->format == FORMAT_BF16;
    if (!w->cols)
        for (int i = 0; i < n; i++) memset(y + (size_t)i * ldy, 0, (size_t)panels * PANEL_LANES * sizeof(float));
    else if (panels < 3 || n <= TILE || (size_t)n * (size_t)w->cols <= FLOAT_CACHED) float_direct(&j, panels);
    else float_copied(&j, panels, scratch);
}

#endif
