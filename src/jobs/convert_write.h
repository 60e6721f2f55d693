/* The packed weights of a model (model/weights.h), written tensor by tensor. */
#ifndef JOBS_CONVERT_WRITE_H
#define JOBS_CONVERT_WRITE_H

#include "data/safetensors.h"
#include "jobs/job.h"
#include "model/shape.h"
#include "model/weights.h"

struct converted {
    enum format format[WEIGHT_PARTS];
    struct packed_error error[WEIGHT_PARTS];
    /* Bytes of tensors; [WEIGHT_PARTS]: of all that is copied as it is.  A tied head counts as written only. */
    int64_t before[WEIGHT_PARTS + 1], after[WEIGHT_PARTS + 1];
};

/* DIRECTORY/packed.safetensors, or shards of at most shard_bytes, from the tensors of `from`; formats by the spec's precision.  Memory: a few MiB, and
 * the scales of one tensor.  A value that is not finite is ERR_FORMAT.  STOPPED. */
status write_packed(struct converted *out, struct job *j, const struct shape *s, struct safetensors *from, const char *directory,
                    size_t shard_bytes, struct err *e);

/* The member `packed` of config.json: formats, and the digest of the weights that it was made from. */
struct json_t *converted_description(const struct converted *c, const char *source_digest);
/* Formats, bytes before and after, and for every part that was changed |what it was - what it is| / |what it was|. */
void converted_report(struct json_t *to, const struct converted *c);

#endif
