/* Cutting an FFN's neurons into experts.  Pure.
 *
 * The result is an order of the F neurons: the first `shared` are the shared expert, then the routed experts one after another in
 * contiguous runs; if the N experts do not divide the rest, the first of them have one neuron more.
 */
#ifndef MOE_GROUPING_H
#define MOE_GROUPING_H

#include <stdint.h>

#include "base/alive.h"
#include "base/err.h"

/* order[F]: identity / a permutation from (seed, layer). */
void group_contiguous(int *order, int neurons);
void group_random(int *order, int neurons, uint64_t seed, int layer);
/* Co-activation: neurons that are strong on the same tokens come together (MoEfication, arXiv 2110.01786; CMoE, arXiv 2502.04416).
 * strong: [neurons] bit rows over `tokens` tokens, bit t of row j = neuron j is among its token's strongest by |h_j| * |w_down_j|.
 * shared neurons (the most important first, by `importance`) are taken out first, then balanced clustering on the rest.
 * Takes minutes for thousands of neurons on thousands of tokens: `alive` is called meanwhile (NULL: nobody waits).
 * Deterministic for equal arguments. */
status group_coactivation(int *order, const uint64_t *strong, int neurons, int tokens, int shared, int experts,
                          const float *importance, uint64_t seed, const struct alive *alive, struct err *e);
/* Puts the `shared` most important neurons first and keeps the order of the others. */
void group_shared_first(int *order, int neurons, int shared, const float *importance);

/* Size of routed expert i and where it begins behind the shared ones. */
int group_size(int neurons, int shared, int experts, int i);
int group_begin(int neurons, int shared, int experts, int i);

#endif
