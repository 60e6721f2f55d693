/* Kernels for AMX: rows of bfloat16 against bf16 weights in tiles, and many quantized rows against q8 and q4 ones (kernel_amx_bytes.h).  All else is the level below.
 *
 * 16 lines of a panel are a tile as they lie: 32 inputs of 16 outputs.  16 rows of 32 inputs are the other factor, read where they lie if they follow one another.
 * A tile of sums goes through the inputs in order, 32 at a time, and what is put away between is exact: so a row's result depends on nothing but the row.
 */
#include "num/half.h"
#include "num/kernel_levels.h"

#if defined(EMULATE_AMX) /* by a test, which has tiles in plain C */
#define BELOW kernel_plain
#elif defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include "num/vector_avx512.h"
#define BELOW kernel_vnni
#endif

#if defined(BELOW)

#include <string.h>

#include "base/err.h"

enum {
    ROWS_OF_TILE = 16,
    TILE_BYTES = ROWS_OF_TILE * LINE_BYTES,
    INPUTS_OF_TILE = 32,
    TILES_OF_BLOCK = 16, /* two panels of so many tiles, 32 KiB, stay in the first cache while all rows pass */
    BLOCK = TILES_OF_BLOCK * INPUTS_OF_TILE,
    MOST_ROWS = KERNEL_SCRATCH_BYTES / (BLOCK * 2), /* which are laid side by side at once */
    FEW_WIDE = 4,
    AHEAD = 4 * TILE_BYTES,
};

/* What LDTILECFG reads. */
struct shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* The registers: sums 0 .. 3, rows in 4 and 5, weights in 6 and 7.  Sums 0 and 1 and register 4 have `upper` rows, 2, 3 and 5 have `lower`. */
static void shape_square(int upper, int lower)
{
    struct shapes s = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        s.row_bytes[i] = LINE_BYTES;
        s.rows[i] = (uint8_t)(i > 5 ? ROWS_OF_TILE : i == 2 || i == 3 || i == 5 ? lower : upper);
    }
    __asm__ volatile("" : : "r"(&s) : "memory"); /* gcc 12 believes that 8 bytes are read */
    _tile_loadconfig(&s);
}

/* All four sums have `rows` rows. */
static void shape_line(int rows)
{
    shape_square(rows, rows);
}

struct block { /* inputs of a product: at most BLOCK */
    const uint16_t *x;
    size_t ld;         /* elements */
    const char *lines; /* of the first panel */
    size_t panel;      /* bytes */
    int tiles;         /* whole ones, of 32 inputs */
    int left;          /* lines behind them */
    bool add;
    float *y;
    size_t ldy;
};

/* The lines behind the last whole tile, with zeros up to 16. */
static const char *last_tile(char *room, const char *lines, int left)
{
    memcpy(room, lines, (size_t)left * LINE_BYTES);
    memset(room + left * LINE_BYTES, 0, (size_t)(ROWS_OF_TILE - left) * LINE_BYTES);
    __asm__ volatile("" : : "r"(room) : "memory");
    return room;
}

static void ahead(const char *tile)
{
    for (int i = 0; i < ROWS_OF_TILE; i++) __builtin_prefetch(tile + AHEAD + i * LINE_BYTES);
}

/* 32 rows (the last ones fewer, as shape_square() was told) by panels p and p + 1. */
static void square(const struct block *b, int row, int p)
{
    char room[2][TILE_BYTES] __attribute__((aligned(64)));
    const uint16_t *x = b->x + (size_t)row * b->ld, *lower = x + ROWS_OF_TILE * b->ld;
    const char *w = b->lines + (size_t)p * b->panel, *right = w + b->panel;
    float *y = b->y + (size_t)row * b->ldy + (size_t)p * PANEL_LANES, *under = y + ROWS_OF_TILE * b->ldy;
    size_t ld = b->ld * sizeof(*x), ldy = b->ldy * sizeof(*y);

    if (b->add) {
        _tile_loadd(0, y, ldy);
        _tile_loadd(1, y + PANEL_LANES, ldy);
        _tile_loadd(2, under, ldy);
        _tile_loadd(3, under + PANEL_LANES, ldy);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int t = 0; t < b->tiles + (b->left > 0); t++) {
        if (t == b->tiles) w = last_tile(room[0], w, b->left), right = last_tile(room[1], right, b->left);
        _tile_loadd(6, w, LINE_BYTES);
        _tile_loadd(4, x, ld);
        _tile_loadd(7, right, LINE_BYTES);
        _tile_loadd(5, lower, ld);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        w += TILE_BYTES, right += TILE_BYTES, x += INPUTS_OF_TILE, lower += INPUTS_OF_TILE;
    }
    _tile_stored(0, y, ldy);
    _tile_stored(1, y + PANEL_LANES, ldy);
    _tile_stored(2, under, ldy);
    _tile_stored(3, under + PANEL_LANES, ldy);
}

/* Up to 16 rows by panels p .. p + 3: what takes time is the way of the weights from memory. */
static void line_of_four(const struct block *b, int row, int p)
{
    char room[FEW_WIDE][TILE_BYTES] __attribute__((aligned(64)));
    const uint16_t *x = b->x + (size_t)row * b->ld;
    const char *w[FEW_WIDE];
    float *y = b->y + (size_t)row * b->ldy + (size_t)p * PANEL_LANES;
    size_t ld = b->ld * sizeof(*x), ldy = b->ldy * sizeof(*y);

    for (int i = 0; i < FEW_WIDE; i++) w[i] = b->lines + (size_t)(p + i) * b->panel;
    if (b->add) {
        _tile_loadd(0, y, ldy);
        _tile_loadd(1, y + PANEL_LANES, ldy);
        _tile_loadd(2, y + 2 * PANEL_LANES, ldy);
        _tile_loadd(3, y + 3 * PANEL_LANES, ldy);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int t = 0; t < b->tiles + (b->left > 0); t++, x += INPUTS_OF_TILE) {
        for (int i = 0; i < FEW_WIDE; i++) {
            if (t == b->tiles) w[i] = last_tile(room[i], w[i], b->left);
            else ahead(w[i]);
        }
        _tile_loadd(4, x, ld);
        _tile_loadd(6, w[0], LINE_BYTES);
        _tile_loadd(7, w[1], LINE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, w[2], LINE_BYTES);
        _tile_loadd(7, w[3], LINE_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        for (int i = 0; i < FEW_WIDE; i++) w[i] += TILE_BYTES;
    }
    _tile_stored(0, y, ldy);
    _tile_stored(1, y + PANEL_LANES, ldy);
    _tile_stored(2, y + 2 * PANEL_LANES, ldy);
    _tile_stored(3, y + 3 * PANEL_LANES, ldy);
}

/* Up to 16 rows by one panel: what is left over. */
static void single(const struct block *b, int row, int p)
{
    char room[TILE_BYTES] __attribute__((aligned(64)));
    const uint16_t *x = b->x + (size_t)row * b->ld;
    const char *w = b->lines + (size_t)p * b->panel;
    float *y = b->y + (size_t)row * b->ldy + (size_t)p * PANEL_LANES;
    size_t ld = b->ld * sizeof(*x), ldy = b->ldy * sizeof(*y);

    if (b->add) _tile_loadd(0, y, ldy);
    else _tile_zero(0);
    for (int t = 0; t < b->tiles + (b->left > 0); t++, w += TILE_BYTES, x += INPUTS_OF_TILE) {
        if (t == b->tiles) w = last_tile(room, w, b->left);
        _tile_loadd(4, x, ld);
        _tile_loadd(6, w, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, y, ldy);
}

/* Up to 16 rows from `row` on by all panels. */
static void few_rows(const struct block *b, int row, int rows, int panels)
{
    int p = 0;

    shape_line(rows);
    for (; p + FEW_WIDE <= panels; p += FEW_WIDE) line_of_four(b, row, p);
    for (; p < panels; p++) single(b, row, p);
}

/* Rows in twos of 16; up to 16 that are left go alone, and so does a last panel without a neighbour. */
static void many_rows(const struct block *b, int n, int panels)
{
    int whole = n / (2 * ROWS_OF_TILE) * 2 * ROWS_OF_TILE, left = n - whole, lower = left - ROWS_OF_TILE;

    for (int p = 0; p + 2 <= panels; p += 2) {
        if (p == 0 || lower > 0) shape_square(ROWS_OF_TILE, ROWS_OF_TILE);
        for (int r = 0; r < whole; r += 2 * ROWS_OF_TILE) square(b, r, p);
        if (lower > 0) {
            shape_square(ROWS_OF_TILE, lower);
            square(b, whole, p);
        }
    }
    if (panels % 2)
        for (int r = 0; r < n; r += ROWS_OF_TILE) {
            shape_line(n - r < ROWS_OF_TILE ? n - r : ROWS_OF_TILE);
            single(b, r, panels - 1);
        }
    if (left > 0 && lower <= 0) few_rows(b, whole, left, panels - panels % 2);
}

/* `inputs` elements from input k on of rows that do not follow one another, side by side. */
static void gather(uint16_t *to, const struct rows *x, const int *index, int n, size_t ld, size_t k, size_t inputs)
{
    for (int i = 0; i < n; i++) memcpy(to + (size_t)i * inputs, x->half + (size_t)index[i] * ld + k, inputs * sizeof(*to));
    __asm__ volatile("" : : "r"(to) : "memory");
}

static bool in_order(const int *index, int n)
{
    for (int i = 1; i < n; i++)
        if (index[i] != index[0] + i) return false;
    return true;
}

/* At most MOST_ROWS rows. */
static void product_half(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                         int panels, uint16_t *scratch)
{
    size_t ld = half_ld(x->cols);
    int steps = packed_steps(FORMAT_BF16, x->cols), together = !index || in_order(index, n);
    struct block b = {.panel = (size_t)steps * LINE_BYTES, .y = y, .ldy = ldy};
    const char *lines = (const char *)w->lines + (size_t)first * b.panel;

    for (int s = 0; s < steps; s += TILES_OF_BLOCK * ROWS_OF_TILE) {
        int some = steps - s < TILES_OF_BLOCK * ROWS_OF_TILE ? steps - s : TILES_OF_BLOCK * ROWS_OF_TILE;
        size_t k = 2 * (size_t)s, inputs = (size_t)(some + ROWS_OF_TILE - 1) / ROWS_OF_TILE * INPUTS_OF_TILE;

        b.lines = lines + (size_t)s * LINE_BYTES, b.tiles = some / ROWS_OF_TILE, b.left = some % ROWS_OF_TILE, b.add = s > 0;
        if (together) b.x = x->half + (size_t)(index ? index[0] : 0) * ld + k, b.ld = ld;
        else {
            gather(scratch, x, index, n, ld, k, inputs);
            b.x = scratch, b.ld = inputs;
        }
        if (n <= ROWS_OF_TILE) few_rows(&b, 0, n, panels);
        else many_rows(&b, n, panels);
    }
}

#include "num/kernel_amx_bytes.h"

static void product(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels, void *scratch)
{
    if (format_has_scales(w->format) && w->cols) {
        BUG_ON(x->cols != w->cols || !x->q || x->only_wide);
        product_bytes(y, ldy, x, index, n, w, first, panels, scratch);
        return;
    }
    if (!x->half || w->format != FORMAT_BF16 || !w->cols) {
        BELOW.product(y, ldy, x, index, n, w, first, panels, scratch);
        return;
    }
    BUG_ON(x->cols != w->cols);
    for (int i = 0; i < n; i += MOST_ROWS) {
        struct rows part = *x;

        if (!index) part.half += (size_t)i * half_ld(x->cols);
        product_half(y + (size_t)i * ldy, ldy, &part, index ? index + i : NULL, n - i < MOST_ROWS ? n - i : MOST_ROWS, w, first,
                     panels, scratch);
    }
    _tile_release();
}

const struct kernel kernel_amx = {ISA_AMX, 2 * ROWS_OF_TILE, product};

#endif
