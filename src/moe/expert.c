#include "moe/expert.h"

#include "base/err.h"
#include "num/ops.h"

struct gating {
    float *z;
    const float *up;
    int neurons;
};

static void gate_row(void *ctx, int t, int worker)
{
    const struct gating *g = ctx;
    size_t at = (size_t)t * (size_t)g->neurons;

    (void)worker;
    silu_mul(g->z + at, g->up + at, (size_t)g->neurons);
}

void expert_neurons(struct gemm *g, float *z, float *up, const struct expert *x, const float *h, int rows)
{
    int neurons = x->gate.rows;
    size_t width = (size_t)x->gate.cols;
    struct gating gating = {z, up, neurons};
    struct rows in = {.x = h, .ld = width, .n = rows, .cols = x->gate.cols};

    BUG_ON(!x->gate.lines || !x->up.lines); /* not held by this rank */
    BUG_ON(x->up.rows != neurons || x->up.cols != x->gate.cols);
    if (rows == 0) return;
    gemm_product(g, z, (size_t)neurons, &in, &x->gate, NULL);
    gemm_product(g, up, (size_t)neurons, &in, &x->up, NULL);
    /* One call per row, on any number of threads: an element then never depends on the rows beside it. */
    if (rows == 1) gate_row(&gating, 0, 0);
    else gemm_parallel(g, rows, gate_row, &gating);
}

void expert_output(struct gemm *g, float *out, const struct expert *x, const float *h, int rows, bool fixed, float *scratch)
{
    int neurons = x->gate.rows;
    float *z = scratch, *up = scratch + (size_t)rows * (size_t)neurons;

    BUG_ON(!x->down.lines); /* not held by this rank */
    BUG_ON(x->down.cols != neurons || x->down.rows != x->gate.cols);
    BUG_ON(fixed && !x->keep);
    if (rows == 0) return;
    expert_neurons(g, z, up, x, h, rows);
    if (fixed) {
        for (int t = 0; t < rows; t++) {
            float *row = z + (size_t)t * (size_t)neurons;

            for (int j = 0; j < neurons; j++) {
                if (!x->keep[j]) row[j] = x->fill ? x->fill[j] : 0.0f;
            }
        }
    }
    struct rows in = {.x = z, .ld = (size_t)neurons, .n = rows, .cols = neurons};

    gemm_product(g, out, (size_t)x->down.rows, &in, &x->down, NULL);
}
