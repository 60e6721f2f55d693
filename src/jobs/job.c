#include "jobs/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/machine.h"
#include "base/str.h"
#include "data/digest.h"
#include "jobs/inputs.h"
#include "jobs/summary.h"
#include "jobs/timing_report.h"

/* A kind is a row: its file in src/jobs, its keys in src/data/spec_table.c, an example in configs/. */
static const struct {
    status (*run)(struct job *j, struct err *e);
    const char *does;
} kinds[JOB_KINDS] = {
    [JOB_FACTORIZE] = {job_factorize, "cut the FFNs into experts"},
    [JOB_FINETUNE] = {job_finetune, "train the routers"},
    [JOB_CONVERT] = {job_convert, "pack the weights"},
    [JOB_EVAL] = {job_eval, "measure what was kept, beside the controls"},
    [JOB_INFER] = {job_infer, "answer prompts"},
    [JOB_REPORT] = {job_report, "set what was found on a page"},
    [JOB_BENCH] = {job_bench, "measure how fast it is"},
};

void job_event(struct job *j, const char *event, struct json_t *o)
{
    struct str line = {0};
    char date[32];

    if (!o) o = json_object_new();
    clock_date(date);
    json_put_text(o, "time", date);
    json_put_text(o, "event", event);
    if (j->events) {
        json_dump(&line, o, false);
        str_addz(&line, "\n");
        fwrite(line.text, 1, line.length, j->events);
        fflush(j->events);
        str_free(&line);
    }
    json_free(o);
}

static struct json_t *traffic(struct cluster *c, const struct exchange_stats *before)
{
    const struct exchange_stats *now = cluster_exchange(c);
    struct json_t *o = json_object_new();

    json_put_int(o, "messages", (int64_t)(now->messages - before->messages));
    json_put_int(o, "bytes_out", (int64_t)(now->bytes_out - before->bytes_out));
    json_put_int(o, "bytes_back", (int64_t)(now->bytes_back - before->bytes_back));
    json_put_real(o, "wait_seconds", now->wait_seconds - before->wait_seconds);
    return o;
}

/* Where the time went, in result.json and on the terminal.  Only after a run that ended well: others end with their error. */
static status put_timing(struct job *j, struct json_t *to, struct err *e)
{
    enum { PROBE_BYTES = 64 << 20 };
    struct gemm *g = cluster_gemm(j->cluster);
    int ranks = comm_size(cluster_comm(j->cluster));
    struct timing *t = calloc((size_t)ranks, sizeof(*t));
    struct probe machine = {0};
    struct probe_memory *memory;
    struct err ignored;

    BUG_ON(!t);
    status st = cluster_timing(j->cluster, t, false, e);
    if (!st && timing_passes(&t[0]) > 0 && !probe_open(&memory, g, PROBE_BYTES, &ignored)) {
        probe_round(&machine, g, memory, 0.01);
        probe_close(memory);
    }
    if (!st) {
        json_put(to, "timing", timing_json(t, ranks, &machine));
        timing_print(j->log, t, ranks, &machine);
    }
    free(t);
    return st;
}

static status clear_timing(struct cluster *c, struct err *e)
{
    struct timing *ignored = calloc((size_t)comm_size(cluster_comm(c)), sizeof(*ignored));

    BUG_ON(!ignored);
    status st = cluster_timing(c, ignored, true, e);
    free(ignored);
    return st;
}

static bool says(const struct json_t *o, const char *key, const char *text)
{
    const struct json_t *v = json_at(o, key);

    return v && json_is_text(v) && strcmp(json_text(v), text) == 0;
}

/* What a step answers to: its resolved spec and everything it reads. */
static status answers_digest(char hex[65], const struct spec *s, const struct str *yaml, struct cluster *c, struct err *e)
{
    struct str both = {0};
    char inputs[65];

    if (inputs_digest(inputs, s, c, e)) return e->code;
    str_add(&both, yaml->text, yaml->length);
    str_addz(&both, inputs);
    digest_bytes(hex, both.text, both.length);
    str_free(&both);
    return OK;
}

/* A step that ended well before, with the same spec on the same inputs, is not done again: that is how a pipeline goes on after exit 75.
 * Only result.json says so, because it is written last and removed first. */
static struct json_t *finished_before(const struct spec *s, const char *answers, const char *result_path)
{
    struct json_t *result = NULL, *mine = NULL;
    struct err ignored;

    if (json_read(&result, result_path, 64 << 20, &ignored)) return NULL;
    const struct json_t *o = json_at(result, s->name);
    if (says(result, "status", "ok") && says(result, "answers_sha256", answers) && o && inputs_product_exists(s, o))
        mine = json_clone(o);
    json_free(result);
    return mine;
}

static void describe(struct json_t *to, const struct spec *s, const char *version, struct cluster *c)
{
    char date[32];

    clock_date(date);
    json_put_int(to, "schema", 1);
    json_put_text(to, "version", version);
    json_put_text(to, "kind", spec_kind_name(s->kind));
    json_put_text(to, "spec", s->source);
    json_put_text(to, "started", date);
    json_put_int(to, "ranks", comm_size(cluster_comm(c)));
    json_put_int(to, "threads", s->cluster.threads);
    json_put_text(to, "kernels", gemm_describe(cluster_gemm(c)));
}

static const char *verdict_name(status st)
{
    switch (st) {
    case OK:
        return "ok";
    case STOPPED:
        return "stopped";
    case ERR_GATE:
        return "gate";
    default:
        return "failed";
    }
}

/* Whoever has log.jsonl open has the directory; the lock goes with the process, however that ends. */
static status open_events(FILE **f, const char *output, const char *path, struct err *e)
{
    *f = fopen(path, "a+e");
    if (!*f) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    /* file systems without locks are none of our business */
    if (flock(fileno(*f), LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return err_set(e, ERR_IO, "%s: another job is at work in this directory", output);
    if (fseeko(*f, -1, SEEK_END) == 0) { /* a line that a kill tore is ended, not continued */
        int last = fgetc(*f);

        fseeko(*f, 0, SEEK_END);
        if (last != '\n') fputc('\n', *f);
    }
    return OK;
}

/* One job that is not a pipeline.  *mine gets a copy of its result object (NULL when it failed), whatever was written. */
static status run_one(const struct spec *s, const char *version, struct cluster *c, struct log *l, bool resume,
                      struct json_t **mine, struct err *e)
{
    char *spec_path = str_join(s->output, "spec.yaml"), *events_path = str_join(s->output, "log.jsonl"),
         *result_path = str_join(s->output, "result.json");
    struct job j = {.spec = s, .version = version, .cluster = c, .log = l, .in_pipeline = resume, .result = json_object_new()};
    struct json_t *file = json_object_new();
    struct exchange_stats before = *cluster_exchange(c);
    struct str yaml = {0};
    double start = clock_now();
    struct err unknown;
    char answers[65];
    status st;

    *mine = NULL;
    spec_dump(&yaml, s);
    st = file_make_directory(s->output, e);
    bool known = (resume || s->kind == JOB_EVAL) && !st &&
                 !answers_digest(answers, s, &yaml, c, &unknown); /* if not, the job will say why */
    if (known) memcpy(j.answers, answers, sizeof(answers));
    if (known && resume && (*mine = finished_before(s, answers, result_path))) {
        log_line(l, "%s: done before, see %s", s->name, result_path);
        goto out;
    }
    if (!st) st = open_events(&j.events, s->output, events_path, e);
    if (!st) st = file_write(spec_path, yaml.text, yaml.length, e);
    if (st) goto out;

    unlink(result_path); /* whatever ends this run, the old result does not speak for it */
    log_line(l, "%s: %s -> %s", s->name, kinds[s->kind].does, s->output);
    describe(file, s, version, c);
    if (known) json_put_text(file, "answers_sha256", answers);
    job_event(&j, "start", NULL);
    st = clear_timing(c, e);
    if (!st) st = kinds[s->kind].run(&j, e);
    log_progress_end(l);
    if (st == OK || st == ERR_GATE) {
        struct err lost;

        if (put_timing(&j, j.result, &lost)) {
            *e = lost;
            st = lost.code;
        }
    }
    if (st != ERR_RANK) cluster_release(c);
    double seconds = clock_now() - start;
    struct json_t *end = json_object_new();
    json_put_text(end, "status", verdict_name(st));
    json_put_real(end, "seconds", seconds);
    job_event(&j, "end", end);

    BUG_ON(json_at(j.result, "seconds") || json_at(j.result, "exchange") || json_at(file, "timing"));
    json_put_real(j.result, "seconds", seconds);
    json_put(j.result, "exchange", traffic(c, &before));
    json_put_text(file, "status", verdict_name(st));
    if (st) json_put_text(file, "error", e->text);
    json_put_real(file, "seconds", seconds);
    json_put(file, s->name, json_clone(j.result));
    struct err late;
    status written = json_write(result_path, file, &late);
    if (!st && written) {
        *e = late;
        st = written;
    }
    *mine = json_clone(j.result);

out:
    if (j.events) fclose(j.events);
    json_free(j.result);
    json_free(file);
    str_free(&yaml);
    free(spec_path);
    free(events_path);
    free(result_path);
    return st;
}

/* Of the host that all ranks are on; a rank that is bound to one processor does not know of the others.  0: several hosts. */
static int processors_of(struct cluster *c)
{
    const struct comm_peer *me = comm_peer(cluster_comm(c), 0);

    if (me->ranks_on_host < comm_size(cluster_comm(c))) return 0;
    return me->cores > 1 ? me->cores : machine_processors();
}

static status run_pipeline(const struct spec *s, const char *version, struct cluster *c, struct log *l, struct err *e)
{
    char *spec_path = str_join(s->output, "spec.yaml"), *result_path = str_join(s->output, "result.json");
    struct json_t *file = json_object_new();
    struct str yaml = {0};
    double start = clock_now();
    struct err gate = {0};
    status st;

    spec_dump(&yaml, s);
    st = file_make_directory(s->output, e);
    if (!st) st = file_write(spec_path, yaml.text, yaml.length, e);
    unlink(result_path);
    describe(file, s, version, c);
    /* A gate that is not passed does not stop the steps behind it; it decides the exit code. */
    for (int i = 0; i < s->n_steps && !st; i++) {
        struct json_t *mine;

        st = run_one(&s->steps[i], version, c, l, true, &mine, e);
        if (mine) json_put(file, s->steps[i].name, mine);
        if (st == ERR_GATE) {
            gate = *e;
            st = OK;
        }
    }
    if (!st && gate.code) {
        *e = gate;
        st = gate.code;
    }
    json_put_text(file, "status", verdict_name(st));
    if (st) json_put_text(file, "error", e->text);
    json_put_real(file, "seconds", clock_now() - start);
    struct err late;
    status written = json_write(result_path, file, &late);
    if (st == OK && written) {
        *e = late;
        st = written;
    }
    if (st == OK || st == ERR_GATE) {
        summary_print(l, s, file, processors_of(c));
        log_line(l, "\nresults: %s", result_path);
    }
    json_free(file);
    str_free(&yaml);
    free(spec_path);
    free(result_path);
    return st;
}

status job_run(const struct spec *s, const char *version, struct cluster *c, struct log *l, struct err *e)
{
    struct json_t *mine;

    cluster_log(c, l);
    if (s->kind == JOB_PIPELINE) return run_pipeline(s, version, c, l, e);
    status st = run_one(s, version, c, l, false, &mine, e);
    json_free(mine);
    return st;
}
