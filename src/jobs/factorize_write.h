/* The weights of a factorized model: gathered row by row from the mapped dense ones, no value changed, into a directory. */
#ifndef JOBS_FACTORIZE_WRITE_H
#define JOBS_FACTORIZE_WRITE_H

#include "data/safetensors.h"
#include "jobs/calibrate.h"
#include "jobs/job.h"

struct cut {
    const struct shape *dense;
    int experts;
    int active[MODEL_LAYERS_MAX], shared[MODEL_LAYERS_MAX]; /* of every layer; shared: neurons */
    int *order;                                             /* [layers][neurons] new position -> original neuron */
    float *router, *router_bias; /* [layers][experts][width], [layers][experts]: regressions, for the budget; or NULL */
    double *captured;            /* [layers] group_captured(), or NULL without a sample */
    struct calibration calibration;
    bool calibrated, compensate;
};

/* model.safetensors, or its shards, in `directory`.  Memory: the down matrix of one expert and the compensation of one layer.  STOPPED. */
status write_experts(struct job *j, const struct cut *c, struct safetensors *from, const char *directory, struct err *e);
/* calibration.safetensors: means and importances in the new order. */
status write_calibration(const struct cut *c, const char *directory, struct err *e);
/* permutation.json */
status write_permutation(const struct cut *c, const char *directory, struct err *e);

#endif
