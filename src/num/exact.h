/* Sums that do not depend on the order of their terms, nor on how they are grouped.
 *
 * A term, a float, is rounded to a multiple of 2^-35, alone: added to 1.5 * 2^17 in double it becomes a number of [2^17, 2^18), where the distance of
 * neighbours is 2^-35, and the bits of that number, as an integer, less those of 1.5 * 2^17 are the multiple.  From there on all is integers, whose sums
 * are what they are in any order: the bits of a layer's output are the same for every placement, number of ranks, number of threads and order of arrival,
 * although each rank adds up its experts before it answers.
 *
 * Range.  Every term must be below SUM_LIMIT = 2^15 in magnitude: then it is rounded as said (below 2^16), and is less than 2^50 units.  Up to EXACT_TERMS
 * = 8191 of them stay below 2^63, so a rank's sum cannot wrap around unseen, and is then itself held against SUM_LIMIT; so is the sum of all ranks.  What breaks a limit, or is
 * no number, is an error (moe.h), never a result that depends on the placement.
 *
 * Accuracy.  An f32 number of magnitude 0.001 has an ulp of 2^-33, so the grid costs nothing that f32 has.
 */
#ifndef NUM_EXACT_H
#define NUM_EXACT_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "num/isa.h"

#define SUM_LIMIT  0x1p15
#define EXACT_UNIT 0x1p-35
enum { EXACT_TERMS = 8191 };

#define EXACT_MAGIC 0x1.8p17
#define EXACT_BIAS  INT64_C(0x4108000000000000) /* its bits */

/* The multiple that x becomes, |x| < SUM_LIMIT. */
static inline int64_t exact_of(float x)
{
    double lifted = (double)x + EXACT_MAGIC;
    uint64_t bits;

    memcpy(&bits, &lifted, sizeof(bits));
    return (int64_t)(bits - (uint64_t)EXACT_BIAS);
}

static inline double exact_value(int64_t sum)
{
    return (double)sum * EXACT_UNIT;
}

/* x rounded to the grid, no number if it is out of range; sums of such numbers are exact in double too, as long as they stay below SUM_LIMIT. */
static inline double grid(float x)
{
    return fabsf(x) < (float)SUM_LIMIT ? exact_value(exact_of(x)) : (double)NAN;
}

/* A block of sums while terms come in: terms[r] counts those of row r, and until exact_settle() a sum is EXACT_BIAS too large for each. */
struct exact {
    int64_t *sum; /* [rows][cols], aligned to 64 */
    int *terms;   /* [rows] */
    int rows, cols;
    uint32_t most; /* the largest magnitude of a term, as the bits of a float: NaN is above all numbers */
};

/* Every row begins at start[0 .. columns - 1], sums of grid(), or at zero (NULL). */
void exact_begin(struct exact *e, const double *start, int columns);
/* Row at[i] - first += scale * y[i], i = 0 .. n - 1; no row twice.  cols is a multiple of 8; y row i at y + i * ldy.
 * isa: the level whose instructions do it, which this processor has; all give the same bits. */
void exact_add(struct exact *e, enum isa isa, const int *at, int first, int n, const float *y, size_t ldy, float scale);
/* Row at[i] - first -= x[0 .. columns - 1]: for the mean of an expert. */
void exact_take(struct exact *e, const int *at, int first, int n, const float *x, int columns);
/* The terms of part too, which began at zero and has the same rows and columns: what another thread added. */
void exact_merge(struct exact *e, const struct exact *part);
/* No more terms.  false: a term or a sum was out of range; *found is one. */
bool exact_settle(struct exact *e, double *found);

/* out[i] += part[i].  false: a sum is out of range, *found is one. */
bool exact_join(int64_t *out, const int64_t *part, int n, double *found);
/* The same with sums that were rounded to float on their way. */
bool exact_join_float(int64_t *out, const float *part, int n, double *found);
/* The sums, in range, as floats: out[i] = , or x[i] += . */
void exact_to_float(float *out, const int64_t *sum, int n);
void exact_finish(float *x, const int64_t *sum, int n);

#endif
