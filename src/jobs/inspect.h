/* What a directory is, in one screen. */
#ifndef JOBS_INSPECT_H
#define JOBS_INSPECT_H

#include <stdio.h>

#include "base/err.h"

/* A model (config.json), a job's output (result.json), or both.  ERR_IO if it is neither; what a model's own files say about being malformed. */
status inspect_print(FILE *to, const char *directory, struct err *e);

#endif
