/* Synthetic factorized FFNs for the tests of moe, and what they must compute, in plain loops in double.
 * Every rank can build the same world from the seed; moe_world_hide() takes away what a rank does not hold. */
#ifndef TESTS_MOE_WORLD_H
#define TESTS_MOE_WORLD_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/rng.h"
#include "moe/grouping.h"
#include "moe/moe.h"

enum { ALL_NEURONS = -1 };

struct moe_world {
    int layers, experts, active, width, neurons, shared;
    enum format format; /* of the experts' weights; bf16 keeps what they are */
    struct moe_layer *layer;
    uint16_t **gate, **up, **down; /* per layer: bf16 [F, D], [F, D], [D, F] in the new neuron order */
    float **mu, **fill;
    double **mu_total;
    int32_t **place;
};

static inline void *world_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    if (!p) abort();
    return p;
}

static inline uint16_t *world_random(struct rng *r, size_t n, double spread)
{
    uint16_t *x = world_alloc(n, sizeof(*x));

    for (size_t i = 0; i < n; i++) x[i] = narrow_bf16((float)(rng_normal(r) * spread));
    return x;
}

/* A copy in the layout of the kernels; world_free_expert(). */
static inline struct packed world_packed_as(enum format f, const struct mat *m)
{
    size_t bytes = packed_line_bytes(f, m->rows, m->cols);
    void *lines = aligned_alloc(64, bytes ? bytes : 64);
    uint16_t *scale = format_has_scales(f) ? world_alloc(packed_scale_bytes(f, m->rows, m->cols), 1) : NULL;

    if (!lines) abort();
    pack_panels(lines, scale, f, m, 0, packed_panels(m->rows));
    return (struct packed){.lines = lines, .scale = scale, .format = f, .rows = m->rows, .cols = m->cols};
}

static inline struct packed world_packed(const struct mat *m)
{
    return world_packed_as(format_of(m->dtype), m);
}

static inline void world_free_expert(struct expert *x)
{
    free((void *)x->gate.lines), free((void *)x->up.lines), free((void *)x->down.lines);
    free((void *)x->gate.scale), free((void *)x->up.scale), free((void *)x->down.scale);
    *x = (struct expert){0};
}

/* Neurons begin .. begin + n - 1 of a layer. */
static inline struct expert world_expert(const struct moe_world *w, int l, int begin, int n)
{
    size_t width = (size_t)w->width, at = (size_t)begin * width;
    struct mat gate = {w->gate[l] + at, DT_BF16, n, w->width, width}, up = {w->up[l] + at, DT_BF16, n, w->width, width};
    struct mat down = {w->down[l] + begin, DT_BF16, w->width, n, (size_t)w->neurons};

    return (struct expert){.gate = world_packed_as(w->format, &gate),
                           .up = world_packed_as(w->format, &up),
                           .down = world_packed_as(w->format, &down),
                           .place = w->place[l] + begin,
                           .fill = w->fill[l] + begin};
}

/* Builds the experts of a layer anew, from its weights. */
static inline void moe_world_pack(struct moe_world *w, int l)
{
    struct moe_layer *y = &w->layer[l];

    for (int i = 0; i < w->experts; i++) {
        world_free_expert(&y->expert[i]);
        y->expert[i] = world_expert(w, l, group_begin(w->neurons, w->shared, w->experts, i),
                                    group_size(w->neurons, w->shared, w->experts, i));
    }
    world_free_expert(&y->shared);
    if (w->shared) y->shared = world_expert(w, l, 0, w->shared);
}

static inline struct moe_world *moe_world_new(int layers, int experts, int active, int width, int neurons, int shared,
                                              uint64_t seed)
{
    struct moe_world *w = world_alloc(1, sizeof(*w));
    size_t n = (size_t)layers, cells = (size_t)neurons * (size_t)width;

    *w = (struct moe_world){
        layers, experts, active, width, neurons, shared, .format = FORMAT_BF16, .layer = world_alloc(n, sizeof(*w->layer))};
    w->gate = world_alloc(n, sizeof(*w->gate)), w->up = world_alloc(n, sizeof(*w->up)),
    w->down = world_alloc(n, sizeof(*w->down));
    w->mu = world_alloc(n, sizeof(*w->mu)), w->fill = world_alloc(n, sizeof(*w->fill)),
    w->place = world_alloc(n, sizeof(*w->place));
    w->mu_total = world_alloc(n, sizeof(*w->mu_total));
    for (int l = 0; l < layers; l++) {
        struct moe_layer *y = &w->layer[l];
        struct rng r;

        rng_seed(&r, seed, (uint64_t)l);
        w->gate[l] = world_random(&r, cells, 0.7), w->up[l] = world_random(&r, cells, 0.7),
        w->down[l] = world_random(&r, cells, 0.7);
        w->mu[l] = world_alloc((size_t)experts * (size_t)width, sizeof(float));
        w->mu_total[l] = world_alloc((size_t)width, sizeof(double));
        w->fill[l] = world_alloc((size_t)neurons, sizeof(float)), w->place[l] = world_alloc((size_t)neurons, sizeof(int32_t));
        for (int j = 0; j < neurons; j++) {
            int other = (int)rng_below(&r, (uint64_t)j + 1);

            w->fill[l][j] = (float)rng_normal(&r);
            w->place[l][j] = w->place[l][other], w->place[l][other] = j; /* any order */
        }
        for (int i = 0; i < experts * width; i++) {
            w->mu[l][i] = (float)rng_normal(&r);
            w->mu_total[l][i % width] += grid(w->mu[l][i]);
        }
        *y = (struct moe_layer){.experts = experts, .active = active, .mu = w->mu[l], .mu_total = w->mu_total[l]};
        y->expert = world_alloc((size_t)experts, sizeof(*y->expert));
        moe_world_pack(w, l);
        y->neurons_active = shared + (experts ? (neurons - shared) * active / experts : 0);
    }
    return w;
}

static inline void moe_world_free(struct moe_world *w)
{
    for (int l = 0; l < w->layers; l++) {
        free(w->gate[l]), free(w->up[l]), free(w->down[l]), free(w->mu[l]), free(w->fill[l]), free(w->place[l]);
        for (int i = 0; i < w->experts; i++) world_free_expert(&w->layer[l].expert[i]);
        world_free_expert(&w->layer[l].shared);
        free(w->mu_total[l]), free(w->layer[l].expert);
    }
    free(w->gate), free(w->up), free(w->down), free(w->mu), free(w->fill), free(w->place), free(w->mu_total), free(w->layer);
    free(w);
}

/* What the rank does not hold is gone: weights, and the means as NaN, so that reading them shows. */
static inline void moe_world_hide(struct moe_world *w, const struct placement *p, int rank)
{
    for (int l = 0; l < w->layers; l++) {
        struct moe_layer *y = &w->layer[l];

        for (int i = 0; i < w->experts; i++) {
            if (placement_rank(p, l, i) == rank) continue;
            world_free_expert(&y->expert[i]);
            for (int d = 0; d < w->width; d++) w->mu[l][i * w->width + d] = NAN;
        }
        if (rank != 0) world_free_expert(&y->shared), y->mu_total = NULL;
    }
}

static inline void world_rows(float *h, int rows, int width, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed, 99);
    for (int i = 0; i < rows * width; i++) h[i] = (float)rng_normal(&r);
}

/* out[d] += scale * e(h), in double; kept: neurons of the layer in the static control, or ALL_NEURONS. */
static inline void plain_expert(double *out, const struct expert *x, const float *h, int kept, double scale)
{
    for (int j = 0; j < x->gate.rows; j++) {
        double gate = 0, up = 0, z;

        for (int d = 0; d < x->gate.cols; d++) {
            gate += (double)packed_at(&x->gate, j, d) * (double)h[d];
            up += (double)packed_at(&x->up, j, d) * (double)h[d];
        }
        z = gate / (1 + exp(-gate)) * up;
        if (kept != ALL_NEURONS && x->place[j] >= kept) z = x->fill ? (double)x->fill[j] : 0;
        for (int d = 0; d < x->down.rows; d++) out[d] += scale * z * (double)packed_at(&x->down, d, j);
    }
}

/* sum_j (z_j |w_down_j|)^2 */
static inline double plain_energy(const struct expert *x, const float *h)
{
    double sum = 0;

    for (int j = 0; j < x->gate.rows; j++) {
        double gate = 0, up = 0, norm = 0, z;

        for (int d = 0; d < x->gate.cols; d++) {
            gate += (double)packed_at(&x->gate, j, d) * (double)h[d];
            up += (double)packed_at(&x->up, j, d) * (double)h[d];
        }
        for (int d = 0; d < x->down.rows; d++) norm += pow((double)packed_at(&x->down, d, j), 2);
        z = gate / (1 + exp(-gate)) * up;
        sum += z * z * norm;
    }
    return sum;
}

/* out[D] = yhat(h) for an active set. */
static inline void plain_layer(double *out, const struct moe_world *w, int l, const float *h, const uint64_t *set, double scale,
                               bool compensate, int kept)
{
    const struct moe_layer *y = &w->layer[l];

    memset(out, 0, (size_t)w->width * sizeof(*out));
    if (w->shared) plain_expert(out, &y->shared, h, kept, 1);
    for (int i = 0; i < w->experts; i++) {
        if (kept != ALL_NEURONS || bits_has(set, i)) plain_expert(out, &y->expert[i], h, kept, scale);
        else if (compensate) {
            for (int d = 0; d < w->width; d++) out[d] += (double)w->mu[l][i * w->width + d];
        }
    }
}

#endif
