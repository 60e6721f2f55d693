/* A follower: requests for the experts it holds, and its answers. */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"

/* The rows of a request as the experts want them: wide, and quantized where that is needed. */
struct rows moe_rows_of(struct moe *m, int layer, const void *rows, int n, enum moe_rows as)
{
    struct rows h = {.x = rows, .ld = (size_t)m->width, .n = n, .cols = m->width};

    if (as == MOE_ROWS_BF16) {
        moe_widen(m->rows_in, rows, (size_t)n * (size_t)m->width);
        h.x = m->rows_in;
    }
    moe_prepare(m, layer, &h, m->quantized);
    return h;
}

static void answer_sum(struct moe *m, struct exchange *x, const struct request *r, const char *payload)
{
    bool fixed = r->kind == MOE_KIND_STATIC, neurons = r->kind == MOE_KIND_NEURON_SUM, note = r->kind == MOE_KIND_NOTE;
    size_t set_bytes = (size_t)bits_words(m->layers[r->layer].experts) * sizeof(uint64_t);
    size_t sets = fixed ? 0 : moe_line((size_t)r->rows * (neurons ? sizeof(float) : note ? sizeof(int32_t) : set_bytes));
    size_t bytes = (size_t)r->rows * moe_sum_bytes(m);

    BUG_ON(r->bytes != sets + (size_t)r->rows * moe_row_bytes(m));
    struct rows h = moe_rows_of(m, r->layer, payload + sets, r->rows, m->limits.wire.rows);
    struct moe_job job = {.layer = r->layer,
                          .h = &h,
                          .note = note ? (const int32_t *)(const void *)payload : NULL,
                          .set = fixed || neurons || note ? NULL : (const uint64_t *)(const void *)payload,
                          .threshold = neurons ? (const float *)(const void *)payload : NULL,
                          .fixed = fixed,
                          .kept = (int)r->number[1],
                          .compensate = r->flags & MOE_FLAG_COMPENSATE,
                          .means = r->flags & MOE_FLAG_MEANS,
                          .scale = (float)r->number[0]};
    void *room = exchange_answer_room(x, bytes);
    struct err mine = {0};

    moe_work_sum(m, &job, m->limits.wire.answers, room);
    if (moe_check_sums(m, r->layer, &mine)) exchange_answer(x, r, mine.code, 0, mine.text, strlen(mine.text) + 1);
    else exchange_answer(x, r, OK, r->rows, room, bytes);
}

static void answer_oracle(struct moe *m, struct exchange *x, const struct request *r, const float *payload)
{
    int held = bits_count(moe_held(m, r->layer, m->rank), m->layers[r->layer].experts);
    size_t values = (size_t)r->rows * (size_t)m->width, row_bytes = values * sizeof(float);
    bool scores = r->kind == MOE_KIND_SCORES;
    size_t bytes = scores ? (size_t)r->rows * (size_t)held * sizeof(float) : row_bytes * (size_t)held;

    BUG_ON(!m->limits.oracle || r->bytes != (scores ? 2 : 1) * row_bytes || (!scores && bytes > m->piece_bytes));
    struct rows h = moe_rows_of(m, r->layer, payload, r->rows, MOE_ROWS_F32);
    float *room = exchange_answer_room(x, bytes);

    if (scores) moe_work_scores(m, r->layer, &h, payload + values, (float)r->number[0], room, held, true);
    else moe_work_rows(m, r->layer, &h, r->flags & MOE_FLAG_COMPENSATE, room, held, true);
    exchange_answer(x, r, OK, r->rows, room, bytes);
}

static void answer_neurons(struct moe *m, struct exchange *x, const struct request *r, const void *payload)
{
    int held = moe_held_neurons(m, r->layer, m->rank);
    size_t bytes = (size_t)r->rows * (size_t)held * sizeof(float);

    BUG_ON(!m->limits.oracle || r->bytes != (size_t)r->rows * moe_row_bytes(m) || bytes > m->piece_bytes);
    struct rows h = moe_rows_of(m, r->layer, payload, r->rows, m->limits.wire.rows);
    float *room = exchange_answer_room(x, bytes);

    moe_work_neuron_scores(m, r->layer, &h, false, room, held);
    exchange_answer(x, r, OK, r->rows, room, bytes);
}

void moe_answer(struct moe *m, struct exchange *x, const struct request *r, const void *payload)
{
    double excess = m->excess; /* of a pass of our own that waits meanwhile */

    m->excess = 0;
    BUG_ON((m->coordinator && m->limits.coordinators < 2) || r->layer < 0 || r->layer >= m->n_layers || r->rows < 0 ||
           r->rows > m->limits.rows);
    switch (r->kind) {
    case MOE_KIND_NOTES:
        moe_answer_notes(m, x, r);
        break;
    case MOE_KIND_SUM:
    case MOE_KIND_STATIC:
    case MOE_KIND_NEURON_SUM:
    case MOE_KIND_NOTE:
        answer_sum(m, x, r, payload);
        break;
    case MOE_KIND_SCORES:
    case MOE_KIND_ROWS:
        answer_oracle(m, x, r, payload);
        break;
    case MOE_KIND_NEURON_SCORES:
        answer_neurons(m, x, r, payload);
        break;
    case MOE_KIND_VALUES:
    case MOE_KIND_REST:
    case MOE_KIND_REST_MEANS:
        moe_answer_rest(m, x, r, payload);
        break;
    case MOE_KIND_MEANS:
        moe_answer_means(m, x, r, payload);
        break;
    case MOE_KIND_BACKWARD:
        moe_answer_backward(m, x, r, payload);
        break;
    case MOE_KIND_ADAPT:
        moe_answer_adapt(m, x, r, payload);
        break;
    default:
        BUG_ON(true); /* not a request for the experts: our caller sorts them */
    }
    m->excess = excess;
}
