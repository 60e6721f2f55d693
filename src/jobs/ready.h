/* What must hold before a job begins, asked by plan and by the job itself. */
#ifndef JOBS_READY_H
#define JOBS_READY_H

#include "data/spec.h"

/* A directory of this name can be written to, or made: ERR_IO.  Makes nothing. */
status ready_directory(const char *path, struct err *e);
/* factorize, convert: the weights are there as they were trained, not packed only. */
status ready_source(const struct spec *s, struct err *e);
/* factorize, convert: what stands at OUTPUT/model may only be an earlier result of ours. */
status ready_target(const struct spec *s, struct err *e);
/* finetune: the version that it names is not there yet. */
status ready_version(const struct spec *s, struct err *e);

#endif
