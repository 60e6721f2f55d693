/* Gradients of the small operations: lanes.h says how loops are written. */
#include "num/backward.h"

#include <math.h>
#include <string.h>

#include "base/err.h"
#include "num/lanes.h"

/* ---- norm, rotation, activation ---- */

/* y_i = x_i r w_i, r = (mean x^2 + eps)^-1/2:  dx_i = r w_i dy_i - x_i r^3 / width * sum_j x_j w_j dy_j. */
BODY void rms_norm_backward_body(float *dx, const float *dy, const float *x, const float *w, int rows, int width, float eps)
{
    for (int t = 0; t < rows; t++, x += width, dy += width, dx += width) {
        double square[LANES] = {0}, along[LANES] = {0}, squares = 0.0, total = 0.0;
        int i = 0;

        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++) {
                square[l] += (double)x[i + l] * (double)x[i + l];
                along[l] += (double)(x[i + l] * w[i + l]) * (double)dy[i + l];
            }
        for (; i < width; i++) {
            square[i % LANES] += (double)x[i] * (double)x[i];
            along[i % LANES] += (double)(x[i] * w[i]) * (double)dy[i];
        }
        for (int l = 0; l < LANES; l++) squares += square[l], total += along[l];

        double r = 1.0 / sqrt(squares / width + (double)eps);
        float scale = (float)r, back = (float)(r * r * r / width * total);
        for (i = 0; i < width; i++) dx[i] += dy[i] * scale * w[i] - x[i] * back;
    }
}
TWICE(, rms_norm_backward, (float *dx, const float *dy, const float *x, const float *w, int rows, int width, float eps),
      (dx, dy, x, w, rows, width, eps))

BODY void rms_norm_weight_backward_body(float *dw, const float *dy, const float *x, int rows, int width, float eps)
{
    for (int t = 0; t < rows; t++, x += width, dy += width) {
        double square[LANES] = {0}, squares = 0.0;
        int i = 0;

        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++) square[l] += (double)x[i + l] * (double)x[i + l];
        for (; i < width; i++) square[i % LANES] += (double)x[i] * (double)x[i];
        for (int l = 0; l < LANES; l++) squares += square[l];
        float scale = (float)(1.0 / sqrt(squares / width + (double)eps));

        for (i = 0; i < width; i++) dw[i] += dy[i] * x[i] * scale;
    }
}
TWICE(, rms_norm_weight_backward, (float *dw, const float *dy, const float *x, int rows, int width, float eps),
      (dw, dy, x, rows, width, eps))

/* A rotation is undone by the opposite one. */
BODY void rope_backward_body(float *dy, const int32_t *pos, int rows, int heads, int head_dim, const float *table)
{
    int half = head_dim / 2;

    for (int t = 0; t < rows; t++) {
        const float *restrict c = table + (size_t)pos[t] * (size_t)head_dim, *restrict s = c + half;

        for (int h = 0; h < heads; h++, dy += head_dim) {
            float *restrict low = dy, *restrict high = dy + half;

            for (int j = 0; j < half; j++) {
                float a = low[j], b = high[j];

                low[j] = a * c[j] + b * s[j];
                high[j] = b * c[j] - a * s[j];
            }
        }
    }
}
TWICE(, rope_backward, (float *dy, const int32_t *pos, int rows, int heads, int head_dim, const float *table),
      (dy, pos, rows, heads, head_dim, table))

BODY float added_up(const lanes8 *at)
{
    lanes8 l = *at;

    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

/* With s = 1 / (1 + e^-g): silu = g s, silu' = s (1 + g (1 - s)). */
BODY void silu_mul_backward_body(float *gate, float *up, float *dz, int n)
{
    for (int i = 0; i < n; i += LANES) {
        lanes8 g = *(const lanes8 *)(gate + i), u = *(const lanes8 *)(up + i), d = *(const lanes8 *)(dz + i), s = -g, silu;

        exp_lanes(&s);
        s = 1.0f / (1.0f + s);
        silu = g * s;
        *(lanes8 *)(dz + i) = silu * u * d;
        *(lanes8 *)(up + i) = silu * d;
        *(lanes8 *)(gate + i) = u * d * (s + silu * (1.0f - s));
    }
}
TWICE(, silu_mul_backward, (float *gate, float *up, float *dz, int n), (gate, up, dz, n))

/* ---- losses ---- */

enum { LOSS_PART = 512 }; /* sums of single precision are no longer than that: then they go on in double */

struct distill { /* one row */
    float *s, *t;
    int n;
    float most_s, most_t;
    double sum_s, sum_t,
        along; /* of e^(s - most_s), of e^(t - most_t), of the latter times the difference of the two exponents */
};

BODY void distill_sums_body(struct distill *d)
{
    int whole = d->n / LANES * LANES, i = 0;

    while (i < whole) {
        int end = whole - i < LOSS_PART ? whole : i + LOSS_PART;
        lanes8 es = {0}, et = {0}, along = {0};

        for (; i < end; i += LANES) {
            lanes8 s = *(lanes8 *)(d->s + i) - d->most_s, t = *(lanes8 *)(d->t + i) - d->most_t, gap = t - s;

            exp_lanes(&s);
            exp_lanes(&t);
            es += s, et += t, along += t * gap;
            *(lanes8 *)(d->s + i) = s;
            *(lanes8 *)(d->t + i) = t;
        }
        d->sum_s += (double)added_up(&es), d->sum_t += (double)added_up(&et), d->along += (double)added_up(&along);
    }
    for (; i < d->n; i++) {
        float s = d->s[i] - d->most_s, t = d->t[i] - d->most_t, gap = t - s;

        d->s[i] = exp_lane(s);
        d->t[i] = exp_lane(t);
        d->sum_s += (double)d->s[i], d->sum_t += (double)d->t[i], d->along += (double)(d->t[i] * gap);
    }
}
TWICE(static, distill_sums, (struct distill * d), (d))

BODY void mixed_body(float *s, const float *t, int n, float by_s, float by_t)
{
    for (int i = 0; i < n; i++) s[i] = s[i] * by_s - t[i] * by_t;
}
TWICE(static, mixed, (float *s, const float *t, int n, float by_s, float by_t), (s, t, n, by_s, by_t))

BODY void largest_body(const float *x, int n, float *out)
{
    lanes8 high = (lanes8){0} + x[0];
    float most = x[0];
    int i = 0;

    for (; i + LANES <= n; i += LANES) raise_lanes(&high, (const lanes8 *)(x + i));
    for (int l = 0; l < LANES; l++) most = high[l] > most ? high[l] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    *out = most;
}
TWICE(static, largest, (const float *x, int n, float *out), (x, n, out))

void distill_backward(float *s, float *t, int n, int target, double lm, double *kl, double *nll)
{
    struct distill d = {.s = s, .t = t, .n = n};
    float aim = s[target];

    BUG_ON(n < 1 || target < 0 || target >= n);
    largest(s, n, &d.most_s);
    largest(t, n, &d.most_t);
    distill_sums(&d);
    *kl += d.along / d.sum_t + log(d.sum_s) - log(d.sum_t);
    *nll += log(d.sum_s) - (double)(aim - d.most_s);
    mixed(s, t, n, (float)((1.0 + lm) / d.sum_s), (float)(1.0 / d.sum_t));
    s[target] -= (float)lm;
}

/* ---- attention ---- */

enum { QUERIES = 64 }; /* at a time */

struct
    attention { /* of one window and KV head, and the queries first .. first + n - 1 of one of its heads, which see `seen` positions */
    const struct attend_backward *a;
    int panels, lanes, first, n, seen; /* panels and lanes of head_dim */
    size_t ld;                         /* of scores: rows in whole panels */
    float *keys, *values;              /* as outputs: [ld / 16][head_dim][16] */
    float *plain;                      /* keys as inputs: [panels][rows][16] */
    float *weight, *slope;             /* [QUERIES][ld] p, then dL/dscore */
    float *turned;                     /* [ld][QUERIES] of one of the two */
    float *lines;                      /* [panels][QUERIES][16] of q or dout as inputs */
    float *out;                        /* [ld][lanes] of a product */
};

static int up_to(int n, int multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static size_t attention_room(struct attention *t, int rows, int head_dim, float *at)
{
    size_t ld = (size_t)up_to(rows, PANEL_LANES), lanes = (size_t)up_to(head_dim, PANEL_LANES), d = (size_t)head_dim;
    const size_t sizes[] = {ld * d,       ld * d,       lanes * (size_t)rows, QUERIES * ld,
                            QUERIES * ld, ld * QUERIES, lanes * QUERIES,      ld * lanes};
    float **parts[] = {&t->keys, &t->values, &t->plain, &t->weight, &t->slope, &t->turned, &t->lines, &t->out};
    size_t total = 0;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        *parts[i] = at ? at + total : NULL;
        total += (sizes[i] + 15) / 16 * 16;
    }
    t->ld = ld;
    t->lanes = (int)lanes;
    t->panels = (int)lanes / PANEL_LANES;
    return total * sizeof(float);
}

size_t attend_backward_bytes(int rows, int head_dim)
{
    struct attention t;

    return attention_room(&t, rows, head_dim, NULL);
}

/* n rows of x, one input each, of a matrix whose outputs are the elements. */
static void as_inputs(const struct attention *t, float *lines, const float *x, size_t ld, int n)
{
    int d = t->a->head_dim;

    for (int p = 0; p < t->panels; p++)
        for (int i = 0; i < n; i++, lines += PANEL_LANES) {
            int some = d - p * PANEL_LANES < PANEL_LANES ? d - p * PANEL_LANES : PANEL_LANES;

            memset(lines, 0, LINE_BYTES);
            memcpy(lines, x + (size_t)i * ld + (size_t)p * PANEL_LANES, (size_t)some * sizeof(*lines));
        }
}

static void as_outputs(float *lines, const float *x, size_t ld, int n, int d)
{
    const struct mat m = {.data = x, .dtype = DT_F32, .rows = n, .cols = d, .stride = ld};

    pack_panels(lines, NULL, FORMAT_F32, &m, 0, packed_panels(n));
}

/* out[n][t->lanes] = x [n][inputs] times lines, of which a panel has `of`. */
static void by_inputs(const struct attention *t, const float *x, size_t ld, int n, const float *lines, int inputs, int of,
                      void *scratch)
{
    const struct rows r = {.x = x, .ld = ld, .n = n, .cols = inputs};
    struct packed w = {.rows = PANEL_LANES, .cols = inputs, .format = FORMAT_F32};

    for (int p = 0; p < t->panels; p++) {
        w.lines = lines + (size_t)p * (size_t)of * PANEL_LANES;
        t->a->kernel->product(t->out + p * PANEL_LANES, (size_t)t->lanes, &r, NULL, n, &w, 0, 1, scratch);
    }
}

/* to[n][head_dim] = or += out. */
static void put_out(const struct attention *t, float *to, size_t ld, int n, bool add)
{
    for (int i = 0; i < n; i++, to += ld) {
        const float *from = t->out + (size_t)i * (size_t)t->lanes;

        for (int e = 0; e < t->a->head_dim; e++) to[e] = add ? to[e] + from[e] : from[e];
    }
}

/* Scores become p, and dL/dp the slopes dL/d(q k) = p (dL/dp - sum p dL/dp) / sqrt(head_dim); behind what a query sees there are zeros. */
BODY void slopes_body(const struct attention *t, float by)
{
    int whole = up_to(t->seen, PANEL_LANES);

    for (int i = 0; i < t->n; i++) {
        float *p = t->weight + (size_t)i * t->ld, *s = t->slope + (size_t)i * t->ld, most, total;
        int sees = t->first + i + 1;
        lanes8 sum = {0}, along = {0};

        for (int j = sees; j < whole; j++) p[j] = -INFINITY, s[j] = 0.0f;
        largest_body(p, whole, &most);
        for (int j = 0; j < whole; j += LANES) {
            lanes8 x = (*(lanes8 *)(p + j) - most) * by;

            exp_lanes(&x);
            *(lanes8 *)(p + j) = x;
        }
        for (int j = sees; j < whole; j++) p[j] = 0.0f;
        for (int j = 0; j < whole; j += LANES) sum += *(lanes8 *)(p + j), along += *(lanes8 *)(p + j) * *(lanes8 *)(s + j);
        total = 1.0f / added_up(&sum);
        most = added_up(&along) * total;
        for (int j = 0; j < whole; j += LANES) {
            lanes8 x = *(lanes8 *)(p + j) * total;

            *(lanes8 *)(p + j) = x;
            *(lanes8 *)(s + j) = x * (*(lanes8 *)(s + j) - most) * by;
        }
    }
}
TWICE(static, slopes, (const struct attention *t, float by), (t, by))

static void turn(const struct attention *t, const float *x)
{
    for (int j = 0; j < t->seen; j += LANES)
        for (int i = 0; i < t->n; i++)
            for (int l = 0; l < LANES; l++)
                t->turned[(size_t)(j + l) * QUERIES + (size_t)i] = x[(size_t)i * t->ld + (size_t)(j + l)];
}

/* Some queries of head h. */
static void some_queries(struct attention *t, int h, void *scratch)
{
    const struct attend_backward *a = t->a;
    size_t d = (size_t)a->head_dim, first = (size_t)t->first;
    const float *q = a->q + first * a->ldq + (size_t)h * d, *dout = a->dout + first * a->ldout + (size_t)h * d;
    struct rows r = {.x = q, .ld = a->ldq, .n = t->n, .cols = a->head_dim};
    struct packed w = {.lines = t->keys, .rows = a->rows, .cols = a->head_dim, .format = FORMAT_F32};

    a->kernel->product(t->weight, t->ld, &r, NULL, t->n, &w, 0, packed_panels(t->seen), scratch);
    r.x = dout, r.ld = a->ldout, w.lines = t->values;
    a->kernel->product(t->slope, t->ld, &r, NULL, t->n, &w, 0, packed_panels(t->seen), scratch);
    slopes(t, (float)(1.0 / sqrt((double)a->head_dim)));

    by_inputs(t, t->slope, t->ld, t->n, t->plain, t->seen, a->rows, scratch);
    put_out(t, a->dq + first * a->lddq + (size_t)h * d, a->lddq, t->n, false);
    turn(t, t->slope);
    as_inputs(t, t->lines, q, a->ldq, t->n);
    by_inputs(t, t->turned, QUERIES, t->seen, t->lines, t->n, t->n, scratch);
    put_out(t, a->dk, a->lddk, t->seen, true);
    turn(t, t->weight);
    as_inputs(t, t->lines, dout, a->ldout, t->n);
    by_inputs(t, t->turned, QUERIES, t->seen, t->lines, t->n, t->n, scratch);
    put_out(t, a->dv, a->lddk, t->seen, true);
}

void attend_backward(const struct attend_backward *a, void *scratch, void *room)
{
    struct attention t = {.a = a};

    attention_room(&t, a->rows, a->head_dim, room);
    as_outputs(t.keys, a->k, a->ldk, a->rows, a->head_dim);
    as_outputs(t.values, a->v, a->ldk, a->rows, a->head_dim);
    as_inputs(&t, t.plain, a->k, a->ldk, a->rows);
    for (int i = 0; i < a->rows; i++) {
        memset(a->dk + (size_t)i * a->lddk, 0, (size_t)a->head_dim * sizeof(float));
        memset(a->dv + (size_t)i * a->lddk, 0, (size_t)a->head_dim * sizeof(float));
    }
    for (int h = 0; h < a->heads; h++)
        for (t.first = 0; t.first < a->rows; t.first += QUERIES) {
            t.n = a->rows - t.first < QUERIES ? a->rows - t.first : QUERIES;
            t.seen = t.first + t.n;
            some_queries(&t, h, scratch);
        }
}
