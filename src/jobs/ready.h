/* What must hold before a job begins, asked by plan and by the job itself. */
#ifndef JOBS_READY_H
#define JOBS_READY_H

#include "data/spec.h"
#include "model/weights.h"

/* A directory of this name can be written to, or made: ERR_IO.  Makes nothing. */
status ready_directory(const char *path, struct err *e);
/* A job that makes a model: the weights are there as they were trained, not packed only. */
status ready_source(const struct spec *s, struct err *e);
/* The same: what stands at OUTPUT/model may only be an earlier result of such a job, and is not what this one starts from. */
status ready_target(const struct spec *s, struct err *e);
/* finetune: nobody trained the sum of all experts of a model with adapted weights; and what trains experts needs them as they are, not quantized: ERR_SPEC.  w: how the
 * model will be opened. */
status ready_weights(const struct spec *s, const struct shape *shape, const struct weights_plan *w, struct err *e);
/* finetune: no rank that the spec names is above the width of the model: ERR_SPEC. */
status ready_ranks(const struct spec *s, const struct shape *shape, struct err *e);
/* eval: what max_drop of a model with adapted weights is held against: ERR_SPEC. */
status ready_gate(const struct spec *s, const struct shape *shape, struct err *e);
/* finetune: the directory of the model that gets the router version: the caller's to free. */
char *ready_version_home(const struct spec *s);
/* finetune: the model can take a version, ERR_IO, and the one that it names is not there yet. */
status ready_version(const struct spec *s, struct err *e);

#endif
