/* From the active set of every row to the rows of every expert.  Pure. */
#ifndef MOE_ACTIVE_H
#define MOE_ACTIVE_H

#include <stdint.h>

struct active {
    int *begin; /* [experts + 1] where an expert's rows begin in row */
    int *row;   /* rows of expert 0, of expert 1, ...; each ascending */
};

/* How many rows each expert is active for: count[experts] += .  set: [rows][bits_words(experts)]. */
void active_count(uint32_t *count, const uint64_t *set, int rows, int experts);
/* Fills *a with rows first .. first + n - 1 of set, for the experts that are members of `among` (bits_words(experts) words).  a->row has room for all pairs. */
void active_list(struct active *a, const uint64_t *set, int first, int n, int experts, const uint64_t *among);

#endif
