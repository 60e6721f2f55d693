/* Random numbers: seeded, splittable by stream, equal on every machine and rank.
 *
 * xoshiro256** (Blackman and Vigna, arXiv 1805.01407), started by splitmix64 from (seed, stream).  The state is a plain value:
 * copy it to save it.
 */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_seed(struct rng *r, uint64_t seed, uint64_t stream);
uint64_t rng_u64(struct rng *r);
double rng_unit(struct rng *r);                     /* uniform in [0, 1) */
double rng_normal(struct rng *r);                   /* mean 0, variance 1 (Box and Muller) */
uint64_t rng_below(struct rng *r, uint64_t n);      /* uniform in 0 .. n-1, n > 0, without bias */
void rng_shuffle(struct rng *r, int *items, int n); /* Fisher and Yates */

/* One number from a key, without state: the same (seed, a, b, c) gives the same number wherever it is asked. */
uint64_t rng_hash(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);

#endif
