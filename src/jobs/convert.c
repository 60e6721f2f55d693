/* convert: a model directory -> OUTPUT/model, the same model with its weights packed as the kernels read them, in the formats of `precision`.
 *
 * write OUTPUT/model.tmp -> move it to OUTPUT/model in one step.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "jobs/convert_write.h"
#include "jobs/model_files.h"
#include "jobs/ready.h"

enum { CONFIG_MAX = 16 << 20 };

struct converting {
    struct job *job;
    struct shape shape;
    struct safetensors *weights;
    char digest[65];
    int64_t bytes; /* of the source's weights */
    struct converted made;
};

static status write_config(const struct converting *c, const char *directory, struct err *e)
{
    char *from = str_join(c->job->spec->model, "config.json"), *to = str_join(directory, "config.json");
    struct json_t *config = NULL;
    status s = json_read(&config, from, CONFIG_MAX, e);

    if (!s) {
        json_put(config, "packed", converted_description(&c->made, c->digest));
        s = json_write(to, config, e);
    }
    json_free(config);
    free(from);
    free(to);
    return s;
}

/* What a factorized model has beside its weights. */
static status copy_factorized(const struct converting *c, const char *directory, struct err *e)
{
    static const char *const names[] = {"calibration.safetensors", "permutation.json", "routers"};
    status s = OK;

    for (size_t i = 0; !s && c->shape.experts && i < sizeof(names) / sizeof(*names); i++) {
        char *from = str_join(c->job->spec->model, names[i]), *to = str_join(directory, names[i]);

        if (file_is_directory(from)) s = directory_copy(from, to, e);
        else if (file_exists(from)) s = file_copy(from, to, e);
        free(from);
        free(to);
    }
    return s;
}

static status write_model(struct converting *c, const char *temporary, const char *target, struct err *e)
{
    const struct spec *spec = c->job->spec;
    struct err ignored;
    status s = directory_remove(temporary, e); /* of a run that was killed */

    if (!s) s = file_make_directory(temporary, e);
    if (!s) s = write_packed(&c->made, c->job, &c->shape, c->weights, temporary, (size_t)spec->convert.shard_mib << 20, e);
    if (!s) s = model_copy_beside(spec->model, temporary, e);
    if (!s) s = copy_factorized(c, temporary, e);
    if (!s) s = write_config(c, temporary, e);
    if (!s) s = model_sums(c->job, temporary, e);
    if (!s && file_exists(target)) log_line(c->job->log, "%s: an earlier result is replaced", target);
    if (!s) s = directory_replace(temporary, target, e);
    if (s) directory_remove(temporary, &ignored);
    return s;
}

static void report(const struct converting *c, const char *target)
{
    struct json_t *r = c->job->result, *source = json_object_new();
    const enum format *f = c->made.format;
    int64_t before = 0, after = 0;

    for (int p = 0; p <= WEIGHT_PARTS; p++) {
        before += c->made.before[p];
        after += c->made.after[p];
    }
    json_put_text(source, "model", c->job->spec->model);
    json_put_text(source, "digest", c->digest);
    json_put_int(source, "bytes", c->bytes);
    json_put(r, "source", source);
    json_put_text(r, "model", target);
    json_put_int(r, "parameters", shape_parameters(&c->shape));
    converted_report(r, &c->made);
    json_put_int(r, "bytes", after);
    log_line(c->job->log, "%s: experts %s, attention %s, head %s; %.1f MiB of weights, %.1f before", target,
             format_name(f[WEIGHTS_EXPERTS]), format_name(f[WEIGHTS_ATTENTION]), format_name(f[WEIGHTS_HEAD]),
             (double)after / 0x1p20, (double)before / 0x1p20);
}

status job_convert(struct job *j, struct err *e)
{
    struct converting *c = calloc(1, sizeof(*c));
    char *target = str_join(j->spec->output, "model"), *temporary = str_join(j->spec->output, "model.tmp");
    double start = clock_now();
    status s;

    BUG_ON(!c);
    c->job = j;
    s = shape_read(&c->shape, j->spec->model, e);
    if (!s) s = ready_source(j->spec, e);
    if (!s) s = ready_target(j->spec, e);
    if (!s) s = safetensors_open(&c->weights, j->spec->model, e);
    if (!s) s = model_digest(c->digest, &c->bytes, j, c->weights, "digest", e);
    if (!s) s = write_model(c, temporary, target, e);
    if (!s) report(c, target);
    if (!s) json_put_real(j->result, "seconds_write", clock_now() - start);
    safetensors_close(c->weights);
    free(c);
    free(target);
    free(temporary);
    return s;
}
