/* What result.json says, and OUTPUT/items.json. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "jobs/eval.h"

static struct json_t *interval_json(const struct interval *i, const char *value)
{
    struct json_t *o = json_object_new();

    json_put_real(o, value, i->value);
    json_put_real(o, "low", i->low);
    json_put_real(o, "high", i->high);
    return o;
}

static void put_figure(struct json_t *to, const char *name, const struct eval_run *r, enum eval_metric m, enum eval_ratio how,
                       const struct eval_variant *v, const struct eval_variant *a, const struct eval_variant *b)
{
    struct interval i = eval_figure(r, m, how, v, a, b);

    json_put(to, name, interval_json(&i, how == RATIO_LESS ? "difference" : "value"));
}

static bool any(const struct eval_run *r, enum item_kind kind)
{
    for (size_t i = 0; i < r->items.n; i++)
        if (r->items.item[i].kind == kind) return true;
    return false;
}

/* --- the plain figures --- */

static double accuracy_of(const struct eval_run *r, const struct eval_variant *v, int set, enum item_kind kind)
{
    double hits = 0, n = 0;

    for (size_t i = 0; i < r->items.n; i++) {
        const struct item *item = &r->items.item[i];

        if (item->kind != kind || (set >= 0 && item->set != set)) continue;
        hits += eval_right(r, item, v);
        n++;
    }
    return n > 0 ? hits / n : NAN;
}

static struct json_t *pairs_json(const struct eval_run *r, const struct eval_variant *v)
{
    struct json_t *o = json_object_new();

    for (int s = 0; s < r->items.n_sets; s++)
        if (r->items.sets[s].kind == ITEM_PAIR) json_put_real(o, r->items.sets[s].name, accuracy_of(r, v, s, ITEM_PAIR));
    json_put_real(o, "all", accuracy_of(r, v, -1, ITEM_PAIR));
    return o;
}

static struct json_t *sets_json(const struct eval_run *r, const struct eval_variant *v, enum item_kind kind)
{
    struct json_t *o = json_object_new();

    for (int s = 0; s < r->items.n_sets; s++) {
        double normalized = 0, logp = 0, n = (double)r->items.sets[s].n;
        struct json_t *set;

        if (r->items.sets[s].kind != kind) continue;
        for (size_t i = 0; i < r->items.n; i++) {
            const struct item *item = &r->items.item[i];

            if (item->set != s) continue;
            if (kind == ITEM_CHOICE) normalized += eval_item_right(item, v->pieces, true);
            else logp += v->pieces[item->first].logp;
        }
        set = json_object_new();
        json_put_int(set, "items", (int64_t)r->items.sets[s].n);
        json_put_real(set, "acc", accuracy_of(r, v, s, kind));
        if (kind == ITEM_CHOICE) json_put_real(set, "acc_norm", normalized / n);
        else json_put_real(set, "ppl", exp(-logp / n));
        json_put(o, r->items.sets[s].name, set);
    }
    return o;
}

static struct json_t *overhead_json(const struct eval_overhead *x)
{
    struct json_t *o = json_object_new();

    json_put_real(o, "router", x->router);
    json_put_real(o, "compensation", x->compensation);
    json_put_real(o, "total", x->router + x->compensation);
    return o;
}

/* One object per figure, keyed by variant. */
static void plain_json(struct json_t *to, const struct eval_run *r, const struct eval_side *side)
{
    struct json_t *ppl = json_object_new(), *acc = json_object_new(), *bits = json_object_new(), *speed = json_object_new(),
                  *share = json_object_new(), *of_items = json_object_new(), *pairs = json_object_new(),
                  *choices = json_object_new(), *words = json_object_new(), *overhead = json_object_new();
    double tokens = (double)r->corpus.n_tokens;

    for (int i = 0; i < side->n; i++) {
        const struct eval_variant *x = &side->variant[i];

        if (!x->done) continue;
        json_put_real(share, x->name, x->active_share);
        if (r->n_pieces) json_put_real(of_items, x->name, x->items_share);
        if (eval_is_routed(x->kind)) json_put(overhead, x->name, overhead_json(&x->overhead));
        if (r->n_windows) {
            json_put_real(ppl, x->name, exp(x->nats / tokens));
            json_put_real(acc, x->name, (double)x->hits / tokens);
            json_put_real(bits, x->name, x->nats / log(2) / (double)r->corpus.bytes);
            json_put_real(speed, x->name, tokens / x->seconds);
        }
        if (any(r, ITEM_PAIR)) json_put(pairs, x->name, pairs_json(r, x));
        if (any(r, ITEM_CHOICE)) json_put(choices, x->name, sets_json(r, x, ITEM_CHOICE));
        if (any(r, ITEM_TARGET)) json_put(words, x->name, sets_json(r, x, ITEM_TARGET));
    }
    json_put(to, "perplexity", ppl);
    json_put(to, "accuracy", acc);
    json_put(to, "bits_per_byte", bits);
    json_put(to, "tokens_per_second", speed);
    json_put(to, "active_share", share);
    json_put(to, "active_share_of_items", of_items);
    json_put(to, "overhead", overhead);
    json_put(to, "minimal_pairs", pairs);
    json_put(to, "multiple_choice", choices);
    json_put(to, "last_word", words);
}

/* --- figures with intervals --- */

static struct json_t *figures_of(const struct eval_run *r, const struct eval_variant *v)
{
    struct json_t *o = json_object_new();

    for (int m = 0; m < METRICS; m++)
        if (eval_has(r, (enum eval_metric)m, v))
            put_figure(o, eval_metric_name((enum eval_metric)m), r, (enum eval_metric)m, RATIO_PLAIN, v, NULL, NULL);
    return o;
}

/* What v keeps of the dense model. */
static struct json_t *kept_of(const struct eval_run *r, const struct eval_variant *v, const struct eval_variant *dense)
{
    static const enum eval_metric metrics[] = {METRIC_ACCURACY, METRIC_PAIRS, METRIC_CHOICES, METRIC_WORDS};
    struct json_t *o = json_object_new();

    for (int i = 0; i < 4; i++) {
        if (!eval_has(r, metrics[i], v)) continue;
        struct json_t *of = json_object_new();

        put_figure(of, "raw", r, metrics[i], RATIO_OVER, v, dense, NULL);
        if (eval_chance(r, metrics[i]) > 0) {
            put_figure(of, "corrected", r, metrics[i], RATIO_CORRECTED, v, dense, NULL);
            json_put_real(of, "chance", eval_chance(r, metrics[i]));
        }
        json_put(o, eval_metric_name(metrics[i]), of);
    }
    return o;
}

static struct json_t *gap_of(const struct eval_run *r, const struct eval_variant *v, const struct eval_variant *from,
                             const struct eval_variant *to)
{
    struct json_t *o = json_object_new();

    put_figure(o, "nats", r, METRIC_NATS, RATIO_GAP, v, from, to);
    put_figure(o, "accuracy", r, METRIC_ACCURACY, RATIO_GAP, v, from, to);
    return o;
}

static struct json_t *ratio_of_perplexities(const struct eval_run *r, const struct eval_variant *v,
                                            const struct eval_variant *dense)
{
    struct interval i = eval_figure(r, METRIC_NATS, RATIO_LESS, v, dense, NULL);

    i = (struct interval){exp(i.value), exp(i.low), exp(i.high)};
    return interval_json(&i, "value");
}

static void figures_json(struct json_t *to, const struct eval_run *r, const struct eval_side *side)
{
    const struct eval_variant *dense = eval_dense(r, side), *from = eval_find(side, VARIANT_STATIC),
                              *ceiling = eval_find(side, VARIANT_NEURONS);
    struct json_t *figures = json_object_new(), *ratio = json_object_new(), *kept = json_object_new(), *gap = json_object_new();

    for (int i = 0; i < side->n; i++) {
        const struct eval_variant *v = &side->variant[i];

        if (!v->done) continue;
        json_put(figures, v->name, figures_of(r, v));
        if (dense && v != dense && r->n_windows) json_put(ratio, v->name, ratio_of_perplexities(r, v, dense));
        if (dense && v != dense) json_put(kept, v->name, kept_of(r, v, dense));
        if (from && ceiling && r->n_windows && v != from && v != ceiling) json_put(gap, v->name, gap_of(r, v, from, ceiling));
    }
    json_put(to, "figures", figures);
    json_put(to, "ppl_ratio", ratio);
    json_put(to, "kept", kept);
    json_put(to, "gap_closed", gap);
}

/* --- comparisons --- */

/* b - a, paired over blocks of the text and over items. */
static struct json_t *compare(const struct eval_run *r, const struct eval_variant *a, const struct eval_variant *b)
{
    struct json_t *o = json_object_new();

    for (int i = 0; i < METRICS; i++) {
        enum eval_metric m = (enum eval_metric)i;

        if (!eval_has(r, m, a) || !eval_has(r, m, b) || (m == METRIC_KL && a->kl_tokens != b->kl_tokens)) continue;
        put_figure(o, m == METRIC_NATS ? "nats_per_token" : eval_metric_name(m), r, m, RATIO_LESS, b, a, NULL);
    }
    return o;
}

static void put_compare(struct json_t *to, const struct eval_run *r, const struct eval_variant *a, const struct eval_variant *b)
{
    struct str name = {0};

    if (!a || !b || a == b || !a->done || !b->done) return;
    str_addf(&name, "%s_vs_%s", b->name, a->name);
    if (!json_at(to, name.text)) json_put(to, name.text, compare(r, a, b));
    str_free(&name);
}

static void compare_json(struct json_t *to, const struct eval_run *r)
{
    const struct eval_side *side = &r->side[0];
    const char *baseline = r->job->spec->eval.baseline;
    const struct eval_variant *of[] = {eval_dense(r, side), baseline ? eval_find_name(side, baseline) : NULL};

    for (int i = 0; i < side->n; i++) {
        for (int k = 0; k < 2; k++) put_compare(to, r, of[k], &side->variant[i]);
        for (int k = 0; k < side->n; k++) /* against the static control, with every f, what is trained */
            if (side->variant[i].kind == VARIANT_ROUTER && side->variant[k].kind == VARIANT_STATIC)
                put_compare(to, r, &side->variant[k], &side->variant[i]);
    }
}

static void other_json(struct json_t *to, const struct eval_run *r)
{
    const struct eval_side *side = &r->side[1];
    struct json_t *differences = json_object_new();

    json_put_text(to, "name", side->name);
    plain_json(to, r, side);
    for (int i = 0; i < side->n; i++) {
        const struct eval_variant *mine = eval_find_name(&r->side[0], side->variant[i].name);

        if (mine && side->variant[i].done) json_put(differences, mine->name, compare(r, mine, &side->variant[i]));
    }
    json_put(to, "differences", differences);
}

/* --- routing --- */

static struct json_t *load_json(const struct eval_side *side, const double *load)
{
    struct json_t *layers = json_array_new();

    for (int l = 0; l < side->layers; l++) {
        struct json_t *a = json_array_new();

        for (int i = 0; i < side->experts; i++) json_append(a, json_real_new(load[l * side->experts + i]));
        json_append(layers, a);
    }
    return layers;
}

static struct json_t *agreement_json(const struct eval_side *side, const double *agreement)
{
    struct json_t *a = json_array_new();

    for (int l = 0; l < side->layers; l++) json_append(a, json_real_new(agreement[l]));
    return a;
}

static void routing_json(struct json_t *to, const struct eval_side *side)
{
    const struct eval_variant *x = eval_find(side, VARIANT_ROUTER);
    struct json_t *loads = json_object_new(), *agreements = json_object_new();

    for (int i = 0; i < side->n; i++) {
        const struct eval_variant *v = &side->variant[i];

        if (v->done && v->load) json_put(loads, v->name, load_json(side, v->load));
        if (v->done && v->agreement) json_put(agreements, v->name, agreement_json(side, v->agreement));
    }
    json_put(to, "loads", loads);
    json_put(to, "agreements", agreements);
    if (x && x->agreement) {
        json_put(to, "agreement", agreement_json(side, x->agreement));
        json_put_int(to, "agreement_tokens", x->agreement_tokens);
    }
    if (x && x->load) json_put(to, "load", load_json(side, x->load));
}

/* --- the whole --- */

void eval_fill_result(const struct eval_run *r)
{
    struct json_t *to = r->job->result, *c = json_object_new();

    plain_json(to, r, &r->side[0]);
    figures_json(to, r, &r->side[0]);
    routing_json(to, &r->side[0]);
    if (r->n_windows) {
        struct json_t *text = json_object_new();
        size_t kl_tokens = 0;

        for (int i = 0; i < r->side[0].n; i++)
            if (r->side[0].variant[i].kl_tokens > kl_tokens) kl_tokens = r->side[0].variant[i].kl_tokens;

        json_put_int(text, "tokens", (int64_t)r->corpus.n_tokens);
        json_put_int(text, "bytes", (int64_t)r->corpus.bytes);
        json_put_text(text, "digest", r->corpus.digest);
        json_put_int(text, "window", r->window);
        json_put_int(text, "kl_tokens", (int64_t)kl_tokens);
        json_put(to, "text", text);
    }
    if (r->items.n) json_put_int(to, "items_left_out", (int64_t)r->left_out);
    compare_json(c, r);
    if (r->n_sides == 2) {
        struct json_t *other = json_object_new();

        other_json(other, r);
        routing_json(other, &r->side[1]);
        json_put(c, "other", other);
    }
    json_put(to, "compare", c);
}

/* OUTPUT/items.json: every sum of log p, {variant: {id: [good, bad] or [choices] or [target]}}. */
status eval_write_items(const struct eval_run *r, struct err *e)
{
    char *path = str_join(r->job->spec->output, "items.json");
    struct json_t *o = json_object_new();
    size_t again = 0;

    for (int v = 0; v < r->side[0].n; v++) {
        const struct eval_variant *x = &r->side[0].variant[v];
        struct json_t *of = x->done && r->n_pieces ? json_object_new() : NULL;

        for (size_t i = 0; of && i < r->items.n; i++) {
            const struct item *item = &r->items.item[i];
            struct json_t *sums = json_array_new();

            again += !json_length(o) && json_at(of, item->id); /* counted once */
            for (int t = 0; t < item->n; t++) json_append(sums, json_real_new(x->pieces[item->first + (size_t)t].logp));
            json_put(of, item->id, sums);
        }
        if (of) json_put(o, x->name, of);
    }
    if (again)
        log_warn(r->job->log, "%s: %zu items have the id of an item before them, whose place they take there", path, again);
    status s = r->n_pieces ? json_write(path, o, e) : OK;
    json_free(o);
    free(path);
    return s;
}
