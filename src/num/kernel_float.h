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
    RUN = 16,
    FLOAT_AHEAD = 2048,        /* bytes of a panel that are asked for ahead of their use */
    FLOAT_BRIEF = 128,         /* inputs of a panel that is short */
    FLOAT_STREAM = 128 * 1024, /* bytes of short panels for all rows in turn */
    FLOAT_COPIED = 192,        /* rows whose chain is laid side by side in scratch */
    FLOAT_CACHED = 64 * 1024,  /* elements of x that stay in the second cache while panels stream through it */
};
_Static_assert(FLOAT_COPIED *CHAIN * sizeof(float) <= KERNEL_SCRATCH_BYTES, "scratch holds the rows");

/* One chain: y[r][c] = or += sum over k < inputs of x[r][k] w[k][c], for `groups` times `wide` panels whose lines begin at w, w + panel, ...
 * Row r of x comes in runs of RUN inputs at x[r], x[r] + step, ... */
struct float_tile {
    float *y;
    size_t ldy;
    const float *x[TILE];
    size_t step;
    const char *w;
    size_t panel, ahead; /* bytes: from panel to panel, and from a line to the one to ask for */
    int inputs, groups;
    bool add;
};

VECTOR vf float_line(const char *w, bool half, bool high)
{
    if (!half) return vf_load(w);
    return high ? vf_high_half(vi_load(w)) : vf_low_half(vi_load(w));
}

/* w[k] of all panels times x[r][k]; for bf16 the line at w holds k and k + 1, and `high` says which.  What there is less of stays in registers: rows or lines. */
VECTOR void float_step(int rows, int wide, bool half, bool high, vf (*sum)[MOST_WIDE * V_PER_LINE], const float *const *x, int k,
                       const char *w, size_t panel)
{
    int lines = wide * V_PER_LINE;
    vf keep[MOST_WIDE * V_PER_LINE];

#pragma GCC unroll 16
    for (int i = 0; i < (rows < lines ? rows : lines); i++)
        keep[i] = rows < lines ? vf_splat(x[i] + k)
                               : float_line(w + (size_t)(i / V_PER_LINE) * panel + (i % V_PER_LINE) * V_BYTES, half, high);
    if (rows < lines) {
#pragma GCC unroll 16
        for (int i = 0; i < lines; i++) {
            vf line = float_line(w + (size_t)(i / V_PER_LINE) * panel + (i % V_PER_LINE) * V_BYTES, half, high);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vf_add_product(&sum[r][i], keep[r], line);
            }
        }
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vf a = vf_splat(x[r] + k);
#pragma GCC unroll 16
            for (int i = 0; i < lines; i++) {
                vf_add_product(&sum[r][i], a, keep[i]);
            }
        }
    }
}

/* At most RUN inputs from w on, which are x[r][0], ... */
VECTOR void float_run(int rows, int wide, bool half, vf (*sum)[MOST_WIDE * V_PER_LINE], const float *const *x, const char *w,
                      size_t panel, size_t ahead, int inputs)
{
    int each = half ? 2 : 1, steps = inputs / each;

#pragma GCC unroll 4
    for (int k = 0; k < steps; k++, w += LINE_BYTES) {
#pragma GCC unroll 16
        for (int p = 0; p < wide; p++) __builtin_prefetch(w + (size_t)p * panel + ahead);
        float_step(rows, wide, half, false, sum, x, k * each, w, panel);
        if (half) float_step(rows, wide, half, true, sum, x, k * each + 1, w, panel);
    }
    if (inputs % each) float_step(rows, wide, half, false, sum, x, steps * each, w, panel);
}

/* One group: the `wide` panels whose lines begin at w, into y. */
VECTOR void float_group_body(int rows, int wide, bool half, const struct float_tile *t, const char *w, float *y)
{
    vf sum[TILE][MOST_WIDE * V_PER_LINE];
    const float *row[TILE];
    int left = t->inputs;

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        row[r] = t->x[r];
        if (rows > 3) __builtin_prefetch(y + (size_t)r * t->ldy, 1);
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) sum[r][i] = vf_zero();
    }
    for (; left >= RUN; left -= RUN, w += (half ? RUN / 2 : RUN) * LINE_BYTES) {
        float_run(rows, wide, half, sum, row, w, t->panel, t->ahead, RUN);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) row[r] += t->step;
    }
    float_run(rows, wide, half, sum, row, w, t->panel, t->ahead, left);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) {
            float *out = y + (size_t)r * t->ldy + i * V_FLOATS;

            vf_storeu(out, t->add ? vf_add(vf_loadu(out), sum[r][i]) : sum[r][i]);
        }
}

VECTOR void float_tile_body(int rows, int wide, bool half, const struct float_tile *t)
{
    for (int g = 0; g < t->groups; g++)
        float_group_body(rows, wide, half, t, t->w + (size_t)(g * wide) * t->panel, t->y + g * wide * PANEL_LANES);
}

typedef void float_product(const struct float_tile *t);

#define FLOAT_TILE(rows, wide)                                                                                                   \
    static void f32_##rows##x##wide(const struct float_tile *t)                                                                  \
    {                                                                                                                            \
        float_tile_body(rows, wide, false, t);                                                                                   \
    }                                                                                                                            \
    static void bf16_##rows##x##wide(const struct float_tile *t)                                                                 \
    {                                                                                                                            \
        float_tile_body(rows, wide, true, t);                                                                                    \
    }
TILES(FLOAT_TILE)
#define FLOAT_ENTRY(rows, wide) [0][rows][wide] = f32_##rows##x##wide, [1][rows][wide] = bf16_##rows##x##wide,
static float_product *const float_products[2][TILE + 1][MOST_WIDE + 1] = {TILES(FLOAT_ENTRY)};

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
    bool half, copied; /* copied: x is what copy_chain() made */
};

/* `groups` times `wide` panels from p on, the chain that begins at input k: all rows, in tiles of nearly equal height.
 * j->x[0] is input k; or it is copied, see there. */
static void float_tiles(const struct float_job *j, int p, int wide, int groups, int k)
{
    int inputs = j->w->cols - k < CHAIN ? j->w->cols - k : CHAIN, tiles = (j->n + TILE - 1) / TILE;
    size_t group = (size_t)wide * j->panel, next = (FLOAT_AHEAD + group - 1) / group * group;
    struct float_tile tile = {.ldy = j->ldy, .panel = j->panel, .inputs = inputs, .groups = groups, .add = k > 0};

    tile.w = j->lines + (size_t)p * j->panel + (size_t)(j->half ? k / 2 : k) * LINE_BYTES;
    for (int t = 0; t < tiles; t++) {
        int from = j->n * t / tiles, rows = j->n * (t + 1) / tiles - from;

        for (int r = 0; r < rows; r++)
            tile.x[r] =
                j->copied ? j->x + from * CHAIN + r * RUN : j->x + (size_t)(j->index ? j->index[from + r] : from + r) * j->ld;
        tile.y = j->y + (size_t)from * j->ldy + (size_t)p * PANEL_LANES;
        tile.step = j->copied ? (size_t)rows * RUN : RUN;
        /* what comes next: the same panels' next lines, or, of short panels and while the last rows of a copy pass, the next panels' */
        tile.ahead = !j->copied ? (group < 4 * FLOAT_AHEAD ? next : FLOAT_AHEAD) : t == tiles - 1 ? group : 0;
        float_products[j->half][rows][wide](&tile);
    }
}

/* How many panels the tiles of n rows take at once; the lower ones decide. */
static int float_wide(int n, int panels)
{
    int tiles = (n + TILE - 1) / TILE, wide = panels < MOST_WIDE ? panels : MOST_WIDE;

    while (!float_products[0][n / tiles][wide] || !float_products[0][(n + tiles - 1) / tiles][wide]) wide--;
    return wide;
}

/* Rows stay where they are, a panel is read from one end to the other.  Short panels pass many at a time, as setting up a tile would take as long as its sums. */
static void float_direct(const struct float_job *j, int panels)
{
    bool brief = j->w->cols <= FLOAT_BRIEF;

    for (int p = 0, wide, groups = 1; p < panels; p += wide * groups) {
        struct float_job part = *j;

        wide = brief && j->n < 4
                   ? 1
                   : float_wide(j->n, panels - p); /* memory is read faster in one long run than in several short ones */
        if (brief) {
            groups = FLOAT_STREAM / (int)j->panel / wide;
            if (groups > (panels - p) / wide) groups = (panels - p) / wide;
        }
        for (int k = 0; k < j->w->cols; k += CHAIN, part.x += CHAIN) float_tiles(&part, p, wide, groups, k);
    }
}

/* Inputs k .. k + inputs - 1 of the rows, so that tiles read one run after the other: tile t, whose first row is `from`, is at from * CHAIN: [CHAIN / RUN][rows of t][RUN]. */
static void copy_chain(float *out, const struct float_job *j, int first, int n, int k, int inputs)
{
    int tiles = (n + TILE - 1) / TILE;

    for (int t = 0; t < tiles; t++) {
        int from = n * t / tiles, rows = n * (t + 1) / tiles - from;

        for (int r = 0; r < rows; r++) {
            const float *x = j->x + (size_t)(j->index ? j->index[first + from + r] : first + from + r) * j->ld + k;
            float *to = out + from * CHAIN + r * RUN;
            int i = 0;

            for (; i + RUN <= inputs; i += RUN, to += rows * RUN) memcpy(to, x + i, RUN * sizeof(*x));
            if (i < inputs) memcpy(to, x + i, (size_t)(inputs - i) * sizeof(*x));
        }
    }
}

/* Rows too many for the second cache, or so spaced that they meet in few of its lines: a chain of them is copied, and all panels pass. */
static void float_copied(const struct float_job *j, int panels, float *scratch)
{
    for (int from = 0; from < j->n; from += FLOAT_COPIED) {
        struct float_job part = *j;

        part.y += (size_t)from * j->ldy;
        part.n = j->n - from < FLOAT_COPIED ? j->n - from : FLOAT_COPIED;
        part.x = scratch, part.copied = true;
        for (int k = 0; k < j->w->cols; k += CHAIN) {
            copy_chain(scratch, j, from, part.n, k, j->w->cols - k < CHAIN ? j->w->cols - k : CHAIN);
            for (int p = 0, wide; p < panels; p += wide) {
                wide = float_wide(part.n, panels - p);
                float_tiles(&part, p, wide, 1, k);
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
