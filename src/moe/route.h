/* Router selection: scores -> active sets.  Pure. */
#ifndef MOE_ROUTE_H
#define MOE_ROUTE_H

#include <stdint.h>

#include "moe/moe.h"

/* set[rows][bits_words(N)] from z[rows][N] by the router's rule: top-k (ties: the lower index) or threshold. */
void route_select(uint64_t *set, const float *z, int rows, int experts, int k, const struct router *r, int layer);
/* k of N uniformly, from (seed, layer, key) alone. */
void route_random(uint64_t *set, const uint64_t *key, int rows, int experts, int k, uint64_t seed, int layer);
/* The threshold at which `mean` experts per row are active on these scores (z: [rows][N], reordered). */
float route_threshold(float *z, int64_t rows, int experts, double mean);

#endif
