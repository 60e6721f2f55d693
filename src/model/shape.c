#include "model/shape.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "data/json.h"
#include "moe/grouping.h"
#include "num/packed.h"

enum { CONFIG_MAX = 16 << 20 };

/* An integer into an int, required (fallback < 0) or with a default. */
static status get_int(int *out, const struct json_t *c, const char *key, int min, int max, int fallback, const char *path,
                      struct err *e)
{
    int64_t x = fallback;

    if (json_get_int(&x, c, key, min, max, fallback < 0 ? JSON_REQUIRED : JSON_OPTIONAL, path, e)) return e->code;
    *out = (int)x;
    return OK;
}

static status read_architecture(struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    static const char *const known[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"};
    const struct json_t *list = NULL;

    if (json_get_array(&list, c, "architectures", JSON_REQUIRED, path, e)) return e->code;
    const char *name = json_text(json_item(list, 0));
    if (!name) return err_set(e, ERR_FORMAT, "%s: architectures: expected a list with one name", path);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (!strcmp(name, known[i])) {
            snprintf(s->architecture, sizeof(s->architecture), "%s", name);
            s->qkv_bias = !strcmp(name, "Qwen2ForCausalLM");
            return OK;
        }
    return err_set(e, ERR_FORMAT,
                   "%s: architectures: expected LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM, found %.100s", path,
                   name);
}

static status read_sizes(struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    double eps = 1e-6;

    if (get_int(&s->layers, c, "num_hidden_layers", 1, MODEL_LAYERS_MAX, -1, path, e)) return e->code;
    if (get_int(&s->width, c, "hidden_size", 1, 1 << 16, -1, path, e)) return e->code;
    if (get_int(&s->neurons, c, "intermediate_size", 1, 1 << 20, -1, path, e)) return e->code;
    if (get_int(&s->heads, c, "num_attention_heads", 1, 4096, -1, path, e)) return e->code;
    if (get_int(&s->kv_heads, c, "num_key_value_heads", 1, 4096, s->heads, path, e)) return e->code;
    if (get_int(&s->vocab, c, "vocab_size", 1, 1 << 24, -1, path, e)) return e->code;
    if (get_int(&s->positions, c, "max_position_embeddings", 1, 1 << 24, 2048, path, e)) return e->code;
    if (get_int(&s->head_dim, c, "head_dim", 2, 4096, 0, path, e)) return e->code;
    if (json_get_real(&eps, c, "rms_norm_eps", 0, 1, JSON_OPTIONAL, path, e)) return e->code;
    if (json_get_bool(&s->tied, c, "tie_word_embeddings", JSON_OPTIONAL, path, e)) return e->code;
    s->eps = (float)eps;
    if (s->heads % s->kv_heads)
        return err_set(e, ERR_FORMAT, "%s: num_attention_heads: expected a multiple of num_key_value_heads (%d), found %d", path,
                       s->kv_heads, s->heads);
    if (!s->head_dim && s->width % s->heads)
        return err_set(e, ERR_FORMAT, "%s: hidden_size: expected a multiple of num_attention_heads (%d), found %d", path,
                       s->heads, s->width);
    if (!s->head_dim) s->head_dim = s->width / s->heads;
    if (s->head_dim % 2)
        return err_set(e, ERR_FORMAT, "%s: head_dim: expected an even number, because positions turn pairs, found %d", path,
                       s->head_dim);
    return OK;
}

/* What would change the result and is not in our forward pass is refused by name. */
static status refuse_unknown(const struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    const char *act = "silu";
    bool attention_bias = false, mlp_bias = false;
    double part = 1;

    if (json_get_text(&act, c, "hidden_act", JSON_OPTIONAL, path, e)) return e->code;
    if (strcmp(act, "silu")) return err_set(e, ERR_FORMAT, "%s: hidden_act: expected silu, found %.100s", path, act);
    if (json_get_bool(&attention_bias, c, "attention_bias", JSON_OPTIONAL, path, e)) return e->code;
    if (attention_bias && !s->qkv_bias)
        return err_set(e, ERR_FORMAT, "%s: attention_bias: expected false for %s, found true", path, s->architecture);
    if (json_get_bool(&mlp_bias, c, "mlp_bias", JSON_OPTIONAL, path, e)) return e->code;
    if (mlp_bias) return err_set(e, ERR_FORMAT, "%s: mlp_bias: expected false, found true", path);
    if (json_get_real(&part, c, "partial_rotary_factor", 0, 1, JSON_OPTIONAL, path, e)) return e->code;
    if (part != 1) return err_set(e, ERR_FORMAT, "%s: partial_rotary_factor: expected 1, found %g", path, part);
    if (!json_is_null(json_at(c, "quantization_config")))
        return err_set(e, ERR_FORMAT, "%s: quantization_config: quantized weights are not read; use the F32, F16 or BF16 model",
                       path);
    for (size_t i = 0; i < sizeof(experts) / sizeof(experts[0]); i++) {
        int64_t n = 0;

        if (json_get_int(&n, c, experts[i], 0, INT64_MAX, JSON_OPTIONAL, path, e)) return e->code;
        if (n > 1)
            return err_set(e, ERR_FORMAT, "%s: %s: expected a dense model, found %lld experts of its own", path, experts[i],
                           (long long)n);
    }
    return OK;
}

/* Frequencies of the positions, in all three spellings: rope_theta with rope_scaling {"rope_type" | "type"}, or rope_parameters. */
static status read_rope(struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    const struct json_t *how = NULL, *parameters = NULL;
    const char *type = NULL;
    char place[1100];
    struct rope *r = &s->rope;

    *r = (struct rope){.kind = ROPE_PLAIN, .theta = 10000, .factor = 1};
    if (json_get_real(&r->theta, c, "rope_theta", 1, 1e12, JSON_OPTIONAL, path, e)) return e->code;
    if (json_get_object(&how, c, "rope_scaling", JSON_OPTIONAL, path, e)) return e->code;
    if (json_get_object(&parameters, c, "rope_parameters", JSON_OPTIONAL, path, e)) return e->code;
    snprintf(place, sizeof(place), "%s: %s", path, parameters ? "rope_parameters" : "rope_scaling");
    if (parameters) {
        how = parameters;
        if (json_get_real(&r->theta, how, "rope_theta", 1, 1e12, JSON_OPTIONAL, place, e)) return e->code;
    }
    if (!how) return OK;
    if (json_get_text(&type, how, "type", JSON_OPTIONAL, place, e)) return e->code;
    if (json_get_text(&type, how, "rope_type", JSON_OPTIONAL, place, e)) return e->code;
    if (!type && !parameters) return err_set(e, ERR_FORMAT, "%s: rope_type is missing", place);
    if (!type || !strcmp(type, "default")) return OK;
    if (!strcmp(type, "linear")) {
        r->kind = ROPE_LINEAR;
        return json_get_real(&r->factor, how, "factor", 1e-3, 1e6, JSON_REQUIRED, place, e);
    }
    if (strcmp(type, "llama3"))
        return err_set(e, ERR_FORMAT, "%s: rope_type: expected default, linear or llama3, found %.100s", place, type);
    r->kind = ROPE_LLAMA3;
    if (json_get_real(&r->factor, how, "factor", 1e-3, 1e6, JSON_REQUIRED, place, e)) return e->code;
    if (json_get_real(&r->low_freq_factor, how, "low_freq_factor", 1e-6, 1e6, JSON_REQUIRED, place, e)) return e->code;
    if (json_get_real(&r->high_freq_factor, how, "high_freq_factor", 1e-6, 1e6, JSON_REQUIRED, place, e)) return e->code;
    if (json_get_real(&r->original_positions, how, "original_max_position_embeddings", 1, 1e9, JSON_REQUIRED, place, e))
        return e->code;
    if (!(r->high_freq_factor > r->low_freq_factor))
        return err_set(e, ERR_FORMAT, "%s: high_freq_factor: expected more than low_freq_factor (%g), found %g", place,
                       r->low_freq_factor, r->high_freq_factor);
    return OK;
}

static status read_tokens(struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    const struct json_t *eos = json_at(c, "eos_token_id");
    int64_t bos = -1, end = -1;

    if (json_get_int(&bos, c, "bos_token_id", 0, s->vocab - 1, JSON_OPTIONAL, path, e)) return e->code;
    s->bos = (int32_t)bos;
    if (json_is_array(eos)) {
        size_t room = sizeof(s->eos) / sizeof(s->eos[0]);

        if (json_length(eos) > room)
            return err_set(e, ERR_FORMAT, "%s: eos_token_id: expected at most %zu tokens, found %zu", path, room,
                           json_length(eos));
        for (size_t i = 0; i < json_length(eos); i++) {
            const struct json_t *id = json_item(eos, i);

            if (!json_is_int(id) || json_int(id) < 0 || json_int(id) >= s->vocab)
                return err_set(e, ERR_FORMAT, "%s: eos_token_id: expected tokens 0 to %d", path, s->vocab - 1);
            s->eos[s->n_eos++] = (int32_t)json_int(id);
        }
    } else {
        if (json_get_int(&end, c, "eos_token_id", 0, s->vocab - 1, JSON_OPTIONAL, path, e)) return e->code;
        if (end >= 0) s->eos[s->n_eos++] = (int32_t)end;
    }
    if (s->bos < 0 && s->n_eos == 0)
        return err_set(e, ERR_FORMAT, "%s: bos_token_id and eos_token_id are missing: no token to begin a text with", path);
    return OK;
}

static status read_window(struct shape *s, const struct json_t *c, const char *path, struct err *e)
{
    bool used = !s->qkv_bias; /* Qwen2 writes a width that counts only when it is switched on */

    if (json_get_bool(&used, c, "use_sliding_window", JSON_OPTIONAL, path, e)) return e->code;
    if (used && get_int(&s->window, c, "sliding_window", 1, 1 << 24, 0, path, e)) return e->code;
    /* Inside one window a sliding window is plain attention, and we go no further. */
    if (s->window && s->positions > s->window) s->positions = s->window;
    return OK;
}

/* One number, or one for every layer. */
static status read_active(struct shape *s, const struct json_t *f, const char *path, struct err *e)
{
    const struct json_t *list = json_at(f, "active");
    double sum = 0;

    if (!json_is_array(list)) {
        if (get_int(&s->active, f, "active", 1, s->experts, -1, path, e)) return e->code;
        for (int l = 0; l < s->layers; l++) s->active_of[l] = s->active;
        return OK;
    }
    if (json_length(list) != (size_t)s->layers)
        return err_set(e, ERR_FORMAT, "%s: active: expected %d numbers, one per layer, found %zu", path, s->layers,
                       json_length(list));
    for (int l = 0; l < s->layers; l++) {
        const struct json_t *n = json_item(list, (size_t)l);

        if (!json_is_int(n) || json_int(n) < 1 || json_int(n) > s->experts)
            return err_set(e, ERR_FORMAT, "%s: active: layer %d: expected 1 to %d experts", path, l, s->experts);
        s->active_of[l] = (int)json_int(n);
        sum += s->active_of[l];
    }
    s->active = (int)lround(sum / s->layers);
    return OK;
}

static status read_factorization(struct shape *s, const struct json_t *f, const char *path, struct err *e)
{
    const struct json_t *shared = NULL, *source = NULL, *adapted = NULL;
    const char *method = NULL, *grouping = NULL, *compensation = NULL, *digest = "";
    int64_t version = 0;
    double scale = 1;

    if (json_get_int(&version, f, "version", 1, 1, JSON_REQUIRED, path, e)) return e->code;
    if (json_get_text(&method, f, "method", JSON_REQUIRED, path, e)) return e->code;
    if (json_get_text(&grouping, f, "grouping", JSON_REQUIRED, path, e)) return e->code;
    if (get_int(&s->experts, f, "experts", 1, MODEL_EXPERTS_MAX, -1, path, e)) return e->code;
    if (read_active(s, f, path, e)) return e->code;
    if (json_get_array(&shared, f, "shared", JSON_REQUIRED, path, e)) return e->code;
    if (json_get_real(&scale, f, "scale", 0, 1e6, JSON_REQUIRED, path, e)) return e->code;
    if (json_get_text(&compensation, f, "compensation", JSON_REQUIRED, path, e)) return e->code;
    if (json_get_bool(&s->calibrated, f, "calibrated", JSON_OPTIONAL, path, e)) return e->code;
    if (json_get_object(&adapted, f, "adapted", JSON_OPTIONAL, path, e)) return e->code;
    s->adapted = adapted != NULL;
    if (json_get_object(&source, f, "source", JSON_OPTIONAL, path, e)) return e->code;
    if (source && json_get_text(&digest, source, "digest", JSON_OPTIONAL, path, e)) return e->code;

    if (json_length(shared) != (size_t)s->layers)
        return err_set(e, ERR_FORMAT, "%s: shared: expected %d numbers, one per layer, found %zu", path, s->layers,
                       json_length(shared));
    for (int l = 0; l < s->layers; l++) {
        const struct json_t *n = json_item(shared, (size_t)l);

        if (!json_is_int(n) || json_int(n) < 0 || json_int(n) > s->neurons - s->experts)
            return err_set(e, ERR_FORMAT, "%s: shared: layer %d: expected 0 to %d neurons, so that each of %d experts has one",
                           path, l, s->neurons - s->experts, s->experts);
        s->shared[l] = (int)json_int(n);
    }
    if (strcmp(compensation, "none") && strcmp(compensation, "mean"))
        return err_set(e, ERR_FORMAT, "%s: compensation: expected none or mean, found %.100s", path, compensation);
    s->compensate = !strcmp(compensation, "mean");
    s->scale = (float)scale;
    snprintf(s->method, sizeof(s->method), "%s", method);
    snprintf(s->grouping, sizeof(s->grouping), "%s", grouping);
    snprintf(s->source_digest, sizeof(s->source_digest), "%s", digest);
    return OK;
}

status shape_read(struct shape *s, const char *directory, struct err *e)
{
    char *path = str_join(directory, "config.json"), place[1100];
    struct json_t *c = NULL;
    const struct json_t *f = NULL;
    status code;

    *s = (struct shape){.bos = -1, .scale = 1};
    if ((code = json_read(&c, path, CONFIG_MAX, e))) goto done;
    if (!json_is_object(c)) {
        code = err_set(e, ERR_FORMAT, "%s: expected a JSON object", path);
        goto done;
    }
    if ((code = read_architecture(s, c, path, e))) goto done;
    if ((code = read_sizes(s, c, path, e))) goto done;
    if ((code = refuse_unknown(s, c, path, e))) goto done;
    if ((code = read_rope(s, c, path, e))) goto done;
    if ((code = read_tokens(s, c, path, e))) goto done;
    if ((code = read_window(s, c, path, e))) goto done;
    if ((code = json_get_object(&f, c, "factorization", JSON_OPTIONAL, path, e))) goto done;
    snprintf(place, sizeof(place), "%s: factorization", path);
    if (f) code = read_factorization(s, f, place, e);

done:
    json_free(c);
    free(path);
    return code;
}

void shape_slice(struct shape *s)
{
    int slices = s->neurons / PANEL_LANES;

    if (s->experts) return;
    s->sliced = true;
    s->experts = s->active = slices < 1 ? 1 : slices > SHAPE_SLICES ? SHAPE_SLICES : slices;
    for (int l = 0; l < s->layers; l++) s->active_of[l] = s->experts;
}

int64_t shape_ffn_parameters(const struct shape *s)
{
    return (int64_t)s->layers * 3 * s->neurons * s->width;
}

int64_t shape_parameters(const struct shape *s)
{
    int64_t d = s->width, q = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim;
    int64_t layer = 2 * d * q + 2 * d * kv + 2 * d + (s->qkv_bias ? q + 2 * kv : 0);

    return (s->tied ? 1 : 2) * s->vocab * d + s->layers * layer + d + shape_ffn_parameters(s);
}

/* Of a layer by design. */
static double active_neurons(const struct shape *s, int layer)
{
    return s->shared[layer] + (double)s->active_of[layer] * (s->neurons - s->shared[layer]) / s->experts;
}

double shape_active_share(const struct shape *s)
{
    double sum = 0;

    if (!s->experts) return 1;
    for (int l = 0; l < s->layers; l++) sum += active_neurons(s, l) / s->neurons;
    return sum / s->layers;
}

void shape_neurons_at(int *neurons, const struct shape *s, double share)
{
    double design[MODEL_LAYERS_MAX], total = share * s->neurons * s->layers, left, weights;
    bool full[MODEL_LAYERS_MAX] = {false}, again = true;

    BUG_ON(!(share > 0 && share <= 1));
    for (int l = 0; l < s->layers; l++) design[l] = s->experts ? active_neurons(s, l) : s->neurons;
    while (again) {
        left = total, weights = 0, again = false;
        for (int l = 0; l < s->layers; l++)
            if (full[l]) left -= s->neurons;
            else weights += design[l];
        for (int l = 0; l < s->layers; l++)
            if (!full[l] && design[l] * left > s->neurons * weights) full[l] = again = true;
    }
    double sum = 0; /* rounded as it runs: together as many as there are to be */
    long before = 0;
    for (int l = 0; l < s->layers; l++) {
        sum += full[l] ? s->neurons : design[l] * left / weights;
        neurons[l] = (int)(lround(sum) - before);
        before = lround(sum);
    }
}

int shape_expert_neurons(const struct shape *s, int layer, int expert)
{
    return group_size(s->neurons, s->shared[layer], s->experts, expert);
}
