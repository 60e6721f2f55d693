#include "jobs/ways.h"

#include <stdlib.h>
#include <string.h>

#include "jobs/factorize_group.h"

void cut_free(struct cut *c)
{
    free(c->order);
    free(c->captured);
    free(c->router);
    free(c->router_bias);
    c->order = NULL, c->captured = NULL, c->router = NULL, c->router_bias = NULL;
}

void ways_free(struct ways *w)
{
    for (int q = 0; q < w->n; q++) cut_free(&w->cut[q]);
    w->n = 0;
}

static double neurons_of_expert(const struct cut *c, int layer)
{
    return (double)(c->dense->neurons - c->shared[layer]) / c->experts;
}

static double active_neurons(const struct cut *c, int layer)
{
    return c->shared[layer] + c->active[layer] * neurons_of_expert(c, layer);
}

/* This share of the neurons that are active in `first` are shared, and so many experts that they are as many again; false: as one that is there. */
static bool set_share(struct cut *c, const struct ways *w, double share)
{
    const struct cut *first = &w->cut[0];

    *c = *first;
    c->order = NULL, c->captured = NULL, c->router = NULL, c->router_bias = NULL;
    for (int l = 0; l < c->dense->layers; l++) {
        double active = active_neurons(first, l);
        int most = c->dense->neurons - c->experts;

        c->shared[l] = (int)(share * active);
        if (c->shared[l] > most) c->shared[l] = most;
        int k = (int)((active - c->shared[l]) / neurons_of_expert(c, l) + 0.5);
        c->active[l] = k < 1 ? 1 : k > c->experts ? c->experts : k;
    }
    for (int q = 0; q < w->n; q++)
        if (!memcmp(w->cut[q].shared, c->shared, sizeof(c->shared))) return false;
    return true;
}

status ways_group(struct ways *w, const struct cut *first, struct job *j, struct model *m, struct safetensors *weights,
                  struct err *e)
{
    static const double shares[WAYS - 1] = {0, 0.25, 0.5};

    w->cut[w->n++] = *first;
    for (int q = 0; q < WAYS - 1; q++) {
        if (!set_share(&w->cut[w->n], w, shares[q])) continue;
        if (group_layers(&w->cut[w->n++], j, m, weights, e)) return e->code;
    }
    return OK;
}

/* From way q's arrays. */
static void take_layer(struct cut *out, const struct cut *from, int layer, int k)
{
    size_t l = (size_t)layer, n = (size_t)out->experts, f = (size_t)out->dense->neurons, d = (size_t)out->dense->width;

    out->shared[layer] = from->shared[layer];
    out->active[layer] = k;
    out->captured[layer] = from->captured[layer];
    memcpy(out->order + l * f, from->order + l * f, f * sizeof(*out->order));
    memcpy(out->router + l * n * d, from->router + l * n * d, n * d * sizeof(*out->router));
    memcpy(out->router_bias + l * n, from->router_bias + l * n, n * sizeof(*out->router_bias));
}

status ways_compose(struct cut *out, const struct ways *w, struct err *e)
{
    const struct cut *first = &w->cut[0];
    size_t layers = (size_t)first->dense->layers, rows = layers * (size_t)first->experts;
    struct budget_way *way = calloc(layers * WAYS, sizeof(*way));
    int k[MODEL_LAYERS_MAX], which[MODEL_LAYERS_MAX];
    double total = 0;

    *out = *first;
    out->order = malloc(layers * (size_t)first->dense->neurons * sizeof(*out->order));
    out->captured = malloc(layers * sizeof(*out->captured));
    out->router = malloc(rows * (size_t)first->dense->width * sizeof(*out->router));
    out->router_bias = malloc(rows * sizeof(*out->router_bias));
    if (!way || !out->order || !out->captured || !out->router || !out->router_bias) {
        cut_free(out);
        free(way);
        return err_set(e, ERR_LIMIT, "no memory to put %d ways of grouping together", w->n);
    }
    for (int l = 0; l < (int)layers; l++) {
        total += active_neurons(first, l);
        for (int q = 0; q < w->n; q++)
            way[l * w->n + q] = (struct budget_way){w->cut[q].shared[l], neurons_of_expert(&w->cut[q], l), w->curves[q].point[l],
                                                    w->curves[q].n[l]};
    }
    budget_choose(which, k, way, (int)layers, w->n, total * (1 + 1e-9));
    for (int l = 0; l < (int)layers; l++) take_layer(out, &w->cut[which[l]], l, k[l]);
    free(way);
    return OK;
}

struct json_t *ways_json(const struct ways *w, const struct cut *chosen, double kl)
{
    int layers = chosen->dense->layers;
    struct json_t *o = budget_json(&w->curves[0], layers, w->uniform, kl), *all = json_array_new(), *k = json_array_new(),
                  *way = json_array_new();

    for (int q = 1; q < w->n; q++) json_append(all, budget_json(&w->curves[q], layers, w->uniform, kl));
    for (int l = 0; l < layers; l++) {
        json_append(k, json_int_new(chosen->active[l]));
        json_append(way, json_int_new(chosen->shared[l]));
    }
    json_put(o, "chosen", k);
    json_put(o, "chosen_shared", way);
    json_put(o, "other_ways", all);
    return o;
}
