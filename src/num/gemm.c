/* The door to OpenBLAS: a product is calls of the fixed shapes of num/tiles.h, panel x tile, spread over the threads. */
#include "num/gemm.h"

#include <cblas.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "num/tiles.h"
#include "num/widen.h"

enum { BASE = TILE_BASE, TALLS = TILE_TALLS, PANEL_MAX = 120, CHUNK = 480 };
/* Below this many multiplications waking the workers takes longer than the product. */
enum { SERIAL_BELOW = 1 << 18, SPINS = 2000 };

struct scratch {
    float *panel; /* [panel][cols] widened weights */
    float *y;     /* [PANEL_MAX][TILE_TALL_MAX] the result of a call */
};

struct gemm {
    int threads;
    struct admitted *shape;
    int shapes;
    struct scratch *scratch;
    float *pad; /* [BASE][cols]: the last rows of x, filled up with zeros */
    size_t panel_floats, pad_floats;
    char about[192];

    /* One parallel region at a time; `generation` counts them. */
    pthread_t *worker;
    int workers;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    atomic_uint generation;
    atomic_int next, running;
    bool busy, leave;
    int n;
    void (*task)(void *ctx, int i, int worker);
    void *ctx;
};

struct worker_start {
    struct gemm *g;
    int index;
};

/* ---- threads ---- */

static void drain(struct gemm *g, int worker)
{
    for (int i; (i = atomic_fetch_add(&g->next, 1)) < g->n;) g->task(g->ctx, i, worker);
}

static void *worker_main(void *arg)
{
    struct worker_start start = *(struct worker_start *)arg;
    struct gemm *g = start.g;
    unsigned seen = 0;

    free(arg);
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&g->generation) == seen; spin++) sched_yield();
        pthread_mutex_lock(&g->lock);
        while (atomic_load(&g->generation) == seen) pthread_cond_wait(&g->wake, &g->lock);
        seen = atomic_load(&g->generation);
        bool leave = g->leave;
        pthread_mutex_unlock(&g->lock);
        if (leave) return NULL;

        drain(g, start.index);
        if (atomic_fetch_sub(&g->running, 1) == 1) {
            pthread_mutex_lock(&g->lock);
            pthread_cond_signal(&g->idle);
            pthread_mutex_unlock(&g->lock);
        }
    }
}

void gemm_parallel(struct gemm *g, int n, void (*task)(void *ctx, int i, int worker), void *ctx)
{
    BUG_ON(g->busy);
    g->busy = true;
    if (!g->workers || n < 2) {
        for (int i = 0; i < n; i++) task(ctx, i, 0);
        g->busy = false;
        return;
    }
    pthread_mutex_lock(&g->lock);
    g->n = n;
    g->task = task;
    g->ctx = ctx;
    atomic_store(&g->next, 0);
    atomic_store(&g->running, g->workers);
    atomic_fetch_add(&g->generation, 1);
    pthread_cond_broadcast(&g->wake);
    pthread_mutex_unlock(&g->lock);

    drain(g, 0);
    for (int spin = 0; spin < SPINS && atomic_load(&g->running); spin++) sched_yield();
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&g->running)) pthread_cond_wait(&g->idle, &g->lock);
    pthread_mutex_unlock(&g->lock);
    g->busy = false;
}

/* ---- opening ---- */

/* Names the tile heights that all shapes so far can use. */
static void describe(struct gemm *g)
{
    char version[32] = "", tall[64] = "";
    int base = BASE;

    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    for (int i = 0; i < g->shapes; i++)
        if (g->shape[i].base < base) base = g->shape[i].base;
    for (int k = 0; k < TALLS; k++) {
        bool all = true;

        for (int i = 0; i < g->shapes; i++) all = all && g->shape[i].tall[k].end;
        if (all) snprintf(tall + strlen(tall), sizeof(tall) - strlen(tall), "/%d", tile_tall[k]);
    }
    snprintf(g->about, sizeof(g->about), "OpenBLAS %s %s, %d thread%s, row tiles %d%s", version, openblas_get_corename(),
             g->threads, g->threads == 1 ? "" : "s", base, tall);
}

status gemm_open(struct gemm **out, int threads, struct err *e)
{
    BUG_ON(threads < 1);
    struct gemm *g = calloc(1, sizeof(*g));

    *out = NULL;
    if (!g) return err_set(e, ERR_LIMIT, "no memory for the matrix products");
    openblas_set_num_threads(1);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->wake, NULL);
    pthread_cond_init(&g->idle, NULL);
    g->threads = threads;
    g->scratch = calloc((size_t)threads, sizeof(*g->scratch));
    g->worker = calloc((size_t)threads, sizeof(*g->worker));
    if (!g->scratch || !g->worker) {
        gemm_close(g);
        return err_set(e, ERR_LIMIT, "no memory for %d threads", threads);
    }
    for (int i = 1; i < threads; i++) {
        struct worker_start *start = malloc(sizeof(*start));
        int failed = 1;

        if (start) {
            *start = (struct worker_start){g, i};
            failed = pthread_create(&g->worker[g->workers], NULL, worker_main, start);
        }
        if (failed) {
            free(start);
            gemm_close(g);
            return err_set(e, ERR_LIMIT, "the system refuses thread %d of %d", i + 1, threads);
        }
        g->workers++;
    }
    describe(g);
    *out = g;
    return OK;
}

void gemm_close(struct gemm *g)
{
    if (!g) return;
    pthread_mutex_lock(&g->lock);
    g->leave = true;
    atomic_fetch_add(&g->generation, 1);
    pthread_cond_broadcast(&g->wake);
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < g->workers; i++) pthread_join(g->worker[i], NULL);
    for (int i = 0; g->scratch && i < g->threads; i++) {
        free(g->scratch[i].panel);
        free(g->scratch[i].y);
    }
    pthread_cond_destroy(&g->wake);
    pthread_cond_destroy(&g->idle);
    pthread_mutex_destroy(&g->lock);
    free(g->scratch);
    free(g->worker);
    free(g->shape);
    free(g->pad);
    free(g);
}

int gemm_threads(const struct gemm *g)
{
    return g->threads;
}

const char *gemm_describe(const struct gemm *g)
{
    return g->about;
}

/* ---- admission ---- */

/* The height of a weight's panels.  Of the shape alone, so that a row is summed alike for ever; about half a MiB, so that a widened
 * panel stays in the second-level cache; and a multiple of 12, the width of the widest kernels. */
static int panel_height(int rows, int cols)
{
    int most = cols <= 1024 ? PANEL_MAX : cols <= 4096 ? 60 : 36;

    return rows < most ? rows : most;
}

static const struct admitted *admitted_find(const struct gemm *g, int panel, int cols)
{
    for (int i = 0; i < g->shapes; i++)
        if (g->shape[i].panel == panel && g->shape[i].cols == cols) return &g->shape[i];
    return NULL;
}

static status admit_panel(struct gemm *g, int panel, int cols, struct err *e)
{
    struct admitted a = {.panel = panel, .cols = cols}, *more;

    if (!panel || admitted_find(g, panel, cols)) return OK;
    if (tiles_verify(&a, e)) return e->code;
    more = realloc(g->shape, (size_t)(g->shapes + 1) * sizeof(*more));
    if (!more) return err_set(e, ERR_LIMIT, "no memory for %d shapes of weights", g->shapes + 1);
    g->shape = more;
    g->shape[g->shapes++] = a;
    describe(g);
    return OK;
}

static status grow(float **p, size_t floats, struct err *e)
{
    free(*p);
    *p = aligned_alloc(64, (floats * sizeof(**p) + 63) & ~(size_t)63);
    return *p ? OK : err_set(e, ERR_LIMIT, "no memory for %zu bytes of scratch for matrix products", floats * sizeof(**p));
}

static bool scratch_fits(const struct gemm *g, int panel, int cols)
{
    return (size_t)panel * (size_t)cols <= g->panel_floats && (size_t)cols * BASE <= g->pad_floats;
}

static status take_scratch(struct gemm *g, int panel, int cols, struct err *e)
{
    size_t floats = (size_t)panel * cols;

    if (floats > g->panel_floats) {
        g->panel_floats = 0; /* nothing counts as taken unless all of it was */
        for (int i = 0; i < g->threads; i++) {
            if (grow(&g->scratch[i].panel, floats, e)) return e->code;
            if (!g->scratch[i].y && grow(&g->scratch[i].y, PANEL_MAX * TILE_TALL_MAX, e)) return e->code;
        }
        g->panel_floats = floats;
    }
    if ((size_t)cols * BASE > g->pad_floats) {
        g->pad_floats = 0;
        if (grow(&g->pad, (size_t)cols * BASE, e)) return e->code;
        g->pad_floats = (size_t)cols * BASE;
    }
    return OK;
}

status gemm_admit(struct gemm *g, int rows, int cols, struct err *e)
{
    BUG_ON(rows < 0 || cols < 0 || g->busy);
    int panel = panel_height(rows, cols);

    if (!panel || !cols) return OK;
    if (admit_panel(g, panel, cols, e) || admit_panel(g, rows % panel, cols, e)) return e->code;
    return take_scratch(g, panel, cols, e);
}

/* ---- products ---- */

struct product {
    struct gemm *g;
    float *y;
    const float *x, *bias;
    size_t ldy, ldx;
    int rows, chunks, panel;
    const struct mat *w;
    const struct admitted *whole, *last; /* of full panels, and of the last one */
};

/* Rows `from` .. `from` + n - 1 of a call's result to their places in y. */
static void put_rows(const struct product *p, const float *result, int height, int from, int n, int row, int first, int panel)
{
    const float *bias = p->bias ? p->bias + first : NULL;

    for (int t = 0; t < n; t++) {
        const float *in = result + from + t;
        float *y = p->y + (size_t)(row + t) * p->ldy + first;

        if (bias)
            for (int i = 0; i < panel; i++) y[i] = in[(size_t)i * (size_t)height] + bias[i];
        else
            for (int i = 0; i < panel; i++) y[i] = in[(size_t)i * (size_t)height];
    }
}

/* The tallest call whose usable rows are among the `left` next ones, and that does not reach out of x. */
static const struct tile *tall_tile(const struct admitted *a, int row, int left, int rows)
{
    for (int k = TALLS - 1; k >= 0; k--) {
        const struct tile *t = &a->tall[k];

        if (t->end && left >= t->end - t->begin && row >= t->begin && row - t->begin + t->height <= rows) return t;
    }
    return NULL;
}

/* One panel of weights against one chunk of rows. */
static void product_task(void *ctx, int item, int worker)
{
    const struct product *p = ctx;
    const struct scratch *scratch = &p->g->scratch[worker];
    int chunk = item % p->chunks, first = item / p->chunks * p->panel, cols = p->w->cols;
    int panel = p->w->rows - first < p->panel ? p->w->rows - first : p->panel;
    int row = chunk ? BASE + chunk * CHUNK : 0, end = chunk + 1 < p->chunks ? BASE + (chunk + 1) * CHUNK : p->rows;
    const struct admitted *a = panel == p->panel ? p->whole : p->last;
    const float *w = (const float *)p->w->data + (size_t)first * p->w->stride;
    size_t ldw = p->w->stride;

    if (p->w->dtype != DT_F32) {
        widen_rows(scratch->panel, p->w, first, panel);
        w = scratch->panel;
        ldw = (size_t)cols;
    }
    while (row < end) {
        const struct tile *tall = tall_tile(a, row, end - row, p->rows);
        const float *x = p->x + (size_t)row * p->ldx;
        int n = end - row < a->base ? end - row : a->base, height = n;

        if (tall) {
            n = tall->end - tall->begin;
            tile_multiply(scratch->y, x - (size_t)tall->begin * p->ldx, p->ldx, tall->height, w, ldw, panel, cols);
            put_rows(p, scratch->y, tall->height, tall->begin, n, row, first, panel);
        } else {
            while (!a->whole[height]) height++;
            BUG_ON(height != n && row + n != p->rows); /* g->pad has the last rows of all */
            if (height == n) tile_multiply(scratch->y, x, p->ldx, height, w, ldw, panel, cols);
            else tile_multiply(scratch->y, p->g->pad, (size_t)cols, height, w, ldw, panel, cols);
            put_rows(p, scratch->y, height, 0, n, row, first, panel);
        }
        row += n;
    }
}

/* Calls end at multiples of BASE; the rows that are left over are copied once, ahead of the panels that need them. */
static void pad_last(const struct product *p, int n)
{
    size_t cols = (size_t)p->w->cols;

    for (int t = 0; t < n; t++)
        memcpy(p->g->pad + (size_t)t * cols, p->x + (size_t)(p->rows - n + t) * p->ldx, cols * sizeof(float));
    memset(p->g->pad + (size_t)n * cols, 0, (size_t)(BASE - n) * cols * sizeof(float));
}

void gemm_xwt(struct gemm *g, float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias)
{
    BUG_ON(!w->data || ldx < (size_t)w->cols || ldy < (size_t)w->rows || w->stride < (size_t)w->cols);
    BUG_ON(g->busy);
    int panel = panel_height(w->rows, w->cols), rest = panel ? w->rows % panel : 0;
    struct err e;

    if (rows <= 0 || !panel) return;
    if (!w->cols) {
        for (int t = 0; t < rows; t++)
            for (int i = 0; i < w->rows; i++) y[(size_t)t * ldy + i] = bias ? bias[i] : 0.0f;
        return;
    }
    if (!admitted_find(g, panel, w->cols) || (rest && !admitted_find(g, rest, w->cols)) || !scratch_fits(g, panel, w->cols))
        BUG_ON(gemm_admit(g, w->rows, w->cols, &e)); /* late, but right */
    struct product p = {.g = g, .y = y, .x = x, .bias = bias, .ldy = ldy, .ldx = ldx, .rows = rows, .panel = panel, .w = w};

    p.whole = admitted_find(g, panel, w->cols);
    p.last = rest ? admitted_find(g, rest, w->cols) : p.whole;
    p.chunks = rows <= BASE + CHUNK ? 1 : (rows - BASE + CHUNK - 1) / CHUNK;
    if (rows % BASE) pad_last(&p, rows % BASE);

    int items = p.chunks * ((w->rows + panel - 1) / panel);
    if ((double)rows * w->rows * w->cols < SERIAL_BELOW)
        for (int i = 0; i < items; i++) product_task(&p, i, 0);
    else gemm_parallel(g, items, product_task, &p);
}

struct gradient {
    float *c;
    const float *a, *b;
    int n, d, rows;
};

enum { GRADIENT_PANEL = 64 };

static void gradient_task(void *ctx, int i, int worker)
{
    const struct gradient *p = ctx;
    int first = i * GRADIENT_PANEL, n = p->n - first < GRADIENT_PANEL ? p->n - first : GRADIENT_PANEL;

    (void)worker;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, p->d, p->rows, 1.0f, p->a + first, p->n, p->b, p->d, 1.0f,
                p->c + (size_t)first * p->d, p->d);
}

void gemm_atb(struct gemm *g, float *c, const float *a, int n, const float *b, int d, int rows)
{
    struct gradient p = {.c = c, .a = a, .b = b, .n = n, .d = d, .rows = rows};

    if (n > 0 && d > 0 && rows > 0) gemm_parallel(g, (n + GRADIENT_PANEL - 1) / GRADIENT_PANEL, gradient_task, &p);
}
