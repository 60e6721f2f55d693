#include "model/forward.h"

#include <string.h>

#include "model/model_internal.h"
#include "model/split.h"
#include "num/ops.h"
#include "num/widen.h"

/* A half of a batch reads all weights of attention, and of the experts it shares with the other, once more; below some tens of rows reading is what takes the
 * time, and the wait that two halves hide is shorter than that. */
enum { CUT_FROM_ROWS = 64 };

/* ---- memory ---- */

/* Of all heads, and of those that this rank has. */
static size_t mixed_width(const struct shape *s)
{
    return (size_t)s->heads * (size_t)s->head_dim;
}

static int group_of(const struct shape *s)
{
    return s->heads / s->kv_heads;
}

static size_t kv_width(const struct model *m)
{
    return (size_t)m->part.heads.n * (size_t)m->shape.head_dim;
}

static size_t query_width(const struct model *m)
{
    return kv_width(m) * (size_t)group_of(&m->shape);
}

void forward_take_cache(struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;

    if (m->part.heads.n == 0) return;
    m->kv = (struct kvcache){.format = m->limits.kv,
                             .layers = s->layers,
                             .sessions = model_share(m->limits.sessions, m->limits.coordinators),
                             .positions = m->limits.positions,
                             .heads = m->part.heads.n,
                             .head_dim = s->head_dim};
    m->kv.memory = arena_take(t, kvcache_bytes(&m->kv), 1);
}

void forward_take_work(struct model *m, struct arena_taker *t)
{
    const struct shape *s = &m->shape;
    size_t rows = (size_t)m->limits.rows, width = (size_t)s->width, q = query_width(m), kv = kv_width(m), all = mixed_width(s);

    if (!m->coordinator && !m->limits.split) return;
    m->rope = arena_take(t, (size_t)m->limits.positions * (size_t)s->head_dim, sizeof(float));
    if (m->coordinator) {
        m->x = arena_take(t, rows * width, sizeof(float));
        m->h = arena_take(t, rows * width, sizeof(float));
        m->mixed = arena_take(t, rows * all, sizeof(float));
        m->asked.key = arena_take(t, rows, sizeof(*m->asked.key));
        m->asked.position = arena_take(t, rows, sizeof(*m->asked.position));
        m->asked.session = arena_take(t, rows, sizeof(*m->asked.session));
    }
    m->q = arena_take(t, rows * q, sizeof(float));
    m->k = arena_take(t, rows * kv, sizeof(float));
    m->v = arena_take(t, rows * kv, sizeof(float));
    m->tiles = arena_take(t, rows, sizeof(*m->tiles));
    m->quantized = arena_take(t, rows_bytes(m->limits.rows, (int)(width > all ? width : all)), 1);
}

/* ---- rows, shared out to threads ---- */

enum { ROWS_OF_TASK = 8 }; /* and no more rows than that are not shared out: waking the others takes longer */

static void share_rows(struct model *m, int rows, void (*task)(void *ctx, int i, int worker), void *ctx)
{
    int n = (rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK;

    if (n > 1) gemm_parallel(m->gemm, n, task, ctx);
    else if (n > 0) task(ctx, 0, 0);
}

static int rows_of_task(int i, int rows)
{
    return rows - i * ROWS_OF_TASK < ROWS_OF_TASK ? rows - i * ROWS_OF_TASK : ROWS_OF_TASK;
}

/* Rows of x for products with weights of this format. */
static struct rows input(struct model *m, const float *x, int cols, int n, enum format f)
{
    struct rows r = {.x = x, .ld = (size_t)cols, .n = n, .cols = cols};

    gemm_rows(m->gemm, &r, f, m->quantized);
    return r;
}

struct norm { /* out = norm(x), quantized or rounded too if `in` is to be; with `add`, which is x then, x += out first */
    const float *x;
    float *add, *out;
    const float *weight;
    float eps;
    struct rows *in; /* of out, or NULL */
    int rows, width;
};

static void norm_task(void *ctx, int i, int worker)
{
    const struct norm *n = ctx;
    size_t at = (size_t)i * ROWS_OF_TASK * (size_t)n->width;
    int rows = rows_of_task(i, n->rows);

    (void)worker;
    if (n->add) add_to(n->add + at, n->out + at, (size_t)rows * (size_t)n->width);
    rms_norm(n->out + at, n->x + at, n->weight, rows, n->width, n->eps);
    if (n->in && rows_wait(n->in)) rows_quantize(n->in, i * ROWS_OF_TASK, rows);
}

static void count_product(struct model *m, int rows, const struct packed *w)
{
    if (rows == 0) return; /* then nothing was read */
    timing_product(m->timing,
                   (double)(packed_line_bytes(w->format, w->rows, w->cols) + packed_scale_bytes(w->format, w->rows, w->cols)),
                   rows, w->rows, w->cols);
}

/* ---- attention ---- */

struct attention { /* of some rows in one layer, over the heads of this rank */
    struct model *m;
    const int32_t *position, *session;
    float *mixed; /* rows at mixed + t * ld */
    size_t ld;
    int layer, rows;
    /* Work is cut into tiles of rows of one session by parts of the query heads of a KV head. */
    int tiles, parts, heads_each;
};

/* Turns queries to their positions. */
static void queries_task(void *ctx, int i, int worker)
{
    const struct attention *a = ctx;
    struct model *m = a->m;
    const struct shape *s = &m->shape;
    int from = i * ROWS_OF_TASK;

    (void)worker;
    rope_apply(m->q + (size_t)from * query_width(m), a->position + from, rows_of_task(i, a->rows), m->part.heads.n * group_of(s),
               s->head_dim, m->rope);
}

/* Turns keys to their positions; keys and values go into the cache. */
static void keys_task(void *ctx, int i, int worker)
{
    const struct attention *a = ctx;
    struct model *m = a->m;
    const struct shape *s = &m->shape;
    int from = i * ROWS_OF_TASK, rows = rows_of_task(i, a->rows);
    size_t kv = kv_width(m);
    int heads = m->part.heads.n;
    const int32_t *position = a->position + from;

    (void)worker;
    rope_apply(m->k + (size_t)from * kv, position, rows, heads, s->head_dim, m->rope);
    for (int t = 0; t < rows; t++)
        for (int h = 0; h < heads; h++) {
            struct kv_head head = kvcache_head(&m->kv, a->layer, a->session[from + t], h);
            size_t at = (size_t)(from + t) * kv + (size_t)h * (size_t)s->head_dim;

            BUG_ON(position[t] < 0 || position[t] >= m->limits.positions);
            kv_write(&head, position[t], m->k + at, m->v + at);
        }
}

static void queries_and_keys_task(void *ctx, int i, int worker)
{
    queries_task(ctx, i, worker);
    keys_task(ctx, i, worker);
}

/* Runs of rows of one session, so many that they fill an attend() with their heads; the heads of a KV head are parted when there would be fewer tasks than
 * threads.  How work is cut changes no bit. */
static void cut_attention(struct attention *a)
{
    const struct shape *s = &a->m->shape;
    const int32_t *session = a->session;
    int group = group_of(s), threads = threads_count(gemm_threads(a->m->gemm)), most;

    a->heads_each = group < ATTEND_ROWS ? group : ATTEND_ROWS;
    most = ATTEND_ROWS / a->heads_each;
    a->tiles = 0;
    for (int t = 0, end; t < a->rows; t = end) {
        for (end = t + 1; end < a->rows && end - t < most && session[end] == session[t];) end++;
        a->m->tiles[a->tiles++] = (struct tile){t, end - t};
    }
    a->parts = (group + a->heads_each - 1) / a->heads_each;
    while (a->tiles * a->m->part.heads.n * a->parts < threads && a->heads_each > 1) {
        a->heads_each = (a->heads_each + 1) / 2;
        a->parts = (group + a->heads_each - 1) / a->heads_each;
    }
}

static void attend_task(void *ctx, int i, int worker)
{
    const struct attention *a = ctx;
    struct model *m = a->m;
    const struct shape *s = &m->shape;
    struct tile tile = m->tiles[a->tiles - 1 - i % a->tiles]; /* the last see most: they come first */
    int kv = i / a->tiles / a->parts, group = group_of(s), begin = i / a->tiles % a->parts * a->heads_each;
    int heads = group - begin < a->heads_each ? group - begin : a->heads_each, row = tile.first;
    struct kv_head head = kvcache_head(&m->kv, a->layer, a->session[row], kv);
    size_t width = query_width(m), at = (size_t)(kv * group + begin) * (size_t)s->head_dim;

    attend(&(struct attend){.kernel = gemm_kernel(m->gemm),
                            .kv = &head,
                            .q = m->q + (size_t)tile.first * width + at,
                            .out = a->mixed + (size_t)tile.first * a->ld + at,
                            .ldq = width,
                            .ldo = a->ld,
                            .position = a->position + row,
                            .rows = tile.rows,
                            .heads = heads},
           gemm_scratch(m->gemm, worker), gemm_room(m->gemm, worker));
}

static void count_attention(const struct attention *a)
{
    struct model *m = a->m;
    const struct block *y = &m->blocks[a->layer];
    const struct shape *s = &m->shape;
    int heads = m->part.heads.n;
    double bytes = 0.0, seen = 0.0;

    if (!m->timing) return;
    for (int i = 0; i < a->tiles; i++) {
        const struct tile *t = &m->tiles[i];

        bytes += (double)kv_head_bytes(m->kv.format, a->position[t->first + t->rows - 1] + 1, s->head_dim) * heads;
    }
    for (int t = 0; t < a->rows; t++) seen += a->position[t] + 1;
    timing_work(m->timing, bytes, 4.0 * seen * heads * group_of(s) * s->head_dim);
    count_product(m, a->rows, &y->q);
}

static const float *part_of_bias(const float *bias, size_t first)
{
    return bias ? bias + first : NULL;
}

/* Queries, which are there, meet the cache. */
static void attend_all(struct attention *a)
{
    struct model *m = a->m;

    cut_attention(a);
    gemm_parallel(m->gemm, a->tiles * m->part.heads.n * a->parts, attend_task, a);
    count_attention(a);
}

void forward_heads(struct model *m, int layer, const int32_t *position, const int32_t *session, const struct rows *normed,
                   float *mixed, size_t ld)
{
    const struct block *y = &m->blocks[layer];
    size_t Q = query_width(m), KV = kv_width(m), first = (size_t)m->part.heads.first * (size_t)m->shape.head_dim;
    struct attention a = {
        .m = m, .position = position, .session = session, .mixed = mixed, .ld = ld, .layer = layer, .rows = normed->n};

    if (KV == 0) return;
    gemm_products(m->gemm, 3, (float *[]){m->q, m->k, m->v}, (size_t[]){Q, KV, KV}, normed,
                  (const struct packed *[]){&y->q, &y->k, &y->v},
                  (const float *[]){part_of_bias(y->q_bias, first * (size_t)group_of(&m->shape)), part_of_bias(y->k_bias, first),
                                    part_of_bias(y->v_bias, first)});
    moe_progress(m->moe);
    share_rows(m, a.rows, queries_and_keys_task, &a);
    count_product(m, a.rows, &y->k);
    count_product(m, a.rows, &y->v);
    attend_all(&a);
}

/* Half of forward_heads() of a model that is not split: keys and values of rows that may ask nothing. */
static void remember(struct model *m, int layer, const int32_t *position, const int32_t *session, const struct rows *normed)
{
    const struct block *y = &m->blocks[layer];
    size_t KV = kv_width(m);
    struct attention a = {.m = m, .position = position, .session = session, .layer = layer, .rows = normed->n};

    gemm_products(m->gemm, 2, (float *[]){m->k, m->v}, (size_t[]){KV, KV}, normed, (const struct packed *[]){&y->k, &y->v},
                  (const float *[]){y->k_bias, y->v_bias});
    moe_progress(m->moe);
    share_rows(m, a.rows, keys_task, &a);
    count_product(m, a.rows, &y->k);
    count_product(m, a.rows, &y->v);
}

/* The other half: what rows ask of keys and values that are in the cache. */
static void ask(struct model *m, int layer, const int32_t *position, const int32_t *session, const struct rows *normed,
                float *mixed, size_t ld)
{
    const struct block *y = &m->blocks[layer];
    struct attention a = {
        .m = m, .position = position, .session = session, .mixed = mixed, .ld = ld, .layer = layer, .rows = normed->n};

    gemm_product(m->gemm, m->q, query_width(m), normed, &y->q, y->q_bias);
    share_rows(m, a.rows, queries_task, &a);
    attend_all(&a);
}

static const struct packed *weights_of(const struct model *m, enum split_kind kind, int layer)
{
    if (kind == SPLIT_HEAD) return &m->head;
    return kind == SPLIT_OUT ? &m->blocks[layer].o : &m->blocks[layer].q;
}

struct rows forward_input(struct model *m, const float *x, int cols, int n, enum split_kind kind, int layer)
{
    struct rows in = input(m, x, cols, n, weights_of(m, kind, layer)->format);

    if (rows_wait(&in)) gemm_quantize(m->gemm, &in);
    return in;
}

void forward_part(struct model *m, enum split_kind kind, int layer, const struct rows *in, float *out, size_t ld)
{
    const struct packed *w = weights_of(m, kind, layer);

    if (w->rows == 0) return;
    gemm_product(m->gemm, out, ld, in, w, NULL);
    count_product(m, in->n, w);
}

/* h = norm(x), as the products with Q, K and V want it. */
static struct rows norm_before(struct model *m, int layer, int rows, const float *x, float *h)
{
    const struct block *y = &m->blocks[layer];
    int D = m->shape.width;
    struct rows normed = input(m, h, D, rows, y->q.format);
    struct norm n = {.x = x, .out = h, .weight = y->attention_norm, .eps = m->shape.eps, .in = &normed, .rows = rows, .width = D};

    share_rows(m, rows, norm_task, &n);
    return normed;
}

/* The output projection of the rows in m->mixed: x += it, and h = norm(x) for the FFN. */
static void output(struct model *m, int layer, int rows, float *x, float *h)
{
    const struct block *y = &m->blocks[layer];
    int D = m->shape.width, Q = (int)mixed_width(&m->shape);
    struct norm after = {.x = x, .out = h, .add = x, .weight = y->ffn_norm, .eps = m->shape.eps, .rows = rows, .width = D};
    struct rows mixed;

    if (m->limits.split) split_ask(m, SPLIT_OUT, layer, rows, NULL, NULL, m->mixed);
    mixed = forward_input(m, m->mixed, Q, rows, SPLIT_OUT, layer);
    forward_part(m, SPLIT_OUT, layer, &mixed, h, (size_t)D);
    if (m->limits.split) split_take(m, SPLIT_OUT, rows, h, (size_t)D);
    moe_progress(m->moe);
    share_rows(m, rows, norm_task, &after);
}

void forward_attention(struct model *m, int layer, const struct batch *b, int first, int rows, float *x, float *h)
{
    const int32_t *position = b->position + first, *session = b->session + first;
    size_t Q = mixed_width(&m->shape);
    struct rows normed;

    BUG_ON(!m->coordinator || first < 0 || rows < 0 || rows > m->limits.rows || first + rows > b->rows);
    enum timing_section was = timing_enter(m->timing, TIME_ATTENTION);

    normed = norm_before(m, layer, rows, x, h);
    /* The rows of the other micro-batch move only while MPI is called. */
    if (m->limits.split) split_ask(m, SPLIT_ATTEND, layer, rows, position, session, h);
    forward_heads(m, layer, position, session, &normed, m->mixed, Q);
    if (m->limits.split) split_take(m, SPLIT_ATTEND, rows, m->mixed, Q);
    moe_progress(m->moe);
    output(m, layer, rows, x, h);
    timing_enter(m->timing, was);
}

/* ---- the last layer ---- */

static int count_asked(const struct batch *b, int first, int rows)
{
    int n = 0;

    for (int t = 0; t < rows; t++) n += b->asked[first + t];
    return n;
}

/* Of rows first .. first + rows - 1, of x and h here, those that are asked for move to the front, and so do their numbers in m->asked; returns how many. */
static int keep_asked(struct model *m, const struct batch *b, int first, int rows, float *x, float *h)
{
    size_t D = (size_t)m->shape.width;
    int n = 0;

    for (int t = 0; t < rows; t++) {
        if (!b->asked[first + t]) continue;
        if (n < t) {
            memcpy(x + (size_t)n * D, x + (size_t)t * D, D * sizeof(*x));
            memcpy(h + (size_t)n * D, h + (size_t)t * D, D * sizeof(*h));
        }
        m->asked.key[first + n] = b->key ? b->key[first + t] : (uint64_t)t;
        m->asked.position[first + n] = b->position[first + t];
        m->asked.session[first + n++] = b->session[first + t];
    }
    return n;
}

/* Of rows first .. first + rows - 1 of the last layer all leave keys and values, and those that are asked for move to the front and go on (of a split model behind its attention); returns how many. */
static int attention_of_asked(struct model *m, int layer, const struct batch *b, int first, int rows, float *x, float *h)
{
    size_t Q = mixed_width(&m->shape);
    struct rows normed;

    if (m->limits.split || count_asked(b, first, rows) == rows) {
        forward_attention(m, layer, b, first, rows, x, h);
        return keep_asked(m, b, first, rows, x, h);
    }
    enum timing_section was = timing_enter(m->timing, TIME_ATTENTION);

    normed = norm_before(m, layer, rows, x, h);
    remember(m, layer, b->position + first, b->session + first, &normed);
    rows = keep_asked(m, b, first, rows, x, h);
    normed = forward_input(m, h, m->shape.width, rows, SPLIT_ATTEND, layer);
    ask(m, layer, m->asked.position + first, m->asked.session + first, &normed, m->mixed, Q);
    moe_progress(m->moe);
    output(m, layer, rows, x, h);
    timing_enter(m->timing, was);
    return rows;
}

status forward_failed(const struct model *m, struct err *e)
{
    if (m->failed.code) *e = m->failed;
    return m->failed.code;
}

/* ---- ends ---- */

void forward_embed(struct model *m, const struct batch *b, float *x)
{
    enum timing_section was = timing_enter(m->timing, TIME_EMBED);

    for (int t = 0; t < b->rows; t++) {
        BUG_ON(b->token[t] < 0 || b->token[t] >= m->shape.vocab);
        widen_rows(x + (size_t)t * (size_t)m->shape.width, &m->embed, b->token[t], 1);
    }
    timing_enter(m->timing, was);
}

void forward_norm(struct model *m, const float *x, int rows, float *hidden)
{
    enum timing_section was = timing_enter(m->timing, TIME_HEAD);
    struct norm last = {
        .x = x, .out = hidden, .weight = m->final_norm, .eps = m->shape.eps, .rows = rows, .width = m->shape.width};

    share_rows(m, rows, norm_task, &last);
    timing_enter(m->timing, was);
}

status forward_words(struct model *m, const float *hidden, int n, float *logits, struct err *e)
{
    enum timing_section was = timing_enter(m->timing, TIME_HEAD);
    size_t D = (size_t)m->shape.width, V = (size_t)m->shape.vocab;
    bool split = m->limits.split;
    int most = split && m->limits.rows > SPLIT_HEAD_ROWS ? SPLIT_HEAD_ROWS : m->limits.rows; /* that many can be quantized */

    for (int t = 0, some; t < n; t += some) {
        const float *from = hidden + (size_t)t * D;
        float *to = logits + (size_t)t * V;

        some = n - t < most ? n - t : most;
        if (split) split_ask(m, SPLIT_HEAD, -1, some, NULL, NULL, from);
        struct rows in = forward_input(m, from, m->shape.width, some, SPLIT_HEAD, -1);

        forward_part(m, SPLIT_HEAD, -1, &in, to, V);
        if (split) split_take(m, SPLIT_HEAD, some, to, V);
    }
    timing_enter(m->timing, was);
    return forward_failed(m, e);
}

void forward_logits(struct model *m, const float *hidden, int n, float *logits)
{
    struct err none = {0};

    BUG_ON(m->limits.split);
    forward_words(m, hidden, n, logits, &none);
}

/* ---- the whole ---- */

/* The hidden states of the n rows that keep_asked() has left go to where they were. */
static void norm_asked(struct model *m, const struct batch *b, int first, int rows, int n, float *hidden)
{
    size_t D = (size_t)m->shape.width;

    forward_norm(m, m->x + (size_t)first * D, n, m->h + (size_t)first * D);
    n = 0;
    for (int t = first; t < first + rows; t++)
        if (b->asked[t]) memcpy(hidden + (size_t)t * D, m->h + (size_t)(first + n++) * D, D * sizeof(*hidden));
}

/* T rows, D width, L layers; P parts, whose rows begin at first[p].
 * Part p waits for its experts of layer l - 1 only when the other one's attention is done and its rows are under way.  The cut may fall into a
 * session: in every layer the first half's keys and values are in the cache before the second half looks. */
status forward_parts(struct model *m, const struct batch *b, const struct routing *how, int parts, float *hidden, struct err *e)
{
    int T = b->rows, L = m->shape.layers;
    bool keyed = b->key || how->route != ROUTE_RANDOM; /* without keys the rows of a part are numbered */
    /* With a split the others have work while attention is on, and a follower would take the other half's experts before it. */
    int P = parts > 1 && T > 1 && keyed && !m->limits.split ? 2 : 1;
    int first[] = {0, P == 2 ? T / 2 : T, T}, left[2] = {0};
    const uint64_t *key = b->key;
    size_t D = (size_t)m->shape.width;
    status s = OK;

    BUG_ON(!m->coordinator || T > m->limits.rows);
    if (T < 1) return OK;
    forward_embed(m, b, m->x);
    for (int l = 0; l <= L; l++)
        for (int p = 0; p < P; p++) {
            int rows = first[p + 1] - first[p];
            float *x = m->x + (size_t)first[p] * D, *h = m->h + (size_t)first[p] * D;

            if (l > 0 && (s = moe_end(m->moe, p, x, NULL, e))) return s;
            if (l == L) continue;
            if (l < L - 1 || !b->asked) forward_attention(m, l, b, first[p], rows, x, h);
            else {
                rows = left[p] = attention_of_asked(m, l, b, first[p], rows, x, h);
                key = m->asked.key;
            }
            if (forward_failed(m, e)) return e->code;
            s = moe_begin(m->moe, p, l, h, key ? key + first[p] : NULL, rows, how, e);
            if (s) return s;
        }
    if (!b->asked) forward_norm(m, m->x, T, hidden);
    for (int p = 0; p < P && b->asked; p++) norm_asked(m, b, first[p], first[p + 1] - first[p], left[p], hidden);
    timing_step(m->timing, T, 0);
    return OK;
}

status forward(struct model *m, const struct batch *b, const struct routing *how, int micro_batches, float *hidden, struct err *e)
{
    struct routing now = *how;
    bool whole;

    if (!b->decodes) now.batch_experts = 0;
    whole = now.batch_experts > 0 || b->rows < CUT_FROM_ROWS || moe_alone(m->moe);
    return forward_parts(m, b, &now, whole ? 1 : micro_batches, hidden, e);
}
