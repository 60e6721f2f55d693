#include "jobs/budget.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "model/forward.h"
#include "num/ops.h"

struct measuring {
    struct job *job;
    const struct cut *cut;
    struct model *m;
    struct routing all, some;
    struct batch batch;
    int layers, vocab;
    size_t width;
    float *kept;                  /* [layers][rows][D]: what enters every layer of the dense model */
    float *x, *h, *hidden;        /* [rows][D] */
    float *dense, *logits;        /* [rows][vocab]; dense as log probabilities */
    struct budget_curves *curves; /* NULL: all layers at once, with `active`, */
    const int *active;
    double whole; /* whose sum of KL this is */
    int64_t tokens;
    int steps, step; /* for the progress line */
};

/* ---- passes ---- */

static status run_layer(struct measuring *u, int l, const struct routing *how, struct err *e)
{
    int rows = u->batch.rows;
    status s = moe_begin(model_moe(u->m), 0, l, u->h, NULL, rows, how, e);

    return s ? s : moe_end(model_moe(u->m), 0, u->x, NULL, e);
}

/* x behind layer l - 1 goes through layers l .. L - 1; how: NULL for dense, else every layer's own k of `active`. */
static status run_from(struct measuring *u, int l, const int *active, bool keep, struct err *e)
{
    size_t bytes = (size_t)u->batch.rows * u->width * sizeof(float);

    for (; l < u->layers; l++) {
        struct routing how = u->all;

        if (stop_asked()) return err_set(e, STOPPED, "%s: stopped while choosing the budget; run it again", u->job->spec->source);
        if (active) how = u->some, how.active = active[l];
        if (keep) memcpy(u->kept + (size_t)l * (size_t)u->batch.rows * u->width, u->x, bytes);
        forward_attention(u->m, l, &u->batch, 0, u->batch.rows, u->x, u->h);
        if (run_layer(u, l, &how, e)) return e->code;
    }
    return OK;
}

static void find_logits(struct measuring *u, float *logits)
{
    forward_norm(u->m, u->x, u->batch.rows, u->hidden);
    forward_logits(u->m, u->hidden, u->batch.rows, logits);
    for (int t = 0; t < u->batch.rows; t++) {
        float *row = logits + (size_t)t * (size_t)u->vocab, sum = (float)log_sum_exp(row, u->vocab);

        for (int v = 0; v < u->vocab; v++) row[v] -= sum;
    }
}

/* Sum over the rows of KL(dense || what x gives). */
static double find_kl(struct measuring *u)
{
    double sum = 0;

    find_logits(u, u->logits);
    for (size_t i = 0; i < (size_t)u->batch.rows * (size_t)u->vocab; i++)
        sum += exp((double)u->dense[i]) * ((double)u->dense[i] - (double)u->logits[i]);
    cluster_alive(u->job->cluster);
    u->step++;
    log_progress(u->job->log, "budget", u->step, u->steps, "%d of %d passes", u->step, u->steps);
    return sum;
}

/* All layers at once. */
static status run_whole(struct measuring *u, struct err *e)
{
    forward_embed(u->m, &u->batch, u->x);
    if (run_from(u, 0, u->active, false, e)) return e->code;
    u->whole += find_kl(u);
    return OK;
}

/* Layer l alone with k experts, for every point.  Its attention sees the dense model's keys and values again, which later layers' trials have replaced. */
static status run_alone(struct measuring *u, int l, struct err *e)
{
    size_t n = (size_t)u->batch.rows * u->width;
    struct budget_point *point = u->curves->point[l];
    float *behind = u->kept + (size_t)l * n, *input = u->kept + (size_t)u->layers * n; /* of the attention: x, and h */

    memcpy(u->x, behind, n * sizeof(float));
    forward_attention(u->m, l, &u->batch, 0, u->batch.rows, u->x, u->h);
    memcpy(behind, u->x, n * sizeof(float));
    memcpy(input, u->h, n * sizeof(float));
    for (int i = 0; i < BUDGET_POINTS - 1; i++) {
        struct routing how = u->some;

        if (i && point[i].k == point[i - 1].k) continue; /* finish_points() drops it */
        how.active = point[i].k;
        memcpy(u->x, behind, n * sizeof(float));
        memcpy(u->h, input, n * sizeof(float));
        if (run_layer(u, l, &how, e) || run_from(u, l + 1, NULL, false, e)) return e->code;
        point[i].loss += find_kl(u);
    }
    return OK;
}

/* ---- text ---- */

/* Whole windows, evenly out of the text. */
static int fill_batch(struct measuring *u, const struct corpus *text, int window, int64_t first, int64_t windows, int32_t *ids,
                      int32_t *input)
{
    const struct model_limits *limits = model_limits_of(u->m);
    const struct shape *s = model_shape(u->m);
    int32_t bos = s->bos >= 0 ? s->bos : s->eos[0], *position = ids + limits->rows, *session = position + limits->rows;
    int64_t all = (int64_t)corpus_windows(text, window);
    int n = 0, rows = 0;

    for (; n < limits->sessions && first + n < windows && rows + window <= limits->rows; n++) {
        int got = corpus_window(text, window, (size_t)((first + n) * all / windows), bos, input, input + window);

        for (int t = 0; t < got; t++, rows++) {
            ids[rows] = input[t];
            position[rows] = t;
            session[rows] = n;
        }
    }
    u->batch = (struct batch){.rows = rows, .token = ids, .position = position, .session = session};
    return n;
}

static status each_batch(struct measuring *u, const struct corpus *text, int window, struct err *e)
{
    const struct model_limits *limits = model_limits_of(u->m);
    int64_t all = (int64_t)corpus_windows(text, window), windows = (u->job->spec->factorize.budget_tokens + window - 1) / window;
    int32_t *ids = malloc(3 * (size_t)limits->rows * sizeof(*ids)), *input = malloc(2 * (size_t)window * sizeof(*input));
    status s = OK;

    BUG_ON(!ids || !input || window > limits->rows);
    if (windows > all) windows = all;
    u->steps = (int)((windows + limits->rows / window - 1) / (limits->rows / window)) *
               (u->curves ? u->layers * (BUDGET_POINTS - 1) : 1);
    u->step = 0;
    for (int64_t at = 0; !s && at < windows;) {
        at += fill_batch(u, text, window, at, windows, ids, input);
        forward_embed(u->m, &u->batch, u->x);
        s = run_from(u, 0, NULL, true, e);
        if (!s) find_logits(u, u->dense);
        if (!s && !u->curves) s = run_whole(u, e);
        for (int l = 0; !s && u->curves && l < u->layers; l++) s = run_alone(u, l, e);
        u->tokens += u->batch.rows;
    }
    log_progress_end(u->job->log);
    free(ids);
    free(input);
    return s;
}

/* ---- curves ---- */

static void set_points(struct measuring *u)
{
    static const int quarters[BUDGET_POINTS - 1] = {1, 2, 3, 4, 6, 8};

    for (int l = 0; l < u->layers; l++)
        for (int i = 0; i < BUDGET_POINTS; i++) {
            int k = i < BUDGET_POINTS - 1 ? (u->cut->active[l] * quarters[i] + 2) / 4 : u->cut->experts;

            k = k < 1 ? 1 : k > u->cut->experts ? u->cut->experts : k;
            u->curves->point[l][i] = (struct budget_point){k, 0};
        }
}

/* Means; k that stand twice are one point. */
static int finish_points(struct budget_point *p, int64_t tokens, int experts)
{
    int n = 0;

    for (int i = 0; i < BUDGET_POINTS; i++) {
        if (n && p[i].k == p[n - 1].k) continue;
        p[n] = p[i];
        p[n].loss = p[n].k == experts ? 0 : p[n].loss / (double)tokens;
        n++;
    }
    for (int i = n; i < BUDGET_POINTS; i++) p[i] = p[n - 1];
    return n;
}

static status measure(struct measuring *u, const struct cut *c, const struct budget_work *w, struct err *e)
{
    const struct shape *s = model_shape(w->m);
    size_t rows = (size_t)model_limits_of(w->m)->rows, width = (size_t)s->width, layers = (size_t)s->layers;
    struct router router = {
        .layers = s->layers, .experts = c->experts, .width = s->width, .weight = c->router, .bias = c->router_bias};
    status st = OK;

    u->job = w->job, u->cut = c, u->m = w->m, u->layers = s->layers, u->vocab = s->vocab, u->width = width;
    u->all = (struct routing){.route = ROUTE_ALL};
    u->some = (struct routing){.route = ROUTE_ROUTER, .router = &router, .scale = (float)w->scale, .compensate = c->compensate};
    u->kept = malloc((layers + 1) * rows * width * sizeof(float));
    u->x = malloc(rows * width * sizeof(float));
    u->h = malloc(rows * width * sizeof(float));
    u->hidden = malloc(rows * width * sizeof(float));
    u->dense = malloc(rows * (size_t)s->vocab * sizeof(float));
    u->logits = malloc(rows * (size_t)s->vocab * sizeof(float));
    if (!u->kept || !u->x || !u->h || !u->hidden || !u->dense || !u->logits)
        st = err_set(e, ERR_LIMIT, "no memory to choose the budget with %zu rows at once: lower limits.batch_rows", rows);
    if (!st) st = each_batch(u, w->text, w->window, e);
    free(u->kept);
    free(u->x);
    free(u->h);
    free(u->hidden);
    free(u->dense);
    free(u->logits);
    return st;
}

status budget_measure(struct budget_curves *out, const struct cut *c, const struct budget_work *w, struct err *e)
{
    struct measuring u = {.curves = out, .cut = c, .layers = model_shape(w->m)->layers};

    *out = (struct budget_curves){0};
    set_points(&u);
    if (measure(&u, c, w, e)) return e->code;
    out->tokens = u.tokens;
    for (int l = 0; l < u.layers; l++) out->n[l] = finish_points(out->point[l], u.tokens, c->experts);
    return OK;
}

status budget_whole(double *kl, const struct cut *c, const struct budget_work *w, const int *active, struct err *e)
{
    struct measuring u = {.active = active};

    if (measure(&u, c, w, e)) return e->code;
    *kl = u.whole / (double)u.tokens;
    return OK;
}

/* ---- choosing ---- */

struct json_t *budget_json(const struct budget_curves *curves, int layers, double uniform, double chosen)
{
    struct json_t *o = json_object_new(), *ks = json_array_new(), *kls = json_array_new();

    for (int l = 0; l < layers; l++) {
        struct json_t *k = json_array_new(), *kl = json_array_new();

        for (int i = 0; i < curves->n[l]; i++) {
            json_append(k, json_int_new(curves->point[l][i].k));
            json_append(kl, json_real_new(curves->point[l][i].loss));
        }
        json_append(ks, k);
        json_append(kls, kl);
    }
    json_put_int(o, "tokens", curves->tokens);
    json_put(o, "k", ks);
    json_put(o, "kl", kls);
    json_put_real(o, "kl_uniform", uniform);
    json_put_real(o, "kl_chosen", chosen);
    json_put_bool(o, "better", chosen < uniform);
    return o;
}

status choose_budget(struct cut *c, const struct budget_work *w, struct json_t *out, struct err *e)
{
    struct budget_curves *curves = malloc(sizeof(*curves));
    double cost[MODEL_LAYERS_MAX], total = 0, uniform = 0, chosen = 0;
    int k[MODEL_LAYERS_MAX], layers = c->dense->layers;
    status st;

    BUG_ON(!curves);
    st = budget_measure(curves, c, w, e);
    for (int l = 0; l < layers; l++) {
        cost[l] = (double)(c->dense->neurons - c->shared[l]) / c->experts;
        total += cost[l] * c->active[l];
    }
    if (!st) {
        budget_allocate(k, curves->point[0], layers, BUDGET_POINTS, cost, total);
        st = budget_whole(&uniform, c, w, c->active, e);
    }
    if (!st) st = budget_whole(&chosen, c, w, k, e);
    if (!st) {
        struct json_t *o = budget_json(curves, layers, uniform, chosen), *ks = json_array_new();

        for (int l = 0; l < layers; l++) json_append(ks, json_int_new(k[l]));
        json_put(o, "chosen", ks);
        json_put(out, "budget", o);
        if (chosen < uniform) memcpy(c->active, k, (size_t)layers * sizeof(*k));
    }
    free(curves);
    return st;
}
