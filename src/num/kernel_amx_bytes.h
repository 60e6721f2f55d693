/* Products of many rows with q8 and q4 weights in AMX tiles of bytes: a part of kernel_amx.c.
 *
 * A block of 32 inputs of 16 rows, with a bias of 128, by the 8 lines of a q8 panel as they lie is one TDPBUUD: 16 x 16 exact sums of 32 bits.  What the biases add is
 * taken off, and the rest scaled and added as kernel.h defines it, so the bits are those of every other level:
 *   sum x w = sum (x + 128) (w + bias) - 128 sum (w + bias) - bias sum x
 * The four lines of a q4 block become 8 such lines first, once for all rows, as the sums of weights are made once.  Rows need no bias for TDPBSUD, which is one addition
 * less; but the emulator that is the only one to have run this (Bochs 3.0) takes all bytes of all such instructions for unsigned.
 * The compiler must not move what is written for a tile behind the instruction that loads it, which does not say that it reads memory: hence laid(). */
#ifdef BELOW /* the includer is kernel_amx.c: its tiles, vectors, and the level below */

enum {
    BYTE_LINES = QUANT_BLOCK / 4, /* of a block: the tile of weights */
    BYTE_BLOCKS = 32,             /* inputs that stay in the caches while rows pass: 16 KiB of a panel */
    BYTE_ROWS = 192,              /* rows laid out at once */
    BYTE_TILE = BYTE_LINES * LINE_BYTES,
    BYTE_PANEL = BYTE_BLOCKS * BYTE_TILE,
    BYTE_LEAST =
        12, /* rows for which a tile's work is less than that of the level below; by count of instructions, never timed */
};

/* A block of the rows of a tile. */
struct byte_rows {
    uint8_t x[ROWS_OF_TILE][QUANT_BLOCK]; /* + 128 */
    float scale[ROWS_OF_TILE];
    int32_t start[ROWS_OF_TILE]; /* - bias * sum of x */
};

_Static_assert(sizeof(struct byte_rows) % LINE_BYTES == 0 &&
                   (BYTE_ROWS / ROWS_OF_TILE) * BYTE_BLOCKS * sizeof(struct byte_rows) + BYTE_PANEL <= KERNEL_SCRATCH_BYTES &&
                   BYTE_BLOCKS * LINE_BYTES <= HALF_SCRATCH_BYTES,
               "rows, a panel, and its sums");

struct byte_job {
    float *y;
    size_t ldy;
    const struct rows *x;
    const int *index; /* or NULL */
    int n;            /* at most BYTE_ROWS */
    const struct packed *w;
    int first, panels;
    int block, blocks;
    struct byte_rows *rows; /* [groups of 16 rows][blocks] */
    char *room;             /* BYTE_PANEL */
    int32_t *ones;          /* [blocks][PANEL_LANES]: 128 times the sums of a panel's weights */
};

/* Tile 0 has the sums, 1 the rows, 2 the weights; 3 the sums of weights, 4 a row of 128. */
static void shape_bytes(void)
{
    struct shapes s = {.palette = 1,
                       .row_bytes = {LINE_BYTES, QUANT_BLOCK, LINE_BYTES, LINE_BYTES, QUANT_BLOCK},
                       .rows = {ROWS_OF_TILE, ROWS_OF_TILE, BYTE_LINES, 1, 1}};
    uint8_t row[QUANT_BLOCK];

    __asm__ volatile("" : : "r"(&s) : "memory");
    _tile_loadconfig(&s);
    memset(row, 128, sizeof(row));
    __asm__ volatile("" : : "r"(row) : "memory");
    _tile_loadd(4, row, QUANT_BLOCK);
}

static void laid(const void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

/* Rows that fill no tile are followed by zeros. */
static void lay_rows(const struct byte_job *j)
{
    int all = packed_blocks(j->w->cols), bias = j->w->format == FORMAT_Q8 ? 128 : 8;

    for (int i = 0; i < (j->n + ROWS_OF_TILE - 1) / ROWS_OF_TILE * ROWS_OF_TILE; i++) {
        struct byte_rows *to = j->rows + (size_t)(i / ROWS_OF_TILE) * (size_t)j->blocks;
        size_t at = i < j->n ? (size_t)(j->index ? j->index[i] : i) * (size_t)all + (size_t)j->block : 0;
        int r = i % ROWS_OF_TILE;

        for (int b = 0; b < j->blocks; b++, at++) {
            if (i < j->n) {
                for (int k = 0; k < QUANT_BLOCK; k++) to[b].x[r][k] = (uint8_t)(j->x->q[at * QUANT_BLOCK + (size_t)k] + 128);
                to[b].scale[r] = j->x->scale[at], to[b].start[r] = -bias * j->x->sum[at];
            } else {
                memset(to[b].x[r], 0, QUANT_BLOCK);
                to[b].scale[r] = 0.0f, to[b].start[r] = 0;
            }
        }
    }
    laid(j->rows);
}

/* A line of q4 as two of q8's kind: inputs 0 .. 3 and 4 .. 7. */
static void spread_nibbles(char *to, const char *line)
{
    const uint64_t low = 0x0f0f0f0f0f0f0f0f;

    for (int i = 0; i < LINE_BYTES; i += 8) {
        uint64_t both, each;

        memcpy(&both, line + i, sizeof(both));
        each = both & low;
        memcpy(to + i, &each, sizeof(each));
        each = both >> 4 & low;
        memcpy(to + LINE_BYTES + i, &each, sizeof(each));
    }
}

/* The blocks' tiles of panel p: where they lie, or made in the room, with zeros behind the last input. */
static const char *byte_tiles(const struct byte_job *j, int p)
{
    bool q4 = j->w->format == FORMAT_Q4;
    int steps = packed_steps(j->w->format, j->w->cols), each = q4 ? BYTE_LINES / 2 : BYTE_LINES, from = j->block * each;
    int lines = steps - from < j->blocks * each ? steps - from : j->blocks * each;
    const char *at = (const char *)j->w->lines + ((size_t)(j->first + p) * (size_t)steps + (size_t)from) * LINE_BYTES;
    size_t used = (size_t)lines * (q4 ? 2 : 1) * LINE_BYTES, whole = (size_t)j->blocks * BYTE_TILE;

    if (!q4 && used == whole) return at;
    if (!q4) memcpy(j->room, at, used);
    else
        for (int i = 0; i < lines; i++) spread_nibbles(j->room + (size_t)i * 2 * LINE_BYTES, at + (size_t)i * LINE_BYTES);
    memset(j->room + used, 0, whole - used);
    laid(j->room);
    return j->room;
}

static void weight_sums(const struct byte_job *j, const char *w)
{
    for (int b = 0; b < j->blocks; b++) {
        _tile_zero(3);
        _tile_loadd(2, w + (size_t)b * BYTE_TILE, LINE_BYTES);
        _tile_dpbuud(3, 4, 2);
        _tile_stored(3, j->ones + (size_t)b * PANEL_LANES, LINE_BYTES);
    }
}

static void byte_sums(int32_t *to, const struct byte_rows *x, const char *w)
{
    _tile_zero(0);
    _tile_loadd(1, x->x, QUANT_BLOCK);
    _tile_loadd(2, w, LINE_BYTES);
    _tile_dpbuud(0, 1, 2);
    _tile_stored(0, to, LINE_BYTES);
}

/* y = or += the blocks of up to 16 rows by one panel.  A tile is at work on the next block while this one's sums are scaled. */
static void byte_group(float *y, size_t ldy, int rows, const struct byte_rows *x, const char *w, const int32_t *ones,
                       const uint16_t *scale, int blocks, bool add)
{
    int32_t sums[2][ROWS_OF_TILE * PANEL_LANES] __attribute__((aligned(64)));
    vf total[ROWS_OF_TILE];

#pragma GCC unroll 16
    for (int r = 0; r < ROWS_OF_TILE; r++) total[r] = add && r < rows ? vf_loadu(y + (size_t)r * ldy) : vf_zero();
    byte_sums(sums[0], x, w);
    for (int b = 0; b < blocks; b++) {
        const int32_t *n = sums[b % 2];
        vf by = vf_widen(scale + (size_t)b * PANEL_LANES);
        vi less = vi_load(ones + (size_t)b * PANEL_LANES);

        if (b + 1 < blocks) byte_sums(sums[(b + 1) % 2], x + b + 1, w + (size_t)(b + 1) * BYTE_TILE);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS_OF_TILE; r++) {
            vi sum = vi_add32(vi_sub32(vi_load(n + (size_t)r * PANEL_LANES), less), vi_splat(&x[b].start[r]));

            total[r] = vf_fma(vf_from_int(sum), vf_mul(vf_splat(&x[b].scale[r]), by), total[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS_OF_TILE; r++)
        if (r < rows) vf_storeu(y + (size_t)r * ldy, total[r]);
}

static void byte_panels(const struct byte_job *j)
{
    size_t all = (size_t)packed_blocks(j->w->cols);

    lay_rows(j);
    for (int p = 0; p < j->panels; p++) {
        const char *w = byte_tiles(j, p);
        const uint16_t *scale = j->w->scale + ((size_t)(j->first + p) * all + (size_t)j->block) * PANEL_LANES;

        weight_sums(j, w);
        for (int i = 0; i < j->n; i += ROWS_OF_TILE)
            byte_group(j->y + (size_t)i * j->ldy + (size_t)p * PANEL_LANES, j->ldy,
                       j->n - i < ROWS_OF_TILE ? j->n - i : ROWS_OF_TILE,
                       j->rows + (size_t)(i / ROWS_OF_TILE) * (size_t)j->blocks, w, j->ones, scale, j->blocks, j->block > 0);
    }
}

/* Rows of x from `from` on, by index or as they follow one another. */
static struct rows rows_from(const struct rows *x, const int **index, int from)
{
    size_t at = *index ? 0 : (size_t)from * (size_t)packed_blocks(x->cols);
    struct rows part = *x;

    if (*index) *index += from;
    part.q += at * QUANT_BLOCK, part.scale += at, part.sum += at;
    return part;
}

static void product_bytes(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                          int panels, void *scratch)
{
    int left = n % ROWS_OF_TILE < BYTE_LEAST ? n % ROWS_OF_TILE : 0, all = packed_blocks(w->cols);

    if (n > left) shape_bytes();
    for (int from = 0, some; from < n - left; from += some) {
        const int *some_index = index;
        struct rows part = rows_from(x, &some_index, from);

        some = n - left - from < BYTE_ROWS ? n - left - from : BYTE_ROWS;
        struct byte_job j = {.y = y + (size_t)from * ldy, .ldy = ldy, .x = &part, .index = some_index, .n = some, .w = w};

        j.first = first, j.panels = panels, j.rows = scratch, j.room = (char *)scratch + KERNEL_SCRATCH_BYTES - BYTE_PANEL;
        j.ones = (int32_t *)(void *)((char *)scratch + KERNEL_SCRATCH_BYTES);
        for (; j.block < all; j.block += j.blocks) {
            j.blocks = all - j.block < BYTE_BLOCKS ? all - j.block : BYTE_BLOCKS;
            byte_panels(&j);
        }
    }
    if (n > left) _tile_release();
    if (left) {
        struct rows part = rows_from(x, &index, n - left);

        part.wide = NULL;
        BELOW.product(y + (size_t)(n - left) * ldy, ldy, &part, index, left, w, first, panels, scratch);
    }
}

#endif
