/* Products with q8 and q4 weights, for any width of vector: the body of kernel_avx2.c and kernel_avx512.c, after kernel_float.h.
 *
 * The includer has defined QUANT_TILE (rows at once), QUANT_WIDE (panels at once), QUANT_TILES(X) as TILES(X) there, BYTE_DOTS and PAIR_SUMS.  Sums of a block are exact integers in any order, so
 * levels differ in how they multiply:
 *   q4  unsigned 4 bits times signed bytes into 16 bits: 8 products of at most 15 * 127 fit
 *   q8  bytes spread to 16 bits, pairs into 32 bits; with BYTE_DOTS (VNNI) four bytes into 32 bits at once
 *       with PAIR_SUMS (AVX2) and many rows by half of the multiplications: kernel_quant_many.h
 * What the weights' bias adds is known from the row alone, and taken off first (or last, kernel_quant_many.h). */
#ifdef QUANT_TILES

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "num/kernel_levels.h"

/* A block of a row as the tiles read it. */
struct quant_bytes {
    int8_t x[QUANT_BLOCK];
    float scale;
    int32_t start; /* - bias * sum of x */
};
#if BYTE_DOTS
enum { Q8_PARTS = 1 };
typedef struct quant_bytes q8_block;
#else
enum { Q8_PARTS = 2 };
typedef struct rows_wide q8_block;
#endif
typedef struct quant_bytes q4_block;

enum {
    QUANT_ROWS = 192,          /* rows prepared at once */
    QUANT_AHEAD = 2048,        /* bytes of a panel that are asked for ahead */
    QUANT_BRIEF = 256,         /* inputs of a panel that is short */
    QUANT_STREAM = 128 * 1024, /* bytes of short panels for all rows in turn */
};

/* y[r][c] = or += sum over the blocks, for `groups` times `wide` panels whose lines begin at w, w + panel, ... */
struct quant_tile {
    float *y;
    size_t ldy;
    const void *x; /* [blocks][rows] of q8_block or q4_block */
    const char *w;
    const uint16_t *scale;            /* [blocks][PANEL_LANES], of the next panel at scale + panel_scale */
    size_t panel, panel_scale, ahead; /* ahead: bytes from a line to the one to ask for */
    int groups, lines;                /* lines: of all blocks; the last may have fewer than the others */
    bool add;
};

typedef vi quant_sums[QUANT_TILE][QUANT_WIDE * V_PER_LINE];

VECTOR int quant_parts(bool q4)
{
    return q4 ? 2 : Q8_PARTS;
}

VECTOR const char *quant_at(const char *w, size_t panel, int i)
{
    return w + (size_t)(i / V_PER_LINE) * panel + (i % V_PER_LINE) * V_BYTES;
}

/* The bytes of a line that meet the first and the second of the two words that quant_x() gives: all of them and nothing with BYTE_DOTS and q8. */
VECTOR vi quant_part(vi line, bool q4, int part)
{
    if (q4) return part ? vi_high_nibbles(line) : vi_low_nibbles(line);
#if BYTE_DOTS
    return line;
#else
    return part ? vi_odd_bytes(line) : vi_even_bytes(line);
#endif
}

VECTOR vi quant_x(const void *x, bool q4, int row, int line, int part)
{
    if (q4) return vi_splat(((const q4_block *)x)[row].x + 8 * line + 4 * part);
#if BYTE_DOTS
    return vi_splat(((const q8_block *)x)[row].x + 4 * line);
#else
    return vi_splat(((const q8_block *)x)[row].x + 4 * line + 2 * part);
#endif
}

/* *n (+)= products; those of q4 are of 16 bits without BYTE_DOTS. */
VECTOR void quant_add(vi *n, vi w, vi x, bool q4, bool first)
{
#if BYTE_DOTS
    (void)q4, (void)first;
    vi_add_dots(n, w, x);
#else
    if (first) *n = q4 ? vi_pairs8(w, x) : vi_pairs16(w, x);
    else if (q4) vi_add_pairs8(n, w, x);
    else vi_add_pairs16(n, w, x);
#endif
}

/* One line of all panels.  What there is less of stays in registers: rows or lines. */
VECTOR void quant_line(int rows, int wide, bool q4, vi (*n)[QUANT_WIDE * V_PER_LINE], const void *x, int line, const char *w,
                       const struct quant_tile *t, bool first)
{
    const int lines = wide * V_PER_LINE;

#pragma GCC unroll 16
    for (int p = 0; p < wide; p++) __builtin_prefetch(w + (size_t)p * t->panel + t->ahead);
#pragma GCC unroll 2
    for (int part = 0; part < quant_parts(q4); part++) {
        vi keep[QUANT_WIDE * V_PER_LINE];

#pragma GCC unroll 16
        for (int i = 0; i < (rows < lines ? rows : lines); i++)
            keep[i] = rows < lines ? quant_x(x, q4, i, line, part) : quant_part(vi_load(quant_at(w, t->panel, i)), q4, part);
#pragma GCC unroll 16
        for (int o = 0; o < (rows < lines ? lines : rows); o++) {
            vi other = rows < lines ? quant_part(vi_load(quant_at(w, t->panel, o)), q4, part) : quant_x(x, q4, o, line, part);

#pragma GCC unroll 16
            for (int i = 0; i < (rows < lines ? rows : lines); i++)
                if (rows < lines) quant_add(&n[i][o], other, keep[i], q4, first && part == 0);
                else quant_add(&n[o][i], keep[i], other, q4, first && part == 0);
        }
    }
}

/* Block b, of `lines` lines: the integers, and what they add to the totals. */
VECTOR void quant_block(int rows, int wide, bool q4, vf (*total)[QUANT_WIDE * V_PER_LINE], const void *x, const char *w,
                        const uint16_t *scale, const struct quant_tile *t, int lines)
{
    const q8_block *x8 = x;
    const q4_block *x4 = x;
    const bool starts = BYTE_DOTS || !q4; /* else it is added behind: these sums are of 16 bits */
    quant_sums n;

    if (starts)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int i = 0; i < wide * V_PER_LINE; i++) n[r][i] = vi_splat(q4 ? &x4[r].start : &x8[r].start);
    quant_line(rows, wide, q4, n, x, 0, w, t, !starts);
#pragma GCC unroll 8
    for (int line = 1; line < lines; line++) quant_line(rows, wide, q4, n, x, line, w + (size_t)line * LINE_BYTES, t, false);
#pragma GCC unroll 16
    for (int i = 0; i < wide * V_PER_LINE; i++) {
        vf by = vf_widen(scale + (size_t)(i / V_PER_LINE) * t->panel_scale + (i % V_PER_LINE) * V_FLOATS);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vi sum = n[r][i];

#if !BYTE_DOTS
            if (q4) sum = vi_add32(vi_widen_pairs(sum), vi_splat(&x4[r].start));
#endif
            total[r][i] = vf_fma(vf_from_int(sum), vf_mul(vf_splat(q4 ? &x4[r].scale : &x8[r].scale), by), total[r][i]);
        }
    }
}

/* One group: the `wide` panels whose lines begin at w, into y. */
VECTOR void quant_group_body(int rows, int wide, bool q4, const struct quant_tile *t, const char *w, const uint16_t *scale,
                             float *y)
{
    const int each = QUANT_BLOCK / (q4 ? 8 : 4);
    const size_t row = (size_t)rows * (q4 ? sizeof(q4_block) : sizeof(q8_block));
    const size_t block = (size_t)each * LINE_BYTES;
    vf total[QUANT_TILE][QUANT_WIDE * V_PER_LINE];
    const char *x = t->x;
    int left = t->lines;

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++)
            total[r][i] = t->add ? vf_loadu(y + (size_t)r * t->ldy + i * V_FLOATS) : vf_zero();
    for (; left >= each; left -= each, x += row, w += block, scale += PANEL_LANES)
        quant_block(rows, wide, q4, total, x, w, scale, t, each);
    if (left) quant_block(rows, wide, q4, total, x, w, scale, t, left);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) vf_storeu(y + (size_t)r * t->ldy + i * V_FLOATS, total[r][i]);
}

VECTOR void quant_tile_body(int rows, int wide, bool q4, const struct quant_tile *t)
{
    for (int g = 0; g < t->groups; g++)
        quant_group_body(rows, wide, q4, t, t->w + (size_t)(g * wide) * t->panel, t->scale + (size_t)(g * wide) * t->panel_scale,
                         t->y + g * wide * PANEL_LANES);
}

typedef void quant_product(const struct quant_tile *t);

#define QUANT_BODY(name, rows, wide, q4)                                                                                         \
    static void name##_##rows##x##wide(const struct quant_tile *t)                                                               \
    {                                                                                                                            \
        quant_tile_body(rows, wide, q4, t);                                                                                      \
    }
#define QUANT_PRODUCT(rows, wide)                                                                                                \
    QUANT_BODY(q8, rows, wide, false)                                                                                            \
    QUANT_BODY(q4, rows, wide, true)
QUANT_TILES(QUANT_PRODUCT)
#define QUANT_ENTRY(rows, wide) [0][rows][wide] = q8_##rows##x##wide, [1][rows][wide] = q4_##rows##x##wide,
static quant_product *const quant_products[2][QUANT_TILE + 1][QUANT_WIDE + 1] = {QUANT_TILES(QUANT_ENTRY)};

struct quant_job {
    float *y;
    size_t ldy;
    const struct rows *x;
    const int *index; /* or NULL */
    int n;
    const struct packed *w;
    int first, panels;
    bool q4;
    char *scratch; /* the rows, or with PAIR_SUMS and many of them a panel that is spread */
};

static int quant_tiles(int n)
{
    return (n + QUANT_TILE - 1) / QUANT_TILE;
}

static size_t quant_block_bytes(bool q4)
{
    return q4 ? sizeof(q4_block) : sizeof(q8_block);
}

/* Lays `blocks` blocks of the rows from `from` on in the order in which tiles read them: tile by tile, [blocks][rows of the tile]. */
static void quant_prepare(const struct quant_job *j, int from, int n, int block, int blocks)
{
    int tiles = quant_tiles(n), all = packed_blocks(j->w->cols);
    size_t bytes = quant_block_bytes(j->q4);
    char *out = j->scratch;

    for (int t = 0; t < tiles; t++) {
        int begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;

        for (int r = 0; r < rows; r++) {
            int row = from + begin + r;
            size_t at = (size_t)(j->index ? j->index[row] : row) * (size_t)all + (size_t)block;
            char *to = out + (size_t)r * bytes;

            for (int b = 0; b < blocks; b++, at++, to += (size_t)rows * bytes) {
                const int8_t *q = j->x->q + at * QUANT_BLOCK;
                struct quant_bytes *narrow = (void *)to;

#if !BYTE_DOTS
                if (!j->q4) {
                    struct rows_wide *wide = (void *)to;

                    if (j->x->wide) memcpy(wide, j->x->wide + at, sizeof(*wide));
                    else rows_widen(wide, q, j->x->scale + at, j->x->sum + at, 1, ISA_AVX2);
                    continue;
                }
#endif
                memcpy(narrow->x, q, QUANT_BLOCK);
                narrow->scale = j->x->scale[at], narrow->start = (j->q4 ? -8 : -128) * j->x->sum[at];
            }
        }
        out += (size_t)rows * (size_t)blocks * bytes;
    }
}

/* Prepared rows against `groups` times `wide` panels from p on. */
static void quant_rows(const struct quant_job *j, int from, int n, int block, int blocks, int p, int wide, int groups)
{
    int tiles = quant_tiles(n), each = QUANT_BLOCK / (j->q4 ? 8 : 4), lines = packed_steps(j->w->format, j->w->cols);
    size_t panel = (size_t)lines * LINE_BYTES, panel_scale = (size_t)packed_blocks(j->w->cols) * PANEL_LANES;
    struct quant_tile tile = {.ldy = j->ldy, .panel = panel, .panel_scale = panel_scale, .groups = groups, .add = block > 0};
    size_t group = (size_t)wide * panel, next = (QUANT_AHEAD + group - 1) / group * group;
    const char *x = j->scratch;

    tile.w = (const char *)j->w->lines + (size_t)(j->first + p) * panel + (size_t)block * (size_t)each * LINE_BYTES;
    tile.scale = j->w->scale + (size_t)(j->first + p) * panel_scale + (size_t)block * PANEL_LANES;
    tile.lines = lines - block * each < blocks * each ? lines - block * each : blocks * each;
    for (int t = 0; t < tiles; t++) {
        int begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;

        tile.x = x;
        tile.y = j->y + (size_t)(from + begin) * j->ldy + (size_t)p * PANEL_LANES;
        /* what comes next: these panels' next lines, or, of short panels and while the last of many rows pass, the next panels' */
        tile.ahead = t < tiles - 1 ? 0 : group < 4 * QUANT_AHEAD ? next : tiles == 1 ? QUANT_AHEAD : group;
        quant_products[j->q4][rows][wide](&tile);
        x += (size_t)rows * (size_t)blocks * quant_block_bytes(j->q4);
    }
}

/* How many panels the tiles of n rows take at once; the lower ones decide. */
static int quant_wide(int n, int panels)
{
    int tiles = quant_tiles(n), wide = panels < QUANT_WIDE ? panels : QUANT_WIDE;

    while (!quant_products[0][n / tiles][wide] || !quant_products[0][(n + tiles - 1) / tiles][wide]) wide--;
    return wide;
}

static void quant_panels(const struct quant_job *j, int from, int n, int block, int blocks)
{
    for (int p = 0, wide, groups = 1; p < j->panels; p += wide * groups) {
        wide = quant_wide(n, j->panels - p);
        if (j->w->cols <= QUANT_BRIEF) { /* setting up a tile would take as long as its sums */
            groups = QUANT_STREAM / (packed_steps(j->w->format, j->w->cols) * LINE_BYTES) / wide;
            if (groups > (j->panels - p) / wide) groups = (j->panels - p) / wide;
        }
        quant_rows(j, from, n, block, blocks, p, wide, groups);
    }
}

#if PAIR_SUMS
#include "num/kernel_quant_many.h"
#else
static bool many_rows(const struct quant_job *j, int n)
{
    (void)j, (void)n;
    return false;
}

static void many_product(const struct quant_job *j, int from, int n)
{
    (void)j, (void)from, (void)n;
}
#endif

static void product_quant(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                          int panels, void *scratch)
{
    struct quant_job j = {y, ldy, x, index, n, w, first, panels, w->format == FORMAT_Q4, scratch};
    int all = packed_blocks(w->cols);

    if (!all)
        for (int i = 0; i < n; i++) memset(y + (size_t)i * ldy, 0, (size_t)panels * PANEL_LANES * sizeof(float));
    for (int from = 0; from < n; from += QUANT_ROWS) {
        int some = n - from < QUANT_ROWS ? n - from : QUANT_ROWS;
        int most = (int)((size_t)KERNEL_SCRATCH_BYTES / quant_block_bytes(j.q4)) / some;

        if (many_rows(&j, some)) {
            many_product(&j, from, some);
            continue;
        }
        for (int block = 0, blocks; block < all; block += blocks) {
            blocks = all - block < most ? all - block : most;
            quant_prepare(&j, from, some, block, blocks);
            quant_panels(&j, from, some, block, blocks);
        }
    }
}

#ifdef TILES /* and the body of floats came before: products of all formats */
static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    BUG_ON(x->cols != w->cols || (format_has_scales(w->format) && !x->q) || (w->format == FORMAT_Q4 && x->only_wide));
    if (n <= 0) return;
    if (format_has_scales(w->format)) product_quant(y, ldy, x, index, n, w, first, panels, scratch);
    else product_float(y, ldy, x, index, n, w, first, panels, scratch);
}
#endif

#endif
