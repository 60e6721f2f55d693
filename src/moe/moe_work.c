/* What a rank computes for the experts it holds, and a follower's answers. */
#include <math.h>
#include <string.h>

#include "base/bits.h"
#include "moe/labels.h"
#include "moe/moe_internal.h"

enum { ROWS_PER_TASK = 8 };

/* Adding an expert's rows into the sums, spread over the threads: every row of the block has its own row of the sum. */
struct scatter {
    const float *out, *mu; /* mu: NULL without compensation */
    const int *index;      /* row of the sum, or NULL: the block's own rows */
    double *sum;
    float scale;
    int rows, width;
    struct moe *moe;
};

void moe_note_excess(struct moe *m, const double *sum)
{
    int d = 0;

    while (d < m->width - 1 && fabs(sum[d]) < SUM_LIMIT) d++;
    double found = sum[d];
    __atomic_store(&m->excess, &found, __ATOMIC_RELAXED); /* any thread's will do: it is only shown */
}

static void scatter_rows(void *ctx, int task, int worker)
{
    const struct scatter *s = ctx;
    int end = (task + 1) * ROWS_PER_TASK < s->rows ? (task + 1) * ROWS_PER_TASK : s->rows;

    (void)worker;
    for (int t = task * ROWS_PER_TASK; t < end; t++) {
        const float *out = s->out + (size_t)t * (size_t)s->width;
        double *sum = s->sum + (size_t)(s->index ? s->index[t] : t) * (size_t)s->width;

        bool bad = false;

        if (s->mu) {
            for (int d = 0; d < s->width; d++) bad |= !(fabs(sum[d] += grid(s->scale * out[d]) - grid(s->mu[d])) < SUM_LIMIT);
        } else {
            for (int d = 0; d < s->width; d++) bad |= !(fabs(sum[d] += grid(s->scale * out[d])) < SUM_LIMIT);
        }
        if (bad) moe_note_excess(s->moe, sum);
    }
}

static void scatter_add(struct moe *m, struct scatter *s)
{
    int tasks = (s->rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;

    if (tasks == 1) scatter_rows(s, 0, 0);
    else gemm_parallel(m->gemm, tasks, scatter_rows, s);
}

status moe_check_sums(struct moe *m, int layer, struct err *e)
{
    double found = m->excess;

    m->excess = 0;
    if (found == 0) return OK;
    return err_set(e, ERR_LIMIT, "layer %d: outputs of experts add up to %g; expected less than %g, up to which sums are exact",
                   layer, found, SUM_LIMIT);
}

static int block_rows(const struct moe *m, const struct expert *x)
{
    size_t fit = x->gate.rows > 0 ? m->scratch_floats / (2 * (size_t)x->gate.rows) : 1;

    BUG_ON(fit == 0);
    return fit < (size_t)m->block ? (int)fit : m->block;
}

/* sum[index[t]] += grid(scale * e(h[index[t]])) - grid(mu); index NULL: rows 0, 1, ...  Runs of rows are used where they stand. */
static void add_expert(struct moe *m, const struct expert *x, const float *h, const int *index, int rows, bool fixed, float scale,
                       const float *mu, double *sum)
{
    size_t width = (size_t)m->width;
    int most = block_rows(m, x);

    for (int first = 0; first < rows; first += most) {
        int n = rows - first < most ? rows - first : most;
        const int *at = index ? index + first : NULL;
        const float *in = h + (size_t)(at ? at[0] : first) * width;
        struct scatter s = {m->block_out, mu, at, at ? sum : sum + (size_t)first * width, scale, n, m->width, m};

        if (at && at[n - 1] - at[0] != n - 1) {
            for (int t = 0; t < n; t++) memcpy(m->block_in + (size_t)t * width, h + (size_t)at[t] * width, width * sizeof(float));
            in = m->block_in;
        }
        expert_output(m->gemm, m->block_out, x, in, n, fixed, m->scratch);
        scatter_add(m, &s);
        moe_progress(m);
    }
}

void moe_work_expert(struct moe *m, const struct expert *x, const float *h, int rows, bool fixed, double *sum)
{
    add_expert(m, x, h, NULL, rows, fixed, 1.0f, NULL, sum);
}

void moe_work_static(struct moe *m, int layer, const float *h, int rows, double *sum)
{
    const struct moe_layer *y = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);

    for (int i = bits_next(held, y->experts, 0); i < y->experts; i = bits_next(held, y->experts, i + 1)) {
        moe_work_expert(m, &y->expert[i], h, rows, true, sum);
    }
}

void moe_work_sum(struct moe *m, int layer, const float *h, const uint64_t *set, int rows, float scale, bool compensate,
                  double *sum)
{
    const struct moe_layer *y = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);
    int n = y->experts, words = bits_words(n);

    for (int w = 0; w < words; w++) {
        m->wanted[w] = 0;
        for (int t = 0; t < rows; t++) m->wanted[w] |= set[(size_t)t * (size_t)words + (size_t)w];
        m->wanted[w] &= held[w];
    }
    BUG_ON(compensate && !y->mu);
    for (int i = bits_next(m->wanted, n, 0); i < n; i = bits_next(m->wanted, n, i + 1)) {
        const float *mu = compensate ? y->mu + (size_t)i * (size_t)m->width : NULL;
        int active = 0;

        for (int t = 0; t < rows; t++) {
            if (bits_has(set + (size_t)t * (size_t)words, i)) m->index[active++] = t;
        }
        add_expert(m, &y->expert[i], h, m->index, active, false, scale, mu, sum);
    }
}

void moe_work_scores(struct moe *m, int layer, const float *h, const float *y, int rows, float share, float *out, int stride,
                     bool packed)
{
    const struct moe_layer *l = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);
    size_t width = (size_t)m->width;
    int place = 0;

    for (int i = bits_next(held, l->experts, 0); i < l->experts; i = bits_next(held, l->experts, i + 1), place++) {
        const struct expert *x = &l->expert[i];
        int most = block_rows(m, x), at = packed ? place : i;

        for (int first = 0; first < rows; first += most) {
            int n = rows - first < most ? rows - first : most;

            expert_output(m->gemm, m->block_out, x, h + (size_t)first * width, n, false, m->scratch);
            for (int t = 0; t < n; t++) {
                const float *dense = y + (size_t)(first + t) * width;

                out[(size_t)(first + t) * (size_t)stride + (size_t)at] =
                    paper_score(m->block_out + (size_t)t * width, dense, share, m->width);
            }
            moe_progress(m);
        }
    }
}

void moe_work_rows(struct moe *m, int layer, const float *h, int rows, bool compensate, float *out, int stride, bool packed)
{
    const struct moe_layer *l = &m->layers[layer];
    const uint64_t *held = moe_held(m, layer, m->rank);
    size_t width = (size_t)m->width;
    int place = 0;

    for (int i = bits_next(held, l->experts, 0); i < l->experts; i = bits_next(held, l->experts, i + 1), place++) {
        const struct expert *x = &l->expert[i];
        const float *mu = compensate ? l->mu + (size_t)i * width : NULL;
        int most = block_rows(m, x), at = packed ? place : i;

        for (int first = 0; first < rows; first += most) {
            int n = rows - first < most ? rows - first : most;

            expert_output(m->gemm, m->block_out, x, h + (size_t)first * width, n, false, m->scratch);
            for (int t = 0; t < n; t++) {
                const float *from = m->block_out + (size_t)t * width;
                float *to = out + ((size_t)(first + t) * (size_t)stride + (size_t)at) * width;

                for (size_t d = 0; d < width; d++) to[d] = mu ? from[d] - mu[d] : from[d];
            }
            moe_progress(m);
        }
    }
}

void moe_answer(struct moe *m, const struct request *r, const void *payload)
{
    int layer = r->layer, rows = r->rows;

    BUG_ON(m->rank == 0 || layer < 0 || layer >= m->n_layers || rows < 0 || rows > m->limits.rows);
    int words = bits_words(m->layers[layer].experts), held = bits_count(moe_held(m, layer, m->rank), m->layers[layer].experts);
    size_t values = (size_t)rows * (size_t)m->width, sets = (size_t)rows * (size_t)words * sizeof(uint64_t);
    size_t sum_bytes = values * sizeof(double), row_bytes = values * sizeof(float);
    const float *h = (const float *)((const char *)payload + (r->kind == MOE_KIND_SUM ? sets : 0));
    bool compensate = r->flags & MOE_FLAG_COMPENSATE;
    struct err mine = {0};

    switch (r->kind) {
    case MOE_KIND_SUM:
        BUG_ON(r->bytes != sets + row_bytes);
        memset(m->sum, 0, sum_bytes);
        moe_work_sum(m, layer, h, payload, rows, (float)r->number[0], compensate, m->sum);
        if (moe_check_sums(m, layer, &mine)) break;
        exchange_answer(m->exchange, r, OK, rows, m->sum, sum_bytes);
        break;
    case MOE_KIND_STATIC:
        BUG_ON(r->bytes != row_bytes);
        memset(m->sum, 0, sum_bytes);
        moe_work_static(m, layer, h, rows, m->sum);
        if (moe_check_sums(m, layer, &mine)) break;
        exchange_answer(m->exchange, r, OK, rows, m->sum, sum_bytes);
        break;
    case MOE_KIND_SCORES:
        BUG_ON(!m->limits.oracle || r->bytes != 2 * row_bytes);
        moe_work_scores(m, layer, h, h + values, rows, (float)r->number[0], m->piece, held, true);
        exchange_answer(m->exchange, r, OK, rows, m->piece, (size_t)rows * (size_t)held * sizeof(float));
        break;
    case MOE_KIND_ROWS:
        BUG_ON(!m->limits.oracle || r->bytes != row_bytes || row_bytes * (size_t)held > m->piece_bytes);
        moe_work_rows(m, layer, h, rows, compensate, m->piece, held, true);
        exchange_answer(m->exchange, r, OK, rows, m->piece, row_bytes * (size_t)held);
        break;
    default:
        BUG_ON(true); /* not a request for the experts: our caller sorts them */
    }
    if (mine.code) exchange_answer(m->exchange, r, mine.code, 0, mine.text, strlen(mine.text) + 1);
}
