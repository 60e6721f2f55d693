#include "model/kvcache.h"

static size_t head_bytes(const struct kvcache *c)
{
    return kv_head_bytes(c->format, c->positions, c->head_dim);
}

size_t kvcache_bytes(const struct kvcache *c)
{
    return (size_t)c->layers * (size_t)c->sessions * (size_t)c->heads * head_bytes(c);
}

struct kv_head kvcache_head(const struct kvcache *c, int layer, int session, int head)
{
    BUG_ON(layer < 0 || layer >= c->layers || session < 0 || session >= c->sessions || head < 0 || head >= c->heads);
    size_t at = ((size_t)layer * (size_t)c->sessions + (size_t)session) * (size_t)c->heads + (size_t)head;

    return (struct kv_head){c->memory + at * head_bytes(c), c->format, c->head_dim};
}
