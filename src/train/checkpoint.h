/* A run's state in one file: what a job needs to go on as if it had never stopped.
 *
 * File: 24 bytes "factorllm-checkpoint-01\n", 64 bytes hex SHA-256 of all that follows, u64 bytes of JSON, u64 floats, the JSON, the floats; little-endian.
 * JSON: {"identity": {...}, "progress": {...}, "arrays": [[name, floats], ...]}.
 *   identity   what the run is: settings, digests of data and model.  A flat object of texts and numbers; another one is refused, and
 *              the message names the first member that differs.
 *   progress   the caller's own: counters, metrics.
 * Written under a temporary name and renamed: the previous checkpoint stays until the new one is whole.
 * Neither side takes memory beside the arrays: they are written from where they are, and read from the file as mapped.
 * Read as hostile: sizes against the file, then the digest, then the JSON; the arrays are filled only when all of it holds.
 */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include <stddef.h>

#include "base/alive.h"
#include "data/json.h"

struct checkpoint_array {
    const char *name;
    float *data;
    size_t n;
};

/* ERR_IO; ERR_FORMAT: an array, which is named, has a number that is not finite: the previous checkpoint stays. */
status checkpoint_write(const char *path, const struct json_t *identity, const struct json_t *progress,
                        const struct checkpoint_array *arrays, int n_arrays, const struct alive *alive, struct err *e);

/* *progress is the caller's: json_free().  ERR_IO, ERR_FORMAT (malformed), ERR_SPEC (of another run). */
status checkpoint_read(struct json_t **progress, const char *path, const struct json_t *identity,
                       const struct checkpoint_array *arrays, int n_arrays, const struct alive *alive, struct err *e);

/* What checkpoint_read() does with the bytes of the file, which it names `source`; also for tests. */
status checkpoint_decode(struct json_t **progress, const char *bytes, size_t length, const char *source,
                         const struct json_t *identity, const struct checkpoint_array *arrays, int n_arrays, struct err *e);

enum { CHECKPOINT_BODY = 24 + 64 }; /* where the bytes under the digest begin */

#endif
