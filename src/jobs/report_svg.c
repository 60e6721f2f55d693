#include "jobs/report_svg.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "jobs/report_text.h"

/* ---- ticks ---- */

static int decimals_of(double step)
{
    int n = 0;

    while (n < 9 && fabs(step * pow(10, n) - nearbyint(step * pow(10, n))) > 1e-6) n++;
    return n;
}

void svg_ticks(struct svg_ticks *out, double low, double high, int about)
{
    static const double nice[] = {1, 2, 2.5, 5, 10};
    double span = high - low, step = 1;

    *out = (struct svg_ticks){0};
    if (!(span > 0) || !isfinite(span) || about < 1) return;
    double base = pow(10, floor(log10(span / about)));
    for (int i = 0; i < 5; i++) {
        step = nice[i] * base;
        if (span / step <= 1.3 * about) break;
    }
    double from = ceil(low / step - 1e-9);
    for (int i = 0; out->n < SVG_TICKS_MAX && (from + i) * step <= high + 1e-9 * span; i++)
        out->at[out->n++] = (from + i) * step == 0 ? 0 : (from + i) * step; /* no -0 */
    out->decimals = decimals_of(step);
}

void svg_ticks_log(struct svg_ticks *out, double low, double high)
{
    static const double nice[] = {1, 2, 5};

    *out = (struct svg_ticks){0};
    if (!(low > 0) || !(high > low) || !isfinite(high)) return;
    if (high / low < 5) {
        svg_ticks(out, low, high, 5);
        return;
    }
    for (int power = (int)floor(log10(low)); power <= 18; power++)
        for (int i = 0; i < 3; i++) {
            double x = nice[i] * pow(10, power);

            if (high / low > 1e5 && i > 0) continue;
            if (x < low * (1 - 1e-9) || x > high * (1 + 1e-9) || out->n == SVG_TICKS_MAX) continue;
            out->at[out->n++] = x;
            if (decimals_of(x) > out->decimals) out->decimals = decimals_of(x);
        }
}

void svg_widen(double *low, double *high, double floor)
{
    double span = *high - *low, margin = span > 0 ? 0.06 * span : fabs(*high) > 0 ? 0.1 * fabs(*high) : 1;

    *high += margin;
    *low = !isnan(floor) && *low - margin < floor ? floor : *low - margin;
}

/* ---- plots ---- */

static double place(const struct svg_axis *a, double value)
{
    double low = a->low, high = a->high;

    if (a->log) {
        value = value > 0 ? log(value) : log(low);
        low = log(low);
        high = log(high);
    }
    double share = (value - low) / (high - low);
    return share < 0 ? 0 : share > 1 ? 1 : share;
}

double svg_x(const struct svg_plot *p, double value)
{
    return p->left + place(&p->x, value) * (p->right - p->left);
}

double svg_y(const struct svg_plot *p, double value)
{
    return p->bottom - place(&p->y, value) * (p->bottom - p->top);
}

void svg_label(struct str *out, double x, double y, const char *anchor, const char *class, const char *text)
{
    str_addf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, class);
    html_text(out, text);
    str_addz(out, "</text>");
}

static void tick_text(struct str *to, const struct svg_axis *a, const struct svg_ticks *t, int i)
{
    double factor = a->factor != 0 ? a->factor : 1;
    int decimals = factor == 100 ? (t->decimals > 2 ? t->decimals - 2 : 0) : t->decimals;

    double most = fabs(t->at[t->n - 1] * factor);
    static const char *const prefix[] = {"",
                                         "\xe2\x80\xaf"
                                         "k",
                                         "\xe2\x80\xaf"
                                         "M",
                                         "\xe2\x80\xaf"
                                         "G"};
    int thousands = 0;

    str_clear(to);
    while (!a->log && most >= 10000 && thousands < 3) { /* one prefix for the whole axis */
        most /= 1000;
        factor /= 1000;
        thousands++;
    }
    if (thousands) {
        html_number(to, t->at[i] * factor, t->at[i] == 0 ? 0 : decimals_of((t->at[1] - t->at[0]) * factor));
        if (t->at[i] != 0) str_addz(to, prefix[thousands]);
    } else if (a->log && t->decimals) html_number(to, t->at[i] * factor, decimals_of(t->at[i] * factor));
    else html_number(to, t->at[i] * factor, decimals);
    if (a->suffix) str_addz(to, a->suffix);
}

static void draw_axis(struct svg_plot *p, bool vertical)
{
    const struct svg_axis *a = vertical ? &p->y : &p->x;
    struct svg_ticks t;
    struct str text = {0};

    if (a->log) svg_ticks_log(&t, a->low, a->high);
    else svg_ticks(&t, a->low, a->high, vertical ? 5 : 6);
    for (int i = 0; i < t.n; i++) {
        double at = vertical ? svg_y(p, t.at[i]) : svg_x(p, t.at[i]);

        tick_text(&text, a, &t, i);
        if (vertical) {
            str_addf(p->out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>", p->left, at, p->right);
            svg_label(p->out, p->left - 6, at + 4, "end", "tick", text.text);
        } else {
            str_addf(p->out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>", at, p->top, p->bottom);
            svg_label(p->out, at, p->bottom + 17, "middle", "tick", text.text);
        }
    }
    if (vertical) {
        str_addf(p->out, "<text transform=\"translate(13 %.1f) rotate(-90)\" text-anchor=\"middle\" class=\"axis\">",
                 (p->top + p->bottom) / 2);
        html_text(p->out, a->label);
        str_addz(p->out, "</text>");
    } else {
        svg_label(p->out, (p->left + p->right) / 2, p->bottom + 36, "middle", "axis", a->label);
    }
    str_free(&text);
}

static void open_svg(struct str *out, int width, int height, const char *class, const char *title)
{
    str_addf(out, "<svg class=\"%s\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", class, width, height);
    html_text(out, title);
    str_addz(out, "\">");
}

void svg_plot_open(struct svg_plot *p, const char *title)
{
    struct str *out = p->out;

    if (p->left == 0) p->left = p->y.label ? 58 : 12;
    p->right = p->width - (p->right > 0 ? p->right : 14);
    p->top = 12;
    p->bottom = p->height - 46;
    BUG_ON(!(p->x.high > p->x.low) || !(p->y.high > p->y.low));
    open_svg(out, p->width, p->height, "plot", title);
    if (p->y.label) draw_axis(p, true);
    draw_axis(p, false);
    if (p->y.label) str_addf(out, "<path class=\"frame\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", p->left, p->top, p->bottom, p->right);
    else str_addf(out, "<path class=\"frame\" d=\"M%.1f %.1fH%.1f\"/>\n", p->left, p->bottom, p->right);
}

void svg_plot_close(struct svg_plot *p)
{
    str_addz(p->out, "</svg>\n");
}

/* Around 0, 0; about as large as each other to the eye. */
static const char *const shapes[SVG_KINDS] = {
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",                                           /* disc: dense */
    "M0-6.2L5.6 4H-5.6z",                                                             /* triangle: the router */
    "M0-6L6 0L0 6L-6 0z",                                                             /* diamond: the oracle */
    "M-4.5-4.5h9v9h-9z",                                                              /* square: static */
    "M-5-3.4L-3.4-5L0-1.6L3.4-5L5-3.4L1.6 0L5 3.4L3.4 5L0 1.6L-3.4 5L-5 3.4L-1.6 0z", /* x: random */
    "M0 6.2L5.6-4H-5.6z",                                                             /* triangle, point down: the ceiling */
    "M-1.7-5.5h3.4v3.8h3.8v3.4h-3.8v3.8h-3.4v-3.8h-3.8v-3.4h3.8z",                    /* plus */
    "M-5.8 0L-2.9-5H2.9L5.8 0L2.9 5H-2.9z",                                           /* hexagon */
    "M-6-3h12v6h-12z",                                                                /* bar */
};

void svg_mark(struct str *out, double x, double y, int kind, const char *tip)
{
    BUG_ON(kind < 0 || kind >= SVG_KINDS);
    str_addf(out, "<path class=\"mark k%d\" transform=\"translate(%.1f %.1f)\" d=\"%s\">", kind, x, y, shapes[kind]);
    if (tip) {
        str_addz(out, "<title>");
        html_text(out, tip);
        str_addz(out, "</title>");
    }
    str_addz(out, "</path>\n");
}

void svg_swatch(struct str *out, int kind)
{
    str_addf(out, "<svg class=\"swatch\" viewBox=\"-8 -8 16 16\" aria-hidden=\"true\"><path class=\"k%d\" d=\"%s\"/></svg>", kind,
             shapes[kind]);
}

static void add_points(struct svg_plot *p, const double *x, const double *y, int n, bool backwards, bool first)
{
    for (int i = 0; i < n; i++) {
        int at = backwards ? n - 1 - i : i;

        str_addf(p->out, "%s%.1f %.1f", first && i == 0 ? "M" : "L", svg_x(p, x[at]), svg_y(p, y[at]));
    }
}

void svg_line(struct svg_plot *p, const double *x, const double *y, int n, const char *class)
{
    str_addf(p->out, "<path class=\"%s\" d=\"", class);
    add_points(p, x, y, n, false, true);
    str_addz(p->out, "\"/>\n");
}

void svg_band(struct svg_plot *p, const double *x, const double *low, const double *high, int n, const char *class)
{
    str_addf(p->out, "<path class=\"%s\" d=\"", class);
    add_points(p, x, low, n, false, true);
    add_points(p, x, high, n, true, false);
    str_addz(p->out, "z\"/>\n");
}

void svg_whisker(struct svg_plot *p, double low, double high, double y, int kind)
{
    double a = svg_x(p, low), b = svg_x(p, high);

    str_addf(p->out, "<path class=\"whisker k%d\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8\"/>\n", kind, a, y, b, a, y - 4, b,
             y - 4);
}

/* ---- heat maps ---- */

int svg_shade_ratio(double ratio)
{
    if (!(ratio > 0)) return 0;
    double octaves = log2(ratio); /* half an octave a step */
    int shade = (int)lround(2 * octaves) + SVG_SHADES / 2;

    return shade < 0 ? 0 : shade >= SVG_SHADES ? SVG_SHADES - 1 : shade;
}

int svg_shade(double value, double most)
{
    if (!(value > 0) || !(most > 0)) return 0;
    int shade = (int)floor(value / most * SVG_SHADES);

    return shade >= SVG_SHADES ? SVG_SHADES - 1 : shade;
}

void svg_heat(struct str *out, const struct svg_heat *h, const char *title)
{
    enum { MOST_WIDTH = 860, CELL_HEIGHT = 20, TOP = 4, BOTTOM = 34 };
    double cell = h->columns > 0 ? (double)(h->width ? h->width : MOST_WIDTH) / h->columns : 1, gap = 1;
    int names = h->row_names ? 4 : 2;
    struct str tip = {0};
    struct svg_ticks t;
    char label[64];

    for (int r = 0; h->row_names && r < h->rows; r++)
        if ((int)strlen(h->row_names[r]) > names) names = (int)strlen(h->row_names[r]) < 24 ? (int)strlen(h->row_names[r]) : 24;
    if (cell > 56) cell = 56;
    if (cell < 3) gap = 0;
    int left = 26 + 7 * names, width = left + (int)ceil(cell * h->columns) + 6, height = TOP + CELL_HEIGHT * h->rows + BOTTOM;
    str_addf(out, "<svg class=\"heat %s\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" aria-label=\"", h->style,
             width, height, width, height);
    html_text(out, title);
    str_addz(out, "\">");
    for (int r = 0; r < h->rows; r++) {
        snprintf(label, sizeof(label), "%d", r);
        svg_label(out, left - 6, TOP + CELL_HEIGHT * r + 14, "end", "tick", h->row_names ? h->row_names[r] : label);
        for (int c = 0; c < h->columns; c++) {
            str_clear(&tip);
            int shade = h->cell(h->ctx, r, c, &tip);
            if (shade < 0) continue;
            str_addf(out, "<rect class=\"h%d\" x=\"%.4g\" y=\"%d\" width=\"%.3g\" height=\"%d\">", shade, left + cell * c,
                     TOP + CELL_HEIGHT * r, cell - gap, CELL_HEIGHT - 1);
            if (tip.length) {
                str_addz(out, "<title>");
                html_text(out, tip.text);
                str_addz(out, "</title>");
            }
            str_addz(out, "</rect>");
        }
        str_addz(out, "\n");
    }
    svg_ticks(&t, 0, h->columns - 1, h->columns < 12 ? h->columns : 10);
    for (int i = 0; i < t.n; i++) {
        if (t.at[i] != floor(t.at[i])) continue;
        snprintf(label, sizeof(label), "%.0f", t.at[i]);
        svg_label(out, left + cell * (t.at[i] + 0.5), TOP + CELL_HEIGHT * h->rows + 13, "middle", "tick", label);
    }
    svg_label(out, left + cell * h->columns / 2, TOP + CELL_HEIGHT * h->rows + 29, "middle", "axis", h->column_label);
    if (!h->row_names) {
        str_addf(out, "<text transform=\"translate(11 %.1f) rotate(-90)\" text-anchor=\"middle\" class=\"axis\">",
                 TOP + CELL_HEIGHT * h->rows / 2.0);
        html_text(out, h->row_label);
        str_addz(out, "</text>");
    }
    str_addz(out, "</svg>\n");
    str_free(&tip);
}

void svg_heat_key(struct str *out, const char *style, const char *low, const char *middle, const char *high)
{
    enum { CELL = 26, LEFT = 30 };
    int width = 2 * LEFT + CELL * SVG_SHADES;

    str_addf(out, "<svg class=\"heat %s key\" viewBox=\"0 0 %d 30\" width=\"%d\" height=\"30\" aria-hidden=\"true\">", style,
             width, width);
    for (int i = 0; i < SVG_SHADES; i++)
        str_addf(out, "<rect class=\"h%d\" x=\"%d\" y=\"2\" width=\"%d\" height=\"10\"/>", i, LEFT + CELL * i, CELL - 1);
    svg_label(out, LEFT + CELL / 2, 26, "middle", "tick", low);
    if (middle) svg_label(out, width / 2.0, 26, "middle", "tick", middle);
    svg_label(out, width - LEFT - CELL / 2.0, 26, "middle", "tick", high);
    str_addz(out, "</svg>\n");
}
