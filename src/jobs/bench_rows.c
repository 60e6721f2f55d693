/* Figures and rows of the bench job.  Pure. */
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/bench.h"

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

struct bench_figure bench_figure(const double *x, int n)
{
    double *sorted = malloc((size_t)n * sizeof(*sorted));

    BUG_ON(n < 1 || !sorted);
    memcpy(sorted, x, (size_t)n * sizeof(*sorted));
    qsort(sorted, (size_t)n, sizeof(*sorted), by_size);
    struct bench_figure f = {.median = n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
                             .least = sorted[0],
                             .most = sorted[n - 1],
                             .rounds = n};
    free(sorted);
    return f;
}

double bench_ratio(const struct bench_figure *a, const struct bench_figure *b)
{
    return a->rounds && b->rounds && b->median > 0 ? a->median / b->median : NAN;
}

struct bench_row bench_row(enum spec_part part, const char *what, const char *side)
{
    struct bench_row r = {.part = part, .ratio = NAN, .bound = NAN};

    snprintf(r.what, sizeof(r.what), "%s", what);
    snprintf(r.side, sizeof(r.side), "%s", side);
    return r;
}

void bench_binding(char out[BENCH_TEXT], const void *mask, int bits)
{
    const cpu_set_t *set = mask;
    size_t n = 0;

    out[0] = 0;
    for (int i = 0; i < bits; i++) {
        int last = i;

        if (!CPU_ISSET_S((size_t)i, (size_t)bits / 8, set)) continue;
        while (last + 1 < bits && CPU_ISSET_S((size_t)last + 1, (size_t)bits / 8, set)) last++;
        if (n + 24 > BENCH_TEXT) { /* the rest does not fit */
            strcpy(out + n, ",...");
            return;
        }
        n += (size_t)snprintf(out + n, BENCH_TEXT - n, last > i ? "%s%d-%d" : "%s%d", n ? "," : "", i, last);
        i = last;
    }
}

/* ---- CSV ---- */

void bench_csv_header(struct str *out)
{
    str_addz(out, "date,commit,cpu,isa,ranks,threads,binding,part,what,side,format,shape,rows,share,unit,rounds,median,min,max,"
                  "ratio,ratio_of,bound,bound_of\n");
}

static void add_text(struct str *out, const char *text)
{
    if (!text[strcspn(text, ",\"\n\r")]) {
        str_addz(out, text);
    } else {
        str_addz(out, "\"");
        for (; *text; text++) str_addf(out, *text == '"' ? "\"\"" : "%c", *text);
        str_addz(out, "\"");
    }
    str_addz(out, ",");
}

/* Nothing where there is no number. */
static void add_number(struct str *out, double x)
{
    if (isfinite(x)) str_addf(out, "%.6g", x);
    str_addz(out, ",");
}

void bench_csv_row(struct str *out, const struct bench_place *p, const struct bench_row *r)
{
    add_text(out, p->date);
    add_text(out, p->commit);
    add_text(out, p->cpu);
    add_text(out, p->isa);
    str_addf(out, "%d,%d,", p->ranks, p->threads);
    add_text(out, p->binding);
    add_text(out, spec_part_name(r->part));
    add_text(out, r->what);
    add_text(out, r->side);
    add_text(out, r->format);
    add_text(out, r->shape);
    add_number(out, r->rows ? (double)r->rows : (double)NAN);
    add_number(out, r->share > 0 ? r->share : (double)NAN);
    add_text(out, r->unit);
    str_addf(out, "%d,", r->figure.rounds);
    add_number(out, r->figure.median);
    add_number(out, r->figure.least);
    add_number(out, r->figure.most);
    add_number(out, r->ratio);
    add_text(out, r->of);
    add_number(out, r->bound);
    add_text(out, r->bound_of);
    out->text[out->length - 1] = '\n'; /* in place of the last comma */
}

/* ---- JSON ---- */

static void put_optional(struct json_t *o, const char *key, double x)
{
    if (isfinite(x)) json_put_real(o, key, x);
}

static void put_named(struct json_t *o, const char *key, const char *text)
{
    if (*text) json_put_text(o, key, text);
}

void bench_json_row(struct str *out, const struct bench_place *p, const struct bench_row *r, const double *sample)
{
    struct json_t *o = json_object_new(), *samples = json_array_new();

    json_put_text(o, "date", p->date);
    json_put_text(o, "commit", p->commit);
    json_put_text(o, "cpu", p->cpu);
    json_put_text(o, "isa", p->isa);
    json_put_int(o, "ranks", p->ranks);
    json_put_int(o, "threads", p->threads);
    json_put_text(o, "binding", p->binding);
    json_put_text(o, "part", spec_part_name(r->part));
    json_put_text(o, "what", r->what);
    json_put_text(o, "side", r->side);
    put_named(o, "format", r->format);
    put_named(o, "shape", r->shape);
    if (r->rows) json_put_int(o, "rows", r->rows);
    if (r->share > 0) json_put_real(o, "share", r->share);
    json_put_text(o, "unit", r->unit);
    json_put_int(o, "rounds", r->figure.rounds);
    json_put_real(o, "median", r->figure.median);
    json_put_real(o, "min", r->figure.least);
    json_put_real(o, "max", r->figure.most);
    put_optional(o, "ratio", r->ratio);
    put_named(o, "ratio_of", r->of);
    put_optional(o, "bound", r->bound);
    put_named(o, "bound_of", r->bound_of);
    for (int i = 0; sample && i < r->figure.rounds; i++) json_append(samples, json_real_new(sample[i]));
    json_put(o, "samples", samples);
    json_dump(out, o, false);
    str_addz(out, "\n");
    json_free(o);
}
