/* Rows out to the ranks that hold experts, and their sums back. */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/widen.h"

enum { ROWS_PER_TASK = 8 };

/* ---- the widths of what travels ---- */

size_t moe_row_bytes(const struct moe *m)
{
    return (size_t)m->width * (m->limits.wire.rows == MOE_ROWS_BF16 ? sizeof(uint16_t) : sizeof(float));
}

size_t moe_sum_bytes(const struct moe *m)
{
    static const size_t element[] = {
        [MOE_ANSWERS_EXACT] = sizeof(int64_t), [MOE_ANSWERS_F32] = sizeof(float), [MOE_ANSWERS_BF16] = sizeof(uint16_t)};

    return (size_t)m->width * element[m->limits.wire.answers];
}

void moe_widen(float *out, const uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;

        memcpy(&out[i], &bits, sizeof(bits));
    }
}

/* ---- dispatch ---- */

void moe_put_row(const struct moe *m, char *to, const float *h)
{
    if (m->limits.wire.rows == MOE_ROWS_BF16) narrow_many((uint16_t *)(void *)to, h, (size_t)m->width);
    else memcpy(to, h, moe_row_bytes(m));
}

/* A rank gets the rows that have an active expert on it, behind their sets; in a static control all rows, and no sets; of neurons all rows behind their
 * thresholds, for notes behind their places. */
static void post_rows(struct moe *m, int slot, int rank, struct request *r)
{
    struct moe_slot *s = &m->slot[slot];
    bool neurons = s->route == ROUTE_NEURONS, all = s->route == ROUTE_STATIC || s->note || neurons;
    int words = bits_words(m->layers[s->layer].experts), n = 0, *place = s->place[rank];
    const uint64_t *held = moe_held(m, s->layer, rank);
    size_t set_bytes = neurons ? sizeof(float) : (size_t)words * sizeof(uint64_t), row_bytes = moe_row_bytes(m);

    for (int t = 0; t < s->h.n; t++) place[t] = all || moe_meet(s->set + (size_t)t * (size_t)words, held, words) ? n++ : -1;
    if (n == 0) return;
    if (s->note) set_bytes = sizeof(*s->note);
    size_t sets = s->route == ROUTE_STATIC ? 0 : moe_line((size_t)n * set_bytes), bytes = sets + (size_t)n * row_bytes;
    char *room = exchange_room(m->exchange, slot, rank, bytes);

    if (s->note) memcpy(room, s->note, (size_t)n * set_bytes);
    for (int t = 0; t < s->h.n; t++) {
        size_t at = (size_t)place[t];

        if (place[t] < 0) continue;
        if (!all) memcpy(room + at * set_bytes, s->set + (size_t)t * (size_t)words, set_bytes);
        if (neurons) memcpy(room + at * set_bytes, s->threshold + t, set_bytes);
        moe_put_row(m, room + sets + at * row_bytes, s->h.x + (size_t)t * s->h.ld);
    }
    r->rows = n;
    s->sent[rank] = n;
    m->stats.rows_out += (uint64_t)n;
    exchange_post(m->exchange, slot, rank, r, room, bytes, NULL, 0);
}

void moe_progress(struct moe *m)
{
    if (m->exchange) exchange_progress(m->exchange);
}

void moe_dispatch(struct moe *m, int slot)
{
    struct moe_slot *s = &m->slot[slot];
    enum timing_section was = timing_enter(m->timing, TIME_PACK);
    struct request r = {.kind = s->note                     ? MOE_KIND_NOTE
                                : s->route == ROUTE_STATIC  ? MOE_KIND_STATIC
                                : s->route == ROUTE_NEURONS ? MOE_KIND_NEURON_SUM
                                                            : MOE_KIND_SUM,
                        .layer = s->layer,
                        .number = {(double)s->scale, (double)s->kept},
                        .what = "experts"};

    if (s->compensate) r.flags = MOE_FLAG_COMPENSATE | (moe_own_means(s) ? MOE_FLAG_MEANS : 0);
    memset(s->sent, 0, (size_t)m->ranks * sizeof(*s->sent));
    for (int rank = 0; s->h.n > 0 && rank < m->ranks; rank++) {
        if (rank != m->rank && moe_holds(m, s->layer, rank)) post_rows(m, slot, rank, &r);
    }
    moe_progress(m);
    timing_enter(m->timing, was);
}

/* ---- combine ---- */

struct combine {
    struct moe *m;
    const struct moe_slot *s;
    int slot;
    float *x;
};

/* What the ranks answered is added to the sums of eight rows. */
static void join_task(void *ctx, int item, int worker)
{
    const struct combine *c = ctx;
    struct moe *m = c->m;
    size_t width = (size_t)m->width, bytes = moe_sum_bytes(m);
    int first = item * ROWS_PER_TASK, end = first + ROWS_PER_TASK < c->s->h.n ? first + ROWS_PER_TASK : c->s->h.n;
    double found;

    (void)worker;
    for (int rank = 0; rank < m->ranks; rank++) {
        const void *payload = NULL;

        if (c->s->sent[rank] == 0) continue;
        exchange_answer_of(m->exchange, c->slot, rank, &payload);
        for (int t = first; t < end; t++) {
            const void *part = (const char *)payload + (size_t)c->s->place[rank][t] * bytes;
            int64_t *sum = m->sum + (size_t)t * width;
            float wide[256];
            bool ok = true;

            if (c->s->place[rank][t] < 0) continue;
            if (m->limits.wire.answers == MOE_ANSWERS_EXACT) ok = exact_join(sum, part, m->width, &found);
            else if (m->limits.wire.answers == MOE_ANSWERS_F32) ok = exact_join_float(sum, part, m->width, &found);
            else {
                for (int d = 0; ok && d < m->width; d += 256) {
                    int n = m->width - d < 256 ? m->width - d : 256;

                    moe_widen(wide, (const uint16_t *)part + d, (size_t)n);
                    ok = exact_join_float(sum + d, wide, n, &found);
                }
            }
            if (!ok) moe_note_excess(m, found);
        }
    }
}

static void finish_task(void *ctx, int item, int worker)
{
    const struct combine *c = ctx;
    int first = item * ROWS_PER_TASK, end = first + ROWS_PER_TASK < c->s->h.n ? first + ROWS_PER_TASK : c->s->h.n;
    size_t at = (size_t)first * (size_t)c->m->width;

    (void)worker;
    for (int t = first; t < end; t++, at += (size_t)c->m->width) exact_finish(c->x + at, c->m->sum + at, c->m->width);
}

static void work_here(struct moe *m, const struct moe_slot *s)
{
    struct moe_job job = {.layer = s->layer,
                          .h = &s->h,
                          .set = s->route == ROUTE_STATIC || s->note || s->route == ROUTE_NEURONS ? NULL : s->set,
                          .note = s->note,
                          .threshold = s->route == ROUTE_NEURONS ? s->threshold : NULL,
                          .shared = true,
                          .fixed = s->route == ROUTE_STATIC,
                          .kept = s->kept,
                          .compensate = s->compensate,
                          .means = moe_own_means(s),
                          .scale = s->scale};

    if (s->compensate)
        job.start = job.means ? m->means_total + (size_t)s->layer * (size_t)m->width : m->layers[s->layer].mu_total;
    moe_work_sum(m, &job, MOE_ANSWERS_EXACT, m->sum);
}

static status answers(struct moe *m, int slot, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    enum timing_section was = timing_enter(m->timing, TIME_WAIT);
    status code = exchange_wait(m->exchange, slot, e);

    timing_enter(m->timing, was);
    if (code) return code;
    for (int rank = 0; rank < m->ranks; rank++) {
        const void *payload = NULL;
        const struct answer *a = s->sent[rank] ? exchange_answer_of(m->exchange, slot, rank, &payload) : NULL;

        BUG_ON(s->sent[rank] && (!a || a->rows != s->sent[rank] || a->bytes != (size_t)a->rows * moe_sum_bytes(m)));
    }
    return OK;
}

static bool posted(const struct moe *m, const struct moe_slot *s)
{
    for (int rank = 0; rank < m->ranks; rank++) {
        if (s->sent[rank] > 0) return true;
    }
    return false;
}

status moe_combine(struct moe *m, int slot, float *x, struct err *e)
{
    struct moe_slot *s = &m->slot[slot];
    struct combine c = {m, s, slot, x};
    int tasks = (s->h.n + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    status code;

    if (m->exchange) exchange_ping(m->exchange); /* to ranks that hold nothing here */
    m->excess = 0;                               /* of sums that an error of another rank ended */
    work_here(m, s);
    if (posted(m, s) && (code = answers(m, slot, e))) return code;
    enum timing_section was = timing_enter(m->timing, TIME_COMBINE);

    if (posted(m, s)) gemm_parallel(m->gemm, tasks, join_task, &c);
    code = moe_check_sums(m, s->layer, e);
    if (!code) gemm_parallel(m->gemm, tasks, finish_task, &c);
    timing_enter(m->timing, was);
    if (code) {
        struct err ignored = {0};

        /* The caller leaves now, and will not wait for the other slots. */
        for (int other = 0; m->exchange && other < EXCHANGE_SLOTS; other++) exchange_wait(m->exchange, other, &ignored);
        if (ignored.code == ERR_RANK) *e = ignored;
    }
    return code ? e->code : OK;
}
