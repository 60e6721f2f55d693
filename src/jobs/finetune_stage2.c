/* finetune, stage 2: trains a router version, what it adds for what it leaves out, and weights of the model if asked, end to end (train/stage2.h). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "data/digest.h"
#include "jobs/finetune_adapted.h"
#include "jobs/finetune_fit.h"
#include "jobs/ready.h"
#include "model/router_versions.h"
#include "moe/route.h"
#include "train/stage2.h"

enum { PROBE_TOKENS = 8192, SHIFT_TOKENS = 16384, ARRAYS = STAGE2_ARRAYS + 1 };

struct end_to_end {
    struct finetune_run run; /* first */
    struct stage2 *trainer;
    struct adapt *adapt; /* what is trained beside the router and the means, or NULL */
    int *group;          /* [layers][experts] for load_balance, or NULL */
    int groups;
    double shift;
    float *threshold; /* [layers] before settle() */
};

static struct end_to_end *own(struct finetune_run *r)
{
    return (struct end_to_end *)r;
}

static const struct stage2_tally *tally_of(const struct finetune_run *r)
{
    return stage2_tally(((const struct end_to_end *)r)->trainer);
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

/* What the router is to consist of: what the version has; with a scale if compensation is trained; with means unless it compensates otherwise or the spec wants a constant; with a term of low rank if the spec does. */
static status form_of(struct router_form *form, struct router *old, const struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    int wanted = (int)s->finetune.compensation_rank;
    bool constant = s->finetune.compensation == REFIT_CONSTANT, model = r->shape.compensate;

    *form = router_form_of(old);
    if (wanted && form->low_rank && wanted != form->low_rank)
        return err_set(e, ERR_SPEC, "%s: compensation_rank: expected %d, as router %s has it, found %d", s->source,
                       form->low_rank, r->from, wanted);
    if (constant && model)
        return err_set(e, ERR_SPEC, "%s: compensation: expected model, because %s has means itself, found constant", s->source,
                       s->model);
    if (spec_trains(s, TRAIN_COMPENSATION)) form->scaled = true;
    if (wanted) form->low_rank = wanted;
    if (constant) form->means = false;
    else form->means = form->means || model || (spec_trains(s, TRAIN_COMPENSATION) && !router_compensates(old));
    form->constant = !form->low_rank && (constant || form->constant);
    return OK;
}

/* What can be known before the model is opened and text is read. */
static status check(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct router_form form;
    struct router old;

    if (adapted_check(s, &r->shape, e) || ready_ranks(s, &r->shape, e)) return e->code;
    if (s->stage2.from) {
        if (router_check_version(s->stage2.from, e)) return e->code;
        snprintf(r->from, sizeof(r->from), "%s", s->stage2.from);
    } else if (router_current(r->from, s->model, e)) return e->code;
    if (!*r->from)
        return err_set(e, ERR_SPEC,
                       "%s: stage: 2 starts from a router, and %s has none: expected a finetune job of stage 1 first", s->source,
                       s->model);
    if (router_read(&old, s->model, r->from, &r->shape, e)) return e->code;
    status code = form_of(&form, &old, r, e);

    router_free(&old);
    return code;
}

/* d of a router whose means go: what they add in the mean, if all experts are left out as often. */
static void constant_of(struct router *to, const struct router *from, const struct shape *y)
{
    size_t d = (size_t)to->width, n = (size_t)to->experts;

    for (size_t l = 0; l < (size_t)to->layers; l++)
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < d; k++)
                to->offset[l * d + k] += (1 - (float)y->active_of[l] / (float)n) * from->mu[(l * n + i) * d + k];
}

/* A new term of low rank begins as nothing: A random, B zero. */
static void start_term(struct router *to, uint64_t seed)
{
    size_t n = (size_t)to->layers * (size_t)to->low_rank * (size_t)to->width;
    struct rng r;

    rng_seed(&r, seed, 21);
    for (size_t i = 0; i < n; i++) to->inward[i] = (float)(rng_normal(&r) / sqrt((double)to->width));
}

static status read_router(struct finetune_run *r, struct err *e)
{
    const struct shape *y = &r->shape;
    size_t of_layer = (size_t)y->experts * (size_t)y->width;
    struct router old, *to = &r->router;
    struct router_form form;
    status code;

    if (router_read(&old, r->spec->model, r->from, y, e)) return e->code;
    code = form_of(&form, &old, r, e);
    if (!code) code = router_alloc_form(to, y, &form, e);
    if (!code) {
        copy_parts(to, &old);
        to->by_threshold = old.by_threshold;
        memcpy(to->threshold, old.threshold, (size_t)y->layers * sizeof(float));
        if (old.mu && to->offset && !to->mu) constant_of(to, &old, y);
        for (int l = 0; to->scale && !old.scale && l < y->layers; l++) to->scale[l] = (float)y->scale;
        if (to->low_rank && !old.low_rank) start_term(to, (uint64_t)r->spec->seed);
    }
    for (int l = 0; !code && form.means && !old.mu && l < y->layers; l++)
        if (model_means(r->model, l)) memcpy(to->mu + (size_t)l * of_layer, model_means(r->model, l), of_layer * sizeof(float));
    router_free(&old);
    return code;
}

/* Groups of the load term: what the placement gives to each rank that has anything. */
static void make_groups(struct finetune_run *r)
{
    int ranks = comm_size(cluster_comm(r->job->cluster)), layers = r->shape.layers, n = r->shape.experts;
    int *number = calloc((size_t)ranks, sizeof(*number));

    own(r)->group = calloc((size_t)layers * (size_t)n, sizeof(*own(r)->group));
    BUG_ON(!number || !own(r)->group);
    for (int i = 0; i < layers * n; i++) number[moe_rank_of(model_moe(r->model), i / n, i % n)] = 1;
    for (int q = 0; q < ranks; q++) number[q] = number[q] ? own(r)->groups++ : -1;
    for (int i = 0; i < layers * n; i++) own(r)->group[i] = number[moe_rank_of(model_moe(r->model), i / n, i % n)];
    free(number);
}

static status open_adapt(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct adapt_options o = {.term = spec_trains(s, TRAIN_COMPENSATION) && r->router.offset,
                              .scale = spec_trains(s, TRAIN_COMPENSATION),
                              .norms = spec_trains(s, TRAIN_NORMS),
                              .experts = spec_trains_experts(s),
                              .offset_rate = s->stage2.compensation_rate,
                              .expert_rate = s->stage2.expert_rate,
                              .rows = r->room.limits.rows};

    return o.term || o.scale || spec_adapts(s) ? adapt_open(&own(r)->adapt, r->model, &r->router, &o, e) : OK;
}

static status open_trainer(struct finetune_run *r, struct err *e)
{
    const struct spec *s = r->spec;
    struct stage2_options o = {
        .lm = s->stage2.lm_loss,
        .budget = s->stage2.budget,
        .load = s->stage2.load_balance,
        .temperature = s->stage2.gate_temperature,
        .train_router = spec_trains(s, TRAIN_ROUTER),
        .train_means = spec_trains(s, TRAIN_COMPENSATION) && r->router.mu,
        .means_rate = s->stage2.compensation_rate,
        .compensate = router_compensates(&r->router),
        .scale = (float)r->shape.scale,
        .rows = r->room.limits.rows,
        .sessions = r->room.limits.rows / r->room.window,
        .adamw = finetune_adamw(s),
        .clip = s->finetune.clip,
        .alive = finetune_alive,
        .alive_ctx = r,
    };

    if (open_adapt(r, e)) return e->code;
    o.adapt = own(r)->adapt;
    if (s->stage2.load_balance > 0 && s->stage2.balance_over == BALANCE_RANKS) make_groups(r);
    o.group = own(r)->group, o.groups = own(r)->groups;
    return stage2_open(&own(r)->trainer, &r->router, r->model, &o, e);
}

static status open_stage(struct finetune_run *r, struct err *e)
{
    return read_router(r, e) ? e->code : open_trainer(r, e);
}

/* With select: threshold a router of top-k gets thresholds at which it activates k experts in the mean, from its scores on its own states; with select: top_k
 * thresholds go. */
static status set_selection(struct finetune_run *r, struct err *e)
{
    struct router *router = &r->router;
    int64_t learned = windows_learned_tokens(&r->windows), tokens = learned < THRESHOLD_TOKENS ? learned : THRESHOLD_TOKENS;
    status code;

    if (r->spec->finetune.select != SELECT_THRESHOLD || router->by_threshold) {
        router->by_threshold = r->spec->finetune.select == SELECT_THRESHOLD;
        return OK;
    }
    windows_next(&r->windows, tokens, tokens);
    code = stage2_thresholds(own(r)->trainer, r->windows.batch, r->windows.n_batch, e);
    windows_seek(&r->windows, 0, 0);
    return code;
}

static status begin(struct finetune_run *r, struct err *e)
{
    if (set_selection(r, e)) return e->code;
    r->before = finetune_measured(r, e);
    return r->before ? OK : e->code;
}

/* Thresholds are not trained, but what stands in a checkpoint needs no text to be found again. */
static void resume(struct finetune_run *r)
{
    r->router.by_threshold = r->spec->finetune.select == SELECT_THRESHOLD;
}

static status identify(const struct finetune_run *r, struct json_t *o, struct err *e)
{
    const struct spec *s = r->spec;
    char hex[65];
    struct str path = {0}, train = {0};

    str_addf(&path, "%s/routers/%s/router.safetensors", s->model, r->from);
    status code = digest_file(hex, path.text, e);
    str_free(&path);
    if (code) return code;
    for (enum spec_train t = TRAIN_ROUTER; t <= TRAIN_LORA; t++)
        if (spec_trains(s, t)) str_addf(&train, "%s%s", train.length ? " " : "", spec_train_name(t));
    json_put_int(o, "stage", 2);
    json_put_text(o, "from", r->from);
    json_put_text(o, "from (digest)", hex);
    json_put_text(o, "select", s->finetune.select == SELECT_THRESHOLD ? "threshold" : "top_k");
    json_put_text(o, "train", train.text);
    str_free(&train);
    if (s->finetune.compensation == REFIT_CONSTANT) json_put_text(o, "compensation", "constant");
    if (spec_trains_experts(s)) json_put_real(o, "expert_rate", s->stage2.expert_rate);
    if (spec_trains(s, TRAIN_LORA)) json_put_int(o, "lora_rank", s->stage2.lora_rank);
    if (s->finetune.compensation_rank) json_put_int(o, "compensation_rank", s->finetune.compensation_rank);
    json_put_real(o, "lm_loss", s->stage2.lm_loss);
    json_put_real(o, "budget", s->stage2.budget);
    json_put_real(o, "load_balance", s->stage2.load_balance);
    json_put_text(o, "balance_over", s->stage2.balance_over == BALANCE_RANKS ? "rank" : "expert");
    json_put_int(o, "balance groups", ((const struct end_to_end *)r)->groups);
    json_put_real(o, "gate_temperature", s->stage2.gate_temperature);
    json_put_real(o, "final_gate_temperature_ratio", s->stage2.final_gate_temperature_ratio);
    json_put_real(o, "compensation_rate", s->stage2.compensation_rate);
    return OK;
}

/* ---- the trainer ---- */

static int64_t steps(const struct finetune_run *r)
{
    return stage2_steps(((const struct end_to_end *)r)->trainer);
}

/* Linear: the first step has gate_temperature. */
static double temperature_of(const struct finetune_run *r)
{
    double done = (double)steps(r) / (double)r->steps;

    return r->spec->stage2.gate_temperature * (1 + (r->spec->stage2.final_gate_temperature_ratio - 1) * done);
}

static status batch(struct finetune_run *r, bool learn, struct err *e)
{
    if (learn) stage2_set_temperature(own(r)->trainer, temperature_of(r));
    return stage2_batch(own(r)->trainer, learn ? STAGE2_LEARN : STAGE2_MEASURE, r->windows.batch, r->windows.n_batch, e);
}

static status update(struct finetune_run *r, double rate, double *norm, struct err *e)
{
    return stage2_update(own(r)->trainer, rate, norm, e);
}

static double loss_of(const struct finetune_run *r)
{
    return tally_of(r)->kl;
}

static void set_steps(struct finetune_run *r, int64_t n)
{
    stage2_set_steps(own(r)->trainer, n);
}

static int state(struct finetune_run *r, struct checkpoint_array *out)
{
    int n = stage2_arrays(own(r)->trainer, out);

    out[n++] = (struct checkpoint_array){"router.threshold", r->router.threshold, (size_t)r->shape.layers};
    return n;
}

static status gather(struct finetune_run *r, bool fill, struct err *e)
{
    return own(r)->adapt ? adapt_gather(own(r)->adapt, fill, e) : OK;
}

static status scatter(struct finetune_run *r, bool use, struct err *e)
{
    return own(r)->adapt ? adapt_scatter(own(r)->adapt, use, e) : OK;
}

static status write(struct finetune_run *r, const char *version, const struct json_t *about, struct err *e)
{
    return spec_adapts(r->spec) ? adapted_write(r, version, about, e)
                                : router_write(&r->router, r->spec->model, version, about, true, e);
}

/* Thresholds move together until the share is what it is to be, on text that was learned from; a stop in the middle of that changes nothing. */
static status settle(struct finetune_run *r, struct err *e)
{
    int64_t learned = windows_learned_tokens(&r->windows), tokens = learned < SHIFT_TOKENS ? learned : SHIFT_TOKENS;
    size_t bytes = (size_t)r->shape.layers * sizeof(float);

    own(r)->threshold = malloc(bytes);
    BUG_ON(!own(r)->threshold);
    memcpy(own(r)->threshold, r->router.threshold, bytes);
    if (!r->router.by_threshold) return OK;
    windows_next(&r->windows, tokens, tokens);
    return stage2_shift(own(r)->trainer, r->windows.batch, r->windows.n_batch, &own(r)->shift, e);
}

static void unsettle(struct finetune_run *r)
{
    memcpy(r->router.threshold, own(r)->threshold, (size_t)r->shape.layers * sizeof(float));
}

/* ---- reports ---- */

static struct json_t *tally(const struct finetune_run *r)
{
    const struct stage2_tally *t = tally_of(r);
    struct json_t *o = json_object_new();

    json_put_real(o, "kl", t->kl);
    json_put_real(o, "nll", t->nll);
    json_put_real(o, "active_share", t->share);
    json_put(o, "active_share_of_layers", finetune_reals(t->share_of, r->shape.layers));
    json_put(o, "load", finetune_loads(r, t->load, t->rows));
    json_put_int(o, "tokens", t->rows);
    return o;
}

static void step(const struct finetune_run *r, struct json_t *o, char line[64])
{
    const struct stage2_tally *t = tally_of(r);

    json_put_real(o, "loss", t->loss);
    json_put_real(o, "kl", t->kl);
    json_put_real(o, "nll", t->nll);
    json_put_real(o, "active_share", t->share);
    json_put(o, "active_share_of_layers", finetune_reals(t->share_of, r->shape.layers));
    snprintf(line, 64, "KL %.4f  f %.3f", t->kl, t->share);
}

/* All but KL, which is the run's loss. */
static void put_metrics(struct json_t *o, const struct finetune_run *r, const struct json_t *after)
{
    static const char *const both[] = {"nll", "active_share", "active_share_of_layers"};

    for (size_t i = 0; i < sizeof(both) / sizeof(*both); i++) json_put(o, both[i], finetune_before_and_after(r, after, both[i]));
}

static void result(struct finetune_run *r, struct json_t *o, const struct json_t *after)
{
    put_metrics(o, r, after);
    json_put_int(o, "stage", 2);
    json_put_text(o, "from", r->from);
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    if (spec_adapts(r->spec)) json_put_text(o, "weights", "adapted");
    if (r->router.by_threshold) json_put_real(o, "threshold_shift", own(r)->shift);
}

static void about(const struct finetune_run *r, struct json_t *o, struct json_t *metrics, const struct json_t *after)
{
    json_put(o, "router", finetune_router_json(&r->router, &r->shape));
    if (spec_adapts(r->spec)) {
        json_put_text(o, "stage", "2: end to end, with weights of the model");
        json_put_text(o, "parent_model", r->spec->model); /* `parent` is a version there, not here */
        json_put_text(o, "weights", "adapted");
    }
    put_metrics(metrics, r, after);
}

static void print(const struct finetune_run *r, const struct json_t *after, const char *version)
{
    static const char *const key[] = {"kl", "nll", "active_share"}, *const name[] = {"KL", "-log p", "f"};
    const struct json_t *was = json_at(r->before, "active_share_of_layers"), *is = json_at(after, "active_share_of_layers");
    struct log *l = r->job->log;

    log_line(l, "router %s, from %s: %lld tokens%s", version, r->from, (long long)json_int(json_at(after, "tokens")),
             r->windows.held_out ? " that were not learned from" : " (too little text to set some aside)");
    log_line(l, "%10s %10s %10s", "", "before", "after");
    for (size_t i = 0; i < sizeof(key) / sizeof(*key); i++)
        log_line(l, "%10s %10.4f %10.4f", name[i], json_number(json_at(r->before, key[i])), json_number(json_at(after, key[i])));
    for (int i = 0; i < r->shape.layers; i++)
        log_line(l, "%4s %5d %10.4f %10.4f", "f of", i, json_number(json_item(was, (size_t)i)),
                 json_number(json_item(is, (size_t)i)));
}

static const struct finetune_stage stage2 = {
    .name = "2: end to end, frozen weights",
    .loss = "kl",
    .per_layer = "active_share_of_layers",
    .probe_tokens = PROBE_TOKENS,
    .batch_tokens = SHIFT_TOKENS,
    .arrays = ARRAYS,
    .check = check,
    .open = open_stage,
    .identify = identify,
    .begin = begin,
    .resume = resume,
    .settle = settle,
    .unsettle = unsettle,
    .batch = batch,
    .update = update,
    .loss_of = loss_of,
    .steps = steps,
    .set_steps = set_steps,
    .state = state,
    .gather = gather,
    .scatter = scatter,
    .write = write,
    .tally = tally,
    .step = step,
    .result = result,
    .about = about,
    .print = print,
};

status job_finetune_stage2(struct job *j, struct err *e)
{
    struct end_to_end r = {0};
    status s = finetune_run(&r.run, j, &stage2, e);

    stage2_close(r.trainer);
    adapt_close(r.adapt);
    free(r.group);
    free(r.threshold);
    finetune_close(&r.run);
    return s;
}
