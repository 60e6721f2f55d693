/* Binding: the weights, vectors and tables of a rank, from the files of its model into the places that model.c took. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "model/model_internal.h"
#include "moe/grouping.h"
#include "num/half.h"

struct binder {
    struct model *m;
    struct weights *w;
    struct err *e;
    char name[160];
};

static status bind_matrix(void *ctx, const struct matrix *w)
{
    struct binder *b = ctx;

    if (w->of ? weights_slice(b->w, w->out, w->part, w->name, w->rows, w->cols, w->first, w->of, b->e)
              : weights_matrix(b->w, w->out, w->part, w->name, w->rows, w->cols, w->held, b->e))
        return b->e->code;
    if (b->m->limits.half && w->out->format == FORMAT_BF16 && w->cols > HALF_COLS)
        return err_set(b->e, ERR_LIMIT, "%s: at most %d inputs with precision.activations: bf16, found %d", w->name, HALF_COLS,
                       w->cols);
    return OK;
}

static status bind_vector(struct binder *b, float *out, int n, const char *format, ...) __attribute__((format(printf, 4, 5)));
static status bind_vector(struct binder *b, float *out, int n, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(b->name, sizeof(b->name), format, args);
    va_end(args);
    return weights_vector(b->w, out, b->w->file, b->name, n, b->e);
}

static status bind_block(struct binder *b, int l)
{
    const struct shape *s = &b->m->shape;
    const struct block *y = &b->m->blocks[l];
    struct {
        const char *name;
        float *out;
        int n;
    } part[] = {{"self_attn.q_proj.bias", y->q_bias, s->heads * s->head_dim},
                {"self_attn.k_proj.bias", y->k_bias, s->kv_heads * s->head_dim},
                {"self_attn.v_proj.bias", y->v_bias, s->kv_heads * s->head_dim},
                {"input_layernorm.weight", y->attention_norm, s->width},
                {"post_attention_layernorm.weight", y->ffn_norm, s->width}};
    status code = OK;

    for (size_t i = 0; !code && i < sizeof(part) / sizeof(*part); i++)
        if (part[i].out) code = bind_vector(b, part[i].out, part[i].n, "model.layers.%d.%s", l, part[i].name);
    return code;
}

/* mu of the experts this rank holds; the coordinator needs all of them for their sum. */
static status bind_compensation(struct binder *b, int l, const struct placement *p)
{
    const struct shape *s = &b->m->shape;
    struct moe_layer *y = &b->m->moe_layers[l];
    float *mu = (float *)y->mu; /* ours: take_ffn() */
    double *total = (double *)y->mu_total;
    struct mat view;
    status code;

    snprintf(b->name, sizeof(b->name), "model.layers.%d.mlp.compensation", l);
    for (int i = 0; i < s->experts; i++) {
        if (!b->m->coordinator && !model_holds(b->m, p, l, i)) continue;
        if ((code = safetensors_rows(&view, b->w->file, b->name, s->experts, s->width, i, 1, b->e))) return code;
        if (b->m->limits.verify && (code = mat_check_finite(&view, b->name, &b->w->alive, b->e))) return code;
        mat_widen(mu + (size_t)i * (size_t)s->width, &view, 0, 1);
        for (int d = 0; total && d < s->width; d++) total[d] += grid(mu[(size_t)i * (size_t)s->width + (size_t)d]);
    }
    return OK;
}

static void set_layer(struct model *m, int l)
{
    const struct shape *s = &m->shape;
    struct moe_layer *y = &m->moe_layers[l];
    int routed = s->neurons - s->shared[l];

    y->experts = s->experts;
    y->active = s->active_of[l];
    y->expert = m->experts + (size_t)l * (size_t)s->experts;
    y->neurons_active = s->experts ? s->shared[l] + (int64_t)lround((double)s->active_of[l] * routed / s->experts) : s->neurons;
}

/* Matrices first: what is mapped for packing is let go again, views that stay come behind. */
static status bind_all(struct binder *b, const struct placement *p)
{
    struct model *m = b->m;
    const struct shape *s = &m->shape;
    status code;

    for (int l = 0; l < s->layers; l++) set_layer(m, l);
    if ((code = walk_matrices(&(struct walk){bind_matrix, b}, m, p, &b->w->plan))) return code;
    safetensors_trim(b->w->file, b->w->plan.packed ? SIZE_MAX : 0);
    for (int l = 0; s->compensate && l < s->layers; l++)
        if ((code = bind_compensation(b, l, p))) return code;
    if (!m->coordinator && !m->limits.split) return OK;
    for (int l = 0; l < s->layers; l++)
        if ((code = bind_block(b, l))) return code;
    if ((code = bind_vector(b, m->final_norm, s->width, "model.norm.weight"))) return code;
    rope_table(m->rope, m->limits.positions, s->head_dim, &s->rope);
    return weights_view(b->w, &m->embed, "model.embed_tokens.weight", s->vocab, s->width, b->e);
}

/* ---- the static control ---- */

/* The most important neurons stay; the others give their mean, or nothing. */
static status bind_control(struct binder *b, int l, int *order, float *importance)
{
    struct model *m = b->m;
    const struct shape *s = &m->shape;
    struct moe_layer *y = &m->moe_layers[l];
    int32_t *place = (int32_t *)y->shared.place; /* ours: take_ffn() */
    float *fill = (float *)y->shared.fill;
    status code;

    snprintf(b->name, sizeof(b->name), "model.layers.%d.mlp.neuron_importance", l);
    if ((code = weights_vector(b->w, importance, m->calibration, b->name, s->neurons, b->e))) return code;
    snprintf(b->name, sizeof(b->name), "model.layers.%d.mlp.neuron_mean", l);
    if ((code = weights_vector(b->w, fill, m->calibration, b->name, s->neurons, b->e))) return code;
    if (!s->compensate) memset(fill, 0, (size_t)s->neurons * sizeof(*fill));
    group_importance(order, s->neurons, importance);
    for (int i = 0; i < s->neurons; i++) place[order[i]] = i;
    for (int i = 0, begin = s->shared[l]; i < s->experts; i++) {
        y->expert[i].place = place + begin;
        y->expert[i].fill = fill + begin;
        begin += group_size(s->neurons, s->shared[l], s->experts, i);
    }
    return OK;
}

static status bind_controls(struct binder *b, const char *directory)
{
    struct model *m = b->m;
    size_t neurons = (size_t)m->shape.neurons;
    char *path = str_join(directory, "calibration.safetensors");
    int *order = malloc(neurons * sizeof(*order));
    float *importance = malloc(neurons * sizeof(*importance));
    status s = OK;

    if (!order || !importance) s = err_set(b->e, ERR_LIMIT, "%s: no memory to rank %zu neurons", path, neurons);
    if (!s) s = safetensors_open(&m->calibration, path, b->e);
    for (int l = 0; !s && l < m->shape.layers; l++) s = bind_control(b, l, order, importance);
    free(order);
    free(importance);
    free(path);
    return s;
}

status model_bind(struct model *m, const struct placement *p, const char *directory, struct err *e)
{
    struct binder b = {.m = m, .w = &m->weights, .e = e};
    status code = bind_all(&b, p);

    return code || !m->limits.calibration ? code : bind_controls(&b, directory);
}
