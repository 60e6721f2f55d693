/* The ladder's tables and its drawing. */
#include <math.h>
#include <string.h>

#include "jobs/report_ladder.h"

struct figure {
    enum ladder_figure f;
    const char *head, *about;
    int decimals;
    bool deviation, second, alone; /* with its spread; in the second table; only where controls are no rows of their own */
};
static const struct figure figures[] = {
    {LADDER_TIMES, "\xc3\x97 dense", "perplexity over that of the dense model", 3, true, false, false},
    {LADDER_KEPT, "kept %", "next-token accuracy over that of the dense model", 1, true, false, false},
    {LADDER_CLOSED, "gap %", "closed: share of the way from static to the ceiling of single neurons, in nats", 1, true, false,
     false},
    {LADDER_KL, "KL", "from the dense model's distribution, nats a token", 4, true, true, false},
    {LADDER_SHARE, "f %", "share of the FFN's neurons that is active, as measured", 2, true, true, false},
    {LADDER_COST, "cost %", "multiply-adds of router and compensation, of those of the dense FFN", 2, false, true, false},
    {LADDER_PAIRS, "pairs %", "minimal pairs judged rightly", 1, true, true, false},
    {LADDER_CHOICES, "choices %", "questions answered rightly", 1, true, true, false},
    {LADDER_STATIC_KEPT, "static kept %", "of the control without routing, at the same f", 1, false, true, true},
    {LADDER_CEILING_KEPT, "ceiling kept %", "of single neurons chosen in hindsight (else the oracle)", 1, false, true, true},
};
enum { FIGURES = sizeof(figures) / sizeof(figures[0]), COLUMNS_MAX = 1 + REPORT_SHARES * (2 * FIGURES + 5) };

/* What is shown of each figure in each column: nothing, the mean, or its spread too. */
struct table {
    const struct ladder *l;
    bool second, runs[REPORT_SHARES], gain[REPORT_SHARES], sure[REPORT_SHARES], interval[REPORT_SHARES];
    bool shown[REPORT_SHARES][FIGURES], spread[REPORT_SHARES][FIGURES];
    char group[REPORT_SHARES][32];
};

static void look(struct table *t, int c)
{
    const struct ladder *l = t->l;

    snprintf(t->group[c], sizeof(t->group[c]), "f %g %%", 100 * l->share[c]);
    for (int i = 0; i < l->rows; i++) {
        const struct spread *x = l->line[i].cell[c].x;

        for (int f = 0; f < FIGURES; f++) {
            if (figures[f].second != t->second || (figures[f].alone && l->given)) continue;
            t->shown[c][f] |= x[figures[f].f].n > 0;
            t->spread[c][f] |= figures[f].deviation && x[figures[f].f].n > 1;
        }
        t->runs[c] |= l->line[i].cell[c].runs > 0;
        t->gain[c] |= !t->second && isfinite(ladder_gain(l, i, c).value);
        t->sure[c] |= t->gain[c] && isfinite(ladder_gain(l, i, c).low);
        t->interval[c] |= t->second && x[LADDER_LOW].n > 0 && x[LADDER_HIGH].n > 0;
    }
}

struct heads {
    int n;
    struct html_column column[COLUMNS_MAX];
    const char *group[COLUMNS_MAX];
};

static void add_head(struct heads *to, const char *group, const char *head, const char *about)
{
    to->group[to->n] = group;
    to->column[to->n++] = (struct html_column){head, about, !about};
}

static void put_heads(struct heads *to, const struct table *t)
{
    add_head(to, NULL, "row", NULL);
    for (int c = 0; c < t->l->columns; c++) {
        const char *group = t->group[c];

        if (t->second && t->runs[c]) add_head(to, group, "runs", "as many as there are seeds");
        for (int f = 0; f < FIGURES; f++) {
            if (t->shown[c][f]) add_head(to, group, figures[f].head, figures[f].about);
            if (t->spread[c][f]) add_head(to, group, "\xc2\xb1", "standard deviation over the runs of the row");
            if (f == 0 && t->gain[c])
                add_head(to, group, "part", "what the part changes against the row above, nats a token: less is better");
            if (f == 0 && t->sure[c])
                add_head(
                    to, group, "part, 95 %",
                    "interval of that, over seeds alone, on this text: Student's t of the differences seed by seed where both "
                    "rows have the same seeds, else Welch's t of two means; an interval without 0: the part makes a difference "
                    "that seeds do not explain");
        }
        if (t->interval[c])
            add_head(to, group, "\xc3\x97 dense, 95 %", "least and most of the runs' intervals of a bootstrap over the text");
    }
}

/* gain: nats less, shown as a change. */
static void put_gain(struct str *out, struct report_interval gain, bool sure)
{
    str_addz(out, "<td class=\"ci\">");
    if (isfinite(gain.value)) html_signed(out, -gain.value, 3);
    str_addz(out, "</td>");
    if (!sure) return;
    str_addz(out, "<td class=\"ci\">");
    if (isfinite(gain.low)) {
        html_signed(out, -gain.high, 3);
        str_addz(out, " to ");
        html_signed(out, -gain.low, 3);
    }
    str_addz(out, "</td>");
}

static void put_cell(struct str *out, const struct table *t, int row, int c)
{
    const struct ladder_cell *cell = &t->l->line[row].cell[c];

    if (t->second && t->runs[c]) table_number(out, cell->runs, 0, NULL);
    for (int f = 0; f < FIGURES; f++) {
        const struct spread *x = &cell->x[figures[f].f];

        if (t->shown[c][f]) table_number(out, spread_mean(x), figures[f].decimals, NULL);
        if (t->spread[c][f]) {
            str_addz(out, "<td class=\"ci\">");
            if (x->n > 1) html_number(out, spread_deviation(x), figures[f].decimals);
            str_addz(out, "</td>");
        }
        if (f == 0 && t->gain[c]) put_gain(out, ladder_gain(t->l, row, c), t->sure[c]);
    }
    if (!t->interval[c]) return;
    str_addz(out, "<td class=\"ci\">");
    if (cell->x[LADDER_LOW].n > 0 && cell->x[LADDER_HIGH].n > 0) {
        html_number(out, cell->x[LADDER_LOW].low, 3);
        str_addz(out, " to ");
        html_number(out, cell->x[LADDER_HIGH].high, 3);
    }
    str_addz(out, "</td>");
}

static void put_table(struct str *out, const struct ladder *l, bool second)
{
    struct table t = {.l = l, .second = second};
    struct heads h = {0};

    for (int c = 0; c < l->columns; c++) look(&t, c);
    put_heads(&h, &t);
    if (l->given) table_open_groups(out, h.column, h.group, h.n);
    else table_open(out, h.column, h.n, NULL);
    for (int i = 0; i < l->rows; i++) {
        table_row(out, i > 0 && !l->line[i].part && l->line[i - 1].part ? "group" : NULL); /* the parts end here */
        table_head(out, l->line[i].label);
        for (int c = 0; c < l->columns; c++) put_cell(out, &t, i, c);
        table_row_end(out);
    }
    table_close(out);
}

void ladder_put_tables(struct str *out, const struct ladder *l)
{
    put_table(out, l, false);
    put_table(out, l, true);
}

/* ---- kept of every row: the mean, from the least to the most of its runs; and its controls ---- */

enum { WIDTH = 760, ROW = 26 };

static void put_legend(struct str *out, const struct ladder *l)
{
    static const char *const alone[] = {"the router, mean, and least to most of the runs", "static", "ceiling"};
    static const int kinds[] = {1, 3, 5};

    str_addz(out, "<figure><p class=\"legend\">");
    for (int c = 0; l->given && c < l->columns; c++) {
        str_addz(out, "<span>");
        svg_swatch(out, 1 + c);
        str_addf(out, "f %g %%</span>", 100 * l->share[c]);
    }
    for (int i = 0; !l->given && i < 3; i++) {
        str_addz(out, "<span>");
        svg_swatch(out, kinds[i]);
        str_addf(out, "%s</span>", alone[i]);
    }
    str_addz(out, "</p><div class=\"scroll\"><div class=\"wide\">");
}

static void range(double *low, double *high, int *names, const struct ladder *l)
{
    *low = INFINITY;
    *high = -INFINITY;
    for (int i = 0; i < l->rows; i++)
        for (int c = 0; c < l->columns; c++) {
            const struct spread *x = l->line[i].cell[c].x;
            const enum ladder_figure all[] = {LADDER_KEPT, LADDER_STATIC_KEPT, LADDER_CEILING_KEPT};

            for (int f = 0; f < (l->given ? 1 : 3); f++) {
                if (!x[all[f]].n) continue;
                *low = fmin(*low, x[all[f]].low);
                *high = fmax(*high, x[all[f]].high);
            }
            if (7 * (int)strlen(l->line[i].label) > *names) *names = 7 * (int)strlen(l->line[i].label);
        }
}

static void put_marks(struct svg_plot *p, const struct ladder *l, int row, double y)
{
    struct str values = {0}, tip = {0};

    for (int c = 0; c < l->columns; c++) {
        const struct spread *x = l->line[row].cell[c].x;

        if (c > 0) str_addz(&values, " / ");
        html_number(&values, spread_mean(&x[LADDER_KEPT]), 1);
        if (!x[LADDER_KEPT].n) continue;
        if (!l->given && x[LADDER_STATIC_KEPT].n) svg_mark(p->out, svg_x(p, spread_mean(&x[LADDER_STATIC_KEPT])), y, 3, "static");
        if (!l->given && x[LADDER_CEILING_KEPT].n)
            svg_mark(p->out, svg_x(p, spread_mean(&x[LADDER_CEILING_KEPT])), y, 5, "ceiling");
        str_clear(&tip);
        if (l->given) str_addf(&tip, "f %g %%: ", 100 * l->share[c]);
        html_number(&tip, spread_mean(&x[LADDER_KEPT]), 1);
        str_addz(&tip, " %");
        if (x[LADDER_KEPT].n > 1) svg_whisker(p, x[LADDER_KEPT].low, x[LADDER_KEPT].high, y, 1 + c);
        svg_mark(p->out, svg_x(p, spread_mean(&x[LADDER_KEPT])), y, 1 + c, tip.text);
    }
    str_addz(&values, " %");
    svg_label(p->out, p->left - 10, y + 4, "end", "name", l->line[row].label);
    svg_label(p->out, WIDTH - 2, y + 4, "end", "value", values.text);
    str_free(&values);
    str_free(&tip);
}

void ladder_put_drawing(struct str *out, const struct ladder *l)
{
    int names = 60;
    double low, high;

    range(&low, &high, &names, l);
    if (l->rows < 2 || !(low <= high)) return;
    svg_widen(&low, &high, 0);
    struct svg_plot p = {.out = out, .width = WIDTH, .height = 58 + ROW * l->rows, .left = 18 + (names < 300 ? names : 300)};
    p.right = 30 + 38 * l->columns;
    p.x = (struct svg_axis){.low = low, .high = high, .label = "kept: next-token accuracy, % of dense", .suffix = " %"};
    p.y = (struct svg_axis){.low = 0, .high = l->rows};
    put_legend(out, l);
    svg_plot_open(&p, "kept accuracy of every row");
    for (int i = 0; i < l->rows; i++) put_marks(&p, l, i, svg_y(&p, l->rows - 0.5 - i));
    svg_plot_close(&p);
    str_addz(out, "</div></div></figure>\n");
}

/* ---- as text ---- */

static void add_plain(struct str *out, const struct spread *x, int decimals, bool spread)
{
    if (!x->n) {
        str_addz(out, " - |");
        return;
    }
    double mean = spread_mean(x);

    str_addf(out, " %.*f", decimals, fabs(mean) < 0.5 * pow(10, -decimals) ? 0 : mean); /* no -0.0 */
    if (spread && x->n > 1) str_addf(out, " \xc2\xb1 %.*f", decimals, spread_deviation(x));
    str_addz(out, " |");
}

void ladder_put_markdown(struct str *out, const struct ladder *l)
{
    static const struct {
        enum ladder_figure f;
        const char *head;
        int decimals;
        bool spread;
    } all[] = {{LADDER_TIMES, "\xc3\x97 dense", 3, true},
               {LADDER_KEPT, "kept %", 1, true},
               {LADDER_CLOSED, "gap %", 1, true},
               {LADDER_KL, "KL", 3, true},
               {LADDER_SHARE, "f %", 1, true},
               {LADDER_COST, "cost %", 1, false}};
    enum { ALL = sizeof(all) / sizeof(all[0]) };

    str_addz(out, "| row |");
    for (int c = 0; c < l->columns; c++)
        for (int f = 0; f < ALL; f++) {
            str_addf(out, " %s", all[f].head);
            if (f == 0 && l->given) str_addf(out, ", f %g %%", 100 * l->share[c]);
            str_addz(out, " |");
        }
    str_addz(out, "\n|---|");
    for (int i = 0; i < ALL * l->columns; i++) str_addz(out, "--:|");
    for (int i = 0; i < l->rows; i++) {
        str_addf(out, "\n| ");
        for (const char *at = l->line[i].label; *at; at++) {
            if (*at == '|') str_addz(out, "\\");
            str_add(out, at, 1);
        }
        str_addz(out, " |");
        for (int c = 0; c < l->columns; c++)
            for (int f = 0; f < ALL; f++) add_plain(out, &l->line[i].cell[c].x[all[f].f], all[f].decimals, all[f].spread);
    }
    str_addz(out, "\n");
}
