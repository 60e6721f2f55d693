/* What a router version brings along for the experts that it leaves out: their means, on the ranks that hold them, and a term of low rank. */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/ops.h"

static int held_here(const struct moe *m, int layer)
{
    return bits_count(moe_held(m, layer, m->rank), m->layers[layer].experts);
}

status moe_take_means(struct moe *m, struct err *e)
{
    size_t width = (size_t)m->width, total = 0;

    if (m->means_memory) return OK;
    for (int l = 0; l < m->n_layers; l++) total += (size_t)held_here(m, l) * width;
    m->means_memory = malloc((total ? total : 1) * sizeof(*m->means_memory));
    if (m->coordinator) m->means_total = malloc((size_t)m->n_layers * width * sizeof(*m->means_total));
    if (!m->means_memory || (m->coordinator && !m->means_total)) {
        free(m->means_memory);
        free(m->means_total);
        m->means_memory = NULL, m->means_total = NULL;
        return err_set(e, ERR_LIMIT, "no memory for the means of a router: %zu MiB", total * sizeof(float) >> 20);
    }
    float *at = m->means_memory;

    for (int l = 0; l < m->n_layers; at += (size_t)held_here(m, l) * width, l++) m->means[l] = at;
    return OK;
}

/* As bind_compensation() of the model does with its own. */
static status select_layer(struct moe *m, const struct router *r, int l, struct err *e)
{
    size_t width = (size_t)m->width;
    int n = m->layers[l].experts, place = 0;
    const float *mu = r->mu + (size_t)l * (size_t)r->experts * width;
    const uint64_t *held = moe_held(m, l, m->rank);
    double *total = m->means_total + (size_t)l * width;

    BUG_ON(r->experts != n);
    if (moe_check_terms(&m->layers[l], l, true, e)) return e->code;
    memset(total, 0, width * sizeof(*total));
    for (int i = 0; i < n; i++, mu += width) {
        for (size_t d = 0; d < width; d++) total[d] += grid(mu[d]);
        if (bits_has(held, i)) memcpy(m->means[l] + (size_t)place++ * width, mu, width * sizeof(*mu));
    }
    return OK;
}

status moe_select_here(struct moe *m, const struct router *r, struct err *e)
{
    BUG_ON(!m->coordinator || r->width != m->width || r->layers != m->n_layers);
    if (!r->mu) return OK;
    if (moe_take_means(m, e)) return e->code;
    for (int l = 0; l < m->n_layers; l++)
        if (select_layer(m, r, l, e)) return e->code;
    m->means_of = r->mu;
    return OK;
}

/* Held experts number first .. of a rank, as many as fit into a request. */
static void post_means(struct moe *m, const struct router *r, int layer, int rank, int first, int each)
{
    const uint64_t *held = moe_held(m, layer, rank);
    size_t width = (size_t)m->width;
    int n = m->layers[layer].experts, count = bits_count(held, n), place = 0;
    struct request q = {.kind = MOE_KIND_MEANS, .layer = layer, .number = {first}, .what = "means"};

    q.rows = count - first < each ? count - first : each;
    if (q.rows <= 0) return;
    size_t bytes = (size_t)q.rows * width * sizeof(float);
    float *room = exchange_room(m->exchange, 0, rank, bytes);

    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1), place++)
        if (place >= first && place < first + q.rows)
            memcpy(room + (size_t)(place - first) * width, r->mu + ((size_t)layer * (size_t)n + (size_t)i) * width,
                   width * sizeof(float));
    exchange_post(m->exchange, 0, rank, &q, room, bytes, NULL, 0);
}

static status send_layer(struct moe *m, const struct router *r, int layer, struct err *e)
{
    struct exchange_limits x;

    if (moe_alone(m)) return OK;
    moe_exchange_limits(&x, m->n_layers, m->experts, m->width, m->neurons, m->limits);
    int fit = (int)(x.request_bytes / ((size_t)m->width * sizeof(float))), each = fit < m->limits.rows ? fit : m->limits.rows;

    for (int first = 0; first < m->layers[layer].experts; first += each) {
        for (int rank = 0; rank < m->ranks; rank++)
            if (rank != m->rank) post_means(m, r, layer, rank, first, each);
        if (exchange_wait(m->exchange, 0, e)) return e->code;
    }
    return OK;
}

status moe_select(struct moe *m, const struct router *r, struct err *e)
{
    BUG_ON(m->rank != 0);
    if (!r->mu) return OK;
    if (moe_select_here(m, r, e)) return e->code;
    for (int l = 0; l < m->n_layers; l++)
        if (send_layer(m, r, l, e)) return e->code;
    return OK;
}

status moe_select_layer(struct moe *m, const struct router *r, int layer, struct err *e)
{
    BUG_ON(m->rank != 0 || !r->mu || m->means_of != r->mu);
    return select_layer(m, r, layer, e) ? e->code : send_layer(m, r, layer, e);
}

void moe_answer_means(struct moe *m, struct exchange *x, const struct request *r, const float *payload)
{
    size_t width = (size_t)m->width, first = (size_t)r->number[0];
    struct err mine = {0};

    BUG_ON(r->bytes != (size_t)r->rows * width * sizeof(float) || (int)first + r->rows > held_here(m, r->layer));
    if (moe_take_means(m, &mine)) {
        exchange_answer(x, r, mine.code, 0, mine.text, strlen(mine.text) + 1);
        return;
    }
    memcpy(m->means[r->layer] + first * width, payload, r->bytes);
    exchange_answer(x, r, OK, 0, NULL, 0);
}

/* ---- low rank ---- */

void moe_add_low_rank(struct moe *m, const struct moe_slot *s, float *x)
{
    const struct router *r = s->router;
    int rows = s->h.n, c = s->low_rank ? r->low_rank : 0;
    size_t width = (size_t)m->width;

    if (!s->low_rank || rows == 0) return;
    /* The sums are done with: [rows][D] of the term, then [rows][c]. */
    float *y = (float *)(void *)m->sum, *a = y + (size_t)rows * width;
    enum timing_section was = timing_enter(m->timing, TIME_COMBINE);

    BUG_ON(c > m->width);
    router_low_rank(r, m->gemm, s->layer, &s->h, a, y);
    add_to(x, y, (size_t)rows * width);
    timing_enter(m->timing, was);
}
