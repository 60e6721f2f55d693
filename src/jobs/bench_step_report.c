/* What is said of the parts `step` and `startup`. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/bench_step.h"

static void formats_text(char out[BENCH_TEXT], const enum format f[WEIGHT_PARTS])
{
    if (f[0] == f[1] && f[1] == f[2]) snprintf(out, BENCH_TEXT, "%s", format_name(f[0]));
    else snprintf(out, BENCH_TEXT, "%s/%s/%s", format_name(f[0]), format_name(f[1]), format_name(f[2]));
}

/* Rows/s of every round, to be freed. */
static double *rates(const struct race *r, const struct variant *v, int i, double work)
{
    double *rate = malloc((size_t)r->rounds * sizeof(*rate));

    BUG_ON(!rate);
    for (int k = 0; k < r->rounds; k++) rate[k] = work / v->seconds[i][k];
    return rate;
}

static struct bench_figure figure_of(const struct race *r, const struct variant *v, int i, double work)
{
    double *rate = rates(r, v, i, work);
    struct bench_figure f = bench_figure(rate, r->rounds);

    free(rate);
    return f;
}

/* The variant of another side at the same share, or NULL. */
static const struct variant *same_share(const struct side *x, double share)
{
    for (int v = 0; v < x->variants; v++)
        if (fabs(x->variant[v].share - share) < 0.02) return &x->variant[v];
    return NULL;
}

/* How much faster than the dense side a factorized one can be: by its operations; or, in a decode of few sequences, by the bytes it reads, where
 * experts count that any sequence wants: the larger of the two, because it depends on the machine which one binds. */
static double allowed_gain(const struct race *r, const struct side *x, const struct variant *v, int i)
{
    const struct measure *w = &r->measure[i];

    if (!w->sequences) return bench_prefill_flops(&x->shape, 1, w->rows) / bench_prefill_flops(&x->shape, v->share, w->rows);
    double shared = (double)x->shape.shared[0] / x->shape.neurons, wanted = shared + (1 - shared) * v->touched[i];
    double bytes = bench_step_bytes(&x->shape, x->format, 1) / bench_step_bytes(&x->shape, x->format, wanted);
    double rest = bench_attention_weights(&x->shape) + bench_head_weights(&x->shape), ffn = bench_ffn_weights(&x->shape);
    double operations = (rest + ffn) / (rest + v->share * ffn);
    return w->sequences == 1 || bytes > operations ? bytes : operations;
}

static struct bench_row row_of(const struct race *r, const struct side *x, const struct variant *v, int i, const char *what)
{
    const struct measure *w = &r->measure[i];
    char held[BENCH_TEXT];

    snprintf(held, sizeof(held), "%s, held", what); /* another name: who plots "decode" wants each side once */
    struct bench_row row = bench_row(PART_STEP, v->how.batch_experts > 0 ? held : what, x->name);

    formats_text(row.format, x->format);
    if (v->how.batch_experts > 0)
        snprintf(row.shape, sizeof(row.shape), "%d of %d experts, a batch held to %.2f", v->active, x->shape.experts,
                 v->how.batch_experts);
    else if (x->shape.experts) snprintf(row.shape, sizeof(row.shape), "%d of %d experts", v->active, x->shape.experts);
    else snprintf(row.shape, sizeof(row.shape), "dense");
    row.rows = w->sequences ? w->sequences : w->rows;
    row.share = v->share;
    return row;
}

struct line { /* of a table */
    double over_dense, of_allowed, over_coarse, of_machine, over_bar;
};

/* Rows/s, against the dense side, and that against what the arithmetic allows. */
static struct bench_figure put_speed(struct race *r, const struct side *x, const struct variant *v, int i, struct line *l)
{
    const struct measure *w = &r->measure[i];
    struct bench_row row = row_of(r, x, v, i, w->sequences ? "decode" : "prefill");
    double *rate = rates(r, v, i, w->rows);
    const struct side *of = x->dense >= 0 ? &r->side[x->dense] : &r->side[0];

    row.figure = bench_figure(rate, r->rounds);
    snprintf(row.unit, sizeof(row.unit), "tokens/s");
    if (of != x && !of->wrong && !of->shape.experts) {
        struct bench_figure other = figure_of(r, &of->variant[0], i, w->rows);

        row.ratio = l->over_dense = bench_ratio(&row.figure, &other);
        snprintf(row.of, sizeof(row.of), "%.60s", of->name);
    }
    if (x->dense >= 0 && isfinite(row.ratio)) {
        double allowed = allowed_gain(r, x, v, i);

        row.bound = l->of_allowed = row.ratio / allowed;
        snprintf(row.bound_of, sizeof(row.bound_of), "gain of %.3f that %s allow", allowed,
                 w->sequences ? "bytes or operations" : "operations");
    }
    bench_put(r->bench, &row, rate);
    free(rate);
    return row.figure;
}

static void put_fineness(struct race *r, const struct side *x, const struct variant *v, int i, struct line *l)
{
    const struct measure *w = &r->measure[i];
    const struct side *of = x->coarse >= 0 ? &r->side[x->coarse] : NULL;
    const struct variant *other = of && !of->wrong ? same_share(of, v->share) : NULL;
    struct bench_row row = row_of(r, x, v, i, w->sequences ? "decode, fine over coarse" : "prefill, fine over coarse");

    if (!other || v->how.batch_experts > 0) return;
    struct bench_figure coarse = figure_of(r, other, i, w->rows);
    row.figure = figure_of(r, v, i, w->rows);
    snprintf(row.unit, sizeof(row.unit), "tokens/s");
    row.ratio = l->over_coarse = bench_ratio(&row.figure, &coarse);
    snprintf(row.of, sizeof(row.of), "%d of %d experts", other->active, of->shape.experts);
    bench_put(r->bench, &row, NULL);
}

/* Bytes/s of a decode against the memory, operations/s of a prefill against the f32 peak and the best library. */
static double put_rate(struct race *r, const struct side *x, const struct variant *v, int i, struct line *l)
{
    const struct measure *w = &r->measure[i];
    struct bench_row row = row_of(r, x, v, i, w->sequences ? "decode bytes" : "prefill rate");
    enum format f = x->format[WEIGHTS_EXPERTS];
    struct bench_figure machine = bench_figure(w->sequences ? x->read : x->fma, r->rounds);
    double shared = x->shape.experts ? (double)x->shape.shared[0] / x->shape.neurons : 1;
    double steps = w->sequences ? (double)w->rows / w->sequences : 1, work;

    if (w->sequences) work = steps * bench_step_bytes(&x->shape, x->format, shared + (1 - shared) * v->touched[i]);
    else work = bench_prefill_flops(&x->shape, v->share, w->rows);
    double *rate = rates(r, v, i, work / 1e9);
    row.figure = bench_figure(rate, r->rounds);
    snprintf(row.unit, sizeof(row.unit), w->sequences ? "GB/s" : "GFLOP/s");
    row.bound = l->of_machine = row.figure.median * 1e9 / machine.median;
    snprintf(row.bound_of, sizeof(row.bound_of), w->sequences ? "read bandwidth" : "f32 FMA peak");
    if (!w->sequences && !x->shape.experts && r->bar[f] && r->bar_of[f]) {
        struct bench_figure bar = bench_figure(r->bar[f], r->rounds);

        row.ratio = l->over_bar = row.figure.median * 1e9 / bar.median;
        snprintf(row.of, sizeof(row.of), "%s, its products", r->bar_of[f]);
    }
    bench_put(r->bench, &row, rate);
    free(rate);
    return row.figure.median;
}

/* Share of the coordinator's time that it waits for answers. */
static void put_wait(struct race *r, const struct side *x, const struct variant *v, int i)
{
    struct bench_row row = row_of(r, x, v, i, r->measure[i].sequences ? "decode wait" : "prefill wait");

    if (r->bench->place.ranks < 2 || !x->shape.experts) return;
    row.figure = bench_figure(v->wait[i], r->rounds);
    snprintf(row.unit, sizeof(row.unit), "share of time");
    bench_put(r->bench, &row, v->wait[i]);
}

static void number(char out[NUMBER_TEXT], int digits, double x)
{
    if (isfinite(x)) snprintf(out, NUMBER_TEXT, "%.*f", digits, x);
    else snprintf(out, NUMBER_TEXT, "-");
}

static void print_line(struct race *r, const struct side *x, const struct variant *v, int i)
{
    struct line l = {NAN, NAN, NAN, NAN, NAN};
    struct bench_figure speed = put_speed(r, x, v, i, &l);
    char format[BENCH_TEXT], dense[NUMBER_TEXT], allowed[NUMBER_TEXT], coarse[NUMBER_TEXT], last[BENCH_TEXT];

    put_fineness(r, x, v, i, &l);
    double rate = put_rate(r, x, v, i, &l);
    put_wait(r, x, v, i);
    formats_text(format, x->format);
    number(dense, 3, l.over_dense);
    number(allowed, 3, l.of_allowed);
    number(coarse, 3, l.over_coarse);
    number(last, 2, r->measure[i].sequences ? (x->shape.experts ? v->touched[i] : NAN) : l.over_bar);
    if (isfinite(l.over_bar)) snprintf(last, sizeof(last), "%.2f of %s", l.over_bar, r->bar_of[x->format[WEIGHTS_EXPERTS]]);
    log_line(r->bench->job->log, "  %-12s %-5s %5.3f%c%9.2f %9.2f %9.2f %8s %10s %10s %9.1f %8.3f %7s", x->name, format, v->share,
             v->how.batch_experts > 0 ? '*' : ' ', speed.median, speed.least, speed.most, dense, allowed, coarse, rate,
             l.of_machine, last);
}

static void print_measure(struct race *r, int i)
{
    const struct measure *w = &r->measure[i];
    struct log *log = r->bench->job->log;

    if (w->sequences)
        log_line(log, "\ndecode of %d sequence%s, %d steps a round, behind %lld positions", w->sequences,
                 w->sequences > 1 ? "s" : "", w->rows / w->sequences, (long long)r->bench->job->spec->bench.context);
    else log_line(log, "\nprefill of %d tokens", w->rows);
    log_line(log, "  %-12s %-5s %5s %9s %9s %9s %8s %10s %10s %9s %8s %7s", "side", "", "f", "tokens/s", "min", "max", "x dense",
             "of allowed", "x coarsest", w->sequences ? "GB/s" : "GFLOP/s", w->sequences ? "of read" : "of peak",
             w->sequences ? "wanted" : "x best");
    for (int s = 0; s < r->n; s++)
        for (int v = 0; v < r->side[s].variants && !r->side[s].wrong; v++)
            if (race_measures(&r->side[s].variant[v], w)) print_line(r, &r->side[s], &r->side[s].variant[v], i);
}

static void print_legend(struct race *r)
{
    struct log *log = r->bench->job->log;

    log_line(log,
             "\n  f           share of the FFNs' neurons that are active for a token\n  x dense     over the dense side in the "
             "same format; of a dense side: over %s",
             r->side[0].name);
    log_line(log, "  of allowed  that ratio over what operations or bytes of weights read allow, the larger of the two; routers "
                  "not counted");
    log_line(log, "  x coarsest  over the factorized side with the fewest experts at the same f");
    log_line(log, "  of read, of peak   of the bytes/s and f32 multiply-adds that the machine gave just before, with the same "
                  "threads of rank 0");
    log_line(log, "  wanted      share of the routed experts that some sequence of a step wanted");
    if (r->bench->job->spec->bench.batch_experts < 1)
        log_line(log, "  *           held to %.2f of the routed experts (batch_experts)",
                 r->bench->job->spec->bench.batch_experts);
    log_line(log, "  x best      over the products of the best library there is here, which is named: it may compute in another "
                  "format than the side");
}

/* Where the coordinator's time went, ms of a round. */
static void print_sections(struct race *r)
{
    struct log *log = r->bench->job->log;
    struct str line = {0};

    log_line(log, "\nsections of rank 0, %% of the time");
    str_addf(&line, "  %-12s %-5s %-10s", "side", "f", "");
    for (int s = TIME_EMBED; s <= TIME_SAMPLE; s++) str_addf(&line, " %9s", timing_name((enum timing_section)s));
    log_line(log, "%s %9s", line.text, timing_name(TIME_OTHER));
    for (int i = 0; i < r->measures; i++)
        for (int n = 0; n < r->n; n++)
            for (int k = 0; k < r->side[n].variants && !r->side[n].wrong; k++) {
                const struct variant *v = &r->side[n].variant[k];
                int64_t sum = 0;
                char what[32];

                if (!race_measures(v, &r->measure[i])) continue;
                snprintf(what, sizeof(what), r->measure[i].sequences ? "decode %d" : "prefill", r->measure[i].sequences);
                for (int s = 0; s < TIMING_SECTIONS; s++) sum += v->sections[i][s];
                str_clear(&line);
                str_addf(&line, "  %-12s %5.3f%c%-10s", r->side[n].name, v->share, v->how.batch_experts > 0 ? '*' : ' ', what);
                for (int s = TIME_EMBED; s <= TIME_SAMPLE; s++)
                    str_addf(&line, " %9.1f", sum ? 100.0 * (double)v->sections[i][s] / (double)sum : 0);
                log_line(log, "%s %9.1f", line.text, sum ? 100.0 * (double)v->sections[i][TIME_OTHER] / (double)sum : 0);
            }
    str_free(&line);
}

static void print_startup(struct race *r)
{
    struct log *log = r->bench->job->log;

    log_line(log, "\nstart-up, files in the page cache: seconds until a model is open, and until its first token has passed");
    log_line(log, "  %-12s %-5s %9s %9s %9s %12s", "side", "", "open s", "min", "max", "first token");
    for (int n = 0; n < r->n; n++) {
        const struct side *x = &r->side[n];
        struct bench_row row = bench_row(PART_STARTUP, "open", x->name);

        if (x->wrong) continue;
        formats_text(row.format, x->format);
        snprintf(row.unit, sizeof(row.unit), "s");
        row.figure = bench_figure(x->open, r->rounds);
        bench_put(r->bench, &row, x->open);
        struct bench_row first = row;
        snprintf(first.what, sizeof(first.what), "first token");
        first.figure = bench_figure(x->first, r->rounds);
        bench_put(r->bench, &first, x->first);
        log_line(log, "  %-12s %-5s %9.3f %9.3f %9.3f %12.3f", x->name, row.format, row.figure.median, row.figure.least,
                 row.figure.most, first.figure.median);
    }
}

void race_report(struct race *r)
{
    for (int i = 0; i < r->measures; i++) print_measure(r, i);
    if (r->measures) {
        print_legend(r);
        print_sections(r);
    }
    if (r->startup) print_startup(r);
}
