/* Sets of small numbers as bit sets in 64-bit words: the active experts of a token. */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stdbool.h>
#include <stdint.h>

static inline int bits_words(int n)
{
    return (n + 63) / 64;
}

static inline void bits_set(uint64_t *set, int i)
{
    set[i / 64] |= UINT64_C(1) << (i % 64);
}

static inline bool bits_has(const uint64_t *set, int i)
{
    return set[i / 64] >> (i % 64) & 1;
}

static inline int bits_count(const uint64_t *set, int n)
{
    int count = 0;

    for (int w = 0; w < bits_words(n); w++) count += __builtin_popcountll(set[w]);
    return count;
}

/* The smallest member >= from, or n if there is none: for (int i = bits_next(s, n, 0); i < n; i = bits_next(s, n, i + 1)) */
static inline int bits_next(const uint64_t *set, int n, int from)
{
    for (int w = from / 64; w < bits_words(n); w++) {
        uint64_t word = set[w];

        if (w == from / 64) word &= ~UINT64_C(0) << (from % 64);
        if (word) return w * 64 + __builtin_ctzll(word);
    }
    return n;
}

#endif
