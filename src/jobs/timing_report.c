#include "jobs/timing_report.h"

#include <stdio.h>

#include "base/str.h"

/* Time in which a forward pass was at work: everything but the job's own and waiting for the model's files. */
static double busy_seconds(const struct timing *t)
{
    double sum = 0;

    for (int s = 0; s < TIMING_SECTIONS; s++)
        if (s != TIME_OTHER && s != TIME_OPEN && s != TIME_TRAIN && s != TIME_WAIT)
            sum += timing_seconds(t, (enum timing_section)s);
    return sum;
}

static double total_of(const double *of_section)
{
    double sum = 0;

    for (int s = 0; s < TIMING_SECTIONS; s++) sum += of_section[s];
    return sum;
}

void timing_spread(struct timing_spread *out, const struct timing *t, int ranks, enum timing_section s)
{
    double all = 0;

    *out = (struct timing_spread){.least = timing_seconds(&t[0], s)};
    for (int r = 0; r < ranks; r++) {
        double x = timing_seconds(&t[r], s);

        if (x < out->least) out->least = x;
        if (x > out->most) out->most = x;
        out->mean += x / ranks;
        all += timing_total(&t[r]);
    }
    out->share = all > 0 ? out->mean * ranks / all : 0;
}

struct rates { /* of rank r while it worked */
    double read, operations;
};

static struct rates rates_of(const struct timing *t)
{
    double seconds = busy_seconds(t);

    if (seconds <= 0) return (struct rates){0, 0};
    return (struct rates){total_of(t->bytes) / seconds, total_of(t->flops) / seconds};
}

double timing_passes(const struct timing *t)
{
    return busy_seconds(t) > 0 ? busy_seconds(t) + timing_seconds(t, TIME_WAIT) : 0;
}

struct json_t *timing_json(const struct timing *t, int ranks, const struct probe *machine)
{
    struct json_t *o = json_object_new(), *sections = json_object_new(), *per_rank = json_array_new();
    double seconds = timing_passes(&t[0]);

    for (int s = 0; s < TIMING_SECTIONS; s++) {
        struct json_t *one = json_object_new();
        struct timing_spread x;

        timing_spread(&x, t, ranks, (enum timing_section)s);
        json_put_real(one, "min", x.least);
        json_put_real(one, "avg", x.mean);
        json_put_real(one, "max", x.most);
        json_put_real(one, "share", x.share);
        json_put(sections, timing_name((enum timing_section)s), one);
    }
    json_put(o, "sections", sections);
    json_put_int(o, "steps", (int64_t)t[0].steps);
    json_put_int(o, "rows", (int64_t)t[0].rows);
    json_put_int(o, "tokens", (int64_t)t[0].tokens);
    json_put_real(o, "step_seconds", seconds);
    json_put_real(o, "rows_per_second", seconds > 0 ? (double)t[0].rows / seconds : 0);
    json_put_real(o, "tokens_per_second", seconds > 0 ? (double)t[0].tokens / seconds : 0);
    for (int r = 0; r < ranks; r++) {
        struct json_t *one = json_object_new();
        struct rates x = rates_of(&t[r]);

        json_put_real(one, "bytes_per_second", x.read);
        json_put_real(one, "flops_per_second", x.operations);
        json_put_int(one, "memory_bytes", t[r].memory_bytes);
        json_append(per_rank, one);
    }
    json_put(o, "ranks", per_rank);
    if (machine->read > 0) {
        struct json_t *one = json_object_new();

        json_put_real(one, "bytes_per_second", machine->read);
        json_put_real(one, "fma_flops_per_second", machine->fma);
        json_put(o, "machine", one);
    }
    return o;
}

static void print_rates(struct log *l, const struct timing *t, int ranks, const struct probe *machine)
{
    for (int r = 0; r < ranks; r++) {
        struct rates x = rates_of(&t[r]);
        struct str line = {0};

        if (x.operations > 0) {
            str_addf(&line, "%.1f GB/s of weights", x.read / 1e9);
            if (machine->read > 0) str_addf(&line, " (%.0f %% of what memory gives)", 100 * x.read / machine->read);
            str_addf(&line, ", %.1f GFLOP/s", x.operations / 1e9);
            if (machine->fma > 0) str_addf(&line, " (%.0f %% of the f32 peak)", 100 * x.operations / machine->fma);
            str_addz(&line, " while at work; ");
        }
        log_line(l, "  rank %-4d %sat most %.1f MiB of memory", r, line.text ? line.text : "",
                 (double)t[r].memory_bytes / 0x1p20);
        str_free(&line);
        if (r == 7 && ranks > 9) {
            log_line(l, "  ... and %d more, see result.json", ranks - 8);
            break;
        }
    }
    if (machine->read > 0)
        log_line(l, "  machine   %.1f GB/s read, %.1f GFLOP/s f32, measured just now on rank 0's threads while the others rest",
                 machine->read / 1e9, machine->fma / 1e9);
}

void timing_print(struct log *l, const struct timing *t, int ranks, const struct probe *machine)
{
    double seconds = timing_passes(&t[0]);

    struct str speed = {0};

    if (seconds <= 0) return; /* nothing passed through a model */
    if (t[0].tokens && seconds > 0) str_addf(&speed, ", %.1f tokens/s sampled", (double)t[0].tokens / seconds);
    if (!t[0].steps) log_line(l, "time of %d rank%s: %.2f s in passes through the model", ranks, ranks > 1 ? "s" : "", seconds);
    else
        log_line(l, "time of %d rank%s: %.2f s in %llu steps of %.1f rows, %.1f rows/s%s", ranks, ranks > 1 ? "s" : "", seconds,
                 (unsigned long long)t[0].steps, (double)t[0].rows / (double)t[0].steps,
                 seconds > 0 ? (double)t[0].rows / seconds : 0.0, speed.text ? speed.text : "");
    str_free(&speed);
    if (ranks > 1) log_line(l, "  %-10s %9s %9s %9s %8s", "section", "min s", "avg s", "max s", "share");
    else log_line(l, "  %-10s %9s %8s", "section", "s", "share");
    for (int s = 0; s < TIMING_SECTIONS; s++) {
        const char *name = timing_name((enum timing_section)s);
        struct timing_spread x;

        timing_spread(&x, t, ranks, (enum timing_section)s);
        if (x.most <= 0) continue;
        if (ranks > 1) log_line(l, "  %-10s %9.3f %9.3f %9.3f %6.1f %%", name, x.least, x.mean, x.most, 100 * x.share);
        else log_line(l, "  %-10s %9.3f %6.1f %%", name, x.mean, 100 * x.share);
    }
    print_rates(l, t, ranks, machine);
}
