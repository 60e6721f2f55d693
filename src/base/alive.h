/* Signs of life.  What works long without looking up (a check of weights, a large file) takes one of these and calls it at least once per
 * ALIVE_BYTES, so that other ranks do not take this one for lost.  NULL: nobody waits. */
#ifndef BASE_ALIVE_H
#define BASE_ALIVE_H

#include <stddef.h>

#define ALIVE_BYTES ((size_t)16 << 20)

struct alive {
    void (*tick)(void *ctx);
    void *ctx;
};

static inline void alive_tick(const struct alive *a)
{
    if (a) a->tick(a->ctx);
}

#endif
