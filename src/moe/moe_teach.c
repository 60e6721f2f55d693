/* What the teacher knows: the dense output, and the labels of both kinds.  Synchronous: post, compute here, wait. */
#include <string.h>

#include "base/bits.h"
#include "moe/grouping.h"
#include "moe/labels.h"
#include "moe/moe_internal.h"
#include "moe/route.h"

static void check(const struct moe *m, int slot, int layer, int rows)
{
    BUG_ON(m->rank != 0 || !m->limits.oracle || m->slot[slot].busy);
    BUG_ON(layer < 0 || layer >= m->n_layers || rows < 0 || rows > m->limits.rows);
}

status moe_teach_dense(struct moe *m, int slot, int layer, const float *h, int rows, float *y, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    int n = m->layers[layer].experts, words = bits_words(n);

    check(m, slot, layer, rows);
    moe_slot_rows(m, s, layer, h, rows);
    s->route = ROUTE_ALL, s->scale = 1.0f, s->compensate = false;
    memset(s->set, 0, (size_t)rows * (size_t)words * sizeof(*s->set));
    for (int t = 0; t < rows; t++) {
        for (int i = 0; i < n; i++) bits_set(s->set + (size_t)t * (size_t)words, i);
    }
    memset(y, 0, (size_t)rows * (size_t)m->width * sizeof(*y));
    moe_dispatch(m, slot);
    return moe_combine(m, slot, y, e);
}

bool moe_ask(struct moe *m, int slot, struct request *r, const void *part0, size_t bytes0, const void *part1, size_t bytes1)
{
    bool any = false;

    for (int rank = 0; rank < m->ranks; rank++) {
        if (rank == m->rank || !moe_holds(m, r->layer, rank)) continue;
        exchange_post(m->exchange, slot, rank, r, part0, bytes0, part1, bytes1);
        any = true;
    }
    return any;
}

static bool ask(struct moe *m, int slot, struct request *r, const float *part0, const float *part1)
{
    size_t bytes = (size_t)r->rows * (size_t)m->width * sizeof(float);

    return moe_ask(m, slot, r, part0, bytes, part1, part1 ? bytes : 0);
}

/* Spreads a rank's packed answer [rows][held][item] over out [rows][N][item]. */
static void unpack(const struct moe *m, int slot, int rank, int layer, int rows, size_t item, float *out)
{
    const void *payload = NULL;
    const struct answer *a = exchange_answer_of(m->exchange, slot, rank, &payload);
    const uint64_t *held = moe_held(m, layer, rank);
    const float *from = payload;
    int n = m->layers[layer].experts;

    BUG_ON(!a || a->rows != rows || a->bytes != (size_t)rows * (size_t)bits_count(held, n) * item * sizeof(float));
    for (int t = 0; t < rows; t++) {
        for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1), from += item) {
            memcpy(out + ((size_t)t * (size_t)n + (size_t)i) * item, from, item * sizeof(float));
        }
    }
}

status moe_collect(struct moe *m, int slot, int layer, int rows, size_t item, float *out, struct err *e)
{
    status s = exchange_wait(m->exchange, slot, e);

    for (int rank = 0; !s && rank < m->ranks; rank++) {
        if (rank != m->rank && moe_holds(m, layer, rank)) unpack(m, slot, rank, layer, rows, item, out);
    }
    return s;
}

status moe_teach_scores(struct moe *m, int slot, int layer, const float *h, const float *y, int rows, int k, float *score,
                        struct err *e)
{
    int n = m->layers[layer].experts;
    float share = n > 0 ? (float)k / (float)n : 0.0f;
    struct request r = {.kind = MOE_KIND_SCORES, .layer = layer, .rows = rows, .number = {(double)share}, .what = "scores"};

    check(m, slot, layer, rows);
    if (rows == 0 || n == 0) return OK;
    moe_slot_rows(m, &m->slot[slot], layer, h, rows);
    bool asked = ask(m, slot, &r, h, y);

    moe_work_scores(m, layer, &m->slot[slot].h, y, share, score, n, false);
    return asked ? moe_collect(m, slot, layer, rows, 1, score, e) : OK;
}

/* What becomes of the Gram matrix of every row. */
struct gram_use {
    uint64_t *set; /* the best set of k, or of as many as have a gain above `least` */
    int k;
    bool variable;
    double least;
    float *gain; /* or the gains themselves */
};

static void use_gram(struct moe *m, const struct gram_use *u, int row, int n)
{
    size_t at = (size_t)row;

    if (u->gain) {
        gram_gains(m->gain, m->gram, n);
        for (int i = 0; i < n; i++) u->gain[at * (size_t)n + (size_t)i] = (float)m->gain[i];
    } else if (u->variable) {
        gram_variable(u->set + at * (size_t)bits_words(n), m->gain, m->gram, n, u->least);
    } else {
        gram_best(u->set + at * (size_t)bits_words(n), m->gram, n, u->k);
    }
}

static status teach_gram(struct moe *m, int slot, int layer, const float *h, int rows, bool compensate, const struct gram_use *u,
                         struct err *e)
{
    const struct moe_layer *y = &m->layers[layer];
    int n = y->experts;
    size_t width = (size_t)m->width;
    struct request r = {.kind = MOE_KIND_ROWS, .layer = layer, .what = "labels"};

    check(m, slot, layer, rows);
    if (n == 0) return OK;
    compensate = compensate && y->mu_total;
    r.flags = compensate ? MOE_FLAG_COMPENSATE : 0;
    int most = (int)(m->piece_bytes / ((size_t)n * width * sizeof(float))); /* at least 1: see piece_bytes() */

    for (int first = 0; first < rows; first += most) {
        const float *from = h + (size_t)first * width;
        status s = OK;

        r.rows = rows - first < most ? rows - first : most;
        moe_slot_rows(m, &m->slot[slot], layer, from, r.rows);
        bool asked = ask(m, slot, &r, from, NULL);

        moe_work_rows(m, layer, &m->slot[slot].h, compensate, m->piece, n, false);
        if (asked) s = moe_collect(m, slot, layer, r.rows, width, m->piece, e);
        if (s) return s;
        for (int t = 0; t < r.rows; t++) {
            gram_matrix(m->gram, m->piece + (size_t)t * (size_t)n * width, n, m->width);
            use_gram(m, u, first + t, n);
        }
    }
    return OK;
}

status moe_teach_gram(struct moe *m, int slot, int layer, const float *h, int rows, int k, bool compensate, uint64_t *set,
                      struct err *e)
{
    return teach_gram(m, slot, layer, h, rows, compensate, &(struct gram_use){.set = set, .k = k}, e);
}

status moe_teach_gram_variable(struct moe *m, int slot, int layer, const float *h, int rows, double gain, bool compensate,
                               uint64_t *set, struct err *e)
{
    return teach_gram(m, slot, layer, h, rows, compensate, &(struct gram_use){.set = set, .variable = true, .least = gain}, e);
}

/* ---- neurons ---- */

int moe_held_neurons(const struct moe *m, int layer, int rank)
{
    const struct moe_layer *y = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, rank);
    int sum = 0, n = y->experts, shared = y->shared.down.lines ? y->shared.gate.rows : 0; /* the coordinator knows */

    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1))
        sum += y->expert[i].down.lines ? y->expert[i].gate.rows : group_size(m->neurons, shared, n, i);
    return sum;
}

struct cut { /* where a row's neurons are parted */
    struct moe *m;
    struct moe_slot *s;
    int first, neurons, active;
};

static void cut_task(void *ctx, int item, int worker)
{
    const struct cut *c = ctx;
    float *score = c->m->piece + (size_t)item * (size_t)c->neurons;

    (void)worker;
    c->s->threshold[c->first + item] = route_threshold(score, 1, c->neurons, c->active);
}

/* Rows first .. first + n - 1: scores of all ranks side by side, in any order of the ranks, and the threshold among them. */
static status cut_rows(struct moe *m, int slot, const struct rows *h, int first, int n, int neurons, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    int at = m->layers[s->layer].shared.down.lines ? m->layers[s->layer].shared.gate.rows : 0;
    struct request r = {.kind = MOE_KIND_NEURON_SCORES, .layer = s->layer, .rows = n, .what = "neurons"};
    size_t bytes = (size_t)n * moe_row_bytes(m);
    bool asked = false;
    status code = OK;

    for (int rank = 0; rank < m->ranks; rank++) {
        if (rank == m->rank || !moe_holds(m, s->layer, rank)) continue;
        char *room = exchange_room(m->exchange, slot, rank, bytes);

        for (int t = 0; t < n; t++) moe_put_row(m, room + (size_t)t * moe_row_bytes(m), h->x + (size_t)(first + t) * h->ld);
        exchange_post(m->exchange, slot, rank, &r, room, bytes, NULL, 0);
        asked = true;
    }
    moe_slot_rows(m, s, s->layer, h->x + (size_t)first * h->ld, n);
    moe_work_neuron_scores(m, s->layer, &s->h, true, m->piece, neurons);
    at += moe_held_neurons(m, s->layer, m->rank);
    if (asked) code = exchange_wait(m->exchange, slot, e);
    for (int rank = 0; !code && rank < m->ranks; rank++) {
        const void *payload = NULL;
        int held = rank == m->rank ? 0 : moe_held_neurons(m, s->layer, rank);

        if (held == 0) continue;
        const struct answer *a = exchange_answer_of(m->exchange, slot, rank, &payload);

        BUG_ON(!a || a->rows != n || a->bytes != (size_t)n * (size_t)held * sizeof(float));
        for (int t = 0; t < n; t++)
            memcpy(m->piece + (size_t)t * (size_t)neurons + at, (const float *)payload + (size_t)t * (size_t)held,
                   (size_t)held * sizeof(float));
        at += held;
    }
    BUG_ON(!code && at != neurons);
    return code;
}

status moe_teach_neurons(struct moe *m, int slot, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    const struct rows h = s->h;
    int neurons = m->neurons, active = s->kept;
    int most = (int)(m->piece_bytes / ((size_t)neurons * sizeof(float))); /* at least 1: see piece_bytes() */
    status code = OK;

    check(m, slot, s->layer, h.n);
    s->neurons = 0;
    for (int first = 0; first < h.n && !code; first += most) {
        int n = h.n - first < most ? h.n - first : most;

        code = cut_rows(m, slot, &h, first, n, neurons, e);
        if (code) break;
        gemm_parallel(m->gemm, n, cut_task, &(struct cut){m, s, first, neurons, active});
        for (int t = 0; t < n; t++)
            for (int j = 0; j < neurons; j++)
                s->neurons += m->piece[(size_t)t * (size_t)neurons + (size_t)j] > s->threshold[first + t];
    }
    moe_slot_rows(m, s, s->layer, h.x, h.n);
    return code;
}

status moe_dense(struct moe *m, int layer, const float *h, int rows, float *y, struct err *e)
{
    return moe_teach_dense(m, 0, layer, h, rows, y, e);
}

status moe_paper_scores(struct moe *m, int layer, const float *h, const float *y, int rows, int k, float *score, struct err *e)
{
    return moe_teach_scores(m, 0, layer, h, y, rows, k, score, e);
}

status moe_gram_sets(struct moe *m, int layer, const float *h, int rows, int k, bool compensate, uint64_t *set, struct err *e)
{
    return moe_teach_gram(m, 0, layer, h, rows, k, compensate, set, e);
}

status moe_gram_gains(struct moe *m, int layer, const float *h, int rows, bool compensate, float *gain, struct err *e)
{
    return teach_gram(m, 0, layer, h, rows, compensate, &(struct gram_use){.gain = gain}, e);
}
