/* The files of a model directory: digest of the weights, and what stands beside them. */
#ifndef JOBS_MODEL_FILES_H
#define JOBS_MODEL_FILES_H

#include "data/safetensors.h"
#include "jobs/job.h"

/* The distinct files of the weights in order of name; the caller frees the array. */
const char **model_files(const struct safetensors *t, int *n);
/* Of these files in this order: the digest of the one, or the digest of their digests.  STOPPED. */
status model_digest(char hex[65], int64_t *bytes, struct job *j, const struct safetensors *t, const char *what, struct err *e);
/* Tokenizer and licence. */
status model_copy_beside(const char *source, const char *directory, struct err *e);
/* SHA256SUMS (data/sums.h) of a model directory that is complete but for its routers, which come and go.  ERR_IO, STOPPED. */
status model_sums(struct job *j, const char *directory, struct err *e);

#endif
