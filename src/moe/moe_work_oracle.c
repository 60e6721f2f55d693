/* What the oracles want of the experts of a rank: their outputs, each alone, and the scores of neurons.  The first loop is that of moe_work.c. */
#include <math.h>

#include "base/bits.h"
#include "moe/labels.h"
#include "moe/moe_internal.h"

enum { MOST_ROWS = 64 }; /* of a task */

/* ---- outputs ---- */

/* As many rows as fit with all their columns. */
static int output_rows(const struct moe *m)
{
    size_t row = (size_t)packed_panels(m->width) * PANEL_LANES * sizeof(float), fit = GEMM_ROOM_BYTES / row;

    BUG_ON(fit < 1);
    return fit < MOST_ROWS ? (int)fit : MOST_ROWS;
}

static void output_row(const struct moe_work *w, const struct moe_share *s, const float *e, int t)
{
    size_t width = (size_t)w->m->width, at = (size_t)t * (size_t)w->oracle.stride + (size_t)s->place;

    if (w->oracle.dense) {
        w->oracle.to[at] = paper_score(e, w->oracle.dense + (size_t)t * width, w->oracle.part, w->m->width);
        return;
    }
    if (w->oracle.norm) {
        double sum = 0;

        for (size_t d = 0; d < width; d++) sum += (double)e[d] * e[d];
        w->oracle.to[at] = (float)sum;
        return;
    }
    for (size_t d = 0; d < width; d++) w->oracle.to[at * width + d] = s->mu ? e[d] - s->mu[d] : e[d];
}

static void output_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    const struct moe_share *s = &w->share[item / w->out_blocks];
    int first = item % w->out_blocks * w->out_rows, n = w->rows - first < w->out_rows ? w->rows - first : w->out_rows;
    size_t ld = (size_t)packed_panels(w->m->width) * PANEL_LANES;
    float *y = gemm_room(w->m->gemm, worker);
    struct rows z = moe_work_part(&s->z, first, n);

    w->kernel->product(y, ld, &z, NULL, n, &s->x->down, 0, packed_panels(w->m->width), gemm_scratch(w->m->gemm, worker));
    for (int t = 0; t < n; t++) output_row(w, s, y + (size_t)t * ld, w->first + first + t);
    moe_work_progress(w, worker);
}

void moe_work_outputs(struct moe *m, const struct moe_job *job, struct moe_work like)
{
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    int rows = job->h->n, each = moe_work_rows_at_once(m, job->layer, false);

    for (int first = 0; first < rows; first += each) {
        struct moe_work w = like;

        moe_work_begin(&w, m, job, first, rows - first < each ? rows - first : each);
        w.out_rows = output_rows(m);
        w.out_blocks = (w.rows + w.out_rows - 1) / w.out_rows;
        moe_work_in(&w);
        moe_work_loop(&w, w.shares * w.out_blocks, output_task, &w);
        moe_work_count(&w);
    }
    timing_enter(m->timing, was);
}

void moe_work_scores(struct moe *m, int layer, const struct rows *h, const float *y, float share, float *out, int stride,
                     bool packed)
{
    struct moe_job job = {.layer = layer, .h = h, .scale = 1.0f};

    moe_work_outputs(m, &job,
                     (struct moe_work){.oracle = {.dense = y, .part = share, .to = out, .stride = stride}, .packed = packed});
}

void moe_work_rows(struct moe *m, int layer, const struct rows *h, bool compensate, float *out, int stride, bool packed)
{
    struct moe_job job = {.layer = layer, .h = h, .scale = 1.0f, .compensate = compensate};

    moe_work_outputs(m, &job, (struct moe_work){.oracle = {.to = out, .stride = stride}, .packed = packed});
}

/* ---- neurons ---- */

/* In the order of the columns' elements, in double: the same bits wherever the expert is. */
static void norms_of(float *out, const struct packed *down)
{
    for (int j = 0; j < down->cols; j++) {
        double sum = 0;

        for (int d = 0; d < down->rows; d++) sum += (double)packed_at(down, d, j) * (double)packed_at(down, d, j);
        out[j] = (float)sqrt(sum);
    }
}

const float *moe_norms(struct moe *m, int layer)
{
    const struct moe_layer *y = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);
    float *norm = m->norm + (size_t)layer * (size_t)m->norm_room;
    int at = 0, n = y->experts;

    BUG_ON(!m->limits.oracle || m->need[layer] > m->norm_room);
    if (m->normed[layer]) return norm;
    if (m->coordinator && y->shared.down.lines) {
        norms_of(norm, &y->shared.down);
        at = y->shared.gate.rows;
    }
    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1)) {
        norms_of(norm + at, &y->expert[i].down);
        at += y->expert[i].gate.rows;
        moe_progress(m);
    }
    m->normed[layer] = true;
    return norm;
}

static void scores_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    int row = w->first + item;
    float *to = w->oracle.to + (size_t)row * (size_t)w->oracle.stride;

    for (int s = 0; s < w->shares; s++) {
        const struct moe_share *x = &w->share[s];
        const float *z = x->z.x + (size_t)item * x->z.ld;

        for (int j = 0; j < x->z.cols; j++) *to++ = moe_neuron_score(z[j], x->norm[j]);
    }
    moe_work_progress(w, worker);
}

void moe_work_neuron_scores(struct moe *m, int layer, const struct rows *h, bool shared, float *out, int stride)
{
    struct moe_job job = {.layer = layer, .h = h, .shared = shared, .scale = 1.0f};
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    int rows = h->n, each = moe_work_rows_at_once(m, layer, false);

    for (int first = 0; first < rows; first += each) {
        struct moe_work w = {.oracle = {.to = out, .stride = stride}, .norms = true};

        moe_work_begin(&w, m, &job, first, rows - first < each ? rows - first : each);
        moe_work_in(&w);
        moe_work_loop(&w, w.rows, scores_task, &w);
        moe_work_count(&w);
    }
    timing_enter(m->timing, was);
}
