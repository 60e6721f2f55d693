/* The model that stage 2 makes when it trains weights of the model itself: OUTPUT/model, a directory of its own, with the router version in it.
 *
 * Tensors that were trained are written as f32, all others are copied; calibration.safetensors is left out, because means of neurons are of the weights as they were.
 * config.json says in factorization.adapted what was trained, from which model.
 */
#ifndef JOBS_FINETUNE_ADAPTED_H
#define JOBS_FINETUNE_ADAPTED_H

#include "jobs/finetune_run.h"

/* What has to hold before anything begins, also of a job that trains no weights: ERR_SPEC. */
status adapted_check(const struct spec *s, const struct shape *shape, struct err *e);
/* Written beside its place and moved there in one step.  The model's student's weights are in use. */
status adapted_write(struct finetune_run *r, const char *version, const struct json_t *about, struct err *e);

#endif
