/* Gradients through the factorized FFN, over the ranks.
 *
 * Expert i of neurons j: a = W_gate h, b = W_up h, z = silu(a) * b, e_i = W_down z.  With u = W_down' dy its gate has the gradient <dy, e_i> = sum_j z_j u_j, and what goes
 * back to h is W_gate' (u b silu'(a)) + W_up' (u silu(a)): one product with both matrices side by side.
 * So a rank needs the rows of h and dy and the sets, and keeps nothing between the forward pass and this: out go rows, back come one row for all its experts and one number
 * for each.  Two loops over all threads as in moe_work.c: the first computes the neurons' gradients, of all rows, because an expert that was not chosen has a gradient of its
 * gate, too, so neurons are joined (moe_joined.c); the second adds up, exactly, what the active ones pass back.
 */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/backward.h"

enum { TILE_ROWS = 96, TILE_PANELS = 8, TILE_CELLS = TILE_ROWS * TILE_PANELS * PANEL_LANES, FEW_ROWS = 24, FINISH_ROWS = 8 };
_Static_assert(3 * TILE_CELLS * sizeof(float) <= GEMM_ROOM_BYTES, "gate, up and their gradient of a task");

struct back {
    struct moe_work w;
    struct rows dy;
    float *gate; /* [rows][stride] */
    int stride, tiles, parts;
};

/* ---- the neurons over some rows ---- */

struct tile { /* columns first .. first + columns - 1 of all held neurons */
    float *gate, *up, *dz;
    size_t ld;
    int row, rows, first, columns;
};

/* Gradients of part p's columns from .. to - 1: the gates' are added up, neuron by neuron, so that no cut into columns shows; those of active rows go into their place between
 * the loops, where gates come first, then ups. */
static void keep(const struct back *b, const struct tile *t, const struct moe_part *p, int from, int to)
{
    const struct moe_share *s = p->share;
    size_t column = (size_t)(from - t->first), bytes = (size_t)(to - from) * sizeof(float);

    for (int r = 0; p->place >= 0 && r < t->rows; r++) {
        const float *dz = t->dz + (size_t)r * t->ld + column;
        float *at = b->gate + (size_t)(t->row + r) * (size_t)b->stride + (size_t)p->place, sum = from > p->column ? *at : 0.0f;

        for (int j = 0; j < to - from; j++) sum += dz[j];
        *at = sum;
    }
    for (int at = s ? moe_share_row(s, t->row) : 0; s && at < s->z.n && s->row[at] < t->row + t->rows; at++) {
        float *z = (float *)s->z.x + (size_t)at * s->z.ld + (size_t)(from - p->column);
        size_t cell = (size_t)(s->row[at] - t->row) * t->ld + column;

        memcpy(z, t->gate + cell, bytes);
        memcpy(z + p->neurons, t->up + cell, bytes);
    }
}

/* A tile of rows, and all columns: an expert may lie across two pieces of them. */
static void neurons_task(void *ctx, int item, int worker)
{
    const struct back *b = ctx;
    const struct moe_work *w = &b->w;
    const struct moe_joined *j = &w->m->joined[w->job->layer];
    const struct moe_part *part = w->m->part;
    float *room = gemm_room(w->m->gemm, worker);
    struct tile t = {.gate = room, .up = room + TILE_CELLS, .dz = room + 2 * TILE_CELLS};
    void *scratch = gemm_scratch(w->m->gemm, worker);

    t.row = w->first + (int)((long)w->rows * item / b->tiles);
    t.rows = w->first + (int)((long)w->rows * (item + 1) / b->tiles) - t.row;
    for (int first = 0, i = 0; first < packed_panels(j->gate.rows); first += TILE_PANELS) {
        int panels = packed_panels(j->gate.rows) - first < TILE_PANELS ? packed_panels(j->gate.rows) - first : TILE_PANELS;
        const int *index = w->m->all + t.row;

        t.ld = (size_t)panels * PANEL_LANES, t.first = first * PANEL_LANES;
        t.columns = j->gate.rows - t.first < (int)t.ld ? j->gate.rows - t.first : (int)t.ld;
        w->kernel->product(t.gate, t.ld, w->job->h, index, t.rows, &j->gate, first, panels, scratch);
        w->kernel->product(t.up, t.ld, w->job->h, index, t.rows, &j->up, first, panels, scratch);
        w->kernel->product(t.dz, t.ld, &b->dy, index, t.rows, &j->down_t, first, panels, scratch);
        silu_mul_backward(t.gate, t.up, t.dz, t.rows * (int)t.ld);
        for (int end = t.first + t.columns; i < b->parts && part[i].column < end; i++) {
            int from = part[i].column > t.first ? part[i].column : t.first, to = part[i].column + part[i].neurons;

            keep(b, &t, &part[i], from, to < end ? to : end);
            if (to > end) break; /* it goes on in the next piece */
        }
    }
    for (int i = 0; i < b->parts; i++)
        for (int r = t.row; part[i].place >= 0 && r < t.row + t.rows; r++)
            b->gate[(size_t)r * (size_t)b->stride + (size_t)part[i].place] *= w->job->scale;
    if (worker == 0) moe_progress(w->m);
}

/* ---- the work of a rank ---- */

void moe_work_backward(struct moe *m, const struct moe_job *job, const float *dy, int64_t *sum, float *gate, int stride,
                       bool packed)
{
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    int rows = job->h->n, each = moe_work_rows_at_once(m, job->layer, true), threads = threads_count(gemm_threads(m->gemm));

    if (m->limits.adapt) moe_join(m, job->layer); /* weights may have changed */
    for (int first = 0; first < rows; first += each) {
        struct back b = {.w = {.backward = true, .as = MOE_ANSWERS_EXACT, .out = sum, .packed = packed},
                         .dy = {.x = dy, .ld = (size_t)m->width, .n = rows, .cols = m->width},
                         .gate = gate,
                         .stride = stride};
        int some = rows - first < each ? rows - first : each;

        moe_work_begin(&b.w, m, job, first, some);
        b.parts = moe_parts(&b.w);
        b.tiles = (some + TILE_ROWS - 1) / TILE_ROWS;
        b.tiles = some < threads * FEW_ROWS ? b.tiles : (b.tiles + threads - 1) / threads * threads;
        moe_work_loop(&b.w, b.tiles, neurons_task, &b);
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

struct finish {
    struct moe *m;
    float *dh;
    int rows;
};

static void finish_task(void *ctx, int item, int worker)
{
    const struct finish *f = ctx;
    size_t width = (size_t)f->m->width, at = (size_t)item * FINISH_ROWS * width;
    int rows = f->rows - item * FINISH_ROWS < FINISH_ROWS ? f->rows - item * FINISH_ROWS : FINISH_ROWS;

    (void)worker;
    exact_finish(f->dh + at, f->m->sum + at, rows * f->m->width);
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
    if (dh) gemm_parallel(m->gemm, (rows + FINISH_ROWS - 1) / FINISH_ROWS, finish_task, &(struct finish){m, dh, rows});
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
