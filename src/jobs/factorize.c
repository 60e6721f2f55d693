/* factorize: a dense directory -> OUTPUT/model, the same weights cut into experts.
 *
 * calibrate (if there is a text) -> group the neurons of every layer -> write OUTPUT/model.tmp -> move it to OUTPUT/model in one step.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/stop.h"
#include "data/corpus.h"
#include "jobs/convert_write.h"
#include "jobs/factorize_group.h"
#include "jobs/factorize_write.h"
#include "jobs/model_files.h"
#include "jobs/plan.h"
#include "jobs/ready.h"
#include "jobs/room.h"
#include "jobs/ways.h"

enum { CONFIG_MAX = 16 << 20 };

struct factorizing {
    struct job *job;
    struct shape shape, made; /* dense; as the spec wants it */
    struct cut cut;
    struct ways ways; /* of budget: kl_shared */
    struct safetensors *weights;
    struct corpus text;
    struct model *model; /* open from the calibration to the end of grouping, or NULL */
    double scale;
    int window;
    int64_t text_tokens, text_bytes;
    char text_digest[65], source_digest[65];
    struct converted packed; /* what the model that was made is packed in, if it is */
    int64_t source_bytes;
};

static bool has_text(const struct spec *s)
{
    return s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0;
}

/* Everything that can be said before work begins. */
static status check(struct factorizing *f, struct err *e)
{
    const struct spec *s = f->job->spec;
    const struct shape *shape = &f->shape;
    const char *needs = spec_needs_text(s);

    if (ready_source(s, e)) return e->code;
    if (plan_factorized(&f->made, shape, s, e)) return e->code;
    if (needs && !has_text(s))
        return err_set(e, ERR_SPEC,
                       "%s: %s: expected a text to calibrate on in calibration.file or calibration.sample_tokens, found none",
                       s->source, needs);
    f->cut = (struct cut){.dense = shape,
                          .experts = f->made.experts,
                          .calibrated = has_text(s),
                          .compensate = s->factorize.compensation == COMPENSATE_MEAN};
    memcpy(f->cut.active, f->made.active_of, sizeof(f->cut.active));
    memcpy(f->cut.shared, f->made.shared, sizeof(f->cut.shared));
    f->scale = s->factorize.scale == SCALE_PAPER ? (double)f->made.experts / f->made.active : 1;
    return OK;
}

static status calibrate_on_text(struct factorizing *f, struct err *e)
{
    struct job *j = f->job;
    const struct spec *s = j->spec;
    struct tokenizer *tokenizer = NULL;
    struct corpus *text = &f->text;
    struct model *m;
    struct room room;

    if (room_factorize(&room, s, &f->shape, e)) return e->code;
    f->window = room.window;
    if (tokenizer_open(&tokenizer, s->model, e)) return e->code;
    status st = room_open(j->cluster, s->model, &room, &m, e);
    if (!st) st = job_text(j, &s->factorize.calibration, "calibration", m, tokenizer, text, e);
    if (!st) {
        f->text_tokens = (int64_t)text->n_tokens;
        f->text_bytes = (int64_t)text->bytes;
        memcpy(f->text_digest, text->digest, sizeof(f->text_digest));
        st = calibrate(&f->cut.calibration, j, m, f->weights, text, f->window, e);
    }
    if (st && st != ERR_RANK) cluster_release(j->cluster);
    if (!st) f->model = m; /* its ranks have the sample */
    tokenizer_close(tokenizer);
    return st;
}

static struct json_t *description(const struct factorizing *f)
{
    const struct spec *s = f->job->spec;
    struct json_t *o = json_object_new(), *shared = json_array_new(), *active = json_array_new(), *source = json_object_new();
    bool uniform = true;

    for (int l = 0; l < f->shape.layers; l++) {
        json_append(shared, json_int_new(f->cut.shared[l]));
        json_append(active, json_int_new(f->cut.active[l]));
        uniform = uniform && f->cut.active[l] == f->cut.active[0];
    }
    json_put_int(o, "version", 1);
    json_put_text(o, "method", s->factorize.method == METHOD_FACTORLLM ? "factorllm" : "default");
    json_put_text(o, "grouping", spec_grouping_name((enum spec_grouping)s->factorize.grouping));
    json_put_int(o, "experts", f->cut.experts);
    if (uniform) {
        json_put_int(o, "active", f->cut.active[0]);
        json_free(active);
    } else json_put(o, "active", active);
    json_put(o, "shared", shared);
    json_put_real(o, "scale", f->scale);
    json_put_text(o, "budget", (const char *const[]){"uniform", "kl", "kl_shared"}[s->factorize.budget]);
    json_put_text(o, "compensation", f->cut.compensate ? "mean" : "none");
    json_put_int(o, "seed", s->seed);
    json_put_text(o, "permutation", "permutation.json");
    json_put_bool(o, "calibrated", f->cut.calibrated);
    if (f->cut.calibrated) {
        struct json_t *c = json_object_new();

        if (s->factorize.calibration.file) json_put_text(c, "file", s->factorize.calibration.file);
        else json_put_int(c, "sample_seed", s->factorize.calibration.sample_seed);
        json_put_int(c, "tokens", f->text_tokens);
        json_put_int(c, "bytes", f->text_bytes);
        json_put_text(c, "digest", f->text_digest);
        json_put_int(c, "window", f->window);
        json_put(o, "calibration", c);
    }
    json_put_text(source, "digest", f->source_digest);
    json_put(o, "source", source);
    return o;
}

/* The source's config.json with one member more. */
static status write_config(const struct factorizing *f, const char *directory, struct err *e)
{
    char *from = str_join(f->job->spec->model, "config.json"), *to = str_join(directory, "config.json");
    struct json_t *config = NULL;
    status s = json_read(&config, from, CONFIG_MAX, e);

    if (!s) {
        json_put(config, "factorization", description(f));
        if (f->packed.after[0]) json_put(config, "packed", converted_description(&f->packed, f->source_digest));
        s = json_write(to, config, e);
    }
    json_free(config);
    free(from);
    free(to);
    return s;
}

/* The model that was written, packed beside what Python reads. */
static status pack_model(struct factorizing *f, const char *directory, struct err *e)
{
    const struct spec *s = f->job->spec;
    struct shape *made = malloc(sizeof(*made));
    struct safetensors *t = NULL;
    status st;

    BUG_ON(!made);
    st = shape_read(made, directory, e);
    if (!st) st = safetensors_open(&t, directory, e);
    if (!st) st = write_packed(&f->packed, f->job, made, t, directory, (size_t)s->factorize.shard_mib << 20, e);
    if (!st) converted_report(f->job->result, &f->packed);
    safetensors_close(t);
    free(made);
    return st;
}

/* Opens the model as it was written, for the KL of its output. */
static status open_written(struct factorizing *f, const char *directory, struct budget_work *w, struct err *e)
{
    struct job *j = f->job;
    struct room room;
    status s = room_factorize(&room, j->spec, &f->shape, e);

    room.limits.slices = room.limits.notes = false;
    room.limits.sample = 0;
    *w = (struct budget_work){.job = j, .text = &f->text, .scale = f->scale};
    if (!s) s = room_open(j->cluster, directory, &room, &w->m, e);
    if (!s) w->window = f->window < room.limits.rows ? f->window : room.limits.rows;
    return s;
}

static void close_written(struct factorizing *f, status s)
{
    if (s != ERR_RANK) cluster_release(f->job->cluster);
}

/* k of every layer, from the model as it was written. */
static status budget(struct factorizing *f, const char *directory, struct err *e)
{
    struct budget_work w;

    if (open_written(f, directory, &w, e)) return e->code;
    status s = choose_budget(&f->cut, &w, f->job->result, e);
    close_written(f, s);
    return s;
}

/* Of f->cut, all but what is packed. */
static status write_plainly(struct factorizing *f, const char *directory, struct err *e)
{
    status s = directory_remove(directory, e); /* of a run that was killed */

    if (!s) s = file_make_directory(directory, e);
    if (!s) s = write_experts(f->job, &f->cut, f->weights, directory, e);
    if (!s && f->cut.calibrated) s = write_calibration(&f->cut, directory, e);
    if (!s) s = write_permutation(&f->cut, directory, e);
    if (!s) s = model_copy_beside(f->job->spec->model, directory, e);
    if (!s) s = write_config(f, directory, e);
    return s;
}

/* Every way is written, opened and measured; f->cut is the last. */
static status measure_ways(struct factorizing *f, const char *directory, struct err *e)
{
    struct ways *all = &f->ways;

    for (int q = 0; q < all->n; q++) {
        struct budget_work w;

        f->cut = all->cut[q];
        if (write_plainly(f, directory, e) || open_written(f, directory, &w, e)) return e->code;
        status s = budget_measure(&all->curves[q], &f->cut, &w, e);
        if (!s && q == 0) s = budget_whole(&all->uniform, &f->cut, &w, f->cut.active, e);
        close_written(f, s);
        if (s) return s;
    }
    return OK;
}

/* f->cut becomes what is best, and is written. */
static status write_best_way(struct factorizing *f, const char *directory, struct err *e)
{
    struct budget_work w;
    struct cut made;
    double kl = 0;
    status s = measure_ways(f, directory, e);

    if (!s) s = ways_compose(&made, &f->ways, e);
    f->cut = f->ways.cut[0];
    if (s) return s;
    f->cut = made;
    s = write_plainly(f, directory, e);
    if (!s && !(s = open_written(f, directory, &w, e))) {
        s = budget_whole(&kl, &made, &w, made.active, e);
        close_written(f, s);
    }
    if (!s) json_put(f->job->result, "budget", ways_json(&f->ways, &made, kl));
    if (s || kl >= f->ways.uniform) {
        cut_free(&made);
        f->cut = f->ways.cut[0];
        return s ? s : write_plainly(f, directory, e);
    }
    return OK;
}

static status write_model(struct factorizing *f, const char *temporary, const char *target, struct err *e)
{
    struct err ignored;
    status s = f->ways.n ? write_best_way(f, temporary, e) : write_plainly(f, temporary, e);

    if (!s && f->cut.router && !f->ways.n && !(s = budget(f, temporary, e))) s = write_config(f, temporary, e);
    if (!s && room_packs(f->job->spec) && !(s = pack_model(f, temporary, e))) s = write_config(f, temporary, e);
    if (!s) s = model_sums(f->job, temporary, e);
    if (!s && file_exists(target)) log_line(f->job->log, "%s: an earlier result and its routers are replaced", target);
    if (!s) s = directory_replace(temporary, target, e);
    if (s) directory_remove(temporary, &ignored);
    return s;
}

/* What was made, as the next job will see it: read back from the directory. */
static status report(struct factorizing *f, const char *target, struct err *e)
{
    struct json_t *r = f->job->result, *source = json_object_new();
    struct shape *made = malloc(sizeof(*made));
    struct safetensors *t = NULL;
    char hex[65];
    int64_t bytes;
    int files;
    status s = OK;

    BUG_ON(!made);
    json_put_text(source, "model", f->job->spec->model);
    json_put_text(source, "digest", f->source_digest);
    json_put_int(source, "bytes", f->source_bytes);
    json_put(r, "source", source);
    if ((s = shape_read(made, target, e)) || (s = safetensors_open(&t, target, e))) goto done;
    if ((s = model_digest(hex, &bytes, f->job, t, "digest", e))) goto done;
    free(model_files(t, &files));
    json_put_text(r, "model", target);
    json_put_text(r, "architecture", made->architecture);
    json_put_int(r, "parameters", shape_parameters(made));
    json_put_int(r, "ffn_parameters", shape_ffn_parameters(made));
    json_put_int(r, "layers", made->layers);
    json_put_int(r, "width", made->width);
    json_put_int(r, "neurons", made->neurons);
    json_put_int(r, "experts", made->experts);
    json_put_int(r, "active", made->active);
    json_put_int(r, "shared_neurons", made->shared[0]);
    json_put_int(r, "expert_neurons_most", shape_expert_neurons(made, 0, 0));
    json_put_int(r, "expert_neurons_least", shape_expert_neurons(made, 0, made->experts - 1));
    json_put_real(r, "active_share", shape_active_share(made));
    if (f->cut.captured) {
        struct json_t *captured = json_array_new();

        for (int l = 0; l < made->layers; l++) json_append(captured, json_real_new(f->cut.captured[l]));
        json_put(r, "captured_energy", captured);
    }
    json_put(r, "factorization", description(f));
    json_put_int(r, "bytes", bytes);
    json_put_int(r, "files", files);
    json_put_text(r, "digest", hex);
    log_line(f->job->log, "%s: %d experts a layer, %d active for a token, %.1f %% of the FFN's neurons; %.1f MiB in %d file%s",
             target, made->experts, made->active, 100 * shape_active_share(made), (double)bytes / 0x1p20, files,
             files == 1 ? "" : "s");

done:
    safetensors_close(t);
    free(made);
    return s;
}

status job_factorize(struct job *j, struct err *e)
{
    struct factorizing *f = calloc(1, sizeof(*f));
    char *target = str_join(j->spec->output, "model"), *temporary = str_join(j->spec->output, "model.tmp");
    double start = clock_now(), calibrated = start, grouped = start, written = start;
    status s;

    BUG_ON(!f);
    f->job = j;
    s = shape_read(&f->shape, j->spec->model, e);
    if (!s) s = check(f, e);
    if (!s) s = ready_target(j->spec, e);
    if (!s) s = safetensors_open(&f->weights, j->spec->model, e);
    if (!s) s = model_digest(f->source_digest, &f->source_bytes, j, f->weights, "digest", e);
    if (!s && f->cut.calibrated) s = calibrate_on_text(f, e);
    calibrated = clock_now();
    if (!s) s = group_layers(&f->cut, j, f->model, f->weights, e);
    if (!s && j->spec->factorize.budget == BUDGET_KL_SHARED) s = ways_group(&f->ways, &f->cut, j, f->model, f->weights, e);
    if (f->model && s != ERR_RANK) cluster_release(j->cluster);
    grouped = clock_now();
    if (!s) s = write_model(f, temporary, target, e);
    written = clock_now();
    if (!s) s = report(f, target, e);
    if (!s) {
        json_put_real(j->result, "seconds_calibrate", calibrated - start);
        json_put_real(j->result, "seconds_group", grouped - calibrated);
        json_put_real(j->result, "seconds_write", written - grouped);
    }
    calibration_free(&f->cut.calibration);
    if (!f->ways.n || f->cut.order != f->ways.cut[0].order) cut_free(&f->cut);
    ways_free(&f->ways);
    corpus_free(&f->text);
    safetensors_close(f->weights);
    free(f);
    free(target);
    free(temporary);
    return s;
}
