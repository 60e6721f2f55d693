/* Pseudo-labels: which experts of a token approximate the dense FFN best.  Pure.
 *
 *   y = sum_i e_i,   N experts, k active
 *   paper   score_i = -mean_d (e_i - y k/N)^2, the k best (FactorLLM, arXiv 2408.11855); ties: the lower index
 *   Gram    the set S that minimizes |sum_{i not in S} (e_i - mu_i)|^2 with G_ij = (e_i - mu_i).(e_j - mu_j): all sets of size k in lexicographic
 *           order, the first best, while there are at most GRAM_SETS_MAX; above that greedy: from no expert, add the one that
 *           lowers the error most, k times, then swap pairs while that lowers it (at most N swaps).  mu = 0 without compensation.
 */
#ifndef MOE_LABELS_H
#define MOE_LABELS_H

#include <stdbool.h>
#include <stdint.h>

enum { GRAM_SETS_MAX = 5000 };

/* -mean_d (e_d - y_d * share)^2, share = k/N */
float paper_score(const float *e, const float *y, float share, int width);

/* set = the best set.  g: [n][n] Gram matrix in double, symmetric.  Returns the error of the set. */
double gram_best(uint64_t *set, const double *g, int n, int k);
/* gain[s] = by how much the s-th expert of the greedy order (from no expert, always the one that lowers the error most) lowers it, over the root of the error
 * of no expert, |y|; never more than the one before: the running minimum, so that `gains above a threshold` are the first ones.  Not over |y|: the few tokens
 * with large outputs would take most experts; over |y|^2: those with outputs that hardly matter would get too many (both measured, configs/README.md). */
void gram_gains(double *gain, const double *g, int n);
/* As many experts as have a gain above `least`, and of that size gram_best().  gain: room for n.  Returns how many. */
int gram_variable(uint64_t *set, double *gain, const double *g, int n, double least);
/* The error of a given set: sum_{i,j not in S} G_ij. */
double gram_error(const double *g, int n, const uint64_t *set);
/* g from centred rows c: [n][width]. */
void gram_matrix(double *g, const float *c, int n, int width);

#endif
