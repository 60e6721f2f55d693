/* Memory with a planned size: one reservation, handed out front to back, given back as a whole.
 *
 * Lifetimes are arenas: what lives as long as a model, as long as an exchange, as long as a training.  Nothing is freed alone.  After
 * arena_freeze() an allocation is a bug.
 * Memory  the limit is reserved as address space at once; pages cost nothing until they are touched, and come zeroed.
 * Threads one thread per arena.
 */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

#include "base/err.h"

struct arena;

/* Reserves `limit` bytes (rounded up to pages).  ERR_LIMIT with the numbers if the system refuses. */
status arena_open(struct arena **out, const char *name, size_t limit, struct err *e);
void arena_close(struct arena *a); /* NULL is fine */

/* n * size zeroed bytes, aligned to 64; n * size may be 0 (the pointer is then valid but not to be followed).
 * NULL with ERR_LIMIT in `e`, naming the arena, its limit and what was asked for, if they do not fit. */
void *arena_alloc(struct arena *a, size_t n, size_t size, struct err *e);

/* What arena_alloc(n, size) takes, for the functions that plan memory before it is taken. */
size_t arena_cost(size_t n, size_t size);

/* One walk for what is planned and what is taken, so that the two cannot disagree: without an arena arena_take() only counts and returns
 * NULL; with one it takes, and after the first failure returns NULL for the rest. */
struct arena_taker {
    struct arena *arena;
    struct err *e;
    size_t bytes;
    bool failed;
};
void *arena_take(struct arena_taker *t, size_t n, size_t size);

/* A wish for huge pages behind the first `from` bytes, for what all of is read or written again and again: fewer misses of the TLB.  Touched memory is then counted in pieces of 2 MiB. */
void arena_huge_pages(struct arena *a, size_t from);
void arena_freeze(struct arena *a);
size_t arena_used(const struct arena *a);

#endif
