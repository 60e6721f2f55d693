/* The terms of the loss that know the whole pass: the budget and the load. */
#include <string.h>

#include "train/stage2_internal.h"

/* Mean over groups of (x_g - 1)^2, x_g = load of g / mean load, load in neurons; pull[i] += weight * rows * d/dg of a row. */
static double balance(struct stage2 *s, int layer, int rows, double weight)
{
    int n = s->shape->experts, groups = s->o.group ? s->o.groups : n;
    const int *group = s->o.group ? s->o.group + (size_t)layer * (size_t)n : NULL;
    const uint64_t *load = s->load + (size_t)layer * (size_t)n;
    double mean = 0, uneven = 0, along = 0;

    memset(s->group, 0, (size_t)groups * sizeof(*s->group));
    for (int i = 0; i < n; i++) s->group[group ? group[i] : i] += (double)load[i] * shape_expert_neurons(s->shape, layer, i);
    for (int g = 0; g < groups; g++) mean += s->group[g] / groups;
    if (mean <= 0) return 0;
    for (int g = 0; g < groups; g++) {
        double x = s->group[g] / mean;

        uneven += (x - 1) * (x - 1) / groups;
        along += (x - 1) * x / groups;
    }
    for (int i = 0; i < n; i++) {
        double x = s->group[group ? group[i] : i] / mean, slope = 2 / (groups * mean) * (x - 1 - along);

        s->pull[(size_t)layer * (size_t)n + (size_t)i] += weight * rows * slope * shape_expert_neurons(s->shape, layer, i);
    }
    return uneven;
}

/* Shares of the pass, and what the budget and the load term add to the loss of its rows. */
double stage2_whole_pass(struct stage2 *s, int rows)
{
    const struct shape *y = s->shape;
    int layers = y->layers, n = y->experts;
    double total = 0, loss = 0, neurons = (double)rows * y->neurons;

    memset(s->pull, 0, (size_t)layers * (size_t)n * sizeof(*s->pull));
    for (int l = 0; l < layers; l++) {
        double active = (double)rows * y->shared[l];

        for (int i = 0; i < n; i++) {
            uint64_t load = s->load[(size_t)l * (size_t)n + (size_t)i];

            active += (double)load * shape_expert_neurons(y, l, i);
            s->tally.load[(size_t)l * (size_t)n + (size_t)i] += load;
        }
        s->tally.share_of[l] += active / y->neurons;
        total += active / neurons / layers;
        if (s->o.load > 0) loss += rows * s->o.load / layers * balance(s, l, rows, s->o.load / layers);
    }
    s->tally.share += rows * total;
    if (s->o.budget <= 0 || !s->router->by_threshold) return loss; /* top-k has the share it has */
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < n; i++)
            s->pull[(size_t)l * (size_t)n + (size_t)i] +=
                s->o.budget * 200 * (total - s->o.target) * shape_expert_neurons(y, l, i) / ((double)layers * y->neurons);
    return loss + rows * s->o.budget * 100 * (total - s->o.target) * (total - s->o.target);
}
