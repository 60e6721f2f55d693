/* What a directory is, in one screen. */
#ifndef JOBS_INSPECT_H
#define JOBS_INSPECT_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

/* A model (config.json), a job's output (result.json), or both.  ERR_IO if it is neither; what a model's own files say about being malformed.
 * verify: all of a model is read and held against its SHA256SUMS (data/sums.h) first; ERR_SPEC if it is no model. */
status inspect_print(FILE *to, const char *directory, bool verify, struct err *e);

#endif
