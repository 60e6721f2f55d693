/* The calls of sgemm that a product is made of, and what is known about their bits.  Private to num.
 *
 * Why rows are invariant: an element of a product is one sum over k, and the order of that sum inside sgemm depends on the shape of the call and on where in
 * it the element stands (the Haswell kernels, for one, treat the first and the last eight rows of a call in another way than those
 * between).  So calls have a few fixed shapes.  TILE_BASE rows at a time are the definition; tiles_verify() finds out on random data, bit by bit, which
 * rows of a call with another number of rows come out as they do in a base tile, and only those are used.
 * The rows of x stand on sgemm's M side, where that holds for most of them, so a call's result is transposed: [panel][tile].
 */
#ifndef NUM_TILES_H
#define NUM_TILES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum { TILE_BASE = 8, TILE_TALLS = 2, TILE_TALL_MAX = 256 };
extern const int tile_tall[TILE_TALLS];

struct tile { /* a call of `height` rows, of which rows begin .. end - 1 can be used; begin == end: none */
    int height, begin, end;
};

struct admitted {
    int panel, cols;
    int base;                  /* TILE_BASE, or 1 where rows of a base tile are not alike */
    bool whole[TILE_BASE + 1]; /* [h]: a call of h <= base rows gives the bits of a base tile */
    struct tile tall[TILE_TALLS];
};

/* Fills the rest of *a for a->panel x a->cols.  ERR_LIMIT without memory. */
status tiles_verify(struct admitted *a, struct err *e);

/* y[panel][rows] = w x^T: transposed, see above.  Any thread. */
void tile_multiply(float *y, const float *x, size_t ldx, int rows, const float *w, size_t ldw, int panel, int cols);

#endif
