/* From logits to a token.  Pure.
 *
 * Order, as users of other engines know it: temperature -> top-k -> top-p -> min-p, then one draw from what is left.
 *   temperature 0: greedy, the largest logit, and nothing of the following.  Else p_i ~ exp(logit_i / temperature).
 *   top-k: the k largest.
 *   top-p: of those the smallest set of largest whose share of their sum is at least top_p; never empty.
 *   min-p: of those the tokens with p_i >= min_p * p_max.
 * Ties go to the lower index everywhere.  A NaN counts as -infinity; when nothing is above -infinity the answer is token 0.
 * Order of sums is fixed and the random number depends on (seed, index of the generated token) alone: the same logits, parameters
 * and seed give the same token whatever else is computed, and a sequence that is done again goes the same way.
 */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

struct sampling {
    double temperature;  /* 0: greedy */
    int top_k;           /* 0: all */
    double top_p, min_p; /* 1 and 0: off */
    uint64_t seed;
    int max_tokens;
    const char *const *stop; /* strings; borrowed until the sequence is done */
    int n_stop;
    bool ignore_eos;
};

struct sample_candidate { /* scratch */
    double weight;
    float logit;
    int32_t id;
};

/* index: of the generated token, 0 for the first.  work: room for `vocab`; untouched when greedy. */
int32_t sample_token(const float *logits, int vocab, const struct sampling *s, uint64_t index, struct sample_candidate *work);

#endif
