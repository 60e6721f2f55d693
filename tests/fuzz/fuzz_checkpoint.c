/* Bytes as the body of a checkpoint under a right digest, so that the fuzzer gets past it; and as the whole file. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/digest.h"
#include "train/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try(const char *bytes, size_t n)
{
    float weight[3], moment[2];
    const struct checkpoint_array into[] = {{"weight", weight, 3}, {"moment", moment, 2}};
    struct json_t *identity = json_object_new(), *progress;
    struct err e;

    json_put_int(identity, "seed", 7);
    if (!checkpoint_decode(&progress, bytes, n, "FUZZ", identity, into, 2, &e)) json_free(progress);
    json_free(identity);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char hex[65], *bytes = malloc(CHECKPOINT_BODY + size);

    try((const char *)data, size);
    digest_bytes(hex, data, size);
    memcpy(bytes, "factorllm-checkpoint-01\n", 24);
    memcpy(bytes + 24, hex, 64);
    memcpy(bytes + CHECKPOINT_BODY, data, size);
    try(bytes, CHECKPOINT_BODY + size);
    free(bytes);
    return 0;
}
