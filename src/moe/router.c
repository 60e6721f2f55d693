#include "moe/router.h"

#include <string.h>

#include "num/ops.h"

static const char *const names[ROUTER_KINDS] = {"linear", "bottleneck", "gate", "low_rank"};

const char *router_kind_name(enum router_kind k)
{
    return names[k];
}

int router_parts(struct router *r, struct router_part out[ROUTER_PARTS])
{
    size_t n = (size_t)r->experts, d = (size_t)r->width, c = (size_t)r->low_rank;
    const struct {
        bool has;
        struct router_part part;
    } all[ROUTER_PARTS] = {
        {true, {"weight", &r->weight, n, (size_t)router_inner(r)}},
        {true, {"bias", &r->bias, 1, n}},
        {true, {"threshold", &r->threshold, 1, 1}},
        {r->kind != ROUTER_LINEAR,
         {r->kind == ROUTER_LOW_RANK ? "projection" : "factor", &r->factor, (size_t)router_factors(r), d}},
        {r->mu, {"mu", &r->mu, n, d}},
        {c, {"inward", &r->inward, c, d}},
        {c, {"outward", &r->outward, d, c}},
        {c || r->offset, {"offset", &r->offset, 1, d}},
        {r->scale, {"scale", &r->scale, 1, 1}},
    };
    int found = 0;

    for (int i = 0; i < ROUTER_PARTS; i++)
        if (all[i].has) out[found++] = all[i].part;
    return found;
}

struct router_cost router_cost(const struct router *r, double active, bool means)
{
    return (struct router_cost){
        .scores = (double)r->experts * router_inner(r) + (double)router_factors(r) * r->width,
        .low_rank = 2.0 * r->low_rank * r->width,
        .additions = ((r->mu || means ? active : 0) + (r->offset ? 1 : 0)) * r->width,
    };
}

/* What lies between the two products: V h, and it packed tight. */
size_t router_room(const struct router *r, int rows)
{
    return (size_t)rows * (size_t)router_factors(r) * sizeof(float);
}

void router_bend(const struct router *r, float *a, const float *v, int rows)
{
    static const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    size_t rank = (size_t)r->rank, factors = (size_t)router_factors(r);

    /* In place a row of the gate lands left of where it was, on rows that are done. */
    for (int t = 0; t < rows; t++, a += rank, v += factors) {
        if (a != v) memmove(a, v, rank * sizeof(*a));
        if (r->kind == ROUTER_GATE) silu_mul(a, v + rank, rank);
        else if (r->kind == ROUTER_BOTTLENECK)
            for (size_t i = 0; i < rank; i += 16) silu_mul(a + i, ones, rank - i < 16 ? rank - i : 16);
    }
}

/* y = x M' (+ bias): packed, or as it stands in `all`. */
static void product(struct gemm *g, float *y, struct rows *x, const struct packed *packed, void *quantized, const float *all,
                    int layer, int rows, const float *bias)
{
    size_t cols = (size_t)x->cols;
    struct mat m = {all + (size_t)layer * (size_t)rows * cols, DT_F32, rows, x->cols, cols};

    if (!packed) {
        gemm_xwt(g, y, (size_t)rows, x->x, x->ld, x->n, &m, bias);
        return;
    }
    if (gemm_rows(g, x, packed->format, quantized)) gemm_quantize(g, x);
    gemm_product(g, y, (size_t)rows, x, packed, bias);
}

void router_inputs(const struct router *r, struct gemm *g, int layer, const float *h, int rows, float *in)
{
    struct rows x = {.x = h, .ld = (size_t)r->width, .n = rows, .cols = r->width};

    BUG_ON(r->kind == ROUTER_LINEAR);
    product(g, in, &x, NULL, NULL, r->factor, layer, router_factors(r), NULL);
    router_bend(r, in, in, rows);
}

void router_scores(const struct router *r, struct gemm *g, int layer, struct rows *h, void *quantized, void *room, float *z)
{
    const struct packed *second = r->packed ? r->packed + layer : NULL, *first = second ? second + r->layers : NULL;
    const float *bias = r->bias + (size_t)layer * (size_t)r->experts;
    float *v = room;

    BUG_ON(h->cols != r->width || layer < 0 || layer >= r->layers);
    if (h->n == 0) return;
    if (r->kind == ROUTER_LINEAR) {
        product(g, z, h, second, quantized, r->weight, layer, r->experts, bias);
        return;
    }
    product(g, v, h, first, quantized, r->factor, layer, router_factors(r), NULL);
    router_bend(r, v, v, h->n);
    struct rows inner = {.x = v, .ld = (size_t)r->rank, .n = h->n, .cols = r->rank};

    BUG_ON(second && second->format != FORMAT_F32); /* see router_pack() */
    product(g, z, &inner, second, NULL, r->weight, layer, r->experts, bias);
}

void router_low_rank(const struct router *r, struct gemm *g, int layer, const struct rows *h, float *a, float *y)
{
    const struct packed *in = r->packed ? r->packed + 2 * r->layers + layer : NULL, *out = in ? in + r->layers : NULL;
    const float *offset = r->offset + (size_t)layer * (size_t)r->width;
    struct rows of_h = {.x = h->x, .ld = h->ld, .n = h->n, .cols = h->cols};
    struct rows inner = {.x = a, .ld = (size_t)r->low_rank, .n = h->n, .cols = r->low_rank};

    if (!r->low_rank) {
        for (int t = 0; t < h->n; t++) memcpy(y + (size_t)t * (size_t)r->width, offset, (size_t)r->width * sizeof(*y));
        return;
    }
    BUG_ON(in && (in->format != FORMAT_F32 || out->format != FORMAT_F32));
    product(g, a, &of_h, in, NULL, r->inward, layer, r->low_rank, NULL);
    product(g, y, &inner, out, NULL, r->outward, layer, r->width, offset);
}
