/* Stage 2 on a toy model, wherever its experts are: gradients of every group of parameters against central differences of the whole loss in double
 * (against PyTorch: test_stage2_golden.c); and the job: it learns,
 * a run that is stopped after every step ends with the bits of one that was not, and the curve and the router are the same for every placement, all on one rank among
 * them.
 * np: 1 2 3 5 */
#include <signal.h>

#include "../job_world.h"
#include "../student.h"
#include "data/sums.h"
#include "model/router_file.h"
#include "train/stage2.h"

static void make_model(void **state)
{
    struct str more = {0};

    (void)state;
    str_addf(&more,
             "grouping: coactivation\nbudget: uniform\ncompensation: mean\nexperts: 6\nactive: 3\nshared: 0.2\ncalibration: "
             "{file: %s/text}\n",
             world.directory);
    world_model(more.text);
    str_free(&more);
}

enum { FIRST = 13, SECOND = 6, TOKENS = FIRST + SECOND };
/* Slopes that are looked at of a parameter's array: the reference is slow under sanitizers, and has nothing for them to find. */
#ifdef __SANITIZE_ADDRESS__
enum { SLOPES = 5 };
#else
enum { SLOPES = 23 };
#endif
static int32_t tokens[TOKENS + 1];

static void random_numbers(float *x, size_t n, double spread, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed, 5);
    for (size_t i = 0; i < n; i++) x[i] = (float)(spread * rng_normal(&r));
}

static void compare(struct student *s, const struct window *w, const struct router_param *p, double *values)
{
    size_t step = p->n / SLOPES + 1;
    double largest = 0;

    for (size_t i = 0; i < p->n; i++) largest = fmax(largest, fabs((double)p->gradient[i]));
    assert_true(largest > 0);
    for (size_t i = 0; i < p->n; i += step) {
        double slope = student_slope(s, w, 2, values + i), found = (double)p->gradient[i];

        if (!(fabs(found - slope) < 2e-4 * (largest + fabs(slope))))
            fail_msg("%s[%zu]: expected %.8g, found %.8g; the largest is %.3g", p->name, i, slope, found, largest);
    }
}

/* Norms: of all layers behind one another, or the last one. */
static void compare_norms(struct student *s, const struct window *w, const struct router_param *p)
{
    size_t width = (size_t)s->y.width, step = p->n / SLOPES + 1;
    double largest = 0;

    for (size_t i = 0; i < p->n; i++) largest = fmax(largest, fabs((double)p->gradient[i]));
    for (size_t i = 0; i < p->n; i += step) {
        double *at = !strcmp(p->name, "norm.last")        ? s->norm
                     : !strcmp(p->name, "norm.attention") ? s->layer[i / width].an
                                                          : s->layer[i / width].fn;
        double slope = student_slope(s, w, 2, at + i % width), found = (double)p->gradient[i];

        if (!(fabs(found - slope) < 2e-4 * (largest + fabs(slope))))
            fail_msg("%s[%zu]: expected %.8g, found %.8g; the largest is %.3g", p->name, i, slope, found, largest);
    }
}

/* Weights of the experts, wherever they are, the shared one (-1) too. */
static void compare_experts(struct student *s, const struct window *w, struct moe *m)
{
    struct err e;

    for (int l = 0; l < s->y.layers; l++)
        for (int i = -1, first = 0; i < s->y.experts; i++) {
            size_t floats = moe_adapted_floats(m, l, i, MOE_ADAPTED_WEIGHTS), at = floats * 3 / 7;
            float *found = malloc((floats + 1) * sizeof(*found));

            for (int part = 0; part < 3 && floats; part++) {
                double *of = part == 0 ? s->layer[l].gate : part == 1 ? s->layer[l].up : s->layer[l].down, largest = 0;

                if (moe_adapt_get(m, l, i, part, MOE_ADAPTED_SLOPE, found, &e)) fail_msg("%s", e.text);
                for (size_t k = 0; k < floats; k++) largest = fmax(largest, fabs((double)found[k]));
                double slope = student_slope(s, w, 2, of + first * s->y.width + at);

                if (!(fabs((double)found[at] - slope) < 2e-4 * (largest + fabs(slope)) + 1e-7))
                    fail_msg("layer %d, expert %d, part %d, %zu: expected %.8g, found %.8g; the largest is %.3g", l, i, part, at,
                             slope, (double)found[at], largest);
            }
            first += (int)(floats / (size_t)s->y.width);
            free(found);
        }
}

/* A router with numbers in all that it has. */
static void draw_router(struct router *r, const struct model *m, const struct router_form *form, bool by_threshold)
{
    struct err e;

    if (router_alloc_form(r, model_shape(m), form, &e)) fail_msg("%s", e.text);
    size_t n = (size_t)(r->layers * r->experts), means = (size_t)(r->experts * r->width);

    router_random(r, 3);
    random_numbers(r->bias, n, 0.3, 4);
    for (size_t i = 0; i < n * (size_t)router_inner(r); i++) r->weight[i] *= 4;
    for (int l = 0; l < r->layers && r->mu; l++) memcpy(r->mu + (size_t)l * means, model_means(m, l), means * sizeof(float));
    for (int l = 0; l < r->layers && r->scale; l++) r->scale[l] = 0.8f + 0.3f * (float)l;
    if (r->offset) random_numbers(r->offset, (size_t)(r->layers * r->width), 0.05, 7);
    if (r->inward) random_numbers(r->inward, (size_t)(r->layers * r->low_rank * r->width), 0.2, 8);
    if (r->inward) random_numbers(r->outward, (size_t)(r->layers * r->low_rank * r->width), 0.2, 9);
    r->by_threshold = by_threshold;
    random_numbers(r->threshold, (size_t)r->layers, 0.1, 6);
}

/* o.adapt and the trainer are the caller's to close. */
static struct stage2 *open_trainer(struct stage2_options *o, struct model *m, struct router *r, double temperature, bool weights)
{
    const struct adapt_options more = {.term = true,
                                       .scale = r->scale,
                                       .norms = weights,
                                       .experts = weights,
                                       .offset_rate = 0.5,
                                       .expert_rate = 0.1,
                                       .rows = TOKENS};
    struct stage2 *trainer = NULL;
    struct err e;

    *o = (struct stage2_options){.lm = 0.3,
                                 .budget = 0.5,
                                 .load = 0.2,
                                 .target = 0.4,
                                 .temperature = temperature,
                                 .train_router = true,
                                 .train_means = r->mu != NULL,
                                 .means_rate = 0.5,
                                 .compensate = true,
                                 .scale = 1.25f,
                                 .rows = TOKENS,
                                 .sessions = 2,
                                 .adamw = {0.9, 0.95, 1e-8, 0.01}};
    if (adapt_open(&o->adapt, m, r, &more, &e) || stage2_open(&trainer, r, m, o, &e)) fail_msg("%s", e.text);
    return trainer;
}

/* Every term of the loss, in double. */
static void compare_loss(struct student *s, const struct window *w, const struct stage2_options *o,
                         const struct stage2_tally *tally)
{
    s->lm = o->lm, s->budget = o->budget, s->load = o->load, s->target = o->target, s->temperature = o->temperature;
    s->capture = true;
    double loss = student_loss(s, w, 2) / TOKENS;
    s->capture = false;
    assert_true(fabs(s->share - tally->share) < 1e-9);
    assert_true(s->kl / TOKENS > 0.01 && fabs(s->kl / TOKENS - tally->kl) < 1e-5);
    assert_true(fabs(s->nll / TOKENS - tally->nll) < 1e-5);
    assert_true(fabs(loss - tally->loss) < 2e-5);
}

/* Every parameter that there must be. */
static void compare_params(struct student *s, const struct window *w, struct stage2 *trainer, const struct router *r,
                           bool weights)
{
    struct router_param *param[STAGE2_PARAMS];
    int params = stage2_params(trainer, param);

    assert_int_equal(params, 2 + (r->factor != NULL) + (r->mu != NULL) + (r->offset != NULL) + (r->scale != NULL) +
                                 2 * (r->low_rank > 0) + (weights ? 3 : 0));
    for (int i = 0; i < params; i++) {
        const struct {
            const char *name;
            double *values;
        } of[] = {{"weight", s->weight}, {"bias", s->bias},     {"mu", s->mu},           {"factor", s->factor},
                  {"offset", s->offset}, {"inward", s->inward}, {"outward", s->outward}, {"scale", s->scale}};
        size_t k = 0, known = sizeof(of) / sizeof(*of);

        while (k < known && strcmp(of[k].name, param[i]->name) != 0) k++;
        if (k < known) compare(s, w, param[i], of[k].values);
        else compare_norms(s, w, param[i]);
    }
}

static void a_step_goes_down(struct stage2 *trainer, const struct window *w)
{
    const struct stage2_tally *tally = stage2_tally(trainer);
    double before = tally->loss, norm;
    struct err e;

    if (stage2_update(trainer, 1e-4, &norm, &e)) fail_msg("%s", e.text);
    assert_true(norm > 0);
    if (stage2_batch(trainer, STAGE2_MEASURE, w, 2, &e)) fail_msg("%s", e.text);
    assert_true(tally->loss < before + 1e-3);
}

static void gradients(const struct router_form *form, bool by_threshold, double temperature, bool weights)
{
    char *directory = str_join(world.directory, "model");
    const struct window w[] = {{tokens, FIRST, tokens + 1}, {tokens + FIRST, SECOND, tokens + FIRST + 1}};
    struct model_limits limits = {.rows = TOKENS, .sessions = 2, .positions = 32, .train = true, .adapt = weights};
    struct stage2_options o;
    struct student s;
    struct router r;
    struct model *m;
    struct err e;

    if (cluster_model(world.cluster, directory, limits, &m, &e)) fail_msg("%s", e.text);
    draw_router(&r, m, form, by_threshold);
    struct stage2 *trainer = open_trainer(&o, m, &r, temperature, weights);
    if (stage2_batch(trainer, STAGE2_LEARN, w, 2, &e)) fail_msg("%s", e.text);

    student_open(&s, directory, &r);
    for (int l = 0; l < r.layers && !r.scale; l++) s.scale[l] = (double)o.scale;
    s.frozen = weights;
    compare_loss(&s, w, &o, stage2_tally(trainer));
    compare_params(&s, w, trainer, &r, weights);
    if (weights) compare_experts(&s, w, model_moe(m));
    a_step_goes_down(trainer, w);
    student_close(&s);
    stage2_close(trainer);
    adapt_close(o.adapt);
    router_free(&r);
    free(directory);
}

static void top_k_router(void **state)
{
    (void)state;
    gradients(&(struct router_form){.means = true}, false, 0.5, false);
}

static void threshold_router(void **state)
{
    (void)state;
    gradients(&(struct router_form){.means = true, .scaled = true}, true, 0.7, false);
}

static void gate_router(void **state)
{
    (void)state;
    gradients(&(struct router_form){.kind = ROUTER_GATE, .rank = 5, .means = true, .scaled = true, .low_rank = 3}, true, 1.6,
              true);
}

static void no_means(void **state)
{
    (void)state;
    gradients(&(struct router_form){.constant = true}, false, 0.7, true);
}

/* Thresholds are those of all windows, however many passes they take: with the last score that is to be above it k experts are active in the mean of the first layer,
 * whose states no choice has changed. */
static void thresholds(void **state)
{
    char *directory = str_join(world.directory, "model");
    const struct window w[] = {{tokens, FIRST, tokens + 1}, {tokens + FIRST, SECOND, tokens + FIRST + 1}};
    struct model_limits limits = {.rows = TOKENS, .sessions = 2, .positions = 32, .train = true};
    float found[2][16];
    struct router r;
    struct model *m;
    struct err e;

    (void)state;
    if (cluster_model(world.cluster, directory, limits, &m, &e)) fail_msg("%s", e.text);
    const struct shape *y = model_shape(m);
    if (router_alloc_form(&r, y, &(struct router_form){0}, &e)) fail_msg("%s", e.text);
    router_random(&r, 3);
    for (int i = 0; i < 2; i++) {
        struct stage2_options o = {.temperature = 0.5, .scale = 1, .rows = i ? FIRST : TOKENS, .sessions = i ? 1 : 2};
        uint64_t active = 0;
        struct stage2 *s;

        r.by_threshold = false;
        if (stage2_open(&s, &r, m, &o, &e) || stage2_thresholds(s, w, 2, &e) || stage2_batch(s, STAGE2_SHARES, w, 2, &e))
            fail_msg("%s", e.text);
        assert_true(r.by_threshold);
        for (int k = 0; k < y->experts; k++) active += stage2_tally(s)->load[k];
        assert_int_equal(active, TOKENS * y->active_of[0]);
        memcpy(found[i], r.threshold, (size_t)y->layers * sizeof(float));
        stage2_close(s);
    }
    assert_memory_equal(found[0], found[1], (size_t)y->layers * sizeof(float));
    router_free(&r);
    free(directory);
}

/* ---- the job ---- */

#define OPTIONS "select: threshold\nlm_loss: 0.1\nload_balance: 0.01\ncompensation_rank: 2\n"
enum { STEPS = 6 };

static status finetune(struct json_t **result, const char *name, const char *more, struct err *e)
{
    return world_finetune(result, name, name, more, e);
}

static status end_to_end(struct json_t **result, const char *name, const char *more, struct err *e)
{
    struct str all = {0};

    str_addf(&all, "stage: 2\nfrom: first\ntokens: 1200\nbatch_tokens: 200\nlearning_rate: 0.01\n%s", more);
    status s = finetune(result, name, all.text, e);
    str_free(&all);
    return s;
}

/* Losses, shares and norms of all steps, digit by digit. */
static void same_curve(const char *a, const char *b)
{
    size_t n;
    char *x = world_bytes("%s/%s/log.jsonl", a, &n), *y = world_bytes("%s/%s/log.jsonl", b, &n), *p = x, *q = y;
    int steps = 0;

    while ((p = strstr(p, "\"loss\"")) && (q = strstr(q, "\"loss\""))) {
        char *end = strstr(p, "\"tokens_per_second\"");

        assert_non_null(end);
        if (strncmp(p, q, (size_t)(end - p))) fail_msg("step %d: %.200s\nand %.200s", steps + 1, p, q);
        q += end - p, p = end, steps++;
    }
    assert_in_range(steps, STEPS, STEPS + 1);
    free(x);
    free(y);
}

/* A version that learned to compensate has a scale a layer that is its own, another none. */
static void trained_scale(const char *version, bool wanted)
{
    char *model = str_join(world.directory, "model");
    struct router r;
    struct shape y;
    struct err e;

    if (shape_read(&y, model, &e) || router_read(&r, model, version, &y, &e)) fail_msg("%s", e.text);
    assert_true((r.scale != NULL) == wanted);
    for (int l = 0; l < y.layers && wanted; l++) assert_true(r.scale[l] != y.scale && fabsf(r.scale[l] - y.scale) < 0.2f);
    router_free(&r);
    free(model);
}

static void learns(void **state)
{
    struct json_t *o;
    struct err e;

    (void)state;
    if (finetune(NULL, "first", LEARNED_ONLY "labels: gram\nselect: top_k\ntokens: 400\nbatch_tokens: 200\n", &e))
        fail_msg("%s", e.text);
    if (end_to_end(&o, "whole", OPTIONS, &e)) fail_msg("%s", e.text);
    const struct json_t *kl = json_at(o, "kl"), *share = json_at(o, "active_share");
    assert_true(json_number(json_at(kl, "after")) < 0.95 * json_number(json_at(kl, "before")));
    assert_true(json_number(json_at(kl, "last")) < json_number(json_at(kl, "first")));
    assert_true(fabs(json_number(json_at(share, "after")) - 0.6) <
                0.03); /* 0.2 + 0.8 * 3 / 6, on other text than was looked at */
    assert_string_equal(json_text(json_at(o, "from")), "first");
    json_free(o);
    trained_scale("whole", true);
    /* where a row's threshold stands still while its scores move, the same small steps lead away from the dense model */
    if (finetune(&o, "top",
                 "stage: 2\nfrom: first\ntokens: 1200\nbatch_tokens: 200\nlearning_rate: 0.001\nlm_loss: 0\nselect: "
                 "top_k\ntrain: [router]\n",
                 &e))
        fail_msg("%s", e.text);
    assert_true(fabs(json_number(json_at(json_at(o, "active_share"), "after")) - 0.6) < 0.02); /* k is k */
    kl = json_at(o, "kl");
    if (!(json_number(json_at(kl, "after")) < json_number(json_at(kl, "before"))))
        fail_msg("top-k: KL %g, before %g", json_number(json_at(kl, "after")), json_number(json_at(kl, "before")));
    json_free(o);
    trained_scale("top", false);
}

/* A router of top-k gets thresholds whatever the room of a pass is to the text: a window of its own, more than the text has, more than any batch. */
static void thresholds_of_any_pass(void **state)
{
    static const int rows[] = {20, 4096, 20000};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct str yaml = {0};
        struct json_t *o;
        struct err e;

        str_addf(&yaml, "kind: finetune\nmodel: %s/model\noutput: %s/pass-%d\nversion: pass-%d\ntext: {file: %s/text}\n",
                 world.directory, world.directory, rows[i], rows[i], world.directory);
        str_addf(&yaml, "sequence: 20\nlimits: {batch_rows: %d}\nstage: 2\nfrom: first\ntokens: 200\nbatch_tokens: 200\n",
                 rows[i]);
        if (world_run(&o, yaml.text, &e)) fail_msg("%s", e.text);
        assert_true(fabs(json_number(json_at(json_at(o, "active_share"), "before")) - 0.6) < 0.05);
        json_free(o);
        str_free(&yaml);
    }
}

/* What the log says of a step, from its loss to its gradient's norm; the caller's. */
static char *step_of(const char *run, int step)
{
    char key[32];
    size_t n;
    char *log = world_bytes("%s/%s/log.jsonl", run, &n);

    snprintf(key, sizeof(key), "\"step\": %d,", step);
    char *from = strstr(log, key), *to = from ? strstr(from, "\"tokens_per_second\"") : NULL;
    if (!to) fail_msg("%s: no step %d in %s", run, step, log);
    char *text = strndup(from, (size_t)(to - from));
    assert_non_null(strstr(text, "\"loss\""));
    free(log);
    return text;
}

/* The temperature of the gates' gradients leaves gate_temperature after the first step. */
static void temperature_falls(void **state)
{
    struct err e;

    (void)state; /* "whole" has the default ratio of 0.3 */
    if (end_to_end(NULL, "constant", OPTIONS "final_gate_temperature_ratio: 1\n", &e)) fail_msg("%s", e.text);
    for (int step = 1; step <= STEPS; step++) {
        char *falls = step_of("whole", step), *stays = step_of("constant", step);

        if (step == 1) assert_string_equal(falls, stays);
        else assert_string_not_equal(falls, stays);
        free(falls), free(stays);
    }
}

#define ROUTER_ALONE "stage: 2\nfrom: whole\ntrain: [router]\ntokens: 1200\nbatch_tokens: 200\nlearning_rate: 0.01\n"

/* A version with a scale whose router alone goes on to be trained: the scale stays as it is. */
static void keeps_its_scale(void **state)
{
    char *model = str_join(world.directory, "model");
    struct router before, after;
    struct shape y;
    struct err e;

    (void)state;
    if (finetune(NULL, "scaled", ROUTER_ALONE, &e)) fail_msg("%s", e.text);
    trained_scale("scaled", true);
    if (shape_read(&y, model, &e) || router_read(&before, model, "whole", &y, &e) || router_read(&after, model, "scaled", &y, &e))
        fail_msg("%s", e.text);
    assert_memory_equal(after.scale, before.scale, (size_t)y.layers * sizeof(float));
    assert_memory_not_equal(after.weight, before.weight, (size_t)(y.layers * y.experts * y.width) * sizeof(float));
    router_free(&before), router_free(&after);
    free(model);
}

/* The job, stopped after each of its steps and started again until it ends. */
static void in_single_steps(status (*job)(struct json_t **, const char *, const char *, struct err *), const char *name,
                            const char *more)
{
    int stops = 0;
    struct err e;
    status s;

    do {
        stop_reset();
        if (stops < STEPS) raise(SIGUSR1);
        s = job(NULL, name, more, &e);
        if (s == STOPPED) stops++;
    } while (s == STOPPED && stops < 20);
    stop_reset();
    if (s) fail_msg("%s", e.text);
    assert_int_equal(stops, STEPS);
}

/* From the version that starts it, with all that it has, to the bits of a run that was not stopped. */
static void scaled_stopped(void **state)
{
    (void)state;
    in_single_steps(finetune, "scaled-stopped", ROUTER_ALONE);
    same_router("scaled-stopped", "scaled");
}

static void stopped_after_every_step(void **state)
{
    char *path = str_join(world.directory, "stopped/checkpoint");

    (void)state;
    in_single_steps(end_to_end, "stopped", OPTIONS);
    assert_false(file_exists(path));
    same_router("stopped", "whole");
    free(path);
}

#define ADAPT "select: threshold\ntrain: [router, compensation, norms, experts]\nexpert_rate: 0.5\n"
#define LORA  "train: [lora]\nlora_rank: 3\nexpert_rate: 1\n"

/* Weights of the model, too: another model, the first one as it was. */
static void adapts(void **state)
{
    size_t n, m;
    char *was = world_bytes("%s/%s/model.safetensors", "model", &n), *is, *path = str_join(world.directory, "adapted/model");
    struct sums_checked sums;
    struct json_t *o;
    struct shape y;
    struct err e;

    (void)state;
    if (end_to_end(&o, "adapted", ADAPT, &e)) fail_msg("%s", e.text);
    assert_string_equal(json_text(json_at(o, "weights")), "adapted");
    assert_true(json_number(json_at(json_at(o, "kl"), "after")) < 0.98 * json_number(json_at(json_at(o, "kl"), "before")));
    json_free(o);
    if (end_to_end(&o, "lora", LORA, &e)) fail_msg("%s", e.text);
    assert_true(json_number(json_at(json_at(o, "kl"), "after")) < 0.98 * json_number(json_at(json_at(o, "kl"), "before")));
    json_free(o);
    is = world_bytes("%s/%s/model.safetensors", "model", &m);
    assert_int_equal(n, m);
    assert_memory_equal(is, was, n);
    if (shape_read(&y, path, &e)) fail_msg("%s", e.text);
    assert_true(y.adapted && !y.calibrated);
    if (sums_check(&sums, path, &e)) fail_msg("%s", e.text);
    assert_in_range(sums.files, 3, 100);
    free(is), free(was), free(path);
}

/* As eval sees it: the new model is held against the dense model that it came from, or against none. */
static void evaluates(void **state)
{
    struct str yaml = {0};
    struct json_t *o;
    struct err e;

    (void)state;
    str_addf(
        &yaml,
        "kind: eval\nmodel: %s/adapted/model\noutput: %s/eval\nvariants: [dense, router]\ntext: {file: %s/text}\nwindow: 20\n",
        world.directory, world.directory, world.directory);
    if (world_run(&o, yaml.text, &e)) fail_msg("%s", e.text);
    assert_null(json_at(json_at(o, "perplexity"), "dense")); /* nobody trained it */
    assert_null(json_at(json_at(o, "ppl_ratio"), "router"));
    double alone = json_number(json_at(json_at(o, "perplexity"), "router"));
    json_free(o);
    str_addf(&yaml, "max_drop: 0.9\n");
    assert_int_equal(world_run(NULL, yaml.text, &e), ERR_SPEC);
    if (!strstr(e.text, "max_drop: expected compare_model")) fail_msg("%s", e.text);
    str_addf(&yaml, "compare_model: %s/model\nbootstrap: 10\n", world.directory);
    status s = world_run(&o, yaml.text, &e);
    if (s && s != ERR_GATE) fail_msg("%s", e.text);
    assert_int_equal(s, OK);
    const struct json_t *other = json_at(json_at(json_at(o, "compare"), "other"), "perplexity");
    double ratio = json_number(json_at(json_at(json_at(o, "ppl_ratio"), "router"), "value"));
    assert_true(json_number(json_at(json_at(o, "perplexity"), "router")) == alone);
    assert_true(fabs(ratio / (alone / json_number(json_at(other, "dense"))) - 1) < 1e-9);
    assert_true(json_number(json_at(json_at(o, "gate"), "drop")) <= 0.9);
    json_free(o);
    str_free(&yaml);
    str_addf(&yaml, "kind: finetune\nmodel: %s/adapted/model\noutput: %s/again\ntext: {file: %s/text}\ntokens: 200\n",
             world.directory, world.directory, world.directory);
    assert_int_equal(world_run(NULL, yaml.text, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "has adapted weights"));
    str_free(&yaml);
}

/* Weights, what is said of them, and the router, whose version has the name of the output. */
static void same_adapted(const char *a, const char *b)
{
    char x[128], y[128];

    same_bytes("%s/%s/model/model.safetensors", a, b);
    same_bytes("%s/%s/model/config.json", a, b);
    snprintf(x, sizeof(x), "%s/model/routers/%s", a, a);
    snprintf(y, sizeof(y), "%s/model/routers/%s", b, b);
    same_bytes("%s/%s/router.safetensors", x, y);
}

static void adapting_stopped(void **state)
{
    (void)state;
    in_single_steps(end_to_end, "adapted-stopped", ADAPT);
    same_adapted("adapted-stopped", "adapted");
    in_single_steps(end_to_end, "lora-stopped", LORA);
    same_adapted("lora-stopped", "lora");
}

/* Weights that grow out of all bounds: one line, and no checkpoint of them. */
static void diverges(void **state)
{
    char *path = str_join(world.directory, "wild/checkpoint");
    struct err e;

    (void)state;
    assert_int_equal(end_to_end(NULL, "wild", "train: [experts]\nexpert_rate: 1000\nweight_decay: 10\n", &e), ERR_LIMIT);
    if (!strstr(e.text, "up to which sums are exact; step ") ||
        !strstr(e.text, "training diverged; lower learning_rate or expert_rate"))
        fail_msg("%s", e.text);
    assert_false(file_exists(path));
    free(path);
}

/* The model that an adapted one would take the place of, and experts that cannot be trained. */
static void refused_adaptations(void **state)
{
    char *taken = str_join(world.directory, "taken/model"), *from = str_join(world.directory, "model/config.json"),
         *to = str_join(world.directory, "taken/model/config.json");
    struct err e;

    (void)state;
    assert_int_equal(world_finetune(NULL, "mine", ".", "stage: 2\nfrom: first\ntokens: 200\ntrain: [norms]\n", &e), ERR_SPEC);
    if (!strstr(e.text, "would replace")) fail_msg("%s", e.text);
    if (file_make_directory(taken, &e) || file_copy(from, to, &e)) fail_msg("%s", e.text);
    assert_int_equal(finetune(NULL, "taken", "stage: 2\nfrom: first\ntokens: 200\ntrain: [norms]\n", &e), ERR_SPEC);
    if (!strstr(e.text, "stands where the adapted model")) fail_msg("%s", e.text);
    assert_int_equal(end_to_end(NULL, "quantized", "train: [experts]\nprecision: {experts: q8}\n", &e), ERR_SPEC);
    if (!strstr(e.text, "train: expected experts in f32 or bf16, to train them, found q8")) fail_msg("%s", e.text);
    free(taken), free(from), free(to);
}

/* Refused before any text is looked at: there is none. */
static void too_early(const char *more, status code, const char *expected)
{
    struct str yaml = {0};
    struct err e;

    str_addf(&yaml, "kind: finetune\nmodel: %s/model\noutput: %s/none\ntext: {file: %s/no-text}\nstage: 2\n%s", world.directory,
             world.directory, world.directory, more);
    assert_int_equal(world_run(NULL, yaml.text, &e), code);
    if (!strstr(e.text, expected)) fail_msg("%s", e.text);
    str_free(&yaml);
}

static void refusals(void **state)
{
    struct err e;

    (void)state;
    too_early("from: nobody\n", ERR_IO, "has no router version nobody; there are ");
    too_early("from: first\ncompensation_rank: 5000\n", ERR_SPEC, "compensation_rank: expected at most");
    assert_int_equal(end_to_end(NULL, "none", "compensation: constant\n", &e), ERR_SPEC); /* the model has means */
    assert_int_equal(end_to_end(NULL, "none", "compensation_rank: 5000\n", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "compensation_rank: expected at most"));
    raise(SIGUSR1);
    assert_int_equal(end_to_end(NULL, "refused", OPTIONS, &e), STOPPED);
    stop_reset();
    assert_int_equal(end_to_end(NULL, "refused", OPTIONS "budget: 2\n", &e), ERR_SPEC);
    if (!strstr(e.text, "budget was 1 and is 2;")) fail_msg("%s", e.text);
    assert_int_equal(end_to_end(NULL, "refused", OPTIONS "gate_temperature: 0.75\n", &e), ERR_SPEC);
    if (!strstr(e.text, "gate_temperature was 0.25 and is 0.75;")) fail_msg("%s", e.text);
    assert_int_equal(end_to_end(NULL, "refused", OPTIONS "final_gate_temperature_ratio: 0.5\n", &e), ERR_SPEC);
    if (!strstr(e.text, "final_gate_temperature_ratio was 0.3 and is 0.5;")) fail_msg("%s", e.text);
}

static void elsewhere(const char *name)
{
    struct err e;

    if (end_to_end(NULL, name, OPTIONS, &e)) fail_msg("%s", e.text);
    same_router(name, "whole");
    same_curve(name, "whole");
}

static void adapted_elsewhere(const char *name, const char *whole, const char *more)
{
    struct err e;

    if (end_to_end(NULL, name, more, &e)) fail_msg("%s", e.text);
    same_adapted(name, whole);
    same_curve(name, whole);
}

static void round_robin(void **state)
{
    struct err e;

    (void)state;
    elsewhere("round-robin");
    if (finetune(NULL, "scaled-robin", ROUTER_ALONE, &e)) fail_msg("%s", e.text);
    same_router("scaled-robin", "scaled");
    adapted_elsewhere("adapted-robin", "adapted", ADAPT);
    adapted_elsewhere("lora-robin", "lora", LORA);
}

static void on_one_rank(void **state)
{
    (void)state;
    elsewhere("one-rank");
    adapted_elsewhere("adapted-one", "adapted", ADAPT);
}

static int lead(int turn)
{
    const struct CMUnitTest first[] = {cmocka_unit_test(make_model),
                                       cmocka_unit_test(top_k_router),
                                       cmocka_unit_test(threshold_router),
                                       cmocka_unit_test(gate_router),
                                       cmocka_unit_test(no_means),
                                       cmocka_unit_test(thresholds),
                                       cmocka_unit_test(learns),
                                       cmocka_unit_test(thresholds_of_any_pass),
                                       cmocka_unit_test(stopped_after_every_step),
                                       cmocka_unit_test(temperature_falls),
                                       cmocka_unit_test(keeps_its_scale),
                                       cmocka_unit_test(scaled_stopped),
                                       cmocka_unit_test(adapts),
                                       cmocka_unit_test(evaluates),
                                       cmocka_unit_test(adapting_stopped),
                                       cmocka_unit_test(diverges),
                                       cmocka_unit_test(refused_adaptations),
                                       cmocka_unit_test(refusals)};
    const struct CMUnitTest second[] = {cmocka_unit_test(round_robin)}, third[] = {cmocka_unit_test(on_one_rank)};
    struct rng r;

    rng_seed(&r, 9, 9);
    for (int i = 0; i <= TOKENS; i++) tokens[i] = (int32_t)rng_below(&r, 384);
    return turn == 0   ? cmocka_run_group_tests(first, NULL, NULL)
           : turn == 1 ? cmocka_run_group_tests(second, NULL, NULL)
                       : cmocka_run_group_tests(third, NULL, NULL);
}

int main(int argc, char **argv)
{
    static const char *const placements[] = {"{placement: block, threads: 2}",
                                             "{placement: round_robin, coordinator_experts: false}",
                                             "{placement: balance, coordinator_share: 1}"};

    return world_main(argc, argv, placements, 3, lead);
}
