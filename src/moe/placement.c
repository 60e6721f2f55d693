#include "moe/placement.h"

#include <stdlib.h>

static status placement_alloc(struct placement *p, int layers, int experts, int ranks, struct err *e)
{
    BUG_ON(layers < 0 || experts < 0 || ranks < 1);
    *p = (struct placement){.layers = layers, .experts = experts, .ranks = ranks};
    if (ranks > INT16_MAX) return err_set(e, ERR_LIMIT, "placement: at most %d ranks are supported, found %d", INT16_MAX, ranks);
    p->rank_of = calloc((size_t)layers * (size_t)experts + 1, sizeof(*p->rank_of));
    if (!p->rank_of) return err_set(e, ERR_LIMIT, "placement: out of memory for %d layers of %d experts", layers, experts);
    return OK;
}

status placement_make(struct placement *p, enum placement_kind kind, int layers, int experts, int ranks, bool coordinator_too,
                      struct err *e)
{
    int first = coordinator_too || ranks == 1 ? 0 : 1, holders = ranks - first;
    status s = placement_alloc(p, layers, experts, ranks, e);

    if (s) return s;
    int size = experts / holders, more = experts % holders, in_larger = more * (size + 1);
    for (int l = 0; l < layers; l++) {
        for (int i = 0; i < experts; i++) {
            int holder;

            if (kind == PLACEMENT_ROUND_ROBIN) holder = (i + l) % holders;
            else holder = i < in_larger ? i / (size + 1) : more + (i - in_larger) / size;
            p->rank_of[(long)l * experts + i] = (int16_t)(first + holder);
        }
    }
    return OK;
}

status placement_split(struct placement *p, const int *coordinator, int layers, int experts, int ranks, struct err *e)
{
    status s = placement_alloc(p, layers, experts, ranks, e);

    if (s) return s;
    for (int l = 0; l < layers; l++) {
        int mine = ranks == 1 ? experts : coordinator[l], next = l; /* who is first differs, and so who gets one more */

        BUG_ON(mine < 0 || mine > experts);
        for (int i = 0; i < experts; i++) {
            bool here = (int64_t)(i + 1) * mine / experts > (int64_t)i * mine / experts;

            p->rank_of[(long)l * experts + i] = (int16_t)(here ? 0 : 1 + next++ % (ranks - 1));
        }
    }
    return OK;
}

status placement_set(struct placement *p, const int *rank_of, int layers, int experts, int ranks, const char *source,
                     struct err *e)
{
    status s = placement_alloc(p, layers, experts, ranks, e);

    if (s) return s;
    for (long i = 0; i < (long)layers * experts; i++) {
        if (rank_of[i] < 0 || rank_of[i] >= ranks) {
            placement_free(p);
            return err_set(e, ERR_SPEC, "%s: layer %ld, expert %ld: expected a rank from 0 to %d, found %d", source, i / experts,
                           i % experts, ranks - 1, rank_of[i]);
        }
        p->rank_of[i] = (int16_t)rank_of[i];
    }
    return OK;
}

void placement_free(struct placement *p)
{
    free(p->rank_of);
    *p = (struct placement){0};
}

int placement_count(const struct placement *p, int layer, int rank)
{
    long from = layer < 0 ? 0 : (long)layer * p->experts, to = layer < 0 ? (long)p->layers * p->experts : from + p->experts;
    int count = 0;

    BUG_ON(layer >= p->layers);
    for (long i = from; i < to; i++) count += p->rank_of[i] == rank;
    return count;
}
