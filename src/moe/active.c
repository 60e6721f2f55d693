#include "moe/active.h"

#include <string.h>

#include "base/bits.h"

/* Sets are walked word by word, from one member to the next: bits_next() would look at a word once for each of its members. */

void active_count(uint32_t *count, const uint64_t *set, int rows, int experts)
{
    int words = bits_words(experts);

    for (int t = 0; t < rows; t++, set += words)
        for (int w = 0; w < words; w++)
            for (uint64_t left = set[w]; left; left &= left - 1) count[w * 64 + __builtin_ctzll(left)]++;
}

void active_list(struct active *a, const uint64_t *set, int first, int n, int experts, const uint64_t *among)
{
    int words = bits_words(experts);
    const uint64_t *from = set + (size_t)first * (size_t)words;

    memset(a->begin, 0, ((size_t)experts + 1) * sizeof(*a->begin));
    for (int t = 0; t < n; t++)
        for (int w = 0; w < words; w++)
            for (uint64_t left = from[(size_t)t * (size_t)words + (size_t)w] & among[w]; left; left &= left - 1)
                a->begin[w * 64 + __builtin_ctzll(left) + 1]++;
    for (int i = 0; i < experts; i++) a->begin[i + 1] += a->begin[i];
    /* begin[i] runs through the places of expert i, and so ends where i + 1 begins. */
    for (int t = 0; t < n; t++)
        for (int w = 0; w < words; w++)
            for (uint64_t left = from[(size_t)t * (size_t)words + (size_t)w] & among[w]; left; left &= left - 1)
                a->row[a->begin[w * 64 + __builtin_ctzll(left)]++] = first + t;
    memmove(a->begin + 1, a->begin, (size_t)experts * sizeof(*a->begin));
    a->begin[0] = 0;
}
