/* Groupings, the rows of one table: how the neurons of a layer come together in experts. */
#ifndef JOBS_FACTORIZE_GROUP_H
#define JOBS_FACTORIZE_GROUP_H

#include "jobs/factorize_write.h"
#include "model/model.h"

/* Fills c->order (malloc'ed), and c->captured where the calibration has a sample.  m: the model open since the calibration, or NULL without one; weights: of the dense
 * model.  One layer after the other, each on all threads; the same bits on any number of threads and ranks.
 * Memory of the layer at hand, on the coordinator: a sample's values and inputs as floats, sample * (neurons + D), and what the grouping takes besides
 * (moe/grouping_dense.h); kmeans: two times the floats of W_gate.  ERR_LIMIT, ERR_RANK, STOPPED. */
status group_layers(struct cut *c, struct job *j, struct model *m, struct safetensors *weights, struct err *e);

#endif
