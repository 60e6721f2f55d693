/* The experts of a rank at work, in one of two ways, which give the same bits.
 *
 * Two loops over all threads for a layer, however many experts it has.  First z = silu(gate h) * (up h), for every expert and its rows, cut by expert, rows and
 * panels; gate and up of a panel one after the other, so that the rows come from the cache the second time, and their product while both are hot.  Then the sums
 * of down z, cut by rows and by columns of the output: a task owns its piece of the sums, which stays in the cache while all experts pass, so that there is
 * nothing to wait for between experts.  Rows are not gathered: a product takes the numbers of its rows.
 * Or one loop, for few rows through many small experts: moe_few.c.
 * What the oracles want instead of sums, after the same first loop: moe_work_oracle.c and moe_rest.c; gradients: moe_backward.c.
 */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/exact_product.h"
#include "num/half.h"
#include "num/ops.h"
#include "num/pair_product.h"
#include "num/widen.h"

enum {
    SERIAL_BELOW = 1 << 17, /* multiplications: waking the threads would take longer */
    FEW_ROWS = 8,
    IN_ROWS = 96,   /* of a task of the first loop, if weights are not spread (gemm.h) */
    IN_PANELS = 8,  /* even: z is quantized in blocks of two panels */
    FEW_PANELS = 4, /* of few rows */
    OUT_ROWS = 64,  /* of a task of the second loop, if weights are not spread */
    OUT_PANELS = 8,
    FINE = 32,         /* neurons: the sums of such experts stay in the first cache, and products go into them directly */
    FINE_ROWS = 128,   /* of a task of the second loop */
    FINE_CELLS = 4096, /* sums of such a task */
};

/* ---- memory ---- */

/* For `neurons` in so many experts, over so many rows each: floats, and the same quantized or rounded. */
static size_t z_room(size_t rows, size_t neurons, size_t experts)
{
    size_t floats = rows * neurons + experts * PANEL_LANES, blocks = rows * (neurons / QUANT_BLOCK + experts);

    return floats * sizeof(float) + blocks * ROWS_BLOCK_BYTES + experts * 3 * LINE_BYTES;
}

static int block_rows(const struct moe *m)
{
    return m->limits.rows < MOE_BLOCK_ROWS ? m->limits.rows : MOE_BLOCK_ROWS;
}

void moe_take_work(struct moe *m, struct arena_taker *t)
{
    size_t rows = (size_t)block_rows(m), routed = m->experts ? (size_t)((m->neurons + m->experts - 1) / m->experts) : 0;
    size_t held = 0, neurons = (size_t)m->neurons;

    for (int l = 0; l < m->n_layers; l++) {
        size_t here = (size_t)placement_count(m->p, l, m->rank);

        held = here > held ? here : held;
    }
    /* A coordinator may hold shared neurons and experts that together are the whole FFN; a follower has routed experts only. */
    if (!m->coordinator && held * routed < neurons) neurons = held * routed;
    m->most_held = (int)held + m->coordinator;
    m->z_bytes = z_room(rows, neurons * (m->limits.train ? 2 : 1), (size_t)m->most_held);
    m->z = arena_take(t, m->z_bytes, 1);
    m->need = arena_take(t, (size_t)m->n_layers, sizeof(*m->need));
    m->forms = arena_take(t, (size_t)m->n_layers, sizeof(*m->forms));
    m->share = arena_take(t, (size_t)m->most_held, sizeof(*m->share));
    if (m->limits.oracle) {
        m->norm_room = (int)neurons;
        m->norm = arena_take(t, (size_t)m->n_layers * neurons, sizeof(*m->norm));
        m->normed = arena_take(t, (size_t)m->n_layers, sizeof(*m->normed));
        m->rest = arena_take(t, neurons, sizeof(*m->rest));
        m->rest_rows = arena_take(t, (size_t)m->most_held, sizeof(*m->rest_rows));
    }
    m->active.begin = arena_take(t, (size_t)m->experts + 1, sizeof(*m->active.begin));
    m->active.row = arena_take(t, rows * held, sizeof(*m->active.row));
    m->all = arena_take(t, (size_t)m->limits.rows, sizeof(*m->all));
    m->cut = arena_take(t, (size_t)m->most_held * (rows / OUT_ROWS + 2), sizeof(*m->cut));
    if (m->limits.train) moe_take_joined(m, t, (int)neurons);
}

/* How many of the layer's rows there is room for at a time. */
int moe_work_rows_at_once(const struct moe *m, int layer, bool backward)
{
    int rows = block_rows(m);
    size_t need = (size_t)m->need[layer] * (backward ? 2 : 1);

    while (rows > 1 && z_room((size_t)rows, need, (size_t)m->most_held) > m->z_bytes) rows = (rows + 1) / 2;
    BUG_ON(z_room((size_t)rows, need, (size_t)m->most_held) > m->z_bytes);
    return rows;
}

/* ---- shares ---- */

static void add_share(struct moe_work *w, const struct expert *x, const int *row, int n, const float *mu, const float *norm,
                      float scale, int place)
{
    struct moe_share *s = &w->share[w->shares++];
    int panels = packed_panels(x->gate.rows), each = n <= FEW_ROWS ? FEW_PANELS : IN_PANELS;
    int most = gemm_spreads(w->m->gemm, w->job->h) ? SPREAD_ROWS : IN_ROWS;

    BUG_ON(!x->gate.lines || !x->up.lines || !x->down.lines); /* not held by this rank */
    BUG_ON(x->up.rows != x->gate.rows || x->down.cols != x->gate.rows);
    BUG_ON(w->job->fixed && !x->place);
    *s =
        (struct moe_share){.x = x, .row = row, .mu = mu, .norm = norm, .scale = scale, .place = place, .first_task = w->in_tasks};
    s->out = w->backward ? &x->in_t : &x->down;
    s->z = (struct rows){.n = n, .cols = s->out->cols, .ld = (size_t)s->out->cols};
    BUG_ON(!s->out->lines);
    s->row_tasks = (n + most - 1) / most;
    w->in_tasks += s->row_tasks * ((panels + each - 1) / each);
    w->multiplications += 3.0 * n * x->gate.rows * w->m->width;
}

/* Which experts have which rows. */
static void list_shares(struct moe_work *w)
{
    const struct moe_job *job = w->job;
    struct moe *m = w->m;
    const struct moe_layer *y = &m->layers[job->layer];
    const uint64_t *held = moe_held(m, job->layer, m->rank);
    int n = y->experts, place = 0;
    const float *norm = job->threshold || w->norms ? moe_norms(m, job->layer) : NULL;

    BUG_ON((job->compensate && (job->means ? !m->means[job->layer] : !y->mu)) || (norm && job->set));
    if (job->shared && y->shared.down.lines) add_share(w, &y->shared, m->all + w->first, w->rows, NULL, norm, 1.0f, 0);
    if (norm && m->coordinator && y->shared.down.lines) norm += y->shared.gate.rows;
    if (n == 0) return;
    if (job->set) active_list(&m->active, job->set, w->first, w->rows, n, held);
    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1), place++) {
        const float *all = job->means ? m->means[job->layer] : y->mu;
        const float *mu = job->compensate ? all + (size_t)(job->means ? place : i) * (size_t)m->width : NULL;
        const int *row = job->set ? m->active.row + m->active.begin[i] : m->all + w->first;
        int rows = job->set ? m->active.begin[i + 1] - m->active.begin[i] : w->rows;

        if (rows > 0) add_share(w, &y->expert[i], row, rows, mu, norm, job->scale, w->packed ? place : i);
        if (norm) norm += y->expert[i].gate.rows;
    }
}

static void place_shares(struct moe_work *w)
{
    char *at = w->m->z, *end = at + w->m->z_bytes;

    for (int s = 0; s < w->shares; s++) {
        struct rows *z = &w->share[s].z;

        z->x = (const float *)(void *)at;
        at += moe_line((size_t)z->n * z->ld * sizeof(float));
        if (gemm_rows(w->m->gemm, z, w->share[s].out->format, at)) at += rows_bytes(z->n, z->cols);
    }
    BUG_ON(at > end);
}

void moe_work_begin(struct moe_work *w, struct moe *m, const struct moe_job *job, int first, int rows)
{
    w->m = m, w->kernel = gemm_kernel(m->gemm), w->job = job, w->first = first, w->rows = rows;
    w->share = m->share, w->shares = 0, w->in_tasks = 0, w->multiplications = 0;
    list_shares(w);
    place_shares(w);
}

void moe_work_count(const struct moe_work *w)
{
    double bytes = 0;

    if (!w->m->timing) return;
    for (int s = 0; s < w->shares; s++) {
        const struct packed *part[] = {&w->share[s].x->gate, &w->share[s].x->up, &w->share[s].x->down};

        for (int i = 0; i < 3; i++)
            bytes += (double)packed_line_bytes(part[i]->format, part[i]->rows, part[i]->cols) +
                     (double)packed_scale_bytes(part[i]->format, part[i]->rows, part[i]->cols);
    }
    timing_work(w->m->timing, bytes, 2 * w->multiplications);
}

void moe_work_loop(struct moe_work *w, int tasks, void (*task)(void *ctx, int item, int worker), void *ctx)
{
    if (w->multiplications < SERIAL_BELOW)
        for (int i = 0; i < tasks; i++) task(ctx, i, 0);
    else gemm_parallel(w->m->gemm, tasks, task, ctx);
    moe_progress(w->m);
}

/* ---- the first loop ---- */

static const struct moe_share *share_of(const struct moe_work *w, int item)
{
    int low = 0, high = w->shares;

    while (high - low > 1) {
        int middle = (low + high) / 2;

        if (w->share[middle].first_task <= item) low = middle;
        else high = middle;
    }
    return &w->share[low];
}

/* z, as the tile gives it, into its place; the static control puts means in for neurons, a threshold takes those out that are not above it. */
void moe_work_keep(const struct moe_work *w, const struct moe_share *s, float *tile, size_t ld, int row, int rows, int first,
                   int columns)
{
    const struct moe_job *job = w->job;
    const struct expert *x = s->x;
    struct rows z = s->z;

    BUG_ON(rows_wait(&z) && first % QUANT_BLOCK);
    for (int t = 0; t < rows; t++) {
        float *from = tile + (size_t)t * ld;

        for (int j = 0; job->fixed && j < columns; j++)
            if (x->place[first + j] >= job->kept) from[j] = x->fill ? x->fill[first + j] : 0.0f;
        for (int j = 0; job->threshold && j < columns; j++)
            if (!(moe_neuron_score(from[j], s->norm[first + j]) > job->threshold[s->row[row + t]])) from[j] = 0.0f;
        if (!w->only_sums || !z.q)
            memcpy((float *)z.x + (size_t)(row + t) * z.ld + (size_t)first, from, (size_t)columns * sizeof(*from));
    }
    if (rows_wait(&z)) rows_quantize_part(&z, tile, ld, row, rows, first / QUANT_BLOCK, packed_blocks(columns));
}

static void in_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    const struct moe_share *s = share_of(w, item);
    int each = s->z.n <= FEW_ROWS ? FEW_PANELS : IN_PANELS, panels = packed_panels(s->z.cols);
    int first = (item - s->first_task) / s->row_tasks * each, part = (item - s->first_task) % s->row_tasks;
    int row = rows_cut(s->z.n, s->row_tasks, part, w->kernel->isa);
    int rows = rows_cut(s->z.n, s->row_tasks, part + 1, w->kernel->isa) - row;

    BUG_ON(rows > SPREAD_ROWS);
    panels = panels - first < each ? panels - first : each;
    size_t ld = (size_t)panels * PANEL_LANES, cells = (size_t)rows * ld;
    float *gate = gemm_room(w->m->gemm, worker), *up = gate + SPREAD_ROWS * IN_PANELS * PANEL_LANES;
    int columns = s->z.cols - first * PANEL_LANES < (int)ld ? s->z.cols - first * PANEL_LANES : (int)ld;
    void *scratch = gemm_scratch(w->m->gemm, worker);

    int pairs = 0;

    while (panels < FEW_PANELS && pairs < panels &&
           pair_product(w->kernel, gate + pairs * PANEL_LANES, up + pairs * PANEL_LANES, ld, w->job->h, s->row + row, rows,
                        &s->x->gate, &s->x->up, first + pairs))
        pairs++;
    if (pairs < panels) {
        w->kernel->product(gate, ld, w->job->h, s->row + row, rows, &s->x->gate, first, panels, scratch);
        w->kernel->product(up, ld, w->job->h, s->row + row, rows, &s->x->up, first, panels, scratch);
    }
    silu_mul(gate, up, cells);
    moe_work_keep(w, s, gate, ld, row, rows, first * PANEL_LANES, columns);
    moe_work_progress(w, worker);
}
_Static_assert(2 * SPREAD_ROWS * IN_PANELS * PANEL_LANES * sizeof(float) <= GEMM_ROOM_BYTES && (int)IN_ROWS <= SPREAD_ROWS,
               "gate and up of a task");
_Static_assert(IN_PANELS *PANEL_LANES % QUANT_BLOCK == 0 && FEW_PANELS * PANEL_LANES % QUANT_BLOCK == 0, "whole blocks");

struct rows moe_work_part(const struct rows *r, int first, int n)
{
    size_t blocks = (size_t)packed_blocks(r->cols), f = (size_t)first;
    struct rows part = {.x = r->x + f * r->ld, .ld = r->ld, .n = n, .cols = r->cols};

    if (r->half) part.half = r->half + f * half_ld(r->cols);
    if (r->q) part.q = r->q + f * blocks * QUANT_BLOCK, part.scale = r->scale + f * blocks, part.sum = r->sum + f * blocks;
    if (r->wide) part.wide = r->wide + f * blocks, part.only_wide = r->only_wide;
    return part;
}

/* ---- the second loop ---- */

/* How it is cut: if rows are few, so that a task reads a large part of every expert's weights; else so that sums stay in the first caches. */
static void cut_out(struct moe_work *w)
{
    int panels = packed_panels(w->m->width), threads = threads_count(gemm_threads(w->m->gemm)), pairs = 0;
    int cells = (GEMM_ROOM_BYTES - LINE_BYTES - FINE_ROWS * (int)sizeof(int)) / 12;

    for (int s = 0; s < w->shares; s++) pairs += w->share[s].z.n;
    w->fine = w->multiplications <= 3.0 * FINE * pairs * w->m->width;
    w->out_rows = w->fine ? FINE_ROWS : w->shares && gemm_spreads(w->m->gemm, &w->share[0].z) ? SPREAD_ROWS : OUT_ROWS;
    w->out_blocks = (w->rows + w->out_rows - 1) / w->out_rows;
    w->out_rows = ((w->rows + w->out_blocks - 1) / w->out_blocks + 3) & ~3; /* whole tiles of q8 */
    w->out_rows = w->rows < w->out_rows ? w->rows : w->out_rows;
    w->out_panels = w->fine ? FINE_CELLS / PANEL_LANES / w->out_rows : OUT_PANELS;
    if (w->rows <= FEW_ROWS) {
        int most = cells / PANEL_LANES / w->out_rows, each = (panels + 2 * threads - 1) / (2 * threads);

        w->out_panels = threads == 1 ? panels : each < OUT_PANELS ? OUT_PANELS : each;
        if (w->out_panels > most) w->out_panels = most;
    }
    if (w->out_panels > panels) w->out_panels = panels;
    w->out_columns = (panels + w->out_panels - 1) / w->out_panels;
}
_Static_assert(SPREAD_ROWS *OUT_PANELS *PANEL_LANES * 12 + SPREAD_ROWS * 4 + LINE_BYTES <= GEMM_ROOM_BYTES &&
                   (int)OUT_ROWS <= SPREAD_ROWS,
               "sums, product and terms");
_Static_assert(FINE_CELLS * 12 + FINE_ROWS * 4 + LINE_BYTES <= GEMM_ROOM_BYTES, "sums, product and terms");

/* Where each expert's rows of each block of rows begin. */
static void cut_shares(struct moe_work *w)
{
    int *cut = w->m->cut;

    for (int s = 0; s < w->shares; s++, cut += w->out_blocks + 1) {
        int at = 0;

        for (int b = 0; b <= w->out_blocks; b++) {
            while (at < w->share[s].z.n && w->share[s].row[at] < w->first + b * w->out_rows) at++;
            cut[b] = b == w->out_blocks ? w->share[s].z.n : at;
        }
    }
}

void moe_work_put(const struct moe_work *w, const struct exact *e, int row, size_t column, int columns, float *narrow)
{
    size_t width = (size_t)w->m->width;

    for (int t = 0; t < e->rows; t++) {
        const int64_t *sum = e->sum + (size_t)t * (size_t)e->cols;
        size_t at = (size_t)(row + t) * width + column;

        switch (w->as) {
        case MOE_ANSWERS_EXACT:
            memcpy((int64_t *)w->out + at, sum, (size_t)columns * sizeof(*sum));
            break;
        case MOE_ANSWERS_F32:
            exact_to_float((float *)w->out + at, sum, columns);
            break;
        case MOE_ANSWERS_BF16:
            exact_to_float(narrow, sum, columns);
            narrow_many((uint16_t *)w->out + at, narrow, (size_t)columns);
            break;
        }
    }
}

/* Where the weights of the share behind s begin that the task reads. */
static const char *next_weights(const struct moe_work *w, int s, int panel)
{
    if (s == w->shares) return NULL;
    const struct packed *down = w->share[s].out;

    return (const char *)down->lines + (size_t)panel * (size_t)packed_steps(down->format, down->cols) * LINE_BYTES;
}

static void out_task(void *ctx, int item, int worker)
{
    const struct moe_work *w = ctx;
    const struct moe *m = w->m;
    int block = item / w->out_columns, first = item % w->out_columns * w->out_panels, panels = packed_panels(m->width) - first;
    int row = w->first + block * w->out_rows, rows = w->first + w->rows - row;
    double found;

    panels = panels < w->out_panels ? panels : w->out_panels;
    rows = rows < w->out_rows ? rows : w->out_rows;
    size_t column = (size_t)first * PANEL_LANES, cols = (size_t)panels * PANEL_LANES, cells = (size_t)rows * cols;
    int64_t *sum = gemm_room(m->gemm, worker);
    float *y = (float *)(void *)(sum + cells);
    struct exact e = {sum, (int *)(void *)(y + cells), rows, (int)cols, 0};
    int columns = (size_t)m->width - column < cols ? m->width - (int)column : (int)cols;

    exact_begin(&e, w->job->start ? w->job->start + column : NULL, columns);
    for (int s = 0; s < w->shares; s++) {
        const struct moe_share *x = &w->share[s];
        const int *cut = m->cut + (size_t)s * (size_t)(w->out_blocks + 1) + block;
        int n = cut[1] - cut[0];

        if (n == 0) continue;
        struct rows z = moe_work_part(&x->z, cut[0], n);

        bool direct = n <= FEW_ROWS || z.cols <= FINE;

        if (!direct || !exact_product(&e, w->kernel, x->row + cut[0], row, &z, x->out, first, panels, x->scale,
                                      next_weights(w, s + 1, first))) {
            w->kernel->product(y, cols, &z, NULL, n, x->out, first, panels, gemm_scratch(m->gemm, worker));
            exact_add(&e, w->kernel->isa, x->row + cut[0], row, n, y, cols, x->scale);
        }
        if (x->mu) exact_take(&e, x->row + cut[0], row, n, x->mu + column, columns);
    }
    if (!exact_settle(&e, &found)) moe_note_excess(w->m, found);
    moe_work_put(w, &e, row, column, columns, y);
    moe_work_progress(w, worker);
}

void moe_work_in(struct moe_work *w)
{
    moe_work_loop(w, w->in_tasks, in_task, w);
}

void moe_work_out(struct moe_work *w)
{
    cut_out(w);
    cut_shares(w);
    moe_work_loop(w, w->out_blocks * w->out_columns, out_task, w);
}

void moe_work_sum(struct moe *m, const struct moe_job *job, enum moe_answers as, void *out)
{
    enum timing_section was = timing_enter(m->timing, TIME_EXPERT);
    int rows = job->h->n, each = moe_work_rows_at_once(m, job->layer, false);

    for (int first = 0; first < rows; first += each) {
        struct moe_work w = {.only_sums = !job->note, .as = as, .out = out};

        moe_work_begin(&w, m, job, first, rows - first < each ? rows - first : each);
        if (!moe_few(&w)) {
            if (!moe_joined_in(&w)) moe_work_in(&w);
            moe_work_out(&w);
        }
        if (job->note) moe_keep_notes(m, job->layer, w.share, w.shares, job->note + first);
        moe_work_count(&w);
    }
    timing_enter(m->timing, was);
}

/* ---- sums out of range ---- */

void moe_note_excess(struct moe *m, double found)
{
    __atomic_store(&m->excess, &found, __ATOMIC_RELAXED); /* any thread's will do: it is only shown */
}

status moe_check_sums(struct moe *m, int layer, struct err *e)
{
    double found = m->excess;

    m->excess = 0;
    if (found == 0) return OK;
    return err_set(e, ERR_LIMIT, "layer %d: outputs of experts add up to %g; expected less than %g, up to which sums are exact",
                   layer, found, SUM_LIMIT);
}
