/* finetune with stage: 2: trains a router version, and the means of what it leaves out, end to end (train/stage2.h); writes a new version.
 *
 * Windows, their order, the held-out ones and the checkpoint are as in stage 1 (finetune.c).
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
#include "data/digest.h"
#include "jobs/fingerprint.h"
#include "jobs/job.h"
#include "jobs/ready.h"
#include "jobs/room.h"
#include "model/router_file.h"
#include "model/router_versions.h"
#include "moe/route.h"
#include "train/checkpoint.h"
#include "train/pace.h"
#include "train/stage2.h"

enum { PROBE_TOKENS = 8192, PROBE_PART = 16 /* of the budget */, SHIFT_TOKENS = 16384 };

struct run {
    struct job *job;
    const struct spec *spec;
    struct shape shape;
    struct model *model;
    struct tokenizer *tokenizer;
    struct corpus corpus;
    struct router router;
    struct stage2 *trainer;
    struct room room;
    struct windows windows;
    char from[64]; /* the version it starts from */
    int *group;    /* [layers][experts] for load_balance, or NULL */
    int groups;
    struct json_t *identity, *before; /* before: metrics of what it starts from */
    char *checkpoint;
    int64_t steps, tokens; /* in all; seen */
    double kl_first, kl_last, shift;
    double seconds_before, started;
    int64_t saved_step, saved_tokens, first_step, first_tokens;
    double saved_at;
};

static double seconds_so_far(const struct run *r)
{
    return r->seconds_before + (clock_now() - r->started);
}

/* ---- what it starts from ---- */

static void copy_parts(struct router *to, struct router *from)
{
    struct router_part a[ROUTER_PARTS], b[ROUTER_PARTS];
    int n = router_parts(to, a), m = router_parts(from, b);

    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            if (!strcmp(a[i].name, b[j].name))
                memcpy(*a[i].where, *b[j].where, (size_t)to->layers * a[i].rows * a[i].cols * sizeof(float));
}

/* The version's router, with means: its own, the model's, or none yet. */
static status read_router(struct run *r, struct err *e)
{
    const struct shape *y = &r->shape;
    size_t of_layer = (size_t)y->experts * (size_t)y->width;
    struct router old;
    status code;

    if (router_read(&old, r->spec->model, r->from, y, e)) return e->code;
    struct router_form form = router_form_of(&old);
    bool own = form.means;

    form.means = own || y->compensate || spec_trains(r->spec, TRAIN_COMPENSATION);
    code = router_alloc_form(&r->router, y, &form, e);
    if (!code) {
        copy_parts(&r->router, &old);
        r->router.by_threshold = old.by_threshold;
        memcpy(r->router.threshold, old.threshold, (size_t)y->layers * sizeof(float));
    }
    for (int l = 0; !code && form.means && !own && l < y->layers; l++)
        if (model_means(r->model, l))
            memcpy(r->router.mu + (size_t)l * of_layer, model_means(r->model, l), of_layer * sizeof(float));
    router_free(&old);
    return code;
}

/* Groups of the load term: what the placement gives to each rank that has anything. */
static void make_groups(struct run *r)
{
    int ranks = comm_size(cluster_comm(r->job->cluster)), layers = r->shape.layers, n = r->shape.experts;
    int *number = calloc((size_t)ranks, sizeof(*number));

    r->group = calloc((size_t)layers * (size_t)n, sizeof(*r->group));
    BUG_ON(!number || !r->group);
    for (int i = 0; i < layers * n; i++) number[moe_rank_of(model_moe(r->model), i / n, i % n)] = 1;
    for (int q = 0; q < ranks; q++) number[q] = number[q] ? r->groups++ : -1;
    for (int i = 0; i < layers * n; i++) r->group[i] = number[moe_rank_of(model_moe(r->model), i / n, i % n)];
    free(number);
}

static bool sign_of_life(void *ctx)
{
    cluster_alive(((struct run *)ctx)->job->cluster);
    return stop_asked() == STOP_NOW;
}

static status open_trainer(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct stage2_options o = {
        .lm = s->stage2.lm_loss,
        .budget = s->stage2.budget,
        .load = s->stage2.load_balance,
        .train_router = spec_trains(s, TRAIN_ROUTER),
        .train_means = spec_trains(s, TRAIN_COMPENSATION),
        .means_rate = s->stage2.compensation_rate,
        .compensate = r->router.mu || r->router.low_rank,
        .scale = (float)r->shape.scale,
        .rows = r->room.limits.rows,
        .sessions = r->room.limits.rows / r->room.window,
        .adamw = {.beta1 = s->finetune.beta1,
                  .beta2 = s->finetune.beta2,
                  .epsilon = 1e-8,
                  .weight_decay = s->finetune.weight_decay},
        .clip = s->finetune.clip,
        .alive = sign_of_life,
        .alive_ctx = r,
    };

    if (s->stage2.load_balance > 0 && s->stage2.balance_over == BALANCE_RANKS) make_groups(r);
    o.group = r->group, o.groups = r->groups;
    return stage2_open(&r->trainer, &r->router, r->model, &o, e);
}

/* With select: threshold a router of top-k gets thresholds at which it activates k experts in the mean, from its scores on its own states; with select: top_k
 * thresholds go. */
static status set_selection(struct run *r, struct err *e)
{
    struct router *router = &r->router;
    int64_t window = r->room.window, tokens = r->room.limits.rows / window * window; /* one pass */
    status code;

    if (r->spec->finetune.select != SELECT_THRESHOLD || router->by_threshold) {
        router->by_threshold = r->spec->finetune.select == SELECT_THRESHOLD;
        return OK;
    }
    windows_next(&r->windows, tokens, tokens);
    code = stage2_thresholds(r->trainer, r->windows.batch, r->windows.n_batch, e);
    windows_seek(&r->windows, 0, 0);
    return code;
}

/* ---- what was measured ---- */

static struct json_t *reals(const double *x, int n)
{
    struct json_t *a = json_array_new();

    for (int i = 0; i < n; i++) json_append(a, json_real_new(x[i]));
    return a;
}

static struct json_t *tally_json(const struct run *r)
{
    const struct stage2_tally *t = stage2_tally(r->trainer);
    int layers = r->shape.layers, n = r->shape.experts;
    struct json_t *o = json_object_new(), *load = json_array_new();

    for (int l = 0; l < layers; l++) {
        struct json_t *of_layer = json_array_new();

        for (int i = 0; i < n; i++) json_append(of_layer, json_real_new((double)t->load[l * n + i] / (double)t->rows));
        json_append(load, of_layer);
    }
    json_put_real(o, "kl", t->kl);
    json_put_real(o, "nll", t->nll);
    json_put_real(o, "active_share", t->share);
    json_put(o, "active_share_of_layers", reals(t->share_of, layers));
    json_put(o, "load", load);
    json_put_int(o, "tokens", t->rows);
    return o;
}

static struct json_t *measured(struct run *r, struct err *e)
{
    windows_take_probe(&r->windows);
    return stage2_batch(r->trainer, STAGE2_MEASURE, r->windows.batch, r->windows.n_batch, e) ? NULL : tally_json(r);
}

/* ---- the checkpoint ---- */

static status make_identity(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *o = r->identity = json_object_new();
    struct str path = {0};
    char hex[65], train[64];

    if (fingerprint_model(hex, s->model, e)) return e->code;
    json_put_text(o, "model (fingerprint)", hex);
    str_addf(&path, "%s/routers/%s/router.safetensors", s->model, r->from);
    status code = digest_file(hex, path.text, e);
    str_free(&path);
    if (code) return code;
    snprintf(train, sizeof(train), "%s%s", spec_trains(s, TRAIN_ROUTER) ? "router " : "",
             spec_trains(s, TRAIN_COMPENSATION) ? "compensation" : "");
    json_put_int(o, "stage", 2);
    json_put_text(o, "from", r->from);
    json_put_text(o, "from (digest)", hex);
    json_put_text(o, "text (digest)", r->corpus.digest);
    json_put_int(o, "text (tokens)", (int64_t)r->corpus.n_tokens);
    json_put(o, "precision", room_precision_json(s));
    json_put_int(o, "seed", s->seed);
    json_put_text(o, "select", s->finetune.select == SELECT_THRESHOLD ? "threshold" : "top_k");
    json_put_text(o, "train", train);
    json_put_real(o, "lm_loss", s->stage2.lm_loss);
    json_put_real(o, "budget", s->stage2.budget);
    json_put_real(o, "load_balance", s->stage2.load_balance);
    json_put_text(o, "balance_over", s->stage2.balance_over == BALANCE_RANKS ? "rank" : "expert");
    json_put_int(o, "balance groups", r->groups);
    json_put_real(o, "compensation_rate", s->stage2.compensation_rate);
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

enum { ARRAYS = STAGE2_ARRAYS + 1 };

/* Thresholds are not trained, but what stands in a checkpoint needs no text to be found again. */
static int arrays_of(struct run *r, struct checkpoint_array out[ARRAYS])
{
    int n = stage2_arrays(r->trainer, out);

    out[n++] = (struct checkpoint_array){"router.threshold", r->router.threshold, (size_t)r->shape.layers};
    return n;
}

static status save(struct run *r, struct err *e)
{
    struct checkpoint_array arrays[ARRAYS];
    struct json_t *o = json_object_new();
    int n = arrays_of(r, arrays);

    json_put_int(o, "step", stage2_steps(r->trainer));
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "pass", r->windows.visit.pass);
    json_put_int(o, "at", r->windows.visit.at);
    json_put_real(o, "kl_first", r->kl_first);
    json_put_real(o, "kl_last", r->kl_last);
    json_put_real(o, "seconds", seconds_so_far(r));
    json_put(o, "before", json_clone(r->before));
    status s = checkpoint_write(r->checkpoint, r->identity, o, arrays, n, e);
    json_free(o);
    r->saved_step = stage2_steps(r->trainer);
    r->saved_tokens = r->tokens;
    r->saved_at = clock_now();
    return s;
}

static status resume(struct run *r, struct err *e)
{
    struct checkpoint_array arrays[ARRAYS];
    const struct json_t *before;
    const char *path = r->checkpoint;
    struct json_t *o;
    int64_t step, pass, at;
    int n = arrays_of(r, arrays);

    if (checkpoint_read(&o, path, r->identity, arrays, n, e)) return e->code;
    status s = json_get_int(&step, o, "step", 1, r->steps, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&r->tokens, o, "tokens", 1, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&pass, o, "pass", 0, INT64_MAX / 2, JSON_REQUIRED, path, e);
    if (!s) s = json_get_int(&at, o, "at", 0, r->windows.visit.windows - 1, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->kl_first, o, "kl_first", 0, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->kl_last, o, "kl_last", 0, 1e300, JSON_REQUIRED, path, e);
    if (!s) s = json_get_real(&r->seconds_before, o, "seconds", 0, 1e12, JSON_REQUIRED, path, e);
    if (!s) s = json_get_object(&before, o, "before", JSON_REQUIRED, path, e);
    if (!s) {
        r->before = json_clone(before);
        r->saved_step = r->first_step = step;
        r->saved_tokens = r->first_tokens = r->tokens;
        stage2_set_steps(r->trainer, step);
        windows_seek(&r->windows, pass, (int)at);
        log_line(r->job->log, "goes on from %s at step %lld of %lld", path, (long long)step, (long long)r->steps);
    }
    json_free(o);
    return s;
}

/* ---- training ---- */

static void report_step(struct run *r, double rate, double norm)
{
    const struct stage2_tally *t = stage2_tally(r->trainer);
    double tokens_per_second = (double)(r->tokens - r->first_tokens) / (clock_now() - r->started);
    struct json_t *o = json_object_new();

    json_put_int(o, "step", stage2_steps(r->trainer));
    json_put_int(o, "tokens", r->tokens);
    json_put_real(o, "loss", t->loss);
    json_put_real(o, "kl", t->kl);
    json_put_real(o, "nll", t->nll);
    json_put_real(o, "active_share", t->share);
    json_put(o, "active_share_of_layers", reals(t->share_of, r->shape.layers));
    json_put_real(o, "learning_rate", rate);
    json_put_real(o, "gradient_norm", norm);
    json_put_real(o, "tokens_per_second", tokens_per_second);
    job_event(r->job, "step", o);
    log_progress(r->job->log, "finetune", (double)r->tokens, (double)r->spec->finetune.tokens, "KL %.4f  f %.3f  %.0f tokens/s",
                 t->kl, t->share, tokens_per_second);
}

/* Whatever ends a run early, no finished step is lost. */
static status stopped(struct run *r, struct err *e)
{
    long long step = stage2_steps(r->trainer);
    struct err late;

    if (step > r->saved_step && save(r, &late) && e->code == STOPPED) *e = late;
    if (e->code != STOPPED) return e->code;
    return err_set(e, STOPPED, "stopped after step %lld of %lld; run the same job again to go on from %s", step,
                   (long long)r->steps, r->checkpoint);
}

static status train(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;

    while (stage2_steps(r->trainer) < r->steps) {
        int64_t step = stage2_steps(r->trainer), pass = r->windows.visit.pass;
        double rate =
            s->finetune.learning_rate * pace_factor(step, r->steps, s->finetune.warmup, s->finetune.final_learning_rate_ratio);
        int at = r->windows.visit.at;

        windows_next(&r->windows, s->finetune.batch_tokens, s->finetune.tokens - r->tokens);
        if (stage2_batch(r->trainer, STAGE2_LEARN, r->windows.batch, r->windows.n_batch, e)) {
            windows_seek(&r->windows, pass, at); /* this batch was not learned from */
            return stopped(r, e);
        }
        double norm = stage2_update(r->trainer, rate);

        r->tokens += r->windows.batch_tokens;
        r->kl_last = stage2_tally(r->trainer)->kl;
        if (step == 0) r->kl_first = r->kl_last;
        report_step(r, rate, norm);

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

/* ---- reports ---- */

static struct json_t *before_and_after(const struct run *r, const struct json_t *after, const char *key)
{
    struct json_t *o = json_object_new();

    json_put(o, "before", json_clone(json_at(r->before, key)));
    json_put(o, "after", json_clone(json_at(after, key)));
    return o;
}

static void put_metrics(struct json_t *o, const struct run *r, const struct json_t *after)
{
    static const char *const both[] = {"kl", "nll", "active_share", "active_share_of_layers"};

    for (size_t i = 0; i < sizeof(both) / sizeof(*both); i++) json_put(o, both[i], before_and_after(r, after, both[i]));
    json_put(o, "load", json_clone(json_at(after, "load")));
}

static void fill_result(struct run *r, const struct json_t *after, const char *version)
{
    struct json_t *o = r->job->result, *kl, *probe = json_object_new();
    double seconds = seconds_so_far(r);

    put_metrics(o, r, after);
    kl = before_and_after(r, after, "kl");
    json_put_real(kl, "first", r->kl_first);
    json_put_real(kl, "last", r->kl_last);
    json_put(o, "kl", kl);
    json_put_int(o, "stage", 2);
    json_put_text(o, "version", version);
    json_put_text(o, "from", r->from);
    json_put_int(o, "tokens", r->tokens);
    json_put_int(o, "steps", r->steps);
    if (r->first_step) json_put_int(o, "resumed_at_step", r->first_step);
    if (r->router.by_threshold) json_put_real(o, "threshold_shift", r->shift);
    json_put_int(probe, "tokens", json_int(json_at(after, "tokens")));
    json_put_bool(probe, "held_out", r->windows.held_out);
    json_put(o, "measured_on", probe);
    json_put_real(o, "training_seconds", seconds); /* of all launches that trained */
    json_put_real(o, "tokens_per_second", (double)r->tokens / seconds);
}

static struct json_t *about_router(const struct run *r, const struct json_t *after)
{
    struct json_t *o = json_object_new(), *metrics = json_object_new();
    char date[32];

    clock_date(date);
    json_put_text(o, "made", date);
    json_put_text(o, "parent", r->from);
    json_put_text(o, "stage", "2: end to end, frozen weights");
    json_put_text(o, "select", r->router.by_threshold ? "threshold" : "top_k");
    json_put_int(o, "experts", r->shape.experts);
    json_put_int(o, "active", r->shape.active);
    json_put_text(o, "text", r->spec->finetune.text.file);
    json_put(o, "spec", json_clone(r->identity));
    put_metrics(metrics, r, after);
    json_put_bool(metrics, "held_out", r->windows.held_out);
    json_put(o, "metrics", metrics);
    return o;
}

static void print_table(const struct run *r, const struct json_t *after, const char *version)
{
    static const char *const key[] = {"kl", "nll", "active_share"}, *const name[] = {"KL", "-log p", "f"};
    const struct json_t *was = json_at(r->before, "active_share_of_layers"), *is = json_at(after, "active_share_of_layers");
    struct log *l = r->job->log;

    log_progress_end(l);
    log_line(l, "router %s, from %s: %lld tokens%s", version, r->from, (long long)json_int(json_at(after, "tokens")),
             r->windows.held_out ? " that were not learned from" : " (too little text to set some aside)");
    log_line(l, "%10s %10s %10s", "", "before", "after");
    for (size_t i = 0; i < sizeof(key) / sizeof(*key); i++)
        log_line(l, "%10s %10.4f %10.4f", name[i], json_number(json_at(r->before, key[i])), json_number(json_at(after, key[i])));
    for (int i = 0; i < r->shape.layers; i++)
        log_line(l, "%4s %5d %10.4f %10.4f", "f of", i, json_number(json_item(was, (size_t)i)),
                 json_number(json_item(is, (size_t)i)));
    log_line(l, "%lld tokens in %lld steps, %.1f s, %.0f tokens/s", (long long)r->tokens, (long long)r->steps, seconds_so_far(r),
             (double)r->tokens / seconds_so_far(r));
}

/* ---- the whole ---- */

static status check_spec(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;

    if (shape_read(&r->shape, s->model, e)) return e->code;
    if (!r->shape.experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is a dense model, expected a factorized one: run a factorize job first",
                       s->source, s->model);
    if (s->stage2.from) {
        if (router_check_version(s->stage2.from, e)) return e->code;
        snprintf(r->from, sizeof(r->from), "%s", s->stage2.from);
    } else if (router_current(r->from, s->model, e)) return e->code;
    if (!*r->from)
        return err_set(e, ERR_SPEC,
                       "%s: stage: 2 starts from a router, and %s has none: expected a finetune job of stage 1 first", s->source,
                       s->model);
    if (room_finetune(&r->room, s, &r->shape, e)) return e->code;
    return ready_version(s, e);
}

static status open_all(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    int32_t bos = r->shape.bos >= 0 ? r->shape.bos : r->shape.eos[0];
    int64_t probe = s->finetune.tokens / PROBE_PART < PROBE_TOKENS ? s->finetune.tokens / PROBE_PART : PROBE_TOKENS;
    int64_t room = s->finetune.batch_tokens > SHIFT_TOKENS ? s->finetune.batch_tokens : SHIFT_TOKENS;

    if (tokenizer_open(&r->tokenizer, s->model, e)) return e->code;
    if (room_open(r->job->cluster, s->model, &r->room, &r->model, e)) return e->code;
    if (job_text(r->job, &s->finetune.text, "finetune", r->model, r->tokenizer, &r->corpus, e)) return e->code;
    if (windows_open(&r->windows, &r->corpus, r->room.window, bos, (uint64_t)s->seed, probe, room, s->source, e)) return e->code;
    r->steps = windows_steps(&r->windows, s->finetune.batch_tokens, s->finetune.tokens);
    if (read_router(r, e) || open_trainer(r, e) || make_identity(r, e)) return e->code;
    return OK;
}

/* Thresholds move together until the share is what it is to be, on text that was learned from; a stop in the middle of that changes nothing. */
static status settle_share(struct run *r, struct err *e)
{
    int64_t learned = windows_learned_tokens(&r->windows), tokens = learned < SHIFT_TOKENS ? learned : SHIFT_TOKENS;

    if (!r->router.by_threshold) return OK;
    windows_next(&r->windows, tokens, tokens);
    return stage2_shift(r->trainer, r->windows.batch, r->windows.n_batch, &r->shift, e);
}

static status finish(struct run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct json_t *after = NULL;
    int64_t pass = r->windows.visit.pass;
    int at = r->windows.visit.at;
    size_t bytes = (size_t)r->shape.layers * sizeof(float);
    float *threshold = malloc(bytes);
    char version[64];

    BUG_ON(!threshold);
    memcpy(threshold, r->router.threshold, bytes);
    if (!settle_share(r, e)) after = measured(r, e);
    if (!after) {
        windows_seek(&r->windows, pass, at); /* the next launch looks at the same text */
        memcpy(r->router.threshold, threshold, bytes);
        free(threshold);
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
    free(threshold);
    return st;
}

status job_finetune_stage2(struct job *j, struct err *e)
{
    struct run r = {.job = j, .spec = j->spec, .checkpoint = str_join(j->spec->output, "checkpoint")};
    status s = check_spec(&r, e);

    if (!s) s = open_all(&r, e);
    r.started = r.saved_at = clock_now();
    if (!s && file_exists(r.checkpoint)) {
        r.router.by_threshold = r.spec->finetune.select == SELECT_THRESHOLD; /* thresholds come with the rest */
        s = resume(&r, e);
    } else if (!s && !(s = set_selection(&r, e))) {
        r.before = measured(&r, e);
        if (!r.before) s = e->code;
    }
    enum timing_section was = timing_enter(cluster_timing_here(j->cluster), TIME_TRAIN);
    if (!s) s = train(&r, e);
    timing_enter(cluster_timing_here(j->cluster), was);
    if (!s) s = finish(&r, e);

    stage2_close(r.trainer);
    router_free(&r.router);
    corpus_free(&r.corpus);
    tokenizer_close(r.tokenizer);
    windows_close(&r.windows);
    json_free(r.identity);
    json_free(r.before);
    free(r.group);
    free(r.checkpoint);
    return s;
}
