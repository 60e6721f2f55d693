#include "train/stage2.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bits.h"
#include "moe/route.h"
#include "num/backward.h"
#include "num/ops.h"

enum { HEAD_ROWS = 128, ROWS_OF_TASK = 8 };

struct stage2 {
    struct router *router;
    struct model *model;
    struct moe *moe;
    struct gemm *gemm;
    const struct shape *shape;
    struct stage2_options o;
    struct arena *arena;
    struct router_model *trained;
    struct backward *backward;
    struct router_param means; /* n 0: none */
    struct stage2_tally tally;
    bool learned; /* there is a batch to update from */

    /* one pass: states, scores and sets of every layer */
    int32_t *token, *position, *session, *target;
    float *entrance, *middle; /* [layers + 1][rows][D], the last is behind the last layer; [layers][rows][D] */
    float *z;                 /* [layers][rows][N] */
    uint64_t *set;            /* [layers][rows][words] */
    double *spread;           /* [layers] standard deviation of the scores */
    uint64_t *load;           /* [layers][N] of the pass */
    double *pull;             /* [layers][N] of the budget and the load term: dL/dg of every row */
    double *group;            /* [groups] */
    /* one layer, or the head */
    float *h, *dx, *dh;            /* [rows][D]; dx goes through all layers */
    float *hidden, *taught;        /* [rows][D] behind the final norm, the student's and the teacher's */
    float *off, *turned;           /* [rows][N] 1 of an expert that is left out; something of a layer, transposed */
    float *dgate, *dz;             /* [rows][N] */
    float *low, *lifted;           /* [rows][low_rank], [rows][D] */
    float *logits, *taught_logits; /* [HEAD_ROWS][V] */
    double *kl, *nll;              /* [HEAD_ROWS] */
    float *threshold;              /* [layers] before a shift */
};

/* ---- memory ---- */

static void take(struct stage2 *s, struct arena_taker *t, const struct shape *y, const struct router *r)
{
    size_t rows = (size_t)s->o.rows, d = (size_t)y->width, n = (size_t)y->experts, layers = (size_t)y->layers;
    size_t words = (size_t)bits_words(y->experts), head = rows < HEAD_ROWS ? rows : HEAD_ROWS, vocab = (size_t)y->vocab;
    size_t low = (size_t)r->low_rank, widest = n > d ? n : d;

    if (s->o.train_means) {
        s->means = (struct router_param){.name = "mu", .value = r->mu, .n = layers * n * d};
        s->means.adam.n = s->means.n;
        s->means.gradient = arena_take(t, s->means.n, sizeof(float));
        s->means.adam.m = arena_take(t, s->means.n, sizeof(float));
        s->means.adam.v = arena_take(t, s->means.n, sizeof(float));
    }
    s->tally.share_of = arena_take(t, layers, sizeof(double));
    s->tally.load = arena_take(t, layers * n, sizeof(uint64_t));
    s->token = arena_take(t, rows, sizeof(int32_t));
    s->position = arena_take(t, rows, sizeof(int32_t));
    s->session = arena_take(t, rows, sizeof(int32_t));
    s->target = arena_take(t, rows, sizeof(int32_t));
    s->entrance = arena_take(t, (layers + 1) * rows * d, sizeof(float));
    s->middle = arena_take(t, layers * rows * d, sizeof(float));
    s->z = arena_take(t, layers * rows * n, sizeof(float));
    s->set = arena_take(t, layers * rows * words, sizeof(uint64_t));
    s->spread = arena_take(t, layers, sizeof(double));
    s->load = arena_take(t, layers * n, sizeof(uint64_t));
    s->pull = arena_take(t, layers * n, sizeof(double));
    s->group = arena_take(t, (size_t)(s->o.group ? s->o.groups : y->experts), sizeof(double));
    s->h = arena_take(t, rows * d, sizeof(float));
    s->dx = arena_take(t, rows * d, sizeof(float));
    s->dh = arena_take(t, rows * d, sizeof(float));
    s->hidden = arena_take(t, rows * d, sizeof(float));
    s->taught = arena_take(t, rows * d, sizeof(float));
    s->off = arena_take(t, rows * n, sizeof(float));
    s->turned = arena_take(t, rows * widest, sizeof(float));
    s->dgate = arena_take(t, rows * n, sizeof(float));
    s->dz = arena_take(t, rows * n, sizeof(float));
    s->low = arena_take(t, rows * low, sizeof(float));
    s->lifted = arena_take(t, low ? rows * d : 0, sizeof(float));
    s->logits = arena_take(t, head * vocab, sizeof(float));
    s->taught_logits = arena_take(t, head * vocab, sizeof(float));
    s->kl = arena_take(t, head, sizeof(double));
    s->nll = arena_take(t, head, sizeof(double));
    s->threshold = arena_take(t, layers, sizeof(float));
}

size_t stage2_cost(const struct shape *y, const struct router *r, const struct stage2_options *o)
{
    struct stage2 s = {.o = *o};
    struct arena_taker t = {0};

    take(&s, &t, y, r);
    return t.bytes;
}

status stage2_open(struct stage2 **out, struct router *r, struct model *m, const struct stage2_options *o, struct err *e)
{
    struct stage2 *s = calloc(1, sizeof(*s));
    struct arena_taker t = {.e = e};

    *out = NULL;
    BUG_ON(o->rows < 1 || o->sessions < 1 || !model_limits_of(m)->train || o->rows > model_limits_of(m)->rows);
    BUG_ON(o->train_means && !r->mu);
    BUG_ON(!(o->temperature > 0));
    if (!s) return err_set(e, ERR_LIMIT, "out of memory for the training");
    *s = (struct stage2){.router = r, .model = m, .moe = model_moe(m), .gemm = model_gemm(m), .shape = model_shape(m), .o = *o};
    if (s->o.target <= 0) s->o.target = shape_active_share(s->shape);
    if (arena_open(&s->arena, "end-to-end training", stage2_cost(s->shape, r, o), e)) goto fail;
    t.arena = s->arena;
    take(s, &t, s->shape, r);
    if (t.failed) goto fail;
    arena_freeze(s->arena);
    if (router_model_open(&s->trained, r, s->gemm, o->rows, e)) goto fail;
    if (backward_open(&s->backward, m, e)) goto fail;
    *out = s;
    return OK;
fail:
    stage2_close(s);
    return e->code;
}

void stage2_close(struct stage2 *s)
{
    if (!s) return;
    backward_close(s->backward);
    router_model_close(s->trained);
    arena_close(s->arena);
    free(s);
}

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

static float *scores_of(const struct stage2 *s, int layer)
{
    return s->z + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->experts;
}

static uint64_t *sets_of(const struct stage2 *s, int layer)
{
    return s->set + (size_t)layer * (size_t)s->o.rows * (size_t)bits_words(s->shape->experts);
}

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
    int n = r->experts, words = bits_words(n), end = (item + 1) * ROWS_OF_TASK < x->rows ? (item + 1) * ROWS_OF_TASK : x->rows;
    double by = s->spread[x->layer] > 0 ? 1 / (s->o.temperature * s->spread[x->layer]) : 0;

    (void)worker;
    for (int t = item * ROWS_OF_TASK; t < end; t++) {
        size_t at = (size_t)t * (size_t)n;
        const float *z = scores_of(s, x->layer) + at;
        double middle =
            r->by_threshold ? (double)r->threshold[x->layer] : middle_of(z, sets_of(s, x->layer) + (size_t)t * (size_t)words, n);

        for (int i = 0; i < n; i++) {
            double small = exp(-fabs(((double)z[i] - middle) * by)), slope = small / ((1 + small) * (1 + small)) * by;

            s->dz[at + (size_t)i] = (float)(slope * (double)s->dgate[at + (size_t)i]);
        }
    }
}

static void relax(struct stage2 *s, int layer, int rows)
{
    gemm_parallel(s->gemm, (rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, relax_task, &(struct relaxing){s, layer, rows});
}

static void choose(struct stage2 *s, int layer, int rows)
{
    int n = s->router->experts, words = bits_words(n);
    uint64_t *load = s->load + (size_t)layer * (size_t)n, *set = sets_of(s, layer);

    router_model_scores(s->trained, layer, s->h, rows, scores_of(s, layer));
    route_select(set, scores_of(s, layer), rows, n, s->shape->active_of[layer], s->router, layer);
    s->spread[layer] = deviation(scores_of(s, layer), (size_t)rows * (size_t)n);
    memset(load, 0, (size_t)n * sizeof(*load));
    for (int t = 0; t < rows; t++, set += words)
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) load[i]++;
}

/* off[t][i] = 1 - g. */
static void leave_out(struct stage2 *s, int layer, int rows)
{
    int n = s->router->experts, words = bits_words(n);
    const uint64_t *set = sets_of(s, layer);

    for (int t = 0; t < rows; t++, set += words)
        for (int i = 0; i < n; i++) s->off[(size_t)t * (size_t)n + (size_t)i] = bits_has(set, i) ? 0.0f : 1.0f;
}

/* ---- forward ---- */

static float *entrance_of(const struct stage2 *s, int layer)
{
    return s->entrance + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->width;
}

static float *middle_states(const struct stage2 *s, int layer)
{
    return s->middle + (size_t)layer * (size_t)s->o.rows * (size_t)s->shape->width;
}

static float scale_of(const struct stage2 *s, int layer)
{
    return s->router->scale ? s->router->scale[layer] : s->o.scale;
}

static const float *means_of(const struct stage2 *s, int layer)
{
    size_t of_layer = (size_t)s->shape->experts * (size_t)s->shape->width;

    return s->router->mu && s->o.compensate ? s->router->mu + (size_t)layer * of_layer : NULL;
}

/* What inference adds in moe_end(): here it changes in every step. */
static void compensate(struct stage2 *s, int layer, int rows, float *x)
{
    const struct router *r = s->router;
    const float *mu = means_of(s, layer);
    struct rows h = {.x = s->h, .ld = (size_t)r->width, .n = rows, .cols = r->width};

    if (mu) {
        leave_out(s, layer, rows);
        add_product(s, x, s->off, rows, r->experts, mu, r->width);
    }
    if (r->low_rank && s->o.compensate) {
        router_low_rank(r, s->gemm, layer, &h, s->low, s->lifted);
        add_to(x, s->lifted, (size_t)rows * (size_t)r->width);
    }
}

static status student(struct stage2 *s, enum stage2_mode mode, const struct batch *b, struct err *e)
{
    size_t states = (size_t)b->rows * (size_t)s->shape->width * sizeof(float);
    int layers = s->shape->layers;

    forward_embed(s->model, b, entrance_of(s, 0));
    for (int l = 0; l < layers; l++) {
        struct routing how = {.route = ROUTE_SETS, .scale = scale_of(s, l), .sets = sets_of(s, l)};
        float *x = entrance_of(s, l + 1);

        if (s->o.alive && s->o.alive(s->o.alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
        memcpy(x, entrance_of(s, l), states);
        forward_attention(s->model, l, b, 0, b->rows, x, s->h);
        memcpy(middle_states(s, l), x, states);
        choose(s, l, b->rows);
        if (mode == STAGE2_SHARES && l == layers - 1) break; /* nobody looks at the last output */
        if (moe_begin(s->moe, 0, l, s->h, NULL, b->rows, &how, e) || moe_end(s->moe, 0, x, NULL, e)) return e->code;
        compensate(s, l, b->rows, x);
    }
    return OK;
}

/* ---- the terms that know the whole pass ---- */

/* Mean over groups of (x_g - 1)^2, x_g = load of g / mean load, load in neurons; pull[i] += weight * rows * d/dg of a row. */
static double balance(struct stage2 *s, int layer, int rows, double weight)
{
    int n = s->shape->experts, groups = s->o.group ? s->o.groups : n;
    const int *group = s->o.group ? s->o.group + (size_t)layer * (size_t)n : NULL;
    const uint64_t *load = s->load + (size_t)layer * (size_t)n;
    double mean = 0, uneven = 0, along = 0;

    memset(s->group, 0, (size_t)groups * sizeof(*s->group));
    for (int i = 0; i < n; i++) s->group[group ? group[i] : i] += (double)load[i] * shape_expert_neurons(s->shape, layer, i);
    for (int g = 0; g < groups; g++) mean += s->group[g] / groups;
    if (mean <= 0) return 0;
    for (int g = 0; g < groups; g++) {
        double x = s->group[g] / mean;

        uneven += (x - 1) * (x - 1) / groups;
        along += (x - 1) * x / groups;
    }
    for (int i = 0; i < n; i++) {
        double x = s->group[group ? group[i] : i] / mean, slope = 2 / (groups * mean) * (x - 1 - along);

        s->pull[(size_t)layer * (size_t)n + (size_t)i] += weight * rows * slope * shape_expert_neurons(s->shape, layer, i);
    }
    return uneven;
}

/* Shares of the pass, and what the budget and the load term add to the loss of its rows. */
static double whole_pass(struct stage2 *s, int rows)
{
    const struct shape *y = s->shape;
    int layers = y->layers, n = y->experts;
    double total = 0, loss = 0, neurons = (double)rows * y->neurons;

    memset(s->pull, 0, (size_t)layers * (size_t)n * sizeof(*s->pull));
    for (int l = 0; l < layers; l++) {
        double active = (double)rows * y->shared[l];

        for (int i = 0; i < n; i++) {
            uint64_t load = s->load[(size_t)l * (size_t)n + (size_t)i];

            active += (double)load * shape_expert_neurons(y, l, i);
            s->tally.load[(size_t)l * (size_t)n + (size_t)i] += load;
        }
        s->tally.share_of[l] += active / y->neurons;
        total += active / neurons / layers;
        if (s->o.load > 0) loss += rows * s->o.load / layers * balance(s, l, rows, s->o.load / layers);
    }
    s->tally.share += rows * total;
    if (s->o.budget <= 0 || !s->router->by_threshold) return loss; /* top-k has the share it has */
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < n; i++)
            s->pull[(size_t)l * (size_t)n + (size_t)i] +=
                s->o.budget * 200 * (total - s->o.target) * shape_expert_neurons(y, l, i) / ((double)layers * y->neurons);
    return loss + rows * s->o.budget * 100 * (total - s->o.target) * (total - s->o.target);
}

/* ---- the head ---- */

struct losses {
    struct stage2 *s;
    const int32_t *target;
    int rows;
};

static void losses_task(void *ctx, int item, int worker)
{
    const struct losses *x = ctx;
    struct stage2 *s = x->s;
    int vocab = s->shape->vocab, end = (item + 1) * ROWS_OF_TASK < x->rows ? (item + 1) * ROWS_OF_TASK : x->rows;

    (void)worker;
    for (int t = item * ROWS_OF_TASK; t < end; t++) {
        size_t at = (size_t)t * (size_t)vocab;

        s->kl[t] = s->nll[t] = 0;
        distill_backward(s->logits + at, s->taught_logits + at, vocab, x->target[t], s->o.lm, &s->kl[t], &s->nll[t]);
    }
}

/* Losses of all rows, some rows of logits at a time; with `learn` what goes back to the states behind the last layer, in dx. */
static void head(struct stage2 *s, int rows, bool learn)
{
    size_t width = (size_t)s->shape->width;
    const float *last = entrance_of(s, s->shape->layers);

    forward_norm(s->model, last, rows, s->hidden);
    for (int first = 0; first < rows; first += HEAD_ROWS) {
        int n = rows - first < HEAD_ROWS ? rows - first : HEAD_ROWS;
        float *hidden = s->hidden + (size_t)first * width;

        forward_logits(s->model, hidden, n, s->logits);
        forward_logits(s->model, s->taught + (size_t)first * width, n, s->taught_logits);
        gemm_parallel(s->gemm, (n + ROWS_OF_TASK - 1) / ROWS_OF_TASK, losses_task, &(struct losses){s, s->target + first, n});
        for (int t = 0; t < n; t++) s->tally.kl += s->kl[t], s->tally.nll += s->nll[t];
        if (learn) backward_logits(s->backward, s->logits, n, hidden); /* its own rows are not needed any more */
    }
    if (learn) backward_norm(s->backward, s->hidden, last, rows, s->dx);
}

/* ---- backward ---- */

/* The means and the term of low rank, and all that pulls at gates; dgate becomes dL/dg. */
static void gates_backward(struct stage2 *s, int layer, int rows, bool below)
{
    const struct router *r = s->router;
    int n = r->experts, d = r->width;
    size_t of_layer = (size_t)layer * (size_t)n;
    const float *mu = means_of(s, layer);

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

static status layers_backward(struct stage2 *s, const struct batch *b, struct err *e)
{
    size_t states = (size_t)b->rows * (size_t)s->shape->width * sizeof(float);

    for (int l = s->shape->layers - 1; l >= 0; l--) {
        bool below = l > 0; /* nothing is trained in front of the first choice */

        if (s->o.alive && s->o.alive(s->o.alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
        backward_ffn_input(s->backward, l, middle_states(s, l), b->rows, s->h);
        memset(s->dh, 0, states);
        if (moe_backward(s->moe, l, s->h, sets_of(s, l), s->dx, b->rows, scale_of(s, l), below ? s->dh : NULL, s->dgate, e))
            return e->code;
        gates_backward(s, l, b->rows, below);
        relax(s, l, b->rows);
        router_model_backward(s->trained, l, s->h, s->dz, b->rows, below ? s->dh : NULL);
        if (!below) break;
        backward_ffn_norm(s->backward, l, s->dh, middle_states(s, l), b->rows, s->dx);
        backward_attention(s->backward, l, b, entrance_of(s, l), s->dx);
    }
    return OK;
}

/* ---- a batch ---- */

static status pass(struct stage2 *s, enum stage2_mode mode, const struct window *w, int n, int rows, struct err *e)
{
    struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session};
    const struct routing all = {.route = ROUTE_ALL};
    size_t at = 0;

    for (int i = 0; i < n; i++)
        for (int p = 0; p < w[i].n; p++, at++) {
            s->token[at] = w[i].token[p];
            s->target[at] = w[i].target[p];
            s->position[at] = p;
            s->session[at] = i;
        }
    if (mode != STAGE2_SHARES && forward(s->model, &b, &all, 1, s->taught, e)) return e->code;
    if (student(s, mode, &b, e)) return e->code;
    s->tally.loss += whole_pass(s, rows);
    if (mode == STAGE2_SHARES) return OK;
    head(s, rows, mode == STAGE2_LEARN);
    if (!isfinite(s->tally.kl) || !isfinite(s->tally.nll))
        return err_set(e, ERR_FORMAT, "the loss is not finite: the model's states or weights are not");
    return mode == STAGE2_LEARN ? layers_backward(s, &b, e) : OK;
}

static void begin(struct stage2 *s)
{
    size_t layers = (size_t)s->shape->layers, n = (size_t)s->shape->experts;
    double *share_of = s->tally.share_of;
    uint64_t *load = s->tally.load;

    memset(share_of, 0, layers * sizeof(*share_of));
    memset(load, 0, layers * n * sizeof(*load));
    s->tally = (struct stage2_tally){.share_of = share_of, .load = load};
    router_model_clear(s->trained);
    if (s->means.n) memset(s->means.gradient, 0, s->means.n * sizeof(float));
}

/* Sums become means. */
static void end(struct stage2 *s)
{
    double rows = (double)s->tally.rows;

    s->tally.kl /= rows;
    s->tally.nll /= rows;
    s->tally.share /= rows;
    s->tally.loss = s->tally.loss / rows + s->tally.kl + s->o.lm * s->tally.nll;
    for (int l = 0; l < s->shape->layers; l++) s->tally.share_of[l] /= rows;
}

status stage2_batch(struct stage2 *s, enum stage2_mode mode, const struct window *w, int n, struct err *e)
{
    BUG_ON(n < 1);
    begin(s);
    s->learned = false;
    for (int first = 0, next; first < n; first = next) {
        int rows = 0;

        for (next = first; next < n && next - first < s->o.sessions && rows + w[next].n <= s->o.rows; next++) rows += w[next].n;
        BUG_ON(next == first);
        if (pass(s, mode, w + first, next - first, rows, e)) return e->code;
        s->tally.rows += rows;
    }
    end(s);
    s->learned = mode == STAGE2_LEARN;
    return OK;
}

double stage2_update(struct stage2 *s, double learning_rate)
{
    struct adamw_options without_decay = s->o.adamw;
    double squares = 0, rows = (double)s->tally.rows;

    BUG_ON(!s->learned);
    s->learned = false;
    if (s->o.train_router) squares += router_model_squares(s->trained);
    if (s->means.n) squares += sum_of_squares(s->means.gradient, s->means.n);
    double norm = sqrt(squares) / rows, scale = clip_scale(norm, s->o.clip) / rows;

    without_decay.weight_decay = 0;
    if (s->o.train_router) router_model_step(s->trained, scale, learning_rate, &s->o.adamw);
    else router_model_set_steps(s->trained, router_model_steps(s->trained) + 1);
    if (s->means.n)
        adamw_step(&s->means.adam, s->means.value, s->means.gradient, scale, learning_rate * s->o.means_rate, &without_decay);
    return norm;
}

const struct stage2_tally *stage2_tally(const struct stage2 *s)
{
    return &s->tally;
}

/* ---- thresholds, and their common shift ---- */

status stage2_thresholds(struct stage2 *s, const struct window *w, int n, struct err *e)
{
    int rows = 0;

    for (int i = 0; i < n; i++) rows += w[i].n;
    BUG_ON(rows > s->o.rows || n > s->o.sessions || s->router->by_threshold);
    if (stage2_batch(s, STAGE2_SHARES, w, n, e)) return e->code;
    for (int l = 0; l < s->shape->layers; l++)
        s->router->threshold[l] = route_threshold(scores_of(s, l), rows, s->shape->experts, s->shape->active_of[l]);
    s->router->by_threshold = true;
    return OK;
}

/* over: share - target */
static status share_at(struct stage2 *s, const struct window *w, int n, double shift, double *over, struct err *e)
{
    for (int l = 0; l < s->shape->layers; l++) s->router->threshold[l] = (float)((double)s->threshold[l] + shift);
    if (stage2_batch(s, STAGE2_SHARES, w, n, e)) return e->code;
    *over = s->tally.share - s->o.target;
    return OK;
}

/* The share falls while thresholds rise, though later layers see other states then.  First steps that grow until they have gone too far, then cuts of what is between by a
 * straight line, which halves the weight of an end that stays (the Illinois rule). */
status stage2_shift(struct stage2 *s, const struct window *w, int n, double *shift, struct err *e)
{
    enum { STEPS = 10, CUTS = 10 };
    const double enough = 2e-4;
    double at = 0, over = 0, before = 0, was = 0, step = 0; /* over: share - target; before, was: at the other end */
    status code;

    BUG_ON(!s->router->by_threshold);
    memcpy(s->threshold, s->router->threshold, (size_t)s->shape->layers * sizeof(float));
    if ((code = share_at(s, w, n, 0, &over, e))) goto out;
    for (int l = 0; l < s->shape->layers; l++) step = fmax(step, 0.02 * s->spread[l]);
    step = over > 0 ? step : -step;
    for (int i = 0; i < STEPS && fabs(over) > enough && (i == 0 || over * before > 0); i++, step *= 2) {
        before = over, was = at;
        at += step;
        if ((code = share_at(s, w, n, at, &over, e))) goto out;
    }
    for (int i = 0; i < CUTS && fabs(over) > enough && over * before < 0; i++) {
        double middle = at - over * (at - was) / (over - before), found = 0;

        if ((code = share_at(s, w, n, middle, &found, e))) goto out;
        if (found * over < 0) was = at, before = over;
        else before /= 2;
        at = middle, over = found;
    }
    *shift = at;
out:
    if (code) memcpy(s->router->threshold, s->threshold, (size_t)s->shape->layers * sizeof(float));
    return code;
}

/* ---- state ---- */

int stage2_params(struct stage2 *s, struct router_param *out[STAGE2_PARAMS])
{
    int n = router_model_params(s->trained, out);

    if (s->means.n) out[n++] = &s->means;
    return n;
}

int stage2_arrays(struct stage2 *s, struct checkpoint_array out[STAGE2_ARRAYS])
{
    int n = router_model_arrays(s->trained, out);

    if (!s->means.n) return n;
    out[n++] = (struct checkpoint_array){"router.mu", s->means.value, s->means.n};
    out[n++] = (struct checkpoint_array){"mu.m", s->means.adam.m, s->means.n};
    out[n++] = (struct checkpoint_array){"mu.v", s->means.adam.v, s->means.n};
    return n;
}

int64_t stage2_steps(const struct stage2 *s)
{
    return router_model_steps(s->trained);
}

void stage2_set_steps(struct stage2 *s, int64_t steps)
{
    router_model_set_steps(s->trained, steps);
    s->means.adam.steps = steps;
}
