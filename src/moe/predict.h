/* What a linear router could know: ridge regression of the log energies of experts on the hidden state, cross-fitted.
 *
 *   W = (H'H + lambda I)^-1 H'Y,   H and Y centred,   lambda = PREDICT_RIDGE * rows * mean variance of an element of h
 *
 * The sample is cut into PREDICT_FOLDS runs of rows; a run is predicted with the W of the others, so that what is predicted was not seen.  Products in f32 by
 * num/gemm.h, the decomposition in double: the same bits on any number of threads.
 */
#ifndef MOE_PREDICT_H
#define MOE_PREDICT_H

#include "base/alive.h"
#include "base/err.h"
#include "num/gemm.h"

#define PREDICT_RIDGE 0.01
enum { PREDICT_FOLDS = 3 };

struct predictor;

/* h: [rows][width], kept by the caller and unchanged meanwhile; at least PREDICT_FOLDS rows.  Memory: (PREDICT_FOLDS + 2) * width^2 floats and one such matrix in
 * double for each thread.  ERR_LIMIT. */
status predictor_open(struct predictor **out, const float *h, int rows, int width, struct gemm *g, const struct alive *alive,
                      struct err *e);
void predictor_close(struct predictor *p); /* NULL is fine */
/* z[rows][n] from y[rows][n], n <= most_n of earlier calls or not: memory for [n][width] is taken each time.  ERR_LIMIT. */
status predictor_cross(struct predictor *p, float *z, const float *y, int n, struct err *e);
/* A router from all rows: z = weight h + bias; weight [n][width], bias [n]. */
status predictor_fit(struct predictor *p, float *weight, float *bias, const float *y, int n, struct err *e);

#endif
