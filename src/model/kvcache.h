/* Keys and values of everything the sessions have seen, f32: [layer][session][position][kv_heads * head_dim].
 * A session's rows of one layer are contiguous, which is what attend_row() reads.  Nothing is cleared: a position is written before it is read. */
#ifndef MODEL_KVCACHE_H
#define MODEL_KVCACHE_H

#include <stddef.h>

#include "base/err.h"

struct kvcache {
    float *k, *v;
    int layers, sessions, positions, width; /* width: floats of one position */
};

static inline size_t kvcache_floats(const struct kvcache *c) /* of k, and as many of v */
{
    return (size_t)c->layers * (size_t)c->sessions * (size_t)c->positions * (size_t)c->width;
}

/* Where position `position` of a session stands in c->k and c->v. */
static inline size_t kvcache_at(const struct kvcache *c, int layer, int session, int position)
{
    BUG_ON(layer < 0 || layer >= c->layers || session < 0 || session >= c->sessions || position < 0 || position >= c->positions);
    return (((size_t)layer * (size_t)c->sessions + (size_t)session) * (size_t)c->positions + (size_t)position) * (size_t)c->width;
}

#endif
