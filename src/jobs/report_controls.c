/* What was kept, beside its controls: a table and two drawings of every eval. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

/* A column: figures of a variant, with their interval where there is one. */
static struct report_interval of_share(const struct report_variant *v)
{
    return (struct report_interval){100 * v->share, NAN, NAN};
}
static struct report_interval of_perplexity(const struct report_variant *v)
{
    return (struct report_interval){v->perplexity, NAN, NAN};
}
static struct report_interval of_times(const struct report_variant *v)
{
    return v->times;
}
static struct report_interval of_bits(const struct report_variant *v)
{
    return (struct report_interval){v->bits, NAN, NAN};
}
static struct report_interval of_accuracy(const struct report_variant *v)
{
    return (struct report_interval){100 * v->accuracy, NAN, NAN};
}
static struct report_interval percent(const struct report_interval *i)
{
    return (struct report_interval){100 * i->value, 100 * i->low, 100 * i->high};
}
static struct report_interval of_kept(const struct report_variant *v)
{
    return percent(&v->kept);
}
static struct report_interval of_closed(const struct report_variant *v)
{
    return percent(&v->closed);
}
static struct report_interval of_kl(const struct report_variant *v)
{
    return v->kl;
}
static struct report_interval of_pairs(const struct report_variant *v)
{
    return percent(&v->pairs);
}
static struct report_interval of_pairs_kept(const struct report_variant *v)
{
    return percent(&v->pairs_kept);
}
static struct report_interval of_pairs_changed(const struct report_variant *v)
{
    return percent(&v->pairs_changed);
}
static struct report_interval of_choices_changed(const struct report_variant *v)
{
    return percent(&v->choices_changed);
}
static struct report_interval of_share_of_items(const struct report_variant *v)
{
    return (struct report_interval){100 * v->share_of_items, NAN, NAN};
}
static struct report_interval of_choices(const struct report_variant *v)
{
    return percent(&v->choices);
}
static struct report_interval of_choices_kept(const struct report_variant *v)
{
    return percent(&v->choices_kept);
}
static struct report_interval of_word(const struct report_variant *v)
{
    return percent(&v->last_word);
}
static struct report_interval of_cost(const struct report_variant *v)
{
    return (struct report_interval){100 * v->overhead, NAN, NAN};
}
static struct report_interval of_speed(const struct report_variant *v)
{
    return (struct report_interval){v->speed, NAN, NAN};
}

static const struct figure {
    struct report_interval (*of)(const struct report_variant *v);
    const char *head, *about;
    int decimals;
    bool interval, second; /* second: stands in the second table */
} figures[] = {
    {of_share, "f %", "share of the FFN's neurons that is active for a token, as measured", 1, false, false},
    {of_perplexity, "perplexity", "exp of the mean negative log probability of a token", 2, false, false},
    {of_times, "\xc3\x97 dense", "perplexity over that of the dense model, with its 95 % interval", 3, true, false},
    {of_kl, "KL", "Kullback-Leibler divergence from the dense model's distribution, nats a token", 4, false, false},
    {of_bits, "bits/byte", "of the text", 4, false, true},
    {of_accuracy, "accuracy %", "share of tokens for which the likeliest next token is the right one", 2, false, false},
    {of_kept, "kept %", "accuracy over that of the dense model, with its 95 % interval", 1, true, false},
    {of_closed, "gap closed %", "share of the way from the static control to the ceiling of single neurons, in nats", 1, false,
     false},
    {of_share_of_items, "f %", "of pairs, choices and last words, as measured", 1, false, true},
    {of_pairs, "pairs %", "minimal pairs of sentences judged rightly", 1, true, true},
    {of_pairs_kept, "kept %", "of the pairs, corrected for chance: (x - 50) / (dense - 50)", 1, false, true},
    {of_pairs_changed, "changed %", "of the pairs: answered otherwise than by the dense model, right or wrong", 1, true, true},
    {of_choices, "choices %", "questions with several answers", 1, true, true},
    {of_choices_kept, "kept %", "of the choices, corrected for chance", 1, false, true},
    {of_choices_changed, "changed %", "of the choices: answered otherwise than by the dense model", 1, true, true},
    {of_word, "last word %", "the last word of a passage, all its tokens right", 1, true, true},
    {of_cost, "router %", "multiply-adds of router and compensation, of those of the dense FFN", 2, false, true},
    {of_speed, "tokens/s", "of this pass: mixes in the machine's noise and what the pass measures beside it", 0, false, true},
};
enum { FIGURES = sizeof(figures) / sizeof(figures[0]) };

static bool any(const struct report_eval *x, const struct figure *f, bool interval)
{
    for (int v = 0; v < x->n; v++) {
        struct report_interval i = f->of(&x->v[v]);

        if (interval ? f->interval && isfinite(i.low) && isfinite(i.high) : isfinite(i.value)) return true;
    }
    return false;
}

static void put_interval(struct str *out, const struct report_interval *i, int decimals)
{
    if (!isfinite(i->low) || !isfinite(i->high)) {
        str_addz(out, "<td class=\"ci\"></td>");
        return;
    }
    str_addz(out, "<td class=\"ci\">");
    html_number(out, i->low, decimals);
    str_addz(out, " to ");
    html_number(out, i->high, decimals);
    str_addz(out, "</td>");
}

static void put_name(struct str *out, const char *name)
{
    str_addz(out, "<th scope=\"row\">");
    svg_swatch(out, report_variant_kind(name));
    html_text(out, name);
    str_addz(out, "</th>");
}

static void put_table(struct str *out, const struct report_eval *x, bool second)
{
    struct html_column columns[2 * FIGURES + 2] = {{"variant", NULL, true}};
    bool shown[FIGURES], ci[FIGURES];
    int n = 1;

    for (int f = 0; f < FIGURES; f++) {
        shown[f] = figures[f].second == second && any(x, &figures[f], false);
        ci[f] = shown[f] && any(x, &figures[f], true);
        if (shown[f]) columns[n++] = (struct html_column){figures[f].head, figures[f].about, false};
        if (ci[f]) columns[n++] = (struct html_column){"95 % interval", NULL, false};
    }
    if (n == 1) return;
    table_open(out, columns, n, NULL);
    for (int v = 0; v < x->n; v++) {
        table_row(out, strncmp(x->v[v].name, "router", 6) ? NULL : "strong");
        put_name(out, x->v[v].name);
        for (int f = 0; f < FIGURES; f++) {
            struct report_interval i = figures[f].of(&x->v[v]);

            if (shown[f]) table_number(out, i.value, figures[f].decimals, NULL);
            if (ci[f]) put_interval(out, &i, figures[f].decimals);
        }
        table_row_end(out);
    }
    table_close(out);
}

/* ---- a line per variant: a mark, its interval and its figure ---- */

struct dots {
    const struct figure *figure;
    const char *label, *suffix;
    bool log;
    double floor;
};

static bool range(double *low, double *high, int *n, const struct report_eval *x, const struct figure *f)
{
    *low = INFINITY;
    *high = -INFINITY;
    *n = 0;
    for (int v = 0; v < x->n; v++) {
        struct report_interval i = f->of(&x->v[v]);

        if (!isfinite(i.value)) continue;
        (*n)++;
        *low = fmin(*low, isfinite(i.low) ? fmin(i.low, i.value) : i.value);
        *high = fmax(*high, isfinite(i.high) ? fmax(i.high, i.value) : i.value);
    }
    return *n > 1;
}

static void put_dot(struct svg_plot *p, const struct report_variant *v, struct report_interval i, double y, const struct dots *d)
{
    int kind = report_variant_kind(v->name);
    struct str value = {0}, tip = {0};

    html_number(&value, i.value, d->figure->decimals);
    if (d->suffix) str_addz(&value, d->suffix);
    str_addf(&tip, "%s: %s", v->name, value.text);
    if (isfinite(i.low) && isfinite(i.high)) {
        svg_whisker(p, i.low, i.high, y, kind);
        str_addz(&tip, ", 95 % interval ");
        html_number(&tip, i.low, d->figure->decimals);
        str_addz(&tip, " to ");
        html_number(&tip, i.high, d->figure->decimals);
    }
    svg_mark(p->out, svg_x(p, i.value), y, kind, tip.text);
    svg_label(p->out, p->left - 10, y + 4, "end", "name", v->name);
    svg_label(p->out, p->width - 2, y + 4, "end", "value", value.text);
    str_free(&value);
    str_free(&tip);
}

static void put_dots(struct str *out, const struct report_eval *x, const struct dots *d, const char *title)
{
    enum { WIDTH = 460, ROW = 27, NAMES = 126, VALUES = 66 };
    double low, high;
    int n, at = 0;

    if (!range(&low, &high, &n, x, d->figure)) return;
    double even = d->log ? 1 : 100;
    if (d->log) {
        low /= 1.06;
        high *= 1.06;
    } else svg_widen(&low, &high, d->floor);
    struct svg_plot p = {.out = out, .width = WIDTH, .height = 58 + ROW * n, .left = NAMES, .right = VALUES};
    p.x = (struct svg_axis){.low = low, .high = high, .log = d->log, .label = d->label, .suffix = d->suffix};
    p.y = (struct svg_axis){.low = 0, .high = n};
    str_addz(out, "<figure>");
    svg_plot_open(&p, title);
    if (even > low && even < high)
        str_addf(out, "<path class=\"even\" d=\"M%.1f %.1fV%.1f\"/>", svg_x(&p, even), p.top, p.bottom);
    for (int v = 0; v < x->n; v++) {
        struct report_interval i = d->figure->of(&x->v[v]);

        if (isfinite(i.value)) put_dot(&p, &x->v[v], i, svg_y(&p, n - 0.5 - at++), d);
    }
    svg_plot_close(&p);
    str_addz(out, "</figure>\n");
}

static void put_drawings(struct str *out, const struct report_eval *x)
{
    static const struct dots all[] = {
        {&figures[6], "kept: next-token accuracy, % of dense", " %", false, 0},
        {&figures[2], "perplexity, \xc3\x97 dense (logarithmic)", NULL, true, 0},
    };

    str_addz(out, "<div class=\"grid\">\n");
    put_dots(out, x, &all[0], "kept accuracy of every variant, with intervals");
    put_dots(out, x, &all[1], "perplexity of every variant over that of the dense model, with intervals");
    str_addz(out, "</div>\n");
}

/* ---- the section ---- */

static status put_text(struct str *out, const struct report_run *run, struct err *e)
{
    const struct json_t *text;
    double tokens, bytes, window;
    const char *digest;

    if (report_object(&text, run->o, "text", run->source, e) || report_number(&tokens, text, "tokens", run->source, e) ||
        report_number(&bytes, text, "bytes", run->source, e) || report_number(&window, text, "window", run->source, e) ||
        report_word(&digest, text, "digest", run->source, e))
        return e->code;
    if (!text) return OK;
    str_addz(out, "<p class=\"note\">Measured on ");
    html_number(out, tokens, 0);
    str_addz(out, " tokens (");
    html_number(out, bytes, 0);
    str_addz(out, " bytes) in windows of ");
    html_number(out, window, 0);
    if (digest) {
        str_addz(out, "; digest of the text <code>");
        html_text(out, digest);
        str_addz(out, "</code>");
    }
    str_addz(out, ".</p>\n");
    return OK;
}

/* What the variants are, once. */
static status put_legend(struct report *r, struct err *e)
{
    struct report_eval *x = malloc(sizeof(*x));
    const char *said[REPORT_VARIANTS_MAX];
    int n = 0;
    status s = OK;

    BUG_ON(!x);
    str_addz(&r->body, "<p class=\"legend says\">");
    for (int i = 0; i < r->n && !s; i++) {
        if (r->run[i].kind != JOB_EVAL || r->run[i].row >= 0) continue;
        s = report_eval_read(x, &r->run[i], e);
        for (int v = 0; v < x->n && !s; v++) {
            const char *says = report_variant_says(x->v[v].name);
            bool before = !*says || n == REPORT_VARIANTS_MAX;

            for (int k = 0; k < n; k++) before |= says == said[k];
            if (before) continue;
            said[n++] = says;
            str_addz(&r->body, "<span>");
            svg_swatch(&r->body, report_variant_kind(x->v[v].name));
            str_addz(&r->body, "<b>");
            html_text(&r->body, strncmp(x->v[v].name, "router@", 7) ? x->v[v].name : "router@VERSION");
            str_addz(&r->body, "</b> ");
            html_text(&r->body, says);
            str_addz(&r->body, "</span>");
        }
    }
    str_addz(&r->body, "</p>\n");
    free(x);
    return s;
}

static status put_eval(struct report *r, const struct report_run *run, struct err *e)
{
    struct report_eval *x = malloc(sizeof(*x));
    struct str *out = &r->body;

    BUG_ON(!x);
    report_heading(r, run, true);
    status s = report_eval_read(x, run, e);
    if (!s && x->n == 0) {
        str_addz(out, "<p class=\"note\">It has no figures: no variant could be measured, or it was stopped.</p>\n");
        report_missing(r, "%s: no variant has a figure", run->source);
    } else if (!s) {
        bool held = x->dense != NULL; /* against a dense model: its own, or that of compare_model */

        for (int i = 0; i < x->n; i++) held |= isfinite(x->v[i].times.value);
        if (!held) report_missing(r, "%s: dense was not measured, so there is no kept and no \xc3\x97 dense", run->source);
        s = put_text(out, run, e);
        if (!s) {
            put_table(out, x, false);
            put_table(out, x, true);
            put_drawings(out, x);
            s = report_differences(out, run, e);
        }
    }
    free(x);
    return s;
}

status report_controls(struct report *r, struct err *e)
{
    bool open = false;

    for (int i = 0; i < r->n; i++) {
        if (r->run[i].kind != JOB_EVAL || r->run[i].row >= 0) continue;
        if (!open) {
            report_section(
                r, "controls", "Beside the controls",
                "A factorization has to beat <em>static</em> (no routing, the same f) and <em>random</em>; what it can reach at "
                "most is "
                "bounded by what has seen the dense answer. Intervals are 95 % of a paired bootstrap over windows of the text.");
            if (put_legend(r, e)) return e->code;
        }
        open = true;
        if (put_eval(r, &r->run[i], e)) return e->code;
    }
    if (open) report_section_end(r);
    return OK;
}
