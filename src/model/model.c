/* Binding: which tensors a rank looks at, and the memory beside them. */
#include "model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "model/model_internal.h"
#include "moe/grouping.h"

/* ---- memory: one walk that counts, or takes ---- */

static void take_block(struct block *b, const struct shape *s, struct arena_taker *t)
{
    size_t width = (size_t)s->width, head = (size_t)s->head_dim;
    struct block taken = {.attention_norm = arena_take(t, width, sizeof(float)), .ffn_norm = arena_take(t, width, sizeof(float))};

    if (s->qkv_bias) {
        taken.q_bias = arena_take(t, (size_t)s->heads * head, sizeof(float));
        taken.k_bias = arena_take(t, (size_t)s->kv_heads * head, sizeof(float));
        taken.v_bias = arena_take(t, (size_t)s->kv_heads * head, sizeof(float));
    }
    if (b) *b = taken;
}

static void take_ffn(struct moe_layer *y, const struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;
    size_t width = (size_t)s->width, neurons = (size_t)s->neurons;
    float *mu = NULL, *fill = NULL;
    double *total = NULL;
    uint8_t *keep = NULL;

    if (s->compensate) mu = arena_take(t, (size_t)s->experts * width, sizeof(float));
    if (s->compensate && !m->rank) total = arena_take(t, width, sizeof(double));
    if (m->limits.calibration) {
        keep = arena_take(t, neurons, 1);
        fill = arena_take(t, neurons, sizeof(float));
    }
    if (!y) return;
    y->mu = mu;
    y->mu_total = total;
    y->shared.keep = keep; /* of the whole layer; bind_control() gives every expert its part */
    y->shared.fill = fill;
}

static void take_work(struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;

    m->moe_layers = arena_take(t, (size_t)s->layers, sizeof(*m->moe_layers));
    m->experts = arena_take(t, (size_t)s->layers * (size_t)s->experts, sizeof(*m->experts));
    for (int l = 0; l < s->layers; l++) take_ffn(m->moe_layers ? &m->moe_layers[l] : NULL, m, t);
    if (m->rank) return;
    m->blocks = arena_take(t, (size_t)s->layers, sizeof(*m->blocks));
    for (int l = 0; l < s->layers; l++) take_block(m->blocks ? &m->blocks[l] : NULL, s, t);
    m->final_norm = arena_take(t, (size_t)s->width, sizeof(float));
}

static struct moe_limits moe_limits_of(struct model_limits limits)
{
    return (struct moe_limits){.rows = limits.rows, .oracle = limits.oracle, .wire = limits.wire};
}

/* ---- bytes of weights, from the shape ---- */

static size_t expert_elements(const struct shape *s, int neurons)
{
    return 3 * (size_t)neurons * (size_t)s->width;
}

static size_t attention_elements(const struct shape *s)
{
    size_t width = (size_t)s->width, heads = (size_t)s->heads * (size_t)s->head_dim;
    size_t kv = (size_t)s->kv_heads * (size_t)s->head_dim;

    return 2 * width * heads + 2 * width * kv + 2 * width + (s->qkv_bias ? heads + 2 * kv : 0);
}

static size_t weight_bytes(const struct shape *s, const struct placement *p, int rank, size_t element, bool calibration)
{
    size_t elements = 0, bytes = 0, width = (size_t)s->width;

    for (int l = 0; l < s->layers; l++) {
        int held = 0;

        for (int i = 0; i < s->experts; i++) {
            if (placement_rank(p, l, i) != rank) continue;
            elements += expert_elements(s, group_size(s->neurons, s->shared[l], s->experts, i));
            held++;
        }
        if (s->compensate) bytes += (size_t)(rank ? held : s->experts) * width * sizeof(float);
        if (calibration) bytes += 2 * (size_t)s->neurons * sizeof(float);
        if (!rank) elements += attention_elements(s) + expert_elements(s, s->experts ? s->shared[l] : s->neurons);
    }
    if (!rank) elements += (s->tied ? 1 : 2) * (size_t)s->vocab * width + width;
    return elements * element + bytes;
}

/* Address space for the packed weights, whatever their format: f32, panels and lines rounded up. */
static size_t packed_bytes(const struct shape *s, const struct placement *p, int rank)
{
    size_t experts = (size_t)s->layers * ((size_t)s->experts + 1), width = (size_t)s->width + (size_t)s->neurons;

    return 2 * weight_bytes(s, p, rank, sizeof(float), false) + experts * 3 * PANEL_LANES * width * sizeof(float) +
           ((size_t)1 << 20);
}

void model_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks, size_t element_bytes,
                struct model_limits limits)
{
    struct model m = {.shape = *s, .limits = limits, .rank = rank};
    struct arena_taker kv = {0}, work = {0};
    struct exchange_limits x = {0};

    arena_take(&work, 1, sizeof(m));
    forward_take_cache(&m, &kv);
    take_work(&m, &work);
    forward_take_work(&m, &work);
    *c = (struct model_cost){
        .weights = weight_bytes(s, p, rank, element_bytes, limits.calibration),
        .kv = kv.bytes,
        .work = work.bytes + moe_cost(p, rank, s->layers, s->experts, s->width, s->neurons, moe_limits_of(limits)),
    };
    if (ranks > 1) {
        moe_exchange_limits(&x, s->layers, s->experts, s->width, moe_limits_of(limits));
        c->exchange = exchange_cost(rank == 0, ranks, x);
    }
}

/* ---- binding ---- */

struct binder {
    struct model *m;
    struct safetensors *from;
    struct err *e;
    struct alive alive;
    char name[160];
};

static const char *named(struct binder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *named(struct binder *b, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(b->name, sizeof(b->name), format, args);
    va_end(args);
    return b->name;
}

static status bind(struct binder *b, struct mat *out, int rows, int cols)
{
    status s = safetensors_mat(out, b->from, b->name, rows, cols, b->e);

    alive_tick(&b->alive);
    return s || !b->m->limits.verify ? s : mat_check_finite(out, b->name, &b->alive, b->e);
}

/* A vector is small and used in every row: it is widened once. */
static status bind_vector(struct binder *b, float *out, int n)
{
    struct mat view;
    status s = bind(b, &view, 1, n);

    if (!s) mat_widen(out, &view, 0, 1);
    return s;
}

struct packing {
    struct packed *out;
    const struct mat *from;
    void *lines;
    uint16_t *scale;
};

enum { PANELS_AT_ONCE = 8 };

static void pack_task(void *ctx, int i, int worker)
{
    const struct packing *p = ctx;
    int first = i * PANELS_AT_ONCE, left = packed_panels(p->out->rows) - first;

    (void)worker;
    pack_panels(p->lines, p->scale, p->out->format, p->from, first, left < PANELS_AT_ONCE ? left : PANELS_AT_ONCE);
}

/* The tensor b->name in the layout of the kernels. */
static status bind_packed(struct binder *b, struct packed *out, int rows, int cols)
{
    struct mat view;
    struct packing p = {.out = out, .from = &view};
    status s = bind(b, &view, rows, cols);

    if (s) return s;
    *out = (struct packed){.format = format_of(view.dtype), .rows = rows, .cols = cols};
    p.lines = arena_alloc(b->m->packed, packed_line_bytes(out->format, rows, cols), 1, b->e);
    if (!p.lines) return b->e->code;
    gemm_parallel(b->m->gemm, (packed_panels(rows) + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE, pack_task, &p);
    out->lines = p.lines;
    alive_tick(&b->alive);
    return OK;
}

static status bind_expert(struct binder *b, struct expert *x, int layer, const char *which, int neurons)
{
    int width = b->m->shape.width;
    status s;

    named(b, "model.layers.%d.mlp.%sgate_proj.weight", layer, which);
    if ((s = bind_packed(b, &x->gate, neurons, width))) return s;
    named(b, "model.layers.%d.mlp.%sup_proj.weight", layer, which);
    if ((s = bind_packed(b, &x->up, neurons, width))) return s;
    named(b, "model.layers.%d.mlp.%sdown_proj.weight", layer, which);
    return bind_packed(b, &x->down, width, neurons);
}

static status bind_attention(struct binder *b, int l)
{
    const struct shape *s = &b->m->shape;
    struct block *y = &b->m->blocks[l];
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    struct {
        const char *name;
        struct packed *weight;
        float *bias;
        int rows, cols;
    } part[] = {{"q", &y->q, y->q_bias, q, s->width},
                {"k", &y->k, y->k_bias, kv, s->width},
                {"v", &y->v, y->v_bias, kv, s->width},
                {"o", &y->o, NULL, s->width, q}};
    status code;

    for (size_t i = 0; i < sizeof(part) / sizeof(*part); i++) {
        named(b, "model.layers.%d.self_attn.%s_proj.weight", l, part[i].name);
        if ((code = bind_packed(b, part[i].weight, part[i].rows, part[i].cols))) return code;
        if (!part[i].bias) continue;
        named(b, "model.layers.%d.self_attn.%s_proj.bias", l, part[i].name);
        if ((code = bind_vector(b, part[i].bias, part[i].rows))) return code;
    }
    named(b, "model.layers.%d.input_layernorm.weight", l);
    if ((code = bind_vector(b, y->attention_norm, s->width))) return code;
    named(b, "model.layers.%d.post_attention_layernorm.weight", l);
    return bind_vector(b, y->ffn_norm, s->width);
}

static bool held(const struct model *m, const struct placement *p, int layer, int expert)
{
    return placement_rank(p, layer, expert) == m->rank;
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

    named(b, "model.layers.%d.mlp.compensation", l);
    for (int i = 0; i < s->experts; i++) {
        if (b->m->rank && !held(b->m, p, l, i)) continue;
        if ((code = safetensors_rows(&view, b->from, b->name, s->experts, s->width, i, 1, b->e))) return code;
        if (b->m->limits.verify && (code = mat_check_finite(&view, b->name, &b->alive, b->e))) return code;
        mat_widen(mu + (size_t)i * (size_t)s->width, &view, 0, 1);
        for (int d = 0; total && d < s->width; d++) total[d] += grid(mu[(size_t)i * (size_t)s->width + (size_t)d]);
    }
    return OK;
}

static status bind_ffn(struct binder *b, int l, const struct placement *p)
{
    struct model *m = b->m;
    const struct shape *s = &m->shape;
    struct moe_layer *y = &m->moe_layers[l];
    int routed = s->neurons - s->shared[l];
    char which[32];
    status code;

    y->experts = s->experts;
    y->active = s->active;
    y->expert = m->experts + (size_t)l * (size_t)s->experts;
    y->neurons_active = s->experts ? s->shared[l] + (int64_t)lround((double)s->active * routed / s->experts) : s->neurons;
    if (!s->experts) return m->rank ? OK : bind_expert(b, &y->shared, l, "", s->neurons);

    if (!m->rank && s->shared[l] > 0 && (code = bind_expert(b, &y->shared, l, "shared_expert.", s->shared[l]))) return code;
    for (int i = 0; i < s->experts; i++) {
        if (!held(m, p, l, i)) continue;
        snprintf(which, sizeof(which), "experts.%d.", i);
        if ((code = bind_expert(b, &y->expert[i], l, which, group_size(s->neurons, s->shared[l], s->experts, i)))) return code;
    }
    return s->compensate ? bind_compensation(b, l, p) : OK;
}

static status bind_coordinator(struct binder *b)
{
    struct model *m = b->m;
    const struct shape *s = &m->shape;
    status code;

    named(b, "model.embed_tokens.weight");
    if ((code = bind(b, &m->embed, s->vocab, s->width))) return code;
    named(b, "%s", s->tied ? "model.embed_tokens.weight" : "lm_head.weight");
    if ((code = bind_packed(b, &m->head, s->vocab, s->width))) return code;
    named(b, "model.norm.weight");
    if ((code = bind_vector(b, m->final_norm, s->width))) return code;
    for (int l = 0; l < s->layers; l++)
        if ((code = bind_attention(b, l))) return code;
    rope_table(m->rope, m->limits.positions, s->head_dim, &s->rope);
    return OK;
}

/* ---- the static control ---- */

/* The round(F * f) most important neurons of the layer stay, the others give their mean, or nothing. */
static status bind_control(struct binder *b, int l, int *order, float *importance)
{
    struct model *m = b->m;
    const struct shape *s = &m->shape;
    struct moe_layer *y = &m->moe_layers[l];
    uint8_t *keep = (uint8_t *)y->shared.keep; /* ours: take_ffn() */
    float *fill = (float *)y->shared.fill;
    int kept = (int)lround((double)s->neurons * shape_active_share(s));
    status code;

    named(b, "model.layers.%d.mlp.neuron_importance", l);
    if ((code = bind_vector(b, importance, s->neurons))) return code;
    named(b, "model.layers.%d.mlp.neuron_mean", l);
    if ((code = bind_vector(b, fill, s->neurons))) return code;
    if (!s->compensate) memset(fill, 0, (size_t)s->neurons * sizeof(*fill));
    group_contiguous(order, s->neurons);
    group_shared_first(order, s->neurons, kept, importance);
    for (int i = 0; i < kept; i++) keep[order[i]] = 1;
    for (int i = 0, begin = s->shared[l]; i < s->experts; i++) {
        y->expert[i].keep = keep + begin;
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
    b->from = m->calibration;
    for (int l = 0; !s && l < m->shape.layers; l++) s = bind_control(b, l, order, importance);
    free(order);
    free(importance);
    free(path);
    return s;
}

/* ---- opening ---- */

static status check_limits(const char *directory, const struct shape *s, struct model_limits limits, struct err *e)
{
    int most = s->window && s->window < s->positions ? s->window : s->positions;

    BUG_ON(limits.rows < 1 || limits.sessions < 1 || limits.positions < 1);
    if (s->head_dim > ATTEND_HEAD_DIM)
        return err_set(e, ERR_LIMIT, "%s: head_dim: expected at most %d, found %d", directory, ATTEND_HEAD_DIM, s->head_dim);
    if (limits.positions > most)
        return err_set(e, ERR_LIMIT, "%s: limits.positions: expected at most %d (the model's %s), found %d", directory, most,
                       most == s->positions ? "positions" : "sliding window", limits.positions);
    if (limits.calibration && !s->calibrated)
        return err_set(e, ERR_SPEC,
                       "%s: the static control needs calibration.safetensors; expected a model that was factorized with a "
                       "calibration text, found one without",
                       directory);
    return OK;
}

/* Followers expect to hear of the coordinator while it opens its part; a follower has nothing to say. */
static void tick(void *exchange)
{
    if (exchange) exchange_ping(exchange);
}

status model_open(struct model **out, const char *directory, const struct shape *s, const struct placement *p, int rank,
                  struct model_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e)
{
    struct arena_taker t = {.arena = a, .e = e};
    struct binder b = {.e = e, .alive = {tick, x}};
    struct model *m;
    status code;

    *out = NULL;
    if (check_limits(directory, s, limits, e)) return e->code;
    m = arena_take(&t, 1, sizeof(*m));
    if (!m) return e->code;
    *m = (struct model){.shape = *s, .limits = limits, .gemm = g, .rank = rank};
    forward_take_cache(m, &t);
    take_work(m, &t);
    forward_take_work(m, &t);
    if (t.failed) return e->code;

    if ((code = arena_open(&m->packed, "weights", packed_bytes(s, p, rank), e))) goto fail;
    if ((code = safetensors_open(&m->weights, directory, e))) goto fail;
    b.m = m;
    b.from = m->weights;
    if (!rank && (code = bind_coordinator(&b))) goto fail;
    for (int l = 0; l < s->layers; l++)
        if ((code = bind_ffn(&b, l, p))) goto fail;
    if (limits.calibration && (code = bind_controls(&b, directory))) goto fail;
    code = moe_open(&m->moe, m->moe_layers, s->layers, s->width, s->neurons, p, rank, moe_limits_of(limits), g, x, a, e);
    if (code) goto fail;
    *out = m;
    return OK;
fail:
    model_close(m);
    return code;
}

void model_close(struct model *m)
{
    if (!m) return;
    moe_close(m->moe);
    safetensors_close(m->weights);
    safetensors_close(m->calibration);
    arena_close(m->packed);
    m->packed = NULL;
    m->weights = m->calibration = NULL;
}

const struct shape *model_shape(const struct model *m)
{
    return &m->shape;
}

const struct model_limits *model_limits_of(const struct model *m)
{
    return &m->limits;
}

struct moe *model_moe(struct model *m)
{
    return m->moe;
}

size_t model_mapped_bytes(const struct model *m)
{
    return safetensors_mapped_bytes(m->weights) + (m->calibration ? safetensors_mapped_bytes(m->calibration) : 0);
}

const struct expert *model_dense_ffn(const struct model *m, int layer)
{
    BUG_ON(m->rank || m->shape.experts || layer < 0 || layer >= m->shape.layers);
    return &m->moe_layers[layer].shared;
}
