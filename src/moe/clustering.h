/* Balanced k-means: rows to groups of fixed sizes, so that the sum of squared distances to the mean row of a group is small. */
#ifndef MOE_CLUSTERING_H
#define MOE_CLUSTERING_H

#include <stdint.h>

#include "base/alive.h"
#include "base/err.h"
#include "num/gemm.h"

/* of[rows] = group.  x: [rows][dim]; size[groups] add up to rows.  First means: rows far from each other (k-means++); then means and balanced assignments
 * (assign.h) take turns while that gains, at most 12 times.  The same bits for equal arguments, on any number of threads.
 * Memory: groups * (dim + rows) floats.  ERR_LIMIT. */
status cluster_rows(int *of, const float *x, int rows, int dim, int groups, const int *size, uint64_t seed, struct gemm *g,
                    const struct alive *alive, struct err *e);

#endif
