/* Products with q8 and q4 weights, for any width of vector: the body of kernel_avx2.c and kernel_avx512.c, after kernel_float.h.
 *
 * The includer has defined QUANT_TILE (rows at once), QUANT_WIDE (panels at once), QUANT_TILES(X) as TILES(X) there, BYTE_DOTS and PAIR_SUMS.  Sums of a block are exact integers in any order, so
 * levels differ in how they multiply:
 *   q4  unsigned 4 bits times signed bytes into 16 bits: 8 products of at most 15 * 127 fit
 *   q8  bytes spread to 16 bits, pairs into 32 bits; with BYTE_DOTS (VNNI) four bytes into 32 bits at once
 *       with PAIR_SUMS (AVX2, whose multipliers are busy where its adders are not) and many rows, half of the multiplications: x w + x' w' = (x + w')(x' + w) - x x' - w w',
 *       of which the products within a row and within a panel are made once
 * What the weights' bias adds is known from the row alone, and taken off first. */
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
    QUANT_SPREAD_BLOCKS = 12, /* blocks of panels that are spread at once, so that they stay in the first cache while rows pass */
    QUANT_SPREAD_PANELS = 2,  /* and panels */
    QUANT_SPREAD_BLOCK = (1 + QUANT_BLOCK / 2) * LINE_BYTES,
    QUANT_SPREAD = QUANT_SPREAD_PANELS * QUANT_SPREAD_BLOCKS * QUANT_SPREAD_BLOCK,
    QUANT_SPREAD_TILES = 12, /* tiles of rows for which that is worth it */
};

_Static_assert(QUANT_ROWS *QUANT_SPREAD_BLOCKS * sizeof(q8_block) + QUANT_SPREAD <= KERNEL_SCRATCH_BYTES, "rows, panels");

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

/* What the body of a tile is unrolled for. */
struct quant_kind {
    bool q4, spread; /* spread: q8 with PAIR_SUMS, w is what quant_spread() made */
};

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

#if PAIR_SUMS
/* (x + w')(x' + w) for each pair x, x' of inputs and w, w' of weights. */
VECTOR void quant_pair_sums(int rows, int wide, vi (*n)[QUANT_WIDE * V_PER_LINE], const void *x, int line, const char *w,
                            const struct quant_tile *t)
{
    vi even[QUANT_WIDE * V_PER_LINE], odd[QUANT_WIDE * V_PER_LINE];

#pragma GCC unroll 16
    for (int i = 0; i < wide * V_PER_LINE; i++) {
        even[i] = vi_load(quant_at(w, t->panel, i));
        odd[i] = vi_load(quant_at(w + LINE_BYTES, t->panel, i));
        vi_hold(&even[i]), vi_hold(&odd[i]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        vi first = quant_x(x, false, r, line, 0), second = quant_x(x, false, r, line, 1);

#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++)
            vi_add_pairs16_over(&n[r][i], vi_add16(first, odd[i]), vi_add16(second, even[i]));
    }
}
#endif

/* One line of all panels.  What there is less of stays in registers: rows or lines. */
VECTOR void quant_line(int rows, int wide, struct quant_kind k, vi (*n)[QUANT_WIDE * V_PER_LINE], const void *x, int line,
                       const char *w, const struct quant_tile *t, bool first)
{
    const int lines = wide * V_PER_LINE;

#if PAIR_SUMS
    if (k.spread) {
        quant_pair_sums(rows, wide, n, x, line, w, t);
        return;
    }
#endif
#pragma GCC unroll 16
    for (int p = 0; p < wide; p++) __builtin_prefetch(w + (size_t)p * t->panel + t->ahead);
#pragma GCC unroll 2
    for (int part = 0; part < quant_parts(k.q4); part++) {
        vi keep[QUANT_WIDE * V_PER_LINE];

#pragma GCC unroll 16
        for (int i = 0; i < (rows < lines ? rows : lines); i++)
            keep[i] = rows < lines ? quant_x(x, k.q4, i, line, part) : quant_part(vi_load(quant_at(w, t->panel, i)), k.q4, part);
#pragma GCC unroll 16
        for (int o = 0; o < (rows < lines ? lines : rows); o++) {
            vi other = rows < lines ? quant_part(vi_load(quant_at(w, t->panel, o)), k.q4, part) : quant_x(x, k.q4, o, line, part);

#pragma GCC unroll 16
            for (int i = 0; i < (rows < lines ? rows : lines); i++)
                if (rows < lines) quant_add(&n[i][o], other, keep[i], k.q4, first && part == 0);
                else quant_add(&n[o][i], keep[i], other, k.q4, first && part == 0);
        }
    }
}

/* What a sum begins with. */
VECTOR vi quant_start(const void *x, struct quant_kind k, int row, const char *w, const struct quant_tile *t, int i)
{
    if (k.q4) return vi_splat(&((const q4_block *)x)[row].start);
#if PAIR_SUMS
    if (k.spread) return vi_add32(vi_splat(&((const q8_block *)x)[row].pairs), vi_load(quant_at(w, t->panel, i)));
#endif
    (void)w, (void)t, (void)i;
    return vi_splat(&((const q8_block *)x)[row].start);
}

/* Block b, of `lines` lines: the integers, and what they add to the totals. */
VECTOR void quant_block(int rows, int wide, struct quant_kind k, vf (*total)[QUANT_WIDE * V_PER_LINE], const void *x,
                        const char *w, const uint16_t *scale, const struct quant_tile *t, int lines)
{
    const q8_block *x8 = x;
    const q4_block *x4 = x;
    const size_t line_bytes = (k.spread ? 2 : 1) * LINE_BYTES;
    const bool starts = BYTE_DOTS || !k.q4; /* else it is added behind: these sums are of 16 bits */
    quant_sums n;

    if (starts)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int i = 0; i < wide * V_PER_LINE; i++) n[r][i] = quant_start(x, k, r, w, t, i);
    if (k.spread) w += LINE_BYTES;
    quant_line(rows, wide, k, n, x, 0, w, t, !starts);
#pragma GCC unroll 8
    for (int line = 1; line < lines; line++) quant_line(rows, wide, k, n, x, line, w + (size_t)line * line_bytes, t, false);
#pragma GCC unroll 16
    for (int i = 0; i < wide * V_PER_LINE; i++) {
        vf by = vf_widen(scale + (size_t)(i / V_PER_LINE) * t->panel_scale + (i % V_PER_LINE) * V_FLOATS);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vi sum = n[r][i];

#if !BYTE_DOTS
            if (k.q4) sum = vi_add32(vi_widen_pairs(sum), vi_splat(&x4[r].start));
#endif
            total[r][i] = vf_fma(vf_from_int(sum), vf_mul(vf_splat(k.q4 ? &x4[r].scale : &x8[r].scale), by), total[r][i]);
        }
    }
}

/* One group: the `wide` panels whose lines begin at w, into y. */
VECTOR void quant_group_body(int rows, int wide, struct quant_kind k, const struct quant_tile *t, const char *w,
                             const uint16_t *scale, float *y)
{
    const int each = QUANT_BLOCK / (k.q4 ? 8 : 4);
    const size_t row = (size_t)rows * (k.q4 ? sizeof(q4_block) : sizeof(q8_block));
    const size_t block = k.spread ? QUANT_SPREAD_BLOCK : (size_t)each * LINE_BYTES;
    vf total[QUANT_TILE][QUANT_WIDE * V_PER_LINE];
    const char *x = t->x;
    int left = t->lines;

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++)
            total[r][i] = t->add ? vf_loadu(y + (size_t)r * t->ldy + i * V_FLOATS) : vf_zero();
    for (; left >= each; left -= each, x += row, w += block, scale += PANEL_LANES)
        quant_block(rows, wide, k, total, x, w, scale, t, each);
    if (left) quant_block(rows, wide, k, total, x, w, scale, t, left);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int i = 0; i < wide * V_PER_LINE; i++) vf_storeu(y + (size_t)r * t->ldy + i * V_FLOATS, total[r][i]);
}

VECTOR void quant_tile_body(int rows, int wide, struct quant_kind k, const struct quant_tile *t)
{
    for (int g = 0; g < t->groups; g++)
        quant_group_body(rows, wide, k, t, t->w + (size_t)(g * wide) * t->panel, t->scale + (size_t)(g * wide) * t->panel_scale,
                         t->y + g * wide * PANEL_LANES);
}

typedef void quant_product(const struct quant_tile *t);

#define QUANT_BODY(name, rows, wide, ...)                                                                                        \
    static void name##_##rows##x##wide(const struct quant_tile *t)                                                               \
    {                                                                                                                            \
        quant_tile_body(rows, wide, (struct quant_kind){__VA_ARGS__}, t);                                                        \
    }
#define QUANT_PRODUCT(rows, wide)                                                                                                \
    QUANT_BODY(q8, rows, wide, false, false)                                                                                     \
    QUANT_BODY(q4, rows, wide, true, false)
QUANT_TILES(QUANT_PRODUCT)
#define QUANT_ENTRY(rows, wide) [0][rows][wide] = q8_##rows##x##wide, [1][rows][wide] = q4_##rows##x##wide,
static quant_product *const quant_products[2][QUANT_TILE + 1][QUANT_WIDE + 1] = {QUANT_TILES(QUANT_ENTRY)};

#if PAIR_SUMS
QUANT_BODY(q8_spread, 3, 1, false, true)
QUANT_BODY(q8_spread, 4, 1, false, true)
static quant_product *const quant_spread_products[QUANT_TILE + 1] = {[3] = q8_spread_3x1, [4] = q8_spread_4x1};
_Static_assert(QUANT_TILE == 4, "tiles of many rows have 3 or 4 of them");
#endif

struct quant_job {
    float *y;
    size_t ldy;
    const struct rows *x;
    const int *index; /* or NULL */
    int n;
    const struct packed *w;
    int first, panels;
    bool q4;
    char *scratch; /* the rows, then panels that are spread */
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

#if PAIR_SUMS
/* `lines` lines of a panel, once for many rows.  For each block a line of - the sum of w[k] w[k + 1], k even, then for each of its lines one of the even and one of the odd
 * bytes, without their bias, as 16 bits. */
static void quant_spread(char *out, const char *w, int lines)
{
    const int each = QUANT_BLOCK / 4;

    for (int first = 0; first < lines; first += each, out += QUANT_SPREAD_BLOCK)
        for (int i = 0; i < V_PER_LINE; i++) {
            char *to = out + LINE_BYTES + i * V_BYTES;
            vi pairs = vi_zero();

            for (int l = first; l < lines && l < first + each; l++, to += 2 * LINE_BYTES) {
                vi line = vi_load(w + (size_t)l * LINE_BYTES + i * V_BYTES);
                vi even = vi_less_bias(vi_even_bytes(line)), odd = vi_less_bias(vi_odd_bytes(line));

                vi_store(to, even);
                vi_store(to + LINE_BYTES, odd);
                pairs = vi_sub32(pairs, vi_pairs16(even, odd));
            }
            vi_store(out + i * V_BYTES, pairs);
        }
}

/* Asks for the t-th of `tiles` parts of lines that are spread next. */
static void quant_ask(const char *w, size_t panel, int panels, int lines, int t, int tiles)
{
    for (int i = 0; i < panels; i++)
        for (int l = lines * t / tiles; l < lines * (t + 1) / tiles; l++)
            __builtin_prefetch(w + (size_t)i * panel + (size_t)l * LINE_BYTES);
}

/* quant_rows() of so many rows that it is worth spreading the panels. */
static void quant_many(const struct quant_job *j, int from, int n, int block, int blocks, int p, int panels)
{
    int tiles = quant_tiles(n), lines = packed_steps(FORMAT_Q8, j->w->cols), each = QUANT_BLOCK / 4;
    size_t panel = (size_t)lines * LINE_BYTES, panel_scale = (size_t)packed_blocks(j->w->cols) * PANEL_LANES;
    const char *w = (const char *)j->w->lines + (size_t)(j->first + p) * panel + (size_t)block * (size_t)each * LINE_BYTES;
    char *room = j->scratch + (KERNEL_SCRATCH_BYTES - QUANT_SPREAD);
    struct quant_tile tile = {.ldy = j->ldy, .x = j->scratch, .w = room, .panel_scale = panel_scale, .add = block > 0};

    tile.panel = (size_t)blocks * QUANT_SPREAD_BLOCK, tile.groups = panels;
    tile.scale = j->w->scale + (size_t)(j->first + p) * panel_scale + (size_t)block * PANEL_LANES;
    tile.lines = lines - block * each < blocks * each ? lines - block * each : blocks * each;
    for (int i = 0; i < panels; i++) quant_spread(room + (size_t)i * tile.panel, w + (size_t)i * panel, tile.lines);
    for (int t = 0; t < tiles; t++) {
        int begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;

        quant_ask(w + (size_t)panels * panel, panel, panels, tile.lines, t, tiles);
        tile.y = j->y + (size_t)(from + begin) * j->ldy + (size_t)p * PANEL_LANES;
        quant_spread_products[rows](&tile);
        tile.x = (const char *)tile.x + (size_t)(rows * blocks) * sizeof(q8_block);
    }
}
#endif

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

static void quant_spread_panels(const struct quant_job *j, int from, int n, int block, int blocks)
{
#if PAIR_SUMS
    for (int p = 0; p < j->panels; p += QUANT_SPREAD_PANELS)
        quant_many(j, from, n, block, blocks, p, j->panels - p < QUANT_SPREAD_PANELS ? j->panels - p : QUANT_SPREAD_PANELS);
#else
    (void)j, (void)from, (void)n, (void)block, (void)blocks;
#endif
}

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
        bool spread = PAIR_SUMS && !j.q4 && quant_tiles(some) >= QUANT_SPREAD_TILES;

        if (spread) most = QUANT_SPREAD_BLOCKS;
        for (int block = 0, blocks; block < all; block += blocks) {
            blocks = all - block < most ? all - block : most;
            quant_prepare(&j, from, some, block, blocks);
            if (spread) quant_spread_panels(&j, from, some, block, blocks);
            else quant_panels(&j, from, some, block, blocks);
        }
    }
}

#ifdef TILES /* and the body of floats came before: products of all formats */
static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    BUG_ON(x->cols != w->cols || (format_has_scales(w->format) && !x->q));
    if (n <= 0) return;
    if (format_has_scales(w->format)) product_quant(y, ldy, x, index, n, w, first, panels, scratch);
    else product_float(y, ldy, x, index, n, w, first, panels, scratch);
}
#endif

#endif
