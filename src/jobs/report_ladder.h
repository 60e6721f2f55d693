/* Private to the report: the ladder's rows as means over their runs, and how they are shown. */
#ifndef JOBS_REPORT_LADDER_H
#define JOBS_REPORT_LADDER_H

#include "jobs/report.h"

/* Of a figure over the runs of a cell; {0}: of none. */
struct spread {
    int n;
    double mean, squares /* sum of (x - mean)^2 */, low, high;
};
void spread_add(struct spread *s, double x);     /* what is not finite is left out */
double spread_mean(const struct spread *s);      /* NaN: none */
double spread_deviation(const struct spread *s); /* of a sample; NaN for one run */

enum ladder_figure {
    LADDER_SHARE, /* percent, as the next ones with % */
    LADDER_COST,
    LADDER_TIMES,
    LADDER_LOG_TIMES, /* nats a token over dense: what rows are held against each other by */
    LADDER_LOW,       /* of the interval of TIMES */
    LADDER_HIGH,
    LADDER_KEPT,
    LADDER_CLOSED,
    LADDER_KL,
    LADDER_PAIRS,
    LADDER_CHOICES,
    LADDER_STATIC_KEPT,
    LADDER_CEILING_KEPT,
    LADDER_FIGURES
};

/* One of them, for pairs. */
struct ladder_run {
    int64_t seed;     /* of its eval's spec; -1: not known */
    const char *text; /* digest, owned by its result; NULL: not known */
    double nats;      /* LADDER_LOG_TIMES */
    struct ladder_run *next;
};
/* The runs of a row at one f. */
struct ladder_cell {
    int runs;
    struct ladder_run *run; /* those whose nats are finite */
    struct spread x[LADDER_FIGURES];
};
struct ladder_line {
    const char *label;
    const char *variant; /* of its first run, owned by that; NULL: none was seen */
    bool part;           /* the row before with one part more: its label begins with + */
    struct ladder_cell cell[REPORT_SHARES];
};
struct ladder {
    int rows, columns;
    bool given; /* shares, which the columns are; else there is one */
    double share[REPORT_SHARES];
    struct ladder_line *line; /* [rows], those with a run only */
};

/* Nats a token less than the row before, mean over the runs; NaN where the row is no part, or there is nothing to compare.  low, high: its 95 % interval over the
 * seeds alone, on this text: of the differences seed by seed where ladder_pairs(), else of difference_interval(). */
struct report_interval ladder_gain(const struct ladder *l, int row, int column);
/* Do both have the same seeds, each once, on the same text?  Then a's nats less those of b's run with the same seed. */
bool ladder_pairs(struct spread *differences, const struct ladder_run *a, const struct ladder_run *b);
/* Their mean and the 95 % interval of Student's t.  Here and in the next one the ends are NaN where there is no spread: of a single run, or of equal figures, which say
 * nothing of how sure they are. */
struct report_interval pairs_interval(const struct spread *differences);
/* mean(a) - mean(b) and the 95 % interval of Welch's t: two samples that have nothing to do with each other, each with a variance of its own. */
struct report_interval difference_interval(const struct spread *a, const struct spread *b);
/* 97.5 % quantile of Student's t, of df >= 1 degrees of freedom: within 1 % where df is whole or above 4, a little too much elsewhere. */
double student_quantile(double df);
/* The column of a run that was measured at this f: the nearest of the given shares; -1: none within LADDER_BESIDE, so that its figures are not like for like. */
#define LADDER_BESIDE 0.03
int ladder_column(const struct ladder *l, double share);

void ladder_put_tables(struct str *out, const struct ladder *l);
void ladder_put_drawing(struct str *out, const struct ladder *l);
/* The main figures as a table of Markdown: perplexity and kept with their spread, KL, gap closed, f and cost. */
void ladder_put_markdown(struct str *out, const struct ladder *l);

#endif
