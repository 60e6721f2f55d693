/* What is known of a step before anything runs: its model, its limits, its files. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "data/tokenizer.h"
#include "jobs/eval.h"
#include "jobs/infer_input.h"
#include "jobs/plan.h"
#include "jobs/ready.h"
#include "jobs/report.h"
#include "model/router_file.h"
#include "model/router_versions.h"

status plan_factorized(struct shape *out, const struct shape *dense, const struct spec *s, struct err *e)
{
    const struct spec_list *shared = &s->factorize.shared, *active = &s->factorize.active;
    int experts = (int)s->factorize.experts, layers = dense->layers;

    if (dense->experts)
        return err_set(e, ERR_SPEC,
                       "%s: model: %s is factorized already, into %d experts; factorize the dense model it came from", s->source,
                       s->model, dense->experts);
    if ((shared->n > 1 && shared->n != layers) || (active->n > 1 && active->n != layers))
        return err_set(e, ERR_SPEC, "%s: %s: expected one number, or %d, one for every layer of %s, found %d", s->source,
                       shared->n > 1 && shared->n != layers ? "shared" : "active", layers, s->model,
                       shared->n > 1 && shared->n != layers ? shared->n : active->n);
    *out = *dense;
    for (int l = 0; l < layers; l++) {
        out->shared[l] = (int)llround(spec_number(shared, l) * dense->neurons);
        out->active_of[l] = (int)spec_number(active, l);
        if (dense->neurons - out->shared[l] < experts)
            return err_set(e, ERR_SPEC,
                           "%s: experts: expected 1 to %d, so that each has a neuron of the %d that are not shared, found %d",
                           s->source, dense->neurons - out->shared[l], dense->neurons - out->shared[l], experts);
    }
    out->experts = experts;
    out->active = (int)lround(spec_mean(active));
    out->scale = s->factorize.scale == SCALE_PAPER ? (float)experts / (float)out->active : 1;
    out->compensate = s->factorize.compensation == COMPENSATE_MEAN;
    out->calibrated = s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0;
    return OK;
}

static status check_readable(const char *path, const struct spec *steps, int n, struct err *e)
{
    if (!path) return OK;
    for (int i = 0; i < n; i++) { /* an earlier step will have made it */
        size_t length = strlen(steps[i].output);

        if (!strncmp(path, steps[i].output, length) && path[length] == '/') return OK;
    }
    if (access(path, R_OK)) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    if (file_is_directory(path)) return err_set(e, ERR_IO, "%s: is a directory, expected a file", path);
    return OK;
}

static status check_files(const struct spec *s, const struct spec *before, int n_before, struct err *e)
{
    const char *files[] = {s->kind == JOB_FACTORIZE  ? s->factorize.calibration.file
                           : s->kind == JOB_FINETUNE ? s->finetune.text.file
                           : s->kind == JOB_EVAL     ? s->eval.text.file
                           : s->kind == JOB_INFER    ? s->infer.input
                                                     : NULL,
                           s->cluster.placement_file};

    for (int i = 0; i < 2; i++)
        if (check_readable(files[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.minimal_pairs.n; i++)
        if (check_readable(s->eval.minimal_pairs.items[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.multiple_choice.n; i++)
        if (check_readable(s->eval.multiple_choice.items[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.last_word.n; i++)
        if (check_readable(s->eval.last_word.items[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.domains.n; i++)
        if (check_readable(strchr(s->eval.domains.items[i], '=') + 1, before, n_before, e)) return e->code;
    return OK;
}

static bool uses(const struct spec *s, enum spec_variant v)
{
    if (s->kind == JOB_INFER) return s->infer.variant == (int64_t)v;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.variants.n; i++)
        if (!strcmp(s->eval.variants.items[i], spec_variant_name(v))) return true;
    return false;
}

/* Tokens of the longest item: the tokenizer reads what the job will read. */
static status longest_item(int *longest, const struct plan_step *p, const struct tokenizer *t, struct err *e)
{
    const struct spec *s = p->spec;
    struct items *items = calloc(1, sizeof(*items)); /* large for a stack */
    status st;

    BUG_ON(!items);
    *longest = 0;
    st = items_read_spec(items, s, e);
    if (!st) st = items_longest(longest, items, t, room_positions(s, &p->shape), e);
    items_free(items);
    free(items);
    return st;
}

/* A model with weights that an earlier step trained, which it writes as f32, unpacked; the others are as that step found them. */
static void plan_adapted(struct plan_step *p, const struct plan_step *by)
{
    const struct precision wanted = room_opening(p->spec);

    p->made_by = by->spec->name;
    p->directory = by->directory;
    p->shape = by->shape;
    p->shape.adapted = true, p->shape.calibrated = false;
    p->routed = true;
    p->weights = by->weights;
    p->weights.packed = false;
    if (spec_trains_experts(by->spec)) p->weights.format[WEIGHTS_EXPERTS] = FORMAT_F32;
    for (int i = 0; i < WEIGHT_PARTS; i++)
        if (wanted.part[i]) p->weights.format[i] = (enum format)(wanted.part[i] - 1);
}

/* What an earlier step will make of its weights, and how this one will open that. */
static status plan_made(struct plan_step *p, const struct plan_step *by, struct err *e)
{
    const struct precision made = room_precision(by->spec);
    const struct precision wanted = room_opening(p->spec);
    bool factorizes = by->spec->kind == JOB_FACTORIZE, same = true;

    if (spec_adapts(by->spec)) {
        plan_adapted(p, by);
        return OK;
    }

    p->made_by = by->spec->name;
    p->directory = by->directory;
    p->weights = by->weights;
    if (factorizes && plan_factorized(&p->shape, &by->shape, by->spec, e)) return e->code;
    if (!factorizes) p->shape = by->shape;
    if (!factorizes) p->routed = by->routed;
    if (!factorizes && spec_makes_model(p->spec))
        return err_set(e, ERR_SPEC,
                       "%s: step %s: model: %s will have packed weights only, expected the one that it is converted from",
                       p->spec->source, p->spec->name, p->spec->model);
    for (int i = 0; i < WEIGHT_PARTS; i++) {
        if (made.part[i]) p->weights.format[i] = (enum format)(made.part[i] - 1);
        same &= !wanted.part[i] || wanted.part[i] == 1 + (int)p->weights.format[i];
    }
    p->weights.packed = same && (!factorizes || room_packs(by->spec));
    if (!factorizes && !same)
        return err_set(e, ERR_SPEC, "%s: step %s: precision: expected stored, or that of step %s", p->spec->source, p->spec->name,
                       by->spec->name);
    for (int i = 0; !p->weights.packed && i < WEIGHT_PARTS; i++)
        p->weights.format[i] = wanted.part[i] ? (enum format)(wanted.part[i] - 1) : by->weights.format[i];
    return OK;
}

static status room_of_eval(struct plan_step *p, const struct tokenizer *t, struct err *e)
{
    const char *other = p->spec->eval.compare_model;
    int longest;

    if (tokenizer_vocab(t) > p->shape.vocab)
        return err_set(e, ERR_FORMAT, "%s: its tokenizer has %d tokens, the model %d", p->directory, tokenizer_vocab(t),
                       p->shape.vocab);
    if (longest_item(&longest, p, t, e) || room_eval(&p->room, p->spec, &p->shape, longest, e)) return e->code;
    if (!other) return OK;
    const struct precision wanted = room_precision(p->spec);
    struct plan_step made = {.spec = p->spec};
    if (p->other_by) {
        if (plan_made(&made, p->other_by, e)) return e->code;
        p->other = made.shape, p->other_weights = made.weights;
    } else if (shape_read(&p->other, other, e) || weights_plan(&p->other_weights, other, &p->other, &wanted, e)) return e->code;
    p->has_other = true;
    if (p->room.limits.positions > p->other.positions)
        return err_set(
            e, ERR_SPEC,
            "%s: compare_model: %s takes %d positions, expected %d as model uses, or a smaller window or limits.positions",
            p->spec->source, other, p->other.positions, p->room.limits.positions);
    return room_eval(&p->other_room, p->spec, &p->other, longest, e);
}

static status room_of_infer(struct plan_step *p, const struct tokenizer *t, struct err *e)
{
    struct infer_input in;

    if (!file_exists(p->spec->infer.input)) /* an earlier step will have made it */
        return room_infer(&p->room, p->spec, &p->shape, p->spec->limits.sessions, p->shape.positions, e);
    infer_input_init(&in, p->spec);
    status st = infer_input_read(&in, e);
    if (!st) st = room_infer(&p->room, p->spec, &p->shape, (int64_t)in.n, infer_input_longest(&in, t), e);
    infer_input_free(&in);
    return st;
}

/* The room a job asks for when it opens its model. */
static status plan_room(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    struct tokenizer *t = NULL;
    status st;

    p->opens = s->kind != JOB_CONVERT &&
               (s->kind != JOB_FACTORIZE || s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0);
    if (p->opens && s->kind != JOB_BENCH && tokenizer_open(&t, p->directory, e)) return e->code;
    switch (s->kind) {
    case JOB_FINETUNE:
        st = room_finetune(&p->room, s, &p->shape, e);
        break;
    case JOB_EVAL:
        st = room_of_eval(p, t, e);
        break;
    case JOB_INFER:
        st = room_of_infer(p, t, e);
        break;
    case JOB_BENCH:
        st = room_bench(&p->room, s, &p->shape, e);
        break;
    default:
        st = room_factorize(&p->room, s, &p->shape, e);
        break;
    }
    tokenizer_close(t);
    return st;
}

static status check_output(const struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    status st = ready_directory(s->output, e);

    if (!st && spec_makes_model(s)) st = ready_target(s, e);
    if (!st && s->kind == JOB_FINETUNE && !spec_adapts(s) && !p->made_by) st = ready_version(s, e);
    if (!st && s->kind == JOB_INFER) {
        char *directory = str_dup(s->infer.result), *slash = strrchr(directory, '/');

        if (slash) *slash = 0;
        if (slash && slash > directory) st = ready_directory(directory, e);
        free(directory);
    }
    return st;
}

static bool gives_version(const struct spec *s, const char *model)
{
    char *home = s->kind == JOB_FINETUNE ? ready_version_home(s) : NULL;
    bool gives = home && !strcmp(home, model);

    free(home);
    return gives;
}

/* A finetune job without `version` takes the first vN that is free. */
static bool trains_version(const struct spec *s, const char *version)
{
    if (s->finetune.version) return !strcmp(s->finetune.version, version);
    return version[0] == 'v' && version[1] && !version[1 + strspn(version + 1, "0123456789")];
}

/* There already, or by one of n steps; a converted model has the routers of the one before, too. */
static bool has_version(const char *model, const char *version, const struct spec *steps, int n)
{
    struct str path = {0};
    bool found = false;

    for (int i = n - 1; i >= 0 && !found; i--) {
        char *made = str_join(steps[i].output, "model");
        bool of_it = !strcmp(made, model);

        free(made);
        if (gives_version(&steps[i], model)) found = trains_version(&steps[i], version);
        if (steps[i].kind == JOB_CONVERT && of_it) found = has_version(steps[i].model, version, steps, i);
    }
    str_addf(&path, "%s/routers/%s/router.safetensors", model, version);
    found = found || !access(path.text, R_OK);
    str_free(&path);
    return found;
}

static status check_version(const struct plan_step *p, const struct spec *before, int n, const char *key, const char *version,
                            struct err *e)
{
    const struct spec *s = p->spec;
    struct err missing;

    if (!version || has_version(s->model, version, before, n)) return OK;
    if (n > 0)
        return err_set(e, ERR_IO, "%s: %s: %s: has no router version %s, and no step before makes it", s->source, key, s->model,
                       version);
    if (!router_find(s->model, version, &missing))
        err_set(&missing, ERR_IO, "%s: router version %s: not readable", s->model, version);
    return err_set(e, missing.code, "%s: %s: %s", s->source, key, missing.text);
}

static status check_router(const struct plan_step *p, const struct spec *before, int n, struct err *e)
{
    const struct spec *s = p->spec;
    const char *version = s->kind == JOB_EVAL ? s->eval.compare_router : NULL;

    if (s->kind == JOB_FINETUNE && check_version(p, before, n, "from", s->stage2.from, e)) return e->code;
    if (check_version(p, before, n, "compare_router", version, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.variants.n; i++) {
        version = spec_variant_of(s->eval.variants.items[i]).version;
        if (check_version(p, before, n, "variants", version, e)) return e->code;
    }
    return OK;
}

/* The model and the job must be of the same sort. */
static status check_model(const struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    struct shape made;

    if (spec_makes_model(s) && !p->made_by && ready_source(s, e)) return e->code;
    if (s->kind == JOB_FACTORIZE) return plan_factorized(&made, &p->shape, s, e);
    if (s->kind == JOB_FINETUNE && !p->shape.experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is a dense model, expected a factorized one: run a factorize job first",
                       s->source, s->model);
    if (s->kind == JOB_EVAL && ready_gate(s, &p->shape, e)) return e->code;
    if (s->kind == JOB_FINETUNE && (ready_weights(s, &p->shape, &p->weights, e) || ready_ranks(s, &p->shape, e))) return e->code;
    if (s->kind == JOB_FINETUNE && s->stage2.stage == 2 && !p->routed && (!s->stage2.from || p->made_by))
        return err_set(e, ERR_SPEC,
                       "%s: stage: 2 starts from a router, and %s has none: expected a finetune job of stage 1 first", s->source,
                       s->model);
    if (s->kind == JOB_INFER && !p->shape.experts && s->infer.variant != VARIANT_DENSE && s->infer.variant != VARIANT_ROUTER)
        return err_set(e, ERR_SPEC, "%s: variant: %s needs a factorized model, %s is dense", s->source,
                       spec_variant_name((enum spec_variant)s->infer.variant), s->model);
    if (s->kind != JOB_INFER || !p->shape.experts) return OK; /* eval leaves out what it cannot measure */
    if (uses(s, VARIANT_ROUTER) && !p->routed)
        return err_set(e, ERR_IO, "%s: has no router yet (no routers/current): run a finetune job on it first", s->model);
    if (uses(s, VARIANT_STATIC) && !p->shape.calibrated)
        return err_set(e, ERR_SPEC, "%s: the variant static needs a model with calibration, %s has none", s->source, s->model);
    return OK;
}

static status read_model(struct plan_step *p, struct err *e)
{
    char version[64];

    if (shape_read(&p->shape, p->spec->model, e)) return e->code;
    const struct precision wanted = room_opening(p->spec);
    if (weights_plan(&p->weights, p->spec->model, &p->shape, &wanted, e)) return e->code;
    if (p->shape.experts && router_current(version, p->spec->model, e)) return e->code;
    p->routed = p->shape.experts && version[0];
    return OK;
}

static status check_result(const struct plan_step *p, const char *key, const char *directory, const struct spec *before, int n,
                           struct err *e)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(before[i].output, directory)) return OK;
    if (file_is_directory(directory)) return OK;
    return err_set(e, ERR_IO, "%s: %s: %s: expected the output directory of a job, found none", p->spec->source, key, directory);
}

static status check_row(const struct plan_step *p, const char *row, const struct spec *before, int n, struct err *e)
{
    char *label, *directory, *variant;

    report_row_parse(&label, &directory, &variant, row);
    status s = check_result(p, "rows", directory, before, n, e);
    free(label);
    free(directory);
    free(variant);
    return s;
}

/* A report has no model: what it reads is there, or an earlier step will have made it. */
static status plan_report(const struct plan_step *p, const struct spec *before, int n, struct err *e)
{
    const struct spec_list *inputs = &p->spec->report.inputs, *rows = &p->spec->report.rows;

    for (int i = 0; i < inputs->n; i++)
        if (check_result(p, "inputs", inputs->items[i], before, n, e)) return e->code;
    for (int i = 0; i < rows->n; i++)
        if (check_row(p, rows->items[i], before, n, e)) return e->code;
    return ready_directory(p->spec->output, e);
}

status plan_step(struct plan_step *steps, const struct spec *s, int i, struct err *e)
{
    const struct spec *list = s->kind == JOB_PIPELINE ? s->steps : s;
    struct plan_step *p = &steps[i];
    status st = OK;

    *p = (struct plan_step){.spec = &list[i], .directory = list[i].model};
    if (list[i].kind == JOB_REPORT) return plan_report(p, list, i, e);
    for (int j = 0; j < i; j++) {
        char *made = str_join(list[j].output, "model");

        if (spec_makes_model(&list[j]) && !strcmp(made, list[i].model)) st = plan_made(p, &steps[j], e);
        if (spec_makes_model(&list[j]) && list[i].kind == JOB_EVAL && list[i].eval.compare_model &&
            !strcmp(made, list[i].eval.compare_model))
            p->other_by = &steps[j];
        free(made);
    }
    if (st == OK && !p->made_by) st = read_model(p, e);
    for (int j = 0; j < i; j++) p->routed |= gives_version(&list[j], list[i].model);
    if (st == OK) st = check_model(p, e);
    if (st == OK) st = check_files(&list[i], list, i, e);
    if (st == OK) st = plan_room(p, e);
    if (st == OK) st = check_output(p, e);
    if (st == OK) st = check_router(p, list, i, e);
    return st;
}
