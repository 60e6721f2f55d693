/* What is known of a step before anything runs: its model, its limits, its files. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "data/safetensors.h"
#include "jobs/plan.h"
#include "model/router_file.h"

status plan_factorized(struct shape *out, const struct shape *dense, const struct spec *s, struct err *e)
{
    int64_t shared = llround(s->factorize.shared * dense->neurons), experts = s->factorize.experts;

    if (dense->experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is factorized already, expected a dense model", s->source, s->model);
    if (dense->neurons - shared < experts)
        return err_set(e, ERR_SPEC, "%s: experts: expected at most %lld, the routed neurons of a layer of %s, found %lld",
                       s->source, (long long)(dense->neurons - shared), s->model, (long long)experts);
    *out = *dense;
    out->experts = (int)experts;
    out->active = (int)s->factorize.active;
    out->scale = s->factorize.scale == SCALE_PAPER ? (float)experts / (float)s->factorize.active : 1;
    out->compensate = s->factorize.compensation == COMPENSATE_MEAN;
    out->calibrated = s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0;
    for (int l = 0; l < out->layers; l++) out->shared[l] = (int)shared;
    return OK;
}

/* Bytes of a weight, from the headers; 0 with `e` filled. */
static size_t read_element_bytes(const char *directory, struct err *e)
{
    struct safetensors *t;

    if (safetensors_open(&t, directory, e)) return 0;
    const struct tensor_info *embed = safetensors_find(t, "model.embed_tokens.weight");
    int64_t n = embed && embed->dims == 2 ? embed->shape[0] * embed->shape[1] : 0;
    size_t bytes = n > 0 ? embed->bytes / (size_t)n : 0;
    if (!bytes) err_set(e, ERR_FORMAT, "%s: model.embed_tokens.weight is missing", directory);
    safetensors_close(t);
    return bytes;
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
                                                     : s->infer.input,
                           s->cluster.placement_file};

    for (int i = 0; i < 2; i++)
        if (check_readable(files[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.minimal_pairs.n; i++)
        if (check_readable(s->eval.minimal_pairs.items[i], before, n_before, e)) return e->code;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.multiple_choice.n; i++)
        if (check_readable(s->eval.multiple_choice.items[i], before, n_before, e)) return e->code;
    return OK;
}

static const struct spec_text *text_of(const struct spec *s)
{
    return s->kind == JOB_FACTORIZE ? &s->factorize.calibration : s->kind == JOB_FINETUNE ? &s->finetune.text : &s->eval.text;
}

/* The room a job asks for when it opens its model. */
static status plan_room(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    int64_t rows = s->limits.batch_rows, model = p->shape.positions,
            positions = s->limits.positions ? s->limits.positions : model;
    int64_t window = s->kind == JOB_FINETUNE ? s->finetune.sequence : s->kind == JOB_EVAL ? s->eval.window : 0;
    const char *key = s->kind == JOB_FINETUNE ? "sequence" : "window";

    if (positions < 2 || positions > model)
        return err_set(e, ERR_LIMIT, "%s: limits.positions: expected 2 to the model's %lld, found %lld", s->source,
                       (long long)model, (long long)positions);
    p->room = (struct model_limits){
        .rows = (int)rows, .sessions = (int)s->limits.sessions, .positions = (int)positions, .verify = s->verify_weights};
    if (s->kind == JOB_INFER) {
        p->room.oracle = p->shape.experts && s->infer.variant == VARIANT_ORACLE;
        p->room.calibration = p->shape.experts && s->infer.variant == VARIANT_STATIC;
        return OK;
    }
    if (window > model)
        return err_set(e, ERR_SPEC, "%s: %s: %lld tokens, the model has %lld positions", s->source, key, (long long)window,
                       (long long)model);
    if (window > rows)
        return err_set(e, ERR_SPEC, "%s: %s: %lld tokens, expected at most limits.batch_rows (%lld): a window passes whole",
                       s->source, key, (long long)window, (long long)rows);
    if (!window) window = positions < rows ? positions : rows;
    p->room.oracle = s->kind != JOB_FACTORIZE && p->shape.experts > 0;
    p->room.calibration = s->kind == JOB_EVAL && p->shape.calibrated;
    int64_t sessions = rows / window;
    if (text_of(s)->sample_tokens == 0) {
        p->room.sessions = (int)sessions;
        p->room.positions = (int)window;
    } else if (sessions > p->room.sessions) {
        p->room.sessions = (int)sessions;
    }
    return OK;
}

static bool uses(const struct spec *s, enum spec_variant v)
{
    if (s->kind == JOB_INFER) return s->infer.variant == (int64_t)v;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.variants.n; i++)
        if (!strcmp(s->eval.variants.items[i], spec_variant_name(v))) return true;
    return false;
}

/* The model and the job must be of the same sort. */
static status check_model(const struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    struct shape made;

    if (s->kind == JOB_FACTORIZE) return plan_factorized(&made, &p->shape, s, e);
    if (s->kind == JOB_FINETUNE && !p->shape.experts)
        return err_set(e, ERR_SPEC, "%s: model: %s is a dense model, expected a factorized one: run a factorize job first",
                       s->source, s->model);
    if (s->kind == JOB_INFER && !p->shape.experts && s->infer.variant != VARIANT_DENSE && s->infer.variant != VARIANT_ROUTER)
        return err_set(e, ERR_SPEC, "%s: variant: %s needs a factorized model, %s is dense", s->source,
                       spec_variant_name((enum spec_variant)s->infer.variant), s->model);
    if (p->shape.experts && uses(s, VARIANT_ROUTER) && !p->routed)
        return err_set(e, ERR_IO, "%s: has no router yet (no routers/current): run a finetune job on it first", s->model);
    if (p->shape.experts && uses(s, VARIANT_STATIC) && !p->shape.calibrated)
        return err_set(e, ERR_SPEC, "%s: the variant static needs a model with calibration, %s has none", s->source, s->model);
    return OK;
}

static status read_model(struct plan_step *p, struct err *e)
{
    char version[64];

    if (shape_read(&p->shape, p->spec->model, e)) return e->code;
    if (!(p->element_bytes = read_element_bytes(p->spec->model, e))) return e->code;
    if (p->shape.experts && router_current(version, p->spec->model, e)) return e->code;
    p->routed = p->shape.experts && version[0];
    return OK;
}

status plan_step(struct plan_step *steps, const struct spec *s, int i, struct err *e)
{
    const struct spec *list = s->kind == JOB_PIPELINE ? s->steps : s;
    struct plan_step *p = &steps[i];
    status st = OK;

    *p = (struct plan_step){.spec = &list[i]};
    for (int j = 0; j < i; j++) {
        char *made = str_join(list[j].output, "model");

        if (list[j].kind == JOB_FACTORIZE && !strcmp(made, list[i].model)) {
            st = plan_factorized(&p->shape, &steps[j].shape, &list[j], e);
            p->element_bytes = steps[j].element_bytes;
            p->made_by = list[j].name;
        }
        free(made);
    }
    if (st == OK && !p->made_by) st = read_model(p, e);
    for (int j = 0; j < i; j++) p->routed |= list[j].kind == JOB_FINETUNE && !strcmp(list[j].model, list[i].model);
    if (st == OK) st = check_model(p, e);
    if (st == OK) st = plan_room(p, e);
    if (st == OK) st = check_files(&list[i], list, i, e);
    if (st == OK && list[i].kind == JOB_EVAL && list[i].eval.compare_model) {
        struct shape other;

        st = shape_read(&other, list[i].eval.compare_model, e);
    }
    return st;
}
