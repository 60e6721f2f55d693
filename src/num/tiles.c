#include "num/tiles.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { OFFSETS = 3 }; /* places that a call of each height is laid at, beside a step of its own */

const int tile_tall[TILE_TALLS] = {64, TILE_TALL_MAX};

void tile_multiply(float *y, const float *x, size_t ldx, int rows, const float *w, size_t ldw, int panel, int cols)
{
    cblas_sgemm(CblasColMajor, CblasTrans, CblasNoTrans, rows, panel, cols, 1.0f, x, (int)ldx, w, (int)ldw, 0.0f, y, rows);
}

/* Everything one shape is verified with. */
struct trial {
    int rows, panel, cols;
    float *x, *w; /* [rows][cols], [panel][cols] */
    float *want;  /* [rows][panel] by base tiles */
    float *y;     /* of one call */
};

/* Clears good[r] of the rows r of a call with rows at .. at + height - 1 that do not have the bits in `want`. */
static void compare(const struct trial *t, int at, int height, bool *good)
{
    tile_multiply(t->y, t->x + (size_t)at * (size_t)t->cols, (size_t)t->cols, height, t->w, (size_t)t->cols, t->panel, t->cols);
    for (int r = 0; r < height; r++)
        for (int n = 0; good[r] && n < t->panel; n++)
            good[r] = !memcmp(&t->y[(size_t)n * (size_t)height + (size_t)r],
                              &t->want[(size_t)(at + r) * (size_t)t->panel + (size_t)n], sizeof(float));
}

/* Which rows of a call of this height can be trusted: good at every place where they were laid over x, with other neighbours each time. */
static void try_height(const struct trial *t, int height, bool *good)
{
    int step = height < TILE_BASE ? 1 : height, last = height <= TILE_BASE ? 4 * TILE_BASE : t->rows - height;

    for (int r = 0; r < height; r++) good[r] = true;
    for (int offset = 0; offset < (height == TILE_BASE ? TILE_BASE : OFFSETS); offset++)
        for (int at = offset; at <= last; at += step) compare(t, at, height, good);
}

static struct tile longest_run(const bool *good, int height)
{
    struct tile best = {.height = height};

    for (int begin = 0; begin < height; begin++) {
        int end = begin;

        while (end < height && good[end]) end++;
        if (end - begin > best.end - best.begin) best.begin = begin, best.end = end;
        begin = end;
    }
    best.end -= (best.end - best.begin) %
                TILE_BASE; /* calls then begin at multiples of TILE_BASE, and only the last rows of all are fewer */
    if (2 * (best.end - best.begin) < height) best.begin = best.end = 0; /* costs more than it gives */
    return best;
}

static void fill_want(const struct trial *t, int base)
{
    for (int at = 0; at + base <= t->rows; at += base) {
        tile_multiply(t->y, t->x + (size_t)at * (size_t)t->cols, (size_t)t->cols, base, t->w, (size_t)t->cols, t->panel, t->cols);
        for (int r = 0; r < base; r++)
            for (int n = 0; n < t->panel; n++)
                t->want[(size_t)(at + r) * (size_t)t->panel + (size_t)n] = t->y[(size_t)n * (size_t)base + (size_t)r];
    }
}

static bool all_good(const bool *good, int height)
{
    for (int r = 0; r < height; r++)
        if (!good[r]) return false;
    return true;
}

static void examine(struct admitted *a, const struct trial *t)
{
    bool good[TILE_TALL_MAX];

    a->base = TILE_BASE;
    fill_want(t, TILE_BASE);
    try_height(t, TILE_BASE, good);
    if (!all_good(good, TILE_BASE)) { /* then every row is a call of its own, which is right by itself */
        a->base = 1;
        a->whole[1] = true;
        return;
    }
    for (int h = 1; h <= TILE_BASE; h++) {
        try_height(t, h, good);
        a->whole[h] = all_good(good, h);
    }
    for (int k = 0; k < TILE_TALLS; k++) {
        try_height(t, tile_tall[k], good);
        a->tall[k] = longest_run(good, tile_tall[k]);
    }
}

status tiles_verify(struct admitted *a, struct err *e)
{
    struct trial t = {.rows = TILE_TALL_MAX + TILE_BASE, .panel = a->panel, .cols = a->cols};
    size_t rows = (size_t)t.rows, panel = (size_t)t.panel, cols = (size_t)t.cols;
    float *in = malloc((rows + panel) * cols * sizeof(*in)), *out = malloc(2 * rows * panel * sizeof(*out));
    status s = OK;

    if (in && out) {
        t.x = in, t.w = in + rows * cols, t.want = out, t.y = out + rows * panel;
        for (size_t i = 0; i < (rows + panel) * cols; i++) /* full mantissas, so that every other order of a sum shows */
            in[i] = (float)((double)rng_hash(1, cols, panel, i) * 0x1p-63 - 1.0);
        examine(a, &t);
    } else {
        s = err_set(e, ERR_LIMIT, "no memory to verify products of %d x %d weights", a->panel, a->cols);
    }
    free(in);
    free(out);
    return s;
}
