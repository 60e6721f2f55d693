/* Bytes that a seed decides, so that who receives them can tell. */
#ifndef TESTS_PATTERN_H
#define TESTS_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline uint8_t value(uint64_t seed, size_t i)
{
    return (uint8_t)((seed * 2654435761u + i * 40503u) >> 7);
}

static inline void fill(uint8_t *to, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) to[i] = value(seed, i);
}

static inline bool holds(const uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != value(seed, i)) return false;
    return true;
}

#endif
