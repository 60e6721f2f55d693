/* Where experts live: (layer, expert) -> rank.  Pure functions over plain arrays; no MPI. */
#ifndef MOE_PLACEMENT_H
#define MOE_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct placement {
    int layers, experts, ranks;
    int16_t *rank_of; /* [layers][experts]; owned */
};

enum placement_kind { PLACEMENT_BLOCK, PLACEMENT_ROUND_ROBIN };

/* Experts over the holders: all ranks with coordinator_too or with one rank, else ranks 1 .. ranks-1.  Block: contiguous runs whose sizes differ by at most one,
 * larger first; round robin: expert e of layer l on holder (e + l) mod holders.  Holders may get none. */
status placement_make(struct placement *p, enum placement_kind kind, int layers, int experts, int ranks, bool coordinator_too,
                      struct err *e);
/* Rank 0 holds coordinator[layer] experts, the others the rest in equal shares; everybody's are spread over the layer's, because
 * neighbours may be wanted alike. */
status placement_split(struct placement *p, const int *coordinator, int layers, int experts, int ranks, struct err *e);
/* From a table rank_of[layers][experts] (copied), e.g. read from a file; ERR_SPEC naming layer and expert if a rank is not 0 .. ranks-1. */
status placement_set(struct placement *p, const int *rank_of, int layers, int experts, int ranks, const char *source,
                     struct err *e);
void placement_free(struct placement *p);

static inline int placement_rank(const struct placement *p, int layer, int expert)
{
    return p->rank_of[(long)layer * p->experts + expert];
}
int placement_count(const struct placement *p, int layer, int rank); /* experts of a rank in a layer; layer -1: in all */

#endif
