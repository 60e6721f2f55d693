/* Opening and routing.  What experts compute is in moe_work.c, what travels in moe_dispatch.c and moe_answer.c, what only the teacher asks for in
 * moe_teach.c. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "moe/grouping.h"
#include "moe/moe_internal.h"
#include "moe/route.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t piece_bytes(int experts, int width, int neurons, struct moe_limits limits)
{
    size_t row = larger((size_t)experts * (size_t)width, (size_t)neurons) * sizeof(float);

    return larger((size_t)limits.rows * (size_t)width * sizeof(double), row);
}

static void take_coordinator(struct moe *m, struct arena_taker *t)
{
    size_t rows = (size_t)m->limits.rows, width = (size_t)m->width, words = (size_t)m->words, ranks = (size_t)m->ranks;

    for (int i = 0; i < EXCHANGE_SLOTS; i++) {
        struct moe_slot *s = &m->slot[i];

        s->set = arena_take(t, rows * words, sizeof(uint64_t));
        s->sent = arena_take(t, ranks, sizeof(*s->sent));
        s->place = arena_take(t, ranks, sizeof(*s->place));
        for (int r = 0; r < m->ranks; r++) {
            if (r == m->rank || placement_count(m->p, -1, r) == 0) continue;
            int *place = arena_take(t, rows, sizeof(*place));

            if (t->arena && !t->failed) s->place[r] = place;
        }
        s->quantized = arena_take(t, rows_bytes(m->limits.rows, m->width), 1);
        if (m->limits.oracle) s->threshold = arena_take(t, rows, sizeof(*s->threshold));
    }
    m->keys = arena_take(t, rows, sizeof(*m->keys));
    m->scores = arena_take(t, rows * (size_t)m->experts, sizeof(float));
    m->count = arena_take(t, (size_t)m->experts, sizeof(*m->count));
    m->stats.load = arena_take(t, (size_t)m->n_layers * (size_t)m->experts, sizeof(uint64_t));
    m->sum = arena_take(t, rows * width, sizeof(*m->sum));
    if (m->limits.adapt) m->squares = arena_take(t, (size_t)m->n_layers * ((size_t)m->experts + 1), sizeof(double));
    if (m->limits.oracle) {
        m->piece = arena_take(t, m->piece_bytes, 1);
        m->dense = arena_take(t, rows * width, sizeof(float));
        m->gram = arena_take(t, (size_t)m->experts * (size_t)m->experts, sizeof(double));
        m->gain = arena_take(t, (size_t)m->experts, sizeof(double));
    }
}

static void take_follower(struct moe *m, struct arena_taker *t)
{
    size_t rows = (size_t)m->limits.rows;

    if (m->limits.wire.rows == MOE_ROWS_BF16) m->rows_in = arena_take(t, rows * (size_t)m->width, sizeof(float));
    m->quantized = arena_take(t, rows_bytes(m->limits.rows, m->width), 1);
}

/* Fills the sizes of *m, then takes its memory. */
static void take_all(struct moe *m, struct arena_taker *t, const struct placement *p, int rank, int layers, int experts,
                     int width, int neurons, struct moe_limits limits)
{
    BUG_ON(limits.coordinators > 1 && limits.oracle);
    BUG_ON(limits.rows < 1 || width < 1 || neurons < 1 || rank < 0 || rank >= p->ranks);
    *m = (struct moe){.n_layers = layers,
                      .width = width,
                      .neurons = neurons,
                      .experts = experts,
                      .words = bits_words(experts),
                      .rank = rank,
                      .coordinator = rank == 0 || rank < limits.coordinators,
                      .ranks = p->ranks,
                      .p = p,
                      .limits = limits,
                      .piece_bytes = piece_bytes(experts, width, neurons, limits)};
    moe_take_work(m, t);
    if (limits.notes) moe_take_notes(m, t);
    m->means = arena_take(t, (size_t)layers, sizeof(*m->means));
    m->held = arena_take(t, (size_t)layers * (size_t)p->ranks * (size_t)m->words, sizeof(*m->held));
    if (m->coordinator) take_coordinator(m, t);
    if (!m->coordinator || limits.coordinators > 1) take_follower(m, t);
}

size_t moe_cost(const struct placement *p, int rank, int layers, int experts, int width, int neurons, struct moe_limits limits)
{
    struct arena_taker t = {0};
    struct moe m;

    take_all(&m, &t, p, rank, layers, experts, width, neurons, limits);
    return t.bytes + arena_cost(1, sizeof(m));
}

void moe_exchange_limits(struct exchange_limits *x, int layers, int experts, int width, int neurons, struct moe_limits limits)
{
    const struct moe m = {.width = width, .limits = limits};
    size_t set = (size_t)bits_words(experts) * sizeof(uint64_t), rows = (size_t)limits.rows;

    x->request_bytes = larger(moe_line(rows * set) + rows * moe_row_bytes(&m), (size_t)width * sizeof(float)); /* or a mean */
    x->answer_bytes = rows * moe_sum_bytes(&m);
    if (limits.oracle) {
        x->request_bytes = larger(x->request_bytes, rows * 2 * (size_t)width * sizeof(float));
        x->request_bytes = larger(x->request_bytes, moe_line(rows * set) + rows * (size_t)width * sizeof(float));
        x->answer_bytes = larger(x->answer_bytes, piece_bytes(experts, width, neurons, limits));
        x->answer_bytes = larger(x->answer_bytes, rows * (size_t)experts * sizeof(float));
    }
    if (limits.train) {
        x->request_bytes = larger(x->request_bytes, moe_line(rows * set) + rows * 2 * (size_t)width * sizeof(float));
        x->answer_bytes = larger(x->answer_bytes, rows * ((size_t)width * sizeof(int64_t) + (size_t)experts * sizeof(float)));
    }
    if (limits.adapt) {
        x->request_bytes = larger(x->request_bytes, moe_adapted_bytes(&m));
        x->answer_bytes = larger(x->answer_bytes, moe_adapted_bytes(&m));
        x->answer_bytes = larger(x->answer_bytes, (size_t)layers * ((size_t)experts + 1) * sizeof(double));
    }
    if (limits.notes) {
        x->request_bytes = larger(x->request_bytes, moe_line(rows * sizeof(int32_t)) + rows * moe_row_bytes(&m));
        x->answer_bytes = larger(x->answer_bytes, moe_notes_bytes(limits));
    }
    x->answer_bytes = larger(x->answer_bytes, sizeof(struct err)); /* the answer may be an error */
}

/* Notes an expert that this rank holds. */
static void open_expert(struct moe *m, int l, const struct expert *x)
{
    const struct packed *part[] = {&x->gate, &x->up, &x->down};

    BUG_ON(x->gate.rows > m->neurons || x->gate.cols != m->width || x->down.rows != m->width);
    BUG_ON(x->up.rows != x->gate.rows || x->up.cols != m->width || x->down.cols != x->gate.rows);
    for (int i = 0; i < 3; i++) BUG_ON(!part[i]->lines);
    m->need[l] += x->gate.rows;
    m->forms[l] = (uint8_t)(m->forms[l] | 1 << x->gate.format | 1 << x->up.format);
}

/* Notes what this rank holds of a layer. */
static void open_layer(struct moe *m, int l)
{
    const struct moe_layer *y = &m->layers[l];

    BUG_ON(y->experts < 0 || y->experts > m->p->experts || y->active > y->experts);
    m->need[l] = 0;
    m->forms[l] = 0;
    for (int i = 0; i < y->experts; i++) {
        int rank = placement_rank(m->p, l, i);

        bits_set(m->held + ((size_t)l * (size_t)m->ranks + (size_t)rank) * (size_t)m->words, i);
        if (rank == m->rank) open_expert(m, l, &y->expert[i]);
    }
    if (m->coordinator && y->shared.down.lines) open_expert(m, l, &y->shared);
    for (int r = 0; r < m->ranks; r++) BUG_ON(!m->exchange && r != m->rank && moe_holds(m, l, r));
    if (m->limits.train) moe_join(m, l);
}

/* Terms of a sum: experts, the shared one, the means of active experts, and their total. */
status moe_check_terms(const struct moe_layer *y, int layer, bool means, struct err *e)
{
    int terms = y->experts * (means ? 2 : 1) + 2;

    if (terms <= EXACT_TERMS) return OK;
    return err_set(e, ERR_LIMIT, "layer %d: %d experts%s are more than can be added exactly: expected at most %d", layer,
                   y->experts, means ? " with compensation" : "", (EXACT_TERMS - 2) / (means ? 2 : 1));
}

status moe_open(struct moe **out, struct moe_layer *layers, int n_layers, int width, int neurons, const struct placement *p,
                int rank, struct moe_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e)
{
    struct arena_taker t = {.arena = a, .e = e};

    *out = NULL;
    BUG_ON(n_layers != p->layers);
    for (int l = 0; l < n_layers; l++)
        if (moe_check_terms(&layers[l], l, layers[l].mu, e)) return e->code;
    struct moe *m = arena_alloc(a, 1, sizeof(*m), e);
    if (!m) return e->code;
    take_all(m, &t, p, rank, n_layers, p->experts, width, neurons, limits);
    if (t.failed) return e->code;
    m->layers = layers;
    m->gemm = g;
    m->exchange = x;
    memset(m->held, 0, (size_t)n_layers * (size_t)m->ranks * (size_t)m->words * sizeof(*m->held));
    if (limits.oracle) memset(m->normed, 0, (size_t)n_layers * sizeof(*m->normed));
    for (int l = 0; l < n_layers; l++) open_layer(m, l);
    for (int i = 0; i < limits.rows; i++) m->all[i] = i;
    if (m->coordinator) {
        for (int i = 0; i < limits.rows; i++) m->keys[i] = (uint64_t)i;
        moe_stats_clear(m);
    }
    *out = m;
    return OK;
}

void moe_close(struct moe *m)
{
    if (!m) return;
    free(m->means_memory); /* all else is the arena's */
    free(m->means_total);
    m->means_memory = NULL, m->means_total = NULL;
}

void moe_time(struct moe *m, struct timing *t)
{
    m->timing = t;
}

int moe_rank_of(const struct moe *m, int layer, int expert)
{
    return placement_rank(m->p, layer, expert);
}

bool moe_alone(const struct moe *m)
{
    for (int r = 0; r < m->ranks; r++) {
        if (r != m->rank && placement_count(m->p, -1, r) > 0) return false;
    }
    return true;
}

bool moe_holds(const struct moe *m, int layer, int rank)
{
    const uint64_t *held = moe_held(m, layer, rank);

    for (int w = 0; w < m->words; w++) {
        if (held[w]) return true;
    }
    return false;
}

static void set_all(uint64_t *set, int rows, int experts)
{
    size_t words = (size_t)bits_words(experts);

    for (int t = 0; t < rows; t++) {
        if (t) memcpy(set + (size_t)t * words, set, words * sizeof(*set));
        else memset(set, 0, words * sizeof(*set));
        for (int i = 0; !t && i < experts; i++) bits_set(set, i);
    }
}

void moe_prepare(struct moe *m, int layer, struct rows *h, void *memory)
{
    bool wait = false;

    for (int f = 0; f < FORMAT_COUNT; f++)
        if (m->forms[layer] >> f & 1) wait = gemm_rows(m->gemm, h, (enum format)f, memory) || wait;
    if (wait) gemm_quantize(m->gemm, h);
}

void moe_slot_rows(struct moe *m, struct moe_slot *s, int layer, const float *h, int rows)
{
    s->layer = layer;
    s->h = (struct rows){.x = h, .ld = (size_t)m->width, .n = rows, .cols = m->width};
    moe_prepare(m, layer, &s->h, s->quantized);
}

static void route_by_router(struct moe *m, struct moe_slot *s, const struct routing *how, int k)
{
    const struct router *r = how->router;
    int n = m->layers[s->layer].experts;

    BUG_ON(!r || r->experts != n || r->width != m->width || r->rank > r->width);
    /* The sums lie idle until the slot ends: there is room for the router's inner activations. */
    router_scores(r, m->gemm, s->layer, &s->h, s->quantized, m->sum, m->scores);
    route_select(s->set, m->scores, s->h.n, n, k, r, s->layer);
    if (how->batch_experts > 0 && s->h.n > 1) route_together(s->set, m->scores, s->h.n, n, route_most(how->batch_experts, n));
}

static status route_by_paper(struct moe *m, int slot, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    int layer = s->layer, rows = s->h.n, n = m->layers[layer].experts, k = m->layers[layer].active;
    const struct router top = {.layers = m->n_layers, .experts = n};
    status code = moe_teach_dense(m, slot, layer, s->h.x, rows, m->dense, e);

    if (!code) code = moe_teach_scores(m, slot, layer, s->h.x, m->dense, rows, k, m->scores, e);
    if (!code) route_select(s->set, m->scores, rows, n, k, &top, layer);
    return code;
}

static void count(struct moe *m, const struct moe_slot *s)
{
    const struct moe_layer *y = &m->layers[s->layer];
    int n = y->experts, shared = y->shared.down.lines ? y->shared.gate.rows : 0;
    uint64_t rows = (uint64_t)s->h.n, *load = m->stats.load + (size_t)s->layer * (size_t)m->experts;

    m->stats.tokens += rows;
    if (s->route == ROUTE_STATIC || s->route == ROUTE_NEURONS) {
        m->stats.neurons += s->route == ROUTE_NEURONS ? s->neurons : rows * (uint64_t)s->kept;
        return;
    }
    m->stats.neurons += rows * (uint64_t)shared;
    memset(m->count, 0, (size_t)n * sizeof(*m->count));
    active_count(m->count, s->set, s->h.n, n);
    for (int i = 0; i < n; i++) {
        int size = y->expert[i].down.lines ? y->expert[i].gate.rows : group_size(m->neurons, shared, n, i);

        m->stats.neurons += m->count[i] * (uint64_t)size;
        load[i] += m->count[i];
    }
}

static status route(struct moe *m, int slot, const uint64_t *key, const struct routing *how, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    const struct moe_layer *y = &m->layers[s->layer];
    int n = y->experts, rows = s->h.n, k = how->active ? how->active : y->active;
    const float *h = s->h.x;
    status code;

    if (n == 0 && how->route != ROUTE_NEURONS) return OK;
    switch (how->route) {
    case ROUTE_ALL:
    case ROUTE_STATIC:
        set_all(s->set, rows, n);
        break;
    case ROUTE_SETS:
        BUG_ON(!how->sets);
        memcpy(s->set, how->sets, (size_t)rows * (size_t)bits_words(n) * sizeof(*s->set));
        break;
    case ROUTE_ROUTER:
        route_by_router(m, s, how, k);
        break;
    case ROUTE_RANDOM:
        route_random(s->set, key ? key : m->keys, rows, n, k, how->seed, s->layer);
        break;
    case ROUTE_PAPER:
        return route_by_paper(m, slot, e);
    case ROUTE_GRAM:
        code = moe_teach_gram(m, slot, s->layer, h, rows, y->active, how->compensate, s->set, e);
        moe_slot_rows(m, s, s->layer, h, rows); /* it goes through them in pieces */
        return code;
    case ROUTE_GRAM_VARIABLE:
        BUG_ON(!how->gain);
        code = moe_teach_gram_variable(m, slot, s->layer, h, rows, how->gain[s->layer], how->compensate, s->set, e);
        moe_slot_rows(m, s, s->layer, h, rows);
        return code;
    case ROUTE_NEURONS:
        set_all(s->set, rows, n);
        return moe_teach_neurons(m, slot, e);
    }
    return OK;
}

status moe_begin(struct moe *m, int slot, int layer, const float *h, const uint64_t *key, int rows, const struct routing *how,
                 struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    bool plain = how->route == ROUTE_ALL || how->route == ROUTE_STATIC || how->route == ROUTE_NEURONS;

    BUG_ON(!m->coordinator || slot < 0 || slot >= EXCHANGE_SLOTS || s->busy);
    BUG_ON(layer < 0 || layer >= m->n_layers || rows < 0 || rows > m->limits.rows);
    enum timing_section was = timing_enter(m->timing, TIME_ROUTE);

    moe_slot_rows(m, s, layer, h, rows);
    s->kept = how->neurons ? how->neurons[layer] : (int)m->layers[layer].neurons_active;
    status code = route(m, slot, key, how, e);
    if (!code) {
        s->route = how->route;
        s->router = how->route == ROUTE_ROUTER && m->layers[layer].experts ? how->router : NULL;
        s->scale = plain ? 1.0f : s->router && s->router->scale ? s->router->scale[layer] : how->scale;
        s->compensate = !plain && how->compensate && (m->layers[layer].mu_total || (s->router && s->router->mu));
        s->low_rank = s->router && s->router->offset && how->compensate;
        BUG_ON(moe_own_means(s) && m->means_of != s->router->mu); /* moe_select() was forgotten */
        count(m, s);
        moe_dispatch(m, slot);
        s->busy = true;
    }
    timing_enter(m->timing, was);
    return code;
}

status moe_end(struct moe *m, int slot, float *x, uint64_t *active, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];

    BUG_ON(slot < 0 || slot >= EXCHANGE_SLOTS || !s->busy);
    s->busy = false;
    if (active) {
        memcpy(active, s->set, (size_t)s->h.n * (size_t)bits_words(m->layers[s->layer].experts) * sizeof(*active));
    }
    status code = moe_combine(m, slot, x, e);
    if (!code) moe_add_low_rank(m, s, x);
    return code;
}

const struct moe_stats *moe_stats(const struct moe *m)
{
    return &m->stats;
}

void moe_stats_clear(struct moe *m)
{
    uint64_t *load = m->stats.load;

    if (load) memset(load, 0, (size_t)m->n_layers * (size_t)m->experts * sizeof(*load));
    m->stats = (struct moe_stats){.load = load};
}
