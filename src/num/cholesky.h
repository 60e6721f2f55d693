/* Symmetric positive definite systems in double: A = L L', and what follows from it.
 *
 * Cut into blocks of fixed size; every number is computed by one task in one order: the bits do not depend on the threads.
 */
#ifndef NUM_CHOLESKY_H
#define NUM_CHOLESKY_H

#include <stdbool.h>

#include "base/alive.h"
#include "num/gemm.h"

/* a [n][n] becomes L in its lower triangle, from the lower triangle of A; what is above is left in any state.  false: A is not positive definite, or no numbers. */
bool cholesky_factor(double *a, int n, struct gemm *g, const struct alive *alive);
/* b [n][cols] becomes X with A X = b, given L.  Takes (n + 128) * 32 doubles for every thread for a while: ERR_LIMIT. */
status cholesky_solve(const double *l, double *b, int n, int cols, struct gemm *g, const struct alive *alive, struct err *e);
/* out [n][n] = A^-1, given L.  Memory as above. */
status cholesky_invert(const double *l, float *out, int n, struct gemm *g, const struct alive *alive, struct err *e);

#endif
