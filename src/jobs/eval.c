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
#include "jobs/eval.h"
#include "jobs/room.h"
#include "model/router_file.h"

enum { AGREEMENT_TOKENS = 8192 };

/* --- what is scored --- */

static void make_windows(struct eval_run *r)
{
    r->n_windows = corpus_windows(&r->corpus, r->window);
    r->windows = calloc(r->n_windows + 1, sizeof(*r->windows));
    BUG_ON(!r->windows);
    for (size_t i = 0; i < r->n_windows; i++) {
        size_t begin = i * (size_t)r->window, n = r->corpus.n_tokens - begin;

        r->windows[i].target = r->corpus.tokens + begin;
        r->windows[i].n = (int)(n < (size_t)r->window ? n : (size_t)r->window);
    }
}

struct tokens {
    int32_t *id;
    size_t n, room;
};

static void add_tokens(struct tokens *to, const int32_t *id, size_t n)
{
    if (to->n + n > to->room) {
        to->room = 2 * (to->n + n) + 1024;
        to->id = realloc(to->id, to->room * sizeof(*to->id));
        BUG_ON(!to->id);
    }
    if (n) memcpy(to->id + to->n, id, n * sizeof(*id));
    to->n += n;
}

/* One continuation behind its context: whole = context + blank + text is tokenized at once, the continuation is what stands behind the context's
 * own number of tokens.  What does not fit is dropped from the left of the context; *fits: the continuation alone does. */
static status make_piece(bool *fits, struct eval_sequence *q, size_t *begin, struct tokens *to, const struct eval_run *r,
                         const struct item *i, const char *text, int positions, struct err *e)
{
    struct str whole = {0};
    int32_t *ids = NULL, *context = NULL;
    size_t n = 0, before = 0;
    status s = OK;

    if (i->context) {
        str_addf(&whole, "%s %s", i->context, text);
        s = tokenizer_encode(r->tokenizer, &context, &before, i->context, strlen(i->context), e);
    } else {
        str_addz(&whole, text);
    }
    if (!s) s = tokenizer_encode(r->tokenizer, &ids, &n, whole.text, whole.length, e);
    if (!s && before > n) before = n;
    *fits = s || n - before <= (size_t)positions;
    if (!s && *fits) {
        size_t room = (size_t)positions - (n - before), dropped = before > room ? before - room : 0;

        *begin = to->n;
        add_tokens(to, ids + dropped, n - dropped);
        *q = (struct eval_sequence){.n = (int)(n - dropped), .from = (int)(before - dropped)};
    }
    str_free(&whole);
    free(ids);
    free(context);
    return s;
}

static status make_pieces(struct eval_run *r, int positions, struct err *e)
{
    struct tokens all = {0};
    size_t *begin = NULL, n = 0, kept = 0, i = 0;
    char first[256] = "";
    status s = OK;

    for (size_t k = 0; k < r->items.n; k++) r->n_pieces += (size_t)r->items.item[k].n;
    r->pieces = calloc(r->n_pieces + 1, sizeof(*r->pieces));
    begin = calloc(r->n_pieces + 1, sizeof(*begin));
    BUG_ON(!r->pieces || !begin);
    for (; i < r->items.n && !s; i++) {
        struct item *item = &r->items.item[i];
        bool fits = true;

        item->first = n;
        for (int t = 0; t < item->n && !s && fits; t++, n++)
            s = make_piece(&fits, &r->pieces[n], &begin[n], &all, r, item, item->text[t], positions, e);
        if (fits) {
            r->items.item[kept++] = *item;
        } else { /* sums over different numbers of tokens could not be compared: the whole item goes */
            n = item->first;
            if (!r->left_out++) snprintf(first, sizeof(first), "%.200s:%d", item->file, item->line);
            items_leave_out(&r->items, item);
        }
        if (i % 256 == 0) cluster_alive(r->job->cluster);
    }
    memmove(r->items.item + kept, r->items.item + i, (r->items.n - i) * sizeof(*r->items.item)); /* after an error: the rest */
    r->items.n = kept + r->items.n - i;
    r->n_pieces = n;
    if (!s && r->left_out && !kept)
        s = err_set(e, ERR_LIMIT, "%s: has more tokens to score than the model takes positions (%d), and so have all other items",
                    first, positions);
    else if (!s && r->left_out)
        log_warn(
            r->job->log,
            "items left out because they have more tokens to score than the model takes positions (%d): %zu, the first is %s",
            positions, r->left_out, first);
    r->piece_tokens = all.id;
    for (size_t k = 0; k < n && !s; k++) r->pieces[k].target = all.id + begin[k];
    free(begin);
    return s;
}

static status check_ids(const struct eval_run *r, const struct shape *shape, const char *directory, struct err *e)
{
    if (tokenizer_vocab(r->tokenizer) > shape->vocab)
        return err_set(e, ERR_FORMAT, "%s: its tokenizer has %d tokens, the model %d", directory, tokenizer_vocab(r->tokenizer),
                       shape->vocab);
    return OK;
}

/* The other side is scored on this side's tokens: they must mean the same to it. */
static status check_same_tokens(const struct eval_run *r, const char *directory, struct err *e)
{
    struct tokenizer *other;
    struct str a = {0}, b = {0};
    status s = tokenizer_open(&other, directory, e);

    if (s) return s;
    if (tokenizer_vocab(other) != tokenizer_vocab(r->tokenizer))
        s = err_set(e, ERR_SPEC, "%s: compare_model: %s has a tokenizer of %d tokens, expected the same as model's, %d",
                    r->job->spec->source, directory, tokenizer_vocab(other), tokenizer_vocab(r->tokenizer));
    for (int32_t id = 0; !s && id < tokenizer_vocab(other); id++) {
        str_clear(&a);
        str_clear(&b);
        tokenizer_piece(r->tokenizer, &a, id);
        tokenizer_piece(other, &b, id);
        if (a.length != b.length || (a.length && memcmp(a.text, b.text, a.length)) ||
            tokenizer_is_special(r->tokenizer, id) != tokenizer_is_special(other, id))
            s = err_set(e, ERR_SPEC,
                        "%s: compare_model: token %d of %s is \"%s\", expected the same tokenizer as model's: \"%s\"",
                        r->job->spec->source, id, directory, b.text ? b.text : "", a.text ? a.text : "");
    }
    str_free(&a);
    str_free(&b);
    tokenizer_close(other);
    return s;
}

/* --- which variants --- */

static bool wanted(const struct spec *s, enum spec_variant v)
{
    for (int i = 0; i < s->eval.variants.n; i++)
        if (!strcmp(s->eval.variants.items[i], spec_variant_name(v))) return true;
    return false;
}

/* NULL if the model can be routed so, or why not. */
static const char *missing(enum spec_variant v, const struct shape *shape, bool has_router)
{
    if (v == VARIANT_DENSE) return NULL;
    if (!shape->experts) return "the model is dense";
    if (v == VARIANT_STATIC && !shape->calibrated) return "the model was factorized without calibration";
    if (v == VARIANT_ROUTER && !has_router) return "the model has no trained router; run a finetune job";
    return NULL;
}

static status has_router(bool *has, const char *directory, const char *version, struct err *e)
{
    char current[64];

    *has = version != NULL;
    if (version) return OK;
    if (router_current(current, directory, e)) return e->code;
    *has = current[0] != 0;
    return OK;
}

static struct routing route_of(enum spec_variant v, const struct shape *shape, const struct router *router, const struct spec *s)
{
    static const enum route routes[VARIANTS] = {ROUTE_ALL, ROUTE_STATIC, ROUTE_RANDOM, ROUTE_ROUTER, ROUTE_GRAM};

    bool own = v == VARIANT_ROUTER && (router->mu || router->low_rank); /* compensation */

    return (struct routing){.route = routes[v],
                            .router = router,
                            .scale = shape->scale,
                            .compensate = shape->compensate || own,
                            .batch_experts = s->eval.batch_experts < 1 ? s->eval.batch_experts : 0,
                            .seed = (uint64_t)s->seed};
}

/* --- measuring --- */

static void keep_load(struct eval_variant *x, const struct moe_stats *stats, const struct shape *shape)
{
    size_t n = (size_t)shape->layers * (size_t)shape->experts;
    double rows = (double)stats->tokens / shape->layers;

    x->load = calloc(n, sizeof(*x->load));
    BUG_ON(!x->load);
    for (size_t i = 0; i < n; i++) x->load[i] = (double)stats->load[i] / rows;
}

static status measure_text(struct eval_run *r, struct eval_variant *x, struct eval_scorer *scorer, const struct routing *how,
                           const char *name, struct err *e)
{
    double start = clock_now();
    char what[64];

    if (!r->n_windows) return OK;
    x->windows = calloc(r->n_windows, sizeof(*x->windows));
    BUG_ON(!x->windows);
    snprintf(what, sizeof(what), "eval: %.20s, text", name);
    if (eval_score(scorer, x->windows, r->windows, r->n_windows, how, 0, what, e)) return e->code;
    x->seconds = clock_now() - start;
    for (size_t i = 0; i < r->n_windows; i++) {
        x->nats -= x->windows[i].logp;
        x->hits += x->windows[i].hits;
    }
    return OK;
}

static status measure_agreement(struct eval_run *r, struct eval_variant *x, struct eval_scorer *scorer, const struct routing *how,
                                struct err *e)
{
    const struct eval_sequence *q = r->n_windows ? r->windows : r->pieces;
    size_t most = r->n_windows ? r->n_windows : r->n_pieces, n = 0;

    for (; n < most && x->agreement_tokens < AGREEMENT_TOKENS; n++) x->agreement_tokens += q[n].n;
    x->agreement = calloc((size_t)model_shape(scorer->model)->layers, sizeof(*x->agreement));
    BUG_ON(!x->agreement);
    return eval_agreement(scorer, x->agreement, q, n, how, e);
}

static void report_variant(struct eval_run *r, const struct eval_side *side, const struct eval_variant *x, const char *name)
{
    struct json_t *o = json_object_new();

    json_put_text(o, "side", side->name);
    json_put_text(o, "variant", name);
    json_put_real(o, "active_share", x->active_share);
    if (r->n_windows) {
        json_put_real(o, "nats_per_token", x->nats / (double)r->corpus.n_tokens);
        json_put_real(o, "accuracy", (double)x->hits / (double)r->corpus.n_tokens);
        json_put_real(o, "tokens_per_second", (double)r->corpus.n_tokens / x->seconds);
    }
    job_event(r->job, "variant", o);
}

static status measure(struct eval_run *r, struct eval_side *side, enum spec_variant v, struct eval_scorer *scorer,
                      const struct router *router, struct err *e)
{
    const struct shape *shape = model_shape(scorer->model);
    struct routing how = route_of(v, shape, router, r->job->spec);
    struct moe *moe = model_moe(scorer->model);
    struct eval_variant *x = &side->variant[v];
    const char *name = spec_variant_name(v);
    char what[64];

    if (v == VARIANT_ROUTER && cluster_router(r->job->cluster, router, e)) return e->code;
    moe_stats_clear(moe);
    if (measure_text(r, x, scorer, &how, name, e)) return e->code;
    if (r->n_pieces) {
        x->pieces = calloc(r->n_pieces, sizeof(*x->pieces));
        BUG_ON(!x->pieces);
        if (r->n_windows && v != VARIANT_DENSE && v != VARIANT_STATIC) keep_load(x, moe_stats(moe), shape);
        snprintf(what, sizeof(what), "eval: %.20s, items", name);
        if (eval_score(scorer, x->pieces, r->pieces, r->n_pieces, &how, 1, what, e)) return e->code;
    }
    const struct moe_stats *stats = moe_stats(moe);
    if (!x->load && v != VARIANT_DENSE && v != VARIANT_STATIC) keep_load(x, stats, shape);
    x->active_share = stats->tokens ? (double)stats->neurons / ((double)stats->tokens * shape->neurons) : 0;
    if (v == VARIANT_ROUTER && measure_agreement(r, x, scorer, &how, e)) return e->code;
    x->done = true;
    report_variant(r, side, x, name);
    return OK;
}

/* All wanted variants of the open model; `only` restricts to one (VARIANTS: no restriction). */
static status measure_side(struct eval_run *r, struct model *m, const char *directory, const char *version, bool router_only,
                           struct err *e)
{
    const struct spec *s = r->job->spec;
    const struct shape *shape = model_shape(m);
    struct eval_side *side = &r->side[r->n_sides++];
    struct eval_scorer scorer = {0};
    struct router router = {0};
    bool has = false, any = false;
    status st = OK;

    side->name = version ? version : directory;
    side->layers = shape->layers;
    side->experts = shape->experts;
    if (shape->experts && wanted(s, VARIANT_ROUTER)) {
        if (has_router(&has, directory, version, e)) return e->code;
        if (has && router_read(&router, directory, version, shape, e)) return e->code;
        if (has && router_pack(&router, room_router(s), cluster_gemm(r->job->cluster), e)) {
            router_free(&router);
            return e->code;
        }
    }
    st = eval_scorer_open(&scorer, r->job, m, e);
    for (int v = 0; v < VARIANTS && !st; v++) {
        const char *why = missing((enum spec_variant)v, shape, has);

        if (!wanted(s, (enum spec_variant)v) || (router_only && v != VARIANT_ROUTER)) continue;
        if (why) {
            log_line(r->job->log, "%s: %s is left out: %s", directory, spec_variant_name((enum spec_variant)v), why);
            continue;
        }
        any = true;
        if (eval_partial_take(r, r->n_sides - 1, v)) {
            log_line(r->job->log, "%s: %s was measured before the evaluation was stopped", directory,
                     spec_variant_name((enum spec_variant)v));
            continue;
        }
        st = measure(r, side, (enum spec_variant)v, &scorer, &router, e);
        if (!st) st = eval_partial_keep(r, r->n_sides - 1, v, e);
    }
    if (!st && !any) st = err_set(e, ERR_SPEC, "%s: variants: none of them can be measured on %s", s->source, directory);
    eval_scorer_close(&scorer);
    router_free(&router);
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
    struct room room;
    if (room_eval(&room, s, shape, 0, e)) return e->code;
    if (tokenizer_open(&r->tokenizer, s->model, e) || check_ids(r, shape, s->model, e)) return e->code;
    /* hostile or missing item files are known before the model is opened */
    for (int i = 0; i < s->eval.minimal_pairs.n; i++)
        if (items_read(&r->items, s->eval.minimal_pairs.items[i], true, s->eval.items, e)) return e->code;
    for (int i = 0; i < s->eval.multiple_choice.n; i++)
        if (items_read(&r->items, s->eval.multiple_choice.items[i], false, s->eval.items, e)) return e->code;
    int positions = room_positions(s, shape);
    if (items_longest(&r->longest, &r->items, r->tokenizer, positions, e)) return e->code;
    if ((r->items.n && make_pieces(r, positions, e)) || open_side(m, r, s->model, shape, e)) return e->code;
    if (!text) return OK;
    if (job_text(r->job, &s->eval.text, "eval", *m, r->tokenizer, &r->corpus, e)) return e->code;
    make_windows(r);
    return OK;
}

static status measure_other(struct eval_run *r, struct model *m, const struct shape *shape, struct err *e)
{
    const struct spec *s = r->job->spec;
    struct shape other;

    if (s->eval.compare_router) return measure_side(r, m, s->model, s->eval.compare_router, true, e);
    if (!s->eval.compare_model) return OK;
    if (shape_read(&other, s->eval.compare_model, e) || check_ids(r, &other, s->eval.compare_model, e) ||
        check_same_tokens(r, s->eval.compare_model, e))
        return e->code;
    struct room mine;
    if (room_eval(&mine, s, shape, r->longest, e)) return e->code;
    if (mine.limits.positions > other.positions)
        return err_set(
            e, ERR_SPEC,
            "%s: compare_model: %s takes %d positions, expected %d as model uses, or a smaller window or limits.positions",
            s->source, s->eval.compare_model, other.positions, mine.limits.positions);
    if (open_side(&m, r, s->eval.compare_model, &other, e)) return e->code;
    return measure_side(r, m, s->eval.compare_model, NULL, false, e);
}

static status gate(const struct eval_run *r, struct err *e)
{
    const struct spec *s = r->job->spec;
    const struct eval_variant *dense = &r->side[0].variant[VARIANT_DENSE], *router = &r->side[0].variant[VARIANT_ROUTER];

    if (s->eval.max_drop < 0) return OK;
    if (!dense->done || !router->done || !r->n_windows)
        return err_set(e, ERR_SPEC,
                       "%s: max_drop: the gate needs text and the variants dense and router, and one could not be measured",
                       s->source);
    double drop = dense->hits ? 1 - (double)router->hits / (double)dense->hits : 0, n = (double)r->corpus.n_tokens;
    struct json_t *o = json_object_new();
    json_put_real(o, "drop", drop);
    json_put_real(o, "max_drop", s->eval.max_drop);
    json_put_bool(o, "passed", drop <= s->eval.max_drop);
    json_put(r->job->result, "gate", o);
    if (drop <= s->eval.max_drop) return OK;
    return err_set(
        e, ERR_GATE,
        "%s: max_drop: the router's next-token accuracy %.4f is %.2f %% below the dense model's %.4f, at most %.2f %% allowed",
        s->source, (double)router->hits / n, 100 * drop, (double)dense->hits / n, 100 * s->eval.max_drop);
}

static void run_free(struct eval_run *r)
{
    for (int i = 0; i < r->n_sides; i++)
        for (int v = 0; v < VARIANTS; v++) {
            struct eval_variant *x = &r->side[i].variant[v];

            free(x->windows);
            free(x->pieces);
            free(x->load);
            free(x->agreement);
        }
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
    if (!s) s = measure_side(r, m, j->spec->model, NULL, false, e);
    if (!s) s = measure_other(r, m, &shape, e);
    if (!s) {
        eval_fill_result(r);
        eval_print(r);
        s = eval_write_items(r, e);
        if (!s) s = gate(r, e);
    }
    eval_partial_close(r, !s || s == ERR_GATE);
    run_free(r);
    free(r);
    return s;
}
