/* Products of many rows with q8 weights by half of the multiplications: the part of kernel_quant.h for levels with PAIR_SUMS (AVX2, whose multipliers are busy where its adders are not).
 *
 *   x w + x' w' = (x + w')(x' + w) - x x' - w w'
 *
 * of which the products within a row come with it (rows.h), as does what the weights' bias adds, and those within a panel are made while the panel is spread to 16 bits, once for all rows.
 *
 * Every instruction counts, also those that only load: where another thread runs on the same core it takes its share of the places that they go through.  So rows are read where they lie rather than
 * copied.  Blocks are cut so that a spread panel stays in the first cache while all rows pass, and those blocks of the rows in the second while all panels do. */

#if defined(QUANT_TILES) && PAIR_SUMS

enum {
    MANY_TILE = 4,    /* rows of a tile, of one panel; there are tiles of one row less */
    MANY_TILES = 12,  /* tiles of rows for which spreading a panel is worth it */
    MANY_NEAR = 8,    /* of them, the last ones: while they pass the next panel comes into the first cache */
    MANY_BLOCKS = 16, /* blocks of a panel that the first cache holds */
    MANY_PAIRS = 0,   /* bytes from a spread block to: ROWS_BIG_BITS - the sum of w[k] w[k + 1], k even, bias and all */
    MANY_SCALE = LINE_BYTES,
    MANY_LINES = 2 * LINE_BYTES, /* for each line one of the even and one of the odd bytes, with their bias, as 16 bits */
    MANY_BLOCK = MANY_LINES + QUANT_BLOCK / 4 * 2 * LINE_BYTES,
};

_Static_assert(MANY_BLOCKS *MANY_BLOCK <= KERNEL_SCRATCH_BYTES, "a panel");
_Static_assert(MANY_NEAR < MANY_TILES && MANY_BLOCKS * PANEL_LANES * sizeof(uint16_t) <= MANY_NEAR * LINE_BYTES,
               "all is asked for");
_Static_assert(MANY_TILES >= MANY_TILE - 1 && V_PER_LINE == 2,
               "no tile has less rows than that; vi_add_pair_sums() takes both halves of a line");

/* y[r][c] = the sum over the first blocks of one panel, or += that over later ones. */
struct many_tile {
    float *y;
    size_t ldy;
    const struct rows_wide *const *x; /* where each row begins */
    const char *w;                    /* what many_spread() made */
    int block, lines;                 /* the first block; lines of all blocks, of which the last may have fewer than the others */
};

/* (x + w')(x' + w) for each pair x, x' of inputs and w, w' of weights, in one line, the first of a block or another. */
VECTOR void many_line(int rows, vi (*n)[V_PER_LINE], const struct rows_wide *const *x, int block, int line, const char *w)
{
    const char *at = w + MANY_LINES + line * 2 * LINE_BYTES;
    vi even = vi_load(at), next = vi_load(at + V_BYTES), odd = vi_load(at + LINE_BYTES),
       odd_next = vi_load(at + LINE_BYTES + V_BYTES);

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int16_t *four = x[r][block].x + 4 * line;

        if (line) vi_add_pair_sums(&n[r][0], &n[r][1], four, even, odd, next, odd_next);
        else vi_first_pair_sums(&n[r][0], &n[r][1], four, even, odd, next, odd_next, (const vi *)(const void *)(w + MANY_PAIRS));
    }
}

/* Block `block`, of `lines` lines: the integers, as bits of floats from ROWS_BIG on, and what they add to the totals.  So the products within the row are taken off in no operation of their own. */
VECTOR void many_block(int rows, vf (*total)[V_PER_LINE], const struct rows_wide *const *x, int block, const char *w, int lines)
{
    vi n[MANY_TILE][V_PER_LINE];

    many_line(rows, n, x, block, 0, w);
#pragma GCC unroll 8
    for (int line = 1; line < lines; line++) many_line(rows, n, x, block, line, w);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        vf by = vf_splat(&x[r][block].scale), pairs = vf_splat(&x[r][block].pairs);

#pragma GCC unroll 2
        for (int i = 0; i < V_PER_LINE; i++)
            total[r][i] = vf_fma(vf_sub(vf_bits(n[r][i]), pairs), vf_mul(by, vf_load(w + MANY_SCALE + i * V_BYTES)), total[r][i]);
    }
}

VECTOR void many_tile_body(int rows, const struct many_tile *t)
{
    const int each = QUANT_BLOCK / 4;
    const struct rows_wide *x[MANY_TILE];
    vf total[MANY_TILE][V_PER_LINE];
    const char *w = t->w;
    float *y = t->y;
    int left = t->lines, block = 0;

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) x[r] = t->x[r] + t->block;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < V_PER_LINE; i++) total[r][i] = t->block ? vf_loadu(y + (size_t)r * t->ldy + i * V_FLOATS) : vf_zero();
    for (; left >= each; left -= each, block++) many_block(rows, total, x, block, w + block * MANY_BLOCK, each);
    if (left) many_block(rows, total, x, block, w + block * MANY_BLOCK, left);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < V_PER_LINE; i++) vf_storeu(y + (size_t)r * t->ldy + i * V_FLOATS, total[r][i]);
}

static void many_tile_less(const struct many_tile *t)
{
    many_tile_body(MANY_TILE - 1, t);
}

static void many_tile_whole(const struct many_tile *t)
{
    many_tile_body(MANY_TILE, t);
}

/* `lines` lines of a panel, and the scales of their blocks. */
static void many_spread(char *out, const char *w, const uint16_t *scale, int lines)
{
    const int each = QUANT_BLOCK / 4, big = ROWS_BIG_BITS;

    for (int first = 0; first < lines; first += each, out += MANY_BLOCK, scale += PANEL_LANES)
        for (int i = 0; i < V_PER_LINE; i++) {
            char *to = out + MANY_LINES + i * V_BYTES;
            vi pairs = vi_splat(&big);

            for (int l = first; l < lines && l < first + each; l++, to += 2 * LINE_BYTES) {
                vi line = vi_load(w + (size_t)l * LINE_BYTES + i * V_BYTES);
                vi even = vi_even_bytes(line), odd = vi_odd_bytes(line);

                vi_store(to, even);
                vi_store(to + LINE_BYTES, odd);
                pairs = vi_sub32(pairs, vi_pairs16(even, odd));
            }
            vi_store(out + MANY_PAIRS + i * V_BYTES, pairs);
            vf_storeu((float *)(void *)(out + MANY_SCALE + i * V_BYTES), vf_widen(scale + i * V_FLOATS));
        }
}

/* Where blocks of a panel begin. */
struct many_panel {
    const char *w;
    const uint16_t *scale;
};

/* Asks for the next panel while tile t of `tiles`, one of the last, passes: a few lines at a time, for one that comes out of the second cache when it is spread takes twice as long. */
static void many_ask(const struct many_panel *next, int lines, int t, int tiles)
{
    t -= tiles - MANY_NEAR;
    if (t < 0) return;
    for (int l = lines * t / MANY_NEAR; l < lines * (t + 1) / MANY_NEAR; l++) v_ask(next->w + (size_t)l * LINE_BYTES);
    v_ask((const char *)next->scale + t * LINE_BYTES);
}

/* Blocks block .. block + blocks - 1 of n rows, which begin at x, against all panels.  y: of the first row. */
static void many_blocks(const struct quant_job *j, const struct rows_wide *const *x, float *y, int n, int block, int blocks)
{
    const int each = QUANT_BLOCK / 4;
    int tiles = (n + MANY_TILE - 1) / MANY_TILE, whole = n - (MANY_TILE - 1) * tiles; /* the others have one row less */
    int lines = packed_steps(FORMAT_Q8, j->w->cols), all = packed_blocks(j->w->cols);
    size_t panel = (size_t)lines * LINE_BYTES, panel_scale = (size_t)all * PANEL_LANES;
    struct many_tile tile = {.ldy = j->ldy, .w = j->scratch, .block = block};
    struct many_panel first, at, next;

    first.w = (const char *)j->w->lines + (size_t)j->first * panel + (size_t)(block * each) * LINE_BYTES;
    first.scale = j->w->scale + (size_t)j->first * panel_scale + (size_t)block * PANEL_LANES;
    tile.lines = lines - block * each < blocks * each ? lines - block * each : blocks * each;
    at = first;
    for (int p = 0; p < j->panels; p++, at = next, y += PANEL_LANES) {
        next = (struct many_panel){at.w + panel, at.scale + panel_scale};
        if (p == j->panels - 1) /* the next blocks of all panels; after the last ones for nothing */
            next =
                (struct many_panel){first.w + (size_t)(blocks * each) * LINE_BYTES, first.scale + (size_t)blocks * PANEL_LANES};
        many_spread(j->scratch, at.w, at.scale, tile.lines);
        tile.x = x, tile.y = y;
        for (int t = 0; t < tiles; t++) {
            int rows = t < whole ? MANY_TILE : MANY_TILE - 1;

            many_ask(&next, tile.lines, t, tiles);
            if (t < whole) many_tile_whole(&tile);
            else many_tile_less(&tile);
            tile.x += rows, tile.y += (size_t)rows * j->ldy;
        }
    }
}

/* Whether that is the way for n rows. */
static bool many_rows(const struct quant_job *j, int n)
{
    return !j->q4 && j->x->wide && n > (MANY_TILES - 1) * MANY_TILE;
}

static void many_product(const struct quant_job *j, int from, int n)
{
    const struct rows_wide *x[QUANT_ROWS];
    int all = packed_blocks(j->w->cols);

    for (int i = 0; i < n; i++) x[i] = j->x->wide + (size_t)(j->index ? j->index[from + i] : from + i) * (size_t)all;
    for (int block = 0; block < all; block += MANY_BLOCKS)
        many_blocks(j, x, j->y + (size_t)from * j->ldy, n, block, all - block < MANY_BLOCKS ? all - block : MANY_BLOCKS);
}

#endif
