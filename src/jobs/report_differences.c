/* The paired differences of an eval: of its variants, and from another model or router. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

static const struct metric {
    const char *key, *head;
    double factor;
    int decimals;
} metrics[] = {
    {"nats_per_token", "nats a token", 1, 4},
    {"accuracy", "accuracy, points", 100, 2},
    {"kl", "KL, nats", 1, 4},
    {"minimal_pairs", "pairs, points", 100, 1},
    {"multiple_choice", "choices, points", 100, 1},
    {"last_word", "last word, points", 100, 1},
    {"minimal_pairs_changed", "pairs changed, points", 100, 1},
    {"multiple_choice_changed", "choices changed, points", 100, 1},
};
enum { METRICS = sizeof(metrics) / sizeof(metrics[0]) };

/* One pair, if it is one: an object of objects with `difference`. */
static status read_pair(struct report_interval out[METRICS], bool *some, const struct json_t *pair, const char *source,
                        struct err *e)
{
    struct str where = {0};
    status s = OK;

    *some = false;
    for (int m = 0; m < METRICS && !s; m++) {
        const struct json_t *o = NULL;

        out[m] = (struct report_interval){NAN, NAN, NAN};
        s = report_object(&o, pair, metrics[m].key, source, e);
        if (s || !o) continue;
        str_clear(&where);
        str_addf(&where, "%s.%s", source, metrics[m].key);
        s = report_number(&out[m].value, o, "difference", where.text, e);
        if (!s) s = report_number(&out[m].low, o, "low", where.text, e);
        if (!s) s = report_number(&out[m].high, o, "high", where.text, e);
        *some |= isfinite(out[m].value);
    }
    str_free(&where);
    return s;
}

/* "router_vs_dense" as people write it; the minus is that of the difference. */
static void pair_name(struct str *out, const char *key)
{
    const char *vs = strstr(key, "_vs_");

    str_clear(out);
    if (vs) {
        str_add(out, key, (size_t)(vs - key));
        str_addf(out, " \xe2\x88\x92 %s", vs + 4);
    } else str_addz(out, key);
}

struct pair {
    struct str name;
    struct report_interval x[METRICS];
};

static status add_pairs(struct pair **pairs, int *n, const struct json_t *of, const char *prefix, const char *source,
                        struct err *e)
{
    struct str where = {0};
    status s = OK;

    for (void *i = of ? json_first(of) : NULL; i && !s; i = json_next(of, i)) {
        struct pair p = {0};
        bool some = false;

        if (!strcmp(json_key(i), "other") || !json_is_object(json_member(i))) continue;
        str_clear(&where);
        str_addf(&where, "%s.%.80s", source, json_key(i));
        s = read_pair(p.x, &some, json_member(i), where.text, e);
        if (s || !some) continue;
        pair_name(&p.name, json_key(i));
        if (prefix) {
            struct str named = {0};

            str_addf(&named, "%s, %s", prefix, p.name.text);
            str_free(&p.name);
            p.name = named;
        }
        *pairs = realloc(*pairs, (size_t)(*n + 1) * sizeof(**pairs));
        BUG_ON(!*pairs);
        (*pairs)[(*n)++] = p;
    }
    str_free(&where);
    return s;
}

static void put_pairs(struct str *out, const struct pair *pairs, int n)
{
    struct html_column columns[2 * METRICS + 1] = {{"difference", NULL, true}};
    bool shown[METRICS] = {false};
    int c = 1;

    for (int m = 0; m < METRICS; m++) {
        for (int i = 0; i < n; i++) shown[m] |= isfinite(pairs[i].x[m].value);
        if (!shown[m]) continue;
        columns[c++] =
            (struct html_column){metrics[m].head, "the mean of what differs, paired by windows of text or by items", false};
        columns[c++] = (struct html_column){"95 % interval", "of a paired bootstrap", false};
    }
    table_open(out, columns, c, NULL);
    for (int i = 0; i < n; i++) {
        table_row(out, NULL);
        table_head(out, pairs[i].name.text);
        for (int m = 0; m < METRICS; m++) {
            const struct report_interval *x = &pairs[i].x[m];
            struct report_interval scaled = {x->value * metrics[m].factor, x->low * metrics[m].factor,
                                             x->high * metrics[m].factor};

            if (!shown[m]) continue;
            table_signed(out, scaled.value, metrics[m].decimals);
            if (!isfinite(scaled.low)) str_addz(out, "<td class=\"ci\"></td>");
            else {
                str_addz(out, "<td class=\"ci\">");
                html_signed(out, scaled.low, metrics[m].decimals);
                str_addz(out, " to ");
                html_signed(out, scaled.high, metrics[m].decimals);
                str_addz(out, "</td>");
            }
        }
        table_row_end(out);
    }
    table_close(out);
}

status report_differences(struct str *out, const struct report_run *run, struct err *e)
{
    const struct json_t *compare, *other, *differences;
    const char *name = NULL;
    struct pair *pairs = NULL;
    struct str where = {0};
    int n = 0;

    str_addf(&where, "%s.compare", run->source);
    status s = report_object(&compare, run->o, "compare", run->source, e);
    if (!s) s = add_pairs(&pairs, &n, compare, NULL, where.text, e);
    if (!s) s = report_object(&other, compare, "other", where.text, e);
    if (!s) s = report_word(&name, other, "name", where.text, e);
    if (!s) s = report_object(&differences, other, "differences", where.text, e);
    if (!s) s = add_pairs(&pairs, &n, differences, name ? name : "other", where.text, e);
    if (!s && n > 0) put_pairs(out, pairs, n);
    for (int i = 0; i < n; i++) str_free(&pairs[i].name);
    free(pairs);
    str_free(&where);
    return s;
}
