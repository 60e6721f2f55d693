#include "num/moments.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { ROWS_OF_TASK = 16, ITERATIONS = 40 };

static size_t square(int n)
{
    return (size_t)n * (size_t)n;
}

status moments_open(struct moments *m, int in, int out, struct err *e)
{
    size_t cells = square(in) + (size_t)in * (size_t)out + (size_t)in + (size_t)out;

    *m = (struct moments){.in = in, .out = out};
    m->xx = calloc(cells, sizeof(*m->xx));
    if (!m->xx) return err_set(e, ERR_LIMIT, "no memory for least squares: %zu MiB", cells * sizeof(*m->xx) >> 20);
    m->xy = m->xx + square(in);
    m->x = m->xy + (size_t)in * (size_t)out;
    m->y = m->x + in;
    return OK;
}

void moments_close(struct moments *m)
{
    free(m->xx);
    *m = (struct moments){0};
}

void moments_clear(struct moments *m)
{
    memset(m->xx, 0, (square(m->in) + (size_t)m->in * (size_t)m->out + (size_t)m->in + (size_t)m->out) * sizeof(*m->xx));
    m->rows = 0;
}

struct adding {
    struct moments *m;
    const float *x, *y;
    int rows;
};

static void add_scaled(double *to, const float *from, int n, double by)
{
    for (int i = 0; i < n; i++) to[i] += by * from[i];
}

/* Some inputs' sums, over all rows. */
static void add_task(void *ctx, int item, int worker)
{
    const struct adding *a = ctx;
    struct moments *m = a->m;
    int first = item * ROWS_OF_TASK, end = first + ROWS_OF_TASK < m->in ? first + ROWS_OF_TASK : m->in;

    (void)worker;
    for (int t = 0; t < a->rows; t++) {
        const float *x = a->x + (size_t)t * (size_t)m->in, *y = a->y + (size_t)t * (size_t)m->out;

        for (int i = first; i < end; i++) {
            add_scaled(m->xx + (size_t)i * (size_t)m->in, x, i + 1, x[i]);
            add_scaled(m->xy + (size_t)i * (size_t)m->out, y, m->out, x[i]);
            m->x[i] += x[i];
        }
    }
}

void moments_add(struct moments *m, struct gemm *g, const float *x, const float *y, int rows)
{
    struct adding a = {m, x, y, rows};

    gemm_parallel(g, (m->in + ROWS_OF_TASK - 1) / ROWS_OF_TASK, add_task, &a);
    for (int t = 0; t < rows; t++) add_scaled(m->y, y + (size_t)t * (size_t)m->out, m->out, 1);
    m->rows += rows;
}

/* ---- solutions ---- */

/* In place, the lower triangle; false if it is not positive definite. */
static bool cholesky(double *c, int n)
{
    for (int i = 0; i < n; i++) {
        double *row = c + (size_t)i * (size_t)n;

        for (int j = 0; j <= i; j++) {
            const double *other = c + (size_t)j * (size_t)n;
            double sum = row[j];

            for (int k = 0; k < j; k++) sum -= row[k] * other[k];
            if (i == j && !(sum > 0)) return false;
            row[j] = i == j ? sqrt(sum) : sum / other[j];
        }
    }
    return true;
}

/* L L' x = b for `out` right sides, in place: b [n][out]. */
static void substitute(const double *l, double *b, int n, int out)
{
    size_t step = (size_t)out;

    for (int i = 0; i < n; i++) {
        double *to = b + (size_t)i * step;

        for (int k = 0; k < i; k++)
            for (int j = 0; j < out; j++) to[j] -= l[(size_t)i * (size_t)n + (size_t)k] * b[(size_t)k * step + (size_t)j];
        for (int j = 0; j < out; j++) to[j] /= l[(size_t)i * (size_t)n + (size_t)i];
    }
    for (int i = n - 1; i >= 0; i--) {
        double *to = b + (size_t)i * step;

        for (int k = i + 1; k < n; k++)
            for (int j = 0; j < out; j++) to[j] -= l[(size_t)k * (size_t)n + (size_t)i] * b[(size_t)k * step + (size_t)j];
        for (int j = 0; j < out; j++) to[j] /= l[(size_t)i * (size_t)n + (size_t)i];
    }
}

struct solution {
    double *covariance; /* [in][in] of the inputs, full */
    double *factor;     /* [in][in] */
    double *w;          /* [in][out] */
};

static void solution_free(struct solution *s)
{
    free(s->covariance);
    free(s->factor);
    free(s->w);
}

static status solve(const struct moments *m, double ridge, struct solution *s, struct err *e)
{
    size_t in = (size_t)m->in, out = (size_t)m->out;
    double n = (double)(m->rows > 0 ? m->rows : 1), trace = 0;

    *s = (struct solution){malloc(square(m->in) * sizeof(double)), malloc(square(m->in) * sizeof(double)),
                           malloc(in * out * sizeof(double))};
    if (!s->covariance || !s->factor || !s->w) return err_set(e, ERR_LIMIT, "no memory for least squares of %zu inputs", in);
    for (size_t i = 0; i < in; i++) {
        for (size_t j = 0; j <= i; j++) {
            double c = m->xx[i * in + j] / n - m->x[i] / n * (m->x[j] / n);

            s->covariance[i * in + j] = s->covariance[j * in + i] = c;
        }
        trace += s->covariance[i * in + i];
        for (size_t j = 0; j < out; j++) s->w[i * out + j] = m->xy[i * out + j] / n - m->x[i] / n * (m->y[j] / n);
    }
    memcpy(s->factor, s->covariance, square(m->in) * sizeof(double));
    for (size_t i = 0; i < in; i++) s->factor[i * in + i] += ridge * (trace > 0 ? trace / (double)in : 1) + 1e-12;
    if (!isfinite(trace) || !cholesky(s->factor, m->in))
        return err_set(e, ERR_FORMAT, "least squares of %zu inputs: their sums are no numbers", in);
    substitute(s->factor, s->w, m->in, m->out);
    return OK;
}

status moments_solve(const struct moments *m, double ridge, float *w, float *bias, struct err *e)
{
    size_t in = (size_t)m->in, out = (size_t)m->out;
    double n = (double)(m->rows > 0 ? m->rows : 1);
    struct solution s;
    status st = solve(m, ridge, &s, e);

    for (size_t j = 0; j < out && !st; j++) {
        double b = m->y[j] / n;

        for (size_t i = 0; i < in; i++) {
            w[j * in + i] = (float)s.w[i * out + j];
            b -= s.w[i * out + j] * (m->x[i] / n);
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

/* out[rows][cols] = x[rows][n] y[n][cols], or with y across: y[cols][n]. */
static void product(double *out, const double *x, const double *y, int rows, int n, int cols, bool across)
{
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < cols; c++) out[(size_t)t * (size_t)cols + (size_t)c] = 0;
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < (across ? cols : n); c++) {
            const double *line = y + (size_t)c * (size_t)(across ? n : cols), *from = x + (size_t)t * (size_t)n;
            double *to = out + (size_t)t * (size_t)cols;

            if (across)
                for (int k = 0; k < n; k++) to[c] += from[k] * line[k];
            else
                for (int k = 0; k < cols; k++) to[k] += from[c] * line[k];
        }
}

/* The directions by orthogonal iteration on W' C W: u [rank][out]; a [rank][in] = u W'. */
static status directions(const struct moments *m, const struct solution *s, int rank, double *u, double *a, struct err *e)
{
    double *b = malloc((size_t)rank * (size_t)m->in * sizeof(*b));
    struct rng r;

    if (!b) return err_set(e, ERR_LIMIT, "no memory for %d directions", rank);
    rng_seed(&r, 1, 0x6d6f6d);
    for (size_t i = 0; i < (size_t)rank * (size_t)m->out; i++) u[i] = rng_normal(&r);
    for (int i = 0; i < ITERATIONS; i++) {
        orthonormal(u, rank, m->out);
        product(a, u, s->w, rank, m->out, m->in, true);
        if (i == ITERATIONS - 1) break;
        product(b, a, s->covariance, rank, m->in, m->in, false);
        product(u, b, s->w, rank, m->in, m->out, false);
    }
    free(b);
    return OK;
}

status moments_reduced(const struct moments *m, double ridge, int rank, float *a, float *b, float *bias, struct err *e)
{
    size_t in = (size_t)m->in, out = (size_t)m->out, r = (size_t)rank;
    double n = (double)(m->rows > 0 ? m->rows : 1);
    double *u = malloc(r * out * sizeof(*u)), *v = malloc(r * in * sizeof(*v));
    struct solution s;
    status st = solve(m, ridge, &s, e);

    if (!st && (!u || !v)) st = err_set(e, ERR_LIMIT, "no memory for %d directions", rank);
    if (!st) st = directions(m, &s, rank, u, v, e);
    for (size_t j = 0; j < out && !st; j++) bias[j] = (float)(m->y[j] / n);
    for (size_t q = 0; q < r && !st; q++) {
        double mean = 0;

        for (size_t i = 0; i < in; i++) {
            a[q * in + i] = (float)v[q * in + i];
            mean += v[q * in + i] * (m->x[i] / n);
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
