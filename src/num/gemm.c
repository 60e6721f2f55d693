/* Products on all threads: panels of weights are shared out, and rows too when there are many. */
#include "num/gemm.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "num/half.h"

/* Below this many multiplications waking the workers takes longer than the product. */
enum { SERIAL_BELOW = 1 << 17, ROWS_AT_ONCE = 192, MOST_PRODUCTS = 4 };
/* Of weights that are packed on the way: panels of a task, and rows and inputs at a time. */
enum {
    LOOSE_PANELS = 4,
    LOOSE_LANES = LOOSE_PANELS * PANEL_LANES,
    LOOSE_ROWS = 96,
    LOOSE_COLS = CHAIN,
    LOOSE_TASK_ROWS = 2 * LOOSE_ROWS
};

struct gemm {
    struct threads *threads;
    const struct kernel *kernel;
    enum isa most;
    bool half;     /* activations for bf16 weights are bf16 */
    char *scratch; /* per thread: the kernel's, then a room for whoever runs on it */
    size_t scratch_bytes;
    char about[64];
};

struct loose_scratch {
    float lines[LOOSE_PANELS * LOOSE_COLS * PANEL_LANES] __attribute__((aligned(64)));
    float y[LOOSE_ROWS * LOOSE_LANES] __attribute__((aligned(64)));
    float x[LOOSE_ROWS * LOOSE_COLS] __attribute__((aligned(64)));
};
_Static_assert(sizeof(struct loose_scratch) <= GEMM_ROOM_BYTES, "it lies in the room");

static void describe(struct gemm *g)
{
    int threads = threads_count(g->threads);

    snprintf(g->about, sizeof(g->about), "%s%s, %d thread%s", isa_name(g->kernel->isa), g->half ? " (bf16 activations)" : "",
             threads, threads == 1 ? "" : "s");
}

status gemm_open(struct gemm **out, int threads, enum isa most, struct err *e)
{
    struct gemm *g = calloc(1, sizeof(*g));
    size_t kernel = (kernel_scratch_bytes() + 63) & ~(size_t)63;

    *out = NULL;
    if (!g) return err_set(e, ERR_LIMIT, "no memory for the matrix products");
    g->scratch_bytes = kernel + GEMM_ROOM_BYTES;
    g->scratch = aligned_alloc(64, g->scratch_bytes * (size_t)threads);
    if (!g->scratch) {
        free(g);
        return err_set(e, ERR_LIMIT, "no memory for the scratch of %d threads", threads);
    }
    if (threads_open(&g->threads, threads, e)) {
        gemm_close(g);
        return e->code;
    }
    g->most = most;
    g->kernel = kernel_for(most);
    describe(g);
    *out = g;
    return OK;
}

void gemm_close(struct gemm *g)
{
    if (!g) return;
    threads_close(g->threads);
    free(g->scratch);
    free(g);
}

struct threads *gemm_threads(struct gemm *g)
{
    return g->threads;
}

const struct kernel *gemm_kernel(const struct gemm *g)
{
    return g->kernel;
}

void *gemm_scratch(struct gemm *g, int worker)
{
    return g->scratch + (size_t)worker * g->scratch_bytes;
}

void *gemm_room(struct gemm *g, int worker)
{
    return (char *)gemm_scratch(g, worker) + g->scratch_bytes - GEMM_ROOM_BYTES;
}

static struct loose_scratch *loose_scratch(struct gemm *g, int worker)
{
    return gemm_room(g, worker);
}

const char *gemm_describe(const struct gemm *g)
{
    return g->about;
}

void gemm_use_half(struct gemm *g, bool half, struct log *l)
{
    const struct kernel *k = half ? kernel_half_for(g->most) : kernel_for(g->most);

    if (half == g->half) return;
    while (half && k->isa > ISA_PLAIN && !half_check(k)) {
        log_warn(l, "kernels: bfloat16 products of level %s are wrong on this processor: the next lower level takes their place",
                 isa_name(k->isa));
        k = kernel_half_for((enum isa)(k->isa - 1));
    }
    g->kernel = k;
    g->half = half;
    describe(g);
}

bool gemm_half(const struct gemm *g)
{
    return g->half;
}

bool gemm_rows(const struct gemm *g, struct rows *r, enum format f, void *memory)
{
    bool wide = f == FORMAT_Q8 && (g->kernel->isa == ISA_AVX2 || g->kernel->isa == ISA_AVX512);

    if (format_has_scales(f)) {
        bool was = r->q && (wide ? r->wide != NULL : !r->only_wide);

        if (!r->q) rows_room(r, memory, g->kernel->isa), r->only_wide = wide;
        if (wide && !r->wide) rows_wide_room(r, memory);
        r->only_wide = r->only_wide && wide;
        return !was;
    }
    if (f == FORMAT_BF16 && g->half && !r->half) {
        half_room(r, memory);
        return true;
    }
    return false;
}

bool gemm_spreads(const struct gemm *g, const struct rows *r)
{
    return r->wide && g->kernel->isa == ISA_AVX2;
}

void gemm_parallel(struct gemm *g, int n, void (*task)(void *ctx, int i, int worker), void *ctx)
{
    threads_run(g->threads, n, task, ctx);
}

/* ---- packed weights ---- */

struct product {
    struct gemm *g;
    const struct rows *x;
    int n, row_tasks;
    struct {
        float *y;
        size_t ldy;
        const struct packed *w;
        const float *bias;
        int first_task, panels_each;
    } part[MOST_PRODUCTS];
};

static void add_bias(float *y, size_t ldy, int rows, const float *bias, int n)
{
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < n; i++) y[(size_t)t * ldy + i] += bias[i];
}

/* Rows row .. row + rows - 1 against panels first .. first + panels - 1.  Whole panels go straight to y, a last partial one by way of scratch. */
static void product_piece(const struct product *p, int part, int row, int rows, int first, int panels, int worker)
{
    const struct packed *w = p->part[part].w;
    const struct kernel *k = p->g->kernel;
    void *scratch = gemm_scratch(p->g, worker);
    size_t ldy = p->part[part].ldy;
    float *y = p->part[part].y + (size_t)row * ldy + (size_t)first * PANEL_LANES;
    int whole = (first + panels) * PANEL_LANES <= w->rows ? panels : panels - 1, columns = w->rows - first * PANEL_LANES;
    int index[ROWS_AT_ONCE];

    BUG_ON(rows > ROWS_AT_ONCE);
    for (int i = 0; i < rows; i++) index[i] = row + i;
    if (whole > 0) k->product(y, ldy, p->x, index, rows, w, first, whole, scratch);
    if (whole < panels) {
        float *last = loose_scratch(p->g, worker)->y;
        int n = w->rows % PANEL_LANES;

        for (int t = 0; t < rows; t += LOOSE_ROWS) {
            int some = rows - t < LOOSE_ROWS ? rows - t : LOOSE_ROWS;

            k->product(last, PANEL_LANES, p->x, index + t, some, w, first + whole, 1, scratch);
            for (int i = 0; i < some; i++)
                memcpy(y + (size_t)(t + i) * ldy + (size_t)whole * PANEL_LANES, last + (size_t)i * PANEL_LANES,
                       (size_t)n * sizeof(*y));
        }
    }
    if (p->part[part].bias)
        add_bias(y, ldy, rows, p->part[part].bias + (size_t)first * PANEL_LANES,
                 columns < panels * PANEL_LANES ? columns : panels * PANEL_LANES);
}

static void product_task(void *ctx, int item, int worker)
{
    const struct product *p = ctx;
    int part = p->n - 1, panels, first, row, rows;

    while (item < p->part[part].first_task) part--;
    item -= p->part[part].first_task;
    first = item / p->row_tasks * p->part[part].panels_each;
    row = rows_cut(p->x->n, p->row_tasks, item % p->row_tasks, p->g->kernel->isa);
    panels = packed_panels(p->part[part].w->rows) - first;
    if (panels > p->part[part].panels_each) panels = p->part[part].panels_each;
    rows = rows_cut(p->x->n, p->row_tasks, item % p->row_tasks + 1, p->g->kernel->isa) - row;
    product_piece(p, part, row, rows, first, panels, worker);
}

/* Enough pieces that no thread waits long for the last one, and no smaller than that. */
static int panels_of_task(int panels, int threads)
{
    int each = panels / (threads * 4);

    each = each > 16 ? 16 : each;
    each -= each % 4;
    return each < 4 ? 4 : each;
}

void gemm_products(struct gemm *g, int n, float *const *y, const size_t *ldy, const struct rows *x, const struct packed *const *w,
                   const float *const *bias)
{
    struct product p = {.g = g, .x = x, .n = n};
    double work = 0.0;
    int tasks = 0, most = gemm_spreads(g, x) ? SPREAD_ROWS : ROWS_AT_ONCE;

    BUG_ON(n > MOST_PRODUCTS);
    if (x->n <= 0) return;
    p.row_tasks = (x->n + most - 1) / most;
    for (int i = 0; i < n; i++) {
        int panels = packed_panels(w[i]->rows), each = panels_of_task(panels, threads_count(g->threads));

        BUG_ON(!w[i]->lines || w[i]->cols != x->cols || ldy[i] < (size_t)w[i]->rows);
        p.part[i].y = y[i], p.part[i].ldy = ldy[i], p.part[i].w = w[i], p.part[i].bias = bias ? bias[i] : NULL;
        p.part[i].first_task = tasks, p.part[i].panels_each = each;
        tasks += (panels + each - 1) / each * p.row_tasks;
        work += (double)x->n * w[i]->rows * w[i]->cols;
    }
    if (work < SERIAL_BELOW)
        for (int i = 0; i < tasks; i++) product_task(&p, i, 0);
    else threads_run(g->threads, tasks, product_task, &p);
}

void gemm_product(struct gemm *g, float *y, size_t ldy, const struct rows *x, const struct packed *w, const float *bias)
{
    gemm_products(g, 1, &y, &ldy, x, &w, &bias);
}

static void quantize_task(void *ctx, int i, int worker)
{
    (void)worker;
    rows_quantize(ctx, i, 1);
}

void gemm_quantize(struct gemm *g, struct rows *x)
{
    if (x->n > 3) threads_run(g->threads, x->n, quantize_task, x);
    else rows_quantize(x, 0, x->n);
}

/* ---- weights that are packed on the way ---- */

/* A product as sums over chains: what a chain gives is stored or added, which is the definition of a longer product. */
struct loose {
    struct gemm *g;
    float *y;
    size_t ldy;
    const float *x, *bias;
    size_t ldx;
    int rows;
    const struct mat *w;
};

static void put(float *y, size_t ldy, const float *from, size_t ld, int rows, int columns, bool add)
{
    for (int t = 0; t < rows; t++, y += ldy, from += ld)
        for (int i = 0; i < columns; i++) y[i] = add ? y[i] + from[i] : from[i];
}

static void loose_task(void *ctx, int item, int worker)
{
    const struct loose *p = ctx;
    struct loose_scratch *s = loose_scratch(p->g, worker);
    const struct mat *w = p->w;
    int pieces = (w->rows + LOOSE_LANES - 1) / LOOSE_LANES, first = item % pieces * LOOSE_LANES;
    int columns = w->rows - first < LOOSE_LANES ? w->rows - first : LOOSE_LANES;
    int begin = item / pieces * LOOSE_TASK_ROWS, end = begin + LOOSE_TASK_ROWS < p->rows ? begin + LOOSE_TASK_ROWS : p->rows;
    struct mat part = *w;
    struct packed packed = {.lines = s->lines, .format = FORMAT_F32, .rows = columns};

    part.rows = columns;
    for (int k = 0; k < w->cols; k += LOOSE_COLS) {
        part.data = (const char *)w->data + ((size_t)first * w->stride + (size_t)k) * dtype_bytes(w->dtype);
        part.cols = packed.cols = w->cols - k < LOOSE_COLS ? w->cols - k : LOOSE_COLS;
        pack_panels(s->lines, NULL, FORMAT_F32, &part, 0, packed_panels(columns));
        for (int t = begin; t < end; t += LOOSE_ROWS) {
            int n = end - t < LOOSE_ROWS ? end - t : LOOSE_ROWS;
            struct rows x = {.x = p->x + (size_t)t * p->ldx + k, .ld = p->ldx, .n = n, .cols = part.cols};

            p->g->kernel->product(s->y, LOOSE_LANES, &x, NULL, n, &packed, 0, packed_panels(columns), gemm_scratch(p->g, worker));
            put(p->y + (size_t)t * p->ldy + first, p->ldy, s->y, LOOSE_LANES, n, columns, k > 0);
        }
    }
    if (p->bias) add_bias(p->y + (size_t)begin * p->ldy + first, p->ldy, end - begin, p->bias + first, columns);
}

void gemm_xwt(struct gemm *g, float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias)
{
    BUG_ON(!w->data || ldx < (size_t)w->cols || ldy < (size_t)w->rows || w->stride < (size_t)w->cols);
    struct loose p = {.g = g, .y = y, .ldy = ldy, .x = x, .bias = bias, .ldx = ldx, .rows = rows, .w = w};
    int tasks = (w->rows + LOOSE_LANES - 1) / LOOSE_LANES * ((rows + LOOSE_TASK_ROWS - 1) / LOOSE_TASK_ROWS);

    if (rows <= 0 || w->rows <= 0) return;
    if (!w->cols) {
        for (int t = 0; t < rows; t++)
            for (int i = 0; i < w->rows; i++) y[(size_t)t * ldy + i] = bias ? bias[i] : 0.0f;
        return;
    }
    if ((double)rows * w->rows * w->cols < SERIAL_BELOW)
        for (int i = 0; i < tasks; i++) loose_task(&p, i, 0);
    else threads_run(g->threads, tasks, loose_task, &p);
}

/* ---- errors, and gradients: rows of a matrix are the lines of a panel ---- */

/* Columns first .. first + columns - 1 of n dense rows of m as lines. */
static int as_lines(float *lines, const float *m, size_t ld, int n, int first, int columns)
{
    int panels = packed_panels(columns);

    memset(lines, 0, (size_t)panels * (size_t)n * LINE_BYTES);
    for (int p = 0; p < panels; p++) {
        int some = columns - p * PANEL_LANES < PANEL_LANES ? columns - p * PANEL_LANES : PANEL_LANES;

        for (int k = 0; k < n; k++, lines += PANEL_LANES)
            memcpy(lines, m + (size_t)k * ld + (size_t)(first + p * PANEL_LANES), (size_t)some * sizeof(*lines));
    }
    return panels;
}

struct errors {
    struct gemm *g;
    float *y;
    const float *x, *m;
    int n, rows, cols;
};

static void errors_task(void *ctx, int item, int worker)
{
    const struct errors *p = ctx;
    struct loose_scratch *s = loose_scratch(p->g, worker);
    int pieces = (p->cols + LOOSE_LANES - 1) / LOOSE_LANES, first = item % pieces * LOOSE_LANES;
    int columns = p->cols - first < LOOSE_LANES ? p->cols - first : LOOSE_LANES;
    int begin = item / pieces * LOOSE_TASK_ROWS, end = begin + LOOSE_TASK_ROWS < p->rows ? begin + LOOSE_TASK_ROWS : p->rows;

    for (int k = 0; k < p->n; k += LOOSE_COLS) {
        int chain = p->n - k < LOOSE_COLS ? p->n - k : LOOSE_COLS;
        struct packed w = {.lines = s->lines, .format = FORMAT_F32, .rows = columns, .cols = chain};
        int panels = as_lines(s->lines, p->m + (size_t)k * (size_t)p->cols, (size_t)p->cols, chain, first, columns);

        for (int t = begin; t < end; t += LOOSE_ROWS) {
            int some = end - t < LOOSE_ROWS ? end - t : LOOSE_ROWS;
            struct rows x = {.x = p->x + (size_t)t * (size_t)p->n + k, .ld = (size_t)p->n, .n = some, .cols = chain};

            p->g->kernel->product(s->y, LOOSE_LANES, &x, NULL, some, &w, 0, panels, gemm_scratch(p->g, worker));
            put(p->y + (size_t)t * (size_t)p->cols + first, (size_t)p->cols, s->y, LOOSE_LANES, some, columns, true);
        }
    }
}

void gemm_xw(struct gemm *g, float *y, const float *x, int n, int rows, const float *m, int cols)
{
    struct errors p = {.g = g, .y = y, .x = x, .m = m, .n = n, .rows = rows, .cols = cols};
    int tasks = (cols + LOOSE_LANES - 1) / LOOSE_LANES * ((rows + LOOSE_TASK_ROWS - 1) / LOOSE_TASK_ROWS);

    if (n <= 0 || rows <= 0) return;
    if ((double)rows * n * cols < SERIAL_BELOW)
        for (int i = 0; i < tasks; i++) errors_task(&p, i, 0);
    else threads_run(g->threads, tasks, errors_task, &p);
}

struct gradient {
    struct gemm *g;
    float *c;
    const float *a, *b;
    int n, d, rows;
};

/* c's columns first .. of all n rows: b's rows are the lines of a panel, a's columns are the rows of x. */
static void gradient_task(void *ctx, int item, int worker)
{
    const struct gradient *p = ctx;
    struct loose_scratch *s = loose_scratch(p->g, worker);
    int first = item * LOOSE_LANES, columns = p->d - first < LOOSE_LANES ? p->d - first : LOOSE_LANES;

    for (int t = 0; t < p->rows; t += LOOSE_COLS) {
        int chain = p->rows - t < LOOSE_COLS ? p->rows - t : LOOSE_COLS;
        struct packed w = {.lines = s->lines, .format = FORMAT_F32, .rows = columns, .cols = chain};

        int panels = as_lines(s->lines, p->b + (size_t)t * (size_t)p->d, (size_t)p->d, chain, first, columns);

        for (int i = 0; i < p->n; i += LOOSE_ROWS) {
            int some = p->n - i < LOOSE_ROWS ? p->n - i : LOOSE_ROWS;
            struct rows x = {.x = s->x, .ld = LOOSE_COLS, .n = some, .cols = chain};

            for (int k = 0; k < chain; k++)
                for (int j = 0; j < some; j++) s->x[j * LOOSE_COLS + k] = p->a[(size_t)(t + k) * (size_t)p->n + (size_t)(i + j)];
            p->g->kernel->product(s->y, LOOSE_LANES, &x, NULL, some, &w, 0, panels, gemm_scratch(p->g, worker));
            put(p->c + (size_t)i * (size_t)p->d + first, (size_t)p->d, s->y, LOOSE_LANES, some, columns, true);
        }
    }
}

void gemm_atb(struct gemm *g, float *c, const float *a, int n, const float *b, int d, int rows)
{
    struct gradient p = {.g = g, .c = c, .a = a, .b = b, .n = n, .d = d, .rows = rows};

    if (n > 0 && d > 0 && rows > 0) threads_run(g->threads, (d + LOOSE_LANES - 1) / (LOOSE_LANES), gradient_task, &p);
}
