/* An eval's result.json as figures per variant.  Older ones have no intervals of their own: then those of the paired differences are used. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

/* In the order in which they are shown: what is, what could be, what it has to beat. */
static const struct {
    const char *name;
    int kind; /* of marks */
    const char *says;
} known[] = {
    {"dense", 0, "the model as it came"},
    {"router", 1, "experts chosen by the trained router"},
    {"neurons", 5, "ceiling: the best single neurons, seen in hindsight"},
    {"oracle_variable", 7, "the best experts in hindsight, as many as a token needs"},
    {"oracle", 2, "the best k experts, seen in hindsight"},
    {"static", 3, "the same neurons for every token"},
    {"random", 4, "experts drawn by lot"},
};
enum { KNOWN = sizeof(known) / sizeof(known[0]), KIND_OTHER = 6, ORDER_VERSION = 1 };

static bool is_version(const char *name)
{
    return !strncmp(name, "router@", 7);
}

/* By the first n characters. */
static bool is_known(int i, const char *name, size_t n)
{
    return !strncmp(known[i].name, name, n) && !known[i].name[n];
}

static int order_of(const char *name)
{
    size_t n = strcspn(name, "@");

    for (int i = 0; i < KNOWN; i++)
        if (is_known(i, name, n)) return 2 * i + (name[n] == '@'); /* router@VERSION, static@F: behind the one without */
    return 2 * ORDER_VERSION + 1;                                  /* and what we do not know behind the router */
}

int report_variant_kind(const char *name)
{
    size_t n = is_version(name) ? strlen(name) : strcspn(name, "@");

    for (int i = 0; i < KNOWN; i++)
        if (is_known(i, name, n)) return known[i].kind;
    return KIND_OTHER;
}

const char *report_variant_says(const char *name)
{
    if (is_version(name)) return "experts chosen by this version of the router";
    for (int i = 0; i < KNOWN; i++)
        if (is_known(i, name, strcspn(name, "@"))) return known[i].says;
    return "";
}

static const struct report_interval unknown = {NAN, NAN, NAN};

static struct report_interval alone(double value)
{
    return (struct report_interval){value, NAN, NAN};
}

static status read_interval(struct report_interval *out, const struct json_t *of, const char *key, const char *source,
                            struct err *e)
{
    const struct json_t *o;
    struct str where = {0};

    *out = unknown;
    status s = report_object(&o, of, key, source, e);
    if (s || !o) return s;
    str_addf(&where, "%s.%.80s", source, key);
    s = report_number(&out->value, o, json_at(o, "difference") ? "difference" : "value", where.text, e);
    if (!s) s = report_number(&out->low, o, "low", where.text, e);
    if (!s) s = report_number(&out->high, o, "high", where.text, e);
    str_free(&where);
    return s;
}

/* The variants: the keys of every map that is keyed by them. */
static status add_names(struct report_eval *x, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    const struct json_t *map;

    if (report_object(&map, o, key, source, e)) return e->code;
    for (void *i = map ? json_first(map) : NULL; i; i = json_next(map, i)) {
        bool there = false;

        for (int v = 0; v < x->n; v++) there |= !strcmp(x->v[v].name, json_key(i));
        if (there) continue;
        if (x->n == REPORT_VARIANTS_MAX) return err_set(e, ERR_FORMAT, "%s.%s: more than %d variants", source, key, x->n);
        x->v[x->n++] = (struct report_variant){.name = json_key(i)};
    }
    return OK;
}

static int by_order(const void *a, const void *b)
{
    const char *x = ((const struct report_variant *)a)->name, *y = ((const struct report_variant *)b)->name;
    int d = order_of(x) - order_of(y);

    return d ? d : strverscmp(x, y);
}

/* MAP.VARIANT: a number. */
static status read_number(double *out, const struct report_run *run, const char *map, const char *variant, struct err *e)
{
    const struct json_t *o;
    struct str where = {0};

    *out = NAN;
    if (report_object(&o, run->o, map, run->source, e)) return e->code;
    str_addf(&where, "%s.%s", run->source, map);
    status s = report_number(out, o, variant, where.text, e);
    str_free(&where);
    return s;
}

/* A.VARIANT[.B[.C]]: an interval. */
static status read_deep(struct report_interval *out, const struct report_run *run, const char *a, const char *variant,
                        const char *b, const char *c, struct err *e)
{
    const struct json_t *o;
    struct str where = {0};

    *out = unknown;
    str_addz(&where, run->source);
    status s = report_object(&o, run->o, a, where.text, e);
    str_addf(&where, ".%s", a);
    const char *path[] = {variant, b, c}, *last = c ? c : b ? b : variant;
    for (int i = 0; i < 3 && path[i] && path[i] != last && !s; i++) {
        s = report_object(&o, o, path[i], where.text, e);
        str_addf(&where, ".%.80s", path[i]);
    }
    if (!s) s = read_interval(out, o, last, where.text, e);
    str_free(&where);
    return s;
}

/* minimal_pairs.VARIANT.all; the mean of acc over the sets of multiple_choice.VARIANT. */
static status read_items(struct report_variant *v, const struct report_run *run, struct err *e)
{
    const struct json_t *o, *sets;
    double x, sum = 0, n = 0;

    if (isnan(v->pairs.value)) {
        if (report_object(&o, run->o, "minimal_pairs", run->source, e) || report_object(&sets, o, v->name, run->source, e))
            return e->code;
        if (report_number(&x, sets, "all", run->source, e)) return e->code;
        v->pairs = alone(x);
    }
    if (!isnan(v->choices.value)) return OK;
    if (report_object(&o, run->o, "multiple_choice", run->source, e) || report_object(&sets, o, v->name, run->source, e))
        return e->code;
    for (void *i = sets ? json_first(sets) : NULL; i; i = json_next(sets, i)) {
        const struct json_t *set;

        if (report_object(&set, sets, json_key(i), run->source, e) || report_number(&x, set, "acc", run->source, e))
            return e->code;
        if (isnan(x) || !json_at(set, "acc_norm")) continue; /* last words are no choices */
        sum += x;
        n++;
    }
    if (n > 0) v->choices = alone(sum / n);
    return OK;
}

static status read_variant(struct report_variant *v, const struct report_run *run, struct err *e)
{
    const char *name = v->name;
    const struct json_t *overhead;

    if (read_number(&v->share, run, "active_share", name, e) || read_number(&v->perplexity, run, "perplexity", name, e) ||
        read_number(&v->accuracy, run, "accuracy", name, e) || read_number(&v->bits, run, "bits_per_byte", name, e) ||
        read_number(&v->speed, run, "tokens_per_second", name, e) || read_deep(&v->kl, run, "figures", name, "kl", NULL, e) ||
        read_deep(&v->pairs, run, "figures", name, "minimal_pairs", NULL, e) ||
        read_deep(&v->choices, run, "figures", name, "multiple_choice", NULL, e) ||
        read_deep(&v->last_word, run, "figures", name, "last_word", NULL, e) ||
        read_deep(&v->pairs_changed, run, "figures", name, "minimal_pairs_changed", NULL, e) ||
        read_deep(&v->choices_changed, run, "figures", name, "multiple_choice_changed", NULL, e) ||
        read_number(&v->share_of_items, run, "active_share_of_items", name, e) ||
        read_deep(&v->times, run, "ppl_ratio", name, NULL, NULL, e) ||
        read_deep(&v->closed, run, "gap_closed", name, "nats", NULL, e))
        return e->code;
    const struct json_t *kept;
    if (report_object(&kept, run->o, "kept", run->source, e) || report_object(&kept, kept, name, run->source, e)) return e->code;
    struct str where = {0};
    status s = OK;
    static const char *const metrics[] = {"accuracy", "minimal_pairs", "multiple_choice"};
    struct report_interval *const to[] = {&v->kept, &v->pairs_kept, &v->choices_kept};
    for (int i = 0; i < 3 && !s; i++) {
        const struct json_t *o;

        *to[i] = unknown;
        str_clear(&where);
        str_addf(&where, "%s.kept.%.80s", run->source, name);
        s = report_object(&o, kept, metrics[i], where.text, e);
        str_addf(&where, ".%s", metrics[i]);
        if (!s) s = read_interval(to[i], o, i == 0 ? "raw" : "corrected", where.text, e);
    }
    str_free(&where);
    v->overhead = NAN;
    if (!s) s = report_object(&overhead, run->o, "overhead", run->source, e);
    if (!s) s = report_object(&overhead, overhead, name, run->source, e);
    if (!s && overhead) s = report_number(&v->overhead, overhead, "total", run->source, e);
    return s ? s : read_items(v, run, e);
}

/* What an older result does not say itself. */
static status derive(struct report_variant *v, const struct report_variant *dense, const struct report_run *run, struct err *e)
{
    struct report_interval nats, hits;
    struct str pair = {0};

    str_addf(&pair, "%s_vs_dense", v->name);
    status s = read_deep(&nats, run, "compare", pair.text, "nats_per_token", NULL, e);
    if (!s) s = read_deep(&hits, run, "compare", pair.text, "accuracy", NULL, e);
    str_free(&pair);
    if (s) return s;
    if (isnan(v->times.value))
        v->times = (struct report_interval){v->perplexity / dense->perplexity, exp(nats.low), exp(nats.high)};
    if (isnan(v->kept.value) && dense->accuracy > 0)
        v->kept = (struct report_interval){v->accuracy / dense->accuracy, 1 + hits.low / dense->accuracy,
                                           1 + hits.high / dense->accuracy};
    return OK;
}

const struct report_variant *report_eval_find(const struct report_eval *x, const char *name)
{
    for (int i = 0; i < x->n; i++)
        if (!strcmp(x->v[i].name, name)) return &x->v[i];
    return NULL;
}

status report_eval_read(struct report_eval *x, const struct report_run *run, struct err *e)
{
    static const char *const maps[] = {"perplexity", "active_share", "minimal_pairs", "multiple_choice"};

    *x = (struct report_eval){0};
    for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++)
        if (add_names(x, run->o, maps[i], run->source, e)) return e->code;
    qsort(x->v, (size_t)x->n, sizeof(x->v[0]), by_order);
    for (int i = 0; i < x->n; i++)
        if (read_variant(&x->v[i], run, e)) return e->code;
    x->dense = report_eval_find(x, "dense");
    if (x->dense && isnan(x->dense->perplexity) && isnan(x->dense->accuracy)) x->dense = NULL;
    for (int i = 0; x->dense && i < x->n; i++)
        if (derive(&x->v[i], x->dense, run, e)) return e->code;
    return OK;
}
