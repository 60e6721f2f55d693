#include "jobs/report_text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void html_text(struct str *out, const char *text)
{
    if (!text) return;
    for (const char *at = text; *at; at++) {
        unsigned char c = (unsigned char)*at;

        if (c == '&') str_addz(out, "&amp;");
        else if (c == '<') str_addz(out, "&lt;");
        else if (c == '>') str_addz(out, "&gt;");
        else if (c == '"') str_addz(out, "&quot;");
        else if (c == '\'') str_addz(out, "&#39;");
        else if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) str_addz(out, "\xef\xbf\xbd");
        else str_add(out, at, 1);
    }
}

#define MINUS  "\xe2\x88\x92" /* U+2212 */
#define NARROW "\xe2\x80\xaf" /* U+202F, a narrow space that does not break */
#define DASH   "\xe2\x80\x93" /* U+2013 */

/* Digits of a number that is not negative. */
static void add_digits(struct str *out, double x, int decimals)
{
    char text[400];

    snprintf(text, sizeof(text), "%.*f", decimals, x);
    size_t whole = strcspn(text, ".");
    for (size_t i = 0; i < whole; i++) {
        if (i > 0 && whole > 4 && (whole - i) % 3 == 0) str_addz(out, NARROW);
        str_add(out, text + i, 1);
    }
    str_addz(out, text + whole);
}

/* Does it round to 0?  Then it has no sign. */
static bool rounds_to_zero(double x, int decimals)
{
    return fabs(x) < 0.5 * pow(10, -decimals);
}

void html_number(struct str *out, double x, int decimals)
{
    if (isnan(x)) {
        str_addz(out, DASH);
        return;
    }
    if (x < 0 && !rounds_to_zero(x, decimals)) str_addz(out, MINUS);
    if (isinf(x)) str_addz(out, "\xe2\x88\x9e");
    else if (fabs(x) >= 1e15) str_addf(out, "%.3g", fabs(x));
    else add_digits(out, fabs(x), decimals);
}

void html_signed(struct str *out, double x, int decimals)
{
    if (x > 0 && !rounds_to_zero(x, decimals)) str_addz(out, "+");
    html_number(out, x, decimals);
}

void html_human(struct str *out, double x)
{
    static const char *const prefix[] = {"", "k", "M", "G", "T"};
    int i = 0;

    while (fabs(x) >= 999.5 && i < 4) {
        x /= 1000;
        i++;
    }
    html_number(out, x, i == 0 ? 0 : fabs(x) < 9.995 ? 2 : fabs(x) < 99.95 ? 1 : 0);
    if (i) str_addf(out, NARROW "%s", prefix[i]);
}

/* ---- tables ---- */

static void put_groups(struct str *out, const char *const *group, int n)
{
    str_addz(out, "<tr>");
    for (int i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && group[end] == group[i]; end++)
            ;
        str_addf(out, "<th colspan=\"%d\"%s class=\"g\">", end - i, group[i] ? " scope=\"colgroup\"" : "");
        html_text(out, group[i]);
        str_addz(out, "</th>");
    }
    str_addz(out, "</tr>");
}

static void put_heads(struct str *out, const struct html_column *columns, int n)
{
    str_addz(out, "<tr>");
    for (int i = 0; i < n; i++) {
        str_addf(out, "<th scope=\"col\"%s", columns[i].text ? " class=\"t\"" : "");
        if (columns[i].about) {
            str_addz(out, " title=\"");
            html_text(out, columns[i].about);
            str_addz(out, "\"");
        }
        str_addz(out, ">");
        html_text(out, columns[i].head);
        str_addz(out, "</th>");
    }
    str_addz(out, "</tr></thead><tbody>\n");
}

void table_open(struct str *out, const struct html_column *columns, int n, const char *caption)
{
    str_addz(out, "<div class=\"scroll\"><table>");
    if (caption) {
        str_addz(out, "<caption>");
        html_text(out, caption);
        str_addz(out, "</caption>");
    }
    str_addz(out, "<thead>");
    put_heads(out, columns, n);
}

void table_open_groups(struct str *out, const struct html_column *columns, const char *const *group, int n)
{
    str_addz(out, "<div class=\"scroll\"><table class=\"tight\"><thead>");
    put_groups(out, group, n);
    put_heads(out, columns, n);
}

void table_row(struct str *out, const char *class)
{
    if (class) str_addf(out, "<tr class=\"%s\">", class);
    else str_addz(out, "<tr>");
}

void table_row_end(struct str *out)
{
    str_addz(out, "</tr>\n");
}

void table_head(struct str *out, const char *text)
{
    str_addz(out, "<th scope=\"row\">");
    html_text(out, text);
    str_addz(out, "</th>");
}

void table_text(struct str *out, const char *text)
{
    str_addz(out, "<td class=\"t\">");
    html_text(out, text && *text ? text : DASH);
    str_addz(out, "</td>");
}

void table_number(struct str *out, double x, int decimals, const char *unit)
{
    str_addz(out, isnan(x) ? "<td class=\"none\">" : "<td>");
    html_number(out, x, decimals);
    if (unit && !isnan(x)) str_addf(out, NARROW "%s", unit);
    str_addz(out, "</td>");
}

void table_signed(struct str *out, double x, int decimals)
{
    str_addz(out, isnan(x) ? "<td class=\"none\">" : "<td>");
    html_signed(out, x, decimals);
    str_addz(out, "</td>");
}

void table_close(struct str *out)
{
    str_addz(out, "</tbody></table></div>\n");
}
