/* Text and numbers of a page of HTML, and its tables.  Pure. */
#ifndef JOBS_REPORT_TEXT_H
#define JOBS_REPORT_TEXT_H

#include <stdbool.h>

#include "base/str.h"

/* Any text as content or as the value of a quoted attribute: &, <, >, " and ' as entities, control characters as U+FFFD. */
void html_text(struct str *out, const char *text);

/* With a true minus sign, digits in groups of three from 10 000 on; "–" for what is no number, "∞". */
void html_number(struct str *out, double x, int decimals);
void html_signed(struct str *out, double x, int decimals); /* + in front, unless it is 0 */
/* "12.3 k", "5.77 M": three digits and a prefix. */
void html_human(struct str *out, double x);

/* Tables.  Every column has one number of decimals, figures are of one width and on the right, so that decimal points stand below each other. */
struct html_column {
    const char *head, *about; /* about: the tooltip, or NULL */
    bool text;                /* on the left */
};
void table_open(struct str *out, const struct html_column *columns, int n, const char *caption);
/* group[n]: a head above columns side by side with the same pointer; NULL: none there. */
void table_open_groups(struct str *out, const struct html_column *columns, const char *const *group, int n);
void table_row(struct str *out, const char *class); /* NULL: none */
void table_row_end(struct str *out);
void table_head(struct str *out, const char *text); /* the cell that names the row */
void table_text(struct str *out, const char *text);
void table_number(struct str *out, double x, int decimals, const char *unit);
void table_signed(struct str *out, double x, int decimals);
void table_close(struct str *out);

#endif
