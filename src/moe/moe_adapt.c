/* Experts whose weights are trained, over the ranks.
 *
 * Every rank adds up the gradients of the experts that it holds, from the rows of h and dy that the backward pass brings it anyway: with a = W_gate h, b = W_up h,
 * u = scale * W_down' dy, over the rows t that have the expert active,
 *   dW_gate[j] = sum_t (u b silu'(a))_tj h_t     dW_up[j] = sum_t (u silu(a))_tj h_t     dW_down'[j] = sum_t scale z_tj dy_t
 * a, b and u are computed once more here, for the active rows only: so what moe_backward.c keeps between its loops is its own affair.
 * Order   an expert's sum is one chain over every LEARN_ROWS of its active rows, whose results are added in order, beginning anew at every MOE_BLOCK_ROWS rows of a pass: it
 *         depends on the rows alone, not on ranks or threads.
 * Requests carry an operation and, where it is about one expert, which: the weights themselves travel only into checkpoints and into the model that is written.
 */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/backward.h"
#include "num/ops.h"

enum {
    LEARN_ROWS = 96,
    LEARN_PANELS = 4, /* of neurons, of a task */
    LEARN_LANES = LEARN_PANELS * PANEL_LANES,
    TILE = LEARN_ROWS * LEARN_LANES,
    WIDE_PANELS = 2, /* of h and dy at a time */
    WIDE_LANES = WIDE_PANELS * PANEL_LANES
};
_Static_assert((6 * TILE + WIDE_LANES * LEARN_ROWS + 2 * LEARN_LANES * WIDE_LANES) * sizeof(float) <= GEMM_ROOM_BYTES,
               "three tiles, the same across, and a product");

/* ---- gradients ---- */

struct learning {
    struct moe *m;
    const struct moe_job *job;
    struct rows dy;
    int first, rows; /* of the job's */
    int experts, chunks;
};

/* One expert's neurons first .. first + n - 1, and its rows of the block. */
struct lesson {
    const struct expert *x;
    const int *row;
    int rows, first, n;
    float scale;
    float *gate, *up, *dz, *across, *lines, *y; /* the task's room */
};

static bool lesson_of(struct lesson *s, const struct learning *k, int item, int worker)
{
    const struct moe *m = k->m;
    const struct moe_layer *y = &m->layers[k->job->layer];
    const uint64_t *held = moe_held(m, k->job->layer, m->rank);
    int number = item / k->chunks, i = y->experts ? bits_next(held, y->experts, 0) : 0;
    float *room = gemm_room(m->gemm, worker);

    for (int c = 0; c < number && i < y->experts; c++) i = bits_next(held, y->experts, i + 1);
    bool shared = i >= y->experts;
    *s = (struct lesson){.x = shared ? &y->shared : &y->expert[i],
                         .row = shared ? m->all + k->first : m->active.row + m->active.begin[i],
                         .rows = shared ? k->rows : m->active.begin[i + 1] - m->active.begin[i],
                         .first = item % k->chunks * LEARN_LANES,
                         .scale = shared ? 1 : k->job->scale,
                         .gate = room,
                         .up = room + TILE,
                         .dz = room + 2 * TILE,
                         .across = room + 3 * TILE,
                         .lines = room + 6 * TILE};
    s->y = s->lines + WIDE_LANES * LEARN_ROWS;
    s->n = s->x->gate.rows - s->first < LEARN_LANES ? s->x->gate.rows - s->first : LEARN_LANES;
    return s->rows > 0 && s->n > 0;
}

/* across: [neurons of gate, those of up, of z][rows], what h and dy are multiplied with. */
static void neurons_across(struct lesson *s, int rows, size_t ld)
{
    float z[LEARN_LANES];

    for (int r = 0; r < rows; r++) {
        float *g = s->gate + (size_t)r * ld, *u = s->up + (size_t)r * ld, *to = s->across + r;

        memcpy(z, g, ld * sizeof(*z));
        silu_mul(z, u, ld);
        silu_mul_backward(g, u, s->dz + (size_t)r * ld, (int)ld);
        for (int j = 0; j < s->n; j++) {
            to[(size_t)j * LEARN_ROWS] = s->scale * g[j];
            to[(size_t)(s->n + j) * LEARN_ROWS] = s->scale * u[j];
            to[(size_t)(2 * s->n + j) * LEARN_ROWS] = s->scale * z[j];
        }
    }
}

/* to[j][D] += across of n neurons times rows of x. */
static void add_outer(struct lesson *s, const struct kernel *kernel, const struct rows *x, const int *index, int rows,
                      const float *across, int n, float *to, void *scratch)
{
    struct rows a = {.x = across, .ld = LEARN_ROWS, .n = n, .cols = rows};

    for (int first = 0; first < x->cols; first += WIDE_LANES) {
        int columns = x->cols - first < WIDE_LANES ? x->cols - first : WIDE_LANES, panels = packed_panels(columns);
        struct packed w = {.lines = s->lines, .format = FORMAT_F32, .rows = columns, .cols = rows};

        if (columns < WIDE_LANES) memset(s->lines, 0, (size_t)panels * (size_t)rows * LINE_BYTES);
        for (int p = 0; p < panels; p++) {
            int from = first + p * PANEL_LANES, lanes = x->cols - from < PANEL_LANES ? x->cols - from : PANEL_LANES;

            for (int t = 0; t < rows; t++)
                memcpy(s->lines + ((size_t)p * (size_t)rows + (size_t)t) * PANEL_LANES, x->x + (size_t)index[t] * x->ld + from,
                       (size_t)lanes * sizeof(float));
        }
        kernel->product(s->y, WIDE_LANES, &a, NULL, n, &w, 0, panels, scratch);
        for (int j = 0; j < n; j++)
            for (int c = 0; c < columns; c++)
                to[(size_t)j * (size_t)x->cols + (size_t)(first + c)] += s->y[(size_t)j * WIDE_LANES + (size_t)c];
    }
}

static void learn_task(void *ctx, int item, int worker)
{
    const struct learning *k = ctx;
    const struct kernel *kernel = gemm_kernel(k->m->gemm);
    const struct rows *h = k->job->h;
    void *scratch = gemm_scratch(k->m->gemm, worker);
    struct lesson s;

    if (!lesson_of(&s, k, item, worker)) return;
    const struct adapted *a = s.x->adapted;
    size_t width = (size_t)k->m->width, part = (size_t)a->neurons * width;
    float *to = a->gradient + (size_t)s.first * width;
    int panels = packed_panels(s.n), panel = s.first / PANEL_LANES;
    size_t ld = (size_t)panels * PANEL_LANES;

    for (int at = 0; at < s.rows; at += LEARN_ROWS) {
        int rows = s.rows - at < LEARN_ROWS ? s.rows - at : LEARN_ROWS;
        const int *index = s.row + at;

        kernel->product(s.gate, ld, h, index, rows, &s.x->gate, panel, panels, scratch);
        kernel->product(s.up, ld, h, index, rows, &s.x->up, panel, panels, scratch);
        kernel->product(s.dz, ld, &k->dy, index, rows, &s.x->down_t, panel, panels, scratch);
        neurons_across(&s, rows, ld);
        add_outer(&s, kernel, h, index, rows, s.across, s.n, to, scratch);
        add_outer(&s, kernel, h, index, rows, s.across + (size_t)s.n * LEARN_ROWS, s.n, to + part, scratch);
        add_outer(&s, kernel, &k->dy, index, rows, s.across + (size_t)(2 * s.n) * LEARN_ROWS, s.n, to + 2 * part, scratch);
    }
    if (worker == 0) moe_progress(k->m);
}

void moe_work_learn(struct moe *m, const struct moe_job *job, const float *dy)
{
    const struct moe_layer *y = &m->layers[job->layer];
    const uint64_t *held = moe_held(m, job->layer, m->rank);
    int n = y->experts, rows = job->h->n, most = job->shared && y->shared.down.lines ? y->shared.gate.rows : 0;
    int experts = (n ? bits_count(held, n) : 0) + (most > 0);

    for (int i = bits_next(held, n, 0); i < n; i = bits_next(held, n, i + 1))
        if (y->expert[i].gate.rows > most) most = y->expert[i].gate.rows;
    for (int first = 0; first < rows; first += MOE_BLOCK_ROWS) {
        struct learning k = {.m = m,
                             .job = job,
                             .dy = {.x = dy, .ld = (size_t)m->width, .n = rows, .cols = m->width},
                             .first = first,
                             .rows = rows - first < MOE_BLOCK_ROWS ? rows - first : MOE_BLOCK_ROWS,
                             .chunks = (most + LEARN_LANES - 1) / LEARN_LANES};

        if (n) active_list(&m->active, job->set, first, k.rows, n, held);
        gemm_parallel(m->gemm, experts * k.chunks, learn_task, &k);
    }
}

/* ---- all experts of a rank, one a task ---- */

enum operation { USE, CLEAR, SQUARES, STEP, PACK, GET, PUT };

struct step {
    int64_t steps;
    double gscale, rate;
    struct adamw_options adamw;
};

struct all {
    struct moe *m;
    enum operation what;
    bool student; /* USE */
    const struct step *step;
    double *squares; /* [layers][N + 1], the shared expert last */
};

static void expert_task(void *ctx, int item, int worker)
{
    const struct all *k = ctx;
    struct moe *m = k->m;
    int l = item / (m->experts + 1), i = item % (m->experts + 1);
    struct moe_layer *y = &m->layers[l];
    struct expert *x = i < y->experts ? &y->expert[i] : i == m->experts ? &y->shared : NULL;
    struct adapted *a = x ? x->adapted : NULL;

    (void)worker;
    if (!a) return;
    if (k->what == USE) adapted_use(a, x, k->student);
    if (k->what == CLEAR) memset(a->gradient, 0, ADAPTED_PARTS * (size_t)a->neurons * (size_t)a->width * sizeof(float));
    if (k->what == SQUARES) adapted_slope(a);
    if (k->what == SQUARES) k->squares[item] = adapted_squares(a);
    if (k->what == STEP) adapted_step(a, k->step->steps, k->step->gscale, k->step->rate, &k->step->adamw);
    if (k->what == STEP || k->what == PACK) adapted_pack(a, x);
}

static void of_all(struct all k)
{
    gemm_parallel(k.m->gemm, k.m->n_layers * (k.m->experts + 1), expert_task, &k);
}

/* ---- pieces of an expert's arrays: floats of a parameter array, neurons of the weights ---- */

struct piece {
    int layer, expert, part;
    enum moe_adapted what;
    size_t first;
};

static size_t units(const struct moe *m, const struct piece *p, const struct adapted *a, size_t *unit)
{
    bool weights = p->what == MOE_ADAPTED_WEIGHTS;

    *unit = weights ? (size_t)m->width : 1;
    return weights ? (size_t)a->neurons : a->each;
}

/* How many units a message carries, of which so many are there in all. */
static size_t at_once(const struct moe *m, size_t first, size_t all, size_t unit)
{
    size_t most = moe_adapted_bytes(m) / (unit * sizeof(float));

    return all - first < most ? all - first : most;
}

static float *array_of(const struct adapted *a, const struct piece *p)
{
    float *of = p->what == MOE_ADAPTED_M       ? a->m
                : p->what == MOE_ADAPTED_V     ? a->v
                : p->what == MOE_ADAPTED_SLOPE ? a->slope
                                               : a->param;

    return of + (size_t)p->part * a->each + p->first;
}

static void copy_out(const struct adapted *a, const struct piece *p, size_t n, float *out)
{
    if (p->what == MOE_ADAPTED_WEIGHTS) adapted_weights(a, p->part, (int)p->first, (int)n, out);
    else memcpy(out, array_of(a, p), n * sizeof(*out));
}

/* ---- requests ---- */

static struct request request_of(enum operation what, const struct piece *p)
{
    struct request r = {.kind = MOE_KIND_ADAPT, .flags = (int)what, .what = "weights"};

    if (!p) return r;
    r.layer = p->layer;
    r.flags |= (int)p->what << 8 | p->part << 16;
    r.number[0] = p->expert;
    r.number[1] = (double)p->first;
    return r;
}

static void answer_squares(struct moe *m, struct exchange *x, const struct request *r)
{
    size_t n = (size_t)m->n_layers * ((size_t)m->experts + 1), bytes = n * sizeof(double);
    double *room = exchange_answer_room(x, bytes);

    memset(room, 0, bytes);
    of_all((struct all){.m = m, .what = SQUARES, .squares = room});
    exchange_answer(x, r, OK, 0, room, bytes);
}

static void answer_piece(struct moe *m, struct exchange *x, const struct request *r, const void *payload)
{
    struct piece p = {.layer = r->layer,
                      .expert = (int)r->number[0],
                      .part = r->flags >> 16 & 0xff,
                      .what = (enum moe_adapted)(r->flags >> 8 & 0xff),
                      .first = (size_t)r->number[1]};
    const struct adapted *a = m->layers[p.layer].expert[p.expert].adapted;
    size_t unit;

    BUG_ON(!a || p.part >= ADAPTED_PARTS);
    size_t all = units(m, &p, a, &unit), n = at_once(m, p.first, all, unit), bytes = n * unit * sizeof(float);

    if ((r->flags & 0xff) == PUT) {
        BUG_ON(r->bytes != bytes || unit != 1);
        memcpy(array_of(a, &p), payload, bytes);
        exchange_answer(x, r, OK, 0, NULL, 0);
        return;
    }
    float *room = exchange_answer_room(x, bytes);

    copy_out(a, &p, n, room);
    exchange_answer(x, r, OK, 0, room, bytes);
}

void moe_answer_adapt(struct moe *m, struct exchange *x, const struct request *r, const void *payload)
{
    enum operation what = (enum operation)(r->flags & 0xff);
    struct all k = {.m = m, .what = what, .student = r->number[0] > 0, .step = payload};

    BUG_ON(!m->limits.adapt || (what == STEP && r->bytes != sizeof(struct step)));
    if (what == SQUARES) {
        answer_squares(m, x, r);
    } else if (what == GET || what == PUT) {
        answer_piece(m, x, r, payload);
    } else {
        of_all(k);
        exchange_answer(x, r, OK, 0, NULL, 0);
    }
}

/* ---- the coordinator ---- */

static bool takes_part(const struct moe *m, int rank)
{
    return rank != m->rank && placement_count(m->p, -1, rank) > 0;
}

/* The same to all ranks that hold experts, and here. */
static status everywhere(struct moe *m, const struct request *r, const void *payload, size_t bytes, struct all here,
                         struct err *e)
{
    BUG_ON(m->rank != 0 || !m->limits.adapt || m->slot[0].busy);
    for (int rank = 0; rank < m->ranks; rank++)
        if (takes_part(m, rank)) exchange_post(m->exchange, 0, rank, r, payload, bytes, NULL, 0);
    of_all(here);
    return moe_alone(m) ? OK : exchange_wait(m->exchange, 0, e);
}

status moe_adapt_use(struct moe *m, bool student, struct err *e)
{
    struct request r = request_of(USE, NULL);

    r.number[0] = student;
    return everywhere(m, &r, NULL, 0, (struct all){.m = m, .what = USE, .student = student}, e);
}

status moe_adapt_clear(struct moe *m, struct err *e)
{
    struct request r = request_of(CLEAR, NULL);

    return everywhere(m, &r, NULL, 0, (struct all){.m = m, .what = CLEAR}, e);
}

status moe_adapt_pack(struct moe *m, struct err *e)
{
    struct request r = request_of(PACK, NULL);

    return everywhere(m, &r, NULL, 0, (struct all){.m = m, .what = PACK}, e);
}

status moe_adapt_step(struct moe *m, int64_t steps, double gscale, double rate, const struct adamw_options *o, struct err *e)
{
    struct request r = request_of(STEP, NULL);
    struct step step = {.steps = steps, .gscale = gscale, .rate = rate, .adamw = *o};

    return everywhere(m, &r, &step, sizeof(step), (struct all){.m = m, .what = STEP, .step = &step}, e);
}

status moe_adapt_squares(struct moe *m, double *sum, struct err *e)
{
    struct request r = request_of(SQUARES, NULL);
    size_t each = (size_t)m->experts + 1;

    memset(m->squares, 0, (size_t)m->n_layers * each * sizeof(double));
    if (everywhere(m, &r, NULL, 0, (struct all){.m = m, .what = SQUARES, .squares = m->squares}, e)) return e->code;
    *sum = 0;
    for (int l = 0; l < m->n_layers; l++)
        for (size_t i = 0; i < each; i++) {
            size_t at = (size_t)l * each + i;
            int rank = (int)i < m->layers[l].experts ? moe_rank_of(m, l, (int)i) : m->rank;
            const void *payload = NULL;

            if (rank != m->rank && !exchange_answer_of(m->exchange, 0, rank, &payload)) BUG_ON(true);
            *sum += rank == m->rank ? m->squares[at] : ((const double *)payload)[at];
        }
    return OK;
}

const struct adapted *moe_adapted(const struct moe *m, int layer, int expert)
{
    return expert < 0 ? m->layers[layer].shared.adapted : m->layers[layer].expert[expert].adapted;
}

size_t moe_adapted_floats(const struct moe *m, int layer, int expert, enum moe_adapted what)
{
    int shared = m->layers[layer].shared.down.lines ? m->layers[layer].shared.gate.rows : 0, n = m->layers[layer].experts;
    size_t neurons = (size_t)(expert < 0 ? shared : group_size(m->neurons, shared, n, expert)), width = (size_t)m->width;

    if (what == MOE_ADAPTED_WEIGHTS || !m->limits.lora) return neurons * width;
    return neurons ? (size_t)m->limits.lora * (neurons + width) : 0;
}

static status move(struct moe *m, enum operation op, struct piece p, size_t all, size_t unit, float *data, struct err *e)
{
    int rank = moe_rank_of(m, p.layer, p.expert);

    for (size_t n; p.first < all; p.first += n, data += n * unit) {
        struct request r = request_of(op, &p);
        const void *payload = NULL;

        n = at_once(m, p.first, all, unit);
        exchange_post(m->exchange, 0, rank, &r, data, op == PUT ? n * unit * sizeof(float) : 0, NULL, 0);
        if (exchange_wait(m->exchange, 0, e)) return e->code;
        if (op == PUT) continue;
        const struct answer *a = exchange_answer_of(m->exchange, 0, rank, &payload);

        BUG_ON(!a || a->bytes != n * unit * sizeof(float));
        memcpy(data, payload, n * unit * sizeof(float));
    }
    return OK;
}

static status transfer(struct moe *m, enum operation op, int layer, int expert, int part, enum moe_adapted what, float *data,
                       struct err *e)
{
    struct piece p = {.layer = layer, .expert = expert, .part = part, .what = what};
    size_t all = moe_adapted_floats(m, layer, expert, what), unit = what == MOE_ADAPTED_WEIGHTS ? (size_t)m->width : 1;
    const struct adapted *a = moe_adapted(m, layer, expert);

    BUG_ON(m->rank != 0 || !m->limits.adapt);
    if (!all) return OK;
    if (!a) return move(m, op, p, all / unit, unit, data, e);
    if (op == PUT) memcpy(array_of(a, &p), data, all * sizeof(*data));
    else copy_out(a, &p, all / unit, data);
    return OK;
}

status moe_adapt_get(struct moe *m, int layer, int expert, int part, enum moe_adapted what, float *out, struct err *e)
{
    return transfer(m, GET, layer, expert, part, what, out, e);
}

status moe_adapt_put(struct moe *m, int layer, int expert, int part, enum moe_adapted what, const float *in, struct err *e)
{
    BUG_ON(what == MOE_ADAPTED_WEIGHTS);
    return transfer(m, PUT, layer, expert, part, what, (float *)in, e);
}
