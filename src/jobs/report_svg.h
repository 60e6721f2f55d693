/* Drawings: axes, marks, lines and heat maps as inline SVG.  Pure.  Colours are classes (k0, k1, ... and h0 .. h8) that the page's style gives a light
 * and a dark value, every colour has a shape of its own as well. */
#ifndef JOBS_REPORT_SVG_H
#define JOBS_REPORT_SVG_H

#include <stdbool.h>

#include "base/str.h"

enum { SVG_TICKS_MAX = 24, SVG_KINDS = 9, SVG_SHADES = 9 };

/* Round numbers (1, 2, 2.5 or 5 times a power of ten) inside low .. high, about `about` of them, and the decimals they need. */
struct svg_ticks {
    int n, decimals;
    double at[SVG_TICKS_MAX];
};
void svg_ticks(struct svg_ticks *out, double low, double high, int about);
/* The same for an axis of logarithms, 0 < low < high: 1, 2, 5 times powers of ten, or round numbers where it spans little. */
void svg_ticks_log(struct svg_ticks *out, double low, double high);
/* low .. high made wider, so that marks do not stand on the frame and ticks are round.  `floor`: do not go below (NaN: no floor). */
void svg_widen(double *low, double *high, double floor);

/* A plot: a frame with two axes.  Values outside are drawn at the edge. */
struct svg_axis {
    double low, high;
    bool log;
    const char *label;  /* with its unit */
    double factor;      /* what ticks are multiplied by for reading, 100 for percent; 0: 1 */
    const char *suffix; /* behind the numbers of ticks, or NULL */
};
struct svg_plot {
    struct str *out;
    int width, height; /* of the whole drawing */
    /* the frame, in pixels from the top left.  The caller may give the margins left and right, 0: as its labels need */
    double left, right, top, bottom;
    struct svg_axis x, y; /* y.label NULL: no axis there */
};
/* The caller has filled out, width, height, x and y.  title: what a screen reader says.  Draws axes, ticks, grid and labels. */
void svg_plot_open(struct svg_plot *p, const char *title);
void svg_plot_close(struct svg_plot *p);
double svg_x(const struct svg_plot *p, double value);
double svg_y(const struct svg_plot *p, double value);

/* A mark at a place in pixels; its shape and colour are those of `kind`.  tip (borrowed, any text): the tooltip. */
void svg_mark(struct str *out, double x, double y, int kind, const char *tip);
/* The mark alone, for legends and tables. */
void svg_swatch(struct str *out, int kind);
/* A line through n points in units of the axes; class: of the style, "line k1". */
void svg_line(struct svg_plot *p, const double *x, const double *y, int n, const char *class);
void svg_band(struct svg_plot *p, const double *x, const double *low, const double *high, int n, const char *class);
void svg_label(struct str *out, double x, double y, const char *anchor, const char *class, const char *text);
/* A horizontal whisker from low to high at y pixels. */
void svg_whisker(struct svg_plot *p, double low, double high, double y, int kind);

/* Shade 0 .. SVG_SHADES - 1 of a value: diverging around 1 in octaves (1/4 and less, 4 and more at the ends), or from 0 to `most`. */
int svg_shade_ratio(double ratio);
int svg_shade(double value, double most);

/* A heat map of rows x columns cells.  cell() gives the shade (-1: empty) and fills `tip`. */
struct svg_heat {
    int rows, columns;
    const char *row_label, *column_label; /* what rows and columns are: "layer" */
    const char *const *row_names;         /* or NULL: 0, 1, 2, ... */
    int width;                            /* most pixels of the cells together; 0: 860 */
    const char *style;                    /* "ratio" or "share": which of the two scales of shades */
    int (*cell)(void *ctx, int row, int column, struct str *tip);
    void *ctx;
};
void svg_heat(struct str *out, const struct svg_heat *h, const char *title);
/* The scale below it. */
void svg_heat_key(struct str *out, const char *style, const char *low, const char *middle, const char *high);

#endif
