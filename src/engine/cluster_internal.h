/* What cluster.c and cluster_memory.c share. */
#ifndef ENGINE_CLUSTER_INTERNAL_H
#define ENGINE_CLUSTER_INTERNAL_H

#include "engine/cluster.h"
#include "engine/spread.h"

/* Answers that are not the moe's: an error's text, or a rank's timing. */
enum { ANSWER_BYTES = sizeof(struct err) > sizeof(struct timing) ? sizeof(struct err) : sizeof(struct timing) };

struct open_request {
    struct model_limits limits;
    int32_t level; /* enum isa: of the coordinator's kernels */
    char directory[4096];
};

/* `own`, the limits that every exchange has, raised to what an open model needs. */
struct exchange_limits cluster_talk(struct exchange_limits own, const struct shape *s, int ranks, struct model_limits limits);

/* Coordinator, before anything is taken: every rank's need against limits.memory_mib, or what all ranks of a host need together against what it has.
 * ERR_LIMIT. */
status cluster_memory(struct comm *c, const struct spec *spec, const struct shape *s, const struct placement *p,
                      const struct weights_plan *weights, struct model_limits limits, struct err *e);

#endif
