/* Which experts a row of the student gets, what stands for those it does not get, and how gradients reach the scores. */
#include <math.h>
#include <string.h>

#include "moe/route.h"
#include "num/ops.h"
#include "train/stage2_internal.h"

/* ---- small products: out[rows][cols] += x[rows][n] M, M [n][cols]; x lies across, because that is the product there is ---- */

static void across(float *out, const float *x, int rows, int n)
{
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < n; i++) out[(size_t)i * (size_t)rows + (size_t)t] = x[(size_t)t * (size_t)n + (size_t)i];
}

static void add_product(struct stage2 *s, float *out, const float *x, int rows, int n, const float *matrix, int cols)
{
    across(s->turned, x, rows, n);
    gemm_atb(s->gemm, out, s->turned, rows, matrix, cols, n);
}
/* ---- choices ---- */

static double deviation(const float *z, size_t n)
{
    double sum = 0, squares = 0;

    for (size_t i = 0; i < n; i++) sum += (double)z[i];
    sum /= (double)n;
    for (size_t i = 0; i < n; i++) squares += ((double)z[i] - sum) * ((double)z[i] - sum);
    return sqrt(squares / (double)n);
}

/* Where a row of top-k changes its mind: between the least score that is in its set and the largest that is not. */
static double middle_of(const float *z, const uint64_t *set, int n)
{
    double in = INFINITY, out = -INFINITY;

    for (int i = 0; i < n; i++) {
        if (bits_has(set, i)) in = (double)z[i] < in ? (double)z[i] : in;
        else out = (double)z[i] > out ? (double)z[i] : out;
    }
    return isinf(in) || isinf(out) ? INFINITY : (in + out) / 2; /* all or none: nothing to decide */
}

/* dz = dgate * p (1 - p) / T, p = sigmoid((z - threshold) / T). */
struct relaxing {
    struct stage2 *s;
    int layer, rows;
};

static void relax_task(void *ctx, int item, int worker)
{
    const struct relaxing *x = ctx;
    struct stage2 *s = x->s;
    const struct router *r = s->router;
    int n = r->experts, words = bits_words(n),
        end = (item + 1) * STAGE2_TASK_ROWS < x->rows ? (item + 1) * STAGE2_TASK_ROWS : x->rows;
    double by = s->spread[x->layer] > 0 ? 1 / (s->o.temperature * s->spread[x->layer]) : 0;

    (void)worker;
    for (int t = item * STAGE2_TASK_ROWS; t < end; t++) {
        size_t at = (size_t)t * (size_t)n;
        const float *z = stage2_scores(s, x->layer) + at;
        double middle = r->by_threshold ? (double)r->threshold[x->layer]
                                        : middle_of(z, stage2_sets(s, x->layer) + (size_t)t * (size_t)words, n);

        for (int i = 0; i < n; i++) {
            double small = exp(-fabs(((double)z[i] - middle) * by)), slope = small / ((1 + small) * (1 + small)) * by;

            s->dz[at + (size_t)i] = (float)(slope * (double)s->dgate[at + (size_t)i]);
        }
    }
}

void stage2_relax(struct stage2 *s, int layer, int rows)
{
    gemm_parallel(s->gemm, (rows + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS, relax_task, &(struct relaxing){s, layer, rows});
}

void stage2_choose(struct stage2 *s, int layer, int rows)
{
    int n = s->router->experts, words = bits_words(n);
    uint64_t *load = s->load + (size_t)layer * (size_t)n, *set = stage2_sets(s, layer);

    router_model_scores(s->trained, layer, s->h, rows, stage2_scores(s, layer));
    route_select(set, stage2_scores(s, layer), rows, n, s->shape->active_of[layer], s->router, layer);
    s->spread[layer] = deviation(stage2_scores(s, layer), (size_t)rows * (size_t)n);
    memset(load, 0, (size_t)n * sizeof(*load));
    for (int t = 0; t < rows; t++, set += words)
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) load[i]++;
}

/* off[t][i] = 1 - g. */
static void leave_out(struct stage2 *s, int layer, int rows)
{
    int n = s->router->experts, words = bits_words(n);
    const uint64_t *set = stage2_sets(s, layer);

    for (int t = 0; t < rows; t++, set += words)
        for (int i = 0; i < n; i++) s->off[(size_t)t * (size_t)n + (size_t)i] = bits_has(set, i) ? 0.0f : 1.0f;
}
/* ---- what is left out ---- */

float stage2_scale(const struct stage2 *s, int layer)
{
    return s->router->scale ? s->router->scale[layer] : s->o.scale;
}

static const float *stage2_means(const struct stage2 *s, int layer)
{
    size_t of_layer = (size_t)s->shape->experts * (size_t)s->shape->width;

    return s->router->mu && s->o.compensate ? s->router->mu + (size_t)layer * of_layer : NULL;
}

/* What inference adds in moe_end(): here it changes in every step. */
void stage2_compensate(struct stage2 *s, int layer, int rows, float *x)
{
    const struct router *r = s->router;
    const float *mu = stage2_means(s, layer);
    struct rows h = {.x = s->h, .ld = (size_t)r->width, .n = rows, .cols = r->width};

    if (mu) {
        leave_out(s, layer, rows);
        add_product(s, x, s->off, rows, r->experts, mu, r->width);
    }
    if (r->offset && s->o.compensate) {
        router_low_rank(r, s->gemm, layer, &h, s->low, s->lifted);
        add_to(x, s->lifted, (size_t)rows * (size_t)r->width);
    }
}

/* The means and the term of low rank, and all that pulls at gates; dgate becomes dL/dg. */
void stage2_gates_backward(struct stage2 *s, int layer, int rows, bool below)
{
    const struct router *r = s->router;
    int n = r->experts, d = r->width;
    size_t of_layer = (size_t)layer * (size_t)n;
    const float *mu = stage2_means(s, layer);

    if (mu) {
        struct mat m = {.data = mu, .dtype = DT_F32, .rows = n, .cols = d, .stride = (size_t)d};

        gemm_xwt(s->gemm, s->dz, (size_t)n, s->dx, (size_t)d, rows, &m, NULL);
        for (size_t i = 0; i < (size_t)rows * (size_t)n; i++) s->dgate[i] -= s->dz[i];
    }
    if (s->means.n) {
        leave_out(s, layer, rows);
        gemm_atb(s->gemm, s->means.gradient + of_layer * (size_t)d, s->off, n, s->dx, d, rows);
    }
    if (r->low_rank && s->o.compensate && below) {
        size_t c = (size_t)r->low_rank, at = (size_t)layer * c * (size_t)d;

        memset(s->low, 0, (size_t)rows * c * sizeof(float));
        add_product(s, s->low, s->dx, rows, d, r->outward + at, r->low_rank);
        add_product(s, s->dh, s->low, rows, r->low_rank, r->inward + at, d);
    }
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < n; i++) s->dgate[(size_t)t * (size_t)n + (size_t)i] += (float)s->pull[of_layer + (size_t)i];
}
