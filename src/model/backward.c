#include "model/backward.h"

#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"
#include "num/backward.h"
#include "num/ops.h"

enum { ROWS_OF_TASK = 8 };

struct backward {
    struct model *m;
    struct arena *arena;
    float *dnormed;       /* [rows][D] */
    float *kept;          /* [layers][rows][queries, keys, values], turned to their positions */
    int *kept_rows;       /* [layers] */
    float *dqkv;          /* [rows][queries, keys, values] */
    float *dmixed;        /* [rows][queries] */
    struct tile *windows; /* [rows] */
    char *room;           /* [threads][room_bytes] for the attention of a window */
    size_t room_bytes;
};

static size_t query_width(const struct shape *s)
{
    return (size_t)s->heads * (size_t)s->head_dim;
}

static size_t kv_width(const struct shape *s)
{
    return (size_t)s->kv_heads * (size_t)s->head_dim;
}

static size_t qkv_width(const struct shape *s)
{
    return query_width(s) + 2 * kv_width(s);
}

static void take(struct backward *b, struct arena_taker *t, const struct shape *s, struct model_limits limits, int threads)
{
    size_t rows = (size_t)limits.rows, width = (size_t)s->width;
    int window = limits.rows < limits.positions ? limits.rows : limits.positions;

    b->room_bytes = (attend_backward_bytes(window, s->head_dim) + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    b->dnormed = arena_take(t, rows * width, sizeof(float));
    b->kept = arena_take(t, (size_t)s->layers * rows * qkv_width(s), sizeof(float));
    b->kept_rows = arena_take(t, (size_t)s->layers, sizeof(*b->kept_rows));
    b->dqkv = arena_take(t, rows * qkv_width(s), sizeof(float));
    b->dmixed = arena_take(t, rows * query_width(s), sizeof(float));
    b->windows = arena_take(t, rows, sizeof(*b->windows));
    b->room = arena_take(t, (size_t)threads * b->room_bytes, 1);
}

size_t backward_cost(const struct shape *s, struct model_limits limits, int threads)
{
    struct arena_taker t = {0};
    struct backward b;

    take(&b, &t, s, limits, threads);
    return t.bytes;
}

status backward_open(struct backward **out, struct model *m, struct err *e)
{
    struct backward *b = calloc(1, sizeof(*b));
    struct arena_taker t = {.e = e};
    int threads = threads_count(gemm_threads(m->gemm));

    *out = NULL;
    BUG_ON(!m->coordinator || !m->limits.train);
    if (!b) return err_set(e, ERR_LIMIT, "out of memory for the backward pass");
    b->m = m;
    if (arena_open(&b->arena, "backward pass", backward_cost(&m->shape, m->limits, threads), e)) {
        free(b);
        return e->code;
    }
    t.arena = b->arena;
    take(b, &t, &m->shape, m->limits, threads);
    if (t.failed) {
        backward_close(b);
        return e->code;
    }
    arena_freeze(b->arena);
    *out = b;
    return OK;
}

void backward_close(struct backward *b)
{
    if (!b) return;
    arena_close(b->arena);
    free(b);
}

/* ---- norms, eight rows a task ---- */

struct norm { /* out = norm(x), or, with dy, out += dy back through it */
    const float *x, *dy, *weight;
    float *out;
    float eps;
    int rows, width;
};

static void norm_task(void *ctx, int i, int worker)
{
    const struct norm *n = ctx;
    size_t at = (size_t)i * ROWS_OF_TASK * (size_t)n->width;
    int rows = n->rows - i * ROWS_OF_TASK < ROWS_OF_TASK ? n->rows - i * ROWS_OF_TASK : ROWS_OF_TASK;

    (void)worker;
    if (n->dy) rms_norm_backward(n->out + at, n->dy + at, n->x + at, n->weight, rows, n->width, n->eps);
    else rms_norm(n->out + at, n->x + at, n->weight, rows, n->width, n->eps);
}

static void norm(struct backward *b, float *out, const float *x, const float *dy, const float *weight, int rows)
{
    const struct shape *s = &b->m->shape;
    struct norm n = {.x = x, .dy = dy, .weight = weight, .out = out, .eps = s->eps, .rows = rows, .width = s->width};

    gemm_parallel(b->m->gemm, (rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, norm_task, &n);
}

void backward_norm(struct backward *b, const float *dhidden, const float *x, int rows, float *dx)
{
    memset(dx, 0, (size_t)rows * (size_t)b->m->shape.width * sizeof(*dx));
    norm(b, dx, x, dhidden, b->m->final_norm, rows);
}

void backward_ffn_input(struct backward *b, int layer, const float *middle, int rows, float *h)
{
    norm(b, h, middle, NULL, b->m->blocks[layer].ffn_norm, rows);
}

void backward_ffn_norm(struct backward *b, int layer, const float *dh, const float *middle, int rows, float *dx)
{
    norm(b, dx, middle, dh, b->m->blocks[layer].ffn_norm, rows);
}

/* ---- products ---- */

static void product(struct backward *b, float *out, const float *dy, int rows, const struct packed *w)
{
    const struct rows x = {.x = dy, .ld = (size_t)w->cols, .n = rows, .cols = w->cols};

    gemm_product(b->m->gemm, out, (size_t)w->rows, &x, w, NULL);
}

void backward_logits(struct backward *b, const float *dlogits, int n, float *dhidden)
{
    product(b, dhidden, dlogits, n, &b->m->head_t);
}

/* ---- attention ---- */

struct attention {
    struct backward *b;
    int layer, windows;
};

static float *kept_of(const struct backward *b, int layer)
{
    return b->kept + (size_t)layer * (size_t)b->m->limits.rows * qkv_width(&b->m->shape);
}

struct keeping {
    struct backward *b;
    int layer, rows;
};

static void keep_task(void *ctx, int item, int worker)
{
    const struct keeping *k = ctx;
    const struct model *m = k->b->m;
    size_t q = query_width(&m->shape), kv = kv_width(&m->shape);
    int end = (item + 1) * ROWS_OF_TASK < k->rows ? (item + 1) * ROWS_OF_TASK : k->rows;

    (void)worker;
    for (int t = item * ROWS_OF_TASK; t < end; t++) {
        float *to = kept_of(k->b, k->layer) + (size_t)t * (q + 2 * kv);

        memcpy(to, m->q + (size_t)t * q, q * sizeof(*to));
        memcpy(to + q, m->k + (size_t)t * kv, kv * sizeof(*to));
        memcpy(to + q + kv, m->v + (size_t)t * kv, kv * sizeof(*to));
    }
}

void backward_keep(struct backward *b, int layer, int rows)
{
    BUG_ON(rows > b->m->limits.rows);
    b->kept_rows[layer] = rows;
    gemm_parallel(b->m->gemm, (rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, keep_task, &(struct keeping){b, layer, rows});
}

/* A window and a KV head. */
static void window_task(void *ctx, int item, int worker)
{
    const struct attention *a = ctx;
    struct backward *b = a->b;
    const struct shape *s = &b->m->shape;
    struct tile window = b->windows[item / s->kv_heads];
    int head = item % s->kv_heads, group = s->heads / s->kv_heads;
    size_t q = query_width(s), kv = kv_width(s), ld = qkv_width(s), d = (size_t)s->head_dim, row = (size_t)window.first;
    size_t of_q = (size_t)(head * group) * d, at = row * ld + of_q, at_k = row * ld + q + (size_t)head * d;

    const float *qkv = kept_of(b, a->layer);

    attend_backward(&(struct attend_backward){.kernel = gemm_kernel(b->m->gemm),
                                              .rows = window.rows,
                                              .heads = group,
                                              .head_dim = s->head_dim,
                                              .q = qkv + at,
                                              .k = qkv + at_k,
                                              .v = qkv + at_k + kv,
                                              .dout = b->dmixed + row * q + of_q,
                                              .ldq = ld,
                                              .ldk = ld,
                                              .ldout = q,
                                              .dq = b->dqkv + at,
                                              .dk = b->dqkv + at_k,
                                              .dv = b->dqkv + at_k + kv,
                                              .lddq = ld,
                                              .lddk = ld},
                    gemm_scratch(b->m->gemm, worker), b->room + (size_t)worker * b->room_bytes);
}

struct turning {
    struct backward *b;
    const struct batch *batch;
};

/* Queries and keys of a row stand together, so they turn back together. */
static void turn_task(void *ctx, int item, int worker)
{
    const struct turning *r = ctx;
    const struct shape *s = &r->b->m->shape;
    int rows = r->batch->rows, end = (item + 1) * ROWS_OF_TASK < rows ? (item + 1) * ROWS_OF_TASK : rows;

    (void)worker;
    for (int t = item * ROWS_OF_TASK; t < end; t++)
        rope_backward(r->b->dqkv + (size_t)t * qkv_width(s), r->batch->position + t, 1, s->heads + s->kv_heads, s->head_dim,
                      r->b->m->rope);
}

static int cut_windows(struct backward *b, const struct batch *batch)
{
    int n = 0;

    for (int t = 0, end; t < batch->rows; t = end, n++) {
        BUG_ON(batch->position[t] != 0);
        for (end = t + 1; end < batch->rows && batch->session[end] == batch->session[t];) end++;
        b->windows[n] = (struct tile){t, end - t};
    }
    return n;
}

void backward_attention(struct backward *b, int layer, const struct batch *batch, const float *x, float *dx)
{
    struct model *m = b->m;
    const struct block *y = &m->blocks[layer];
    struct attention a = {.b = b, .layer = layer, .windows = cut_windows(b, batch)};

    BUG_ON(batch->rows > m->limits.rows || b->kept_rows[layer] != batch->rows);
    product(b, b->dmixed, dx, batch->rows, &y->o_t);
    moe_progress(m->moe);
    gemm_parallel(m->gemm, a.windows * m->shape.kv_heads, window_task, &a);
    moe_progress(m->moe);
    gemm_parallel(m->gemm, (batch->rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, turn_task, &(struct turning){b, batch});
    product(b, b->dnormed, b->dqkv, batch->rows, &y->qkv_t);
    norm(b, dx, x, b->dnormed, y->attention_norm, batch->rows);
}

const float *backward_attention_normed(const struct backward *b)
{
    return b->dnormed;
}
