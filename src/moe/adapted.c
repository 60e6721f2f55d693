#include "moe/adapted.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"

static size_t cells(const struct adapted *a)
{
    return (size_t)a->neurons * (size_t)a->width;
}

static struct packed take_packed(struct arena_taker *t, int rows, int cols)
{
    void *lines = arena_take(t, packed_line_bytes(FORMAT_F32, rows, cols), 1);

    return (struct packed){.lines = lines, .format = FORMAT_F32, .rows = rows, .cols = cols};
}

void adapted_take(struct adapted *a, struct arena_taker *t, int neurons, int width, int rank)
{
    size_t all, each = rank ? (size_t)rank * (size_t)(width + neurons) : (size_t)neurons * (size_t)width;

    *a = (struct adapted){.neurons = neurons, .width = width, .rank = rank, .each = each};
    all = ADAPTED_PARTS * cells(a);
    a->base = arena_take(t, all, sizeof(float));
    a->gradient = arena_take(t, all, sizeof(float));
    a->param = rank ? arena_take(t, ADAPTED_PARTS * each, sizeof(float)) : a->base;
    a->slope = rank ? arena_take(t, ADAPTED_PARTS * each, sizeof(float)) : a->gradient;
    a->m = arena_take(t, ADAPTED_PARTS * each, sizeof(float));
    a->v = arena_take(t, ADAPTED_PARTS * each, sizeof(float));
    if (rank) a->merged = arena_take(t, ADAPTED_SOME * (size_t)width, sizeof(float));
    for (int i = 0; i < ADAPTED_PARTS; i++) a->own[i] = i < 2 ? take_packed(t, neurons, width) : take_packed(t, width, neurons);
}

void adapted_start(struct adapted *a, const struct expert *x, uint64_t key)
{
    const struct packed *from[] = {&x->gate, &x->up, &x->down};
    double spread = 1 / sqrt((double)a->width);
    struct rng r;

    BUG_ON(!x->in_t.lines || !x->down_t.lines || x->gate.rows != a->neurons);
    for (int i = 0; i < ADAPTED_PARTS; i++) {
        float *w = a->base + (size_t)i * cells(a);

        a->first[i] = *from[i];
        for (int j = 0; j < a->neurons; j++)
            for (int d = 0; d < a->width; d++) *w++ = i < 2 ? packed_at(from[i], j, d) : packed_at(from[i], d, j);
    }
    rng_seed(&r, key, 11);
    for (int i = 0; i < ADAPTED_PARTS && a->rank; i++)
        for (size_t j = 0; j < (size_t)a->rank * (size_t)a->width; j++)
            a->param[(size_t)i * a->each + j] = (float)(spread * rng_normal(&r));
}

void adapted_use(const struct adapted *a, struct expert *x, bool student)
{
    const struct packed *to = student ? a->own : a->first;

    x->gate = to[0], x->up = to[1], x->down = to[2];
}

/* A and B of a part. */
static float *inner(const struct adapted *a, const float *of, int part)
{
    return (float *)of + (size_t)part * a->each;
}

static float *outer(const struct adapted *a, const float *of, int part)
{
    return inner(a, of, part) + (size_t)a->rank * (size_t)a->width;
}

void adapted_slope(struct adapted *a)
{
    if (!a->rank) return;
    memset(a->slope, 0, ADAPTED_PARTS * a->each * sizeof(float));
    for (int i = 0; i < ADAPTED_PARTS; i++) {
        const float *A = inner(a, a->param, i), *B = outer(a, a->param, i), *g = a->gradient + (size_t)i * cells(a);
        float *dA = inner(a, a->slope, i), *dB = outer(a, a->slope, i);

        for (int j = 0; j < a->neurons; j++, g += a->width)
            for (int c = 0; c < a->rank; c++) {
                const float *row = A + (size_t)c * (size_t)a->width;
                float *to = dA + (size_t)c * (size_t)a->width, by = B[(size_t)j * (size_t)a->rank + (size_t)c];
                double along = 0;

                for (int d = 0; d < a->width; d++) along += (double)g[d] * (double)row[d];
                for (int d = 0; d < a->width; d++) to[d] += by * g[d];
                dB[(size_t)j * (size_t)a->rank + (size_t)c] = (float)along;
            }
    }
}

double adapted_squares(const struct adapted *a)
{
    return sum_of_squares(a->slope, ADAPTED_PARTS * a->each);
}

void adapted_step(struct adapted *a, int64_t steps, double gscale, double rate, const struct adamw_options *o)
{
    struct adamw adam = {.n = ADAPTED_PARTS * a->each, .m = a->m, .v = a->v, .steps = steps};

    adamw_step(&adam, a->param, a->slope, gscale, rate, o);
}

void adapted_weights(const struct adapted *a, int part, int first, int n, float *out)
{
    const float *A = inner(a, a->param, part), *B = outer(a, a->param, part) + (size_t)first * (size_t)a->rank;

    memcpy(out, a->base + (size_t)part * cells(a) + (size_t)first * (size_t)a->width,
           (size_t)n * (size_t)a->width * sizeof(*out));
    for (int j = 0; j < n; j++, out += a->width)
        for (int c = 0; c < a->rank; c++)
            for (int d = 0; d < a->width; d++) out[d] += B[j * a->rank + c] * A[(size_t)c * (size_t)a->width + (size_t)d];
}

/* Rows of w, [n][D], as inputs at .. of a matrix with D outputs. */
static void lay_inputs(const struct packed *to, int at, const float *w, int n)
{
    int width = to->rows;

    for (int p = 0; p < packed_panels(width); p++) {
        float *line = (float *)to->lines + ((size_t)p * (size_t)to->cols + (size_t)at) * PANEL_LANES;
        int lanes = width - p * PANEL_LANES < PANEL_LANES ? width - p * PANEL_LANES : PANEL_LANES;

        for (int j = 0; j < n; j++, line += PANEL_LANES)
            memcpy(line, w + (size_t)j * (size_t)width + (size_t)p * PANEL_LANES, (size_t)lanes * sizeof(*line));
    }
}

/* The same rows as outputs first .., a multiple of a panel, of a matrix with D inputs. */
static void lay_outputs(const struct packed *to, int first, const float *w, int n)
{
    struct mat m = {.data = w, .dtype = DT_F32, .rows = n, .cols = to->cols, .stride = (size_t)to->cols};
    float *lines = (float *)to->lines + (size_t)first * (size_t)to->cols;

    pack_panels(lines, NULL, FORMAT_F32, &m, 0, packed_panels(n));
}

void adapted_pack(struct adapted *a, struct expert *x)
{
    size_t width = (size_t)a->width;

    for (int i = 0; i < ADAPTED_PARTS; i++)
        for (int first = 0; first < a->neurons; first += ADAPTED_SOME) {
            int n = a->neurons - first < ADAPTED_SOME ? a->neurons - first : ADAPTED_SOME;
            float *w = a->base + (size_t)i * cells(a) + (size_t)first * width, *room = w;

            if (a->rank) adapted_weights(a, i, first, n, room = a->merged);
            if (i < 2) {
                lay_outputs(&a->own[i], first, room, n);
                lay_inputs(&x->in_t, i * a->neurons + first, room, n);
            } else {
                lay_inputs(&a->own[i], first, room, n);
                lay_outputs(&x->down_t, first, room, n);
            }
        }
}
