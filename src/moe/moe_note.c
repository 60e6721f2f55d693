/* What neurons do on a text: every rank keeps notes of those it holds. */
#include <string.h>

#include "base/bits.h"
#include "moe/grouping.h"
#include "moe/moe_internal.h"

size_t moe_notes_bytes(struct moe_limits limits)
{
    return 2 * sizeof(double) + (size_t)limits.sample * sizeof(uint16_t);
}

void moe_take_notes(struct moe *m, struct arena_taker *t)
{
    size_t neurons = 0, sample = (size_t)m->limits.sample, lines = moe_line((size_t)m->limits.rows * sizeof(int32_t));
    size_t *begin = arena_take(t, (size_t)m->n_layers * (size_t)m->experts, sizeof(*begin));

    for (int l = 0; l < m->n_layers; l++)
        for (int i = 0; i < m->experts; i++) {
            if (placement_rank(m->p, l, i) != m->rank) continue;
            if (t->arena && !t->failed) begin[(size_t)l * (size_t)m->experts + (size_t)i] = neurons;
            neurons += (size_t)group_size(m->neurons, 0, m->experts, i);
        }
    m->noted = begin;
    m->note_sum = arena_take(t, neurons, sizeof(double));
    m->note_square = arena_take(t, neurons, sizeof(double));
    m->note_sample = arena_take(t, neurons * sample, sizeof(uint16_t));
    m->note_place = arena_take(t, lines, 1);
    if (!t->arena || t->failed) return;
    memset(m->note_sum, 0, neurons * sizeof(double));
    memset(m->note_square, 0, neurons * sizeof(double));
    memset(m->note_sample, 0, neurons * sample * sizeof(uint16_t));
}

/* ---- keeping ---- */

struct keeping {
    struct moe *m;
    int layer;
    const struct moe_share *share;
    const int32_t *place;
};

/* Rows in their order, whatever the blocks they come in: the sums are the same in any cut. */
static void keep_task(void *ctx, int item, int worker)
{
    const struct keeping *k = ctx;
    const struct moe_share *s = &k->share[item];
    size_t at = k->m->noted[(size_t)k->layer * (size_t)k->m->experts + (size_t)s->place], sample = (size_t)k->m->limits.sample;
    double *sum = k->m->note_sum + at, *square = k->m->note_square + at;
    uint16_t *kept = k->m->note_sample + at * sample;

    (void)worker;
    for (int t = 0; t < s->z.n; t++) {
        const float *z = s->z.x + (size_t)t * s->z.ld;

        for (int j = 0; j < s->z.cols; j++) {
            double v = (double)z[j];

            sum[j] += v;
            square[j] += v * v;
        }
        BUG_ON(k->place[t] >= (int)sample);
        for (int j = 0; k->place[t] >= 0 && j < s->z.cols; j++)
            kept[(size_t)j * sample + (size_t)k->place[t]] = narrow_bf16(z[j]);
    }
}

void moe_keep_notes(struct moe *m, int layer, const struct moe_share *share, int shares, const int32_t *place)
{
    struct keeping k = {m, layer, share, place};

    BUG_ON(!m->limits.notes || m->layers[layer].shared.down.lines);
    gemm_parallel(m->gemm, shares, keep_task, &k);
}

status moe_note(struct moe *m, int layer, const float *h, const int32_t *place, int rows, float *x, struct err *e)
{
    struct moe_slot *s = &m->slot[0];
    int n = m->layers[layer].experts, words = bits_words(n);

    BUG_ON(!m->coordinator || !m->limits.notes || s->busy || n == 0 || rows < 0 || rows > m->limits.rows);
    moe_slot_rows(m, s, layer, h, rows);
    s->route = ROUTE_ALL, s->scale = 1.0f, s->compensate = false;
    memset(s->set, 0xff, (size_t)rows * (size_t)words * sizeof(*s->set));
    memcpy(m->note_place, place, (size_t)rows * sizeof(*place));
    s->note = m->note_place;
    moe_dispatch(m, 0);
    status code = moe_combine(m, 0, x, e);
    s->note = NULL;
    return code;
}

/* ---- reading them ---- */

static void copy_notes(const struct moe *m, int layer, int expert, int first, int n, double *sum, double *square,
                       uint16_t *sample)
{
    size_t at = m->noted[(size_t)layer * (size_t)m->experts + (size_t)expert] + (size_t)first;
    size_t tokens = sample ? (size_t)m->limits.sample : 0;

    memcpy(sum, m->note_sum + at, (size_t)n * sizeof(*sum));
    memcpy(square, m->note_square + at, (size_t)n * sizeof(*square));
    if (tokens) memcpy(sample, m->note_sample + at * tokens, (size_t)n * tokens * sizeof(*sample));
}

void moe_answer_notes(struct moe *m, struct exchange *x, const struct request *r)
{
    int n = r->rows, expert = r->flags;
    bool sample = r->number[1] > 0;
    size_t bytes = (size_t)n * (sample ? moe_notes_bytes(m->limits) : 2 * sizeof(double));
    double *room = exchange_answer_room(x, bytes);

    BUG_ON(!m->limits.notes || expert < 0 || expert >= m->experts || placement_rank(m->p, r->layer, expert) != m->rank);
    copy_notes(m, r->layer, expert, (int)r->number[0], n, room, room + n,
               sample ? (uint16_t *)(void *)(room + 2 * (size_t)n) : NULL);
    exchange_answer(x, r, OK, n, room, bytes);
}

/* As many neurons at a time as fit the answers that there is room for anyway. */
status moe_notes(struct moe *m, int layer, int expert, double *sum, double *square, uint16_t *sample, struct err *e)
{
    int rank = placement_rank(m->p, layer, expert), n = group_size(m->neurons, 0, m->experts, expert);
    size_t tokens = sample ? (size_t)m->limits.sample : 0, one = sample ? moe_notes_bytes(m->limits) : 2 * sizeof(double);
    size_t fit = (size_t)m->limits.rows * moe_sum_bytes(m) / one;
    int most = fit < 1 ? 1 : fit > (size_t)m->limits.rows ? m->limits.rows : (int)fit;

    BUG_ON(!m->limits.notes || !m->coordinator);
    if (rank == m->rank) {
        copy_notes(m, layer, expert, 0, n, sum, square, sample);
        return OK;
    }
    for (int first = 0, some; first < n; first += some) {
        const void *payload = NULL;

        some = n - first < most ? n - first : most;
        struct request r = {.kind = MOE_KIND_NOTES,
                            .layer = layer,
                            .rows = some,
                            .flags = expert,
                            .number = {first, sample != NULL},
                            .what = "notes"};

        exchange_post(m->exchange, 0, rank, &r, NULL, 0, NULL, 0);
        if (exchange_wait(m->exchange, 0, e)) return e->code;
        const struct answer *a = exchange_answer_of(m->exchange, 0, rank, &payload);
        const double *from = payload;

        BUG_ON(!a || a->bytes != (size_t)some * one);
        memcpy(sum + first, from, (size_t)some * sizeof(*sum));
        memcpy(square + first, from + some, (size_t)some * sizeof(*square));
        if (tokens) memcpy(sample + (size_t)first * tokens, from + 2 * (size_t)some, (size_t)some * tokens * sizeof(*sample));
    }
    return OK;
}
