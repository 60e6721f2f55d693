/* Which experts a row of the student gets, what stands for those it does not get, and how gradients reach the scores. */
#include <math.h>
#include <string.h>

#include "moe/route.h"
#include "num/ops.h"
#include "train/stage2_internal.h"

/* ---- choices ---- */

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

/* dz = (dgate - what all gates of the row have in common) * p (1 - p) / T, p = sigmoid((z - threshold) / T). */
struct of_layer {
    struct stage2 *s;
    int layer, rows;
};

static void relax_task(void *ctx, int item, int worker)
{
    const struct of_layer *x = ctx;
    struct stage2 *s = x->s;
    const struct router *r = s->router;
    int n = r->experts, words = bits_words(n),
        end = (item + 1) * STAGE2_TASK_ROWS < x->rows ? (item + 1) * STAGE2_TASK_ROWS : x->rows;
    double by = s->spread[x->layer] > 0 ? 1 / (s->temperature * s->spread[x->layer]) : 0;

    (void)worker;
    for (int t = item * STAGE2_TASK_ROWS; t < end; t++) {
        size_t at = (size_t)t * (size_t)n;
        const float *z = stage2_scores(s, x->layer) + at;
        double middle = r->by_threshold ? (double)r->threshold[x->layer]
                                        : middle_of(z, stage2_sets(s, x->layer) + (size_t)t * (size_t)words, n);

        double slopes = 0, pulls = 0;

        for (int i = 0; i < n; i++) {
            double small = exp(-fabs(((double)z[i] - middle) * by)), slope = small / ((1 + small) * (1 + small)) * by;

            slopes += slope, pulls += slope * (double)s->dgate[at + (size_t)i];
            s->dz[at + (size_t)i] = (float)slope;
        }
        double common = r->by_threshold || !(slopes > 0) ? 0 : pulls / slopes;

        for (int i = 0; i < n; i++) s->dz[at + (size_t)i] *= (float)((double)s->dgate[at + (size_t)i] - common);
    }
}

void stage2_relax(struct stage2 *s, int layer, int rows)
{
    gemm_parallel(s->gemm, (rows + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS, relax_task, &(struct of_layer){s, layer, rows});
}

/* Choices of some rows, and sums of their scores and of the squares. */
static void choose_task(void *ctx, int item, int worker)
{
    const struct of_layer *x = ctx;
    struct stage2 *s = x->s;
    int n = s->router->experts, first = item * STAGE2_TASK_ROWS;
    int rows = x->rows - first < STAGE2_TASK_ROWS ? x->rows - first : STAGE2_TASK_ROWS;
    float *z = stage2_scores(s, x->layer) + (size_t)first * (size_t)n;
    double *sum = s->sums + 2 * item;

    (void)worker;
    route_select(stage2_sets(s, x->layer) + (size_t)first * (size_t)bits_words(n), z, rows, n, s->shape->active_of[x->layer],
                 s->router, x->layer);
    sum[0] = sum[1] = 0;
    for (int i = 0; i < rows * n; i++) sum[0] += (double)z[i], sum[1] += (double)z[i] * (double)z[i];
}

void stage2_choose(struct stage2 *s, int layer, int rows)
{
    int n = s->router->experts, words = bits_words(n), tasks = (rows + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS;
    uint64_t *load = s->load + (size_t)layer * (size_t)n, *set = stage2_sets(s, layer);
    double sum = 0, squares = 0, cells = (double)rows * n;

    router_model_scores(s->trained, layer, s->h, rows, stage2_scores(s, layer));
    gemm_parallel(s->gemm, tasks, choose_task, &(struct of_layer){s, layer, rows});
    for (int i = 0; i < tasks; i++) sum += s->sums[2 * i], squares += s->sums[2 * i + 1];
    s->spread[layer] = sqrt(fmax(0, squares / cells - sum / cells * (sum / cells)));
    memset(load, 0, (size_t)n * sizeof(*load));
    for (int t = 0; t < rows; t++, set += words)
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) load[i]++;
}

/* off[t][i] = 1 - g. */
static void leave_task(void *ctx, int item, int worker)
{
    const struct of_layer *x = ctx;
    const struct stage2 *s = x->s;
    int n = s->router->experts, end = (item + 1) * STAGE2_TASK_ROWS < x->rows ? (item + 1) * STAGE2_TASK_ROWS : x->rows;

    (void)worker;
    for (int t = item * STAGE2_TASK_ROWS; t < end; t++) {
        const uint64_t *set = stage2_sets(s, x->layer) + (size_t)t * (size_t)bits_words(n);

        for (int i = 0; i < n; i++) s->off[(size_t)t * (size_t)n + (size_t)i] = bits_has(set, i) ? 0.0f : 1.0f;
    }
}

static void leave_out(struct stage2 *s, int layer, int rows)
{
    gemm_parallel(s->gemm, (rows + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS, leave_task, &(struct of_layer){s, layer, rows});
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
        gemm_xw(s->gemm, x, s->off, r->experts, rows, mu, r->width);
    }
    if (r->offset && s->o.compensate) {
        router_low_rank(r, s->gemm, layer, &h, s->low, s->lifted);
        add_to(x, s->lifted, (size_t)rows * (size_t)r->width);
    }
}

/* dgate += pull - dz. */
static void pull_task(void *ctx, int item, int worker)
{
    const struct of_layer *x = ctx;
    struct stage2 *s = x->s;
    int n = s->router->experts, end = (item + 1) * STAGE2_TASK_ROWS < x->rows ? (item + 1) * STAGE2_TASK_ROWS : x->rows;
    const double *pull = s->pull + (size_t)x->layer * (size_t)n;

    (void)worker;
    for (int t = item * STAGE2_TASK_ROWS; t < end; t++) {
        float *g = s->dgate + (size_t)t * (size_t)n;
        const float *less = s->dz + (size_t)t * (size_t)n;

        for (int i = 0; i < n; i++) g[i] += (float)pull[i] - less[i];
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
    } else {
        memset(s->dz, 0, (size_t)rows * (size_t)n * sizeof(float));
    }
    gemm_parallel(s->gemm, (rows + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS, pull_task, &(struct of_layer){s, layer, rows});
    if (s->means.n) {
        leave_out(s, layer, rows);
        gemm_atb(s->gemm, s->means.gradient + of_layer * (size_t)d, s->off, n, s->dx, d, rows);
    }
    if (r->low_rank && s->o.compensate && below) {
        size_t c = (size_t)r->low_rank, at = (size_t)layer * c * (size_t)d;

        memset(s->low, 0, (size_t)rows * c * sizeof(float));
        gemm_xw(s->gemm, s->low, s->dx, d, rows, r->outward + at, r->low_rank);
        gemm_xw(s->gemm, s->dh, s->low, r->low_rank, rows, r->inward + at, d);
    }
}
