/* Least squares from sums over rows, in double: y ~ W x + b, x of `in` numbers, y of `out`, rows of a weight each.
 *
 * Rows are added 256 at a time, counted from the first on: their products in f32 by gemm_atb(), of what is left when the means of the first 256 are taken away, and those
 * sums in double.  The bits depend on the rows and their order alone, not on threads or calls.
 * Memory  in (in + out) doubles, in max(in, out) floats and 256 rows, and in (in + 2 out) doubles in a solution; malloc'ed.
 */
#ifndef NUM_MOMENTS_H
#define NUM_MOMENTS_H

#include "num/gemm.h"

struct moments {
    int in, out;
    int64_t rows;
    double weight; /* of all rows that are in the sums */
    struct gemm *gemm;
    double *xx, *xy;        /* [in][in], [in][out] sums of products of shifted rows */
    double *x, *y;          /* [in], [out]: sums of shifted rows; all sums are of weighted rows */
    float *shift;           /* [in + out] */
    float *wait_x, *wait_y; /* rows that are not in the sums yet */
    float *wait_w;
    float *product; /* of such rows */
    int waiting;
};

size_t moments_cost(int in, int out); /* bytes, those of a solution among them */
status moments_open(struct moments *m, int in, int out, struct gemm *g, struct err *e); /* g is borrowed.  ERR_LIMIT */
void moments_close(struct moments *m);                                                  /* zeroed is fine */
void moments_clear(struct moments *m);
/* weight: [rows], each >= 0; NULL: all 1. */
void moments_add(struct moments *m, const float *x, const float *y, const float *weight, int rows);

/* W [out][in], b [out] with the least sum weight |y - W x - b|^2 + ridge s |W|^2, s: the sum of the weights times the mean variance of the inputs.  By Cholesky; ridge > 0, so that there is one.
 * Rows may follow afterwards, but then begin anew at a multiple of 256.  ERR_LIMIT: memory; ERR_FORMAT: the sums are no numbers. */
status moments_solve(struct moments *m, double ridge, float *w, float *bias, struct err *e);
/* The same under rank(W) <= rank: W = B A with B [out][rank], orthonormal columns, the directions in which W x varies most (reduced-rank regression, Izenman 1975, with the
 * identity as weight), A [rank][in]. */
status moments_reduced(struct moments *m, double ridge, int rank, float *a, float *b, float *bias, struct err *e);

#endif
