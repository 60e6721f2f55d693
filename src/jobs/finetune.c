/* finetune, stage 1: trains the routers of a factorized model (train/stage1.h), and fits what they need when they are in use. */
#include <stdlib.h>
#include <string.h>

#include "jobs/finetune_adapted.h"
#include "jobs/finetune_fit.h"
#include "jobs/finetune_run.h"
#include "model/router_versions.h"
#include "moe/route.h"
#include "train/stage1.h"

enum { PROBE_TOKENS = 4096 };

struct layerwise {
    struct finetune_run run; /* first */
    struct stage1 *trainer;
    double *missing; /* [layers] of fit_compensation(), or NULL */
};

static struct layerwise *own(struct finetune_run *r)
{
    return (struct layerwise *)r;
}

static const struct stage1_tally *tally_of(const struct finetune_run *r)
{
    return stage1_tally(((const struct layerwise *)r)->trainer);
}

static double mean(const double *x, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += x[i];
    return sum / n;
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

/* ---- opening ---- */

static status check(struct finetune_run *r, struct err *e)
{
    return adapted_check(r->spec, &r->shape, e);
}

static status open_trainer(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct stage1_options o = {
        .labels = (enum spec_labels)s->finetune.labels,
        .loss = (enum spec_loss)s->finetune.loss,
        .token_weights = (enum spec_token_weights)s->finetune.token_weights,
        .active = r->shape.active_of,
        .compensate = r->shape.compensate,
        .rows = r->room.limits.rows,
        .sessions = r->room.limits.rows / r->room.window,
        .adamw = finetune_adamw(s),
        .clip = s->finetune.clip,
        .alive = finetune_alive,
        .alive_ctx = r,
    };

    if (finetune_router(&r->router, s, &r->shape, e)) return e->code;
    if (s->finetune.start == START_CURRENT && router_current(r->from, s->model, e)) return e->code;
    return stage1_open(&own(r)->trainer, &r->router, r->model, cluster_gemm(r->job->cluster), &o, e);
}

static status identify(const struct finetune_run *r, struct json_t *o, struct err *e)
{
    const struct spec *s = r->spec;

    (void)e;
    json_put_text(o, "labels", spec_word(s, "labels"));
    json_put_text(o, "loss", spec_word(s, "loss"));
    json_put_text(o, "token_weights", spec_word(s, "token_weights"));
    finetune_identity(o, s);
    return OK;
}

/* ---- what is fitted ---- */

static struct fit_options fit_options(struct finetune_run *r)
{
    return (struct fit_options){.rows = r->room.limits.rows,
                                .sessions = r->room.limits.rows / r->room.window,
                                .ridge = r->spec->finetune.ridge,
                                .active = r->shape.active_of,
                                .alive = finetune_alive,
                                .alive_ctx = r};
}

/* Least squares on the first windows that are learned from. */
static status start_by_ridge(struct finetune_run *r, struct err *e)
{
    struct fit_options o = fit_options(r);

    windows_next(&r->windows, r->spec->finetune.fit_tokens, windows_learned_tokens(&r->windows));
    status s = fit_start(&r->router, own(r)->trainer, (enum spec_loss)r->spec->finetune.loss, r->model,
                         cluster_gemm(r->job->cluster), r->windows.batch, r->windows.n_batch, &o, e);
    windows_seek(&r->windows, 0, 0);
    return s;
}

static status begin(struct finetune_run *r, struct err *e)
{
    r->before = finetune_measured(r, e);
    if (!r->before) return e->code;
    return r->spec->finetune.start == START_RIDGE ? start_by_ridge(r, e) : OK;
}

/* What the trained router needs when it is in use, thresholds among it, on the states that the student itself has. */
static status fit_rest(struct finetune_run *r, struct err *e)
{
    struct fit_options o = fit_options(r);
    struct routing how = {.scale = r->shape.scale, .compensate = r->shape.compensate};

    windows_next(&r->windows, r->spec->finetune.fit_tokens, windows_learned_tokens(&r->windows));
    own(r)->missing = calloc((size_t)r->shape.layers, sizeof(*own(r)->missing));
    BUG_ON(!own(r)->missing);
    r->router.by_threshold = r->spec->finetune.select == SELECT_THRESHOLD;
    return fit_compensation(&r->router, r->model, cluster_gemm(r->job->cluster), &how, r->windows.batch, r->windows.n_batch, &o,
                            own(r)->missing, e);
}

/* One threshold per layer, at which the trained router activates k experts in the mean, from its scores on text it has learned from. */
static status set_thresholds(struct finetune_run *r, struct err *e)
{
    int layers = r->shape.layers, n = r->shape.experts;
    int64_t tokens = windows_next(&r->windows, THRESHOLD_TOKENS, windows_learned_tokens(&r->windows));
    float *z = malloc((size_t)layers * (size_t)tokens * (size_t)n * sizeof(float));

    if (!z) return err_set(e, ERR_LIMIT, "out of memory for the scores of %lld tokens", (long long)tokens);
    status s = stage1_batch(own(r)->trainer, STAGE1_SCORES, r->windows.batch, r->windows.n_batch, z, e);
    for (int l = 0; l < layers && !s; l++)
        r->router.threshold[l] = route_threshold(z + (size_t)l * (size_t)tokens * (size_t)n, tokens, n, r->shape.active_of[l]);
    r->router.by_threshold = !s;
    free(z);
    return s;
}

static status settle(struct finetune_run *r, struct err *e)
{
    if (finetune_fits(&r->router)) return fit_rest(r, e);
    return r->spec->finetune.select == SELECT_THRESHOLD ? set_thresholds(r, e) : OK;
}

/* ---- the trainer ---- */

static status batch(struct finetune_run *r, bool learn, struct err *e)
{
    return stage1_batch(own(r)->trainer, learn ? STAGE1_LEARN : STAGE1_MEASURE, r->windows.batch, r->windows.n_batch, NULL, e);
}

static status update(struct finetune_run *r, double rate, double *norm, struct err *e)
{
    (void)e;
    *norm = stage1_update(own(r)->trainer, rate);
    return OK;
}

static double loss_of(const struct finetune_run *r)
{
    return mean(tally_of(r)->loss, r->shape.layers);
}

static int64_t steps(const struct finetune_run *r)
{
    return stage1_steps(((const struct layerwise *)r)->trainer);
}

static void set_steps(struct finetune_run *r, int64_t n)
{
    stage1_set_steps(own(r)->trainer, n);
}

static int state(struct finetune_run *r, struct checkpoint_array *out)
{
    return stage1_arrays(own(r)->trainer, out);
}

/* ---- reports ---- */

static struct json_t *tally(const struct finetune_run *r)
{
    const struct stage1_tally *t = tally_of(r);
    struct json_t *o = json_object_new();

    json_put_real(o, "loss", loss_of(r));
    json_put(o, "agreement", finetune_reals(t->agreement, r->shape.layers));
    json_put(o, "load", finetune_loads(r, t->load, t->rows));
    json_put_int(o, "tokens", t->rows);
    return o;
}

static void step(const struct finetune_run *r, struct json_t *o, char line[64])
{
    const struct stage1_tally *t = tally_of(r);
    int layers = r->shape.layers, n = r->shape.experts;
    double least = 1, most = 0;

    for (int l = 0; l < layers; l++) {
        double low, high;

        load_range(&low, &high, t->load + l * n, n, t->rows);
        if (low < least) least = low;
        if (high > most) most = high;
    }
    json_put_real(o, "loss", r->loss_last);
    json_put(o, "agreement", finetune_reals(t->agreement, layers));
    json_put_real(o, "load_min", least);
    json_put_real(o, "load_max", most);
    snprintf(line, 64, "loss %.4f  agreement %.3f", r->loss_last, mean(t->agreement, layers));
}

static void result(struct finetune_run *r, struct json_t *o, const struct json_t *after)
{
    json_put(o, "agreement", finetune_before_and_after(r, after, "agreement"));
    json_put_real(o, "chance", (double)r->shape.active / r->shape.experts);
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    if (own(r)->missing) json_put(o, "missing", finetune_reals(own(r)->missing, r->shape.layers));
}

static void about(const struct finetune_run *r, struct json_t *o, struct json_t *metrics, const struct json_t *after)
{
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    json_put(metrics, "agreement", finetune_before_and_after(r, after, "agreement"));
}

static void print(const struct finetune_run *r, const struct json_t *after, const char *version)
{
    const struct json_t *was = json_at(r->before, "agreement"), *is = json_at(after, "agreement");
    const struct stage1_tally *t = tally_of(r);
    struct log *l = r->job->log;
    int n = r->shape.experts;
    double sum[2] = {0};

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
    struct router_cost cost = router_cost_of(&r->router, &r->shape);

    log_line(l, "a token costs the router and its compensation %.2f %% of the FFN's multiply-adds",
             100 * (cost.scores + cost.low_rank + cost.additions) / (3.0 * r->shape.width * r->shape.neurons));
}

static const struct finetune_stage stage1 = {
    .name = "1: layer-local, teacher-forced",
    .loss = "loss",
    .per_layer = "agreement",
    .probe_tokens = PROBE_TOKENS,
    .batch_tokens = THRESHOLD_TOKENS,
    .arrays = STAGE1_ARRAYS,
    .check = check,
    .open = open_trainer,
    .identify = identify,
    .begin = begin,
    .settle = settle,
    .batch = batch,
    .update = update,
    .loss_of = loss_of,
    .steps = steps,
    .set_steps = set_steps,
    .state = state,
    .tally = tally,
    .step = step,
    .result = result,
    .about = about,
    .print = print,
};

status job_finetune(struct job *j, struct err *e)
{
    if (j->spec->stage2.stage == 2) return job_finetune_stage2(j, e);
    struct layerwise r = {0};
    status s = finetune_run(&r.run, j, &stage1, e);

    stage1_close(r.trainer);
    free(r.missing);
    finetune_close(&r.run);
    return s;
}
