#include "jobs/ready.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "model/router_file.h"
#include "model/router_versions.h"
#include "model/weights.h"

status ready_directory(const char *path, struct err *e)
{
    char *there = str_dup(path);
    status s = OK;

    while (!file_exists(there)) { /* the nearest that is there */
        char *slash = strrchr(there, '/');

        if (slash && slash > there) *slash = 0;
        else there[slash ? 1 : 0] = 0; /* "/", or here */
        if (!*there) {
            free(there);
            there = str_dup(".");
        }
    }
    if (!file_is_directory(there)) s = err_set(e, ERR_IO, "%s: cannot be made: %s is not a directory", path, there);
    else if (access(there, W_OK | X_OK)) s = err_set(e, ERR_IO, "%s: cannot be written: %s: %s", path, there, strerror(errno));
    free(there);
    return s;
}

status ready_source(const struct spec *s, struct err *e)
{
    if (!safetensors_present(s->model, WEIGHTS_PACKED) || safetensors_present(s->model, "model")) return OK;
    return err_set(e, ERR_SPEC, "%s: model: %s has packed weights only, expected the directory that they were converted from",
                   s->source, s->model);
}

static bool same_directory(const char *a, const char *b)
{
    char *x = realpath(a, NULL), *y = realpath(b, NULL);
    bool same = x && y ? !strcmp(x, y) : !strcmp(a, b);

    free(x);
    free(y);
    return same;
}

status ready_target(const struct spec *s, struct err *e)
{
    struct shape *old = malloc(sizeof(*old));
    char *target = str_join(s->output, "model");
    struct err ignored;
    status st = OK;

    BUG_ON(!old);
    bool ours = !file_exists(target);
    if (!ours && s->kind == JOB_CONVERT) ours = safetensors_present(target, WEIGHTS_PACKED);
    else if (!ours) ours = !shape_read(old, target, &ignored) && old->experts && (!spec_adapts(s) || old->adapted);
    if (same_directory(target, s->model))
        st = err_set(e, ERR_SPEC, "%s: output: its model would replace %s, which it is made from: expected another output",
                     s->source, s->model);
    else if (!ours)
        st = err_set(e, ERR_SPEC, "%s: stands where the %s model of %s should go, and is none: expected another output", target,
                     s->kind == JOB_CONVERT ? "packed"
                     : spec_adapts(s)       ? "adapted"
                                            : "factorized",
                     s->source);
    free(old);
    free(target);
    return st;
}

status ready_weights(const struct spec *s, const struct shape *shape, const struct weights_plan *w, struct err *e)
{
    enum format f = w->format[WEIGHTS_EXPERTS];

    if (shape->adapted)
        return err_set(
            e, ERR_SPEC,
            "%s: model: %s has adapted weights, whose sum of all experts nobody trained; expected the model that it came from",
            s->source, s->model);
    if (s->stage2.stage == 2 && spec_trains_experts(s) && f != FORMAT_F32 && f != FORMAT_BF16)
        return err_set(e, ERR_SPEC, "%s: train: expected experts in f32 or bf16, to train them, found %s", s->source,
                       format_name(f));
    return OK;
}

status ready_ranks(const struct spec *s, const struct shape *shape, struct err *e)
{
    bool factors = s->stage2.stage == 1 && s->finetune.router != SPEC_ROUTER_LINEAR,
         router = factors && s->finetune.router_rank > shape->width;

    if (!router && s->finetune.compensation_rank <= shape->width) return OK;
    return err_set(e, ERR_SPEC, "%s: %s: expected at most %d, the width of the model, found %lld", s->source,
                   router ? "router_rank" : "compensation_rank", shape->width,
                   (long long)(router ? s->finetune.router_rank : s->finetune.compensation_rank));
}

status ready_gate(const struct spec *s, const struct shape *shape, struct err *e)
{
    if (!shape->adapted || s->eval.max_drop < 0 || s->eval.compare_model) return OK;
    return err_set(e, ERR_SPEC,
                   "%s: max_drop: expected compare_model, the model that %s came from, whose dense variant is the measure of "
                   "adapted weights",
                   s->source, s->model);
}

char *ready_version_home(const struct spec *s)
{
    return spec_adapts(s) ? str_join(s->output, "model") : str_dup(s->model);
}

status ready_version(const struct spec *s, struct err *e)
{
    struct str path = {0};
    status st = OK;

    if (spec_adapts(s)) return OK; /* a new model has none */
    char *routers = str_join(s->model, "routers");

    st = ready_directory(routers, e); /* not only once all is trained */
    free(routers);
    if (st || !s->finetune.version || !*s->finetune.version) return st;
    str_addf(&path, "%s/routers/%s", s->model, s->finetune.version);
    if (file_exists(path.text)) {
        char current[ROUTER_VERSION_MAX];
        struct err ignored;
        bool in_use = !router_current(current, s->model, &ignored) && !strcmp(current, s->finetune.version);

        st = err_set(
            e, ERR_SPEC,
            "%s: version: %s exists already, and stays whatever becomes of output: it belongs to the model; choose another "
            "name, or none for the next free one, or %sremove that directory",
            s->source, path.text, in_use ? "take another version into use (factorllm router promote, or rollback) and " : "");
    }
    str_free(&path);
    return st;
}
