#include "jobs/finetune_adapted.h"

#include <stdlib.h>
#include <string.h>

#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "data/safetensors.h"
#include "jobs/model_files.h"
#include "jobs/ready.h"

static const size_t SHARD_BYTES = (size_t)4096 << 20;
enum { CONFIG_MAX = 16 << 20 };

status adapted_check(const struct spec *s, const struct shape *shape, struct err *e)
{
    const struct precision wanted = room_opening(s);
    struct weights_plan w;

    if (weights_plan(&w, s->model, shape, &wanted, e) || ready_weights(s, shape, &w, e)) return e->code;
    if (!spec_adapts(s)) return OK;
    return ready_source(s, e) ? e->code : ready_target(s, e);
}

/* What a tensor is, of those that are trained. */
enum what { OTHER, EXPERT, NORM };
struct tensor {
    enum what what;
    int layer, expert, part;
    enum model_norm norm;
};

static bool is_expert(struct tensor *t, const char *name)
{
    static const char *const parts[] = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
    int at = 0;

    t->expert = -1;
    if (sscanf(name, "model.layers.%d.mlp.experts.%d.%n", &t->layer, &t->expert, &at) != 2 || !at) {
        t->expert = -1;
        if (sscanf(name, "model.layers.%d.mlp.shared_expert.%n", &t->layer, &at) != 1 || !at) return false;
    }
    for (t->part = 0; t->part < 3; t->part++)
        if (!strcmp(name + at, parts[t->part])) return true;
    return false;
}

static bool is_norm(struct tensor *t, const char *name)
{
    int at = 0;

    t->layer = 0;
    t->norm = MODEL_NORM_LAST;
    if (!strcmp(name, "model.norm.weight")) return true;
    if (sscanf(name, "model.layers.%d.%n", &t->layer, &at) != 1 || !at) return false;
    t->norm = !strcmp(name + at, "input_layernorm.weight") ? MODEL_NORM_ATTENTION : MODEL_NORM_FFN;
    return t->norm == MODEL_NORM_ATTENTION || !strcmp(name + at, "post_attention_layernorm.weight");
}

static struct tensor tensor_of(const struct spec *s, const char *name)
{
    struct tensor t = {OTHER, 0, 0, 0, MODEL_NORM_LAST};

    if (spec_trains_experts(s) && is_expert(&t, name)) t.what = EXPERT;
    else if (spec_trains(s, TRAIN_NORMS) && is_norm(&t, name)) t.what = NORM;
    return t;
}

struct writing {
    struct finetune_run *r;
    struct safetensors *from;
    struct safetensors_writer *to;
    float *weights, *turned; /* of the largest tensor that was trained */
};

static void declare(struct writing *w)
{
    size_t most = 0, layers = (size_t)w->r->shape.layers * (size_t)w->r->shape.width;

    for (size_t i = 0; i < safetensors_count(w->from); i++) {
        const struct tensor_info *t = safetensors_info(w->from, i);
        bool ours = tensor_of(w->r->spec, t->name).what != OTHER;
        size_t n = 1;

        for (int d = 0; d < t->dims; d++) n *= (size_t)t->shape[d];
        if (ours && n > most) most = n;
        safetensors_declare_raw(w->to, t->name, ours ? "F32" : t->dtype, t->dims, t->shape);
    }
    if (most < layers) most = layers; /* norms of all layers at once */
    w->weights = malloc(most * sizeof(float));
    w->turned = malloc(most * sizeof(float));
    BUG_ON(!w->weights || !w->turned);
}

static status write_expert(struct writing *w, const struct tensor *t, struct err *e)
{
    struct moe *m = model_moe(w->r->model);
    size_t width = (size_t)w->r->shape.width, n = moe_adapted_floats(m, t->layer, t->expert, MOE_ADAPTED_WEIGHTS) / width;

    if (moe_adapt_get(m, t->layer, t->expert, t->part, MOE_ADAPTED_WEIGHTS, w->weights, e)) return e->code;
    if (t->part < 2) return safetensors_write(w->to, w->weights, n * width * sizeof(float), e);
    for (size_t j = 0; j < n; j++)
        for (size_t d = 0; d < width; d++) w->turned[d * n + j] = w->weights[j * width + d];
    return safetensors_write(w->to, w->turned, n * width * sizeof(float), e);
}

static status write_tensor(struct writing *w, const struct tensor_info *info, struct err *e)
{
    struct tensor t = tensor_of(w->r->spec, info->name);
    size_t width = (size_t)w->r->shape.width;
    const void *data;

    if (t.what == EXPERT) return write_expert(w, &t, e);
    if (t.what == NORM) {
        model_norms(w->r->model, t.norm, w->weights);
        return safetensors_write(w->to, w->weights + (size_t)t.layer * width, width * sizeof(float), e);
    }
    if (safetensors_raw(&data, w->from, info->name, info->dtype, info->dims, info->shape, 1, e)) return e->code;
    return safetensors_write(w->to, data, info->bytes, e);
}

static status write_weights(struct finetune_run *r, const char *directory, struct err *e)
{
    struct writing w = {.r = r};
    status s = safetensors_open(&w.from, r->spec->model, e);

    if (!s) s = safetensors_create(&w.to, directory, SHARD_BYTES, e);
    if (!s) safetensors_alive(w.to, (struct alive){cluster_tick, r->job->cluster});
    if (!s) safetensors_metadata(w.to, "format", "pt");
    if (!s) declare(&w);
    for (size_t i = 0; !s && i < safetensors_count(w.from); i++) {
        cluster_alive(r->job->cluster);
        safetensors_trim(w.from, (size_t)256 << 20);
        s = write_tensor(&w, safetensors_info(w.from, i), e);
    }
    if (s) safetensors_abandon(w.to);
    else s = safetensors_commit(w.to, e);
    safetensors_close(w.from);
    free(w.weights);
    free(w.turned);
    return s;
}

static struct json_t *description(const struct finetune_run *r)
{
    struct json_t *o = json_object_new(), *trained = json_array_new();
    const struct spec *s = r->spec;

    for (int i = 0; i < s->stage2.train.n; i++)
        json_append(trained, json_text_new(s->stage2.train.items[i], strlen(s->stage2.train.items[i])));
    json_put(o, "trained", trained);
    if (spec_trains(s, TRAIN_LORA)) json_put_int(o, "lora_rank", s->stage2.lora_rank);
    json_put_int(o, "tokens", r->tokens);
    json_put_text(o, "model", s->model);
    json_put_text(o, "fingerprint", json_text(json_at(r->identity, "model (fingerprint)")));
    json_put_text(o, "router", r->from);
    return o;
}

static status write_config(const struct finetune_run *r, const char *directory, struct err *e)
{
    char *from = str_join(r->spec->model, "config.json"), *to = str_join(directory, "config.json");
    struct json_t *config = NULL;
    status s = json_read(&config, from, CONFIG_MAX, e);

    if (!s) {
        struct json_t *f = json_clone(json_at(config, "factorization"));

        struct json_t *made = json_object_new();

        json_put_bool(f, "calibrated", false);
        json_put(f, "adapted", description(r));
        for (void *i = json_first(config); i; i = json_next(config, i)) /* what is written is not packed */
            if (strcmp(json_key(i), "packed") != 0) json_put(made, json_key(i), json_clone(json_member(i)));
        json_put(made, "factorization", f);
        s = json_write(to, made, e);
        json_free(made);
    }
    json_free(config);
    free(from);
    free(to);
    return s;
}

static status copy_permutation(const struct finetune_run *r, const char *directory, struct err *e)
{
    char *from = str_join(r->spec->model, "permutation.json"), *to = str_join(directory, "permutation.json");
    status s = file_exists(from) ? file_copy(from, to, e) : OK;

    free(from);
    free(to);
    return s;
}

status adapted_write(struct finetune_run *r, const char *version, const struct json_t *about, struct err *e)
{
    char *target = str_join(r->spec->output, "model"), *temporary = str_join(r->spec->output, "model.tmp");
    bool replaces = file_exists(target); /* as ready_target() allows it: a model that such a job made */
    struct err ignored;
    status s = directory_remove(temporary, e); /* of a run that was killed */

    if (!s) s = file_make_directory(temporary, e);
    if (!s) s = write_weights(r, temporary, e);
    if (!s) s = copy_permutation(r, temporary, e);
    if (!s) s = model_copy_beside(r->spec->model, temporary, e);
    if (!s) s = write_config(r, temporary, e);
    if (!s) s = model_sums(r->job, temporary, e);
    if (!s) s = router_write(&r->router, temporary, version, about, true, e);
    if (!s) s = directory_replace(temporary, target, e);
    if (s) directory_remove(temporary, &ignored);
    if (!s) json_put_text(r->job->result, "model", target);
    if (!s && replaces) log_line(r->job->log, "%s: replaces the adapted model that stood there", target);
    if (!s) log_line(r->job->log, "%s: the model with adapted weights; %s is as it was", target, r->spec->model);
    free(target);
    free(temporary);
    return s;
}
