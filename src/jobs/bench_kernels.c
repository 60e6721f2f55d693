/* The part `kernels`: what the machine can do, and products of the model's shapes held against it and against other libraries. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/bench.h"
#include "jobs/bench_product.h"

enum { SIDES_MAX = 1 + RIVAL_KINDS };

struct contest { /* sides that compute the same product, in turns */
    struct bench *bench;
    struct bench_operands operands;
    enum format format;
    const char *what; /* of the matrix: "gate, up", ... */
    int n;
    struct bench_product *side[SIDES_MAX];
    double *seconds[SIDES_MAX]; /* [rounds] */
    double *cached;             /* [rounds] operations/s of ours with weights that lie in the caches */
    double *read, *fma, *bytes; /* [rounds] of the machine */
};

static void add_rivals(struct contest *c, bool absent[RIVAL_KINDS])
{
    const struct spec *s = c->bench->job->spec;

    for (int i = 0; s->bench.rivals && i < bench_rivals[c->format].n; i++) {
        enum rival_kind kind = bench_rivals[c->format].kind[i];
        struct err why = {0};

        if (absent[kind]) continue;
        status st = bench_product_rival(&c->side[c->n], kind, (int)s->cluster.threads, &c->operands, &why);
        if (!st) st = bench_product_check(c->side[c->n], &why);
        if (!st) {
            c->n++;
            continue;
        }
        absent[kind] = true;
        bench_product_close(c->side[c->n]);
        c->side[c->n] = NULL;
        log_line(c->bench->job->log, "  %s is left out: %s", rival_name(kind), why.text);
    }
}

static status take_rounds(struct contest *c, struct err *e)
{
    const struct spec *s = c->bench->job->spec;
    int rounds = (int)s->bench.rounds;

    for (int r = 0; r < rounds; r++) {
        struct probe machine;

        if (bench_stopped(c->bench, e) || bench_probe(c->bench, &machine, e)) return e->code;
        c->read[r] = machine.read;
        c->fma[r] = machine.fma;
        c->bytes[r] = machine.bytes;
        for (int i = 0; i < c->n; i++) { /* who begins changes, so that nobody always follows the same one */
            int side = (i + r) % c->n;

            c->seconds[side][r] = bench_product_time(c->side[side], s->bench.seconds);
            cluster_alive(c->bench->job->cluster);
            if (c->seconds[side][r] < 0) return err_set(e, ERR_IO, "%s: failed in a run", bench_product_name(c->side[side]));
        }
        int outputs;
        double time = bench_product_cached(c->side[0], s->bench.seconds, &outputs);
        c->cached[r] = 2.0 * c->operands.rows * outputs * c->operands.k / time;
    }
    return OK;
}

/* The peak of operations that binds products of this format: bytes have one of their own where it was measured (q4 gets by with fewer instructions than q8). */
static double peak_of(const struct contest *c)
{
    int rounds = (int)c->bench->job->spec->bench.rounds;
    struct bench_figure fma = bench_figure(c->fma, rounds), bytes = bench_figure(c->bytes, rounds);

    return c->format == FORMAT_Q8 && bytes.median > fma.median ? bytes.median : fma.median;
}

/* The least time that the machine, as measured beside, allows: the weights are read, the operations done. */
static double floor_seconds(const struct contest *c, double bytes, double operations)
{
    int rounds = (int)c->bench->job->spec->bench.rounds;
    double by_memory = bytes / bench_figure(c->read, rounds).median, by_peak = operations / peak_of(c);

    return by_memory > by_peak ? by_memory : by_peak;
}

/* Ours again, with weights from the caches: what the instructions allow, and how many times the rate from memory that is. */
static struct bench_figure put_cached(struct contest *c, const struct bench_figure *ours)
{
    struct bench_row row = bench_row(PART_KERNELS, "product in cache", bench_product_name(c->side[0]));
    int rounds = (int)c->bench->job->spec->bench.rounds;

    for (int r = 0; r < rounds; r++) c->cached[r] /= 1e9;
    row.figure = bench_figure(c->cached, rounds);
    snprintf(row.format, sizeof(row.format), "%s", format_name(c->format));
    snprintf(row.shape, sizeof(row.shape), "%dx%d", c->operands.n, c->operands.k);
    snprintf(row.unit, sizeof(row.unit), "GFLOP/s");
    row.rows = c->operands.rows;
    row.ratio = bench_ratio(&row.figure, ours);
    snprintf(row.of, sizeof(row.of), "ours, from memory");
    row.bound = row.figure.median * 1e9 / peak_of(c);
    snprintf(row.bound_of, sizeof(row.bound_of), "peak of operations");
    bench_put(c->bench, &row, c->cached);
    return row.figure;
}

static void report(struct contest *c)
{
    struct bench *b = c->bench;
    const struct bench_operands *o = &c->operands;
    int rounds = (int)b->job->spec->bench.rounds;
    double operations = 2.0 * o->rows * o->n * o->k, bytes = bench_product_bytes(c->side[0]);
    double *rate = malloc((size_t)rounds * sizeof(*rate)), best = 0;
    struct bench_figure ours = {0}, rival = {0};
    const char *best_name = "";
    struct str line = {0};

    BUG_ON(!rate);
    for (int i = c->n - 1; i >= 0; i--) {
        struct bench_row row = bench_row(PART_KERNELS, "product", bench_product_name(c->side[i]));

        for (int r = 0; r < rounds; r++) rate[r] = operations / c->seconds[i][r] / 1e9;
        row.figure = bench_figure(rate, rounds);
        snprintf(row.format, sizeof(row.format), "%s", format_name(c->format));
        snprintf(row.shape, sizeof(row.shape), "%dx%d", o->n, o->k);
        snprintf(row.unit, sizeof(row.unit), "GFLOP/s");
        row.rows = o->rows;
        row.bound = row.figure.median * 1e9 / operations * floor_seconds(c, bytes, operations);
        snprintf(row.bound_of, sizeof(row.bound_of), "read bandwidth and peak of operations, whichever binds");
        if (i > 0 && row.figure.median > best) {
            best = row.figure.median;
            best_name = bench_product_name(c->side[i]);
            rival = row.figure;
        }
        if (i == 0) {
            ours = row.figure;
            row.ratio = bench_ratio(&ours, &rival);
            snprintf(row.of, sizeof(row.of), "%s", best_name);
        }
        bench_put(b, &row, rate);
    }
    double seconds = operations / (ours.median * 1e9);
    struct bench_figure cached = put_cached(c, &ours);
    if (c->n > 1) str_addf(&line, "%8.2f of %s", bench_ratio(&ours, &rival), best_name);
    char shape[32];
    snprintf(shape, sizeof(shape), "%dx%d", o->n, o->k);
    log_line(b->job->log, "  %-9s %-5s %12s %5d %9.1f %7.1f %8.2f %9.1f %8.2f %s", c->what, format_name(c->format), shape,
             o->rows, ours.median, bytes / seconds / 1e9, floor_seconds(c, bytes, operations) / seconds, cached.median,
             cached.median * 1e9 / peak_of(c), line.text ? line.text : "");
    str_free(&line);
    free(rate);
}

static void contest_close(struct contest *c)
{
    for (int i = 0; i < SIDES_MAX; i++) {
        bench_product_close(c->side[i]);
        free(c->seconds[i]);
    }
    bench_operands_close(&c->operands);
    free(c->cached);
    free(c->read);
    free(c->fma);
    free(c->bytes);
}

static status contest(struct bench *b, const char *what, int rows, int n, int k, enum format format, bool absent[RIVAL_KINDS],
                      struct err *e)
{
    struct contest c = {.bench = b, .format = format, .what = what};
    size_t rounds = (size_t)b->job->spec->bench.rounds;
    struct err wrong = {0};

    status st = bench_operands_open(&c.operands, rows, n, k, e);
    if (!st) st = bench_product_ours(&c.side[0], cluster_gemm(b->job->cluster), &c.operands, format, e);
    if (!st && bench_product_check(c.side[0], &wrong)) {
        bench_refuse(b, "product of %d rows with %s weights %dx%d: %s", rows, format_name(format), n, k, wrong.text);
    } else if (!st) {
        c.n = 1;
        add_rivals(&c, absent);
        for (int i = 0; i < c.n; i++) c.seconds[i] = calloc(rounds, sizeof(double));
        c.read = calloc(rounds, sizeof(double));
        c.fma = calloc(rounds, sizeof(double));
        c.bytes = calloc(rounds, sizeof(double));
        c.cached = calloc(rounds, sizeof(double));
        BUG_ON(!c.read || !c.fma || !c.bytes || !c.cached);
        st = take_rounds(&c, e);
        if (!st) report(&c);
    }
    contest_close(&c);
    return st;
}

/* The machine by itself, before anything is held against it. */
static status measure_machine(struct bench *b, struct err *e)
{
    int rounds = (int)b->job->spec->bench.rounds;
    double *read = calloc((size_t)rounds, sizeof(*read)), *fma = calloc((size_t)rounds, sizeof(*fma));
    double *bytes = calloc((size_t)rounds, sizeof(*bytes));
    status st = OK;

    BUG_ON(!read || !fma || !bytes);
    for (int r = 0; r < rounds && !st; r++) {
        struct probe p;

        if ((st = bench_probe(b, &p, e))) break;
        read[r] = p.read / 1e9;
        fma[r] = p.fma / 1e9;
        bytes[r] = p.bytes / 1e9;
    }
    if (!st) {
        struct bench_row row = bench_row(PART_KERNELS, "read", "machine");

        row.figure = bench_figure(read, rounds);
        snprintf(row.unit, sizeof(row.unit), "GB/s");
        bench_put(b, &row, read);
        log_line(b->job->log, "  machine: %.1f GB/s read (%.1f to %.1f), ", row.figure.median, row.figure.least, row.figure.most);
        row = bench_row(PART_KERNELS, "fma", "machine");
        row.figure = bench_figure(fma, rounds);
        snprintf(row.unit, sizeof(row.unit), "GFLOP/s");
        bench_put(b, &row, fma);
        log_line(b->job->log, "           %.1f GFLOP/s of f32 multiply-adds (%.1f to %.1f)", row.figure.median, row.figure.least,
                 row.figure.most);
        if (bytes[0] > 0) {
            row = bench_row(PART_KERNELS, "byte products", "machine");
            row.figure = bench_figure(bytes, rounds);
            snprintf(row.unit, sizeof(row.unit), "GOP/s");
            bench_put(b, &row, bytes);
            log_line(b->job->log, "           %.1f GOP/s of exact multiply-adds of bytes (%.1f to %.1f)", row.figure.median,
                     row.figure.least, row.figure.most);
        }
    }
    free(read);
    free(fma);
    free(bytes);
    return st;
}

status bench_kernels(struct bench *b, struct err *e)
{
    const struct spec *s = b->job->spec;
    const struct shape *m = &b->shape;
    const struct {
        const char *what;
        int n, k;
    } shapes[] = {{"q, o", m->heads * m->head_dim, m->width}, {"gate, up", m->neurons, m->width}, {"down", m->width, m->neurons}};
    bool absent[RIVAL_KINDS] = {false};
    status st = OK;

    log_line(b->job->log, "\nkernels: products of rows with a weight matrix that no cache holds, on %d thread%s of one rank",
             b->place.threads, b->place.threads > 1 ? "s" : "");
    gemm_use_half(cluster_gemm(b->job->cluster), s->precision.activations != 0, b->job->log);
    st = measure_machine(b, e);
    if (!st)
        log_line(b->job->log, "  %-9s %-5s %12s %5s %9s %7s %8s %9s %8s %s", "matrix", "", "out x in", "rows", "GFLOP/s", "GB/s",
                 "of bound", "in cache", "of peak", "against the best other");
    for (int f = 0; f < s->bench.formats.n && !st; f++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]) && !st; i++)
            for (int r = 0; r < s->bench.rows.n && !st; r++) {
                enum format format = FORMAT_F32;

                BUG_ON(!format_parse(s->bench.formats.items[f], &format)); /* the spec knows the names */
                st = contest(b, shapes[i].what, atoi(s->bench.rows.items[r]), shapes[i].n, shapes[i].k, format, absent, e);
            }
    if (!st)
        log_line(b->job->log,
                 "  of bound: of the least time for reading the weights at the measured bandwidth, or for the operations at the\n"
                 "  measured peak, whichever is longer (of bytes for quantized weights where that was measured: else they may be "
                 "done faster)\n"
                 "  in cache: GFLOP/s of the same rows with so few of the outputs that their weights stay in the last cache, and "
                 "their share of that peak");
    return st;
}
