/* The student of stage 2 in plain loops in double, for gradients by central differences.
 *
 * Hard gates have no derivative.  What stage 2 calls their gradient is that of g = hard(z0) + sigmoid((z - t) / T0) - sigmoid((z0 - t0) / T0), with z0, t0 and T0 what they
 * are at the point in question: a smooth function, of the same value there.  t is t0, or of a row of top-k what leaves the sum of its sigmoids as it is. */
#ifndef TESTS_STUDENT_H
#define TESTS_STUDENT_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "check.h"
#include "data/safetensors.h"
#include "model/shape.h"
#include "moe/moe.h"
#include "train/windows.h"

struct student {
    struct shape y;
    struct safetensors *file;
    struct {                                                /* [layers] */
        double *an, *fn, *q, *k, *v, *o, *gate, *up, *down; /* the FFN's neurons: shared ones, then expert by expert */
    } layer[MODEL_LAYERS_MAX];
    double *embed, *norm, *head, *rope; /* rope: [positions][head_dim / 2][2] */
    /* What is trained, [layers] of each; a router with a factor is one of kind gate. */
    const struct router *r;
    double *weight, *bias, *factor, *mu, *inward, *outward, *offset, *scale; /* scale: [layers] */
    double lm, budget, load, target, temperature;
    /* The point at which gates are relaxed, [layers][rows][N], and T of every layer: temperature * the deviation of its scores. */
    int rows;
    double *z0, *t0, *hard, spread[MODEL_LAYERS_MAX];
    bool capture;
    double kl, nll, share;
    bool frozen; /* the teacher's logits are kept: its weights are not those of the student, which change */
    double *taught;
};

static inline double *student_room(size_t n)
{
    double *p = calloc(n ? n : 1, sizeof(*p));

    assert_non_null(p);
    return p;
}

static inline double *student_tensor(struct student *s, const char *name, int rows, int cols)
{
    double *out = student_room((size_t)rows * (size_t)cols);
    float *row = malloc((size_t)cols * sizeof(*row));
    struct mat m;
    struct err e;

    assert_non_null(row);
    if (safetensors_mat(&m, s->file, name, rows, cols, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < rows; i++) {
        mat_widen(row, &m, i, 1);
        for (int j = 0; j < cols; j++) out[(size_t)i * (size_t)cols + (size_t)j] = (double)row[j];
    }
    free(row);
    return out;
}

static inline double *student_of_layer(struct student *s, int l, const char *name, int rows, int cols)
{
    char whole[160];

    snprintf(whole, sizeof(whole), "model.layers.%d.%s", l, name);
    return student_tensor(s, whole, rows, cols);
}

/* All experts of a projection behind one another: gate and up [F, D], down as [F, D] too. */
static inline double *student_neurons(struct student *s, int l, const char *what)
{
    const struct shape *y = &s->y;
    bool down = !strcmp(what, "down");
    double *all = student_room((size_t)y->neurons * (size_t)y->width), *at = all;

    for (int i = -1; i < y->experts; i++) {
        int n = i < 0 ? y->shared[l] : shape_expert_neurons(y, l, i);
        char name[80];

        if (n == 0) continue;
        if (i < 0) snprintf(name, sizeof(name), "mlp.shared_expert.%s_proj.weight", what);
        else snprintf(name, sizeof(name), "mlp.experts.%d.%s_proj.weight", i, what);
        double *part = student_of_layer(s, l, name, down ? y->width : n, down ? n : y->width);
        for (int j = 0; j < n; j++)
            for (int d = 0; d < y->width; d++) *at++ = part[down ? d * n + j : j * y->width + d];
        free(part);
    }
    return all;
}

static inline double *student_widened(const float *x, size_t n)
{
    double *out = student_room(n);

    for (size_t i = 0; x && i < n; i++) out[i] = (double)x[i];
    return out;
}

static inline void student_open(struct student *s, const char *directory, const struct router *r)
{
    size_t n = (size_t)r->layers * (size_t)r->experts, d = (size_t)r->width;
    struct err e;

    *s = (struct student){.r = r};
    if (shape_read(&s->y, directory, &e) || safetensors_open(&s->file, directory, &e)) fail_msg("%s", e.text);
    const struct shape *y = &s->y;
    int q = y->heads * y->head_dim, kv = y->kv_heads * y->head_dim, half = y->head_dim / 2;

    for (int l = 0; l < y->layers; l++) {
        s->layer[l].an = student_of_layer(s, l, "input_layernorm.weight", 1, y->width);
        s->layer[l].fn = student_of_layer(s, l, "post_attention_layernorm.weight", 1, y->width);
        s->layer[l].q = student_of_layer(s, l, "self_attn.q_proj.weight", q, y->width);
        s->layer[l].k = student_of_layer(s, l, "self_attn.k_proj.weight", kv, y->width);
        s->layer[l].v = student_of_layer(s, l, "self_attn.v_proj.weight", kv, y->width);
        s->layer[l].o = student_of_layer(s, l, "self_attn.o_proj.weight", y->width, q);
        s->layer[l].gate = student_neurons(s, l, "gate");
        s->layer[l].up = student_neurons(s, l, "up");
        s->layer[l].down = student_neurons(s, l, "down");
    }
    s->embed = student_tensor(s, "model.embed_tokens.weight", y->vocab, y->width);
    s->norm = student_tensor(s, "model.norm.weight", 1, y->width);
    s->head = student_tensor(s, y->tied ? "model.embed_tokens.weight" : "lm_head.weight", y->vocab, y->width);
    s->rope = student_room((size_t)y->positions * (size_t)half * 2);
    for (int p = 0; p < y->positions; p++)
        for (int j = 0; j < half; j++) {
            double angle = p * pow(y->rope.theta, -2.0 * j / y->head_dim);

            s->rope[(p * half + j) * 2] = cos(angle), s->rope[(p * half + j) * 2 + 1] = sin(angle);
        }
    s->weight = student_widened(r->weight, n * (size_t)router_inner(r));
    s->bias = student_widened(r->bias, n);
    s->factor = student_widened(r->factor, (size_t)r->layers * (size_t)router_factors(r) * d);
    s->mu = student_widened(r->mu, n * d);
    s->inward = student_widened(r->inward, (size_t)r->layers * (size_t)r->low_rank * d);
    s->outward = student_widened(r->outward, (size_t)r->layers * (size_t)r->low_rank * d);
    s->offset = student_widened(r->offset, (size_t)r->layers * d);
    s->scale = student_widened(r->scale, (size_t)r->layers);
    for (int l = 0; l < r->layers && !r->scale; l++) s->scale[l] = s->y.scale;
}

static inline void student_close(struct student *s)
{
    for (int l = 0; l < s->y.layers; l++) {
        free(s->layer[l].an), free(s->layer[l].fn), free(s->layer[l].q), free(s->layer[l].k), free(s->layer[l].v);
        free(s->layer[l].o), free(s->layer[l].gate), free(s->layer[l].up), free(s->layer[l].down);
    }
    free(s->embed), free(s->norm), free(s->head), free(s->rope);
    free(s->weight), free(s->bias), free(s->factor), free(s->mu), free(s->inward), free(s->outward), free(s->offset),
        free(s->scale), free(s->z0), free(s->t0), free(s->hard), free(s->taught);
    safetensors_close(s->file);
}

static inline void student_normed(double *out, const double *x, const double *w, int n, double eps)
{
    double squares = 0;

    for (int i = 0; i < n; i++) squares += x[i] * x[i];
    for (int i = 0; i < n; i++) out[i] = x[i] / sqrt(squares / n + eps) * w[i];
}

static inline void student_product(double *out, const double *w, const double *x, int rows, int cols)
{
    for (int i = 0; i < rows; i++) {
        out[i] = 0;
        for (int j = 0; j < cols; j++) out[i] += w[i * cols + j] * x[j];
    }
}

static inline void student_turn(const struct student *s, double *x, int heads, int p)
{
    int half = s->y.head_dim / 2;

    for (int h = 0; h < heads; h++, x += s->y.head_dim)
        for (int j = 0; j < half; j++) {
            double a = x[j], b = x[j + half], c = s->rope[(p * half + j) * 2], n = s->rope[(p * half + j) * 2 + 1];

            x[j] = a * c - b * n, x[j + half] = b * c + a * n;
        }
}

static inline void student_attention(const struct student *s, int l, double *x, int n)
{
    const struct shape *y = &s->y;
    int d = y->head_dim, q = y->heads * d, kv = y->kv_heads * d, group = y->heads / y->kv_heads;
    double *qs = student_room((size_t)(n * q)), *ks = student_room((size_t)(n * kv)), *vs = student_room((size_t)(n * kv));
    double *h = student_room((size_t)y->width), *mixed = student_room((size_t)q), *p = student_room((size_t)n);
    double *out = student_room((size_t)y->width);

    for (int t = 0; t < n; t++) {
        student_normed(h, x + t * y->width, s->layer[l].an, y->width, (double)y->eps);
        student_product(qs + t * q, s->layer[l].q, h, q, y->width);
        student_product(ks + t * kv, s->layer[l].k, h, kv, y->width);
        student_product(vs + t * kv, s->layer[l].v, h, kv, y->width);
        student_turn(s, qs + t * q, y->heads, t);
        student_turn(s, ks + t * kv, y->kv_heads, t);
    }
    for (int t = 0; t < n; t++) {
        memset(mixed, 0, (size_t)q * sizeof(*mixed));
        for (int i = 0; i < y->heads; i++) {
            double sum = 0;

            for (int j = 0; j <= t; j++) {
                double a = 0;

                for (int c = 0; c < d; c++) a += qs[t * q + i * d + c] * ks[j * kv + i / group * d + c];
                sum += p[j] = exp(a / sqrt((double)d));
            }
            for (int j = 0; j <= t; j++)
                for (int c = 0; c < d; c++) mixed[i * d + c] += p[j] / sum * vs[j * kv + i / group * d + c];
        }
        student_product(out, s->layer[l].o, mixed, y->width, q);
        for (int c = 0; c < y->width; c++) x[t * y->width + c] += out[c];
    }
    free(qs), free(ks), free(vs), free(h), free(mixed), free(p), free(out);
}

static inline void student_scores(const struct student *s, int l, const double *h, double *z)
{
    const struct router *r = s->r;
    int n = r->experts, d = r->width, inner = router_inner(r), rank = r->rank;
    const double *w = s->weight + l * n * inner, *f = s->factor + (size_t)l * (size_t)router_factors(r) * (size_t)d;
    double *a = student_room((size_t)(router_factors(r) + d));

    memcpy(a, h, (size_t)d * sizeof(*a));
    if (r->kind != ROUTER_LINEAR) {
        student_product(a, f, h, router_factors(r), d);
        for (int j = 0; j < rank && r->kind != ROUTER_LOW_RANK; j++)
            a[j] = a[j] / (1 + exp(-a[j])) * (r->kind == ROUTER_GATE ? a[rank + j] : 1);
    }
    student_product(z, w, a, n, inner);
    for (int i = 0; i < n; i++) z[i] += s->bias[l * n + i];
    free(a);
}

/* The point: T, thresholds and choices of the scores z0 of a layer. */
static inline void student_capture(struct student *s, int l)
{
    int n = s->r->experts, k = s->y.active_of[l], rows = s->rows;
    double *z = s->z0 + l * rows * n, *t0 = s->t0 + l * rows, mean = 0, squares = 0;

    for (int i = 0; i < rows * n; i++) mean += z[i] / (rows * n);
    for (int i = 0; i < rows * n; i++) squares += (z[i] - mean) * (z[i] - mean) / (rows * n);
    s->spread[l] = s->temperature * sqrt(squares);
    for (int t = 0; t < rows; t++, z += n) {
        double in = INFINITY, out = -INFINITY;

        for (int i = 0; i < n; i++) {
            int larger = 0;

            for (int j = 0; j < n; j++) larger += z[j] > z[i];
            if (larger < k) in = fmin(in, z[i]);
            else out = fmax(out, z[i]);
        }
        t0[t] = s->r->by_threshold ? (double)s->r->threshold[l] : (in + out) / 2;
        for (int i = 0; i < n; i++) s->hard[(l * rows + t) * n + i] = z[i] > t0[t];
    }
}

static inline double student_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* The t at which a row of top-k has as many soft gates with the scores z as with z0 and t0: by halves. */
static inline double student_middle(const double *z, const double *z0, double t0, double spread, int n)
{
    double low = t0 - 50 * spread, high = t0 + 50 * spread;

    for (int step = 0; step < 200; step++) {
        double t = (low + high) / 2, more = 0;

        for (int i = 0; i < n; i++) more += student_sigmoid((z[i] - t) / spread) - student_sigmoid((z0[i] - t0) / spread);
        if (more > 0) low = t;
        else high = t;
    }
    return (low + high) / 2;
}

/* The FFN of row t (of all windows); g: its gates, written; all: the teacher. */
static inline void student_ffn(struct student *s, int l, const double *h, double *x, const double *g)
{
    const struct shape *y = &s->y;
    int j = 0, d = y->width;

    for (int i = -1; i < y->experts; i++) {
        int n = i < 0 ? y->shared[l] : shape_expert_neurons(y, l, i);
        double gate = i < 0 || !g ? 1 : g[i] * s->scale[l];

        for (int c = 0; i >= 0 && g && c < d; c++) x[c] += (1 - g[i]) * s->mu[(l * y->experts + i) * d + c];
        for (int end = j + n; j < end; j++) {
            double a = 0, b = 0;

            for (int c = 0; c < d; c++) a += s->layer[l].gate[j * d + c] * h[c], b += s->layer[l].up[j * d + c] * h[c];
            a = gate * a * student_sigmoid(a) * b;
            for (int c = 0; c < d; c++) x[c] += a * s->layer[l].down[j * d + c];
        }
    }
}

/* x += B (A h) + d. */
static inline void student_term(const struct student *s, int l, const double *h, double *x)
{
    int d = s->y.width, c = s->r->low_rank;
    double *low = student_room((size_t)c), *out = student_room((size_t)d);

    student_product(low, s->inward + l * c * d, h, c, d);
    student_product(out, s->outward + l * c * d, low, d, c);
    for (int i = 0; i < d; i++) x[i] += out[i] + s->offset[l * d + i];
    free(low), free(out);
}

/* logits of all rows [rows][V]; the student's gates into g [layers][rows][N], or the teacher (g NULL). */
static inline void student_run(struct student *s, const struct window *w, int n, double *logits, double *g)
{
    const struct shape *y = &s->y;
    int d = y->width, N = y->experts, first = 0;
    double *x = student_room((size_t)(s->rows * d)), *h = student_room((size_t)d), *z = student_room((size_t)N);

    for (int i = 0; i < n; first += w[i++].n)
        for (int t = 0; t < w[i].n; t++) memcpy(x + (first + t) * d, s->embed + w[i].token[t] * d, (size_t)d * sizeof(*x));
    for (int l = 0; l < y->layers; l++) {
        first = 0;
        for (int i = 0; i < n; first += w[i++].n) student_attention(s, l, x + first * d, w[i].n);
        for (int pass = s->capture && g ? 0 : 1; pass < 2; pass++) { /* choices of a layer need the scores of all rows */
            for (int t = 0; t < s->rows; t++) {
                int at = (l * s->rows + t) * N;

                student_normed(h, x + t * d, s->layer[l].fn, d, (double)y->eps);
                if (g) student_scores(s, l, h, z);
                if (pass == 0) memcpy(s->z0 + at, z, (size_t)N * sizeof(*z));
                if (pass == 0) continue;
                double t0 = s->t0[l * s->rows + t], spread = s->spread[l];
                double middle = g && !s->r->by_threshold ? student_middle(z, s->z0 + at, t0, spread, N) : t0;

                for (int i = 0; g && i < N; i++)
                    g[at + i] = s->hard[at + i] + student_sigmoid((z[i] - middle) / spread) -
                                student_sigmoid((s->z0[at + i] - t0) / spread);
                student_ffn(s, l, h, x + t * d, g ? g + at : NULL);
                if (g && s->r->offset) student_term(s, l, h, x + t * d);
            }
            if (pass == 0) student_capture(s, l);
        }
    }
    for (int t = 0; t < s->rows; t++) {
        student_normed(h, x + t * d, s->norm, d, (double)y->eps);
        student_product(logits + (size_t)t * (size_t)y->vocab, s->head, h, y->vocab, d);
    }
    free(x), free(h), free(z);
}

static inline double student_terms(struct student *s, const double *g)
{
    const struct shape *y = &s->y;
    double share = 0, uneven = 0;

    for (int l = 0; l < y->layers; l++) {
        double mean = 0, load[256] = {0};

        share += (double)y->shared[l] / y->neurons / y->layers;
        for (int i = 0; i < y->experts; i++) {
            for (int t = 0; t < s->rows; t++) load[i] += g[(l * s->rows + t) * y->experts + i] * shape_expert_neurons(y, l, i);
            share += load[i] / s->rows / y->neurons / y->layers;
            mean += load[i] / y->experts;
        }
        for (int i = 0; i < y->experts; i++) uneven += pow(load[i] / mean - 1, 2) / y->experts / y->layers;
    }
    s->share = share;
    return s->rows * (s->load * uneven + (s->r->by_threshold ? s->budget * 100 * pow(share - s->target, 2) : 0));
}

/* The loss of the windows as one pass, summed over rows. */
static inline double student_loss(struct student *s, const struct window *w, int n)
{
    int V = s->y.vocab;

    s->rows = 0;
    for (int i = 0; i < n; i++) s->rows += w[i].n;
    size_t logits = (size_t)s->rows * (size_t)V, gates = (size_t)(s->y.layers * s->rows * s->y.experts);
    double *student = student_room(logits), *teacher = student_room(logits), *g = student_room(gates), loss;
    const double *a = student, *b = teacher;

    if (s->capture) {
        free(s->z0), free(s->t0), free(s->hard);
        s->z0 = student_room(gates), s->t0 = student_room(gates), s->hard = student_room(gates);
    }
    student_run(s, w, n, student, g);
    if (s->frozen && s->taught) {
        memcpy(teacher, s->taught, logits * sizeof(*teacher));
    } else {
        student_run(s, w, n, teacher, NULL);
        if (s->frozen) {
            s->taught = student_room(logits);
            memcpy(s->taught, teacher, logits * sizeof(*teacher));
        }
    }
    loss = student_terms(s, g);
    s->kl = s->nll = 0;
    for (int i = 0; i < n; i++)
        for (int t = 0; t < w[i].n; t++, a += V, b += V) {
            double za = 0, zb = 0;

            for (int v = 0; v < V; v++) za += exp(a[v]), zb += exp(b[v]);
            for (int v = 0; v < V; v++) s->kl += exp(b[v]) / zb * (b[v] - log(zb) - a[v] + log(za));
            s->nll += log(za) - a[w[i].target[t]];
        }
    free(student), free(teacher), free(g);
    return loss + s->kl + s->lm * s->nll;
}

/* dL/dp by a central difference. */
static inline double student_slope(struct student *s, const struct window *w, int n, double *p)
{
    const double step = 1e-5, was = *p;
    double up, down;

    *p = was + step, up = student_loss(s, w, n);
    *p = was - step, down = student_loss(s, w, n);
    *p = was;
    return (up - down) / (2 * step);
}

#endif
