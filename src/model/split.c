#include "model/split.h"

#include <string.h>

#include "model/model_internal.h"

/* ---- who has what ---- */

/* Rank `rank` of `ranks` has an equal share of n things. */
static struct span share_of(int n, int rank, int ranks)
{
    int first = (int)((int64_t)n * rank / ranks);

    return (struct span){first, (int)((int64_t)n * (rank + 1) / ranks) - first};
}

/* The same of n things that are parted after every `unit` of them alone. */
static struct span share_by(int n, int unit, int rank, int ranks)
{
    struct span s = share_of((n + unit - 1) / unit, rank, ranks);
    int end = (s.first + s.n) * unit;

    s.first *= unit;
    s.n = (end < n ? end : n) - s.first;
    return s;
}

struct split_part split_part(const struct shape *s, struct model_limits limits, int rank, int ranks)
{
    int unit = 1;

    if (!limits.split) {
        bool all = rank == 0 || rank < limits.coordinators;

        return all ? (struct split_part){{0, s->kv_heads}, {0, s->width}, {0, s->vocab}} : (struct split_part){0};
    }
    while (unit * s->head_dim % PANEL_LANES) unit++; /* a panel of K and V belongs to one rank, then one of Q, too */
    return (struct split_part){.heads = share_by(s->kv_heads, unit, rank, ranks),
                               .out = share_by(s->width, PANEL_LANES, rank, ranks),
                               .words = share_by(s->vocab, PANEL_LANES, rank, ranks)};
}

/* Columns of a result. */
static struct span columns(const struct model *m, enum split_kind kind, int rank)
{
    const struct shape *s = &m->shape;
    struct split_part p = split_part(s, m->limits, rank, m->ranks);
    int query = s->heads / s->kv_heads * s->head_dim;

    if (kind == SPLIT_ATTEND) return (struct span){p.heads.first * query, p.heads.n * query};
    return kind == SPLIT_OUT ? p.out : p.words;
}

static int inputs(const struct shape *s, enum split_kind kind)
{
    return kind == SPLIT_OUT ? s->heads * s->head_dim : s->width;
}

/* Where the rows of a request begin. */
static size_t rows_at(enum split_kind kind, int n)
{
    size_t bytes = kind == SPLIT_ATTEND ? 2 * (size_t)n * sizeof(int32_t) : 0;

    return (bytes + 63) / 64 * 64;
}

void split_limits(struct exchange_limits *x, const struct shape *s, struct model_limits limits, int ranks)
{
    struct model m = {.shape = *s, .limits = limits, .ranks = ranks};

    if (!limits.split) return;
    for (int kind = 0; kind < SPLIT_KINDS; kind++) {
        int n = kind == SPLIT_HEAD && limits.rows > SPLIT_HEAD_ROWS ? SPLIT_HEAD_ROWS : limits.rows;
        size_t request = rows_at(kind, n) + (size_t)n * (size_t)inputs(s, kind) * sizeof(float);

        for (int rank = 0; rank < ranks; rank++)
            exchange_raise(x, request, (size_t)n * (size_t)columns(&m, kind, rank).n * sizeof(float));
    }
}

void split_traffic(const struct shape *s, struct model_limits limits, int ranks, double *out, double *back)
{
    const struct model m = {.shape = *s, .limits = limits, .ranks = ranks};

    *out = *back = 0;
    for (int rank = 1; rank < ranks; rank++)
        for (int kind = SPLIT_ATTEND; kind <= SPLIT_OUT; kind++) {
            int n = columns(&m, kind, rank).n;

            if (n == 0) continue;
            *out += (double)inputs(s, kind) * sizeof(float) + (kind == SPLIT_ATTEND ? 2 * sizeof(int32_t) : 0);
            *back += (double)n * sizeof(float);
        }
}

/* ---- the coordinator ---- */

void split_ask(struct model *m, enum split_kind kind, int layer, int n, const int32_t *position, const int32_t *session,
               const float *x)
{
    static const char *const what[SPLIT_KINDS] = {"attention", "attention", "head"};
    enum timing_section was = timing_enter(m->timing, TIME_PACK);
    size_t cols = (size_t)inputs(&m->shape, kind), at = rows_at(kind, n), bytes = at + (size_t)n * cols * sizeof(float);
    struct request r = {.kind = SPLIT_KIND_FIRST + (int)kind, .layer = layer, .rows = n};

    strncpy(r.what, what[kind], sizeof(r.what) - 1);
    for (int rank = 1; rank < m->ranks && !m->failed.code && n > 0; rank++) {
        if (columns(m, kind, rank).n == 0) continue;
        char *room = exchange_room(m->exchange, 0, rank, bytes);

        if (kind == SPLIT_ATTEND) {
            memcpy(room, position, (size_t)n * sizeof(*position));
            memcpy(room + (size_t)n * sizeof(*position), session, (size_t)n * sizeof(*session));
        }
        memcpy(room + at, x, (size_t)n * cols * sizeof(float));
        exchange_post(m->exchange, 0, rank, &r, room, bytes, NULL, 0);
    }
    timing_enter(m->timing, was);
}

void split_take(struct model *m, enum split_kind kind, int n, float *to, size_t ld)
{
    enum timing_section was = timing_enter(m->timing, TIME_WAIT);

    if (!m->failed.code && n > 0) exchange_wait(m->exchange, 0, &m->failed);
    timing_enter(m->timing, TIME_COMBINE);
    for (int rank = 1; rank < m->ranks && !m->failed.code && n > 0; rank++) {
        struct span c = columns(m, kind, rank);
        size_t bytes = (size_t)c.n * sizeof(float);
        const void *payload = NULL;
        const struct answer *a = c.n ? exchange_answer_of(m->exchange, 0, rank, &payload) : NULL;

        if (c.n == 0) continue;
        BUG_ON(!a || a->rows != n || a->bytes != (size_t)n * bytes);
        for (int t = 0; t < n; t++) memcpy(to + (size_t)t * ld + c.first, (const char *)payload + (size_t)t * bytes, bytes);
    }
    timing_enter(m->timing, was);
}

/* ---- a follower ---- */

void split_answer(struct model *m, struct exchange *x, const struct request *r, const void *payload)
{
    enum split_kind kind = (enum split_kind)(r->kind - SPLIT_KIND_FIRST);
    int n = r->rows, cols = inputs(&m->shape, kind);
    size_t at = rows_at(kind, n), out = (size_t)columns(m, kind, m->rank).n;
    const float *rows = (const float *)(const void *)((const char *)payload + at);
    const int32_t *position = payload;
    float *room;

    BUG_ON(!m->limits.split || m->coordinator || n < 1 || n > m->limits.rows || r->layer >= m->shape.layers);
    BUG_ON(r->bytes != at + (size_t)n * (size_t)cols * sizeof(float));
    room = exchange_answer_room(x, (size_t)n * out * sizeof(float));
    enum timing_section was = timing_enter(m->timing, kind == SPLIT_HEAD ? TIME_HEAD : TIME_ATTENTION);
    struct rows in = forward_input(m, rows, cols, n, kind, r->layer);

    if (kind == SPLIT_ATTEND) forward_heads(m, r->layer, position, position + n, &in, room, out);
    else forward_part(m, kind, r->layer, &in, room, out);
    timing_enter(m->timing, was);
    exchange_answer(x, r, OK, n, room, (size_t)n * out * sizeof(float));
}
