#include "train/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "moe/route.h"
#include "num/moments.h"
#include "num/ops.h"
#include "train/loss.h"
#include "train/router_model.h"
#include "train/walk.h"

/* ---- the start ---- */

#define START_SIZE 1.0 /* of what goes into the silu of a bottleneck */

/* What least squares shall give for rows of a layer. */
static void targets(float *out, enum spec_loss loss, const uint64_t *label, const float *value, int rows, int n)
{
    for (int t = 0; t < rows; t++, out += n, label += bits_words(n)) {
        if (loss >= LOSS_LISTWISE) loss_targets(out, value + (size_t)t * (size_t)n, n);
        else
            for (int i = 0; i < n; i++) out[i] = bits_has(label, i) ? 2.0f : -2.0f;
        if (loss == LOSS_LISTWISE)
            for (int i = 0; i < n; i++) out[i] *= 2; /* log v, not half of it */
    }
}

struct start {
    struct router *r;
    struct stage1 *s;
    enum spec_loss loss;
    struct gemm *g;
    struct walk walk;
    struct moments of_h, of_inner; /* of what V takes, or W of a linear one; of what W takes behind V */
    float *y, *inner;              /* of a pass */
    double *row;
    float *weight; /* [rows] of all passes */
    float *target; /* [rows][N] of all passes: a bottleneck goes through them twice */
};

static int pass_rows(const struct start *f, int pass)
{
    return f->walk.first[pass + 1] - f->walk.first[pass];
}

static const float *pass_states(const struct start *f, int pass)
{
    return f->walk.h + (size_t)f->walk.first[pass] * (size_t)f->r->width;
}

static float *pass_targets(const struct start *f, int pass)
{
    return f->target + (size_t)f->walk.first[pass] * (size_t)f->r->experts;
}

static bool by_direction(const struct router *r) /* V comes from the linear solution */
{
    return r->kind == ROUTER_BOTTLENECK || r->kind == ROUTER_LOW_RANK;
}

static status start_rows(struct start *f, int layer, int pass, struct err *e)
{
    const struct router *r = f->r;
    int rows = pass_rows(f, pass);
    const float *h = pass_states(f, pass), *value;
    float *target = pass_targets(f, pass), *weight = f->weight + f->walk.first[pass];
    const uint64_t *label;

    if (moe_dense(model_moe(f->walk.model), layer, h, rows, f->y, e) ||
        stage1_teach(f->s, layer, h, f->y, rows, &label, &value, e))
        return e->code;
    stage1_weights(f->s, f->y, rows, f->row);
    for (int t = 0; t < rows; t++) weight[t] = (float)f->row[t];
    targets(target, f->loss, label, value, rows, r->experts);
    if (r->kind != ROUTER_GATE) moments_add(&f->of_h, h, target, weight, rows);
    add_to(f->walk.x + (size_t)f->walk.first[pass] * (size_t)r->width, f->y, (size_t)rows * (size_t)r->width);
    return OK;
}

/* silu is nearly linear where its argument is small: the directions of a bottleneck become such that V h has START_SIZE as root of the mean square. */
static void scale_directions(struct start *f, int layer)
{
    struct router *r = f->r, plain = *r;
    size_t rank = (size_t)r->rank, width = (size_t)r->width;
    float *v = r->factor + (size_t)layer * rank * width;
    double *squares = calloc(rank, sizeof(*squares));

    BUG_ON(!squares);
    plain.kind = ROUTER_LOW_RANK;
    for (int p = 0; p < f->walk.passes; p++) {
        router_inputs(&plain, f->g, layer, pass_states(f, p), pass_rows(f, p), f->inner);
        for (size_t i = 0; i < (size_t)pass_rows(f, p) * rank; i++) squares[i % rank] += (double)f->inner[i] * f->inner[i];
    }
    for (size_t j = 0; j < rank; j++) {
        double size = sqrt(squares[j] / (double)f->walk.rows);

        for (size_t d = 0; d < width && size > 0; d++) v[j * width + d] = (float)(v[j * width + d] * START_SIZE / size);
    }
    free(squares);
}

/* W and b for the V that there is. */
static status solve_behind(struct start *f, int layer, double ridge, struct err *e)
{
    struct router *r = f->r;
    size_t n = (size_t)r->experts, l = (size_t)layer;

    moments_clear(&f->of_inner);
    for (int p = 0; p < f->walk.passes; p++) {
        router_inputs(r, f->g, layer, pass_states(f, p), pass_rows(f, p), f->inner);
        moments_add(&f->of_inner, f->inner, pass_targets(f, p), f->weight + f->walk.first[p], pass_rows(f, p));
    }
    return moments_solve(&f->of_inner, ridge, r->weight + l * n * (size_t)r->rank, r->bias + l * n, e);
}

static status start_layer(struct start *f, int layer, double ridge, struct err *e)
{
    struct router *r = f->r;
    size_t n = (size_t)r->experts, inner = (size_t)router_inner(r), l = (size_t)layer;
    float *weight = r->weight + l * n * inner, *bias = r->bias + l * n;

    if (r->kind == ROUTER_LINEAR) return moments_solve(&f->of_h, ridge, weight, bias, e);
    if (by_direction(r) && moments_reduced(&f->of_h, ridge, r->rank, r->factor + l * inner * (size_t)r->width, weight, bias, e))
        return e->code;
    if (r->kind == ROUTER_LOW_RANK) return OK;
    if (r->kind == ROUTER_BOTTLENECK) scale_directions(f, layer);
    return solve_behind(f, layer, ridge, e);
}

static status start_layers(struct start *f, const struct fit_options *o, struct err *e)
{
    struct router *r = f->r;

    for (int l = 0; l < r->layers; l++) {
        if (r->kind != ROUTER_GATE) moments_clear(&f->of_h);
        walk_attention(&f->walk, l);
        for (int p = 0; p < f->walk.passes; p++) {
            if (o->alive && o->alive(o->alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
            if (start_rows(f, l, p, e)) return e->code;
        }
        if (start_layer(f, l, o->ridge, e)) return e->code;
    }
    return OK;
}

status fit_start(struct router *r, struct stage1 *s, enum spec_loss loss, struct model *m, struct gemm *g, const struct window *w,
                 int n, const struct fit_options *o, struct err *e)
{
    struct start f = {.r = r, .s = s, .loss = loss, .g = g};
    size_t rows = (size_t)o->rows;
    status st = walk_open(&f.walk, m, w, n, o->rows, o->sessions, e);

    if (!st && r->kind != ROUTER_GATE) st = moments_open(&f.of_h, r->width, r->experts, g, e);
    if (!st && (r->kind == ROUTER_GATE || r->kind == ROUTER_BOTTLENECK))
        st = moments_open(&f.of_inner, r->rank, r->experts, g, e);
    f.y = malloc(rows * (size_t)r->width * sizeof(float));
    f.row = malloc(rows * sizeof(double));
    f.weight = malloc((size_t)f.walk.rows * sizeof(float) + 1);
    f.inner = malloc(router_room(r, o->rows) + 1);
    f.target = malloc((size_t)f.walk.rows * (size_t)r->experts * sizeof(float) + 1);
    if (!st && (!f.y || !f.row || !f.weight || !f.inner || !f.target))
        st = err_set(e, ERR_LIMIT, "no memory for the start of the routers");
    if (!st) st = start_layers(&f, o, e);
    free(f.y);
    free(f.row);
    free(f.weight);
    free(f.inner);
    free(f.target);
    moments_close(&f.of_h);
    moments_close(&f.of_inner);
    walk_close(&f.walk);
    return st;
}

/* ---- compensation ---- */

struct compensation {
    struct router *r;
    struct moe *moe;
    struct gemm *g;
    const struct fit_options *o;
    struct routing how;
    struct walk walk;
    struct moments sums;
    float *y, *out, *base, *z; /* [rows of a pass][D] thrice; [rows][N] of all passes */
    uint64_t *set;
};

static const float *states(const struct compensation *c, int pass, int *rows)
{
    *rows = c->walk.first[pass + 1] - c->walk.first[pass];
    return c->walk.h + (size_t)c->walk.first[pass] * (size_t)c->r->width;
}

/* out = what the student gives, with this scale. */
static status student(struct compensation *c, int layer, int pass, float scale, bool low_rank, float *out, struct err *e)
{
    struct router r = *c->r;
    struct routing how = c->how;
    int rows;
    const float *h = states(c, pass, &rows);

    r.scale = NULL;
    if (!low_rank) r.low_rank = 0, r.offset = NULL;
    how.router = &r;
    how.scale = scale;
    memset(out, 0, (size_t)rows * (size_t)r.width * sizeof(*out));
    if (moe_begin(c->moe, 0, layer, h, NULL, rows, &how, e)) return e->code;
    return moe_end(c->moe, 0, out, c->set, e);
}

static float scale_of(const struct compensation *c, int layer)
{
    return c->r->scale ? c->r->scale[layer] : c->how.scale;
}

static status fit_threshold(struct compensation *c, int layer, struct err *e)
{
    struct router *r = c->r;
    void *room = malloc(router_room(r, c->o->rows) + 1);

    if (!room) return err_set(e, ERR_LIMIT, "no memory for the scores of a router");
    for (int p = 0; p < c->walk.passes; p++) {
        struct rows h = {.ld = (size_t)r->width, .cols = r->width};

        h.x = states(c, p, &h.n);
        router_scores(r, c->g, layer, &h, NULL, room, c->z + (size_t)c->walk.first[p] * (size_t)r->experts);
    }
    r->threshold[layer] = route_threshold(c->z, c->walk.rows, r->experts, c->o->active[layer]);
    free(room);
    return OK;
}

static status fit_means(struct compensation *c, int layer, struct err *e)
{
    struct router *r = c->r;
    size_t of_layer = (size_t)r->experts * (size_t)r->width;

    for (int p = 0; p < c->walk.passes; p++) {
        int rows;
        const float *h = states(c, p, &rows);

        if (student(c, layer, p, 1, false, c->out, e)) return e->code; /* for its sets */
        if (moe_rest_add(c->moe, layer, h, c->set, rows, p == 0, e)) return e->code;
    }
    if (moe_rest_means(c->moe, layer, r->mu + (size_t)layer * of_layer, e)) return e->code;
    return moe_select_layer(c->moe, r, layer, e);
}

/* s = 1 + e_A . (y - yhat at scale 1) / e_A . e_A. */
static status fit_scale(struct compensation *c, int layer, struct err *e)
{
    double along = 0, size = 0;

    for (int p = 0; p < c->walk.passes; p++) {
        int rows;
        const float *h = states(c, p, &rows);

        if (student(c, layer, p, 0, false, c->base, e) || student(c, layer, p, 1, false, c->out, e)) return e->code;
        if (moe_dense(c->moe, layer, h, rows, c->y, e)) return e->code;
        for (size_t i = 0; i < (size_t)rows * (size_t)c->r->width; i++) {
            double active = (double)c->out[i] - c->base[i];

            along += active * ((double)c->y[i] - c->out[i]);
            size += active * active;
        }
    }
    c->r->scale[layer] = size > 0 ? (float)(1 + along / size) : 1;
    return OK;
}

static status fit_low_rank(struct compensation *c, int layer, struct err *e)
{
    struct router *r = c->r;
    size_t width = (size_t)r->width, l = (size_t)layer, term = (size_t)r->low_rank * width;

    moments_clear(&c->sums);
    for (int p = 0; p < c->walk.passes; p++) {
        int rows;
        const float *h = states(c, p, &rows);

        if (student(c, layer, p, scale_of(c, layer), false, c->out, e) || moe_dense(c->moe, layer, h, rows, c->y, e))
            return e->code;
        for (size_t i = 0; i < (size_t)rows * width; i++) c->y[i] -= c->out[i];
        moments_add(&c->sums, h, c->y, NULL, rows);
    }
    return moments_reduced(&c->sums, c->o->ridge, r->low_rank, r->inward + l * term, r->outward + l * term, r->offset + l * width,
                           e);
}

/* d = the mean of what is missing. */
static status fit_constant(struct compensation *c, int layer, struct err *e)
{
    struct router *r = c->r;
    size_t width = (size_t)r->width;
    double *sum = calloc(width, sizeof(*sum));
    status st = sum ? OK : err_set(e, ERR_LIMIT, "no memory for the mean of %zu numbers", width);

    for (int p = 0; p < c->walk.passes && !st; p++) {
        int rows;
        const float *h = states(c, p, &rows);

        st = student(c, layer, p, scale_of(c, layer), false, c->out, e);
        if (!st) st = moe_dense(c->moe, layer, h, rows, c->y, e);
        for (size_t i = 0; i < (size_t)rows * width && !st; i++) sum[i % width] += (double)c->y[i] - c->out[i];
    }
    for (size_t d = 0; d < width && !st; d++) r->offset[(size_t)layer * width + d] = (float)(sum[d] / (double)c->walk.rows);
    free(sum);
    return st;
}

/* The student's output goes on to the next layer. */
static status go_on(struct compensation *c, int layer, double *error, struct err *e)
{
    double missing = 0, whole = 0;

    for (int p = 0; p < c->walk.passes; p++) {
        int rows;
        const float *h = states(c, p, &rows);
        size_t n = (size_t)c->r->width;

        if (student(c, layer, p, scale_of(c, layer), true, c->out, e)) return e->code;
        n *= (size_t)rows;
        add_to(c->walk.x + (size_t)c->walk.first[p] * (size_t)c->r->width, c->out, n);
        if (!error) continue;
        if (moe_dense(c->moe, layer, h, rows, c->y, e)) return e->code;
        for (size_t i = 0; i < n; i++) {
            missing += ((double)c->y[i] - c->out[i]) * ((double)c->y[i] - c->out[i]);
            whole += (double)c->y[i] * c->y[i];
        }
    }
    if (error) error[layer] = whole > 0 ? missing / whole : 0;
    return OK;
}

static status take(struct compensation *c, struct err *e)
{
    const struct router *r = c->r;
    size_t cells = (size_t)c->o->rows * (size_t)r->width;

    c->y = malloc(cells * sizeof(float));
    c->out = malloc(cells * sizeof(float));
    c->base = malloc(cells * sizeof(float));
    c->z = malloc((r->by_threshold ? (size_t)c->walk.rows * (size_t)r->experts : 1) * sizeof(float));
    c->set = malloc((size_t)c->o->rows * (size_t)bits_words(r->experts) * sizeof(uint64_t));
    if (!c->y || !c->out || !c->base || !c->z || !c->set)
        return err_set(e, ERR_LIMIT, "no memory to fit the compensation of %lld tokens", (long long)c->walk.rows);
    return r->low_rank ? moments_open(&c->sums, r->width, r->width, c->g, e) : OK;
}

static status fit_layers(struct compensation *c, double *error, struct err *e)
{
    const struct fit_options *o = c->o;
    struct router *r = c->r;
    status st = moe_select(c->moe, r, e);

    for (int l = 0; l < r->layers && !st; l++) {
        walk_attention(&c->walk, l);
        if (o->alive && o->alive(o->alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
        if (r->by_threshold) st = fit_threshold(c, l, e);
        if (!st && r->mu) st = fit_means(c, l, e);
        if (!st && r->scale) st = fit_scale(c, l, e);
        if (!st && r->offset) st = r->low_rank ? fit_low_rank(c, l, e) : fit_constant(c, l, e);
        if (!st) st = go_on(c, l, error, e);
    }
    return st;
}

status fit_compensation(struct router *r, struct model *m, struct gemm *g, const struct routing *routing, const struct window *w,
                        int n, const struct fit_options *o, double *error, struct err *e)
{
    struct compensation c = {.r = r, .moe = model_moe(m), .g = g, .o = o, .how = *routing};
    status st = walk_open(&c.walk, m, w, n, o->rows, o->sessions, e);

    c.how.route = ROUTE_ROUTER;
    c.how.compensate = routing->compensate || router_compensates(r);
    if (!st) st = take(&c, e);
    if (!st) st = fit_layers(&c, error, e);
    free(c.y);
    free(c.out);
    free(c.base);
    free(c.z);
    free(c.set);
    moments_close(&c.sums);
    walk_close(&c.walk);
    return st;
}

/* ---- memory ---- */

size_t fit_cost(const struct router *r, int64_t tokens, int rows)
{
    size_t width = (size_t)r->width, experts = (size_t)r->experts, sums = 0, low = 0;
    size_t of_token =
        (2 * width + experts + 1) * sizeof(float) + 3 * sizeof(int32_t); /* the walk's; targets or scores, weights */
    size_t of_row = 3 * width * sizeof(float) + sizeof(double) + (size_t)bits_words(r->experts) * sizeof(uint64_t);

    if (r->kind != ROUTER_GATE) sums += moments_cost(r->width, r->experts);
    if (r->kind == ROUTER_GATE || r->kind == ROUTER_BOTTLENECK) sums += moments_cost(r->rank, r->experts);
    if (r->low_rank) low = moments_cost(r->width, r->width);
    return (size_t)tokens * of_token + (size_t)rows * of_row + router_room(r, rows) + (sums > low ? sums : low);
}
