#include "base/arena.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };

struct arena {
    char name[32];
    char *base;
    size_t limit, used;
    bool frozen;
};

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

size_t arena_cost(size_t n, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2) return SIZE_MAX / 2;
    return round_up(bytes, ALIGN);
}

status arena_open(struct arena **out, const char *name, size_t limit, struct err *e)
{
    struct arena *a = calloc(1, sizeof(*a));

    *out = NULL;
    if (!a) return err_set(e, ERR_LIMIT, "out of memory for arena %s", name);
    snprintf(a->name, sizeof(a->name), "%s", name);
    a->limit = limit > SIZE_MAX / 2 ? SIZE_MAX / 2 : round_up(limit ? limit : 1, 4096);
    a->base = mmap(NULL, a->limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->base == MAP_FAILED) {
        free(a);
        return err_set(e, ERR_LIMIT, "%s: cannot reserve %zu MiB of memory", name, limit >> 20);
    }
    *out = a;
    return OK;
}

void arena_close(struct arena *a)
{
    if (!a) return;
    munmap(a->base, a->limit);
    free(a);
}

void *arena_alloc(struct arena *a, size_t n, size_t size, struct err *e)
{
    size_t bytes = arena_cost(n, size);

    BUG_ON(a->frozen);
    if (bytes > a->limit - a->used) {
        err_set(e, ERR_LIMIT, "%s: %zu bytes more do not fit: %zu of %zu are taken", a->name, bytes, a->used, a->limit);
        return NULL;
    }
    char *p = a->base + a->used;
    a->used += bytes;
    return p;
}

void *arena_take(struct arena_taker *t, size_t n, size_t size)
{
    void *p = NULL;

    t->bytes += arena_cost(n, size);
    if (t->arena && !t->failed) {
        p = arena_alloc(t->arena, n, size, t->e);
        t->failed = !p;
    }
    return p;
}

void arena_huge_pages(struct arena *a, size_t from)
{
    from = round_up(from, 4096);
    if (from < a->limit) madvise(a->base + from, a->limit - from, MADV_HUGEPAGE); /* refused where the kernel has none */
}

void arena_freeze(struct arena *a)
{
    a->frozen = true;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}
