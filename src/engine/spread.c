#include "engine/spread.h"

#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "model/router_file.h"

/* Rank 0 hears of a rank that was lost from every coordinator, and speaks for all; who has told it leaves it so long. */
static const double TURN_SECONDS = 2.5;

/* In front of the rows of FORWARD: keys u64, then tokens, positions and slots i32. */
struct forward_head {
    int32_t route, active, compensate, routed, micro_batches, keyed;
    float scale;
    int32_t pad;
    uint64_t seed, unused[3];
};

/* In front of a piece of a router. */
struct router_head {
    int32_t layers, experts, by_threshold, format; /* format: of the packed matrices, -1 none */
    uint64_t at, n, all; /* floats: of the piece, of all its parts (router_parts()) one behind the other */
    struct router_form form;
};

_Static_assert(sizeof(struct forward_head) == 64 && sizeof(struct router_head) == 64, "what is behind them is aligned");

enum { BYTES_OF_ROW = sizeof(uint64_t) + 3 * sizeof(int32_t), ROUTER_PIECE = 1 << 18, LOGITS_ROWS = 32 /* at once */ };

/* ---- open and close ---- */

/* Rows of which a coordinator gives the logits in one request. */
static int logits_rows(int rows)
{
    return rows < LOGITS_ROWS ? rows : LOGITS_ROWS;
}

void spread_limits(struct exchange_limits *x, int rows, int width, int vocab)
{
    size_t state = (size_t)width * sizeof(float), some = (size_t)logits_rows(rows);

    exchange_raise(x, sizeof(struct forward_head) + (size_t)rows * BYTES_OF_ROW, (size_t)rows * state);
    exchange_raise(x, some * state, some * (size_t)vocab * sizeof(float)); /* logits */
    exchange_raise(x, sizeof(struct router_head) + ROUTER_PIECE, 0);
}

static void take(struct spread *s, struct arena_taker *t, int rows, int width)
{
    size_t n = (size_t)rows;

    s->token = arena_take(t, n, sizeof(*s->token));
    s->position = arena_take(t, n, sizeof(*s->position));
    s->session = arena_take(t, n, sizeof(*s->session));
    s->key = arena_take(t, n, sizeof(*s->key));
    s->at = arena_take(t, n, sizeof(*s->at));
    s->hidden = arena_take(t, n * (size_t)width, sizeof(*s->hidden));
}

size_t spread_cost(int rank, int rows, int width)
{
    struct arena_taker t = {0};
    struct spread s;

    if (rank == 0) take(&s, &t, rows, width);
    return t.bytes;
}

status spread_open(struct spread *s, struct comm *c, int coordinators, struct exchange_limits limits, struct exchange *first,
                   int rows, int width, struct gemm *g, struct arena *a, struct err *e)
{
    struct arena_taker t = {.arena = a, .e = e};
    int rank = comm_rank(c);

    BUG_ON(coordinators < 2 || coordinators > SPREAD_MAX || coordinators > comm_size(c));
    *s = (struct spread){.coordinators = coordinators, .rank = rank, .gemm = g, .deadline = limits.deadline, .channel = {first}};
    if (rank == 0) take(s, &t, rows, width);
    if (t.failed) return e->code;
    for (int q = 1; q < coordinators; q++) {
        limits.asker = limits.channel = q;
        if (exchange_open(&s->channel[q], c, limits, a, e)) return e->code;
    }
    limits.asker = 0, limits.channel = limits.ranks = coordinators;
    if (rank < coordinators && exchange_open(&s->work, c, limits, a, e)) return e->code;
    for (int q = 0; q < coordinators; q++)
        if (q != rank) s->others[s->n_others++] = s->all[s->n_all++] = s->channel[q];
    if (rank > 0 && s->work) s->all[s->n_all++] = s->work;
    return OK;
}

void spread_close(struct spread *s)
{
    for (int q = 1; q < s->coordinators; q++) exchange_close(s->channel[q]);
    exchange_close(s->work);
    router_free(&s->router);
    *s = (struct spread){0};
}

struct exchange *spread_own(const struct spread *s)
{
    return s->channel[s->rank < s->coordinators ? s->rank : 0];
}

/* Somebody asks for experts while this rank waits.  Or rank 0 asks for something else: then it has given up the pass we are in. */
static bool serve(void *ctx, int which, const struct request *r, const void *payload)
{
    struct spread *s = ctx;

    if (r->kind >= MOE_KIND_FIRST && r->kind <= MOE_KIND_LAST) {
        moe_answer(model_moe(s->model), s->others[which], r, payload);
        return true;
    }
    BUG_ON(s->rank == 0 || which != 0 || s->kept);
    s->kept = true;
    s->request = *r;
    s->payload = payload;
    return false;
}

bool spread_kept(struct spread *s, struct request *r, const void **payload)
{
    if (!s->kept) return false;
    *r = s->request;
    *payload = s->payload;
    s->kept = false;
    return true;
}

void spread_begin(struct spread *s, struct model *m)
{
    s->model = m;
    if (s->rank >= s->coordinators) return;
    if (s->rank == 0) {
        exchange_serve(s->work, s->others, s->n_others, serve, s);
        exchange_keep_alive(s->work, s->channel[0]);
        exchange_move_along(s->channel[0], s->work);
    }
    exchange_serve(spread_own(s), s->others, s->n_others, serve, s);
}

void spread_traffic(const struct spread *s, struct exchange_stats *to)
{
    const struct exchange *own = s->rank > 0 && s->rank < s->coordinators ? spread_own(s) : NULL;

    if (own) exchange_stats_add(to, exchange_stats(own));
    if (s->work) exchange_stats_add(to, exchange_stats(s->work));
}

/* ---- rank 0 ---- */

static void post(struct spread *s, int rank, int kind, int rows, const char *what, void *room, size_t bytes)
{
    struct request r = {.kind = kind, .layer = -1, .rows = rows};

    strncpy(r.what, what, sizeof(r.what) - 1);
    /* Inside it every layer has a deadline of its own. */
    r.deadline = s->deadline * (model_shape(s->model)->layers + 1);
    exchange_post(s->work, 0, rank, &r, room, bytes, NULL, 0);
}

static uint64_t part_floats(const struct router *r, const struct router_part *p)
{
    return (uint64_t)r->layers * p->rows * p->cols;
}

/* The floats of a router one behind the other: copies n of them from `at`, or into it. */
static void move_floats(struct router *r, uint64_t at, uint64_t n, float *out, const float *in)
{
    struct router_part part[ROUTER_PARTS];
    int parts = router_parts(r, part);

    for (int i = 0; i < parts; i++) {
        uint64_t size = part_floats(r, &part[i]), begin = at < size ? at : size, end = at + n < size ? at + n : size;

        if (end > begin) {
            size_t bytes = (size_t)(end - begin) * sizeof(float);
            float *x = *part[i].where + begin;

            if (out) memcpy(out, x, bytes), out += end - begin;
            else memcpy(x, in, bytes), in += end - begin;
        }
        at = at > size ? at - size : 0;
        n -= end - begin;
    }
}

status spread_router(struct spread *s, const struct router *r, struct err *e)
{
    uint64_t most = ROUTER_PIECE / sizeof(float), all = 0;
    struct router_part part[ROUTER_PARTS];
    struct router from;
    status st = OK;

    if (!r) return OK;
    from = *r;
    for (int i = 0, parts = router_parts(&from, part); i < parts; i++) all += part_floats(r, &part[i]);
    for (uint64_t at = 0; at < all && !st; at += most) {
        uint64_t n = all - at < most ? all - at : most;
        size_t bytes = sizeof(struct router_head) + (size_t)n * sizeof(float);

        for (int rank = 1; rank < s->coordinators; rank++) {
            struct router_head *head = exchange_room(s->work, 0, rank, bytes);

            *head = (struct router_head){.layers = r->layers,
                                         .experts = r->experts,
                                         .by_threshold = r->by_threshold,
                                         .format = r->packed ? (int32_t)r->packed[0].format : -1,
                                         .at = at,
                                         .n = n,
                                         .all = all,
                                         .form = router_form_of(r)};
            move_floats(&from, at, n, (float *)(head + 1), NULL);
            post(s, rank, SPREAD_KIND_ROUTER, 0, "router", head, bytes);
        }
        st = exchange_wait(s->work, 0, e);
    }
    return st;
}

/* Lists the rows of every coordinator in s->at, and where they begin. */
static void deal(struct spread *s, const struct batch *b, int begin[SPREAD_MAX + 1])
{
    int n = 0;

    for (int q = 0; q < s->coordinators; q++) {
        begin[q] = n;
        for (int t = 0; t < b->rows; t++)
            if (b->session[t] % s->coordinators == q) s->at[n++] = t;
    }
    begin[s->coordinators] = n;
}

static void copy_rows(const struct spread *s, const struct batch *b, const int *at, int n, int32_t *token, int32_t *position,
                      int32_t *session, uint64_t *key)
{
    for (int i = 0; i < n; i++) {
        token[i] = b->token[at[i]];
        position[i] = b->position[at[i]];
        session[i] = b->session[at[i]] / s->coordinators;
        if (b->key) key[i] = b->key[at[i]];
    }
}

static void post_rows(struct spread *s, int rank, const struct batch *b, const int *at, int n, const struct routing *how,
                      int micro_batches)
{
    size_t bytes = sizeof(struct forward_head) + (size_t)n * BYTES_OF_ROW;
    struct forward_head *head = exchange_room(s->work, 0, rank, bytes);
    uint64_t *key = (uint64_t *)(head + 1);
    int32_t *token = (int32_t *)(key + n);

    *head = (struct forward_head){.route = how->route,
                                  .active = how->active,
                                  .compensate = how->compensate,
                                  .routed = how->router != NULL,
                                  .micro_batches = micro_batches,
                                  .keyed = b->key != NULL,
                                  .scale = how->scale,
                                  .seed = how->seed};
    copy_rows(s, b, at, n, token, token + n, token + 2 * n, key);
    post(s, rank, SPREAD_KIND_FORWARD, n, "forward", head, bytes);
}

static void put_back(const struct spread *s, float *hidden, const float *from, const int *at, int n)
{
    size_t width = (size_t)model_shape(s->model)->width;

    for (int i = 0; i < n; i++) memcpy(hidden + (size_t)at[i] * width, from + (size_t)i * width, width * sizeof(float));
}

status spread_forward(struct spread *s, const struct batch *b, const struct routing *how, int micro_batches, float *hidden,
                      struct err *e)
{
    int begin[SPREAD_MAX + 1];
    struct err theirs = {0};
    status st = OK;

    BUG_ON(b->rows > model_limits_of(s->model)->rows || how->batch_experts > 0); /* each sees its own rows alone */
    deal(s, b, begin);
    for (int rank = 1; rank < s->coordinators; rank++) {
        int n = begin[rank + 1] - begin[rank];

        if (n > 0) post_rows(s, rank, b, s->at + begin[rank], n, how, micro_batches);
    }
    struct batch own = {
        .rows = begin[1], .token = s->token, .position = s->position, .session = s->session, .key = b->key ? s->key : NULL};
    copy_rows(s, b, s->at, own.rows, s->token, s->position, s->session, s->key);
    if (own.rows > 0) st = forward(s->model, &own, how, micro_batches, s->hidden, e);
    if (st == ERR_RANK) return st;
    /* The others may still need experts of this rank, also after an error here. */
    if (exchange_wait(s->work, 0, &theirs) && (!st || theirs.code == ERR_RANK)) *e = theirs, st = theirs.code;
    if (st) return st;
    put_back(s, hidden, s->hidden, s->at, own.rows);
    for (int rank = 1; rank < s->coordinators; rank++) {
        const void *rows = NULL;

        if (exchange_answer_of(s->work, 0, rank, &rows))
            put_back(s, hidden, rows, s->at + begin[rank], begin[rank + 1] - begin[rank]);
    }
    return OK;
}

/* Rows to one coordinator after the other; a share is so small that what it answers fits. */
status spread_logits(struct spread *s, const float *hidden, int n, float *logits, struct err *e)
{
    size_t D = (size_t)model_shape(s->model)->width, V = (size_t)model_shape(s->model)->vocab;
    int C = s->coordinators, most = logits_rows(model_limits_of(s->model)->rows) * C;
    status st = OK;

    for (int first = 0, some; first < n && !st; first += some) {
        int begin[SPREAD_MAX + 1];

        some = n - first < most ? n - first : most;
        for (int q = 0; q <= C; q++) begin[q] = first + some * q / C;
        for (int rank = 1; rank < C; rank++) {
            size_t rows = (size_t)(begin[rank + 1] - begin[rank]), bytes = rows * D * sizeof(float);
            float *room = rows ? exchange_room(s->work, 0, rank, bytes) : NULL;

            if (!rows) continue;
            memcpy(room, hidden + (size_t)begin[rank] * D, bytes);
            post(s, rank, SPREAD_KIND_LOGITS, (int)rows, "head", room, bytes);
        }
        forward_logits(s->model, hidden + (size_t)first * D, begin[1] - first, logits + (size_t)first * V);
        st = exchange_wait(s->work, 0, e);
        for (int rank = 1; rank < C && !st; rank++) {
            const void *rows = NULL;
            const struct answer *a = begin[rank + 1] > begin[rank] ? exchange_answer_of(s->work, 0, rank, &rows) : NULL;

            if (a) memcpy(logits + (size_t)begin[rank] * V, rows, (size_t)a->bytes);
        }
    }
    return st;
}

/* ---- the other coordinators ---- */

static status take_router(struct spread *s, const struct router_head *head, struct err *e)
{
    struct router *r = &s->router;
    status st = OK;

    if (head->at == 0) {
        router_free(r);
        st = router_alloc_form(r, model_shape(s->model), &head->form, e);
    }
    if (st) return st;
    BUG_ON(head->layers != r->layers || head->experts != r->experts);
    r->by_threshold = head->by_threshold;
    move_floats(r, head->at, head->n, NULL, (const float *)(head + 1));
    if (head->at + head->n < head->all) return OK;
    if (head->format >= 0) st = router_pack(r, (enum format)head->format, s->gemm, e);
    return st ? st : moe_select_here(model_moe(s->model), r, e);
}

static status run(struct spread *s, const struct request *r, const struct forward_head *head, float *hidden, struct err *e)
{
    const uint64_t *key = (const uint64_t *)(head + 1);
    const int32_t *token = (const int32_t *)(key + r->rows);
    struct routing how = {.route = (enum route)head->route,
                          .router = head->routed ? &s->router : NULL,
                          .active = head->active,
                          .scale = head->scale,
                          .compensate = head->compensate,
                          .seed = head->seed};
    struct batch b = {.rows = r->rows,
                      .token = token,
                      .position = token + r->rows,
                      .session = token + 2 * r->rows,
                      .key = head->keyed ? key : NULL};

    return forward(s->model, &b, &how, head->micro_batches, hidden, e);
}

status spread_answer(struct spread *s, const struct request *r, const void *payload, struct err *e)
{
    const struct shape *shape = model_shape(s->model);
    size_t bytes = (size_t)r->rows * (size_t)(r->kind == SPREAD_KIND_LOGITS ? shape->vocab : shape->width) * sizeof(float);
    float *room = NULL;
    struct err mine = {0};
    status st;

    if (r->kind == SPREAD_KIND_ROUTER) {
        st = take_router(s, payload, &mine);
        bytes = 0;
    } else if (r->kind == SPREAD_KIND_LOGITS) {
        room = exchange_answer_room(s->work, bytes);
        forward_logits(s->model, payload, r->rows, room);
        st = OK;
    } else {
        room = exchange_answer_room(s->work, bytes);
        st = run(s, r, payload, room, &mine);
    }
    exchange_answer(s->work, r, st, r->rows, st ? (const void *)mine.text : room, st ? strlen(mine.text) + 1 : bytes);
    if (st != ERR_RANK) return OK; /* rank 0 says it */
    /* of itself it says nothing */
    bool rank_0 = exchange_lost(spread_own(s)) == 0;

    for (double start = clock_now(); !rank_0 && clock_now() - start < TURN_SECONDS; clock_sleep(0.05))
        if (stop_asked() == STOP_NOW) return err_set(e, STOPPED, "rank 0 ended the job");
    *e = mine;
    return ERR_RANK;
}
