#include "train/router_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

struct router_model {
    struct router *router;
    struct gemm *gemm;
    struct arena *arena;
    int rows, n_params;
    struct router_param param[ROUTER_PARAMS];

    /* one call, of kinds with a factor */
    float *v, *a, *da; /* [rows][factors]; [rows][rank] twice */
};

static void list_params(struct router_model *m)
{
    struct router *r = m->router;
    size_t layers = (size_t)r->layers, n = layers * (size_t)r->experts;
    size_t factors = layers * (size_t)router_factors(r) * (size_t)r->width;

    m->param[m->n_params++] =
        (struct router_param){.name = "weight", .value = r->weight, .n = n * (size_t)router_inner(r), .decays = true};
    m->param[m->n_params++] = (struct router_param){.name = "bias", .value = r->bias, .n = n};
    if (factors)
        m->param[m->n_params++] = (struct router_param){.name = "factor", .value = r->factor, .n = factors, .decays = true};
}

static void take(struct router_model *m, struct arena_taker *t)
{
    const struct router *r = m->router;
    size_t rows = (size_t)m->rows, factors = (size_t)router_factors(r);

    for (int i = 0; i < m->n_params; i++) {
        struct router_param *p = &m->param[i];

        p->adam.n = p->n;
        p->gradient = arena_take(t, p->n, sizeof(float));
        p->adam.m = arena_take(t, p->n, sizeof(float));
        p->adam.v = arena_take(t, p->n, sizeof(float));
    }
    m->v = arena_take(t, rows * factors, sizeof(float));
    m->a = arena_take(t, rows * (size_t)r->rank, sizeof(float));
    m->da = arena_take(t, rows * (size_t)r->rank, sizeof(float));
}

status router_model_open(struct router_model **out, struct router *r, struct gemm *g, int rows, struct err *e)
{
    struct router_model *m = calloc(1, sizeof(*m));
    struct arena_taker t = {0};

    *out = NULL;
    if (!m) return err_set(e, ERR_LIMIT, "out of memory for training a router");
    m->router = r;
    m->gemm = g;
    m->rows = rows;
    list_params(m);
    take(m, &t);
    if (arena_open(&m->arena, "router training", t.bytes, e)) {
        free(m);
        return e->code;
    }
    t = (struct arena_taker){.arena = m->arena, .e = e};
    take(m, &t);
    if (t.failed) {
        router_model_close(m);
        return e->code;
    }
    arena_freeze(m->arena);
    *out = m;
    return OK;
}

void router_model_close(struct router_model *m)
{
    if (!m) return;
    arena_close(m->arena);
    free(m);
}

int router_model_params(struct router_model *m, struct router_param *out[ROUTER_PARAMS])
{
    for (int i = 0; i < m->n_params; i++) out[i] = &m->param[i];
    return m->n_params;
}

/* ---- forwards and back ---- */

static struct mat matrix(const float *all, int layer, int rows, int cols)
{
    size_t of_layer = (size_t)rows * (size_t)cols;

    return (struct mat){all + (size_t)layer * of_layer, DT_F32, rows, cols, (size_t)cols};
}

/* m->v = V h (and U h), m->a = what W takes. */
static void inner(struct router_model *m, int layer, const float *h, int rows)
{
    const struct router *r = m->router;
    size_t factors = (size_t)router_factors(r), width = (size_t)r->width;
    struct mat v = matrix(r->factor, layer, (int)factors, r->width);

    gemm_xwt(m->gemm, m->v, factors, h, width, rows, &v, NULL);
    router_bend(r, m->a, m->v, rows);
}

void router_model_scores(struct router_model *m, int layer, const float *h, int rows, float *z)
{
    const struct router *r = m->router;
    size_t n = (size_t)r->experts;
    struct mat w = matrix(r->weight, layer, r->experts, router_inner(r));

    BUG_ON(rows > m->rows || layer < 0 || layer >= r->layers);
    if (r->kind != ROUTER_LINEAR) inner(m, layer, h, rows), h = m->a;
    gemm_xwt(m->gemm, z, n, h, (size_t)w.cols, rows, &w, r->bias + (size_t)layer * n);
}

/* m->v becomes the error with respect to itself; silu' = s + x s (1 - s), s = sigmoid(x). */
static void unbend(struct router_model *m, int rows)
{
    const struct router *r = m->router;
    size_t rank = (size_t)r->rank, factors = (size_t)router_factors(r);

    if (r->kind == ROUTER_LOW_RANK) {
        memcpy(m->v, m->da, (size_t)rows * rank * sizeof(float));
        return;
    }
    for (int t = 0; t < rows; t++) {
        float *v = m->v + (size_t)t * factors;
        const float *da = m->da + (size_t)t * rank;

        for (size_t j = 0; j < rank; j++) {
            double x = v[j], s = 1 / (1 + exp(-x)), slope = s + x * s * (1 - s), d = da[j];

            if (r->kind == ROUTER_GATE) {
                double u = v[rank + j];

                v[rank + j] = (float)(d * x * s);
                d *= u;
            }
            v[j] = (float)(d * slope);
        }
    }
}

void router_model_backward(struct router_model *m, int layer, const float *h, const float *dz, int rows, float *dh)
{
    const struct router *r = m->router;
    int n = r->experts, factors = router_factors(r), width = router_inner(r);
    size_t l = (size_t)layer, at = l * (size_t)n;
    const float *w = r->weight + at * (size_t)width, *x = h;

    BUG_ON(rows > m->rows || layer < 0 || layer >= r->layers);
    if (factors) inner(m, layer, h, rows), x = m->a;
    gemm_atb(m->gemm, m->param[0].gradient + at * (size_t)width, dz, n, x, width, rows);
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < n; i++) m->param[1].gradient[at + (size_t)i] += dz[(size_t)t * (size_t)n + (size_t)i];
    if (!factors) {
        if (dh) gemm_xw(m->gemm, dh, dz, n, rows, w, width);
        return;
    }
    size_t first = l * (size_t)factors * (size_t)r->width;

    memset(m->da, 0, (size_t)rows * (size_t)r->rank * sizeof(float));
    gemm_xw(m->gemm, m->da, dz, n, rows, w, width);
    unbend(m, rows);
    gemm_atb(m->gemm, m->param[2].gradient + first, m->v, factors, h, r->width, rows);
    if (dh) gemm_xw(m->gemm, dh, m->v, factors, rows, r->factor + first, r->width);
}

/* ---- steps ---- */

void router_model_clear(struct router_model *m)
{
    for (int i = 0; i < m->n_params; i++) memset(m->param[i].gradient, 0, m->param[i].n * sizeof(float));
}

void router_model_scale(struct router_model *m, int layer, double by)
{
    for (int i = 0; i < m->n_params; i++) {
        size_t n = m->param[i].n / (size_t)m->router->layers;
        float *gradient = m->param[i].gradient + (size_t)layer * n;

        for (size_t j = 0; j < n; j++) gradient[j] = (float)(gradient[j] * by);
    }
}

double router_model_squares(const struct router_model *m)
{
    double sum = 0;

    for (int i = 0; i < m->n_params; i++) sum += sum_of_squares(m->param[i].gradient, m->param[i].n);
    return sum;
}

void router_model_step(struct router_model *m, double gscale, double learning_rate, const struct adamw_options *o)
{
    struct adamw_options without_decay = *o;

    without_decay.weight_decay = 0;
    for (int i = 0; i < m->n_params; i++) {
        struct router_param *p = &m->param[i];

        adamw_step(&p->adam, p->value, p->gradient, gscale, learning_rate, p->decays ? o : &without_decay);
    }
}

int64_t router_model_steps(const struct router_model *m)
{
    return m->param[0].adam.steps;
}

void router_model_set_steps(struct router_model *m, int64_t steps)
{
    for (int i = 0; i < m->n_params; i++) m->param[i].adam.steps = steps;
}

int router_model_arrays(struct router_model *m, struct checkpoint_array out[ROUTER_MODEL_ARRAYS])
{
    static const char *const name[ROUTER_PARAMS][3] = {{"router.weight", "weight.m", "weight.v"},
                                                       {"router.bias", "bias.m", "bias.v"},
                                                       {"router.factor", "factor.m", "factor.v"}};
    int n = 0;

    for (int i = 0; i < m->n_params; i++) out[n++] = (struct checkpoint_array){name[i][0], m->param[i].value, m->param[i].n};
    for (int i = 0; i < m->n_params; i++) {
        struct router_param *p = &m->param[i];

        out[n++] = (struct checkpoint_array){name[i][1], p->adam.m, p->n};
        out[n++] = (struct checkpoint_array){name[i][2], p->adam.v, p->n};
    }
    return n;
}
