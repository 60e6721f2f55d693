/* Least squares from sums over rows, in double: y ~ W x + b, x of `in` numbers, y of `out`.
 *
 * Rows come in calls and are added one after the other, each sum by one task: the bits depend on the rows and their order alone, not on threads or calls.
 * Memory  (in + out) in doubles, and as much again in a solution; malloc'ed.
 */
#ifndef NUM_MOMENTS_H
#define NUM_MOMENTS_H

#include "num/gemm.h"

struct moments {
    int in, out;
    int64_t rows;
    double *xx, *xy; /* [in][in], the lower triangle; [in][out] */
    double *x, *y;   /* [in], [out]: sums */
};

status moments_open(struct moments *m, int in, int out, struct err *e); /* ERR_LIMIT */
void moments_close(struct moments *m);                                  /* zeroed is fine */
void moments_clear(struct moments *m);
void moments_add(struct moments *m, struct gemm *g, const float *x, const float *y, int rows);

/* W [out][in], b [out] with the least sum |y - W x - b|^2 + ridge s |W|^2, s: rows times the mean variance of the inputs.  By Cholesky; ridge > 0, so that there is one.
 * ERR_LIMIT: memory; ERR_FORMAT: the sums are no numbers. */
status moments_solve(const struct moments *m, double ridge, float *w, float *bias, struct err *e);
/* The same under rank(W) <= rank: W = B A with B [out][rank], orthonormal columns, the directions in which W x varies most (reduced-rank regression, Izenman 1975, with the
 * identity as weight), A [rank][in]. */
status moments_reduced(const struct moments *m, double ridge, int rank, float *a, float *b, float *bias, struct err *e);

#endif
