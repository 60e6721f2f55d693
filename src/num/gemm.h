/* Matrix products on the threads of a rank.
 *
 * Row-invariant: a row of the result has the same bits whatever other rows are in the call, however many, and on any number of threads: kernel.h.
 */
#ifndef NUM_GEMM_H
#define NUM_GEMM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mat.h"
#include "num/kernel.h"
#include "num/threads.h"

struct gemm;

/* Starts the threads; kernels up to `most` (isa_best(), or less to compare).  ERR_LIMIT. */
status gemm_open(struct gemm **out, int threads, enum isa most, struct err *e);
void gemm_close(struct gemm *g); /* NULL is fine */
struct threads *gemm_threads(struct gemm *g);
const struct kernel *gemm_kernel(const struct gemm *g);
void *gemm_scratch(struct gemm *g, int worker); /* the worker's kernel scratch */
/* A task's own scratch beside the kernel's: GEMM_ROOM_BYTES, aligned to 64, until its thread calls gemm_* again. */
enum { GEMM_ROOM_BYTES = 192 * 1024 };
void *gemm_room(struct gemm *g, int worker);
const char *gemm_describe(const struct gemm *g); /* "avx2, 2 threads" */

/* Whether activations become bfloat16 for products with bf16 weights (half.h); not so at first.  Levels whose products are not right on this processor are left out, with
 * a line in the log (NULL is fine).  Between products; rows that gemm_rows() saw are of no use any more. */
void gemm_use_half(struct gemm *g, bool half, struct log *l);
bool gemm_half(const struct gemm *g);
/* Gives r the places in `memory` (rows_bytes(), aligned to 64) that products with weights of format f need: to be quantized for q8 and q4, rounded for bf16 with gemm_use_half(),
 * else none.  May be called for several formats.  true: something has to be filled that was not before, so rows_quantize() or gemm_quantize() of the rows as they were has to follow. */
bool gemm_rows(const struct gemm *g, struct rows *r, enum format f, void *memory);
/* Whether products of many of these rows spread every panel of weights for all rows of a task (kernel_quant_many.h).  Then a task should have up to SPREAD_ROWS, a multiple of 12:
 * more would leave the second cache. */
enum { SPREAD_ROWS = 108 };
bool gemm_spreads(const struct gemm *g, const struct rows *r);

/* y[t][n] = sum_k x[t][k] * w[n][k] (+ bias[n] if not NULL): y row t at y + t * ldy, [x->n, w->rows].  For q8 and q4 weights x must be quantized. */
void gemm_product(struct gemm *g, float *y, size_t ldy, const struct rows *x, const struct packed *w, const float *bias);
/* Several matrices over the same rows in one go (Q, K and V): y[i], ldy[i], w[i], bias[i] (bias may be NULL). */
void gemm_products(struct gemm *g, int n, float *const *y, const size_t *ldy, const struct rows *x, const struct packed *const *w,
                   const float *const *bias);
/* Quantizes all rows on the threads; rows_room() came before. */
void gemm_quantize(struct gemm *g, struct rows *x);

/* The same product with weights that are not packed (a router in training): packed panel by panel on the way, as f32. */
void gemm_xwt(struct gemm *g, float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias);

/* y[t][c] += sum_k x[t][k] * m[k][c], k < n: errors through weights that are not packed.  x: [rows, n], m: [n, cols], y: [rows, cols], all dense.  Chains over k as in
 * kernel.h, then added to y. */
void gemm_xw(struct gemm *g, float *y, const float *x, int n, int rows, const float *m, int cols);

/* c[n][d] += sum_t a[t][n] * b[t][d]: gradients of weights.  a: [rows, n], b: [rows, d], c: [n, d], all dense.  Chains over t as in kernel.h,
 * then added to c: fixed order for equal arguments. */
void gemm_atb(struct gemm *g, float *c, const float *a, int n, const float *b, int d, int rows);

/* threads_run() on the gemm's threads. */
void gemm_parallel(struct gemm *g, int n, void (*task)(void *ctx, int i, int worker), void *ctx);

#endif
