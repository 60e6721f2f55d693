#include "num/cholesky.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, COLUMNS = 32 /* of a task */, TILE_ROWS = 4, TILE_COLS = 4 };

/* ---- c[rows][cols] -= a[rows][n] b[n][cols] ---- */

/* a's element (i, k) is a[i * down + k * across]. */
struct factor {
    const double *a;
    size_t down, across;
};

static void tile(double *restrict c, size_t ldc, struct factor f, const double *restrict b, size_t ldb, int n)
{
    double sum[TILE_ROWS][TILE_COLS] = {{0}};

    for (int k = 0; k < n; k++, b += ldb, f.a += f.across)
        for (int i = 0; i < TILE_ROWS; i++)
            for (int j = 0; j < TILE_COLS; j++) sum[i][j] += f.a[(size_t)i * f.down] * b[j];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < TILE_COLS; j++) c[(size_t)i * ldc + (size_t)j] -= sum[i][j];
}

static void edge(double *c, size_t ldc, struct factor f, const double *b, size_t ldb, int rows, int cols, int n)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            double sum = 0;

            for (int k = 0; k < n; k++) sum += f.a[(size_t)i * f.down + (size_t)k * f.across] * b[(size_t)k * ldb + (size_t)j];
            c[(size_t)i * ldc + (size_t)j] -= sum;
        }
}

static void take_product(double *c, size_t ldc, struct factor f, const double *b, size_t ldb, int rows, int cols, int n)
{
    int i = 0;

    for (; i + TILE_ROWS <= rows; i += TILE_ROWS, f.a += TILE_ROWS * f.down, c += TILE_ROWS * ldc) {
        int j = 0;

        for (; j + TILE_COLS <= cols; j += TILE_COLS) tile(c + j, ldc, f, b + j, ldb, n);
        edge(c + j, ldc, f, b + j, ldb, TILE_ROWS, cols - j, n);
    }
    edge(c, ldc, f, b, ldb, rows - i, cols, n);
}

static int blocks(int n)
{
    return (n + BLOCK - 1) / BLOCK;
}

static int block_size(int n, int block)
{
    return n - block * BLOCK < BLOCK ? n - block * BLOCK : BLOCK;
}

/* ---- the factor ---- */

struct factoring {
    double *a;
    int n, block;   /* the columns that are done now */
    double *across; /* [BLOCK][ld]: L's columns of the block, transposed */
    size_t ld;      /* not a power of two, whose lines would meet in one set of the caches */
};

static bool factor_corner(double *a, size_t ld, int n)
{
    for (int i = 0; i < n; i++) {
        double *row = a + (size_t)i * ld;

        for (int j = 0; j <= i; j++) {
            const double *other = a + (size_t)j * ld;
            double sum = row[j];

            for (int k = 0; k < j; k++) sum -= row[k] * other[k];
            if (i == j && !(sum > 0 && isfinite(sum))) return false;
            row[j] = i == j ? sqrt(sum) : sum / other[j];
        }
    }
    return true;
}

/* Rows of a block below the corner: L = A (corner')^-1. */
static void below_task(void *ctx, int item, int worker)
{
    const struct factoring *f = ctx;
    size_t ld = (size_t)f->n, first = (size_t)f->block * BLOCK;
    int wide = block_size(f->n, f->block), block = f->block + 1 + item, tall = block_size(f->n, block);
    const double *corner = f->a + first * ld + first;

    (void)worker;
    for (int i = 0; i < tall; i++) {
        size_t at = (size_t)block * BLOCK + (size_t)i;
        double *row = f->a + at * ld + first;

        for (int j = 0; j < wide; j++) {
            double sum = row[j];

            for (int k = 0; k < j; k++) sum -= row[k] * corner[(size_t)j * ld + (size_t)k];
            row[j] = sum / corner[(size_t)j * ld + (size_t)j];
            f->across[(size_t)j * f->ld + at] = row[j];
        }
    }
}

/* What is left of a row of blocks, up to the diagonal. */
static void rest_task(void *ctx, int item, int worker)
{
    const struct factoring *f = ctx;
    size_t ld = (size_t)f->n, first = (size_t)f->block * BLOCK, from = first + BLOCK;
    int block = f->block + 1 + item, tall = block_size(f->n, block);
    size_t at = (size_t)block * BLOCK;
    struct factor left = {f->a + at * ld + first, ld, 1};

    (void)worker;
    take_product(f->a + at * ld + from, ld, left, f->across + from, f->ld, tall, (int)(at - from) + tall, BLOCK);
}

bool cholesky_factor(double *a, int n, struct gemm *g, const struct alive *alive)
{
    struct factoring f = {.a = a, .n = n, .ld = (size_t)n + 8};
    bool good = true;

    f.across = malloc(BLOCK * f.ld * sizeof(double));
    BUG_ON(!f.across);
    for (; good && f.block < blocks(n); f.block++) {
        size_t first = (size_t)f.block * BLOCK;
        int below = blocks(n) - f.block - 1;

        alive_tick(alive);
        good = factor_corner(a + first * (size_t)n + first, (size_t)n, block_size(n, f.block));
        if (!good || !below) continue;
        gemm_parallel(g, below, below_task, &f);
        gemm_parallel(g, below, rest_task, &f);
    }
    free(f.across);
    return good;
}

/* ---- solutions ---- */

struct solving {
    const double *l;
    double *b;      /* [n][cols], */
    float *inverse; /* or [n][n] */
    int n, cols, first;
    double *room; /* [threads]: [n][COLUMNS], and a block */
};

static size_t room_of(int n)
{
    return (size_t)n * COLUMNS + BLOCK * BLOCK;
}

static void forward(const double *l, double *x, int n, int from)
{
    size_t ld = (size_t)n;

    for (int b = from; b < blocks(n); b++) {
        size_t at = (size_t)b * BLOCK;
        int tall = block_size(n, b);
        double *own = x + at * COLUMNS;

        for (int j = from; j < b; j++)
            take_product(own, COLUMNS, (struct factor){l + at * ld + (size_t)j * BLOCK, ld, 1}, x + (size_t)j * BLOCK * COLUMNS,
                         COLUMNS, tall, COLUMNS, BLOCK);
        for (int i = 0; i < tall; i++) {
            const double *row = l + (at + (size_t)i) * ld + at;
            double *to = own + (size_t)i * COLUMNS;

            for (int k = 0; k < i; k++)
                for (int c = 0; c < COLUMNS; c++) to[c] -= row[k] * own[(size_t)k * COLUMNS + (size_t)c];
            for (int c = 0; c < COLUMNS; c++) to[c] /= row[i];
        }
    }
}

static void backward(const double *l, double *x, int n, double *across)
{
    size_t ld = (size_t)n;

    for (int b = blocks(n); b-- > 0;) {
        size_t at = (size_t)b * BLOCK;
        int tall = block_size(n, b);
        double *own = x + at * COLUMNS;

        for (int j = b + 1; j < blocks(n); j++) {
            const double *below = l + (size_t)j * BLOCK * ld + at;
            int deep = block_size(n, j);

            for (int k = 0; k < deep; k++)
                for (int i = 0; i < tall; i++) across[i * BLOCK + k] = below[(size_t)k * ld + (size_t)i];
            take_product(own, COLUMNS, (struct factor){across, BLOCK, 1}, x + (size_t)j * BLOCK * COLUMNS, COLUMNS, tall, COLUMNS,
                         deep);
        }
        for (int i = tall; i-- > 0;) {
            double *to = own + (size_t)i * COLUMNS;

            for (int k = i + 1; k < tall; k++) {
                double of_k = l[(at + (size_t)k) * ld + at + (size_t)i];

                for (int c = 0; c < COLUMNS; c++) to[c] -= of_k * own[(size_t)k * COLUMNS + (size_t)c];
            }
            for (int c = 0; c < COLUMNS; c++) to[c] /= l[(at + (size_t)i) * ld + at + (size_t)i];
        }
    }
}

/* Some columns: L x = b, whose blocks are zero before that of the diagonal if b is the identity, then L' x = b. */
static void solve_task(void *ctx, int item, int worker)
{
    const struct solving *s = ctx;
    int first = (s->first + item) * COLUMNS, cols = s->cols - first < COLUMNS ? s->cols - first : COLUMNS;
    size_t n = (size_t)s->n, at = (size_t)first;
    double *x = s->room + (size_t)worker * room_of(s->n);

    memset(x, 0, n * COLUMNS * sizeof(*x));
    for (int c = 0; c < cols && s->inverse; c++) x[(at + (size_t)c) * COLUMNS + (size_t)c] = 1;
    for (size_t i = 0; i < n && !s->inverse; i++)
        memcpy(x + i * COLUMNS, s->b + i * (size_t)s->cols + at, (size_t)cols * sizeof(*x));
    forward(s->l, x, s->n, s->inverse ? first / BLOCK : 0);
    backward(s->l, x, s->n, x + n * COLUMNS);
    for (size_t i = 0; i < n; i++) {
        if (!s->inverse) memcpy(s->b + i * (size_t)s->cols + at, x + i * COLUMNS, (size_t)cols * sizeof(*x));
        for (int c = 0; c < cols && s->inverse; c++) s->inverse[i * n + at + (size_t)c] = (float)x[i * COLUMNS + (size_t)c];
    }
}

/* Some tasks at a time, and a sign of life. */
static status solve_all(struct solving *s, struct gemm *g, const struct alive *alive, struct err *e)
{
    int threads = threads_count(gemm_threads(g)), tasks = (s->cols + COLUMNS - 1) / COLUMNS, each = 4 * threads;

    s->room = malloc((size_t)threads * room_of(s->n) * sizeof(double));
    if (!s->room) return err_set(e, ERR_LIMIT, "no memory to solve for %d columns of %d numbers", s->cols, s->n);
    for (; s->first < tasks; s->first += each) {
        alive_tick(alive);
        gemm_parallel(g, tasks - s->first < each ? tasks - s->first : each, solve_task, s);
    }
    free(s->room);
    return OK;
}

status cholesky_solve(const double *l, double *b, int n, int cols, struct gemm *g, const struct alive *alive, struct err *e)
{
    struct solving s = {.l = l, .b = b, .n = n, .cols = cols};

    return solve_all(&s, g, alive, e);
}

status cholesky_invert(const double *l, float *out, int n, struct gemm *g, const struct alive *alive, struct err *e)
{
    struct solving s = {.l = l, .inverse = out, .n = n, .cols = n};

    return solve_all(&s, g, alive, e);
}
