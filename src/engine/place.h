/* Where the experts of a model are, as the spec says it. */
#ifndef ENGINE_PLACE_H
#define ENGINE_PLACE_H

#include "data/spec.h"
#include "model/shape.h"
#include "moe/placement.h"

/* cluster.placement over so many ranks; reads the file if it is one.  split: as the model is opened (model_limits.split), which not every step of a pipeline
 * does that has cluster.tensor_parallel.  ERR_SPEC, ERR_IO, ERR_FORMAT, ERR_LIMIT. */
status place_experts(struct placement *out, const struct spec *s, const struct shape *shape, bool split, int ranks,
                     struct err *e);

/* Experts of rank 0 in a layer, so that its own work (attention, shared neurons, router, head) and its experts' take as long as what another rank holds;
 * counted in weights; with `split` attention and head are everybody's.  What a layer's experts cost lies between a token's active ones (prefill, one sequence) and all of them (many sequences): the mean of both.
 * Pure. */
int place_coordinator_experts(const struct shape *shape, int layer, int ranks, bool split);

#endif
