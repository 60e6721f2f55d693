/* What safetensors.c reads from headers and safetensors_view.c binds.  Nobody else includes this. */
#ifndef DATA_SAFETENSORS_INTERNAL_H
#define DATA_SAFETENSORS_INTERNAL_H

#include "data/json.h"
#include "data/safetensors.h"

struct mapping {
    int shard;
    size_t begin, end; /* of the file */
    char *base;
};

struct shard {
    char *path;
    int fd;
    size_t size, data; /* of the file; where tensor data begins in it */
};

struct tensor {
    struct tensor_info info;
    int shard;
    size_t begin, end; /* behind the header */
    size_t asked;      /* bytes that were bound */
    bool listed;       /* part of the model: always so without an index */
};

struct safetensors {
    struct shard *shards;
    int n_shards;
    struct tensor *tensors; /* by name */
    size_t n_tensors;
    struct json_t *metadata; /* of the first file, or NULL */
    struct mapping *maps;
    size_t n_maps, room_maps, asked;
    bool whole; /* files are mapped as a whole */
};

/* By name, or NULL. */
struct tensor *safetensors_tensor(const struct safetensors *s, const char *name);
void safetensors_unmap(struct safetensors *s);
void *safetensors_grown(void *items, size_t n, size_t size); /* realloc() that does not fail */

#endif
