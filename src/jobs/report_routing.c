/* Where tokens go: loads of the experts, agreement by layer, and the knowledge map. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "jobs/report.h"

enum { LAYERS_MAX = 4096, EXPERTS_MAX = 65536, DOMAINS_MAX = 64, MAPS_MAX = 12 };

/* A matrix of numbers: a list of lists of one length.  *out malloc'ed, NULL if there is none. */
struct matrix {
    int rows, columns;
    double *at;
};
static status read_matrix(struct matrix *m, const struct json_t *list, const char *key, const char *source, struct err *e)
{
    *m = (struct matrix){0};
    if (!list || json_length(list) == 0) return OK;
    size_t rows = json_length(list), columns = json_is_array(json_item(list, 0)) ? json_length(json_item(list, 0)) : 0;

    if (rows > LAYERS_MAX || columns > EXPERTS_MAX || columns == 0)
        return err_set(e, ERR_FORMAT, "%s: %s: expected a list of lists of numbers, found something else", source, key);
    m->at = calloc(rows * columns, sizeof(double));
    BUG_ON(!m->at);
    for (size_t r = 0; r < rows; r++) {
        const struct json_t *row = json_item(list, r);

        if (!json_is_array(row) || json_length(row) != columns)
            return err_set(e, ERR_FORMAT, "%s: %s: expected lists of %zu numbers, found another one in place %zu", source, key,
                           columns, r);
        for (size_t c = 0; c < columns; c++) {
            if (!json_is_real(json_item(row, c)) && !json_is_null(json_item(row, c)))
                return err_set(e, ERR_FORMAT, "%s: %s: expected numbers, found something else in place %zu, %zu", source, key, r,
                               c);
            m->at[r * columns + c] = json_is_real(json_item(row, c)) ? json_number(json_item(row, c)) : NAN;
        }
    }
    m->rows = (int)rows;
    m->columns = (int)columns;
    return OK;
}

/* ---- loads ---- */

struct load_map {
    const struct matrix *m;
    double sum[LAYERS_MAX];
};

static int load_cell(void *ctx, int row, int column, struct str *tip)
{
    const struct load_map *l = ctx;
    double tokens = l->m->at[row * l->m->columns + column], even = l->sum[row] / l->m->columns;
    double ratio = even > 0 ? tokens / even : NAN;

    if (isnan(tokens)) return -1;
    str_addf(tip, "layer %d, expert %d: %.2f %% of the layer's tokens, %.2f times an even load", row, column,
             l->sum[row] > 0 ? 100 * tokens / l->sum[row] : 0, ratio);
    return svg_shade_ratio(ratio);
}

static void put_loads(struct str *out, const struct matrix *m, const char *what)
{
    struct load_map *l = calloc(1, sizeof(*l));
    int idle = 0;
    double most = 0;

    BUG_ON(!l);
    l->m = m;
    for (int r = 0; r < m->rows; r++) {
        for (int c = 0; c < m->columns; c++) l->sum[r] += isnan(m->at[r * m->columns + c]) ? 0 : m->at[r * m->columns + c];
        for (int c = 0; c < m->columns && l->sum[r] > 0; c++) {
            double ratio = m->at[r * m->columns + c] / l->sum[r] * m->columns;

            idle += ratio < 0.1;
            if (ratio > most) most = ratio;
        }
    }
    struct svg_heat h = {.rows = m->rows,
                         .columns = m->columns,
                         .row_label = "layer",
                         .column_label = "expert",
                         .style = "ratio",
                         .cell = load_cell,
                         .ctx = l};
    str_addz(out, "<figure><div class=\"scroll\">");
    svg_heat(out, &h, "load of every expert");
    str_addz(out, "</div>");
    svg_heat_key(out, "ratio", "\xc2\xbc \xc3\x97", "even", "4 \xc3\x97");
    str_addz(out, "<figcaption><b>Load</b>");
    html_text(out, what);
    str_addz(out, ": tokens of an expert over those of an even spread in its layer. The busiest expert has ");
    html_number(out, most, 2);
    str_addf(out, " times its share; %d of %d have less than a tenth of it.</figcaption></figure>\n", idle, m->rows * m->columns);
    free(l);
}

/* ---- agreement by layer ---- */

struct layer_line {
    const char *name;
    int kind;
    int n;
    double x[LAYERS_MAX], y[LAYERS_MAX];
};

static status read_layers(struct layer_line *l, const struct json_t *o, const char *key, const char *name, int kind,
                          const char *source, struct err *e)
{
    const struct json_t *list;

    *l = (struct layer_line){.name = name, .kind = kind};
    if (report_array(&list, o, key, source, e) || !list) return list || !o ? OK : e->code;
    for (size_t i = 0; i < json_length(list) && i < LAYERS_MAX; i++) {
        if (!json_is_real(json_item(list, i)))
            return err_set(e, ERR_FORMAT, "%s: %s: expected numbers, found something else", source, key);
        l->x[i] = (double)i;
        l->y[i] = json_number(json_item(list, i));
        l->n++;
    }
    return OK;
}

static void put_layers(struct str *out, const struct layer_line *lines, int n, double chance, const char *label,
                       const char *caption)
{
    double low = isfinite(chance) ? chance : INFINITY, high = isfinite(chance) ? chance : -INFINITY;
    int layers = 0;

    for (int i = 0; i < n; i++)
        for (int l = 0; l < lines[i].n; l++) {
            low = fmin(low, lines[i].y[l]);
            high = fmax(high, lines[i].y[l]);
            if (l + 1 > layers) layers = l + 1;
        }
    if (layers == 0 || !isfinite(low)) return;
    svg_widen(&low, &high, 0);
    struct svg_plot p = {.out = out, .width = 460, .height = 270};
    p.x = (struct svg_axis){.low = -0.4, .high = layers - 0.6, .label = "layer"};
    p.y = (struct svg_axis){.low = low, .high = fmin(high, low < 1 && high < 1.2 ? 1 : high), .label = label};
    str_addz(out, "<figure><p class=\"legend\">");
    for (int i = 0; i < n; i++)
        if (lines[i].n) {
            str_addz(out, "<span>");
            svg_swatch(out, lines[i].kind);
            html_text(out, lines[i].name);
            str_addz(out, "</span>");
        }
    if (isfinite(chance)) str_addz(out, "<span>dotted: a blind choice</span>");
    str_addz(out, "</p>");
    svg_plot_open(&p, label);
    if (isfinite(chance)) str_addf(out, "<path class=\"even\" d=\"M%.1f %.1fH%.1f\"/>", p.left, svg_y(&p, chance), p.right);
    for (int i = 0; i < n; i++) {
        char class[24];
        struct str tip = {0};

        snprintf(class, sizeof(class), "line thin k%d", lines[i].kind);
        if (lines[i].n > 1) svg_line(&p, lines[i].x, lines[i].y, lines[i].n, class);
        for (int l = 0; l < lines[i].n; l++) {
            str_clear(&tip);
            str_addf(&tip, "layer %d, %s: %.3f", l, lines[i].name, lines[i].y[l]);
            svg_mark(out, svg_x(&p, l), svg_y(&p, lines[i].y[l]), lines[i].kind, tip.text);
        }
        str_free(&tip);
    }
    svg_plot_close(&p);
    str_addf(out, "<figcaption>%s</figcaption></figure>\n", caption);
}

static status put_agreement(struct report *r, const struct report_run *run, struct err *e)
{
    enum { LINES = 3 };
    const struct report_run *trained = report_find(r, run->input, JOB_FINETUNE);
    struct layer_line *lines = calloc(LINES, sizeof(*lines));
    const struct json_t *agreement = NULL;
    struct str where = {0};
    double chance = NAN;

    BUG_ON(!lines);
    status s = read_layers(&lines[0], run->o, "agreement", "with the oracle, in this eval", 1, run->source, e);
    if (!s && trained) {
        str_addf(&where, "%s.agreement", trained->source);
        s = report_object(&agreement, trained->o, "agreement", trained->source, e);
        if (!s) s = report_number(&chance, trained->o, "chance", trained->source, e);
        if (!s) s = read_layers(&lines[1], agreement, "after", "with the labels, after training", 2, where.text, e);
        if (!s) s = read_layers(&lines[2], agreement, "before", "before training", 4, where.text, e);
    }
    if (!s)
        put_layers(&r->body, lines, LINES, chance, "experts rightly chosen, share",
                   "<b>Agreement</b> by layer: share of the best experts that are among those the router chose.");
    str_free(&where);
    free(lines);
    return s;
}

/* ---- the knowledge map ---- */

struct knowledge {
    int domains, layers, experts;
    const char *domain[DOMAINS_MAX];
    struct matrix special[DOMAINS_MAX]; /* log2 of share in the domain over the mean of the domains: [layer][expert] */
};
struct special_map {
    const struct knowledge *k;
    int layer;
};

static int special_cell(void *ctx, int row, int column, struct str *tip)
{
    const struct special_map *s = ctx;
    const struct matrix *m = &s->k->special[row];
    double octaves = column < m->columns && s->layer < m->rows ? m->at[s->layer * m->columns + column] : NAN;

    if (isnan(octaves)) return -1;
    str_addf(tip, "layer %d, expert %d: %.2f times as often in %s as on average", s->layer, column, exp2(octaves),
             s->k->domain[row]);
    return svg_shade_ratio(exp2(octaves));
}

static status read_knowledge(struct knowledge *k, const struct json_t *o, const char *source, struct err *e)
{
    const struct json_t *map, *list;

    *k = (struct knowledge){0};
    if (report_object(&map, o, "specialisation", source, e)) return e->code;
    for (void *i = map ? json_first(map) : NULL; i && k->domains < DOMAINS_MAX; i = json_next(map, i)) {
        int d = k->domains;

        if (report_array(&list, map, json_key(i), source, e)) return e->code;
        if (!list) continue;
        k->domain[d] = json_key(i);
        if (read_matrix(&k->special[d], list, json_key(i), source, e)) return e->code;
        if (k->special[d].rows > k->layers) k->layers = k->special[d].rows;
        if (k->special[d].columns > k->experts) k->experts = k->special[d].columns;
        k->domains++;
    }
    return OK;
}

static void put_special(struct str *out, const struct knowledge *k)
{
    int shown = k->layers < MAPS_MAX ? k->layers : MAPS_MAX;

    str_addz(out, "<div class=\"grid\">\n");
    for (int i = 0; i < shown; i++) {
        struct special_map s = {k, shown > 1 ? i * (k->layers - 1) / (shown - 1) : 0};
        struct svg_heat h = {.rows = k->domains,
                             .columns = k->experts,
                             .row_label = "domain",
                             .column_label = "expert",
                             .row_names = k->domain,
                             .width = k->layers > 1 ? 370 : 0,
                             .style = "ratio",
                             .cell = special_cell,
                             .ctx = &s};
        char title[64];

        snprintf(title, sizeof(title), "Layer %d", s.layer);
        str_addf(out, "<figure><figcaption><b>%s</b></figcaption><div class=\"scroll\">", title);
        svg_heat(out, &h, title);
        str_addz(out, "</div></figure>\n");
    }
    str_addz(out, "</div>\n");
    svg_heat_key(out, "ratio", "\xc2\xbc \xc3\x97", "as often", "4 \xc3\x97");
    str_addz(out, "<p class=\"note\"><b>Specialisation</b>: how much more often an expert is active in texts of a domain than in "
                  "the mean of all domains");
    if (shown < k->layers) str_addf(out, "; %d of %d layers are shown", shown, k->layers);
    str_addz(out, ".</p>\n");
}

static status put_domains(struct str *out, const struct json_t *o, const char *source, struct err *e)
{
    static const struct html_column columns[] = {{"domain", NULL, true},
                                                 {"tokens", NULL, false},
                                                 {"perplexity", NULL, false},
                                                 {"accuracy %", NULL, false},
                                                 {"experts of its own", "layer.expert, times as often as in the mean", true}};
    const struct json_t *tokens, *accuracy, *perplexity, *top, *list;
    struct str own = {0};
    status s;

    if (report_object(&tokens, o, "tokens", source, e) || report_object(&accuracy, o, "accuracy", source, e) ||
        report_object(&perplexity, o, "perplexity", source, e) || report_object(&top, o, "top", source, e))
        return e->code;
    if (!tokens) return OK;
    table_open(out, columns, 5, NULL);
    s = OK;
    for (void *i = json_first(tokens); i && !s; i = json_next(tokens, i)) {
        const char *name = json_key(i);
        double n, a, p;

        if ((s = report_number(&n, tokens, name, source, e)) || (s = report_number(&a, accuracy, name, source, e)) ||
            (s = report_number(&p, perplexity, name, source, e)) || (s = report_array(&list, top, name, source, e)))
            break;
        str_clear(&own);
        for (size_t t = 0; list && t < json_length(list) && t < 4 && !s; t++) {
            const struct json_t *x = json_item(list, t);
            double layer, expert, octaves;

            if (!json_is_object(x))
                s = err_set(e, ERR_FORMAT, "%s: top.%.80s: expected objects, found something else", source, name);
            if (!s) s = report_number(&layer, x, "layer", source, e);
            if (!s) s = report_number(&expert, x, "expert", source, e);
            if (!s) s = report_number(&octaves, x, "specialisation", source, e);
            if (!s) str_addf(&own, "%s%.0f.%.0f (%.1f \xc3\x97)", own.length ? ", " : "", layer, expert, exp2(octaves));
        }
        if (s) break;
        table_row(out, NULL);
        table_head(out, name);
        table_number(out, n, 0, NULL);
        table_number(out, p, 2, NULL);
        table_number(out, 100 * a, 1, NULL);
        table_text(out, own.text);
        table_row_end(out);
    }
    str_free(&own);
    table_close(out);
    return s;
}

static status put_entropies(struct str *out, const struct json_t *o, const char *source, struct err *e)
{
    struct layer_line *lines = calloc(3, sizeof(*lines));

    BUG_ON(!lines);
    status s = read_layers(&lines[0], o, "load_entropy", "entropy of the loads", 3, source, e);
    if (!s) s = read_layers(&lines[1], o, "router_entropy", "entropy of the router's choice", 1, source, e);
    if (!s) s = read_layers(&lines[2], o, "information", "bits that an expert tells of the domain", 5, source, e);
    if (!s && lines[0].n + lines[1].n > 0)
        put_layers(out, lines, 2, NAN, "entropy, of its most",
                   "<b>Entropy</b> by layer, as a share of its most: 1 is an even spread over the experts, or a choice without "
                   "preference.");
    if (!s && lines[2].n > 0)
        put_layers(out, lines + 2, 1, NAN, "information, bits",
                   "<b>Information</b> by layer: how much the choice of an expert tells of the domain of the text.");
    free(lines);
    return s;
}

static status put_knowledge(struct report *r, const struct report_run *run, struct err *e)
{
    struct knowledge *k = calloc(1, sizeof(*k));
    struct json_t *file = NULL;
    const struct json_t *o;
    struct str source = {0};
    char *path = str_join(run->directory, "knowledge.json");

    BUG_ON(!k);
    str_addf(&source, "%s.knowledge", run->source);
    status s = report_object(&o, run->o, "knowledge", run->source, e);
    if (!s && o) {
        str_addz(&r->body, "<h3>Which experts answer which texts</h3>\n");
        s = put_domains(&r->body, o, source.text, e);
        if (!s) {
            str_addz(&r->body, "<div class=\"grid\">\n");
            s = put_entropies(&r->body, o, source.text, e);
            str_addz(&r->body, "</div>\n");
        }
        if (!s && !json_at(o, "specialisation") && file_exists(path)) { /* too large for result.json */
            s = json_read(&file, path, REPORT_BYTES_MAX, e);
            if (!s && !json_is_object(file)) s = err_set(e, ERR_FORMAT, "%s: expected an object", path);
        }
        if (!s) s = read_knowledge(k, file ? file : o, file ? path : source.text, e);
        if (!s && k->domains > 0 && k->layers > 0) put_special(&r->body, k);
        else if (!s) report_missing(r, "%s: has no specialisation", source.text);
    }
    for (int d = 0; d < DOMAINS_MAX; d++) free(k->special[d].at);
    free(k);
    json_free(file);
    free(path);
    str_free(&source);
    return s;
}

/* ---- the section ---- */

static status put_run(struct report *r, const struct report_run *run, struct err *e)
{
    const struct json_t *list;
    struct matrix m = {0};

    report_heading(r, run, true);
    status s = report_array(&list, run->o, "load", run->source, e);
    if (!s) s = read_matrix(&m, list, "load", run->source, e);
    if (!s && m.rows > 0) put_loads(&r->body, &m, " of the trained router");
    if (!s) {
        str_addz(&r->body, "<div class=\"grid\">\n");
        s = put_agreement(r, run, e);
        str_addz(&r->body, "</div>\n");
    }
    if (!s) s = put_knowledge(r, run, e);
    free(m.at);
    return s;
}

status report_routing(struct report *r, struct err *e)
{
    bool open = false;

    for (int i = 0; i < r->n; i++) {
        const struct report_run *run = &r->run[i];

        if (run->kind != JOB_EVAL || run->row >= 0) continue;
        if (!json_at(run->o, "load") && !json_at(run->o, "agreement") && !json_at(run->o, "knowledge")) {
            report_missing(r, "%s: the router was not measured, so there is no load and no agreement", run->source);
            continue;
        }
        if (!open) report_section(r, "routing", "Where tokens go", NULL);
        open = true;
        if (put_run(r, run, e)) return e->code;
    }
    if (open) report_section_end(r);
    return OK;
}
