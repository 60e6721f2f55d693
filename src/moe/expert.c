#include "moe/expert.h"

#include "base/err.h"
#include "num/ops.h"

void expert_neurons(struct gemm *g, float *z, float *up, const struct expert *x, const float *h, int rows)
{
    size_t neurons = (size_t)x->gate.rows;
    struct rows in = {.x = h, .ld = (size_t)x->gate.cols, .n = rows, .cols = x->gate.cols};
    const struct packed *part[] = {&x->gate, &x->up};

    BUG_ON(!x->gate.lines || !x->up.lines); /* not held by this rank */
    BUG_ON(x->up.rows != x->gate.rows || x->up.cols != x->gate.cols);
    if (rows == 0) return;
    gemm_products(g, 2, (float *[]){z, up}, (size_t[]){neurons, neurons}, &in, part, NULL);
    silu_mul(z, up, (size_t)rows * neurons);
}
