#include "jobs/factorize_group.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "base/stop.h"
#include "moe/grouping_dense.h"

struct grouping {
    struct job *job;
    struct cut *cut;
    struct model *model;
    struct safetensors *weights;
    struct alive alive;
    int layer;
    struct group_cut how; /* of the layer */
    float *importance;    /* [neurons] */
    float *values, *h;    /* [sample][neurons], [sample][width]; NULL without a sample */
    struct group_sample sample;
    struct predictor *predictor;
};

/* ---- the table ---- */

static status contiguous(struct grouping *g, int *order, struct err *e)
{
    (void)e;
    group_contiguous(order, g->how.neurons);
    group_shared_first(order, g->how.neurons, g->how.shared, g->importance);
    return OK;
}

static status at_random(struct grouping *g, int *order, struct err *e)
{
    (void)e;
    group_random(order, g->how.neurons, (uint64_t)g->job->spec->seed, g->layer);
    group_shared_first(order, g->how.neurons, g->how.shared, g->importance);
    return OK;
}

static status by_importance(struct grouping *g, int *order, struct err *e)
{
    (void)e;
    group_importance(order, g->how.neurons, g->importance);
    return OK;
}

static status by_gate_rows(struct grouping *g, int *order, struct err *e)
{
    const struct shape *s = g->cut->dense;
    float *rows = malloc((size_t)s->neurons * (size_t)s->width * sizeof(*rows));
    struct mat gate;
    char name[96];
    status st;

    if (!rows) return err_set(e, ERR_LIMIT, "no memory for the gates of %d neurons", s->neurons);
    snprintf(name, sizeof(name), "model.layers.%d.mlp.gate_proj.weight", g->layer);
    st = safetensors_mat(&gate, g->weights, name, s->neurons, s->width, e);
    if (!st) mat_widen(rows, &gate, 0, s->neurons);
    if (!st) st = group_kmeans(order, &g->how, rows, s->width, e);
    free(rows);
    return st;
}

static status by_coactivation(struct grouping *g, int *order, struct err *e)
{
    int tokens;
    uint64_t *strong = calibration_strong(&g->cut->calibration, g->layer, g->values, &tokens, &g->alive);
    status st = group_coactivation(order, &g->how, strong, tokens, e);

    free(strong);
    return st;
}

static status by_prediction(struct grouping *g, int *order, struct err *e)
{
    return group_predicted(order, &g->how, &g->sample, g->predictor, g->cut->active[g->layer], NULL, e);
}

static const struct row {
    status (*group)(struct grouping *g, int *order, struct err *e);
    bool energies; /* looks at energies, not at values */
} table[GROUPINGS] = {
    [GROUP_CONTIGUOUS] = {contiguous, true},         [GROUP_RANDOM] = {at_random, true},
    [GROUP_COACTIVATION] = {by_coactivation, false}, [GROUP_KMEANS] = {by_gate_rows, true},
    [GROUP_IMPORTANCE] = {by_importance, true},      [GROUP_PREDICTED] = {by_prediction, true},
};

/* ---- layers ---- */

static status take_sample(struct grouping *g, struct err *e)
{
    const struct calibration *c = &g->cut->calibration;
    size_t tokens = (size_t)c->sample;

    if (!tokens) return OK;
    g->values = malloc(tokens * (size_t)c->neurons * sizeof(*g->values));
    g->h = malloc(tokens * (size_t)c->width * sizeof(*g->h));
    if (!g->values || !g->h)
        return err_set(e, ERR_LIMIT, "no memory for %d tokens of %d neurons; lower calibration.profile_tokens", c->sample,
                       c->neurons);
    g->sample = (struct group_sample){c->sample, c->width, g->h, g->values};
    return OK;
}

static status fit_router(struct grouping *g, const int *order, struct err *e)
{
    size_t n = (size_t)g->cut->experts, at = (size_t)g->layer * n;
    float *y = malloc((size_t)g->sample.tokens * n * sizeof(*y));
    status st;

    if (!y) return err_set(e, ERR_LIMIT, "no memory for the energies of %zu experts", n);
    group_log_energy(y, order, &g->how, &g->sample);
    st = predictor_fit(g->predictor, g->cut->router + at * (size_t)g->sample.width, g->cut->router_bias + at, y, (int)n, e);
    free(y);
    return st;
}

static status group_layer(struct grouping *g, const struct row *row, struct err *e)
{
    struct cut *cut = g->cut;
    const struct calibration *c = &cut->calibration;
    int l = g->layer, neurons = cut->dense->neurons, *order = cut->order + (size_t)l * (size_t)neurons;
    bool sample = g->values && c->sample >= PREDICT_FOLDS;
    status st = OK;

    for (int n = 0; n < neurons; n++) g->importance[n] = cut->calibrated ? (float)calibration_importance(c, l, n) : 0;
    g->how = (struct group_cut){.neurons = neurons,
                                .shared = cut->shared[l],
                                .experts = cut->experts,
                                .importance = g->importance,
                                .seed = rng_hash((uint64_t)g->job->spec->seed, (uint64_t)l, 0, 0),
                                .gemm = cluster_gemm(g->job->cluster),
                                .alive = &g->alive};
    if (g->values) st = calibration_values(c, g->model, l, g->values, e);
    if (!st && g->values && row->energies) calibration_energies(c, l, g->values);
    if (g->values) calibration_inputs(c, l, g->h);
    if (!st && sample) st = predictor_open(&g->predictor, g->h, c->sample, c->width, g->how.gemm, &g->alive, e);
    if (!st) st = row->group(g, order, e);
    if (!st && g->values && !row->energies) calibration_energies(c, l, g->values);
    if (!st && sample) st = group_captured(&cut->captured[l], order, &g->how, &g->sample, g->predictor, cut->active[l], e);
    if (!st && cut->router) st = fit_router(g, order, e);
    predictor_close(g->predictor);
    g->predictor = NULL;
    return st;
}

status group_layers(struct cut *c, struct job *j, struct model *m, struct safetensors *weights, struct err *e)
{
    struct grouping g = {.job = j, .cut = c, .model = m, .weights = weights, .alive = {cluster_tick, j->cluster}};
    size_t layers = (size_t)c->dense->layers, neurons = (size_t)c->dense->neurons;
    const struct row *row = &table[j->spec->factorize.grouping];
    status s = OK;

    c->order = malloc(layers * neurons * sizeof(*c->order));
    c->captured = c->calibration.sample >= PREDICT_FOLDS ? calloc(layers, sizeof(*c->captured)) : NULL;
    if (c->captured && j->spec->factorize.budget != BUDGET_UNIFORM) {
        size_t n = layers * (size_t)c->experts;

        c->router = malloc(n * (size_t)c->dense->width * sizeof(*c->router));
        c->router_bias = malloc(n * sizeof(*c->router_bias));
        if (!c->router || !c->router_bias) s = err_set(e, ERR_LIMIT, "no memory for the routers of %zu layers", layers);
    }
    g.importance = malloc(neurons * sizeof(*g.importance));
    if (!c->order || !g.importance) s = err_set(e, ERR_LIMIT, "no memory to group %zu layers of %zu neurons", layers, neurons);
    if (!s && (j->spec->factorize.grouping == GROUP_PREDICTED || j->spec->factorize.budget != BUDGET_UNIFORM) && !c->captured)
        s = err_set(e, ERR_SPEC,
                    "%s: calibration: grouping: predicted and budget: kl need a text of %d tokens or more, found %lld",
                    j->spec->source, PREDICT_FOLDS, (long long)c->calibration.tokens);
    if (!s) s = take_sample(&g, e);
    for (; !s && g.layer < c->dense->layers; g.layer++) {
        if (stop_asked()) s = err_set(e, STOPPED, "%s: stopped while grouping; run it again", j->spec->source);
        cluster_alive(j->cluster);
        log_progress(j->log, "group", g.layer, c->dense->layers, "layer %d of %d", g.layer, c->dense->layers);
        if (!s) s = group_layer(&g, row, e);
    }
    log_progress_end(j->log);
    free(g.importance);
    free(g.values);
    free(g.h);
    return s;
}
