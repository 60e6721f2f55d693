/* eval: what a factorized model kept, next to its controls.
 *
 * Every variant is the same open model routed differently, over the same windows of text and the same items; a second side (another model,
 * another router version) follows on the same tokens.  Conventions: perplexity in data/corpus.h, items in jobs/eval.h.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "jobs/eval_knowledge.h"
#include "jobs/ready.h"
#include "jobs/room.h"
#include "model/router_file.h"

/* --- which variants --- */

bool eval_is_routed(enum spec_variant kind)
{
    return kind != VARIANT_DENSE && kind != VARIANT_STATIC && kind != VARIANT_NEURONS;
}

void eval_variant_clear(struct eval_variant *x)
{
    free(x->blocks);
    free(x->pieces);
    free(x->load);
    free(x->agreement);
    struct eval_variant empty = {.kind = x->kind, .version = x->version, .share = x->share};
    memcpy(empty.name, x->name, sizeof(empty.name));
    *x = empty;
}

const struct eval_variant *eval_find(const struct eval_side *side, enum spec_variant kind)
{
    for (int i = 0; i < side->n; i++)
        if (side->variant[i].kind == kind && side->variant[i].done && !strchr(side->variant[i].name, '@'))
            return &side->variant[i];
    return NULL;
}

const struct eval_variant *eval_dense(const struct eval_run *r, const struct eval_side *side)
{
    if (!side->adapted) return eval_find(side, VARIANT_DENSE);
    return r->n_sides == 2 ? eval_find(&r->side[side == &r->side[0]], VARIANT_DENSE) : NULL;
}

const struct eval_variant *eval_find_name(const struct eval_side *side, const char *name)
{
    for (int i = 0; i < side->n; i++)
        if (!strcmp(side->variant[i].name, name) && side->variant[i].done) return &side->variant[i];
    return NULL;
}

static void add_variant(struct eval_side *side, const char *name, struct spec_variant_item of)
{
    struct eval_variant *x = &side->variant[side->n++];

    BUG_ON(side->n > EVAL_VARIANTS_MAX);
    *x = (struct eval_variant){.kind = of.kind, .version = of.version, .share = of.share ? strtod(of.share, NULL) : 0};
    snprintf(x->name, sizeof(x->name), "%.79s", name);
}

/* In the order of their kinds; those with an @ stand behind the one without.  version: the router is this one, and the only variant. */
static void list_variants(struct eval_side *side, const struct spec *s, const char *version, bool versions)
{
    if (version) {
        add_variant(side, spec_variant_name(VARIANT_ROUTER), (struct spec_variant_item){VARIANT_ROUTER, version, NULL});
        return;
    }
    for (int v = 0; v < VARIANTS; v++)
        for (int at = 0; at < 2; at++)
            for (int i = 0; i < s->eval.variants.n; i++) {
                const char *item = s->eval.variants.items[i];
                const struct spec_variant_item of = spec_variant_of(item);

                if ((int)of.kind == v && (of.version || of.share) == (at == 1) && (!of.version || versions))
                    add_variant(side, item, of);
            }
}

/* NULL if the model can be routed so, or why not. */
static const char *missing(const struct eval_variant *x, const struct shape *shape, bool has_router)
{
    if (x->kind == VARIANT_DENSE && shape->adapted) return "the weights were adapted, and nobody trained the sum of all experts";
    if (x->kind == VARIANT_DENSE) return NULL;
    if (!shape->experts) return "the model is dense";
    if (x->kind == VARIANT_STATIC && !shape->calibrated) return "the model was factorized without calibration";
    if (x->kind == VARIANT_ROUTER && !x->version && !has_router) return "the model has no trained router; run a finetune job";
    return NULL;
}

status eval_has_router(bool *has, const char *directory, struct err *e)
{
    char current[64];

    if (router_current(current, directory, e)) return e->code;
    *has = current[0] != 0;
    return OK;
}

struct routing eval_route(enum spec_variant v, const struct shape *shape, const struct router *router, const struct spec *s)
{
    static const enum route routes[VARIANTS] = {
        [VARIANT_DENSE] = ROUTE_ALL,      [VARIANT_STATIC] = ROUTE_STATIC, [VARIANT_RANDOM] = ROUTE_RANDOM,
        [VARIANT_ROUTER] = ROUTE_ROUTER,  [VARIANT_ORACLE] = ROUTE_GRAM,   [VARIANT_ORACLE_VARIABLE] = ROUTE_GRAM_VARIABLE,
        [VARIANT_NEURONS] = ROUTE_NEURONS};

    bool own = v == VARIANT_ROUTER && router_compensates(router); /* compensation */

    return (struct routing){.route = routes[v],
                            .router = router,
                            .scale = shape->scale,
                            .compensate = shape->compensate || own,
                            .batch_experts = s->eval.batch_experts < 1 ? s->eval.batch_experts : 0,
                            .seed = (uint64_t)s->seed};
}

/* --- measuring --- */

/* One side's work. */
struct measuring {
    struct eval_run *r;
    struct eval_side *side;
    const char *directory;
    struct eval_scorer scorer;
};

static void keep_load(struct eval_variant *x, const struct moe_stats *stats, const struct shape *shape)
{
    size_t n = (size_t)shape->layers * (size_t)shape->experts;
    double rows = (double)stats->tokens / shape->layers;

    if (x->load || !eval_is_routed(x->kind)) return;
    x->load = calloc(n, sizeof(*x->load));
    BUG_ON(!x->load);
    for (size_t i = 0; i < n; i++) x->load[i] = (double)stats->load[i] / rows;
}

/* Of one token in the mean over the layers, as a share of the dense FFN's 3 D F. */
static void count_overhead(struct eval_variant *x, const struct routing *how, const struct shape *shape)
{
    double ffn = 3.0 * shape->width * shape->neurons, active = 0;

    x->overhead = (struct eval_overhead){0};
    for (int i = 0; x->load && i < shape->layers * shape->experts; i++) active += x->load[i] / shape->layers;
    if (x->kind == VARIANT_ROUTER) {
        struct router_cost c = router_cost(how->router, active, shape->compensate);

        x->overhead = (struct eval_overhead){c.scores / ffn, (c.low_rank + c.additions) / ffn};
    } else if (eval_is_routed(x->kind) && how->compensate) {
        x->overhead.compensation = active * shape->width / ffn;
    }
}

static status measure_text(struct measuring *m, struct eval_variant *x, const struct routing *how, struct err *e)
{
    struct eval_run *r = m->r;
    double start = clock_now();
    char what[128];
    bool known = r->reference.hidden && r->reference.filled, fills = r->reference.hidden && x->kind == VARIANT_DENSE;

    if (!r->n_windows) return OK;
    x->blocks = calloc(r->n_blocks, sizeof(*x->blocks));
    BUG_ON(!x->blocks);
    snprintf(what, sizeof(what), "eval: %.79s, text", x->name);
    if (eval_score(&m->scorer,
                   &(struct eval_pass){.q = r->windows,
                                       .n = r->n_windows,
                                       .how = how,
                                       .what = what,
                                       .score = x->blocks,
                                       .n_scores = r->n_blocks,
                                       .reference = fills || (known && x->kind != VARIANT_DENSE) ? &r->reference : NULL},
                   e))
        return e->code;
    if (known && x->kind != VARIANT_DENSE) x->kl_tokens = r->reference.rows;
    x->seconds = clock_now() - start;
    for (size_t i = 0; i < r->n_blocks; i++) {
        x->nats -= x->blocks[i].logp;
        x->hits += x->blocks[i].hits;
    }
    return OK;
}

static status measure_pieces(struct measuring *m, struct eval_variant *x, const struct routing *how, struct err *e)
{
    struct eval_run *r = m->r;
    char what[128];

    if (!r->n_pieces) return OK;
    x->pieces = calloc(r->n_pieces, sizeof(*x->pieces));
    BUG_ON(!x->pieces);
    snprintf(what, sizeof(what), "eval: %.79s, items", x->name);
    return eval_score(
        &m->scorer,
        &(struct eval_pass){
            .q = r->pieces, .n = r->n_pieces, .how = how, .stream = 1, .what = what, .score = x->pieces, .n_scores = r->n_pieces},
        e);
}

static status measure_agreement(struct measuring *m, struct eval_variant *x, const struct routing *how, struct err *e)
{
    const struct eval_run *r = m->r;
    const struct eval_sequence *q = r->n_windows ? r->windows : r->pieces;
    size_t most = r->n_windows ? r->n_windows : r->n_pieces, n = 0;

    for (; n < most && x->agreement_tokens < r->job->spec->eval.agreement_tokens; n++) x->agreement_tokens += q[n].n;
    if (!n) return OK;
    x->agreement = calloc((size_t)m->side->layers, sizeof(*x->agreement));
    BUG_ON(!x->agreement);
    return eval_agreement(&m->scorer, x->agreement, q, n, how, e);
}

static void report_variant(struct eval_run *r, const struct eval_side *side, const struct eval_variant *x)
{
    struct json_t *o = json_object_new();

    json_put_text(o, "side", side->name);
    json_put_text(o, "variant", x->name);
    json_put_real(o, "active_share", x->active_share);
    if (r->n_pieces) json_put_real(o, "active_share_of_items", x->items_share);
    if (r->n_windows) {
        json_put_real(o, "nats_per_token", x->nats / (double)r->corpus.n_tokens);
        json_put_real(o, "accuracy", (double)x->hits / (double)r->corpus.n_tokens);
        json_put_real(o, "tokens_per_second", (double)r->corpus.n_tokens / x->seconds);
    }
    job_event(r->job, "variant", o);
}

static double share_of(const struct moe_stats *stats, const struct shape *shape)
{
    return stats->tokens ? (double)stats->neurons / ((double)stats->tokens * shape->neurons) : 0;
}

static status measure_routed(struct measuring *m, struct eval_variant *x, const struct routing *how, struct err *e)
{
    const struct shape *shape = model_shape(m->scorer.model);
    struct moe *moe = model_moe(m->scorer.model);
    const struct moe_stats *stats = moe_stats(moe);

    moe_stats_clear(moe);
    if (measure_text(m, x, how, e)) return e->code;
    if (m->r->n_windows) keep_load(x, stats, shape);
    x->active_share = share_of(stats, shape);
    moe_stats_clear(moe); /* a threshold's f is another on other texts */
    if (measure_pieces(m, x, how, e)) return e->code;
    if (m->r->n_pieces) keep_load(x, stats, shape);
    x->items_share = share_of(stats, shape);
    if (!m->r->n_windows) x->active_share = x->items_share;
    count_overhead(x, how, shape);
    if (x->kind == VARIANT_ROUTER && measure_agreement(m, x, how, e)) return e->code;
    return OK;
}

status eval_open_router(struct router *router, const struct eval_run *r, struct model *model, const char *directory,
                        const char *version, struct err *e)
{
    struct job *j = r->job;

    if (router_read(router, directory, version, model_shape(model), e) ||
        router_pack(router, room_router(j->spec), cluster_gemm(j->cluster), e))
        return e->code;
    return cluster_router(j->cluster, router, e);
}

static status measure(struct measuring *m, struct eval_variant *x, struct err *e)
{
    const struct shape *shape = model_shape(m->scorer.model);
    const struct eval_run *r = m->r;
    struct router router = {0};
    double *gain = calloc((size_t)shape->layers, sizeof(*gain));
    int *neurons = calloc((size_t)shape->layers, sizeof(*neurons));
    status st = OK;

    BUG_ON(!gain || !neurons);
    if (x->kind == VARIANT_ROUTER) st = eval_open_router(&router, r, m->scorer.model, m->directory, x->version, e);
    struct routing how = eval_route(x->kind, shape, &router, r->job->spec);
    how.gain = gain;
    if (x->share > 0) {
        shape_neurons_at(neurons, shape, x->share);
        how.neurons = neurons;
    }
    if (!st && x->kind == VARIANT_ORACLE_VARIABLE)
        st = eval_gains(&m->scorer, gain, r->n_windows ? r->windows : r->pieces, r->n_windows ? r->n_windows : r->n_pieces, &how,
                        e);
    if (!st) st = measure_routed(m, x, &how, e);
    if (!st) {
        x->done = true;
        report_variant(m->r, m->side, x);
    }
    router_free(&router);
    free(neurons);
    free(gain);
    return st;
}

/* --- the dense model's distributions, which KL is measured against --- */

static void reference_open(struct eval_run *r, const struct eval_side *side, const struct shape *shape)
{
    size_t row = (size_t)shape->width * sizeof(float), rows = r->corpus.n_tokens;
    bool dense = false;

    for (int i = 0; i < side->n; i++) dense = dense || side->variant[i].kind == VARIANT_DENSE;
    if (!dense || side->n < 2 || !r->n_windows || !shape->experts || shape->adapted) return;
    if (rows > EVAL_REFERENCE_BYTES / row) rows = EVAL_REFERENCE_BYTES / row;
    r->reference = (struct eval_reference){.tokens = r->corpus.tokens, .hidden = malloc(rows * row), .rows = rows};
    if (!r->reference.hidden) log_warn(r->job->log, "no memory for %zu states of the dense model: KL is left out", rows);
}

static void reference_close(struct eval_run *r)
{
    free(r->reference.hidden);
    r->reference = (struct eval_reference){0};
}

/* When the dense figures are those of an earlier launch. */
static status reference_again(struct measuring *m, struct err *e)
{
    struct eval_run *r = m->r;
    const struct routing how = {.route = ROUTE_ALL};

    if (!r->reference.hidden || r->reference.filled) return OK;
    struct eval_score *ignored = calloc(r->n_blocks, sizeof(*ignored));
    BUG_ON(!ignored);
    status st = eval_score(&m->scorer,
                           &(struct eval_pass){.q = r->windows,
                                               .n = r->n_windows,
                                               .how = &how,
                                               .what = "eval: dense once more, for KL",
                                               .score = ignored,
                                               .n_scores = r->n_blocks,
                                               .reference = &r->reference},
                           e);
    free(ignored);
    return st;
}

/* --- a side --- */

static status measure_variants(struct measuring *m, bool has, bool *any, struct err *e)
{
    struct eval_run *r = m->r;
    const struct shape *shape = model_shape(m->scorer.model);
    status st = OK;

    for (int v = 0; v < m->side->n && !st; v++) {
        struct eval_variant *x = &m->side->variant[v];
        const char *why = missing(x, shape, has);

        if (why) {
            log_line(r->job->log, "%s: %s is left out: %s", m->directory, x->name, why);
            continue;
        }
        *any = true;
        if (eval_partial_take(r, r->n_sides - 1, v)) {
            log_line(r->job->log, "%s: %s was measured before the evaluation was stopped", m->directory, x->name);
            continue;
        }
        if (x->kind != VARIANT_DENSE) st = reference_again(m, e);
        if (!st) st = measure(m, x, e);
        if (!st) st = eval_partial_keep(r, r->n_sides - 1, v, e);
    }
    return st;
}

/* All wanted variants of the open model; with a version that router alone. */
static status measure_side(struct eval_run *r, struct model *model, const char *directory, const char *version, struct err *e)
{
    const struct spec *s = r->job->spec;
    const struct shape *shape = model_shape(model);
    struct measuring m = {.r = r, .directory = directory};
    bool has = false, any = false, measures = r->n_windows > 0 || r->n_pieces > 0;

    if (!measures) return OK; /* domains alone */
    m.side = &r->side[r->n_sides++];
    m.side->name = version ? version : directory;
    m.side->layers = shape->layers;
    m.side->experts = shape->experts;
    m.side->adapted = shape->adapted;
    list_variants(m.side, s, version, r->n_sides == 1);
    if (shape->experts && eval_has_router(&has, directory, e)) return e->code;
    if (!version) reference_close(r);
    if (!version) reference_open(r, m.side, shape);
    status st = eval_scorer_open(&m.scorer, r->job, model, e);
    if (!st) st = measure_variants(&m, has, &any, e);
    if (!st && !any) st = err_set(e, ERR_SPEC, "%s: variants: none of them can be measured on %s", s->source, directory);
    eval_scorer_close(&m.scorer);
    return st;
}

/* --- the whole --- */

static status open_side(struct model **m, struct eval_run *r, const char *directory, const struct shape *shape, struct err *e)
{
    struct room room;

    if (room_eval(&room, r->job->spec, shape, r->longest, e)) return e->code;
    r->window = room.window;
    return room_open(r->job->cluster, directory, &room, m, e);
}

static status prepare(struct model **m, struct eval_run *r, struct shape *shape, struct err *e)
{
    const struct spec *s = r->job->spec;
    bool text = s->eval.text.file || s->eval.text.sample_tokens > 0;

    if (shape_read(shape, s->model, e)) return e->code;
    if (ready_gate(s, shape, e)) return e->code;
    struct room room;
    if (room_eval(&room, s, shape, 0, e)) return e->code;
    if (tokenizer_open(&r->tokenizer, s->model, e) || eval_check_ids(r, shape, s->model, e)) return e->code;
    /* hostile or missing item files are known before the model is opened */
    if (items_read_spec(&r->items, s, e)) return e->code;
    int positions = room_positions(s, shape);
    if (items_longest(&r->longest, &r->items, r->tokenizer, positions, e)) return e->code;
    if ((r->items.n && eval_make_pieces(r, positions, e)) || open_side(m, r, s->model, shape, e)) return e->code;
    if (!text) return OK;
    if (job_text(r->job, &s->eval.text, "eval", *m, r->tokenizer, &r->corpus, e)) return e->code;
    eval_make_windows(r);
    return OK;
}

static status measure_other(struct eval_run *r, struct model *m, const struct shape *shape, struct err *e)
{
    const struct spec *s = r->job->spec;
    struct shape other;

    if (s->eval.compare_router) return measure_side(r, m, s->model, s->eval.compare_router, e);
    if (!s->eval.compare_model) return OK;
    if (shape_read(&other, s->eval.compare_model, e) || eval_check_ids(r, &other, s->eval.compare_model, e) ||
        eval_check_same_tokens(r, s->eval.compare_model, e))
        return e->code;
    struct room mine;
    if (room_eval(&mine, s, shape, r->longest, e)) return e->code;
    if (mine.limits.positions > other.positions)
        return err_set(
            e, ERR_SPEC,
            "%s: compare_model: %s takes %d positions, expected %d as model uses, or a smaller window or limits.positions",
            s->source, s->eval.compare_model, other.positions, mine.limits.positions);
    if (open_side(&m, r, s->eval.compare_model, &other, e)) return e->code;
    return measure_side(r, m, s->eval.compare_model, NULL, e);
}

static void run_free(struct eval_run *r)
{
    for (int i = 0; i < r->n_sides; i++)
        for (int v = 0; v < r->side[i].n; v++) eval_variant_clear(&r->side[i].variant[v]);
    reference_close(r);
    free(r->block_tokens);
    items_free(&r->items);
    corpus_free(&r->corpus);
    tokenizer_close(r->tokenizer);
    free(r->windows);
    free(r->pieces);
    free(r->piece_tokens);
}

status job_eval(struct job *j, struct err *e)
{
    struct eval_run *r = calloc(1, sizeof(*r)); /* the sets' table is large for a stack */
    struct shape shape;
    struct model *m = NULL;
    status s;

    BUG_ON(!r);
    r->job = j;
    s = prepare(&m, r, &shape, e);
    if (!s) eval_partial_open(r);
    if (!s) s = measure_side(r, m, j->spec->model, NULL, e);
    if (!s) s = eval_knowledge(r, m, j->spec->model, e);
    if (!s) s = measure_other(r, m, &shape, e);
    if (!s) {
        eval_fill_result(r);
        eval_print(r);
        eval_print_knowledge(r);
        s = eval_write_items(r, e);
        if (!s) s = eval_gate(r, e);
    }
    eval_partial_close(r, !s || s == ERR_GATE);
    run_free(r);
    free(r);
    return s;
}
