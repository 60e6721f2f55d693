/* Quality against f and against speed: a mark for every variant of every eval, and the front of the routers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

enum { POINTS_MAX = 8192 };

struct point {
    double x, y;
    int kind;
    bool routed; /* may be on the front */
    char tip[256];
};
struct cloud {
    int n;
    struct point p[POINTS_MAX];
};

static void add_point(struct cloud *c, double x, double y, const char *name, const char *tip)
{
    if (!isfinite(x) || !isfinite(y) || c->n == POINTS_MAX) return;
    struct point *p = &c->p[c->n++];

    *p = (struct point){.x = x, .y = y, .kind = report_variant_kind(name), .routed = !strncmp(name, "router", 6)};
    snprintf(p->tip, sizeof(p->tip), "%s", tip);
}

static int by_x(const void *a, const void *b)
{
    const struct point *x = a, *y = b;

    if (x->x != y->x) return x->x < y->x ? -1 : 1;
    return x->y < y->y ? -1 : x->y > y->y;
}

/* The routed points that no other one beats in both; `less`: less of x is better (f), else more (speed).  y is better the more. */
static int front(double *x, double *y, const struct cloud *c, bool less)
{
    struct point *sorted = malloc(((size_t)c->n + 1) * sizeof(*sorted));
    double best = -INFINITY;
    int n = 0, m = 0;

    BUG_ON(!sorted);
    for (int i = 0; i < c->n; i++)
        if (c->p[i].routed) sorted[m++] = c->p[i];
    qsort(sorted, (size_t)m, sizeof(*sorted), by_x);
    for (int k = 0; k < m; k++) {
        const struct point *p = &sorted[less ? k : m - 1 - k];
        bool last_at_x = k + 1 == m || sorted[less ? k + 1 : m - 2 - k].x != p->x;

        if (less && !last_at_x) continue; /* the best of equal x stands last */
        if (p->y <= best) continue;
        best = p->y;
        x[n] = p->x;
        y[n++] = p->y;
    }
    free(sorted);
    return n;
}

static void put_legend(struct str *out, const struct cloud *c)
{
    static const char *const names[] = {"dense", "router", "oracle", "static", "random", "neurons", "others", "oracle_variable"};

    str_addz(out, "<p class=\"legend\">");
    for (int k = 0; k < 8; k++) {
        bool used = false;

        for (int i = 0; i < c->n; i++) used |= c->p[i].kind == k;
        if (!used) continue;
        str_addz(out, "<span>");
        svg_swatch(out, k);
        str_addf(out, "%s</span>", names[k]);
    }
    str_addz(out, "</p>");
}

/* What x is, and so where the front lies. */
enum against { AGAINST_F, AGAINST_SPEED, AGAINST_BENCH };

static void put_cloud(struct str *out, const struct cloud *c, struct svg_axis ax, struct svg_axis ay, enum against against,
                      const char *caption)
{
    bool cost = against == AGAINST_F;
    double *x = malloc(((size_t)c->n + 1) * sizeof(double)), *y = malloc(((size_t)c->n + 1) * sizeof(double));
    struct svg_plot p = {.out = out, .width = 460, .height = 320, .x = ax, .y = ay};

    BUG_ON(!x || !y);
    ax.low = ay.low = INFINITY;
    ax.high = ay.high = -INFINITY;
    for (int i = 0; i < c->n; i++) {
        ax.low = fmin(ax.low, c->p[i].x);
        ax.high = fmax(ax.high, c->p[i].x);
        ay.low = fmin(ay.low, c->p[i].y);
        ay.high = fmax(ay.high, c->p[i].y);
    }
    if (cost) ax.low = 0; /* f: all of it */
    svg_widen(&ax.low, &ax.high, 0);
    if (ay.log) {
        ay.low /= 1.12;
        ay.high *= 1.12;
    } else svg_widen(&ay.low, &ay.high, 0);
    p.x = ax;
    p.y = ay;
    str_addz(out, "<figure>");
    svg_plot_open(&p, p.y.label);
    bool flip = ay.log; /* less perplexity is better: the front is that of its negative */
    struct cloud *turned = malloc(sizeof(*turned));
    BUG_ON(!turned);
    *turned = *c;
    for (int i = 0; flip && i < c->n; i++) turned->p[i].y = -c->p[i].y;
    int n = against == AGAINST_BENCH ? 0 : front(x, y, turned, cost);
    for (int i = 0; flip && i < n; i++) y[i] = -y[i];
    if (n > 1) svg_line(&p, x, y, n, "line thin dash k1");
    for (int i = 0; i < c->n; i++) svg_mark(out, svg_x(&p, c->p[i].x), svg_y(&p, c->p[i].y), c->p[i].kind, c->p[i].tip);
    svg_plot_close(&p);
    str_addf(out, "<figcaption>%s%s</figcaption></figure>\n", caption, n > 1 ? " Dashed: the front of the routers." : "");
    free(turned);
    free(x);
    free(y);
}

struct clouds {
    struct cloud kept_f, times_cost, kept_speed;
};

/* Of a row of the ladder the variant that it is about alone. */
static void add_eval(struct clouds *c, const struct report_run *run, const struct report_eval *x)
{
    for (int i = 0; i < x->n; i++) {
        const struct report_variant *v = &x->v[i];
        const char *kind = run->variant && !strncmp(v->name, "router@", 7) ? "router" : v->name;
        double cost = isfinite(v->overhead) ? v->overhead : 0;
        char tip[256];

        if (run->variant && strcmp(v->name, run->variant) != 0) continue;
        snprintf(tip, sizeof(tip),
                 "%.80s: %.60s, f %.1f %%, router and compensation %.1f %%, kept %.1f %%, perplexity %.3f times dense",
                 run->label, v->name, 100 * v->share, 100 * cost, 100 * v->kept.value, v->times.value);
        add_point(&c->kept_f, 100 * v->share, 100 * v->kept.value, kind, tip);
        add_point(&c->times_cost, 100 * (v->share + cost), v->times.value, kind, tip);
        bool measured_alone =
            strncmp(v->name, "oracle", 6) != 0 && strncmp(v->name, "neurons", 7) != 0; /* hindsight costs time of its own */
        if (run->row >= 0 || !measured_alone || !(x->dense->speed > 0)) continue;
        snprintf(tip, sizeof(tip), "%.80s: %.60s, %.0f tokens/s, %.2f times dense, kept %.1f %%", run->label, v->name, v->speed,
                 v->speed / x->dense->speed, 100 * v->kept.value);
        add_point(&c->kept_speed, v->speed / x->dense->speed, 100 * v->kept.value, kind, tip);
    }
}

/* ---- a bench beside evals ---- */

/* Kept of the router at this f: the best eval that has one. */
static double kept_at(const struct cloud *c, double share)
{
    double best = NAN;

    for (int i = 0; i < c->n; i++)
        if (c->p[i].routed && fabs(c->p[i].x - 100 * share) < 0.6 && !(c->p[i].y <= best)) best = c->p[i].y;
    return best;
}

static status add_bench(struct cloud *out, const struct cloud *kept, const struct report_run *run, struct err *e)
{
    struct json_t *lines;
    struct str path = {0};

    str_addf(&path, "%s/bench.jsonl", run->directory);
    status s = report_lines(&lines, run->directory, "bench.jsonl", e);
    for (size_t i = 0; lines && i < json_length(lines) && !s; i++) {
        const struct json_t *o = json_item(lines, i);
        const char *part, *what, *side;
        double ratio, share, rows;

        if ((s = report_word(&part, o, "part", path.text, e)) || (s = report_word(&what, o, "what", path.text, e)) ||
            (s = report_word(&side, o, "side", path.text, e)) || (s = report_number(&ratio, o, "ratio", path.text, e)) ||
            (s = report_number(&share, o, "share", path.text, e)) || (s = report_number(&rows, o, "rows", path.text, e)))
            break;
        bool decode = what && !strcmp(what, "decode"), prefill = what && !strcmp(what, "prefill");
        if (!part || strcmp(part, "step") != 0 || !(decode || prefill) || !isfinite(ratio) || !(share < 1)) continue;
        char tip[256];
        double y = kept_at(kept, share);
        snprintf(tip, sizeof(tip), "%.60s: %s of %.0f %s, f %.1f %%: %.2f times the speed of dense, kept %.1f %%",
                 side ? side : "?", what, rows, decode ? "sequences" : "tokens", 100 * share, ratio, y);
        add_point(out, ratio, y, "router", tip);
        if (out->n) out->p[out->n - 1].kind = prefill ? 7 : rows == 1 ? 1 : 6;
    }
    json_free(lines);
    str_free(&path);
    return s;
}

static status put_speed(struct report *r, const struct clouds *c, struct err *e)
{
    static const char *const names[][2] = {{"\1", "decode, one sequence"}, {"\6", "decode, several"}, {"\7", "prefill"}};
    struct svg_axis kept = {.label = "kept, % of dense", .suffix = " %"};
    struct cloud *b = calloc(1, sizeof(*b));
    struct str caption = {0};
    status s = OK;

    BUG_ON(!b);
    for (int i = 0; i < r->n && !s; i++)
        if (r->run[i].kind == JOB_BENCH) s = add_bench(b, &c->kept_f, &r->run[i], e);
    if (!s && b->n > 0) {
        str_addz(&caption,
                 "<b>Kept accuracy</b> against speed, as the bench measured it, with the best router there is at that f: ");
        for (int i = 0; i < 3; i++) {
            svg_swatch(&caption, names[i][0][0]);
            str_addf(&caption, "%s%s", names[i][1], i < 2 ? ", " : ".");
        }
        put_cloud(&r->body, b, (struct svg_axis){.label = "speed of a step, \xc3\x97 dense"}, kept, AGAINST_BENCH, caption.text);
    } else if (!s && c->kept_speed.n > 0) { /* not as good: the passes of an eval do not take turns */
        put_cloud(&r->body, &c->kept_speed, (struct svg_axis){.label = "tokens/s of the eval, \xc3\x97 dense"}, kept,
                  AGAINST_SPEED,
                  "<b>Kept accuracy</b> against the speed of the evals themselves, which is rough: a bench beside them says it "
                  "better.");
    }
    str_free(&caption);
    free(b);
    return s;
}

status report_scatter(struct report *r, struct err *e)
{
    const struct svg_axis f = {.label = "f: neurons active", .suffix = " %"};
    const struct svg_axis cost = {.label = "multiply-adds of a token, of the dense FFN's", .suffix = " %"};
    struct clouds *c = calloc(1, sizeof(*c));
    struct report_eval *x = malloc(sizeof(*x));
    int evals = 0;
    status s = OK;

    BUG_ON(!c || !x);
    for (int i = 0; i < r->n && !s; i++) {
        if (r->run[i].kind != JOB_EVAL) continue;
        s = report_eval_read(x, &r->run[i], e);
        if (s || !x->dense) continue;
        add_eval(c, &r->run[i], x);
        evals++;
    }
    if (!s && (evals > 1 || (evals > 0 && report_find(r, -1, JOB_BENCH))) && c->kept_f.n > 1) {
        report_section(r, "pareto", "Quality against cost", "Every mark is one variant of one run; its tooltip says which.");
        put_legend(&r->body, &c->kept_f);
        str_addz(&r->body, "<div class=\"grid\">\n");
        put_cloud(&r->body, &c->kept_f, f, (struct svg_axis){.label = "kept, % of dense", .suffix = " %"}, AGAINST_F,
                  "<b>Kept accuracy</b> against f; up and to the left is better.");
        put_cloud(&r->body, &c->times_cost, cost, (struct svg_axis){.label = "perplexity, \xc3\x97 dense", .log = true},
                  AGAINST_F,
                  "<b>Perplexity</b>, logarithmic, against f and what router and compensation cost beside it; down and to the "
                  "left is better.");
        s = put_speed(r, c, e);
        str_addz(&r->body, "</div>\n");
        report_section_end(r);
    }
    free(x);
    free(c);
    return s;
}
