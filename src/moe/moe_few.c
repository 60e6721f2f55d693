/* Few rows through many small experts: one expert after the other, from its gate to the sums.
 *
 * Nothing is waited for but memory then, so all that matters is that it is read in long runs: a task takes some experts, each from the first byte of its gate and up to
 * the last of its down, into sums of its thread for whole rows.  In the end the sums of the threads are added, which changes no bit of an exact sum (exact.h),
 * whoever took which expert.  The two loops of moe_work.c, which every thread waits for the end of, read a little of each expert at a time.
 *
 * Limits.  A block goes this way as a whole or not at all: every share has to have both products (pair_product.h, exact_product.h).  So the two loops take over for q8 and
 * q4 weights and for activations rounded to bf16, with kernels of another level than AVX2, if any expert that a row wants has more than CHAIN neurons (a large
 * shared expert, on the rank that holds it: the others have routed ones only), and if fewer than EACH experts a thread are wanted.
 */
#include <string.h>

#include "moe/moe_internal.h"
#include "num/exact_product.h"
#include "num/ops.h"
#include "num/pair_product.h"

enum {
    MOST_THREADS = 64,
    TASK_BYTES = 256 * 1024, /* weights of a task, or more: one expert */
    TASKS = 4,               /* at least so many of them for each thread, so that the last ones are small */
    EACH = 8,                /* at least so many experts for each thread, or they wait for the last one */
};

struct few {
    struct moe_work *w;
    int each;                        /* experts of a task */
    struct exact part[MOST_THREADS]; /* of each thread; sum NULL: took nothing */
};

static size_t expert_bytes(const struct expert *x)
{
    return 2 * packed_line_bytes(x->gate.format, x->gate.rows, x->gate.cols) +
           packed_line_bytes(x->down.format, x->down.rows, x->down.cols);
}

static bool fits(const struct moe_work *w)
{
    const struct kernel *k = w->kernel;
    size_t sums = (size_t)w->rows * (size_t)packed_panels(w->m->width) * PANEL_LANES * sizeof(int64_t);
    int threads = threads_count(gemm_threads(w->m->gemm));

    if (w->rows < 1 || w->rows > PAIR_ROWS || w->backward || threads > MOST_THREADS || w->shares < EACH * threads ||
        sums + (size_t)w->rows * sizeof(int) + (size_t)w->m->width * sizeof(float) > GEMM_ROOM_BYTES)
        return false;
    for (int s = 0; s < w->shares; s++) {
        const struct moe_share *x = &w->share[s];

        if (!pair_product_has(k, w->job->h, &x->x->gate, &x->x->up) || !exact_product_has(k, &x->z, x->out)) return false;
    }
    return true;
}

/* The sums of a thread; those of the first one begin with what all begin with. */
static struct exact *part_of(struct few *f, int worker)
{
    struct exact *e = &f->part[worker];
    int cols = packed_panels(f->w->m->width) * PANEL_LANES;

    if (e->sum) return e;
    e->sum = gemm_room(f->w->m->gemm, worker);
    e->rows = f->w->rows, e->cols = cols;
    e->terms = (int *)(void *)(e->sum + (size_t)e->rows * (size_t)cols);
    exact_begin(e, worker ? NULL : f->w->job->start, f->w->m->width);
    return e;
}

static void few_share(const struct moe_work *w, const struct moe_share *s, struct exact *e)
{
    float gate[PAIR_ROWS * PANEL_LANES] __attribute__((aligned(64))), up[PAIR_ROWS * PANEL_LANES] __attribute__((aligned(64)));
    const struct expert *x = s->x;
    int n = s->z.n, neurons = s->z.cols;

    for (int p = 0; p < packed_panels(neurons); p++) {
        int columns = neurons - p * PANEL_LANES < PANEL_LANES ? neurons - p * PANEL_LANES : PANEL_LANES;
        bool done = pair_product(w->kernel, gate, up, PANEL_LANES, w->job->h, s->row, n, &x->gate, &x->up, p);

        BUG_ON(!done);
        silu_mul(gate, up, (size_t)n * PANEL_LANES);
        moe_work_keep(w, s, gate, PANEL_LANES, 0, n, p * PANEL_LANES, columns);
    }
    bool done = exact_product(e, w->kernel, s->row, w->first, &s->z, s->out, 0, packed_panels(w->m->width), s->scale, NULL);
    BUG_ON(!done);
    if (s->mu) exact_take(e, s->row, w->first, n, s->mu, w->m->width);
}

static void few_task(void *ctx, int item, int worker)
{
    struct few *f = ctx;
    const struct moe_work *w = f->w;
    struct exact *e = part_of(f, worker);
    int first = item * f->each, end = first + f->each < w->shares ? first + f->each : w->shares;

    for (int s = first; s < end; s++) few_share(w, &w->share[s], e);
    if (worker == 0) moe_progress(w->m);
}

/* All parts into the first one. */
static void join(struct few *f)
{
    const struct moe_work *w = f->w;
    struct exact *all = &f->part[0];
    size_t cells = (size_t)all->rows * (size_t)all->cols;
    double found;

    for (int i = 1; i < MOST_THREADS; i++) {
        const struct exact *e = &f->part[i];

        if (e->sum) exact_merge(all, e), w->m->stats.merged++;
    }
    if (!exact_settle(all, &found)) moe_note_excess(w->m, found);
    moe_work_put(w, all, w->first, 0, w->m->width, (float *)(void *)(all->sum + cells));
}

_Static_assert(EACH >= TASKS, "one expert a task, or more");

bool moe_few(struct moe_work *w)
{
    struct few f = {.w = w, .each = 1};
    int most;

    if (!fits(w)) return false;
    most = w->shares / (TASKS * threads_count(gemm_threads(w->m->gemm))); /* 1 or more, as EACH says */
    f.each = (int)(TASK_BYTES / (expert_bytes(w->share[0].x) + 1)) + 1;
    f.each = f.each < most ? f.each : most;
    part_of(&f, 0);
    moe_work_loop(w, (w->shares + f.each - 1) / f.each, few_task, &f);
    join(&f);
    return true;
}
