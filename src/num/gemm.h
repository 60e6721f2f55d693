/* Matrix products: the one door to OpenBLAS, and the one owner of threads.
 *
 * Row-invariant: a row of the result has the same bits whatever other rows are in the call, however many, wherever it stands, and on
 * any number of threads.  Plain sgemm does not promise that.  So a product is cut into calls of fixed shapes: panels of weight rows, and
 * row tiles of a fixed height (padded); a taller tile is used for many rows only where gemm_open()/gemm_admit() has verified on this
 * machine, for that panel shape, that it gives the same bits at every row position.
 * Weights that are not f32 are widened panel by panel into a small buffer, never as a whole.
 */
#ifndef NUM_GEMM_H
#define NUM_GEMM_H

#include <stddef.h>

#include "base/err.h"
#include "base/mat.h"

struct gemm;

/* Starts `threads` - 1 workers (threads >= 1) and takes OpenBLAS's own threads away.  ERR_LIMIT. */
status gemm_open(struct gemm **out, int threads, struct err *e);
void gemm_close(struct gemm *g); /* NULL is fine */
/* Tells the door of a weight shape before it is used, so that verification and scratch are not taken in a step. */
status gemm_admit(struct gemm *g, int rows, int cols, struct err *e);
int gemm_threads(const struct gemm *g);
const char *gemm_describe(const struct gemm *g); /* "OpenBLAS 0.3.21 Zen, 1 thread, row tiles 4/64" */

/* y[t][n] = sum_k x[t][k] * w[n][k] (+ bias[n] if not NULL); x: [rows, w->cols], row t at x + t * ldx; y: [rows, w->rows], at y + t * ldy. */
void gemm_xwt(struct gemm *g, float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias);

/* c[n][d] += sum_t a[t][n] * b[t][d]: gradients of weights.  a: [rows, n], b: [rows, d], c: [n, d], all dense.  Fixed order for equal
 * arguments, not row-invariant. */
void gemm_atb(struct gemm *g, float *c, const float *a, int n, const float *b, int d, int rows);

/* Runs task(ctx, i) for i = 0 .. n-1 on the threads; which thread runs which is not fixed, so tasks must not depend on it.
 * `worker` is 0 .. threads-1, for scratch. */
void gemm_parallel(struct gemm *g, int n, void (*task)(void *ctx, int i, int worker), void *ctx);

#endif
