#include "engine/place.h"

#include <math.h>
#include <stdlib.h>

#include "data/placement_file.h"

/* Weights that the coordinator alone goes through in a layer.  The head is for the last row of a prompt and for every row that decodes: half of it. */
static double own_work(const struct shape *s, int layer, bool split)
{
    double width = s->width, q = (double)s->heads * s->head_dim, kv = (double)s->kv_heads * s->head_dim;

    double attention = width * (2 * q + 2 * kv) + width * s->vocab / (2.0 * s->layers);

    return (split ? 0 : attention) + width * s->experts + 3 * width * s->shared[layer];
}

int place_coordinator_experts(const struct shape *s, int layer, int ranks, bool split)
{
    double own = own_work(s, layer, split), expert = 3.0 * s->width * (s->neurons - s->shared[layer]) / s->experts;
    double used = (1 + (double)s->active_of[layer] / s->experts) / 2, least = INFINITY;
    int best = 0;

    if (ranks == 1) return s->experts;
    for (int n = 0; n <= s->experts; n++) {
        int others = (s->experts - n + ranks - 2) / (ranks - 1); /* the fullest of them */
        double longest = fmax(own + n * used * expert, others * used * expert);

        if (longest < least) least = longest, best = n;
    }
    return best;
}

static status balance(struct placement *out, const struct spec *s, const struct shape *shape, bool split, int ranks,
                      struct err *e)
{
    int coordinator[MODEL_LAYERS_MAX];

    for (int l = 0; l < shape->layers; l++) {
        double share = s->cluster.coordinator_share;

        coordinator[l] = share > 0        ? (int)lround(share * shape->experts)
                         : shape->experts ? place_coordinator_experts(shape, l, ranks, split)
                                          : 0;
    }
    return placement_split(out, coordinator, shape->layers, shape->experts, ranks, e);
}

static status from_file(struct placement *out, const char *path, const struct shape *shape, int ranks, struct err *e)
{
    int *table = NULL;
    status st = placement_file_read(&table, path, shape->layers, shape->experts, ranks, e);

    if (!st) st = placement_set(out, table, shape->layers, shape->experts, ranks, path, e);
    free(table);
    return st;
}

status place_experts(struct placement *out, const struct spec *s, const struct shape *shape, bool split, int ranks, struct err *e)
{
    enum placement_kind kind = s->cluster.placement == PLACE_ROUND_ROBIN ? PLACEMENT_ROUND_ROBIN : PLACEMENT_BLOCK;

    if (s->cluster.placement == PLACE_FILE && shape->experts && !shape->sliced)
        return from_file(out, s->cluster.placement_file, shape, ranks, e);
    if (s->cluster.placement == PLACE_BALANCE) return balance(out, s, shape, split, ranks, e);
    return placement_make(out, kind, shape->layers, shape->experts, ranks, s->cluster.coordinator_experts, e);
}
