/* Gradients through the factorized FFN, over the ranks.
 *
 * Expert i of neurons j: a = W_gate h, b = W_up h, z = silu(a) * b, e_i = W_down z.  With u = W_down' dy its gate has the gradient <dy, e_i> = sum_j z_j u_j, and what goes
 * back to h is W_gate' (u b silu'(a)) + W_up' (u silu(a)): one product with both matrices side by side.
 * So a rank needs the rows of h and dy and the sets, and keeps nothing between the forward pass and this: out go rows, back come one row for all its experts and one number
 * for each.  Two loops over all threads as in moe_work.c: the first computes the neurons' gradients, of all rows, because an expert that was not chosen has a gradient of its
 * gate, too; the second adds up, exactly, what the active ones pass back.
 */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/backward.h"

enum { TILE_ROWS = 96, TILE_PANELS = 8, TILE_CELLS = TILE_ROWS * TILE_PANELS * PANEL_LANES };
_Static_assert((3 * TILE_CELLS + TILE_ROWS) * sizeof(float) <= GEMM_ROOM_BYTES, "gate, up and their gradient of a task");

struct back {
    struct moe_work w;
    struct rows dy;
    float *gate; /* [rows][stride] */
    int stride, tiles;
};

/* ---- the neurons of an expert over some rows ---- */

struct tile {
    const struct expert *x;
    const struct moe_share *share; /* NULL: no row of the block has it */
    int row, rows;                 /* of the job */
    int place;                     /* among the gates of a row, -1: the shared expert has none */
};

static const struct moe_share *share_of(const struct moe_work *w, const struct expert *x)
{
    for (int s = 0; s < w->shares; s++)
        if (w->share[s].x == x) return &w->share[s];
    return NULL;
}

/* Task `item` is one tile of rows of one held expert; the last ones are the shared expert's. */
static struct tile tile_of(const struct back *b, int item)
{
    const struct moe_work *w = &b->w;
    const struct moe *m = w->m;
    const struct moe_layer *y = &m->layers[w->job->layer];
    const uint64_t *held = moe_held(m, w->job->layer, m->rank);
    int number = item / b->tiles, at = item % b->tiles, i = y->experts ? bits_next(held, y->experts, 0) : 0;
    struct tile t = {.row = w->first + (int)((long)w->rows * at / b->tiles)};

    t.rows = w->first + (int)((long)w->rows * (at + 1) / b->tiles) - t.row;
    for (int n = 0; n < number && i < y->experts; n++) i = bits_next(held, y->experts, i + 1);
    t.x = i < y->experts ? &y->expert[i] : &y->shared;
    t.place = i < y->experts ? (w->packed ? number : i) : -1;
    t.share = share_of(w, t.x);
    return t;
}

/* The gradients of columns first .. of an active row into its place between the loops: those of the gates, then those of the ups. */
static void keep(const struct moe_share *s, int at, const float *gate, const float *up, int first, int columns)
{
    float *z = (float *)s->z.x + (size_t)at * s->z.ld + first;

    memcpy(z, gate, (size_t)columns * sizeof(*z));
    memcpy(z + s->x->gate.rows, up, (size_t)columns * sizeof(*z));
}

static int first_at_least(const struct moe_share *s, int row)
{
    int low = 0, high = s ? s->z.n : 0;

    while (low < high) {
        int middle = (low + high) / 2;

        if (s->row[middle] < row) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void neurons_task(void *ctx, int item, int worker)
{
    const struct back *b = ctx;
    const struct moe_work *w = &b->w;
    struct tile t = tile_of(b, item);
    int neurons = t.x->gate.rows, begin = first_at_least(t.share, t.row);
    const int *index = w->m->all + t.row;
    float *gate = gemm_room(w->m->gemm, worker), *up = gate + TILE_CELLS, *dz = up + TILE_CELLS, *along = dz + TILE_CELLS;
    void *scratch = gemm_scratch(w->m->gemm, worker);

    memset(along, 0, TILE_ROWS * sizeof(*along));
    for (int first = 0; first < packed_panels(neurons); first += TILE_PANELS) {
        int panels = packed_panels(neurons) - first < TILE_PANELS ? packed_panels(neurons) - first : TILE_PANELS;
        int lanes = panels * PANEL_LANES, from = first * PANEL_LANES, at = begin;
        int columns = neurons - from < lanes ? neurons - from : lanes;
        size_t ld = (size_t)lanes;

        w->kernel->product(gate, ld, w->job->h, index, t.rows, &t.x->gate, first, panels, scratch);
        w->kernel->product(up, ld, w->job->h, index, t.rows, &t.x->up, first, panels, scratch);
        w->kernel->product(dz, ld, &b->dy, index, t.rows, &t.x->down_t, first, panels, scratch);
        for (int r = 0; r < t.rows; r++) {
            float *g = gate + (size_t)r * ld, *u = up + (size_t)r * ld;

            along[r] += silu_mul_backward(g, u, dz + (size_t)r * ld, lanes);
            if (t.share && at < t.share->z.n && t.share->row[at] == t.row + r) keep(t.share, at++, g, u, from, columns);
        }
    }
    for (int r = 0; t.place >= 0 && r < t.rows; r++)
        b->gate[(size_t)(t.row + r) * (size_t)b->stride + (size_t)t.place] = w->job->scale * along[r];
    if (worker == 0) moe_progress(w->m);
}

/* ---- the work of a rank ---- */

void moe_work_backward(struct moe *m, const struct moe_job *job, const float *dy, int64_t *sum, float *gate, int stride,
                       bool packed)
{
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    const struct moe_layer *y = &m->layers[job->layer];
    int rows = job->h->n, each = moe_work_rows_at_once(m, job->layer, true), n = y->experts;
    int experts = (n ? bits_count(moe_held(m, job->layer, m->rank), n) : 0) + (job->shared && y->shared.down.lines);

    for (int first = 0; first < rows; first += each) {
        struct back b = {.w = {.backward = true, .as = MOE_ANSWERS_EXACT, .out = sum, .packed = packed},
                         .dy = {.x = dy, .ld = (size_t)m->width, .n = rows, .cols = m->width},
                         .gate = gate,
                         .stride = stride};
        int some = rows - first < each ? rows - first : each;

        moe_work_begin(&b.w, m, job, first, some);
        b.tiles = (some + TILE_ROWS - 1) / TILE_ROWS;
        moe_work_loop(&b.w, experts * b.tiles, neurons_task, &b);
        if (sum) moe_work_out(&b.w);
    }
    timing_enter(m->timing, was);
}

static status check_gradients(struct moe *m, int layer, struct err *e)
{
    double found = m->excess;

    m->excess = 0;
    if (found == 0) return OK;
    return err_set(e, ERR_LIMIT, "layer %d: gradients of experts add up to %g; expected less than %g, up to which sums are exact",
                   layer, found, SUM_LIMIT);
}

/* ---- a follower ---- */

void moe_answer_backward(struct moe *m, struct exchange *x, const struct request *r, const char *payload)
{
    const struct moe_layer *y = &m->layers[r->layer];
    bool sums = !(r->flags & MOE_FLAG_GATES);
    size_t n = (size_t)r->rows, width = (size_t)m->width, sets = moe_line(n * (size_t)bits_words(y->experts) * sizeof(uint64_t));
    int held = bits_count(moe_held(m, r->layer, m->rank), y->experts);
    size_t sum_bytes = sums ? n * width * sizeof(int64_t) : 0, bytes = sum_bytes + n * (size_t)held * sizeof(float);
    struct rows h = {.x = (const float *)(const void *)(payload + sets), .ld = width, .n = r->rows, .cols = m->width};
    struct moe_job job = {
        .layer = r->layer, .h = &h, .set = (const uint64_t *)(const void *)payload, .scale = (float)r->number[0]};
    char *room = exchange_answer_room(x, bytes);
    struct err mine = {0};

    BUG_ON(!m->limits.train || r->bytes != sets + 2 * n * width * sizeof(float));
    moe_prepare(m, r->layer, &h, m->quantized);
    moe_work_backward(m, &job, h.x + n * width, sums ? (int64_t *)(void *)room : NULL, (float *)(void *)(room + sum_bytes), held,
                      true);
    if (r->flags & MOE_FLAG_LEARN) moe_work_learn(m, &job, h.x + n * width);
    if (check_gradients(m, r->layer, &mine)) exchange_answer(x, r, mine.code, 0, mine.text, strlen(mine.text) + 1);
    else exchange_answer(x, r, OK, r->rows, room, bytes);
}

/* ---- the coordinator ---- */

static void post(struct moe *m, int rank, const struct request *r, const struct moe_slot *s, const float *dy)
{
    size_t n = (size_t)r->rows, values = n * (size_t)m->width * sizeof(float);
    size_t set = n * (size_t)bits_words(m->layers[r->layer].experts) * sizeof(uint64_t), bytes = moe_line(set) + 2 * values;
    char *room = exchange_room(m->exchange, 0, rank, bytes);

    memcpy(room, s->set, set);
    memcpy(room + moe_line(set), s->h.x, values);
    memcpy(room + moe_line(set) + values, dy, values);
    exchange_post(m->exchange, 0, rank, r, room, bytes, NULL, 0);
}

/* A rank's sums are added to ours, and its gates go where they belong. */
static bool join(struct moe *m, int rank, int layer, int rows, bool sums, float *dgate, double *found)
{
    const void *payload = NULL;
    const struct answer *a = exchange_answer_of(m->exchange, 0, rank, &payload);
    const uint64_t *held = moe_held(m, layer, rank);
    int n = m->layers[layer].experts, count = bits_count(held, n);
    size_t values = (size_t)rows * (size_t)m->width, sum_bytes = sums ? values * sizeof(int64_t) : 0;
    const float *gate = (const float *)(const void *)((const char *)payload + sum_bytes);
    bool ok = true;

    BUG_ON(!a || a->rows != rows || a->bytes != sum_bytes + (size_t)rows * (size_t)count * sizeof(float));
    for (int t = 0; t < rows; t++) {
        size_t at = (size_t)t * (size_t)m->width;

        if (sums) ok = exact_join(m->sum + at, (const int64_t *)payload + at, m->width, found) && ok;
        for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1))
            dgate[(size_t)t * (size_t)n + (size_t)i] = *gate++;
    }
    return ok;
}

static status backward(struct moe *m, int layer, const float *h, const uint64_t *set, const float *dy, int rows, float scale,
                       bool learn, float *dh, float *dgate, struct err *e)
{
    struct moe_slot *s = &m->slot[0];
    int n = m->layers[layer].experts;
    struct request r = {.kind = MOE_KIND_BACKWARD, .layer = layer, .rows = rows, .number = {(double)scale}, .what = "gradients"};
    struct moe_job job = {.layer = layer, .h = &s->h, .set = s->set, .shared = true, .scale = scale};
    double found = 0;
    bool asked = false;

    BUG_ON(!m->coordinator || !m->limits.train || s->busy || rows < 0 || rows > m->limits.rows);
    if (rows == 0) return OK;
    r.flags = (dh ? 0 : MOE_FLAG_GATES) | (learn ? MOE_FLAG_LEARN : 0);
    moe_slot_rows(m, s, layer, h, rows);
    memcpy(s->set, set, (size_t)rows * (size_t)bits_words(n) * sizeof(*set));
    for (int rank = 0; rank < m->ranks; rank++) {
        if (rank == m->rank || !moe_holds(m, layer, rank)) continue;
        post(m, rank, &r, s, dy);
        asked = true;
    }
    m->excess = 0;
    moe_work_backward(m, &job, dy, dh ? m->sum : NULL, dgate, n, false);
    if (learn) moe_work_learn(m, &job, dy);
    if (asked && exchange_wait(m->exchange, 0, e)) return e->code;
    for (int rank = 0; asked && rank < m->ranks; rank++)
        if (rank != m->rank && moe_holds(m, layer, rank) && !join(m, rank, layer, rows, dh != NULL, dgate, &found))
            moe_note_excess(m, found);
    if (check_gradients(m, layer, e)) return e->code;
    for (int t = 0; dh && t < rows; t++)
        exact_finish(dh + (size_t)t * (size_t)m->width, m->sum + (size_t)t * (size_t)m->width, m->width);
    return OK;
}

status moe_backward(struct moe *m, int layer, const float *h, const uint64_t *set, const float *dy, int rows, float scale,
                    float *dh, float *dgate, struct err *e)
{
    return backward(m, layer, h, set, dy, rows, scale, false, dh, dgate, e);
}

status moe_backward_learn(struct moe *m, int layer, const float *h, const uint64_t *set, const float *dy, int rows, float scale,
                          float *dh, float *dgate, struct err *e)
{
    return backward(m, layer, h, set, dy, rows, scale, true, dh, dgate, e);
}
