/* Cutting an FFN's neurons into experts.  Pure.
 *
 * The result is an order of the F neurons: the first `shared` are the shared expert, then the routed experts one after another in
 * contiguous runs; if the N experts do not divide the rest, the first of them have one neuron more.
 */
#ifndef MOE_GROUPING_H
#define MOE_GROUPING_H

#include <stdint.h>

#include "base/err.h"

/* order[F]: identity / a permutation from (seed, layer). */
void group_contiguous(int *order, int neurons);
void group_random(int *order, int neurons, uint64_t seed, int layer);
/* Ordered by importance, the most important first: cut in order, the experts go from strong to weak. */
void group_importance(int *order, int neurons, const float *importance);
/* Puts the `shared` most important neurons first and keeps the order of the others. */
void group_shared_first(int *order, int neurons, int shared, const float *importance);

/* order[0 .. shared-1] are the shared ones; neuron order[shared + j] goes to expert of[j].  Inside an expert the order stays. */
void group_put(int *order, int neurons, int shared, int experts, const int *of);

/* Size of routed expert i and where it begins behind the shared ones. */
int group_size(int neurons, int shared, int experts, int i);
int group_begin(int neurons, int shared, int experts, int i);

#endif
