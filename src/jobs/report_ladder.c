/* The ladder: a line per row of runs, with means and spreads over its seeds. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

/* Sums over the runs of a row. */
struct spread {
    int n;
    double sum, squares, low, high;
};

static void spread_add(struct spread *s, double x)
{
    if (!isfinite(x)) return;
    s->low = s->n ? fmin(s->low, x) : x;
    s->high = s->n ? fmax(s->high, x) : x;
    s->sum += x;
    s->squares += x * x;
    s->n++;
}

static double spread_mean(const struct spread *s)
{
    return s->n ? s->sum / s->n : NAN;
}

/* Of a sample; NaN for one run. */
static double spread_deviation(const struct spread *s)
{
    if (s->n < 2) return NAN;
    double v = (s->squares - s->sum * s->sum / s->n) / (s->n - 1);

    return v > 0 ? sqrt(v) : 0;
}

enum { F, TIMES, KEPT, CLOSED, KL, PAIRS, CHOICES, STATIC_KEPT, CEILING_KEPT, FIGURES };
static const struct {
    const char *head, *about;
    int decimals;
    bool deviation;
} columns[FIGURES] = {
    [F] = {"f %", "share of the FFN's neurons that is active, as measured", 1, false},
    [TIMES] = {"\xc3\x97 dense", "perplexity over that of the dense model", 3, true},
    [KEPT] = {"kept %", "next-token accuracy over that of the dense model", 1, true},
    [CLOSED] = {"gap closed %", "share of the way from static to the ceiling of single neurons, in nats", 1, true},
    [KL] = {"KL", "from the dense model's distribution, nats a token", 4, true},
    [PAIRS] = {"pairs %", "minimal pairs judged rightly", 1, true},
    [CHOICES] = {"choices %", "questions answered rightly", 1, true},
    [STATIC_KEPT] = {"static kept %", "of the control without routing, at the same f", 1, false},
    [CEILING_KEPT] = {"ceiling kept %", "of single neurons chosen in hindsight (else the oracle)", 1, false},
};

struct line {
    const char *label;
    int runs, seen;
    struct spread x[FIGURES];
};

static const struct report_variant *routed(const struct report_eval *x)
{
    for (int i = 0; i < x->n; i++)
        if (!strncmp(x->v[i].name, "router", 6)) return &x->v[i];
    return NULL;
}

static status add_run(struct report *r, struct line *l, const struct report_run *run, struct err *e)
{
    struct report_eval *x = malloc(sizeof(*x));

    BUG_ON(!x);
    status s = report_eval_read(x, run, e);
    const struct report_variant *v = s ? NULL : routed(x), *fixed = s ? NULL : report_eval_find(x, "static");
    const struct report_variant *best = s ? NULL : report_eval_find(x, "neurons");
    if (!s && !best) best = report_eval_find(x, "oracle");
    l->runs++;
    if (!s && !v) report_missing(r, "%s: has no figure of a router, so it is not in the ladder", run->source);
    if (v) {
        l->seen++;
        spread_add(&l->x[F], 100 * v->share);
        spread_add(&l->x[TIMES], v->times.value);
        spread_add(&l->x[KEPT], 100 * v->kept.value);
        spread_add(&l->x[CLOSED], 100 * v->closed.value);
        spread_add(&l->x[KL], v->kl.value);
        spread_add(&l->x[PAIRS], 100 * v->pairs.value);
        spread_add(&l->x[CHOICES], 100 * v->choices.value);
        if (fixed) spread_add(&l->x[STATIC_KEPT], 100 * fixed->kept.value);
        if (best) spread_add(&l->x[CEILING_KEPT], 100 * best->kept.value);
    }
    free(x);
    return s;
}

static void put_table(struct str *out, const struct line *lines, int n)
{
    struct html_column heads[2 * FIGURES + 2] = {{"row", NULL, true}, {"runs", "as many as there are seeds", false}};
    bool shown[FIGURES] = {false}, spread[FIGURES] = {false};
    int c = 2;

    for (int f = 0; f < FIGURES; f++) {
        for (int i = 0; i < n; i++) {
            shown[f] |= lines[i].x[f].n > 0;
            spread[f] |= columns[f].deviation && lines[i].x[f].n > 1;
        }
        if (shown[f]) heads[c++] = (struct html_column){columns[f].head, columns[f].about, false};
        if (spread[f]) heads[c++] = (struct html_column){"\xc2\xb1", "standard deviation over the runs of the row", false};
    }
    table_open(out, heads, c, NULL);
    for (int i = 0; i < n; i++) {
        table_row(out, NULL);
        table_head(out, lines[i].label);
        table_number(out, lines[i].seen, 0, NULL);
        for (int f = 0; f < FIGURES; f++) {
            if (shown[f]) table_number(out, spread_mean(&lines[i].x[f]), columns[f].decimals, NULL);
            if (!spread[f]) continue;
            str_addz(out, "<td class=\"ci\">");
            if (lines[i].x[f].n > 1) html_number(out, spread_deviation(&lines[i].x[f]), columns[f].decimals);
            str_addz(out, "</td>");
        }
        table_row_end(out);
    }
    table_close(out);
}

/* Kept of every row: the mean, from the least to the most of its runs; and its control. */
static void put_drawing(struct str *out, const struct line *lines, int n)
{
    enum { WIDTH = 760, ROW = 26, VALUES = 66 };
    int names = 60;
    double low = INFINITY, high = -INFINITY;
    int at = 0, drawn = 0;

    for (int i = 0; i < n; i++) {
        if (!lines[i].x[KEPT].n) continue;
        drawn++;
        if (7 * (int)strlen(lines[i].label) > names) names = 7 * (int)strlen(lines[i].label);
        low = fmin(low, fmin(lines[i].x[KEPT].low, lines[i].x[STATIC_KEPT].n ? spread_mean(&lines[i].x[STATIC_KEPT]) : INFINITY));
        high = fmax(high,
                    fmax(lines[i].x[KEPT].high, lines[i].x[CEILING_KEPT].n ? spread_mean(&lines[i].x[CEILING_KEPT]) : -INFINITY));
    }
    if (drawn < 2) return;
    svg_widen(&low, &high, 0);
    struct svg_plot p = {
        .out = out, .width = WIDTH, .height = 58 + ROW * drawn, .left = 18 + (names < 300 ? names : 300), .right = VALUES};
    p.x = (struct svg_axis){.low = low, .high = high, .label = "kept: next-token accuracy, % of dense", .suffix = " %"};
    p.y = (struct svg_axis){.low = 0, .high = drawn};
    str_addz(out, "<figure><p class=\"legend\"><span>");
    svg_swatch(out, 1);
    str_addz(out, "the router, mean, and least to most of the runs</span><span>");
    svg_swatch(out, 3);
    str_addz(out, "static</span><span>");
    svg_swatch(out, 5);
    str_addz(out, "ceiling</span></p><div class=\"scroll\"><div class=\"wide\">");
    svg_plot_open(&p, "kept accuracy of every row");
    for (int i = 0; i < n; i++) {
        const struct spread *x = lines[i].x;
        struct str value = {0}, name = {0};

        if (!x[KEPT].n) continue;
        double y = svg_y(&p, drawn - 0.5 - at++);
        html_number(&value, spread_mean(&x[KEPT]), 1);
        str_addz(&value, " %");
        str_add(&name, lines[i].label, strlen(lines[i].label));
        if (x[STATIC_KEPT].n) svg_mark(out, svg_x(&p, spread_mean(&x[STATIC_KEPT])), y, 3, "static");
        if (x[CEILING_KEPT].n) svg_mark(out, svg_x(&p, spread_mean(&x[CEILING_KEPT])), y, 5, "ceiling");
        if (x[KEPT].n > 1) svg_whisker(&p, x[KEPT].low, x[KEPT].high, y, 1);
        svg_mark(out, svg_x(&p, spread_mean(&x[KEPT])), y, 1, value.text);
        svg_label(out, p.left - 10, y + 4, "end", "name", name.text);
        svg_label(out, WIDTH - 2, y + 4, "end", "value", value.text);
        str_free(&value);
        str_free(&name);
    }
    svg_plot_close(&p);
    str_addz(out, "</div></div></figure>\n");
}

static void put_commands(struct str *out, const struct report *r)
{
    str_addz(out, "<details><summary>The runs of every row, and the commands that repeat them</summary>\n<pre>");
    for (int i = 0, row = -1; i < r->n; i++) {
        const char *colon = strstr(r->run[i].source, "/result.json: ");

        if (r->run[i].row < 0 || !r->run[i].file) continue;
        if (r->run[i].row != row) {
            str_addz(out, row < 0 ? "# " : "\n# ");
            html_text(out, r->run[i].label);
            str_addz(out, "\n");
            row = r->run[i].row;
        }
        struct str path = {0};
        str_add(&path, r->run[i].source, (size_t)(colon - r->run[i].source));
        str_addz(out, "factorllm run ");
        html_text(out, path.text);
        str_addz(out, "/spec.yaml\n");
        str_free(&path);
    }
    str_addz(out, "</pre></details>\n");
}

status report_ladder(struct report *r, struct err *e)
{
    int most = r->rows > 0 ? r->rows : r->inputs, n = 0;
    struct line *lines = calloc((size_t)most + 1, sizeof(*lines));
    status s = OK;

    BUG_ON(!lines);
    for (int i = 0; i < r->n && !s; i++) {
        const struct report_run *run = &r->run[i];
        int at = r->rows > 0 ? run->row : run->input;

        if (run->kind != JOB_EVAL || at < 0) continue;
        lines[at].label = run->label;
        s = add_run(r, &lines[at], run, e);
    }
    for (int i = 0; i < most; i++)
        if (lines[i].seen) lines[n++] = lines[i];
    if (!s && n >= (r->rows > 0 ? 1 : 2)) {
        report_section(r, "ladder", "The ladder",
                       "One row, one way to factorize; a row with several runs differs in their seeds alone, and has its mean "
                       "and standard deviation.");
        put_table(&r->body, lines, n);
        put_drawing(&r->body, lines, n);
        if (r->rows > 0) put_commands(&r->body, r);
        report_section_end(r);
    }
    free(lines);
    return s;
}
