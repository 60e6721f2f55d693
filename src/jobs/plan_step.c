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

static bool uses(const struct spec *s, enum spec_variant v)
{
    if (s->kind == JOB_INFER) return s->infer.variant == (int64_t)v;
    for (int i = 0; s->kind == JOB_EVAL && i < s->eval.variants.n; i++)
        if (!strcmp(s->eval.variants.items[i], spec_variant_name(v))) return true;
    return false;
}

static int larger(int64_t a, int64_t b)
{
    return (int)(a > b ? a : b);
}

static int smaller(int64_t a, int64_t b)
{
    return (int)(a < b ? a : b);
}

/* Windows of the text pass whole, as many at a time as fit. */
static status room_of_finetune(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;
    int64_t rows = s->limits.batch_rows, model = p->shape.positions, sequence = s->finetune.sequence;

    if (sequence > model)
        return err_set(e, ERR_SPEC, "%s: sequence: %lld tokens, the model has %lld positions", s->source, (long long)sequence,
                       (long long)model);
    if (sequence > rows)
        return err_set(e, ERR_SPEC, "%s: sequence: %lld tokens, expected at most limits.batch_rows (%lld): a window passes whole",
                       s->source, (long long)sequence, (long long)rows);
    if (!sequence) sequence = smaller(model, rows);
    p->room.sessions = (int)(rows / sequence);
    p->room.positions = (int)sequence;
    p->room.oracle = true;
    if (s->finetune.text.sample_tokens) {
        p->room.sessions = larger(p->room.sessions, s->limits.sessions);
        p->room.positions = larger(sequence, s->limits.positions ? s->limits.positions : model);
    }
    return OK;
}

static status room_of_eval(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;

    p->room.positions = smaller(p->room.positions, p->shape.positions);
    if (s->eval.window > p->room.positions)
        return err_set(e, ERR_SPEC, "%s: window: %lld tokens, the model takes %d positions", s->source, (long long)s->eval.window,
                       p->room.positions);
    p->room.oracle = p->shape.experts && (uses(s, VARIANT_ORACLE) || uses(s, VARIANT_ROUTER));
    p->room.calibration = p->shape.experts && p->shape.calibrated && uses(s, VARIANT_STATIC);
    return OK;
}

static status room_of_infer(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;

    if (p->room.positions < 2 || p->room.positions > p->shape.positions)
        return err_set(e, ERR_LIMIT, "%s: limits.positions: expected 2 to the model's %d, found %d", s->source,
                       p->shape.positions, p->room.positions);
    p->room.oracle = p->shape.experts && s->infer.variant == VARIANT_ORACLE;
    p->room.calibration = p->shape.experts && s->infer.variant == VARIANT_STATIC;
    return OK;
}

static void room_of_factorize(struct plan_step *p)
{
    enum { WINDOW_MAX = 512 };
    const struct spec *s = p->spec;

    p->opens = s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0;
    p->room.positions = smaller(smaller(p->room.positions, p->shape.positions), WINDOW_MAX);
    p->room.sessions = larger(s->limits.batch_rows / p->room.positions, 1);
    if (s->factorize.calibration.sample_tokens > 0) p->room.sessions = larger(p->room.sessions, s->limits.sessions);
}

/* The room a job asks for when it opens its model. */
static status plan_room(struct plan_step *p, struct err *e)
{
    const struct spec *s = p->spec;

    p->opens = true;
    p->room = (struct model_limits){.rows = (int)s->limits.batch_rows,
                                    .sessions = (int)s->limits.sessions,
                                    .positions = (int)(s->limits.positions ? s->limits.positions : p->shape.positions),
                                    .verify = s->verify_weights};
    switch (s->kind) {
    case JOB_FINETUNE:
        return room_of_finetune(p, e);
    case JOB_EVAL:
        return room_of_eval(p, e);
    case JOB_INFER:
        return room_of_infer(p, e);
    default:
        room_of_factorize(p);
        return OK;
    }
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
