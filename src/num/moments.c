#include "num/moments.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "num/cholesky.h"

enum { ROWS_AT_ONCE = 256, CELLS_OF_TASK = 1 << 15, COLUMNS_OF_TASK = 64, ITERATIONS = 40 };

static size_t square(int n)
{
    return (size_t)n * (size_t)n;
}

static size_t sums(const struct moments *m)
{
    return square(m->in) + (size_t)m->in * (size_t)m->out + (size_t)m->in + (size_t)m->out;
}

/* Floats behind `shift`. */
static size_t floats(int in, int out)
{
    size_t wide = (size_t)in + (size_t)out;

    return wide * (ROWS_AT_ONCE + 1) + ROWS_AT_ONCE + (size_t)(in > out ? in : out) * (size_t)in;
}

size_t moments_cost(int in, int out)
{
    const struct moments m = {.in = in, .out = out};

    return (sums(&m) + square(in) + 2 * (size_t)in * (size_t)out) * sizeof(double) + floats(in, out) * sizeof(float);
}

status moments_open(struct moments *m, int in, int out, struct gemm *g, struct err *e)
{
    size_t wide = (size_t)in + (size_t)out;

    *m = (struct moments){.in = in, .out = out, .gemm = g};
    m->xx = calloc(sums(m), sizeof(*m->xx));
    m->shift = calloc(floats(in, out), sizeof(*m->shift));
    if (!m->xx || !m->shift) {
        moments_close(m);
        return err_set(e, ERR_LIMIT, "no memory for least squares of %d inputs and %d outputs", in, out);
    }
    m->xy = m->xx + square(in);
    m->x = m->xy + (size_t)in * (size_t)out;
    m->y = m->x + in;
    m->wait_x = m->shift + wide;
    m->wait_y = m->wait_x + ROWS_AT_ONCE * (size_t)in;
    m->wait_w = m->wait_y + ROWS_AT_ONCE * (size_t)out;
    m->product = m->wait_w + ROWS_AT_ONCE;
    return OK;
}

void moments_close(struct moments *m)
{
    free(m->xx);
    free(m->shift);
    *m = (struct moments){0};
}

void moments_clear(struct moments *m)
{
    memset(m->xx, 0, sums(m) * sizeof(*m->xx));
    memset(m->shift, 0, ((size_t)m->in + (size_t)m->out) * sizeof(*m->shift));
    m->rows = 0;
    m->weight = 0;
    m->waiting = 0;
}

/* ---- sums ---- */

struct adding {
    double *to;
    const float *from;
    size_t n;
};

static void add_task(void *ctx, int item, int worker)
{
    const struct adding *a = ctx;
    size_t first = (size_t)item * CELLS_OF_TASK, end = first + CELLS_OF_TASK < a->n ? first + CELLS_OF_TASK : a->n;

    (void)worker;
    for (size_t i = first; i < end; i++) a->to[i] += a->from[i];
}

/* to[in][n] += x' y of the rows that wait. */
static void add_product(struct moments *m, double *to, const float *y, int n)
{
    struct adding a = {to, m->product, (size_t)m->in * (size_t)n};

    memset(m->product, 0, a.n * sizeof(*m->product));
    gemm_atb(m->gemm, m->product, m->wait_x, m->in, y, n, m->waiting);
    gemm_parallel(m->gemm, (int)((a.n + CELLS_OF_TASK - 1) / CELLS_OF_TASK), add_task, &a);
}

static void find_shift(float *shift, const float *x, int rows, int n)
{
    for (int i = 0; i < n; i++) {
        double sum = 0;

        for (int t = 0; t < rows; t++) sum += x[(size_t)t * (size_t)n + (size_t)i];
        shift[i] = (float)(sum / rows);
    }
}

/* Of rows with the root of their weight, products are weighted. */
static void take_shift(float *x, double *sum, const float *shift, const float *weight, int rows, int n)
{
    for (int t = 0; t < rows; t++, x += n) {
        float root = sqrtf(weight[t]);

        for (int i = 0; i < n; i++) {
            x[i] -= shift[i];
            sum[i] += (double)weight[t] * x[i];
            x[i] *= root;
        }
    }
}

/* The rows that wait become sums. */
static void flush(struct moments *m)
{
    float *shift_y = m->shift + m->in;

    if (!m->waiting) return;
    if (m->rows == m->waiting) {
        find_shift(m->shift, m->wait_x, m->waiting, m->in);
        find_shift(shift_y, m->wait_y, m->waiting, m->out);
    }
    take_shift(m->wait_x, m->x, m->shift, m->wait_w, m->waiting, m->in);
    take_shift(m->wait_y, m->y, shift_y, m->wait_w, m->waiting, m->out);
    for (int t = 0; t < m->waiting; t++) m->weight += m->wait_w[t];
    add_product(m, m->xx, m->wait_x, m->in);
    add_product(m, m->xy, m->wait_y, m->out);
    m->waiting = 0;
}

void moments_add(struct moments *m, const float *x, const float *y, const float *weight, int rows)
{
    size_t in = (size_t)m->in, out = (size_t)m->out;

    for (int t = 0; t < rows;) {
        size_t at = (size_t)m->waiting, n = ROWS_AT_ONCE - at < (size_t)(rows - t) ? ROWS_AT_ONCE - at : (size_t)(rows - t);

        memcpy(m->wait_x + at * in, x + (size_t)t * in, n * in * sizeof(*x));
        memcpy(m->wait_y + at * out, y + (size_t)t * out, n * out * sizeof(*y));
        for (size_t i = 0; i < n; i++) m->wait_w[at + i] = weight ? weight[(size_t)t + i] : 1;
        m->waiting += (int)n;
        m->rows += (int64_t)n;
        t += (int)n;
        if (m->waiting == ROWS_AT_ONCE) flush(m);
    }
}

/* ---- solutions ---- */

struct solution {
    double *factor; /* [in][in]: C + s, then L */
    double *w;      /* [in][out] */
    double *cw;     /* [in][out] C w, or NULL: nobody asks */
    double shrink;  /* s */
};

static void solution_free(struct solution *s)
{
    free(s->factor);
    free(s->w);
    free(s->cw);
}

static double mean_x(const struct moments *m, size_t i)
{
    return m->weight > 0 ? m->x[i] / m->weight : 0;
}

static double mean_y(const struct moments *m, size_t j)
{
    return m->weight > 0 ? m->y[j] / m->weight : 0;
}

/* C and the products of x and y, both of what is left when the means are taken away. */
static double covariances(const struct moments *m, struct solution *s)
{
    size_t in = (size_t)m->in, out = (size_t)m->out;
    double n = m->weight > 0 ? m->weight : 1, trace = 0;

    for (size_t i = 0; i < in; i++) {
        for (size_t j = 0; j <= i; j++) s->factor[i * in + j] = m->xx[i * in + j] / n - mean_x(m, i) * mean_x(m, j);
        trace += s->factor[i * in + i];
        for (size_t j = 0; j < out; j++) s->w[i * out + j] = m->xy[i * out + j] / n - mean_x(m, i) * mean_y(m, j);
    }
    return trace;
}

static status solve(struct moments *m, double ridge, bool with_cw, struct solution *s, struct err *e)
{
    size_t in = (size_t)m->in, cells = in * (size_t)m->out;

    *s = (struct solution){malloc(square(m->in) * sizeof(double)), malloc(cells * sizeof(double)),
                           with_cw ? malloc(cells * sizeof(double)) : NULL, 0};
    if (!s->factor || !s->w || (with_cw && !s->cw)) return err_set(e, ERR_LIMIT, "no memory for least squares of %zu inputs", in);
    flush(m);
    double trace = covariances(m, s);

    s->shrink = ridge * (trace > 0 ? trace / (double)in : 1) + 1e-12;
    for (size_t i = 0; i < in; i++) s->factor[i * in + i] += s->shrink;
    if (with_cw) memcpy(s->cw, s->w, cells * sizeof(double));
    if (!isfinite(trace) || !cholesky_factor(s->factor, m->in, m->gemm, NULL))
        return err_set(e, ERR_FORMAT, "least squares of %zu inputs: their sums are no numbers", in);
    if (cholesky_solve(s->factor, s->w, m->in, m->out, m->gemm, NULL, e)) return e->code;
    for (size_t i = 0; i < cells && with_cw; i++) s->cw[i] -= s->shrink * s->w[i]; /* (C + s) w = xy */
    return OK;
}

status moments_solve(struct moments *m, double ridge, float *w, float *bias, struct err *e)
{
    size_t in = (size_t)m->in, out = (size_t)m->out;
    struct solution s;
    status st = solve(m, ridge, false, &s, e);

    for (size_t j = 0; j < out && !st; j++) {
        double b = m->shift[in + j] + mean_y(m, j);

        for (size_t i = 0; i < in; i++) {
            w[j * in + i] = (float)s.w[i * out + j];
            b -= s.w[i * out + j] * (m->shift[i] + mean_x(m, i));
        }
        bias[j] = (float)b;
    }
    solution_free(&s);
    return st;
}

/* Rows of u [n][d] become orthonormal, one after the other. */
static void orthonormal(double *u, int n, int d)
{
    for (int i = 0; i < n; i++) {
        double *row = u + (size_t)i * (size_t)d, size = 0;

        for (int pass = 0; pass < 2; pass++) /* twice is enough (Kahan) */
            for (int j = 0; j < i; j++) {
                const double *other = u + (size_t)j * (size_t)d;
                double dot = 0;

                for (int k = 0; k < d; k++) dot += row[k] * other[k];
                for (int k = 0; k < d; k++) row[k] -= dot * other[k];
            }
        for (int k = 0; k < d; k++) size += row[k] * row[k];
        for (int k = 0; k < d; k++) row[k] = size > 1e-280 ? row[k] / sqrt(size) : 0;
    }
}

/* ---- directions ---- */

struct turning {
    const struct moments *m;
    const struct solution *s;
    int rank;
    double *u, *a; /* [rank][out], [rank][in] */
};

/* a = u w', for some inputs: four sums a number. */
static void inward_task(void *ctx, int item, int worker)
{
    const struct turning *t = ctx;
    size_t in = (size_t)t->m->in, out = (size_t)t->m->out, first = (size_t)item * COLUMNS_OF_TASK;
    size_t end = first + COLUMNS_OF_TASK < in ? first + COLUMNS_OF_TASK : in;

    (void)worker;
    for (size_t i = first; i < end; i++)
        for (size_t q = 0; q < (size_t)t->rank; q++) {
            const double *w = t->s->w + i * out, *u = t->u + q * out;
            double sum[4] = {0};
            size_t k = 0;

            for (; k + 4 <= out; k += 4)
                for (size_t c = 0; c < 4; c++) sum[c] += w[k + c] * u[k + c];
            for (; k < out; k++) sum[0] += w[k] * u[k];
            t->a[q * in + i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
}

/* u = a C w, for some outputs. */
static void outward_task(void *ctx, int item, int worker)
{
    const struct turning *t = ctx;
    size_t in = (size_t)t->m->in, out = (size_t)t->m->out, first = (size_t)item * COLUMNS_OF_TASK;
    size_t n = out - first < COLUMNS_OF_TASK ? out - first : COLUMNS_OF_TASK;

    (void)worker;
    for (size_t q = 0; q < (size_t)t->rank; q++) memset(t->u + q * out + first, 0, n * sizeof(double));
    for (size_t i = 0; i < in; i++)
        for (size_t q = 0; q < (size_t)t->rank; q++) {
            const double *from = t->s->cw + i * out + first;
            double *to = t->u + q * out + first, by = t->a[q * in + i];

            for (size_t k = 0; k < n; k++) to[k] += by * from[k];
        }
}

static int tasks(int n)
{
    return (n + COLUMNS_OF_TASK - 1) / COLUMNS_OF_TASK;
}

/* By orthogonal iteration on W' C W: u [rank][out]; a [rank][in] = u W'. */
static void directions(struct turning *t)
{
    const struct moments *m = t->m;
    struct rng r;

    rng_seed(&r, 1, 0x6d6f6d);
    for (size_t i = 0; i < (size_t)t->rank * (size_t)m->out; i++) t->u[i] = rng_normal(&r);
    for (int i = 0; i < ITERATIONS; i++) {
        orthonormal(t->u, t->rank, m->out);
        gemm_parallel(m->gemm, tasks(m->in), inward_task, t);
        if (i == ITERATIONS - 1) break;
        gemm_parallel(m->gemm, tasks(m->out), outward_task, t);
    }
}

status moments_reduced(struct moments *m, double ridge, int rank, float *a, float *b, float *bias, struct err *e)
{
    size_t in = (size_t)m->in, out = (size_t)m->out, r = (size_t)rank;
    double *u = malloc(r * out * sizeof(*u)), *v = malloc(r * in * sizeof(*v));
    struct solution s;
    status st = solve(m, ridge, true, &s, e);

    if (!st && (!u || !v)) st = err_set(e, ERR_LIMIT, "no memory for %d directions", rank);
    if (!st) directions(&(struct turning){m, &s, rank, u, v});
    for (size_t j = 0; j < out && !st; j++) bias[j] = (float)(m->shift[in + j] + mean_y(m, j));
    for (size_t q = 0; q < r && !st; q++) {
        double mean = 0;

        for (size_t i = 0; i < in; i++) {
            a[q * in + i] = (float)v[q * in + i];
            mean += v[q * in + i] * (m->shift[i] + mean_x(m, i));
        }
        for (size_t j = 0; j < out; j++) {
            b[j * r + q] = (float)u[q * out + j];
            bias[j] = (float)(bias[j] - u[q * out + j] * mean);
        }
    }
    solution_free(&s);
    free(u);
    free(v);
    return st;
}
