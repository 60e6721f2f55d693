/* Opening, routing, dispatch and combine.  What an expert computes is in moe_work.c, what only the teacher asks for in moe_teach.c. */
#include "moe/moe.h"

#include <math.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "moe/grouping.h"
#include "moe/moe_internal.h"
#include "moe/route.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t piece_bytes(int experts, int width, struct moe_limits limits)
{
    return larger((size_t)limits.rows * (size_t)width * sizeof(double), (size_t)experts * (size_t)width * sizeof(float));
}

static void take_coordinator(struct moe *m, struct arena_taker *t)
{
    size_t rows = (size_t)m->limits.rows, width = (size_t)m->width, words = (size_t)m->words, ranks = (size_t)m->ranks;

    for (int i = 0; i < EXCHANGE_SLOTS; i++) {
        struct moe_slot *s = &m->slot[i];

        s->set = arena_take(t, rows * words, sizeof(uint64_t));
        s->row_out = arena_take(t, ranks, sizeof(*s->row_out));
        s->set_out = arena_take(t, ranks, sizeof(*s->set_out));
        s->sent = arena_take(t, ranks, sizeof(*s->sent));
        for (int r = 0; r < m->ranks; r++) {
            if (r == m->rank || placement_count(m->p, -1, r) == 0) continue;
            float *row_out = arena_take(t, rows * width, sizeof(float));
            uint64_t *set_out = arena_take(t, rows * words, sizeof(uint64_t));

            if (t->arena && !t->failed) s->row_out[r] = row_out, s->set_out[r] = set_out;
        }
    }
    m->keys = arena_take(t, rows, sizeof(*m->keys));
    m->scores = arena_take(t, rows * (size_t)m->experts, sizeof(float));
    m->stats.load = arena_take(t, (size_t)m->n_layers * (size_t)m->experts, sizeof(uint64_t));
    m->sum = arena_take(t, rows * width, sizeof(double));
    if (m->limits.oracle) {
        m->piece = arena_take(t, m->piece_bytes, 1);
        m->dense = arena_take(t, rows * width, sizeof(float));
        m->gram = arena_take(t, (size_t)m->experts * (size_t)m->experts, sizeof(double));
    }
}

static void take_follower(struct moe *m, struct arena_taker *t)
{
    struct exchange_limits limits = {0};

    moe_exchange_limits(&limits, m->n_layers, m->experts, m->width, m->limits);
    m->sum = arena_take(t, limits.answer_bytes, 1);
    m->piece = (float *)m->sum;
}

/* Fills the sizes of *m, then takes its memory. */
static void take_all(struct moe *m, struct arena_taker *t, const struct placement *p, int rank, int layers, int experts,
                     int width, int neurons, struct moe_limits limits)
{
    size_t block = (size_t)(limits.rows < MOE_BLOCK_ROWS ? limits.rows : MOE_BLOCK_ROWS);
    size_t routed = (size_t)(experts ? (neurons + experts - 1) / experts : 0);

    BUG_ON(limits.rows < 1 || width < 1 || neurons < 1 || rank < 0 || rank >= p->ranks);
    *m = (struct moe){.n_layers = layers,
                      .width = width,
                      .neurons = neurons,
                      .experts = experts,
                      .words = bits_words(experts),
                      .rank = rank,
                      .ranks = p->ranks,
                      .p = p,
                      .limits = limits,
                      .block = (int)block,
                      .piece_bytes = piece_bytes(experts, width, limits)};
    /* The coordinator's shared expert may be a whole dense FFN; a follower has routed experts only, which are shares of it.  A larger
     * expert than that still fits, with fewer rows at a time. */
    m->scratch_floats = 2 * (rank == 0 ? block * (size_t)neurons : larger(block * routed, (size_t)neurons));
    m->scratch = arena_take(t, m->scratch_floats, sizeof(float));
    m->block_in = arena_take(t, block * (size_t)width, sizeof(float));
    m->block_out = arena_take(t, block * (size_t)width, sizeof(float));
    m->index = arena_take(t, (size_t)limits.rows, sizeof(*m->index));
    m->wanted = arena_take(t, (size_t)m->words, sizeof(*m->wanted));
    m->held = arena_take(t, (size_t)layers * (size_t)p->ranks * (size_t)m->words, sizeof(*m->held));
    if (rank == 0) take_coordinator(m, t);
    else take_follower(m, t);
}

size_t moe_cost(const struct placement *p, int rank, int layers, int experts, int width, int neurons, struct moe_limits limits)
{
    struct arena_taker t = {0};
    struct moe m;

    take_all(&m, &t, p, rank, layers, experts, width, neurons, limits);
    return t.bytes + arena_cost(1, sizeof(m));
}

void moe_exchange_limits(struct exchange_limits *x, int layers, int experts, int width, struct moe_limits limits)
{
    size_t row = (size_t)width * sizeof(float), set = (size_t)bits_words(experts) * sizeof(uint64_t), rows = (size_t)limits.rows;

    (void)layers;
    x->request_bytes = rows * (row + set);
    x->answer_bytes = rows * (size_t)width * sizeof(double);
    if (limits.oracle) {
        x->request_bytes = larger(x->request_bytes, rows * 2 * row);
        x->answer_bytes = larger(piece_bytes(experts, width, limits), rows * (size_t)experts * sizeof(float));
    }
    x->answer_bytes = larger(x->answer_bytes, sizeof(struct err)); /* the answer may be an error */
}

static void check_shape(const struct moe *m, const struct expert *x)
{
    BUG_ON(x->gate.rows > m->neurons || x->gate.cols != m->width || x->down.rows != m->width);
}

status moe_open(struct moe **out, struct moe_layer *layers, int n_layers, int width, int neurons, const struct placement *p,
                int rank, struct moe_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e)
{
    struct arena_taker t = {.arena = a, .e = e};

    *out = NULL;
    BUG_ON(n_layers != p->layers);
    struct moe *m = arena_alloc(a, 1, sizeof(*m), e);
    if (!m) return e->code;
    take_all(m, &t, p, rank, n_layers, p->experts, width, neurons, limits);
    if (t.failed) return e->code;
    m->layers = layers;
    m->gemm = g;
    m->exchange = x;
    memset(m->held, 0, (size_t)n_layers * (size_t)m->ranks * (size_t)m->words * sizeof(*m->held));
    for (int l = 0; l < n_layers; l++) {
        BUG_ON(layers[l].experts < 0 || layers[l].experts > p->experts || layers[l].active > layers[l].experts);
        for (int i = 0; i < layers[l].experts; i++) {
            bits_set(m->held + ((size_t)l * (size_t)m->ranks + (size_t)placement_rank(p, l, i)) * (size_t)m->words, i);
            if (placement_rank(p, l, i) == rank) check_shape(m, &layers[l].expert[i]);
        }
        if (rank == 0 && layers[l].shared.down.lines) check_shape(m, &layers[l].shared);
        for (int r = 0; r < m->ranks; r++) BUG_ON(!x && r != rank && moe_holds(m, l, r));
    }
    if (rank == 0) {
        for (int i = 0; i < limits.rows; i++) m->keys[i] = (uint64_t)i;
        moe_stats_clear(m);
    }
    *out = m;
    return OK;
}

void moe_close(struct moe *m)
{
    (void)m; /* all of it is the arena's */
}

bool moe_holds(const struct moe *m, int layer, int rank)
{
    const uint64_t *held = moe_held(m, layer, rank);

    for (int w = 0; w < m->words; w++) {
        if (held[w]) return true;
    }
    return false;
}

static bool meet(const uint64_t *a, const uint64_t *b, int words)
{
    for (int w = 0; w < words; w++) {
        if (a[w] & b[w]) return true;
    }
    return false;
}

static void set_all(uint64_t *set, int rows, int experts)
{
    int words = bits_words(experts);

    memset(set, 0, (size_t)rows * (size_t)words * sizeof(*set));
    for (int t = 0; t < rows; t++, set += words) {
        for (int i = 0; i < experts; i++) bits_set(set, i);
    }
}

static void route_by_router(struct moe *m, struct moe_slot *s, const struct router *r)
{
    const struct moe_layer *y = &m->layers[s->layer];
    int n = y->experts;

    BUG_ON(!r || r->experts != n || r->width != m->width || s->layer >= r->layers);
    struct mat w = {.data = r->weight + (size_t)s->layer * (size_t)n * (size_t)m->width,
                    .dtype = DT_F32,
                    .rows = n,
                    .cols = m->width,
                    .stride = (size_t)m->width};

    if (s->rows == 0) return;
    gemm_xwt(m->gemm, m->scores, (size_t)n, s->h, (size_t)m->width, s->rows, &w, r->bias + (size_t)s->layer * (size_t)n);
    route_select(s->set, m->scores, s->rows, n, y->active, r, s->layer);
}

static status route_by_paper(struct moe *m, int slot, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    int layer = s->layer, rows = s->rows, n = m->layers[layer].experts, k = m->layers[layer].active;
    const struct router top = {.layers = m->n_layers, .experts = n};
    status code = moe_teach_dense(m, slot, layer, s->h, rows, m->dense, e);

    if (!code) code = moe_teach_scores(m, slot, layer, s->h, m->dense, rows, k, m->scores, e);
    if (!code) route_select(s->set, m->scores, rows, n, k, &top, layer);
    return code;
}

static void count(struct moe *m, const struct moe_slot *s)
{
    const struct moe_layer *y = &m->layers[s->layer];
    int n = y->experts, shared = y->shared.down.lines ? y->shared.gate.rows : 0;
    const uint64_t *set = s->set;

    m->stats.tokens += (uint64_t)s->rows;
    if (s->route == ROUTE_STATIC) {
        m->stats.neurons += (uint64_t)s->rows * (uint64_t)y->neurons_active;
        return;
    }
    m->stats.neurons += (uint64_t)s->rows * (uint64_t)shared;
    for (int t = 0; t < s->rows; t++, set += bits_words(n)) {
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) {
            int size = y->expert[i].down.lines ? y->expert[i].gate.rows : group_size(m->neurons, shared, n, i);

            m->stats.neurons += (uint64_t)size;
            m->stats.load[(size_t)s->layer * (size_t)m->experts + (size_t)i]++;
        }
    }
}

status moe_begin(struct moe *m, int slot, int layer, const float *h, const uint64_t *key, int rows, const struct routing *how,
                 struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    const struct moe_layer *y = &m->layers[layer];
    int n = y->experts, k = y->active;
    status code = OK;

    BUG_ON(m->rank != 0 || slot < 0 || slot >= EXCHANGE_SLOTS || s->busy);
    BUG_ON(layer < 0 || layer >= m->n_layers || rows < 0 || rows > m->limits.rows);
    s->layer = layer, s->rows = rows, s->h = h;
    if (n > 0) {
        switch (how->route) {
        case ROUTE_ALL:
        case ROUTE_STATIC:
            set_all(s->set, rows, n);
            break;
        case ROUTE_ROUTER:
            route_by_router(m, s, how->router);
            break;
        case ROUTE_RANDOM:
            route_random(s->set, key ? key : m->keys, rows, n, k, how->seed, layer);
            break;
        case ROUTE_PAPER:
            code = route_by_paper(m, slot, e);
            break;
        case ROUTE_GRAM:
            code = moe_teach_gram(m, slot, layer, h, rows, k, how->compensate, s->set, e);
            break;
        }
    }
    if (code) return code;
    bool plain = how->route == ROUTE_ALL || how->route == ROUTE_STATIC;

    s->route = how->route;
    s->scale = plain ? 1.0f : how->scale;
    s->compensate = !plain && how->compensate && y->mu_total;
    count(m, s);
    moe_dispatch(m, slot);
    s->busy = true;
    return OK;
}

status moe_end(struct moe *m, int slot, float *x, uint64_t *active, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];

    BUG_ON(slot < 0 || slot >= EXCHANGE_SLOTS || !s->busy);
    s->busy = false;
    if (active) {
        memcpy(active, s->set, (size_t)s->rows * (size_t)bits_words(m->layers[s->layer].experts) * sizeof(*active));
    }
    return moe_combine(m, slot, x, e);
}

static void post_static(struct moe *m, int slot, struct request *r)
{
    struct moe_slot *s = &m->slot[slot];

    r->kind = MOE_KIND_STATIC;
    for (int rank = 0; rank < m->ranks; rank++) {
        if (rank == m->rank || !moe_holds(m, s->layer, rank)) continue;
        s->sent[rank] = s->rows;
        m->stats.rows_out += (uint64_t)s->rows;
        exchange_post(m->exchange, slot, rank, r, s->h, (size_t)s->rows * (size_t)m->width * sizeof(float), NULL, 0);
    }
}

/* A rank gets the rows that have an active expert on it, their sets first (they are 8 bytes wide, rows may be 4 bytes off).  When
 * those are all rows nothing is copied. */
static void post_rows(struct moe *m, int slot, int rank, struct request *r)
{
    struct moe_slot *s = &m->slot[slot];
    int words = bits_words(m->layers[s->layer].experts), n = 0;
    const uint64_t *held = moe_held(m, s->layer, rank), *sets = s->set;
    const float *rows = s->h;
    size_t row_bytes = (size_t)m->width * sizeof(float), set_bytes = (size_t)words * sizeof(uint64_t);

    for (int t = 0; t < s->rows; t++) n += meet(s->set + (size_t)t * (size_t)words, held, words);
    if (n == 0) return;
    if (n < s->rows) {
        int at = 0;

        for (int t = 0; t < s->rows; t++) {
            const uint64_t *set = s->set + (size_t)t * (size_t)words;

            if (!meet(set, held, words)) continue;
            memcpy(s->set_out[rank] + (size_t)at * (size_t)words, set, set_bytes);
            memcpy(s->row_out[rank] + (size_t)at * (size_t)m->width, s->h + (size_t)t * (size_t)m->width, row_bytes);
            at++;
        }
        sets = s->set_out[rank], rows = s->row_out[rank];
    }
    r->rows = n;
    s->sent[rank] = n;
    m->stats.rows_out += (uint64_t)n;
    exchange_post(m->exchange, slot, rank, r, sets, (size_t)n * set_bytes, rows, (size_t)n * row_bytes);
}

void moe_progress(struct moe *m)
{
    if (m->exchange) exchange_progress(m->exchange);
}

void moe_dispatch(struct moe *m, int slot)
{
    struct moe_slot *s = &m->slot[slot];
    struct request r = {.kind = MOE_KIND_SUM,
                        .layer = s->layer,
                        .rows = s->rows,
                        .flags = s->compensate ? MOE_FLAG_COMPENSATE : 0,
                        .number = {(double)s->scale},
                        .what = "experts"};

    memset(s->sent, 0, (size_t)m->ranks * sizeof(*s->sent));
    if (s->rows == 0) return;
    if (s->route == ROUTE_STATIC) {
        post_static(m, slot, &r);
    } else {
        for (int rank = 0; rank < m->ranks; rank++) {
            if (rank != m->rank && moe_holds(m, s->layer, rank)) post_rows(m, slot, rank, &r);
        }
    }
    if (m->exchange) exchange_progress(m->exchange);
}

static bool add_row(double *sum, const double *part, int width)
{
    bool bad = false;

    for (int d = 0; d < width; d++) bad |= !(fabs(sum[d] += part[d]) < SUM_LIMIT);
    return bad;
}

static void add_answer(struct moe *m, const struct moe_slot *s, int slot, int rank)
{
    const void *payload = NULL;
    const struct answer *a = exchange_answer_of(m->exchange, slot, rank, &payload);
    const double *part = payload;
    int words = bits_words(m->layers[s->layer].experts), n = 0;
    size_t width = (size_t)m->width;

    BUG_ON(!a || a->rows != s->sent[rank] || a->bytes != (size_t)a->rows * width * sizeof(double));
    for (int t = 0; t < s->rows; t++) {
        bool here = s->route == ROUTE_STATIC || meet(s->set + (size_t)t * (size_t)words, moe_held(m, s->layer, rank), words);

        if (here && add_row(m->sum + (size_t)t * width, part + (size_t)n++ * width, m->width))
            moe_note_excess(m, m->sum + (size_t)t * width);
    }
    BUG_ON(n != a->rows);
}

static void work_here(struct moe *m, const struct moe_slot *s)
{
    const struct moe_layer *y = &m->layers[s->layer];
    bool fixed = s->route == ROUTE_STATIC;

    for (int t = 0; t < s->rows; t++) {
        double *row = m->sum + (size_t)t * (size_t)m->width;

        if (s->compensate) memcpy(row, y->mu_total, (size_t)m->width * sizeof(*row));
        else memset(row, 0, (size_t)m->width * sizeof(*row));
    }
    if (y->shared.down.lines) moe_work_expert(m, &y->shared, s->h, s->rows, fixed, m->sum);
    if (fixed) moe_work_static(m, s->layer, s->h, s->rows, m->sum);
    else moe_work_sum(m, s->layer, s->h, s->set, s->rows, s->scale, s->compensate, m->sum);
}

status moe_combine(struct moe *m, int slot, float *x, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    double start = clock_now(), before_wait;
    bool posted = false;
    status code = OK;

    if (m->exchange) exchange_ping(m->exchange); /* to ranks that hold nothing here */
    m->excess = 0;                               /* of sums that an error of another rank ended */
    work_here(m, s);
    before_wait = clock_now();
    m->stats.seconds_local += before_wait - start;
    for (int rank = 0; rank < m->ranks; rank++) posted = posted || s->sent[rank] > 0;
    if (posted) code = exchange_wait(m->exchange, slot, e);
    m->stats.seconds_wait += clock_now() - before_wait;
    if (code) return code;
    for (int rank = 0; rank < m->ranks; rank++) {
        if (s->sent[rank] > 0) add_answer(m, s, slot, rank);
    }
    if (moe_check_sums(m, s->layer, e)) {
        struct err ignored = {0};

        /* The caller leaves now, and will not wait for the other slots. */
        for (int other = 0; m->exchange && other < EXCHANGE_SLOTS; other++) exchange_wait(m->exchange, other, &ignored);
        return ignored.code == ERR_RANK ? (*e = ignored).code : e->code;
    }
    for (size_t i = 0; i < (size_t)s->rows * (size_t)m->width; i++) x[i] += (float)m->sum[i];
    return OK;
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
