/* finetune: trains the routers of a factorized model (train/stage1.h).
 *
 * The text is cut into windows.  Some of them are set aside, and agreement before and after is measured on those; the others are visited in a
 * seeded order, pass after pass, until the budget of tokens is used.  OUTPUT/checkpoint holds the whole state of the run: a run that was stopped
 * goes on from it and ends with the same bits as one that was not.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/stop.h"
#include "base/str.h"
#include "data/corpus.h"
#include "jobs/finetune_fit.h"
#include "jobs/fingerprint.h"
#include "jobs/job.h"
#include "jobs/ready.h"
#include "jobs/room.h"
#include "model/router_file.h"
#include "moe/route.h"
#include "train/checkpoint.h"
#include "train/pace.h"
#include "train/stage1.h"

enum { PROBE_TOKENS = 4096, PROBE_PART = 16 /* of the budget */, THRESHOLD_TOKENS = 8192 };

struct run {
    struct job *job;
    const struct spec *spec;
    struct shape shape;
    struct model *model;
    struct tokenizer *tokenizer;
    struct corpus corpus;
    struct router router;
    struct stage1 *trainer;
    struct room room;
    int sequence, rows, sessions; /* of the training: the room may be larger, for sampling */

    struct windows windows;

    struct json_t *identity, *before; /* before: metrics of the untrained router */
    char *checkpoint, parent[64];     /* the version it started from */
    int64_t steps, tokens;            /* in all; seen */
    double loss_first, loss_last;
    double *missing; /* [layers] of fit_compensation(), or NULL */
    double seconds_before, started;
    int64_t saved_step, saved_tokens, first_step, first_tokens;
    double saved_at;
};

static double seconds_so_far(const struct run *r)
{
    return r->seconds_before + (clock_now() - r->started);
}

static status choose_windows(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    int32_t bos = r->shape.bos >= 0 ? r->shape.bos : r->shape.eos[0];
    int64_t probe = s->finetune.tokens / PROBE_PART < PROBE_TOKENS ? s->finetune.tokens / PROBE_PART : PROBE_TOKENS;
    int64_t room = s->finetune.batch_tokens > THRESHOLD_TOKENS ? s->finetune.batch_tokens : THRESHOLD_TOKENS;

    if (room < s->finetune.fit_tokens) room = s->finetune.fit_tokens;

    if (windows_open(&r->windows, &r->corpus, r->sequence, bos, (uint64_t)s->seed, probe, room, s->source, e)) return e->code;
    r->steps = windows_steps(&r->windows, s->finetune.batch_tokens, s->finetune.tokens);
    return OK;
}

/* JSON of what was measured. */

static struct json_t *reals(const double *x, int n)
{
    struct json_t *a = json_array_new();

    for (int i = 0; i < n; i++) json_append(a, json_real_new(x[i]));
    return a;
}

static double mean(const double *x, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += x[i];
    return sum / n;
}

static struct json_t *tally_json(const struct run *r)
{
    const struct stage1_tally *t = stage1_tally(r->trainer);
    int layers = r->shape.layers, n = r->shape.experts;
    struct json_t *o = json_object_new(), *load = json_array_new();

    for (int l = 0; l < layers; l++) {
        struct json_t *of_layer = json_array_new();

        for (int i = 0; i < n; i++) json_append(of_layer, json_real_new((double)t->load[l * n + i] / (double)t->rows));
        json_append(load, of_layer);
    }
    json_put_real(o, "loss", mean(t->loss, layers));
    json_put(o, "agreement", reals(t->agreement, layers));
    json_put(o, "load", load);
    json_put_int(o, "tokens", t->rows);
    return o;
}

static void load_range(double *least, double *most, const uint64_t *load, int n, int64_t rows)
{
    *least = *most = (double)load[0] / (double)rows;
    for (int i = 1; i < n; i++) {
        double share = (double)load[i] / (double)rows;

        if (share < *least) *least = share;
        if (share > *most) *most = share;
    }
}

static struct json_t *measured(struct run *r, struct err *e)
{
    windows_take_probe(&r->windows);
    return stage1_batch(r->trainer, STAGE1_MEASURE, r->windows.batch, r->windows.n_batch, NULL, e) ? NULL : tally_json(r);
}

/* The checkpoint. */

static status make_identity(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *o = r->identity = json_object_new();
    char hex[65];

    if (fingerprint_model(hex, s->model, e)) return e->code;
    json_put_text(o, "model (fingerprint)", hex);
    json_put_text(o, "text (digest)", r->corpus.digest);
    json_put_int(o, "text (tokens)", (int64_t)r->corpus.n_tokens);
    json_put(o, "precision", room_precision_json(s));
    json_put_int(o, "seed", s->seed);
    json_put_text(o, "labels", (const char *const[]){"paper", "gram", "energy", "norm"}[s->finetune.labels]);
    json_put_text(o, "loss", (const char *const[]){"paper", "bce", "listwise", "regression"}[s->finetune.loss]);
    finetune_identity(o, s);
    json_put_int(o, "tokens", s->finetune.tokens);
    json_put_int(o, "sequence", r->sequence);
    json_put_int(o, "batch_tokens", s->finetune.batch_tokens);
    json_put_int(o, "limits.batch_rows", r->rows); /* passes are cut by it, and gradients are summed pass by pass */
    json_put_real(o, "learning_rate", s->finetune.learning_rate);
    json_put_real(o, "final_learning_rate_ratio", s->finetune.final_learning_rate_ratio);
    json_put_real(o, "weight_decay", s->finetune.weight_decay);
    json_put_real(o, "beta1", s->finetune.beta1);
    json_put_real(o, "beta2", s->finetune.beta2);
    json_put_real(o, "clip", s->finetune.clip);
    json_put_real(o, "warmup", s->finetune.warmup);
    return OK;
}

static status save(struct run *r, struct err *e)
{
    struct checkpoint_array arrays[STAGE1_ARRAYS];
    struct json_t *o = json_object_new();

    json_put_int(o, "step", stage1_steps(r->trainer));
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "pass", r->windows.visit.pass);
    json_put_int(o, "at", r->windows.visit.at);
    json_put_real(o, "loss_first", r->loss_first);
    json_put_real(o, "loss_last", r->loss_last);
    json_put_real(o, "seconds", seconds_so_far(r));
    json_put(o, "before", json_clone(r->before));
    int n = stage1_arrays(r->trainer, arrays);
    status s = checkpoint_write(r->checkpoint, r->identity, o, arrays, n, e);
    json_free(o);
    r->saved_step = stage1_steps(r->trainer);
    r->saved_tokens = r->tokens;
    r->saved_at = clock_now();
    return s;
}

static status resume(struct run *r, struct err *e)
{
    struct checkpoint_array arrays[STAGE1_ARRAYS];
    const struct json_t *before, *agreement;
    const char *path = r->checkpoint;
    struct json_t *o;
    int64_t step, pass, at;

    int n = stage1_arrays(r->trainer, arrays);

    if (checkpoint_read(&o, path, r->identity, arrays, n, e)) return e->code;
    status s = json_get_int(&step, o, "step", 1, r->steps, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&r->tokens, o, "tokens", 1, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&pass, o, "pass", 0, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&at, o, "at", 0, r->windows.visit.windows - 1, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->loss_first, o, "loss_first", 0, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->loss_last, o, "loss_last", 0, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->seconds_before, o, "seconds", 0, 1e12, JSON_REQUIRED, path, e);
    if (!s) s = json_get_object(&before, o, "before", JSON_REQUIRED, path, e);
    if (!s) s = json_get_array(&agreement, before, "agreement", JSON_REQUIRED, path, e);
    if (!s && json_length(agreement) != (size_t)r->shape.layers)
        s = err_set(e, ERR_FORMAT, "%s: before.agreement: %zu layers, expected %d", path, json_length(agreement),
                    r->shape.layers);
    if (!s) {
        r->before = json_clone(before);
        r->saved_step = r->first_step = step;
        r->saved_tokens = r->first_tokens = r->tokens;
        stage1_set_steps(r->trainer, step);
        windows_seek(&r->windows, pass, (int)at);
        log_line(r->job->log, "goes on from %s at step %lld of %lld", path, (long long)step, (long long)r->steps);
    }
    json_free(o);
    return s;
}

/* Training. */

static bool sign_of_life(void *ctx)
{
    cluster_alive(((struct run *)ctx)->job->cluster);
    return stop_asked() == STOP_NOW;
}

static void report_step(struct run *r, double rate, double norm, double tokens_per_second)
{
    const struct stage1_tally *t = stage1_tally(r->trainer);
    int layers = r->shape.layers, n = r->shape.experts;
    struct json_t *o = json_object_new();
    double least = 1, most = 0;

    for (int l = 0; l < layers; l++) {
        double low, high;

        load_range(&low, &high, t->load + l * n, n, t->rows);
        if (low < least) least = low;
        if (high > most) most = high;
    }
    json_put_int(o, "step", stage1_steps(r->trainer));
    json_put_int(o, "tokens", r->tokens);
    json_put_real(o, "loss", r->loss_last);
    json_put(o, "agreement", reals(t->agreement, layers));
    json_put_real(o, "load_min", least);
    json_put_real(o, "load_max", most);
    json_put_real(o, "learning_rate", rate);
    json_put_real(o, "gradient_norm", norm);
    json_put_real(o, "tokens_per_second", tokens_per_second);
    job_event(r->job, "step", o);
    log_progress(r->job->log, "finetune", (double)r->tokens, (double)r->spec->finetune.tokens,
                 "loss %.4f  agreement %.3f  %.0f tokens/s", r->loss_last, mean(t->agreement, layers), tokens_per_second);
}

/* Whatever ends a run early, no finished step is lost. */
static status stopped(struct run *r, struct err *e)
{
    long long step = stage1_steps(r->trainer);
    struct err late;

    if (step > r->saved_step && save(r, &late) && e->code == STOPPED) *e = late;
    if (e->code != STOPPED) return e->code;
    return err_set(e, STOPPED, "stopped after step %lld of %lld; run the same job again to go on from %s", step,
                   (long long)r->steps, r->checkpoint);
}

static status train(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;

    while (stage1_steps(r->trainer) < r->steps) {
        int64_t step = stage1_steps(r->trainer), pass = r->windows.visit.pass;
        double rate =
            s->finetune.learning_rate * pace_factor(step, r->steps, s->finetune.warmup, s->finetune.final_learning_rate_ratio);
        int at = r->windows.visit.at;

        windows_next(&r->windows, s->finetune.batch_tokens, s->finetune.tokens - r->tokens);
        if (stage1_batch(r->trainer, STAGE1_LEARN, r->windows.batch, r->windows.n_batch, NULL, e)) {
            windows_seek(&r->windows, pass, at); /* this batch was not learned from */
            return stopped(r, e);
        }
        double norm = stage1_update(r->trainer, rate);

        r->tokens += r->windows.batch_tokens;
        r->loss_last = mean(stage1_tally(r->trainer)->loss, r->shape.layers);
        if (step == 0) r->loss_first = r->loss_last;
        report_step(r, rate, norm, (double)(r->tokens - r->first_tokens) / (clock_now() - r->started));

        bool due = (s->finetune.checkpoint_tokens && r->tokens - r->saved_tokens >= s->finetune.checkpoint_tokens) ||
                   (s->finetune.checkpoint_seconds > 0 && clock_now() - r->saved_at >= s->finetune.checkpoint_seconds);

        if (stop_asked() != STOP_NO) {
            err_set(e, STOPPED, "stopped");
            return stopped(r, e);
        }
        if (due && save(r, e)) return e->code;
    }
    return OK;
}

static struct fit_options fit_options(struct run *r)
{
    return (struct fit_options){.rows = r->rows,
                                .sessions = r->sessions,
                                .ridge = r->spec->finetune.ridge,
                                .active = r->shape.active_of,
                                .alive = sign_of_life,
                                .alive_ctx = r};
}

/* Least squares on the first windows that are learned from. */
static status start_by_ridge(struct run *r, struct err *e)
{
    struct fit_options o = fit_options(r);

    windows_next(&r->windows, r->spec->finetune.fit_tokens, windows_learned_tokens(&r->windows));
    status s = fit_start(&r->router, r->trainer, (enum spec_loss)r->spec->finetune.loss, r->model, cluster_gemm(r->job->cluster),
                         r->windows.batch, r->windows.n_batch, &o, e);
    windows_seek(&r->windows, 0, 0);
    return s;
}

/* What the trained router needs when it is in use, thresholds among it, on the states that the student itself has. */
static status fit_rest(struct run *r, struct err *e)
{
    struct fit_options o = fit_options(r);
    struct routing how = {.scale = r->shape.scale, .compensate = r->shape.compensate};

    windows_next(&r->windows, r->spec->finetune.fit_tokens, windows_learned_tokens(&r->windows));
    r->missing = calloc((size_t)r->shape.layers, sizeof(*r->missing));
    BUG_ON(!r->missing);
    r->router.by_threshold = r->spec->finetune.select == SELECT_THRESHOLD;
    return fit_compensation(&r->router, r->model, cluster_gemm(r->job->cluster), &how, r->windows.batch, r->windows.n_batch, &o,
                            r->missing, e);
}

/* One threshold per layer, at which the trained router activates k experts in the mean, from its scores on text it has learned from. */
static status set_thresholds(struct run *r, struct err *e)
{
    int layers = r->shape.layers, n = r->shape.experts;
    int64_t tokens = windows_next(&r->windows, THRESHOLD_TOKENS, windows_learned_tokens(&r->windows));
    float *z = malloc((size_t)layers * (size_t)tokens * (size_t)n * sizeof(float));

    if (!z) return err_set(e, ERR_LIMIT, "out of memory for the scores of %lld tokens", (long long)tokens);
    status s = stage1_batch(r->trainer, STAGE1_SCORES, r->windows.batch, r->windows.n_batch, z, e);
    for (int l = 0; l < layers && !s; l++)
        r->router.threshold[l] = route_threshold(z + (size_t)l * (size_t)tokens * (size_t)n, tokens, n, r->shape.active_of[l]);
    r->router.by_threshold = !s;
    free(z);
    return s;
}

/* Reports. */

static struct json_t *before_and_after(const struct run *r, const struct json_t *after, const char *key)
{
    struct json_t *o = json_object_new();

    json_put(o, "before", json_clone(json_at(r->before, key)));
    json_put(o, "after", json_clone(json_at(after, key)));
    return o;
}

static void fill_result(struct run *r, const struct json_t *after, const char *version)
{
    struct json_t *o = r->job->result, *loss = before_and_after(r, after, "loss"), *probe = json_object_new();
    double seconds = seconds_so_far(r);

    json_put_real(loss, "first", r->loss_first);
    json_put_real(loss, "last", r->loss_last);
    json_put_text(o, "version", version);
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "steps", r->steps);
    if (r->first_step) json_put_int(o, "resumed_at_step", r->first_step);
    json_put(o, "loss", loss);
    json_put(o, "agreement", before_and_after(r, after, "agreement"));
    json_put_real(o, "chance", (double)r->shape.active / r->shape.experts);
    json_put(o, "load", json_clone(json_at(after, "load")));
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    if (r->missing) json_put(o, "missing", reals(r->missing, r->shape.layers));
    json_put_int(probe, "tokens", json_int(json_at(after, "tokens")));
    json_put_bool(probe, "held_out", r->windows.held_out);
    json_put(o, "measured_on", probe);
    json_put_real(o, "training_seconds", seconds); /* of all launches that trained */
    json_put_real(o, "tokens_per_second", (double)r->tokens / seconds);
}

static struct json_t *about_router(const struct run *r, const struct json_t *after)
{
    struct json_t *o = json_object_new(), *metrics = json_object_new();
    const struct spec *s = r->spec;
    char date[32];

    clock_date(date);
    json_put_text(o, "made", date);
    json_put_text(o, "parent", r->parent[0] ? r->parent : NULL); /* NULL: from random weights */
    json_put_text(o, "stage", "1: layer-local, teacher-forced");
    json_put_text(o, "select", r->router.by_threshold ? "threshold" : "top_k");
    json_put_int(o, "experts", r->shape.experts);
    json_put_int(o, "active", r->shape.active);
    json_put_text(o, "text", s->finetune.text.file);
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    json_put(o, "spec", json_clone(r->identity));
    json_put(metrics, "loss", before_and_after(r, after, "loss"));
    json_put(metrics, "agreement", before_and_after(r, after, "agreement"));
    json_put(metrics, "load", json_clone(json_at(after, "load")));
    json_put_bool(metrics, "held_out", r->windows.held_out);
    json_put(o, "metrics", metrics);
    return o;
}

static void print_table(const struct run *r, const struct json_t *after, const char *version)
{
    const struct json_t *was = json_at(r->before, "agreement"), *is = json_at(after, "agreement");
    const struct stage1_tally *t = stage1_tally(r->trainer);
    struct log *l = r->job->log;
    int n = r->shape.experts;
    double sum[2] = {0};

    log_progress_end(l);
    log_line(l, "router %s: agreement with the labels on %lld tokens%s; chance is %.3f", version, (long long)t->rows,
             r->windows.held_out ? " that were not learned from" : " (too little text to set some aside)",
             (double)r->shape.active / n);
    log_line(l, "%8s %10s %10s %14s %10s", "layer", "before", "after", "load, least", "most");
    for (int i = 0; i < r->shape.layers; i++) {
        double before = json_number(json_item(was, (size_t)i)), now = json_number(json_item(is, (size_t)i)), least, most;

        load_range(&least, &most, t->load + i * n, n, t->rows);
        log_line(l, "%8d %10.3f %10.3f %14.3f %10.3f", i, before, now, least, most);
        sum[0] += before;
        sum[1] += now;
    }
    log_line(l, "%8s %10.3f %10.3f", "mean", sum[0] / r->shape.layers, sum[1] / r->shape.layers);
    struct router_cost cost = router_cost(&r->router, r->shape.active, r->router.mu || r->shape.compensate);

    log_line(l, "a token costs the router and its compensation %.2f %% of the FFN's multiply-adds",
             100 * (cost.scores + cost.low_rank + cost.additions) / (3.0 * r->shape.width * r->shape.neurons));
    log_line(l, "%lld tokens in %lld steps, %.1f s, %.0f tokens/s", (long long)r->tokens, (long long)r->steps, seconds_so_far(r),
             (double)r->tokens / seconds_so_far(r));
}

/* The whole. */

static status check_spec(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;

    if (shape_read(&r->shape, s->model, e)) return e->code;
    if (!r->shape.experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is a dense model, expected a factorized one: run a factorize job first",
                       s->source, s->model);
    if (room_finetune(&r->room, s, &r->shape, e)) return e->code;
    r->rows = r->room.limits.rows;
    r->sequence = r->room.window;
    r->sessions = r->rows / r->sequence;
    return ready_version(s, e);
}

static status open_all(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    if (tokenizer_open(&r->tokenizer, s->model, e)) return e->code;
    if (room_open(r->job->cluster, s->model, &r->room, &r->model, e)) return e->code;
    if (job_text(r->job, &s->finetune.text, "finetune", r->model, r->tokenizer, &r->corpus, e)) return e->code;
    if (choose_windows(r, e) || make_identity(r, e)) return e->code;
    if (finetune_router(&r->router, s, &r->shape, e)) return e->code;
    if (s->finetune.start == START_CURRENT && router_current(r->parent, s->model, e)) return e->code;

    struct stage1_options o = {
        .labels = (enum spec_labels)s->finetune.labels,
        .loss = (enum spec_loss)s->finetune.loss,
        .active = r->shape.active_of,
        .compensate = r->shape.compensate,
        .rows = r->rows,
        .sessions = r->sessions,
        .adamw = {.beta1 = s->finetune.beta1,
                  .beta2 = s->finetune.beta2,
                  .epsilon = 1e-8,
                  .weight_decay = s->finetune.weight_decay},
        .clip = s->finetune.clip,
        .alive = sign_of_life,
        .alive_ctx = r,
    };
    return stage1_open(&r->trainer, &r->router, r->model, cluster_gemm(r->job->cluster), &o, e);
}

static status finish(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *after = NULL;
    int64_t pass = r->windows.visit.pass;
    int at = r->windows.visit.at;
    char version[64];

    status fitted = finetune_fits(&r->router)                ? fit_rest(r, e)
                    : s->finetune.select == SELECT_THRESHOLD ? set_thresholds(r, e)
                                                             : OK;

    if (!fitted) after = measured(r, e);
    if (!after) {
        windows_seek(&r->windows, pass, at); /* the next launch sets the thresholds from the same text */
        return stopped(r, e);
    }
    struct json_t *about = about_router(r, after);
    status st = OK;

    if (s->finetune.version && *s->finetune.version) snprintf(version, sizeof(version), "%s", s->finetune.version);
    else st = router_next_version(version, s->model, e);
    if (!st) st = router_write(&r->router, s->model, version, about, true, e);
    if (!st) {
        fill_result(r, after, version);
        print_table(r, after, version);
        unlink(r->checkpoint);
    }
    json_free(about);
    json_free(after);
    return st;
}

status job_finetune(struct job *j, struct err *e)
{
    if (j->spec->stage2.stage == 2) return job_finetune_stage2(j, e);
    struct run r = {.job = j, .spec = j->spec, .checkpoint = str_join(j->spec->output, "checkpoint")};
    status s = check_spec(&r, e);

    if (!s) s = open_all(&r, e);
    r.started = r.saved_at = clock_now();
    if (!s && file_exists(r.checkpoint)) {
        s = resume(&r, e);
    } else if (!s) {
        r.before = measured(&r, e);
        s = !r.before ? e->code : r.spec->finetune.start == START_RIDGE ? start_by_ridge(&r, e) : OK;
    }
    enum timing_section was = timing_enter(cluster_timing_here(j->cluster), TIME_TRAIN);
    if (!s) s = train(&r, e);
    timing_enter(cluster_timing_here(j->cluster), was);
    if (!s) s = finish(&r, e);

    stage1_close(r.trainer);
    router_free(&r.router);
    corpus_free(&r.corpus);
    tokenizer_close(r.tokenizer);
    windows_close(&r.windows);
    json_free(r.identity);
    json_free(r.before);
    free(r.missing);
    free(r.checkpoint);
    return s;
}
