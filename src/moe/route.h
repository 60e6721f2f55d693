/* Router selection: scores -> active sets.  Pure. */
#ifndef MOE_ROUTE_H
#define MOE_ROUTE_H

#include <stdint.h>

#include "moe/moe.h"

/* set[rows][bits_words(N)] from z[rows][N] by the router's rule: top-k (ties: the lower index) or threshold. */
void route_select(uint64_t *set, const float *z, int rows, int experts, int k, const struct router *r, int layer);
/* Batch-aware routing: the rows of a batch together touch at most `most` experts, so that a decoding batch reads fewer of them (the idea of
 * opportunistic expert activation, with the number of experts given, where that gives what a row is sure of).  Every row keeps its q best experts, q >= 1
 * the largest number with which the rows have at most `most` experts between them (one each, if even those are more); the other places of a row go to the
 * best of the experts that the batch has then.  set: [rows][bits_words(N)] as route_select() left it, replaced; z: [rows][N], lost.  A row's result depends on
 * the other rows; their order does not matter. */
int route_most(double share, int experts); /* `most` for a share of the experts: at least 1 */
void route_together(uint64_t *set, float *z, int rows, int experts, int most);
/* k of N uniformly, from (seed, layer, key) alone. */
void route_random(uint64_t *set, const uint64_t *key, int rows, int experts, int k, uint64_t seed, int layer);
/* The threshold at which `mean` experts per row are active on these scores (z: [rows][N], reordered). */
float route_threshold(float *z, int64_t rows, int experts, double mean);

#endif
