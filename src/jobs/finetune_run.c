#include "jobs/finetune_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/stop.h"
#include "base/str.h"
#include "jobs/fingerprint.h"
#include "jobs/ready.h"
#include "model/router_versions.h"
#include "train/pace.h"

enum { PROBE_PART = 16 /* of the budget */ };
#define LOSS_DUST 1e-3 /* a divergence of two equal distributions is 0 but for rounding, below it as well as above */

static double seconds_so_far(const struct finetune_run *r)
{
    return r->seconds_before + (clock_now() - r->started);
}

/* ---- what the stages share ---- */

struct adamw_options finetune_adamw(const struct spec *s)
{
    return (struct adamw_options){
        .beta1 = s->finetune.beta1, .beta2 = s->finetune.beta2, .epsilon = 1e-8, .weight_decay = s->finetune.weight_decay};
}

bool finetune_alive(void *run)
{
    cluster_alive(((struct finetune_run *)run)->job->cluster);
    return stop_asked() == STOP_NOW;
}

struct json_t *finetune_reals(const double *x, int n)
{
    struct json_t *a = json_array_new();

    for (int i = 0; i < n; i++) json_append(a, json_real_new(x[i]));
    return a;
}

struct json_t *finetune_loads(const struct finetune_run *r, const uint64_t *load, int64_t rows)
{
    struct json_t *all = json_array_new();
    int n = r->shape.experts;

    for (int l = 0; l < r->shape.layers; l++) {
        struct json_t *of_layer = json_array_new();

        for (int i = 0; i < n; i++) json_append(of_layer, json_real_new((double)load[l * n + i] / (double)rows));
        json_append(all, of_layer);
    }
    return all;
}

struct json_t *finetune_before_and_after(const struct finetune_run *r, const struct json_t *after, const char *key)
{
    struct json_t *o = json_object_new();

    json_put(o, "before", json_clone(json_at(r->before, key)));
    json_put(o, "after", json_clone(json_at(after, key)));
    return o;
}

struct json_t *finetune_measured(struct finetune_run *r, struct err *e)
{
    windows_take_probe(&r->windows);
    return r->stage->batch(r, false, e) ? NULL : r->stage->tally(r);
}

/* ---- the checkpoint ---- */

static status make_identity(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *o = r->identity = json_object_new();
    char hex[65];

    if (fingerprint_model(hex, s->model, e)) return e->code;
    json_put_text(o, "model (fingerprint)", hex);
    json_put_text(o, "text (digest)", r->corpus.digest);
    json_put_int(o, "text (tokens)", (int64_t)r->corpus.n_tokens);
    json_put(o, "precision", room_precision_json(s));
    /* with the defaults bits do not depend on what travels */
    if (s->cluster.exchange_rows != ROWS_F32) json_put_text(o, "cluster.exchange_rows", "bf16");
    if (s->cluster.exchange_answers != ANSWERS_EXACT)
        json_put_text(o, "cluster.exchange_answers", s->cluster.exchange_answers == ANSWERS_F32 ? "f32" : "bf16");
    json_put_int(o, "seed", s->seed);
    if (r->stage->identify(r, o, e)) return e->code;
    json_put_int(o, "tokens", s->finetune.tokens);
    json_put_int(o, "sequence", r->room.window);
    json_put_int(o, "batch_tokens", s->finetune.batch_tokens);
    json_put_int(o, "limits.batch_rows", r->room.limits.rows); /* passes are cut by it, and gradients are summed pass by pass */
    json_put_real(o, "learning_rate", s->finetune.learning_rate);
    json_put_real(o, "final_learning_rate_ratio", s->finetune.final_learning_rate_ratio);
    json_put_real(o, "weight_decay", s->finetune.weight_decay);
    json_put_real(o, "beta1", s->finetune.beta1);
    json_put_real(o, "beta2", s->finetune.beta2);
    json_put_real(o, "clip", s->finetune.clip);
    json_put_real(o, "warmup", s->finetune.warmup);
    return OK;
}

static struct checkpoint_array *state_of(struct finetune_run *r, int *n)
{
    struct checkpoint_array *arrays = calloc((size_t)r->stage->arrays, sizeof(*arrays));

    BUG_ON(!arrays);
    *n = r->stage->state(r, arrays);
    BUG_ON(*n > r->stage->arrays);
    return arrays;
}

static status write_state(struct finetune_run *r, const struct json_t *progress, struct err *e)
{
    const struct alive alive = {cluster_tick, r->job->cluster};
    struct err ignored;
    int n;

    if (r->stage->gather && r->stage->gather(r, true, e)) return e->code;
    struct checkpoint_array *arrays = state_of(r, &n);
    status s = checkpoint_write(r->checkpoint, r->identity, progress, arrays, n, &alive, e);

    free(arrays);
    if (r->stage->scatter) r->stage->scatter(r, false, &ignored);
    return s;
}

/* Numbers that are not finite, or too large to be added exactly, are the steps' doing behind a step, in front of the first the model's. */
static status diverged(const struct finetune_run *r, struct err *e)
{
    char what[sizeof(e->text)];

    if ((e->code != ERR_FORMAT && e->code != ERR_LIMIT) || r->stage->steps(r) == 0) return e->code;
    memcpy(what, e->text, sizeof(what));
    return err_set(e, e->code, "%.*s; step %lld of %lld, training diverged; lower learning_rate or expert_rate",
                   (int)sizeof(what) / 2, what, (long long)r->stage->steps(r), (long long)r->steps);
}

static status save(struct finetune_run *r, struct err *e)
{
    struct json_t *o = json_object_new();
    char first[32], last[32];

    snprintf(first, sizeof(first), "%s_first", r->stage->loss);
    snprintf(last, sizeof(last), "%s_last", r->stage->loss);
    json_put_int(o, "step", r->stage->steps(r));
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "pass", r->windows.visit.pass);
    json_put_int(o, "at", r->windows.visit.at);
    json_put_real(o, first, r->loss_first);
    json_put_real(o, last, r->loss_last);
    json_put_real(o, "seconds", seconds_so_far(r));
    json_put(o, "before", json_clone(r->before));
    status s = write_state(r, o, e);
    json_free(o);
    if (s == ERR_FORMAT) return diverged(r, e); /* the state before it stays */
    if (s) return s;
    r->saved_step = r->stage->steps(r);
    r->saved_tokens = r->tokens;
    r->saved_at = clock_now();
    return s;
}

static status read_progress(struct finetune_run *r, const struct json_t *o, struct err *e)
{
    const struct json_t *before, *layers;
    const char *path = r->checkpoint;
    int64_t step, pass, at;
    char first[32], last[32], per_layer[64];

    snprintf(first, sizeof(first), "%s_first", r->stage->loss);
    snprintf(last, sizeof(last), "%s_last", r->stage->loss);
    snprintf(per_layer, sizeof(per_layer), "before.%s", r->stage->per_layer);
    status s = json_get_int(&step, o, "step", 1, r->steps, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&r->tokens, o, "tokens", 1, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&pass, o, "pass", 0, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&at, o, "at", 0, r->windows.visit.windows - 1, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->loss_first, o, first, -LOSS_DUST, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->loss_last, o, last, -LOSS_DUST, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->seconds_before, o, "seconds", 0, 1e12, JSON_REQUIRED, path, e);
    if (!s) s = json_get_object(&before, o, "before", JSON_REQUIRED, path, e);
    if (!s) s = json_get_array(&layers, before, r->stage->per_layer, JSON_REQUIRED, path, e);
    if (s) return s;
    if (json_length(layers) != (size_t)r->shape.layers)
        return err_set(e, ERR_FORMAT, "%s: %s: %zu layers, expected %d", path, per_layer, json_length(layers), r->shape.layers);
    r->before = json_clone(before);
    r->saved_step = r->first_step = step;
    r->saved_tokens = r->first_tokens = r->tokens;
    r->stage->set_steps(r, step);
    windows_seek(&r->windows, pass, (int)at);
    log_line(r->job->log, "goes on from %s at step %lld of %lld", path, (long long)step, (long long)r->steps);
    return OK;
}

static status resume(struct finetune_run *r, struct err *e)
{
    const struct alive alive = {cluster_tick, r->job->cluster};
    struct checkpoint_array *arrays;
    struct json_t *o;
    int n;

    if (r->stage->resume) r->stage->resume(r);
    if (r->stage->gather && r->stage->gather(r, false, e)) return e->code;
    arrays = state_of(r, &n);
    status s = checkpoint_read(&o, r->checkpoint, r->identity, arrays, n, &alive, e);
    free(arrays);
    if (s) return s;
    if (r->stage->scatter) s = r->stage->scatter(r, true, e);
    if (!s) s = read_progress(r, o, e);
    json_free(o);
    return s;
}

/* ---- training ---- */

static void report_step(struct finetune_run *r, double rate, double norm)
{
    double tokens_per_second = (double)(r->tokens - r->first_tokens) / (clock_now() - r->started);
    struct json_t *o = json_object_new();
    char line[64];

    json_put_int(o, "step", r->stage->steps(r));
    json_put_int(o, "tokens", r->tokens);
    r->stage->step(r, o, line);
    json_put_real(o, "learning_rate", rate);
    json_put_real(o, "gradient_norm", norm);
    json_put_real(o, "tokens_per_second", tokens_per_second);
    job_event(r->job, "step", o);
    log_progress(r->job->log, "finetune", (double)r->tokens, (double)r->spec->finetune.tokens, "%s  %.0f tokens/s", line,
                 tokens_per_second);
}

/* A stop and a lost rank lose no finished step.  Whatever else ends a run may come of the state itself: the last checkpoint stays. */
static status stopped(struct finetune_run *r, struct err *e)
{
    long long step = r->stage->steps(r);
    struct err late;

    if (step > r->saved_step && (e->code == STOPPED || e->code == ERR_RANK) && save(r, &late) && e->code == STOPPED) *e = late;
    if (e->code != STOPPED) return e->code;
    return err_set(e, STOPPED, "stopped after step %lld of %lld; run the same job again to go on from %s", step,
                   (long long)r->steps, r->checkpoint);
}

static bool is_due(const struct finetune_run *r)
{
    const struct spec *s = r->spec;

    return (s->finetune.checkpoint_tokens && r->tokens - r->saved_tokens >= s->finetune.checkpoint_tokens) ||
           (s->finetune.checkpoint_seconds > 0 && clock_now() - r->saved_at >= s->finetune.checkpoint_seconds);
}

static status train(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;

    while (r->stage->steps(r) < r->steps) {
        int64_t step = r->stage->steps(r), pass = r->windows.visit.pass;
        double rate =
            s->finetune.learning_rate * pace_factor(step, r->steps, s->finetune.warmup, s->finetune.final_learning_rate_ratio);
        int at = r->windows.visit.at;

        windows_next(&r->windows, s->finetune.batch_tokens, s->finetune.tokens - r->tokens);
        if (r->stage->batch(r, true, e)) {
            windows_seek(&r->windows, pass, at); /* this batch was not learned from */
            diverged(r, e);
            return stopped(r, e);
        }
        double norm;

        if (r->stage->update(r, rate, &norm, e)) return e->code;
        if (!isfinite(norm)) {
            err_set(e, ERR_FORMAT, "the gradient is not finite");
            return diverged(r, e);
        }

        r->tokens += r->windows.batch_tokens;
        r->loss_last = r->stage->loss_of(r);
        if (step == 0) r->loss_first = r->loss_last;
        report_step(r, rate, norm);
        bool due = is_due(r);

        if (stop_asked() != STOP_NO) {
            err_set(e, STOPPED, "stopped");
            return stopped(r, e);
        }
        if (due && save(r, e)) return e->code;
    }
    return OK;
}

/* ---- reports ---- */

static void fill_result(struct finetune_run *r, const struct json_t *after, const char *version)
{
    struct json_t *o = r->job->result, *loss = finetune_before_and_after(r, after, r->stage->loss), *probe = json_object_new();
    double seconds = seconds_so_far(r);

    json_put_real(loss, "first", r->loss_first);
    json_put_real(loss, "last", r->loss_last);
    json_put_text(o, "version", version);
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "steps", r->steps);
    if (r->first_step) json_put_int(o, "resumed_at_step", r->first_step);
    json_put(o, r->stage->loss, loss);
    r->stage->result(r, o, after);
    json_put(o, "load", json_clone(json_at(after, "load")));
    json_put_int(probe, "tokens", json_int(json_at(after, "tokens")));
    json_put_bool(probe, "held_out", r->windows.held_out);
    json_put(o, "measured_on", probe);
    json_put_real(o, "training_seconds", seconds); /* of all launches that trained */
    json_put_real(o, "tokens_per_second", (double)r->tokens / seconds);
}

static struct json_t *about_router(const struct finetune_run *r, const struct json_t *after)
{
    struct json_t *o = json_object_new(), *metrics = json_object_new(), *inputs = json_object_new();
    char date[32];

    clock_date(date);
    json_put_text(o, "made", date);
    json_put_text(o, "parent", r->from[0] ? r->from : NULL); /* NULL: from random weights */
    json_put_text(o, "stage", r->stage->name);
    json_put_text(o, "select", r->router.by_threshold ? "threshold" : "top_k");
    json_put_int(o, "experts", r->shape.experts);
    json_put_int(o, "active", r->shape.active);
    json_put_text(o, "text", r->spec->finetune.text.file);
    json_put(o, "spec", spec_settings_of_run(r->spec, r->identity, inputs));
    json_put(o, "inputs", inputs); /* digests and lengths */
    json_put(metrics, r->stage->loss, finetune_before_and_after(r, after, r->stage->loss));
    r->stage->about(r, o, metrics, after);
    json_put(metrics, "load", json_clone(json_at(after, "load")));
    json_put_bool(metrics, "held_out", r->windows.held_out);
    json_put(o, "metrics", metrics);
    return o;
}

static void print_end(const struct finetune_run *r, const struct json_t *after, const char *version)
{
    double seconds = seconds_so_far(r);

    log_progress_end(r->job->log);
    r->stage->print(r, after, version);
    log_line(r->job->log, "%lld tokens in %lld steps, %.1f s, %.0f tokens/s", (long long)r->tokens, (long long)r->steps, seconds,
             (double)r->tokens / seconds);
}

/* ---- the whole ---- */

static status check_spec(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;

    if (shape_read(&r->shape, s->model, e)) return e->code;
    if (!r->shape.experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is a dense model, expected a factorized one: run a factorize job first",
                       s->source, s->model);
    if (r->stage->check(r, e) || room_finetune(&r->room, s, &r->shape, e)) return e->code;
    return ready_version(s, e);
}

static status open_all(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    int32_t bos = r->shape.bos >= 0 ? r->shape.bos : r->shape.eos[0];
    int64_t part = s->finetune.tokens / PROBE_PART, probe = part < r->stage->probe_tokens ? part : r->stage->probe_tokens;
    int64_t room = s->finetune.batch_tokens > r->stage->batch_tokens ? s->finetune.batch_tokens : r->stage->batch_tokens;

    if (room < s->finetune.fit_tokens) room = s->finetune.fit_tokens;
    if (tokenizer_open(&r->tokenizer, s->model, e)) return e->code;
    if (room_open(r->job->cluster, s->model, &r->room, &r->model, e)) return e->code;
    if (job_text(r->job, &s->finetune.text, "finetune", r->model, r->tokenizer, &r->corpus, e)) return e->code;
    if (windows_open(&r->windows, &r->corpus, r->room.window, bos, (uint64_t)s->seed, probe, room, s->source, e)) return e->code;
    r->steps = windows_steps(&r->windows, s->finetune.batch_tokens, s->finetune.tokens);
    if (r->stage->open(r, e)) return e->code;
    return make_identity(r, e);
}

static status write_version(struct finetune_run *r, const struct json_t *after, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *about = about_router(r, after);
    char version[64];
    status st = OK;

    if (s->finetune.version && *s->finetune.version) snprintf(version, sizeof(version), "%s", s->finetune.version);
    else if (spec_adapts(s)) snprintf(version, sizeof(version), "v1"); /* of a model that begins with it */
    else st = router_next_version(version, s->model, e);
    if (!st)
        st =
            r->stage->write ? r->stage->write(r, version, about, e) : router_write(&r->router, s->model, version, about, true, e);
    if (!st) {
        fill_result(r, after, version);
        print_end(r, after, version);
        unlink(r->checkpoint);
    }
    json_free(about);
    return st;
}

static status finish(struct finetune_run *r, struct err *e)
{
    int64_t pass = r->windows.visit.pass;
    int at = r->windows.visit.at;
    struct json_t *after = r->stage->settle(r, e) ? NULL : finetune_measured(r, e);

    if (!after) {
        windows_seek(&r->windows, pass, at); /* the next launch looks at the same text */
        if (r->stage->unsettle) r->stage->unsettle(r);
        return stopped(r, e);
    }
    status st = write_version(r, after, e);
    json_free(after);
    return st;
}

status finetune_run(struct finetune_run *r, struct job *j, const struct finetune_stage *stage, struct err *e)
{
    r->job = j, r->spec = j->spec, r->stage = stage;
    r->checkpoint = str_join(j->spec->output, "checkpoint");
    if (check_spec(r, e) || open_all(r, e)) return e->code;
    r->started = r->saved_at = clock_now();
    if (file_exists(r->checkpoint) ? resume(r, e) : stage->begin(r, e)) return e->code;
    enum timing_section was = timing_enter(cluster_timing_here(j->cluster), TIME_TRAIN);
    status s = train(r, e);
    timing_enter(cluster_timing_here(j->cluster), was);
    return s ? s : finish(r, e);
}

void finetune_close(struct finetune_run *r)
{
    router_free(&r->router);
    corpus_free(&r->corpus);
    tokenizer_close(r->tokenizer);
    windows_close(&r->windows);
    json_free(r->identity);
    json_free(r->before);
    free(r->checkpoint);
}
