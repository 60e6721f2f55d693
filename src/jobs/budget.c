#include "jobs/budget.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "model/forward.h"
#include "moe/budget.h"
#include "num/ops.h"

struct measuring {
    struct job *job;
    struct cut *cut;
    struct model *m;
    struct routing all, some;
    struct batch batch;
    int layers, vocab;
    size_t width;
    float *kept;           /* [layers][rows][D]: what enters every layer of the dense model */
    float *x, *h, *hidden; /* [rows][D] */
    float *dense, *logits; /* [rows][vocab]; dense as log probabilities */
    struct budget_point *point;
    double uniform, chosen; /* sums of KL */
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
static status run_whole(struct measuring *u, const int *active, double *sum, struct err *e)
{
    forward_embed(u->m, &u->batch, u->x);
    if (run_from(u, 0, active, false, e)) return e->code;
    *sum += find_kl(u);
    return OK;
}

/* Layer l alone with k experts, for every point.  Its attention sees the dense model's keys and values again, which later layers' trials have replaced. */
static status run_alone(struct measuring *u, int l, struct err *e)
{
    size_t n = (size_t)u->batch.rows * u->width;
    struct budget_point *point = u->point + l * BUDGET_POINTS;
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

static status each_batch(struct measuring *u, const struct corpus *text, int window, const int *active, struct err *e)
{
    const struct model_limits *limits = model_limits_of(u->m);
    int64_t all = (int64_t)corpus_windows(text, window), windows = (u->job->spec->factorize.budget_tokens + window - 1) / window;
    int32_t *ids = malloc(3 * (size_t)limits->rows * sizeof(*ids)), *input = malloc(2 * (size_t)window * sizeof(*input));
    status s = OK;

    BUG_ON(!ids || !input || window > limits->rows);
    if (windows > all) windows = all;
    u->steps =
        (int)((windows + limits->rows / window - 1) / (limits->rows / window)) * (active ? 2 : u->layers * (BUDGET_POINTS - 1));
    u->step = 0;
    for (int64_t at = 0; !s && at < windows;) {
        at += fill_batch(u, text, window, at, windows, ids, input);
        forward_embed(u->m, &u->batch, u->x);
        s = run_from(u, 0, NULL, true, e);
        if (!s) find_logits(u, u->dense);
        if (active) {
            if (!s) s = run_whole(u, u->cut->active, &u->uniform, e);
            if (!s) s = run_whole(u, active, &u->chosen, e);
            continue;
        }
        for (int l = 0; !s && l < u->layers; l++) s = run_alone(u, l, e);
        u->tokens += u->batch.rows;
    }
    log_progress_end(u->job->log);
    free(ids);
    free(input);
    return s;
}

/* ---- choosing ---- */

static void set_points(struct measuring *u)
{
    static const int quarters[BUDGET_POINTS - 1] = {1, 2, 3, 4, 6, 8};

    for (int l = 0; l < u->layers; l++) {
        struct budget_point *p = u->point + l * BUDGET_POINTS;

        for (int i = 0; i < BUDGET_POINTS; i++) {
            int k = i < BUDGET_POINTS - 1 ? (u->cut->active[l] * quarters[i] + 2) / 4 : u->cut->experts;

            k = k < 1 ? 1 : k > u->cut->experts ? u->cut->experts : k;
            p[i] = (struct budget_point){k, 0};
        }
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

static struct json_t *numbers(const int *k, const struct budget_point *p, int n)
{
    struct json_t *a = json_array_new();

    for (int i = 0; i < n; i++) json_append(a, k ? json_int_new(k[i]) : json_real_new(p[i].loss));
    return a;
}

static void report(const struct measuring *u, const int *n, const int *k, struct json_t *out)
{
    struct json_t *o = json_object_new(), *ks = json_array_new(), *kls = json_array_new();

    for (int l = 0; l < u->layers; l++) {
        const struct budget_point *p = u->point + l * BUDGET_POINTS;
        int of[BUDGET_POINTS];

        for (int i = 0; i < n[l]; i++) of[i] = p[i].k;
        json_append(ks, numbers(of, NULL, n[l]));
        json_append(kls, numbers(NULL, p, n[l]));
    }
    json_put_int(o, "tokens", u->tokens);
    json_put(o, "k", ks);
    json_put(o, "kl", kls);
    json_put_real(o, "kl_uniform", u->uniform / (double)u->tokens);
    json_put_real(o, "kl_chosen", u->chosen / (double)u->tokens);
    json_put(o, "chosen", numbers(k, NULL, u->layers));
    json_put_bool(o, "better", u->chosen < u->uniform);
    json_put(out, "budget", o);
}

static void choose(const struct measuring *u, int *k)
{
    double cost[MODEL_LAYERS_MAX], total = 0;

    for (int l = 0; l < u->layers; l++) {
        cost[l] = (double)(u->cut->dense->neurons - u->cut->shared[l]) / u->cut->experts;
        total += cost[l] * u->cut->active[l];
    }
    budget_allocate(k, u->point, u->layers, BUDGET_POINTS, cost, total);
}

status choose_budget(struct cut *c, struct job *j, struct model *m, const struct corpus *text, int window, double scale,
                     struct json_t *out, struct err *e)
{
    const struct shape *s = model_shape(m);
    size_t rows = (size_t)model_limits_of(m)->rows, width = (size_t)s->width, layers = (size_t)s->layers;
    struct router router = {
        .layers = s->layers, .experts = c->experts, .width = s->width, .weight = c->router, .bias = c->router_bias};
    struct measuring u = {.job = j, .cut = c, .m = m, .layers = s->layers, .vocab = s->vocab, .width = width};
    int k[MODEL_LAYERS_MAX], n[MODEL_LAYERS_MAX];
    status st = OK;

    u.all = (struct routing){.route = ROUTE_ALL};
    u.some = (struct routing){.route = ROUTE_ROUTER, .router = &router, .scale = (float)scale, .compensate = c->compensate};
    u.kept = malloc((layers + 1) * rows * width * sizeof(float));
    u.x = malloc(rows * width * sizeof(float));
    u.h = malloc(rows * width * sizeof(float));
    u.hidden = malloc(rows * width * sizeof(float));
    u.dense = malloc(rows * (size_t)s->vocab * sizeof(float));
    u.logits = malloc(rows * (size_t)s->vocab * sizeof(float));
    u.point = calloc(layers * BUDGET_POINTS, sizeof(*u.point));
    if (!u.kept || !u.x || !u.h || !u.hidden || !u.dense || !u.logits || !u.point)
        st = err_set(e, ERR_LIMIT, "no memory to choose the budget with %zu rows at once: lower limits.batch_rows", rows);
    if (!st) {
        set_points(&u);
        st = each_batch(&u, text, window, NULL, e);
    }
    for (int l = 0; !st && l < u.layers; l++) n[l] = finish_points(u.point + l * BUDGET_POINTS, u.tokens, c->experts);
    if (!st) {
        choose(&u, k);
        st = each_batch(&u, text, window, k, e);
    }
    if (!st) {
        report(&u, n, k, out);
        if (u.chosen < u.uniform) memcpy(c->active, k, layers * sizeof(*k));
    }
    free(u.kept);
    free(u.x);
    free(u.h);
    free(u.hidden);
    free(u.dense);
    free(u.logits);
    free(u.point);
    return st;
}
