#include "model/forward.h"

#include <string.h>

#include "model/model_internal.h"
#include "num/widen.h"

/* ---- attention ---- */

struct attend {
    const struct model *m;
    const struct batch *b;
    int layer, first, rows, tasks;
};

/* Rows i, i + tasks, i + 2 * tasks, ...: so that early and late positions fall to everyone. */
static void attend_task(void *ctx, int i, int worker)
{
    const struct attend *a = ctx;
    const struct model *m = a->m;
    const struct shape *s = &m->shape;
    size_t width = (size_t)s->heads * (size_t)s->head_dim;
    float *scores = m->scores + (size_t)i * (size_t)m->limits.positions;

    (void)worker;
    for (int t = i; t < a->rows; t += a->tasks) {
        size_t cache = kvcache_at(&m->kv, a->layer, a->b->session[a->first + t], 0);

        attend_row(m->mixed + (size_t)t * width, m->q + (size_t)t * width, m->kv.k + cache, m->kv.v + cache,
                   a->b->position[a->first + t] + 1, s->heads, s->kv_heads, s->head_dim, scores);
    }
}

static void remember(struct model *m, int layer, const struct batch *b, int first, int rows)
{
    size_t width = (size_t)m->kv.width;

    for (int t = 0; t < rows; t++) {
        size_t at = kvcache_at(&m->kv, layer, b->session[first + t], b->position[first + t]);

        memcpy(m->kv.k + at, m->k + (size_t)t * width, width * sizeof(float));
        memcpy(m->kv.v + at, m->v + (size_t)t * width, width * sizeof(float));
    }
}

void forward_attention(struct model *m, int layer, const struct batch *b, int first, int rows, float *x, float *h)
{
    const struct shape *s = &m->shape;
    const struct block *y = &m->blocks[layer];
    const int32_t *position = b->position + first;
    size_t D = (size_t)s->width, q = (size_t)s->heads * (size_t)s->head_dim, kv = (size_t)s->kv_heads * (size_t)s->head_dim;
    struct rows normed = {.x = h, .ld = D, .n = rows, .cols = s->width};
    struct rows mixed = {.x = m->mixed, .ld = q, .n = rows, .cols = (int)q};
    struct attend a = {m, b, layer, first, rows, rows < ATTEND_TASKS ? rows : ATTEND_TASKS};

    BUG_ON(m->rank || first < 0 || rows < 0 || rows > m->limits.rows || first + rows > b->rows);
    /* The rows of the other micro-batch move only while MPI is called. */
    rms_norm(h, x, y->attention_norm, rows, s->width, s->eps);
    gemm_product(m->gemm, m->q, q, &normed, &y->q, y->q_bias);
    moe_progress(m->moe);
    gemm_product(m->gemm, m->k, kv, &normed, &y->k, y->k_bias);
    gemm_product(m->gemm, m->v, kv, &normed, &y->v, y->v_bias);
    moe_progress(m->moe);
    rope_apply(m->q, position, rows, s->heads, s->head_dim, m->rope);
    rope_apply(m->k, position, rows, s->kv_heads, s->head_dim, m->rope);
    remember(m, layer, b, first, rows);
    moe_progress(m->moe);
    gemm_parallel(m->gemm, a.tasks, attend_task, &a);
    moe_progress(m->moe);
    gemm_product(m->gemm, h, D, &mixed, &y->o, NULL);
    moe_progress(m->moe);
    for (size_t i = 0; i < (size_t)rows * D; i++) x[i] += h[i];
    rms_norm(h, x, y->ffn_norm, rows, s->width, s->eps);
}

/* ---- ends ---- */

void forward_embed(struct model *m, const struct batch *b, float *x)
{
    for (int t = 0; t < b->rows; t++) {
        BUG_ON(b->token[t] < 0 || b->token[t] >= m->shape.vocab);
        widen_rows(x + (size_t)t * (size_t)m->shape.width, &m->embed, b->token[t], 1);
    }
}

void forward_norm(struct model *m, const float *x, int rows, float *hidden)
{
    rms_norm(hidden, x, m->final_norm, rows, m->shape.width, m->shape.eps);
}

void forward_logits(struct model *m, const float *hidden, int n, float *logits)
{
    struct rows in = {.x = hidden, .ld = (size_t)m->shape.width, .n = n, .cols = m->shape.width};

    gemm_product(m->gemm, logits, (size_t)m->shape.vocab, &in, &m->head, NULL);
}

/* ---- the whole ---- */

/* T rows, D width, L layers; P micro-batches, whose rows begin at first[p].
 * Micro-batch p waits for its experts of layer l - 1 only when the other one's attention is done and its rows are under way.  The cut may fall into a
 * session: in every layer the first half's keys and values are in the cache before the second half looks. */
status forward(struct model *m, const struct batch *b, const struct routing *how, int micro_batches, float *hidden, struct err *e)
{
    int T = b->rows, L = m->shape.layers;
    bool keyed = b->key || how->route != ROUTE_RANDOM; /* without keys the rows of a micro-batch are numbered */
    int P = micro_batches > 1 && T > 1 && keyed ? 2 : 1;
    int first[] = {0, P == 2 ? T / 2 : T, T};
    size_t D = (size_t)m->shape.width;
    status s = OK;

    BUG_ON(m->rank || T > m->limits.rows);
    if (T < 1) return OK;
    forward_embed(m, b, m->x);
    for (int l = 0; l <= L; l++)
        for (int p = 0; p < P; p++) {
            int rows = first[p + 1] - first[p];
            float *x = m->x + (size_t)first[p] * D, *h = m->h + (size_t)first[p] * D;

            if (l > 0 && (s = moe_end(m->moe, p, x, NULL, e))) return s;
            if (l == L) continue;
            forward_attention(m, l, b, first[p], rows, x, h);
            s = moe_begin(m->moe, p, l, h, b->key ? b->key + first[p] : NULL, rows, how, e);
            if (s) return s;
        }
    forward_norm(m, m->x, T, hidden);
    return OK;
}
