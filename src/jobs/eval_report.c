/* From sums to figures: accuracies, intervals, result.json and the table. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "jobs/eval.h"

/* --- figures --- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

void eval_bootstrap(struct interval *out, const double *difference, const double *weight, size_t n, int64_t resamples,
                    uint64_t seed, void (*alive)(void *ctx), void *ctx)
{
    double sum = 0, of = 0, *got;
    struct rng r;

    for (size_t i = 0; i < n; i++) {
        sum += difference[i];
        of += weight[i];
    }
    *out = (struct interval){of > 0 ? sum / of : NAN, NAN, NAN};
    if (resamples < 1 || n < 2 || of <= 0) return; /* one observation says nothing about its spread */
    got = malloc((size_t)resamples * sizeof(*got));
    BUG_ON(!got);
    rng_seed(&r, seed, n);
    for (int64_t b = 0; b < resamples; b++) {
        sum = of = 0;
        for (size_t i = 0; i < n; i++) {
            size_t pick = rng_below(&r, n);

            sum += difference[pick];
            of += weight[pick];
        }
        got[b] = sum / of;
        if (b % 1000 == 0 && alive) alive(ctx);
    }
    qsort(got, (size_t)resamples, sizeof(*got), by_value);
    out->low = got[(int64_t)(0.025 * (double)(resamples - 1) + 0.5)];
    out->high = got[(int64_t)(0.975 * (double)(resamples - 1) + 0.5)];
    free(got);
}

bool eval_item_right(const struct item *i, const struct eval_score *pieces, bool normalized)
{
    const struct eval_score *p = pieces + i->first;
    int best = 0;
    double most = 0;

    if (i->kind == ITEM_PAIR) return p[0].logp > p[1].logp;
    for (int c = 0; c < i->n; c++) { /* the first of equals */
        double x = normalized ? p[c].logp / (double)strlen(i->text[c]) : p[c].logp;

        if (c == 0 || x > most) {
            most = x;
            best = c;
        }
    }
    return best == i->answer;
}

/* Right for the sets' main figure: of a target, every token is the argmax. */
static bool right(const struct eval_run *r, const struct item *i, const struct eval_variant *v)
{
    if (i->kind == ITEM_TARGET) return v->pieces[i->first].hits == r->pieces[i->first].n - r->pieces[i->first].from;
    return eval_item_right(i, v->pieces, false);
}

static bool is_pair(const struct item *i)
{
    return i->kind == ITEM_PAIR;
}

/* Share of right items of a set (-1: all sets) among the pairs, or among the others. */
static double accuracy_of(const struct eval_run *r, const struct eval_variant *v, int set, bool pairs)
{
    double hits = 0, n = 0;

    for (size_t i = 0; i < r->items.n; i++) {
        const struct item *item = &r->items.item[i];

        if (is_pair(item) != pairs || (set >= 0 && item->set != set)) continue;
        hits += right(r, item, v);
        n++;
    }
    return n > 0 ? hits / n : NAN;
}

static double tokens(const struct eval_run *r)
{
    return (double)r->corpus.n_tokens;
}

static double perplexity(const struct eval_run *r, const struct eval_variant *v)
{
    return exp(v->nats / tokens(r));
}

/* --- result.json --- */

static struct json_t *interval_json(const struct interval *i)
{
    struct json_t *o = json_object_new();

    json_put_real(o, "difference", i->value);
    json_put_real(o, "low", i->low);
    json_put_real(o, "high", i->high);
    return o;
}

static void alive(void *ctx)
{
    cluster_alive(((const struct eval_run *)ctx)->job->cluster);
}

/* b - a, paired over windows of the text and over items. */
static struct json_t *compare(const struct eval_run *r, const struct eval_variant *a, const struct eval_variant *b)
{
    size_t room = r->n_windows > r->items.n ? r->n_windows : r->items.n;
    double *difference = malloc((room + 1) * sizeof(double)), *weight = malloc((room + 1) * sizeof(double));
    const struct spec *s = r->job->spec;
    struct json_t *o = json_object_new();
    uint64_t seed = (uint64_t)s->seed;
    struct interval x;

    BUG_ON(!difference || !weight);
    for (int hits = 0; hits < 2 && r->n_windows; hits++) {
        for (size_t w = 0; w < r->n_windows; w++) {
            difference[w] = hits ? b->windows[w].hits - a->windows[w].hits : a->windows[w].logp - b->windows[w].logp;
            weight[w] = r->windows[w].n;
        }
        eval_bootstrap(&x, difference, weight, r->n_windows, s->eval.bootstrap, seed, alive, (void *)r);
        json_put(o, hits ? "accuracy" : "nats_per_token", interval_json(&x));
    }
    for (int pairs = 1; pairs >= 0; pairs--) {
        size_t n = 0;

        for (size_t i = 0; i < r->items.n; i++) {
            const struct item *item = &r->items.item[i];

            if (is_pair(item) != pairs) continue;
            difference[n] = right(r, item, b) - right(r, item, a);
            weight[n++] = 1;
        }
        if (!n) continue;
        eval_bootstrap(&x, difference, weight, n, s->eval.bootstrap, seed, alive, (void *)r);
        json_put(o, pairs ? "minimal_pairs" : "multiple_choice", interval_json(&x));
    }
    free(difference);
    free(weight);
    return o;
}

static struct json_t *pairs_json(const struct eval_run *r, const struct eval_variant *v)
{
    struct json_t *o = json_object_new();

    for (int s = 0; s < r->items.n_sets; s++)
        if (r->items.sets[s].kind == ITEM_PAIR) json_put_real(o, r->items.sets[s].name, accuracy_of(r, v, s, true));
    json_put_real(o, "all", accuracy_of(r, v, -1, true));
    return o;
}

static struct json_t *choices_json(const struct eval_run *r, const struct eval_variant *v)
{
    struct json_t *o = json_object_new();

    for (int s = 0; s < r->items.n_sets; s++) {
        enum item_kind kind = r->items.sets[s].kind;
        double normalized = 0, logp = 0, n = (double)r->items.sets[s].n;
        struct json_t *set;

        if (kind == ITEM_PAIR) continue;
        for (size_t i = 0; i < r->items.n; i++) {
            const struct item *item = &r->items.item[i];

            if (item->set != s) continue;
            if (kind == ITEM_CHOICE) normalized += eval_item_right(item, v->pieces, true);
            else logp += v->pieces[item->first].logp;
        }
        set = json_object_new();
        json_put_int(set, "items", (int64_t)r->items.sets[s].n);
        json_put_real(set, "acc", accuracy_of(r, v, s, false));
        if (kind == ITEM_CHOICE) json_put_real(set, "acc_norm", normalized / n);
        else json_put_real(set, "ppl", exp(-logp / n));
        json_put(o, r->items.sets[s].name, set);
    }
    return o;
}

static bool any_items(const struct eval_run *r, bool pairs)
{
    for (size_t i = 0; i < r->items.n; i++)
        if (is_pair(&r->items.item[i]) == pairs) return true;
    return false;
}

/* One object per figure, keyed by variant. */
static void figures_json(struct json_t *to, const struct eval_run *r, const struct eval_side *side)
{
    struct json_t *ppl = json_object_new(), *acc = json_object_new(), *bits = json_object_new(), *speed = json_object_new(),
                  *share = json_object_new(), *pairs = json_object_new(), *choices = json_object_new();

    for (int v = 0; v < VARIANTS; v++) {
        const struct eval_variant *x = &side->variant[v];
        const char *name = spec_variant_name((enum spec_variant)v);

        if (!x->done) continue;
        json_put_real(share, name, x->active_share);
        if (r->n_windows) {
            json_put_real(ppl, name, perplexity(r, x));
            json_put_real(acc, name, (double)x->hits / tokens(r));
            json_put_real(bits, name, x->nats / log(2) / (double)r->corpus.bytes);
            json_put_real(speed, name, tokens(r) / x->seconds);
        }
        if (any_items(r, true)) json_put(pairs, name, pairs_json(r, x));
        if (any_items(r, false)) json_put(choices, name, choices_json(r, x));
    }
    json_put(to, "perplexity", ppl);
    json_put(to, "accuracy", acc);
    json_put(to, "bits_per_byte", bits);
    json_put(to, "tokens_per_second", speed);
    json_put(to, "active_share", share);
    json_put(to, "minimal_pairs", pairs);
    json_put(to, "multiple_choice", choices);
}

static void routing_json(struct json_t *to, const struct eval_side *side)
{
    const struct eval_variant *x = &side->variant[VARIANT_ROUTER];

    if (x->agreement) {
        struct json_t *a = json_array_new();

        for (int l = 0; l < side->layers; l++) json_append(a, json_real_new(x->agreement[l]));
        json_put(to, "agreement", a);
        json_put_int(to, "agreement_tokens", x->agreement_tokens);
    }
    if (x->load) {
        struct json_t *layers = json_array_new();

        for (int l = 0; l < side->layers; l++) {
            struct json_t *a = json_array_new();

            for (int i = 0; i < side->experts; i++) json_append(a, json_real_new(x->load[l * side->experts + i]));
            json_append(layers, a);
        }
        json_put(to, "load", layers);
    }
}

static void put_compare(struct json_t *to, const char *name, const struct eval_run *r, const struct eval_variant *a,
                        const struct eval_variant *b)
{
    if (a->done && b->done) json_put(to, name, compare(r, a, b));
}

void eval_fill_result(const struct eval_run *r)
{
    struct json_t *to = r->job->result, *c = json_object_new();
    const struct eval_variant *v = r->side[0].variant;

    figures_json(to, r, &r->side[0]);
    routing_json(to, &r->side[0]);
    if (r->n_windows) {
        struct json_t *text = json_object_new();

        json_put_int(text, "tokens", (int64_t)r->corpus.n_tokens);
        json_put_int(text, "bytes", (int64_t)r->corpus.bytes);
        json_put_text(text, "digest", r->corpus.digest);
        json_put_int(text, "window", r->window);
        json_put(to, "text", text);
    }
    if (r->items.n) json_put_int(to, "items_left_out", (int64_t)r->left_out);
    put_compare(c, "router_vs_dense", r, &v[VARIANT_DENSE], &v[VARIANT_ROUTER]);
    put_compare(c, "router_vs_static", r, &v[VARIANT_STATIC], &v[VARIANT_ROUTER]);
    if (r->n_sides == 2) {
        struct json_t *other = json_object_new(), *differences = json_object_new();

        json_put_text(other, "name", r->side[1].name);
        figures_json(other, r, &r->side[1]);
        routing_json(other, &r->side[1]);
        for (int i = 0; i < VARIANTS; i++)
            put_compare(differences, spec_variant_name((enum spec_variant)i), r, &v[i], &r->side[1].variant[i]);
        json_put(other, "differences", differences);
        json_put(c, "other", other);
    }
    json_put(to, "compare", c);
}

/* OUTPUT/items.json: every sum of log p, {variant: {id: [good, bad] or [choices] or [target]}}. */
status eval_write_items(const struct eval_run *r, struct err *e)
{
    char *path = str_join(r->job->spec->output, "items.json");
    struct json_t *o = json_object_new();

    for (int v = 0; v < VARIANTS; v++) {
        const struct eval_variant *x = &r->side[0].variant[v];
        struct json_t *of = x->done && r->n_pieces ? json_object_new() : NULL;

        for (size_t i = 0; of && i < r->items.n; i++) {
            const struct item *item = &r->items.item[i];
            struct json_t *sums = json_array_new();

            for (int t = 0; t < item->n; t++) json_append(sums, json_real_new(x->pieces[item->first + (size_t)t].logp));
            json_put(of, item->id, sums);
        }
        if (of) json_put(o, spec_variant_name((enum spec_variant)v), of);
    }
    status s = r->n_pieces ? json_write(path, o, e) : OK;
    json_free(o);
    free(path);
    return s;
}

/* --- for a person --- */

static void print_side(struct log *l, const struct eval_run *r, const struct eval_side *side)
{
    bool pairs = any_items(r, true), choices = any_items(r, false), text = r->n_windows > 0;
    struct str line = {0};

    log_line(l, "%s", side->name);
    str_addf(&line, "  %-8s %10s", "variant", "FFN active");
    if (text) str_addf(&line, " %11s %9s %9s %9s", "perplexity", "bits/byte", "accuracy", "tokens/s");
    if (pairs) str_addf(&line, " %8s", "pairs");
    if (choices) str_addf(&line, " %8s", "choices");
    log_line(l, "%s", line.text);
    for (int v = 0; v < VARIANTS; v++) {
        const struct eval_variant *x = &side->variant[v];

        if (!x->done) continue;
        str_clear(&line);
        str_addf(&line, "  %-8s %8.1f %%", spec_variant_name((enum spec_variant)v), 100 * x->active_share);
        if (text)
            str_addf(&line, " %11.3f %9.4f %9.4f %9.0f", perplexity(r, x), x->nats / log(2) / (double)r->corpus.bytes,
                     (double)x->hits / tokens(r), tokens(r) / x->seconds);
        if (pairs) str_addf(&line, " %8.4f", accuracy_of(r, x, -1, true));
        if (choices) str_addf(&line, " %8.4f", accuracy_of(r, x, -1, false));
        log_line(l, "%s", line.text);
    }
    str_free(&line);
}

static void print_routing(struct log *l, const struct eval_side *side)
{
    const struct eval_variant *x = &side->variant[VARIANT_ROUTER];

    if (!x->load) return;
    log_line(l, "  router by layer: agreement with the oracle on %lld tokens; share of the tokens per expert",
             (long long)x->agreement_tokens);
    log_line(l, "  %-8s %10s %8s %8s %8s", "layer", "agreement", "least", "mean", "most");
    for (int i = 0; i < side->layers; i++) {
        const double *load = x->load + i * side->experts;
        double least = load[0], most = load[0], sum = 0;

        for (int n = 0; n < side->experts; n++) {
            least = load[n] < least ? load[n] : least;
            most = load[n] > most ? load[n] : most;
            sum += load[n];
        }
        log_line(l, "  %-8d %10.4f %8.4f %8.4f %8.4f", i, x->agreement ? x->agreement[i] : NAN, least, sum / side->experts, most);
    }
}

static void print_difference(struct log *l, const char *what, const struct json_t *o)
{
    static const char *const keys[] = {"nats_per_token", "accuracy", "minimal_pairs", "multiple_choice"};

    for (int k = 0; o && k < 4; k++) {
        const struct json_t *x = json_at(o, keys[k]);

        if (!x) continue;
        if (json_is_real(json_at(x, "low")))
            log_line(l, "  %-18s %-16s %+9.4f   95 %% interval %+9.4f to %+9.4f", what, keys[k],
                     json_number(json_at(x, "difference")), json_number(json_at(x, "low")), json_number(json_at(x, "high")));
        else log_line(l, "  %-18s %-16s %+9.4f", what, keys[k], json_number(json_at(x, "difference")));
    }
}

void eval_print(const struct eval_run *r)
{
    const struct json_t *c = json_at(r->job->result, "compare"), *other = json_at(c, "other");
    struct log *l = r->job->log;

    log_progress_end(l);
    for (int i = 0; i < r->n_sides; i++) {
        print_side(l, r, &r->side[i]);
        print_routing(l, &r->side[i]);
    }
    print_difference(l, "router - dense", json_at(c, "router_vs_dense"));
    print_difference(l, "router - static", json_at(c, "router_vs_static"));
    for (int v = 0; other && v < VARIANTS; v++) {
        const char *name = spec_variant_name((enum spec_variant)v);
        char what[64];

        snprintf(what, sizeof(what), "other - this, %.30s", name);
        print_difference(l, what, json_at(json_at(other, "differences"), name));
    }
}
