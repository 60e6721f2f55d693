/* Keys and values of everything the sessions have seen: [layer][session][KV head] of blocks as in num/attention.h, in one of its formats.
 * A session has its slot as long as it lives; nothing is cleared between sessions, because a position is written before it is read. */
#ifndef MODEL_KVCACHE_H
#define MODEL_KVCACHE_H

#include "base/arena.h"
#include "num/attention.h"

struct kvcache {
    char *memory; /* kvcache_bytes() */
    enum kv_format format;
    int layers, sessions, positions, heads, head_dim;
};

size_t kvcache_bytes(const struct kvcache *c); /* whatever `memory` is; positions are rounded up to whole blocks */
struct kv_head kvcache_head(const struct kvcache *c, int layer, int session, int head);

#endif
