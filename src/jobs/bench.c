/* bench: how fast it is, as ratios measured side by side in one run. */
#include "jobs/bench.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/machine.h"
#include "base/stop.h"

enum { PROBE_LEAST = 128 << 20, PROBE_MOST = 1 << 30 };
#define PROBE_SECONDS 0.02

static const struct {
    status (*run)(struct bench *b, struct err *e);
} parts[PARTS] = {
    [PART_KERNELS] = {bench_kernels},
    [PART_EXCHANGE] = {bench_exchange},
    [PART_STEP] = {bench_step},
};

static bool wants(const struct spec *s, enum spec_part p)
{
    for (int i = 0; i < s->bench.parts.n; i++)
        if (!strcmp(s->bench.parts.items[i], spec_part_name(p))) return true;
    return false;
}

static void describe_place(struct bench_place *p, struct job *j)
{
    struct comm *c = cluster_comm(j->cluster);
    enum { PROCESSORS = 4096 };
    cpu_set_t *mask = CPU_ALLOC(PROCESSORS);
    size_t bytes = CPU_ALLOC_SIZE(PROCESSORS);

    BUG_ON(!mask);
    *p = (struct bench_place){.ranks = comm_size(c), .threads = (int)j->spec->cluster.threads};
    clock_date(p->date);
    snprintf(p->commit, sizeof(p->commit), "%s", j->version);
    machine_processor_name(p->cpu, sizeof(p->cpu));
    snprintf(p->isa, sizeof(p->isa), "%s%s", isa_name(gemm_kernel(cluster_gemm(j->cluster))->isa),
             j->spec->precision.activations ? ", bf16 activations" : "");
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) == 0) bench_binding(p->binding, mask, PROCESSORS);
    CPU_FREE(mask);
}

void bench_put(struct bench *b, const struct bench_row *r, const double *sample)
{
    struct str line = {0};

    bench_csv_row(&line, &b->place, r);
    fwrite(line.text, 1, line.length, b->csv);
    str_clear(&line);
    bench_json_row(&line, &b->place, r, sample);
    fwrite(line.text, 1, line.length, b->jsonl);
    str_free(&line);
}

void bench_refuse(struct bench *b, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    log_warn(b->job->log, "%s: no figure for it", text);
    if (!b->wrong++) memcpy(b->first_wrong, text, sizeof(text));
}

bool bench_stopped(const struct bench *b, struct err *e)
{
    if (!stop_asked()) return false;
    err_set(e, STOPPED, "%s: stopped while measuring; run it again", b->job->spec->source);
    return true;
}

status bench_probe(struct bench *b, struct probe *out, struct err *e)
{
    struct gemm *g = cluster_gemm(b->job->cluster);
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? 4 * (size_t)cache : 0;

    if (bytes < PROBE_LEAST) bytes = PROBE_LEAST;
    if (bytes > PROBE_MOST) bytes = PROBE_MOST;
    if (!b->memory && probe_open(&b->memory, g, bytes, e)) return e->code;
    probe_round(out, g, b->memory, PROBE_SECONDS);
    return OK;
}

static status open_file(FILE **f, const struct job *j, const char *name, struct err *e)
{
    char *path = str_join(j->spec->output, name);

    *f = fopen(path, "we");
    if (!*f) err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    free(path);
    return *f ? OK : e->code;
}

static status close_file(FILE *f, const struct job *j, const char *name, struct err *e)
{
    bool bad = f && ferror(f);

    if ((f && fclose(f)) || bad)
        return err_set(e, ERR_IO, "%s/%s: cannot be written: %s", j->spec->output, name, strerror(errno));
    return OK;
}

static status open_files(struct bench *b, struct err *e)
{
    struct str header = {0};

    if (open_file(&b->csv, b->job, "bench.csv", e) || open_file(&b->jsonl, b->job, "bench.jsonl", e)) return e->code;
    bench_csv_header(&header);
    fwrite(header.text, 1, header.length, b->csv);
    str_free(&header);
    return OK;
}

static void say_place(const struct bench *b)
{
    const struct bench_place *p = &b->place;

    log_line(b->job->log, "  %s, %s, processors %s; %d rank%s of %d thread%s; commit %s", *p->cpu ? p->cpu : "processor unknown",
             p->isa, p->binding, p->ranks, p->ranks > 1 ? "s" : "", p->threads, p->threads > 1 ? "s" : "", p->commit);
    log_line(b->job->log, "  figures are medians of %lld rounds in which the sides take turns, ratios are ratios of medians",
             (long long)b->job->spec->bench.rounds);
}

status job_bench(struct job *j, struct err *e)
{
    const struct spec *s = j->spec;
    struct bench b = {.job = j};
    struct err late = {0};

    if (shape_read(&b.shape, s->model, e)) return e->code;
    describe_place(&b.place, j);
    status st = open_files(&b, e);
    if (!st) say_place(&b);
    for (int p = 0; p < PARTS && !st; p++) {
        bool on = wants(s, (enum spec_part)p) || (p == PART_STEP && wants(s, PART_STARTUP));

        if (on && parts[p].run) st = parts[p].run(&b, e);
    }
    probe_close(b.memory);
    status written = close_file(b.csv, j, "bench.csv", &late);
    if (close_file(b.jsonl, j, "bench.jsonl", &late)) written = late.code;
    json_put_int(j->result, "refused", b.wrong);
    if (!st && written) {
        *e = late;
        return written;
    }
    if (!st && b.wrong)
        return err_set(e, ERR_GATE, "%s: %d side%s wrong, first: %s", s->source, b.wrong, b.wrong > 1 ? "s are" : " is",
                       b.first_wrong);
    if (!st) log_line(j->log, "figures: %s/bench.csv, bench.jsonl; scripts/plot_bench.sh %s draws them", s->output, s->output);
    return st;
}
