/* The door to OpenBLAS.
 *
 * Why rows are invariant: an element of a product is one sum over k, and in one sgemm its order depends on the shape of the call and on which edge
 * kernel the element falls into.  A product here is calls of a few fixed shapes, panel x tile, and gemm_admit() has compared bit by bit, on random
 * data, what every tile height makes of a row at every position with what the shortest one makes of it.  A height that differs is not used.
 */
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

#include "base/rng.h"
#include "num/widen.h"

/* Tile heights.  The first that verifies against itself at every position is the base; a height of 1 always does. */
static const int TILE[] = {1, 4, 16, 64, 256};
enum { TILES = sizeof(TILE) / sizeof(*TILE), PAD_MAX = 64, PANEL_MAX = 128, CHUNK = 512, TILE_STEP = 4 };
/* Below this many multiplications waking the workers takes longer than the product. */
enum { SERIAL_BELOW = 1 << 18, SPINS = 2000 };

struct admitted {
    int panel, cols;
    int base;       /* index into TILE */
    unsigned tiles; /* bit i: TILE[i] gives the base's bits */
};

struct scratch {
    float *panel; /* [PANEL_MAX or less][cols] widened weights */
    float *y;     /* [PAD_MAX][PANEL_MAX] of a padded tile */
};

struct gemm {
    int threads;
    struct admitted *shape;
    int shapes;
    unsigned tiles; /* usable for every shape so far, for gemm_describe() */
    struct scratch *scratch;
    float *pad; /* [PAD_MAX][cols]: the last rows of x, filled up with zeros */
    size_t panel_floats, pad_floats;
    char about[128];

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

static void describe(struct gemm *g)
{
    char version[32] = "";
    size_t at;

    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    at = (size_t)snprintf(g->about, sizeof(g->about), "OpenBLAS %s %s, %d thread%s, row tiles ", version, openblas_get_corename(),
                          g->threads, g->threads == 1 ? "" : "s");
    for (int i = 0, first = 1; i < TILES && at < sizeof(g->about); i++) {
        if (!(g->tiles >> i & 1)) continue;
        at += (size_t)snprintf(g->about + at, sizeof(g->about) - at, "%s%d", first ? "" : "/", TILE[i]);
        first = 0;
    }
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
    g->tiles = ((1u << TILES) - 1) & ~1u;
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
 * panel stays in the second-level cache. */
static int panel_height(int rows, int cols)
{
    int most = cols <= 1024 ? PANEL_MAX : cols <= 4096 ? 64 : 32;

    return rows < most ? rows : most;
}

static const struct admitted *admitted_find(const struct gemm *g, int panel, int cols)
{
    for (int i = 0; i < g->shapes; i++)
        if (g->shape[i].panel == panel && g->shape[i].cols == cols) return &g->shape[i];
    return NULL;
}

static void multiply(float *y, size_t ldy, const float *x, size_t ldx, int rows, const float *w, size_t ldw, int panel, int cols)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, panel, cols, 1.0f, x, (int)ldx, w, (int)ldw, 0.0f, y, (int)ldy);
}

/* Does a tile of `height` rows give every row the bits in `want`?  Tiles are laid over the rows of x at up to four offsets, so that every row stands
 * at several positions, in a short tile at all of them, with other neighbours each time. */
static bool tile_agrees(const float *want, float *y, const float *x, int rows, const float *w, int panel, int cols, int height)
{
    int offsets = height < TILE_STEP ? height : TILE_STEP;

    for (int offset = 0; offset < offsets; offset++)
        for (int at = offset; at + height <= rows; at += height) {
            multiply(y, (size_t)panel, x + (size_t)at * cols, (size_t)cols, height, w, (size_t)cols, panel, cols);
            if (memcmp(y, want + (size_t)at * panel, (size_t)height * panel * sizeof(*y))) return false;
        }
    return true;
}

/* Fills a->base and a->tiles for a->panel x a->cols. */
static status verify(struct admitted *a, struct err *e)
{
    int rows = TILE[TILES - 1] + TILE_STEP;
    size_t cols = (size_t)a->cols, panel = (size_t)a->panel;
    float *x = malloc(((size_t)rows + panel) * cols * sizeof(*x) + 1), *w = x ? x + (size_t)rows * cols : NULL;
    float *want = malloc((size_t)rows * panel * 2 * sizeof(*want) + 1), *y = want ? want + (size_t)rows * panel : NULL;
    status s = OK;

    if (!x || !want) {
        s = err_set(e, ERR_LIMIT, "no memory to verify products of %d x %d weights", a->panel, a->cols);
        goto done;
    }
    for (size_t i = 0; i < ((size_t)rows + panel) * cols; i++) /* full mantissas, so that every other order of a sum shows */
        x[i] = (float)((double)rng_hash(1, (uint64_t)cols, panel, i) * 0x1p-63 - 1.0);

    for (a->base = 1; a->base >= 0; a->base--) {
        int height = TILE[a->base];

        for (int at = 0; at + height <= rows; at += height)
            multiply(want + (size_t)at * panel, panel, x + (size_t)at * cols, cols, height, w, cols, a->panel, a->cols);
        if (tile_agrees(want, y, x, rows, w, a->panel, a->cols, height)) break;
    }
    if (a->base < 0) { /* a row alone is not a function of its arguments: no product here can be trusted */
        s = err_set(e, ERR_LIMIT, "OpenBLAS gives different bits for equal products of %d x %d weights", a->panel, a->cols);
        goto done;
    }
    a->tiles = 1u << a->base;
    for (int i = a->base + 1; i < TILES; i++)
        if (tile_agrees(want, y, x, rows, w, a->panel, a->cols, TILE[i])) a->tiles |= 1u << i;
done:
    free(x);
    free(want);
    return s;
}

static status admit_panel(struct gemm *g, int panel, int cols, struct err *e)
{
    struct admitted a = {.panel = panel, .cols = cols}, *more;

    if (!panel || admitted_find(g, panel, cols)) return OK;
    if (verify(&a, e)) return e->code;
    more = realloc(g->shape, (size_t)(g->shapes + 1) * sizeof(*more));
    if (!more) return err_set(e, ERR_LIMIT, "no memory for %d shapes of weights", g->shapes + 1);
    g->shape = more;
    g->shape[g->shapes++] = a;
    g->tiles &= a.tiles;
    if (!(g->tiles & (1u << a.base))) g->tiles |= 1u << a.base;
    describe(g);
    return OK;
}

static status grow(float **p, size_t floats, struct err *e)
{
    free(*p);
    *p = aligned_alloc(64, (floats * sizeof(**p) + 63) & ~(size_t)63);
    return *p ? OK : err_set(e, ERR_LIMIT, "no memory for %zu bytes of scratch for matrix products", floats * sizeof(**p));
}

static status take_scratch(struct gemm *g, int panel, int cols, struct err *e)
{
    size_t floats = (size_t)panel * cols;

    if (floats > g->panel_floats) {
        g->panel_floats = 0; /* nothing counts as taken unless all of it was */
        for (int i = 0; i < g->threads; i++) {
            if (grow(&g->scratch[i].panel, floats, e)) return e->code;
            if (!g->scratch[i].y && grow(&g->scratch[i].y, PAD_MAX * PANEL_MAX, e)) return e->code;
        }
        g->panel_floats = floats;
    }
    if ((size_t)cols * PAD_MAX > g->pad_floats) {
        g->pad_floats = 0;
        if (grow(&g->pad, (size_t)cols * PAD_MAX, e)) return e->code;
        g->pad_floats = (size_t)cols * PAD_MAX;
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
    int base;
    unsigned tiles;
    int padded_from; /* rows from here on are in g->pad, as one tile; == rows: none are */
    int padded_tile;
};

/* The height of the next tile when `left` rows are left: the tallest that they fill, or nearly. */
static int next_tile(const struct product *p, int left)
{
    for (int i = TILES - 1; i > p->base; i--)
        if (p->tiles >> i & 1 && (left >= TILE[i] || (TILE[i] <= PAD_MAX && left * 4 >= TILE[i] * 3))) return TILE[i];
    return TILE[p->base];
}

static void add_bias(float *y, size_t ldy, int rows, int n, const float *bias)
{
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < n; i++) y[t * ldy + i] += bias[i];
}

/* One panel of weights against one chunk of rows. */
static void product_task(void *ctx, int item, int worker)
{
    const struct product *p = ctx;
    const struct scratch *scratch = &p->g->scratch[worker];
    int first = item / p->chunks * p->panel, cols = p->w->cols;
    int panel = p->w->rows - first < p->panel ? p->w->rows - first : p->panel;
    int row = item % p->chunks * CHUNK, end = row + CHUNK < p->rows ? row + CHUNK : p->rows;
    const float *w = (const float *)p->w->data + (size_t)first * p->w->stride;
    const float *bias = p->bias ? p->bias + first : NULL;
    size_t ldw = p->w->stride;

    if (p->w->dtype != DT_F32) {
        widen_rows(scratch->panel, p->w, first, panel);
        w = scratch->panel;
        ldw = (size_t)cols;
    }
    for (int height; row < end; row += height) {
        float *y = p->y + (size_t)row * p->ldy + first;

        if (row >= p->padded_from) {
            height = end - row;
            multiply(scratch->y, (size_t)panel, p->g->pad, (size_t)cols, p->padded_tile, w, ldw, panel, cols);
            for (int t = 0; t < height; t++)
                memcpy(y + (size_t)t * p->ldy, scratch->y + (size_t)t * panel, (size_t)panel * sizeof(*y));
        } else {
            height = next_tile(p, end - row);
            multiply(y, p->ldy, p->x + (size_t)row * p->ldx, p->ldx, height, w, ldw, panel, cols);
        }
        if (bias) add_bias(y, p->ldy, height, panel, bias);
    }
}

/* The rows that do not fill their tile are copied once, ahead of the panels that all need them. */
static void pad_last(struct product *p)
{
    int row = p->rows - p->rows % CHUNK, cols = p->w->cols, height;

    p->padded_from = p->rows;
    for (; row < p->rows; row += height) {
        height = next_tile(p, p->rows - row);
        if (height > p->rows - row) break;
    }
    if (row >= p->rows) return;
    p->padded_from = row;
    p->padded_tile = height;
    for (int t = row; t < p->rows; t++)
        memcpy(p->g->pad + (size_t)(t - row) * cols, p->x + (size_t)t * p->ldx, (size_t)cols * sizeof(float));
    memset(p->g->pad + (size_t)(p->rows - row) * cols, 0, (size_t)(height - (p->rows - row)) * cols * sizeof(float));
}

void gemm_xwt(struct gemm *g, float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias)
{
    BUG_ON(!w->data || ldx < (size_t)w->cols || ldy < (size_t)w->rows || w->stride < (size_t)w->cols);
    BUG_ON(g->busy);
    int panel = panel_height(w->rows, w->cols);
    struct err e;

    if (rows <= 0 || !panel) return;
    if (!w->cols) {
        for (int t = 0; t < rows; t++)
            for (int i = 0; i < w->rows; i++) y[(size_t)t * ldy + i] = bias ? bias[i] : 0.0f;
        return;
    }
    if (!admitted_find(g, panel, w->cols) || (w->rows % panel && !admitted_find(g, w->rows % panel, w->cols)))
        BUG_ON(gemm_admit(g, w->rows, w->cols, &e)); /* late, but right */
    const struct admitted *whole = admitted_find(g, panel, w->cols);
    const struct admitted *last = w->rows % panel ? admitted_find(g, w->rows % panel, w->cols) : whole;
    struct product p = {.g = g, .y = y, .x = x, .bias = bias, .ldy = ldy, .ldx = ldx, .rows = rows, .panel = panel, .w = w};

    /* A tile height serves the matrix if it serves both of its panel shapes.  The base must be the same for all rows, too: 1 is one
     * that always is right, though only where a shape's base is 1 are its bits those. */
    p.base = whole->base < last->base ? whole->base : last->base;
    p.tiles = whole->base == last->base ? whole->tiles & last->tiles : 1u;
    p.chunks = (rows + CHUNK - 1) / CHUNK;
    pad_last(&p);

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
