/* Losses of router scores against pseudo-labels, with their gradients.  Pure; in double inside.
 *
 *   paper   KL(softmax(l) || softmax(z)), l = the label as a vector of 0 and 1 (FactorLLM, arXiv 2408.11855)
 *   bce     sum over experts of the binary cross-entropy of sigmoid(z_i) against l_i
 * and, of values v_i >= 0 (energies of experts):
 *   listwise    KL(v / sum v || softmax(z)): the softmax of log v
 *   regression  sum over experts of (z_i - t_i)^2 / 2, t_i = log(max(v_i, 1e-4 max v)) / 2: the logarithm of a norm, whose zero is the same for all rows
 *
 * All return sum over rows t of weight_t * the row's loss, and dz = weight_t * d(row's loss)/dz.
 * Shapes: z, dz, v [rows][n]; label [rows][bits_words(n)]; weight [rows].
 */
#ifndef TRAIN_LOSS_H
#define TRAIN_LOSS_H

#include <stdint.h>

double loss_paper(float *dz, const float *z, const uint64_t *label, int rows, int n, const double *weight);
double loss_bce(float *dz, const float *z, const uint64_t *label, int rows, int n, const double *weight);

double loss_listwise(float *dz, const float *z, const float *v, int rows, int n, const double *weight);
double loss_regression(float *dz, const float *z, const float *v, int rows, int n, const double *weight);
void loss_targets(float *t, const float *v, int n); /* t_i of one row */

/* Sum over rows of |a & b|: what two choices of experts have in common. */
int64_t sets_common(const uint64_t *a, const uint64_t *b, int rows, int n);

#endif
