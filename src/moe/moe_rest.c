/* What experts say without their outputs leaving the rank: values of every expert, and the means of what is left out. */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"

/* ---- here ---- */

static void energy_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    const struct moe_share *s = &w->share[item];

    for (int t = 0; t < w->rows; t++) {
        const float *z = s->z.x + (size_t)t * s->z.ld;
        double sum = 0;

        for (int j = 0; j < s->z.cols; j++) {
            double of_j = (double)z[j] * s->norm[j];

            sum += of_j * of_j;
        }
        w->oracle.to[(size_t)(w->first + t) * (size_t)w->oracle.stride + (size_t)s->place] = (float)sum;
    }
    moe_work_progress(w, worker);
}

/* Sums over the rows whose sets do not have the expert. */
static void rest_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    const struct moe *m = w->m;
    const struct moe_layer *y = &m->layers[w->job->layer];
    const struct moe_share *s = &w->share[item];
    double *sum = m->rest + (s->norm - (m->norm + (size_t)w->job->layer * (size_t)m->norm_room));
    int words = bits_words(y->experts), i = (int)(s->x - y->expert);

    for (int t = 0; t < w->rows; t++) {
        const float *z = s->z.x + (size_t)t * s->z.ld;

        if (bits_has(w->oracle.set + (size_t)(w->first + t) * (size_t)words, i)) continue;
        for (int j = 0; j < s->z.cols; j++) sum[j] += z[j];
        m->rest_rows[s->place]++;
    }
    moe_work_progress(w, worker);
}

/* z of all held experts over all rows, then a task for each expert. */
static void each_expert(struct moe *m, int layer, const struct rows *h, struct moe_work like,
                        void (*task)(void *ctx, int item, int worker))
{
    struct moe_job job = {.layer = layer, .h = h, .scale = 1.0f};
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    int rows = h->n, each = moe_work_rows_at_once(m, layer, false);

    for (int first = 0; first < rows; first += each) {
        struct moe_work w = like;

        w.norms = true;
        moe_work_begin(&w, m, &job, first, rows - first < each ? rows - first : each);
        moe_work_in(&w);
        moe_work_loop(&w, w.shares, task, &w);
    }
    timing_enter(m->timing, was);
}

void moe_work_values(struct moe *m, int layer, const struct rows *h, enum moe_value what, float *out, int stride, bool packed)
{
    struct moe_work like = {.oracle = {.to = out, .stride = stride, .norm = what == MOE_NORM}, .packed = packed};
    struct moe_job job = {.layer = layer, .h = h, .scale = 1.0f};

    if (what == MOE_NORM) moe_work_outputs(m, &job, like);
    else each_expert(m, layer, h, like, energy_task);
}

void moe_work_rest(struct moe *m, int layer, const struct rows *h, const uint64_t *set, bool first)
{
    if (first) {
        memset(m->rest, 0, (size_t)m->norm_room * sizeof(*m->rest));
        memset(m->rest_rows, 0, (size_t)m->most_held * sizeof(*m->rest_rows));
    }
    each_expert(m, layer, h, (struct moe_work){.oracle = {.set = set}, .packed = true}, rest_task);
}

void moe_work_rest_means(struct moe *m, int layer, float *mu, bool packed)
{
    const struct moe_layer *y = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);
    const double *sum = m->rest + (m->coordinator && y->shared.down.lines ? y->shared.gate.rows : 0);
    int n = y->experts, place = 0;

    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1), place++) {
        const struct packed *down = &y->expert[i].down;
        float *to = mu + (size_t)(packed ? place : i) * (size_t)m->width;
        double count = (double)m->rest_rows[place];

        for (int d = 0; d < m->width; d++) {
            double total = 0;

            for (int j = 0; j < down->cols; j++) total += (double)packed_at(down, d, j) * sum[j];
            to[d] = count > 0 ? (float)(total / count) : 0.0f;
        }
        sum += down->cols;
        moe_progress(m);
    }
}

/* ---- over the ranks ---- */

static size_t set_bytes(const struct moe *m, int layer, int rows)
{
    return moe_line((size_t)rows * (size_t)bits_words(m->layers[layer].experts) * sizeof(uint64_t));
}

status moe_values(struct moe *m, enum moe_value what, int layer, const float *h, int rows, float *value, struct err *e)
{
    int n = m->layers[layer].experts;
    struct request r = {.kind = MOE_KIND_VALUES, .layer = layer, .rows = rows, .number = {(double)what}, .what = "values"};

    BUG_ON(m->rank != 0 || !m->limits.oracle || m->slot[0].busy || rows > m->limits.rows);
    if (rows == 0 || n == 0) return OK;
    moe_slot_rows(m, &m->slot[0], layer, h, rows);
    bool asked = moe_ask(m, 0, &r, h, (size_t)rows * (size_t)m->width * sizeof(float), NULL, 0);

    moe_work_values(m, layer, &m->slot[0].h, what, value, n, false);
    return asked ? moe_collect(m, 0, layer, rows, 1, value, e) : OK;
}

status moe_rest_add(struct moe *m, int layer, const float *h, const uint64_t *set, int rows, bool first, struct err *e)
{
    int n = m->layers[layer].experts;
    size_t sets = (size_t)rows * (size_t)bits_words(n) * sizeof(uint64_t),
           states = (size_t)rows * (size_t)m->width * sizeof(float);
    struct request r = {.kind = MOE_KIND_REST, .layer = layer, .rows = rows, .number = {first}, .what = "means"};
    bool asked = false;

    BUG_ON(m->rank != 0 || !m->limits.oracle || m->slot[0].busy || rows > m->limits.rows);
    if (n == 0) return OK;
    for (int rank = 0; rank < m->ranks; rank++) {
        if (rank == m->rank || !moe_holds(m, layer, rank)) continue;
        char *room = exchange_room(m->exchange, 0, rank, set_bytes(m, layer, rows) + states);

        memcpy(room, set, sets);
        memcpy(room + set_bytes(m, layer, rows), h, states);
        exchange_post(m->exchange, 0, rank, &r, room, set_bytes(m, layer, rows) + states, NULL, 0);
        asked = true;
    }
    moe_slot_rows(m, &m->slot[0], layer, h, rows);
    moe_work_rest(m, layer, &m->slot[0].h, set, first);
    return asked ? exchange_wait(m->exchange, 0, e) : OK;
}

status moe_rest_means(struct moe *m, int layer, float *mu, struct err *e)
{
    struct request r = {.kind = MOE_KIND_REST_MEANS, .layer = layer, .what = "means"};
    bool asked = moe_ask(m, 0, &r, NULL, 0, NULL, 0);

    moe_work_rest_means(m, layer, mu, false);
    return asked ? moe_collect(m, 0, layer, 1, (size_t)m->width, mu, e) : OK;
}

void moe_answer_rest(struct moe *m, struct exchange *x, const struct request *r, const void *payload)
{
    int held = bits_count(moe_held(m, r->layer, m->rank), m->layers[r->layer].experts);
    size_t row_bytes = (size_t)m->width * sizeof(float), sets = r->kind == MOE_KIND_REST ? set_bytes(m, r->layer, r->rows) : 0;
    size_t bytes = r->kind == MOE_KIND_VALUES ? (size_t)r->rows * (size_t)held * sizeof(float) : (size_t)held * row_bytes;

    BUG_ON(!m->limits.oracle || r->bytes != sets + (size_t)r->rows * row_bytes);
    if (r->kind == MOE_KIND_REST_MEANS) {
        float *room = exchange_answer_room(x, bytes);

        moe_work_rest_means(m, r->layer, room, true);
        exchange_answer(x, r, OK, 1, room, bytes);
        return;
    }
    struct rows h = moe_rows_of(m, r->layer, (const char *)payload + sets, r->rows, MOE_ROWS_F32);

    if (r->kind == MOE_KIND_REST) {
        moe_work_rest(m, r->layer, &h, payload, r->number[0] != 0.0);
        exchange_answer(x, r, OK, 0, NULL, 0);
        return;
    }
    float *room = exchange_answer_room(x, bytes);

    moe_work_values(m, r->layer, &h, r->number[0] == (double)MOE_NORM ? MOE_NORM : MOE_ENERGY, room, held, true);
    exchange_answer(x, r, OK, r->rows, room, bytes);
}
