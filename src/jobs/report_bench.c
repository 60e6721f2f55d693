/* What a bench measured: one table of its rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

static status put_row(struct str *out, const struct json_t *o, const char *source, struct err *e)
{
    const char *part, *what, *side, *format, *shape, *unit, *of;
    double rows, share, median, low, high, ratio;

    if (report_word(&part, o, "part", source, e) || report_word(&what, o, "what", source, e) ||
        report_word(&side, o, "side", source, e) || report_word(&format, o, "format", source, e) ||
        report_word(&shape, o, "shape", source, e) || report_word(&unit, o, "unit", source, e) ||
        report_word(&of, o, "ratio_of", source, e) || report_number(&rows, o, "rows", source, e) ||
        report_number(&share, o, "share", source, e) || report_number(&median, o, "median", source, e) ||
        report_number(&low, o, "min", source, e) || report_number(&high, o, "max", source, e) ||
        report_number(&ratio, o, "ratio", source, e))
        return e->code;
    if (isnan(median)) return OK;
    int decimals = fabs(median) >= 100 ? 0 : fabs(median) >= 10 ? 1 : 3;
    table_row(out, NULL);
    struct str name = {0};
    str_addf(&name, "%s, %s", part ? part : "?", what ? what : "?");
    table_head(out, name.text);
    str_free(&name);
    table_text(out, side);
    table_text(out, format);
    table_text(out, shape);
    table_number(out, rows > 0 ? rows : NAN, 0, NULL);
    table_number(out, share > 0 ? 100 * share : NAN, 1, NULL);
    table_number(out, median, decimals, NULL);
    str_addz(out, "<td class=\"ci\">");
    html_number(out, low, decimals);
    str_addz(out, " to ");
    html_number(out, high, decimals);
    str_addz(out, "</td>");
    table_text(out, unit);
    table_number(out, ratio, 2, NULL);
    table_text(out, of);
    table_row_end(out);
    return OK;
}

static status put_run(struct report *r, const struct report_run *run, bool *open, struct err *e)
{
    static const struct html_column columns[] = {{"what", NULL, true},
                                                 {"side", NULL, true},
                                                 {"format", NULL, true},
                                                 {"shape", NULL, true},
                                                 {"rows", NULL, false},
                                                 {"f %", NULL, false},
                                                 {"median", "over the rounds in which the sides took turns", false},
                                                 {"least to most", NULL, false},
                                                 {"", NULL, true},
                                                 {"ratio", "over what was measured beside it", false},
                                                 {"of", NULL, true}};
    struct json_t *lines;
    struct str path = {0};

    str_addf(&path, "%s/bench.jsonl", run->directory);
    status s = report_lines(&lines, run->directory, "bench.jsonl", e);
    if (!s && !lines) report_missing(r, "%s: is not there, so there are no figures of the bench", path.text);
    if (!s && lines && json_length(lines) > 0) {
        const struct json_t *first = json_item(lines, 0);
        const char *cpu = NULL, *isa = NULL;

        if (!*open)
            report_section(r, "speed", "Speed",
                           "Medians over rounds in which the sides take turns. They answer for one machine at one time: only the "
                           "ratios say something elsewhere.");
        *open = true;
        report_heading(r, run, true);
        s = report_word(&cpu, first, "cpu", path.text, e);
        if (!s) s = report_word(&isa, first, "isa", path.text, e);
        if (!s && cpu) {
            str_addz(&r->body, "<p class=\"note\">");
            html_text(&r->body, cpu);
            str_addz(&r->body, isa ? ", " : "");
            html_text(&r->body, isa);
            str_addz(&r->body, "</p>\n");
        }
        table_open(&r->body, columns, sizeof(columns) / sizeof(columns[0]), NULL);
        for (size_t i = 0; i < json_length(lines) && !s; i++) s = put_row(&r->body, json_item(lines, i), path.text, e);
        table_close(&r->body);
    }
    json_free(lines);
    str_free(&path);
    return s;
}

status report_bench(struct report *r, struct err *e)
{
    bool open = false;

    for (int i = 0; i < r->n; i++)
        if (r->run[i].kind == JOB_BENCH && r->run[i].row < 0 && put_run(r, &r->run[i], &open, e)) return e->code;
    if (open) report_section_end(r);
    return OK;
}
