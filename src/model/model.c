/* Opening: which matrices a rank looks at, and the memory beside them.  What is bound to them: bind.c. */
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static bool is_coordinator(int rank, struct model_limits limits)
{
    return rank == 0 || rank < limits.coordinators;
}

static void take_ffn(struct moe_layer *y, const struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;
    size_t width = (size_t)s->width, neurons = (size_t)s->neurons;
    float *mu = NULL, *fill = NULL;
    double *total = NULL;
    int32_t *place = NULL;

    if (s->compensate) mu = arena_take(t, (size_t)s->experts * width, sizeof(float));
    if (s->compensate && m->coordinator) total = arena_take(t, width, sizeof(double));
    if (m->limits.calibration) {
        place = arena_take(t, neurons, sizeof(int32_t));
        fill = arena_take(t, neurons, sizeof(float));
    }
    if (!y) return;
    y->mu = mu;
    y->mu_total = total;
    y->shared.place = place; /* of the whole layer; bind_control() gives every expert its part */
    y->shared.fill = fill;
}

static void take_work(struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;

    m->moe_layers = arena_take(t, (size_t)s->layers, sizeof(*m->moe_layers));
    m->experts = arena_take(t, (size_t)s->layers * (size_t)s->experts, sizeof(*m->experts));
    for (int l = 0; l < s->layers; l++) take_ffn(m->moe_layers ? &m->moe_layers[l] : NULL, m, t);
    if (!m->coordinator && !m->limits.split) return;
    m->blocks = arena_take(t, (size_t)s->layers, sizeof(*m->blocks));
    for (int l = 0; l < s->layers; l++) take_block(m->blocks ? &m->blocks[l] : NULL, s, t);
    m->final_norm = arena_take(t, (size_t)s->width, sizeof(float));
}

static struct moe_limits moe_limits_of(struct model_limits limits)
{
    return (struct moe_limits){.rows = limits.rows,
                               .oracle = limits.oracle,
                               .train = limits.train,
                               .adapt = limits.adapt,
                               .lora = limits.lora,
                               .notes = limits.notes,
                               .sample = limits.sample,
                               .wire = limits.wire,
                               .coordinators = limits.coordinators};
}

/* ---- the matrices of a rank: one walk for what is planned and what is bound ---- */

/* The neurons from `first` on: of the tensors of `which` expert, or of a dense model's (of > 0). */
static status walk_part(const struct walk *k, struct expert *x, const struct shape *s, int layer, const char *which, int neurons,
                        int first, int of)
{
    static const char *const names[] = {"gate", "up", "down"};
    struct packed *out[] = {x ? &x->gate : NULL, x ? &x->up : NULL, x ? &x->down : NULL};
    status code = OK;

    for (int i = 0; !code && i < 3; i++) {
        int rows = i < 2 ? neurons : s->width;
        struct matrix w = {out[i], WEIGHTS_EXPERTS, rows, i < 2 ? s->width : neurons, {0, rows}, first, of, ""};

        snprintf(w.name, sizeof(w.name), "model.layers.%d.mlp.%s%s_proj.weight", layer, which, names[i]);
        code = k->each(k->ctx, &w);
    }
    return code;
}

static status walk_expert(const struct walk *k, struct expert *x, const struct shape *s, int layer, const char *which,
                          int neurons)
{
    return walk_part(k, x, s, layer, which, neurons, 0, 0);
}

static struct span times(struct span s, int n)
{
    return (struct span){s.first * n, s.n * n};
}

static status walk_attention(const struct walk *k, struct block *y, const struct model *m, int layer)
{
    const struct shape *s = &m->shape;
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    struct span heads = times(m->part.heads, s->head_dim);
    struct {
        const char *name;
        struct packed *out;
        int rows, cols;
        struct span held;
    } part[] = {{"q", y ? &y->q : NULL, q, s->width, times(heads, s->heads / s->kv_heads)},
                {"k", y ? &y->k : NULL, kv, s->width, heads},
                {"v", y ? &y->v : NULL, kv, s->width, heads},
                {"o", y ? &y->o : NULL, s->width, q, m->part.out}};
    status code = OK;

    for (size_t i = 0; !code && i < sizeof(part) / sizeof(*part); i++) {
        struct matrix w = {part[i].out, WEIGHTS_ATTENTION, part[i].rows, part[i].cols, part[i].held, 0, 0, ""};

        snprintf(w.name, sizeof(w.name), "model.layers.%d.self_attn.%s_proj.weight", layer, part[i].name);
        code = k->each(k->ctx, &w);
    }
    return code;
}

bool model_holds(const struct model *m, const struct placement *p, int layer, int expert)
{
    return placement_rank(p, layer, expert) == m->rank;
}

static status walk_ffn(const struct walk *k, struct model *m, const struct placement *p, int l)
{
    const struct shape *s = &m->shape;
    struct expert *shared = m->moe_layers ? &m->moe_layers[l].shared : NULL;
    struct expert *experts = m->experts ? m->experts + (size_t)l * (size_t)s->experts : NULL;
    status code = OK;

    if (!s->experts) return !m->coordinator ? OK : walk_expert(k, shared, s, l, "", s->neurons);
    if (m->coordinator && s->shared[l] > 0) code = walk_expert(k, shared, s, l, "shared_expert.", s->shared[l]);
    for (int i = 0; !code && i < s->experts; i++) {
        char which[32];

        if (!model_holds(m, p, l, i)) continue;
        snprintf(which, sizeof(which), "experts.%d.", i);
        int n = group_size(s->neurons, s->shared[l], s->experts, i);
        struct expert *x = experts ? &experts[i] : NULL;

        if (s->sliced) code = walk_part(k, x, s, l, "", n, group_begin(s->neurons, 0, s->experts, i), s->neurons);
        else code = walk_expert(k, x, s, l, which, n);
    }
    return code;
}

status walk_matrices(const struct walk *k, struct model *m, const struct placement *p, const struct weights_plan *plan)
{
    const struct shape *s = &m->shape;
    struct matrix head = {m->blocks ? &m->head : NULL, WEIGHTS_HEAD, s->vocab, s->width, m->part.words, 0, 0, "lm_head.weight"};
    status code = OK;

    /* a packed file has a tied head under its own name */
    if (s->tied && !plan->packed) strcpy(head.name, "model.embed_tokens.weight");
    for (int l = 0; !code && l < s->layers; l++) {
        if (m->coordinator || m->limits.split) code = walk_attention(k, m->blocks ? &m->blocks[l] : NULL, m, l);
        if (!code) code = walk_ffn(k, m, p, l);
    }
    if (!code && (m->coordinator || m->limits.split)) code = k->each(k->ctx, &head);
    return code;
}

struct counting {
    const struct weights_plan *plan;
    size_t bytes;
};

static status count_matrix(void *ctx, const struct matrix *w)
{
    struct counting *c = ctx;

    c->bytes += weights_cost(c->plan, w->part, w->held.n, w->cols);
    return OK;
}

static size_t embedding_bytes(const struct model *m, const struct weights_plan *plan)
{
    return (size_t)m->shape.vocab * (size_t)m->shape.width * dtype_bytes(plan->embedding);
}

void model_exchange_limits(struct exchange_limits *x, const struct shape *s, int ranks, struct model_limits limits)
{
    struct exchange_limits moe = {0};

    moe_exchange_limits(&moe, s->layers, s->experts, s->width, s->neurons, moe_limits_of(limits));
    exchange_raise(x, moe.request_bytes, moe.answer_bytes);
    split_limits(x, s, limits, ranks);
}

/* What a coordinator maps whichever experts it holds: what walk_matrices() meets on a rank that has none. */
static size_t common_bytes(const struct model *m, const struct placement *p, const struct weights_plan *plan)
{
    struct counting matrices = {.plan = plan};
    struct model without = *m;

    without.rank = -1;
    if (plan->packed) walk_matrices(&(struct walk){count_matrix, &matrices}, &without, p, plan);
    return matrices.bytes + embedding_bytes(m, plan);
}

void model_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks,
                const struct weights_plan *plan, struct model_limits limits)
{
    if (limits.coordinators > ranks) limits.coordinators = ranks;
    if (ranks == 1) limits.split = false;
    struct model m = {.shape = *s,
                      .limits = limits,
                      .rank = rank,
                      .ranks = ranks,
                      .coordinator = is_coordinator(rank, limits),
                      .part = split_part(s, limits, rank, ranks)};
    struct arena_taker kv = {0}, work = {0}, transposed = {0};
    struct exchange_limits x = {0};
    struct counting matrices = {.plan = plan};

    arena_take(&work, 1, sizeof(m));
    forward_take_cache(&m, &kv);
    take_work(&m, &work);
    forward_take_work(&m, &work);
    walk_matrices(&(struct walk){count_matrix, &matrices}, &m, p, plan);
    if (limits.train) transposed_take(&m, p, &transposed);
    if (limits.adapt) trained_take(&m, p, &transposed);
    *c = (struct model_cost){
        .weights = (plan->packed ? 0 : matrices.bytes) + transposed.bytes,
        .mapped = plan->packed ? matrices.bytes : 0,
        .kv = kv.bytes,
        .work = work.bytes + moe_cost(p, rank, s->layers, s->experts, s->width, s->neurons, moe_limits_of(limits)),
    };
    if (m.coordinator) c->mapped += embedding_bytes(&m, plan);
    if (m.coordinator && !limits.split) c->common = common_bytes(&m, p, plan);
    if (ranks > 1) {
        model_exchange_limits(&x, s, ranks, limits);
        c->exchange = exchange_costs(rank, ranks, x, limits.coordinators);
    }
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
    struct arena_taker transposed = {.e = e};
    struct counting matrices = {0};
    struct model *m;
    status code;

    *out = NULL;
    if (check_limits(directory, s, limits, e)) return e->code;
    m = arena_take(&t, 1, sizeof(*m));
    if (!m) return e->code;
    if (p->ranks == 1) limits.split = false;
    BUG_ON(limits.split && limits.coordinators > 1);
    *m = (struct model){.shape = *s,
                        .limits = limits,
                        .gemm = g,
                        .rank = rank,
                        .ranks = p->ranks,
                        .coordinator = is_coordinator(rank, limits),
                        .part = split_part(s, limits, rank, p->ranks),
                        .exchange = x};
    forward_take_cache(m, &t); /* of which only the pages of positions that are taken are touched */
    arena_huge_pages(a, arena_used(a));
    take_work(m, &t);
    forward_take_work(m, &t);
    if (t.failed) return e->code;

    if ((code = weights_open(&m->weights, directory, s, &limits.precision, e))) goto fail;
    m->weights.gemm = g;
    m->weights.verify = limits.verify;
    m->weights.alive = (struct alive){tick, x};
    matrices.plan = &m->weights.plan;
    if (!matrices.plan->packed) walk_matrices(&(struct walk){count_matrix, &matrices}, m, p, matrices.plan);
    if (limits.train) transposed_take(m, p, &transposed);
    if (limits.adapt) trained_take(m, p, &transposed);
    if ((code = arena_open(&m->packed, "weights", matrices.bytes + transposed.bytes, e))) goto fail;
    arena_huge_pages(m->packed, 0);
    m->weights.memory = m->packed;
    if ((code = model_bind(m, p, directory, e))) goto fail;
    transposed.arena = m->packed;
    if (limits.train) transposed_take(m, p, &transposed);
    if (limits.adapt && !transposed.failed) trained_take(m, p, &transposed);
    if (transposed.failed && (code = e->code)) goto fail;
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
    weights_close(&m->weights);
    safetensors_close(m->calibration);
    arena_close(m->packed);
    m->packed = NULL;
    m->calibration = NULL;
}

void model_time(struct model *m, struct timing *t)
{
    m->timing = t;
    moe_time(m->moe, t);
}

const struct shape *model_shape(const struct model *m)
{
    return &m->shape;
}

const struct model_limits *model_limits_of(const struct model *m)
{
    return &m->limits;
}

struct timing *model_timing(const struct model *m)
{
    return m->timing;
}

struct gemm *model_gemm(const struct model *m)
{
    return m->gemm;
}

struct moe *model_moe(struct model *m)
{
    return m->moe;
}

const struct weights_plan *model_weights(const struct model *m)
{
    return &m->weights.plan;
}

size_t model_packed_bytes(const struct model *m)
{
    return arena_used(m->packed);
}

const float *model_means(const struct model *m, int layer)
{
    return m->moe_layers[layer].mu;
}

const struct expert *model_dense_ffn(const struct model *m, int layer)
{
    BUG_ON(!m->coordinator || m->shape.experts || layer < 0 || layer >= m->shape.layers);
    return &m->moe_layers[layer].shared;
}
