#include "moe/grouping.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

void group_contiguous(int *order, int neurons)
{
    for (int j = 0; j < neurons; j++) order[j] = j;
}

void group_random(int *order, int neurons, uint64_t seed, int layer)
{
    struct rng r;

    group_contiguous(order, neurons);
    rng_seed(&r, seed, (uint64_t)layer);
    rng_shuffle(&r, order, neurons);
}

int group_size(int neurons, int shared, int experts, int i)
{
    int routed = neurons - shared;

    return routed / experts + (i < routed % experts);
}

int group_begin(int neurons, int shared, int experts, int i)
{
    int routed = neurons - shared, more = routed % experts;

    return shared + i * (routed / experts) + (i < more ? i : more);
}

struct ranked {
    float importance;
    int neuron;
};

static int by_importance(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->importance != y->importance) return x->importance > y->importance ? -1 : 1;
    return (x->neuron > y->neuron) - (x->neuron < y->neuron);
}

void group_shared_first(int *order, int neurons, int shared, const float *importance)
{
    if (shared == 0) return;
    struct ranked *r = malloc((size_t)neurons * sizeof(*r));
    bool *chosen = calloc((size_t)neurons, sizeof(*chosen));
    int *old = malloc((size_t)neurons * sizeof(*old));

    BUG_ON(!r || !chosen || !old || shared > neurons);
    for (int j = 0; j < neurons; j++) r[j] = (struct ranked){importance[j], j};
    qsort(r, (size_t)neurons, sizeof(*r), by_importance);
    for (int i = 0; i < shared; i++) chosen[r[i].neuron] = true;
    memcpy(old, order, (size_t)neurons * sizeof(*old));
    for (int j = 0, first = 0, rest = shared; j < neurons; j++) order[chosen[old[j]] ? first++ : rest++] = old[j];
    free(r);
    free(chosen);
    free(old);
}

void group_importance(int *order, int neurons, const float *importance)
{
    struct ranked *r = malloc((size_t)neurons * sizeof(*r));

    BUG_ON(!r);
    for (int j = 0; j < neurons; j++) r[j] = (struct ranked){importance[j], j};
    qsort(r, (size_t)neurons, sizeof(*r), by_importance);
    for (int j = 0; j < neurons; j++) order[j] = r[j].neuron;
    free(r);
}

/* Neuron order[shared + j] goes to expert of[j]; of equals the order of the model stays, which is kind to whoever reads the weights. */
void group_put(int *order, int neurons, int shared, int experts, const int *of)
{
    int *at = malloc((size_t)experts * sizeof(*at)), *sorted = malloc((size_t)neurons * sizeof(*sorted));

    BUG_ON(!at || !sorted);
    for (int i = 0; i < experts; i++) at[i] = group_begin(neurons, shared, experts, i);
    for (int j = 0; j < neurons - shared; j++) sorted[at[of[j]]++] = order[shared + j];
    memcpy(order + shared, sorted + shared, (size_t)(neurons - shared) * sizeof(*order));
    free(at);
    free(sorted);
}
