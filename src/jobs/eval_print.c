/* The tables for a person: at most 115 columns; result.json has the rest. */
#include <math.h>
#include <string.h>

#include "base/str.h"
#include "jobs/eval.h"

/* A number, or a dash where there is none: width characters. */
static void add_cell(struct str *line, int width, int digits, double x)
{
    if (isfinite(x)) str_addf(line, " %*.*f", width, digits, x);
    else str_addf(line, " %*s", width, "-");
}

static double gap_of(const struct json_t *result, const char *variant)
{
    const struct json_t *v = result ? json_at(json_at(result, "gap_closed"), variant) : NULL;

    if (v) v = json_at(json_at(v, "nats"), "value");
    return v && json_is_real(v) ? json_number(v) : NAN;
}

static void print_head(struct log *l, bool text, bool both, bool pairs, bool choices, bool words)
{
    struct str line = {0};

    str_addf(&line, "  %-16s %5s", "variant", "FFN %");
    if (both) str_addf(&line, " %5s", "items");
    str_addf(&line, " %5s", "add %");
    if (text) str_addf(&line, " %8s %7s %8s %6s %7s %6s", "ppl", "x dense", "accuracy", "kept", "KL", "gap %");
    if (pairs) str_addf(&line, " %6s", "pairs");
    if (choices) str_addf(&line, " %7s", "choices");
    if (words) str_addf(&line, " %6s", "words");
    if (text) str_addf(&line, " %8s", "tokens/s");
    log_line(l, "%s", line.text);
    str_free(&line);
}

/* FFN %: f as measured, on the text, and beside it on the items if there are both; add %: the router's and the compensation's multiply-adds over the dense FFN's; gap %: of static -> neurons, in nats. */
static void print_side(struct log *l, const struct eval_run *r, const struct eval_side *side, const struct json_t *result)
{
    const struct eval_variant *dense = eval_dense(r, side);
    struct str line = {0};
    bool has[METRICS] = {false};

    for (int m = 0; m < METRICS; m++)
        for (int i = 0; i < side->n; i++) has[m] = has[m] || eval_has(r, (enum eval_metric)m, &side->variant[i]);
    log_line(l, "%s%s", side->name,
             !side->adapted ? ""
             : dense        ? ", adapted: beside the dense model compared with"
                            : ", adapted");
    bool both = r->n_windows && r->n_pieces;
    print_head(l, has[METRIC_NATS], both, has[METRIC_PAIRS], has[METRIC_CHOICES], has[METRIC_WORDS]);
    for (int i = 0; i < side->n; i++) {
        const struct eval_variant *x = &side->variant[i];
        double tokens = (double)r->corpus.n_tokens;

        if (!x->done) continue;
        str_clear(&line);
        str_addf(&line, "  %-16.24s", x->name);
        add_cell(&line, 5, 1, 100 * x->active_share);
        if (both) add_cell(&line, 5, 1, 100 * x->items_share);
        add_cell(&line, 5, 1, eval_is_routed(x->kind) ? 100 * (x->overhead.router + x->overhead.compensation) : NAN);
        if (has[METRIC_NATS]) {
            add_cell(&line, 8, exp(x->nats / tokens) < 1000 ? 3 : 0, exp(x->nats / tokens));
            add_cell(&line, 7, 3, dense ? exp((x->nats - dense->nats) / tokens) : NAN);
            add_cell(&line, 8, 4, (double)x->hits / tokens);
            add_cell(&line, 6, 3, dense && dense->hits ? (double)x->hits / (double)dense->hits : NAN);
            add_cell(&line, 7, 4, eval_has(r, METRIC_KL, x) ? eval_value(r, METRIC_KL, x) : NAN);
            add_cell(&line, 6, 1, 100 * gap_of(result, x->name));
        }
        if (has[METRIC_PAIRS]) add_cell(&line, 6, 4, eval_value(r, METRIC_PAIRS, x));
        if (has[METRIC_CHOICES]) add_cell(&line, 7, 4, eval_value(r, METRIC_CHOICES, x));
        if (has[METRIC_WORDS]) add_cell(&line, 6, 4, eval_value(r, METRIC_WORDS, x));
        if (has[METRIC_NATS]) add_cell(&line, 8, 0, tokens / x->seconds);
        log_line(l, "%s", line.text);
    }
    str_free(&line);
}

static void print_routing(struct log *l, const struct eval_side *side)
{
    const struct eval_variant *x = eval_find(side, VARIANT_ROUTER);

    if (!x || !x->load) return;
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
        char agreement[32] = "-";
        if (x->agreement) snprintf(agreement, sizeof(agreement), "%.4f", x->agreement[i]);
        log_line(l, "  %-8d %10s %8.4f %8.4f %8.4f", i, agreement, least, sum / side->experts, most);
    }
}

/* "NAME VALUE (LOW HIGH)", which is 40 characters. */
static void add_interval(struct str *line, const char *name, const struct json_t *x, const char *value)
{
    double low = json_is_real(json_at(x, "low")) ? json_number(json_at(x, "low")) : NAN;
    double high = json_is_real(json_at(x, "high")) ? json_number(json_at(x, "high")) : NAN;

    str_addf(line, "  %-8s %+8.4f", name, json_number(json_at(x, value)));
    if (isfinite(low) && isfinite(high)) str_addf(line, " (%+8.4f %+8.4f)", low, high);
    else str_addf(line, "%20s", "");
}

struct shown {
    const char *key, *name;
};

/* Two to a line. */
static void print_intervals(struct log *l, const char *what, const struct json_t *o, const struct shown *shown, int n,
                            const char *member, const char *value)
{
    struct str line = {0};
    int cells = 0;

    for (int i = 0; o && i < n; i++) {
        const struct json_t *x = json_at(o, shown[i].key);

        if (x && member) x = json_at(x, member);
        if (!x || !json_is_real(json_at(x, value))) continue;
        if (cells && cells % 2 == 0) {
            log_line(l, "%s", line.text);
            str_clear(&line);
        }
        if (cells++ % 2 == 0) str_addf(&line, "  %-26.26s", cells == 1 ? what : "");
        add_interval(&line, shown[i].name, x, value);
    }
    if (line.length) log_line(l, "%s", line.text);
    str_free(&line);
}

static void print_difference(struct log *l, const char *what, const struct json_t *o)
{
    static const struct shown shown[] = {{"nats_per_token", "nats"},
                                         {"accuracy", "accuracy"},
                                         {"minimal_pairs", "pairs"},
                                         {"multiple_choice", "choices"},
                                         {"minimal_pairs_changed", "pairs ch"},
                                         {"multiple_choice_changed", "choice c"}};

    print_intervals(l, what, o, shown, 6, NULL, "difference");
}

/* Of routers, chance-corrected where there is a chance: a blind choice keeps nothing. */
static void print_kept(struct log *l, const struct json_t *kept)
{
    static const struct shown shown[] = {{"minimal_pairs", "pairs"}, {"multiple_choice", "choices"}};

    for (void *v = kept ? json_first(kept) : NULL; v; v = json_next(kept, v)) {
        struct str what = {0};

        str_addf(&what, "%s, above chance", json_key(v));
        if (!strncmp(json_key(v), "router", 6)) print_intervals(l, what.text, json_member(v), shown, 2, "corrected", "value");
        str_free(&what);
    }
}

/* How many items a router answers otherwise than the dense model, right or wrong. */
static void print_changed(struct log *l, const struct json_t *figures)
{
    static const struct shown shown[] = {{"minimal_pairs_changed", "pairs"}, {"multiple_choice_changed", "choices"}};

    for (void *v = figures ? json_first(figures) : NULL; v; v = json_next(figures, v)) {
        struct str what = {0};

        str_addf(&what, "%.16s, changed", json_key(v));
        if (!strncmp(json_key(v), "router", 6)) print_intervals(l, what.text, json_member(v), shown, 2, NULL, "value");
        str_free(&what);
    }
}

static bool is_of_router(const char *pair)
{
    return !strncmp(pair, "router", 6);
}

void eval_print(const struct eval_run *r)
{
    const struct json_t *c = json_at(r->job->result, "compare"), *other = json_at(c, "other");
    struct log *l = r->job->log;

    log_progress_end(l);
    for (int i = 0; i < r->n_sides; i++) {
        print_side(l, r, &r->side[i], i == 0 ? r->job->result : NULL);
        print_routing(l, &r->side[i]);
    }
    if (c && json_length(c)) log_line(l, "  differences with 95 %% intervals; the others, and more figures, are in result.json");
    print_kept(l, json_at(r->job->result, "kept"));
    print_changed(l, json_at(r->job->result, "figures"));
    for (void *i = json_first(c); i; i = json_next(c, i)) {
        const char *vs = strstr(json_key(i), "_vs_");
        char what[128];

        if (!vs || !is_of_router(json_key(i))) continue;
        snprintf(what, sizeof(what), "%.*s - %s", (int)(vs - json_key(i)), json_key(i), vs + 4);
        print_difference(l, what, json_member(i));
    }
    const struct json_t *differences = other ? json_at(other, "differences") : NULL;
    for (void *i = differences ? json_first(differences) : NULL; i; i = json_next(differences, i)) {
        char what[64];

        snprintf(what, sizeof(what), "other - this, %.30s", json_key(i));
        print_difference(l, what, json_member(i));
    }
}
