#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "train/stage2_internal.h"

/* ---- memory ---- */

static void take(struct stage2 *s, struct arena_taker *t, const struct shape *y, const struct router *r)
{
    size_t rows = (size_t)s->o.rows, d = (size_t)y->width, n = (size_t)y->experts, layers = (size_t)y->layers;
    size_t words = (size_t)bits_words(y->experts), head = rows < STAGE2_HEAD_ROWS ? rows : STAGE2_HEAD_ROWS,
           vocab = (size_t)y->vocab;
    size_t low = (size_t)r->low_rank;

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
    s->taught_h = arena_take(t, rows * d, sizeof(float));
    s->off = arena_take(t, rows * n, sizeof(float));
    s->sums = arena_take(t, 2 * (rows / STAGE2_TASK_ROWS + 1), sizeof(double));
    s->dgate = arena_take(t, rows * n, sizeof(float));
    s->dz = arena_take(t, rows * n, sizeof(float));
    s->low = arena_take(t, rows * low, sizeof(float));
    s->lifted = arena_take(t, r->offset ? rows * d : 0, sizeof(float));
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
    if (!s) return err_set(e, ERR_LIMIT, "out of memory for the training");
    *s = (struct stage2){.router = r, .model = m, .moe = model_moe(m), .gemm = model_gemm(m), .shape = model_shape(m), .o = *o};
    stage2_set_temperature(s, o->temperature);
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
/* ---- forward: the student, and beside it the teacher, whose experts on other ranks are at work during the student's attention, and the other way round ---- */

enum { STUDENT, TEACHER }; /* slots */

/* Attention of a layer; in front of the first choice both have the same states. */
static void taught_attention(struct stage2 *s, int layer, const struct batch *b)
{
    size_t bytes = (size_t)b->rows * (size_t)s->shape->width * sizeof(float);

    if (layer > 0) {
        forward_attention(s->model, layer, b, 0, b->rows, s->taught, s->taught_h);
        return;
    }
    memcpy(s->taught, stage2_middle(s, 0), bytes);
    memcpy(s->taught_h, s->h, bytes);
}

/* Whether the student's weights are not the teacher's: then they take turns, and share nothing. */
static bool other_weights(const struct stage2 *s)
{
    return adapt_changes(s->o.adapt);
}

static status teacher_alone(struct stage2 *s, const struct batch *b, struct err *e)
{
    const struct routing all = {.route = ROUTE_ALL};

    if (adapt_use(s->o.adapt, false, e) || forward(s->model, b, &all, 2, s->taught_h, e)) return e->code;
    return adapt_use(s->o.adapt, true, e);
}

static status forwards(struct stage2 *s, enum stage2_mode mode, const struct batch *b, struct err *e)
{
    const struct routing all = {.route = ROUTE_ALL};
    size_t states = (size_t)b->rows * (size_t)s->shape->width * sizeof(float);
    bool teaches = mode != STAGE2_SHARES && !other_weights(s);
    int layers = s->shape->layers;

    if (mode != STAGE2_SHARES && !teaches && teacher_alone(s, b, e)) return e->code;
    forward_embed(s->model, b, stage2_entrance(s, 0));
    for (int l = 0; l < layers; l++) {
        struct routing how = {.route = ROUTE_SETS, .scale = stage2_scale(s, l), .sets = stage2_sets(s, l)};
        float *x = stage2_entrance(s, l + 1);

        if (s->o.alive && s->o.alive(s->o.alive_ctx)) {
            if (teaches && l > 0 && moe_end(s->moe, TEACHER, s->taught, NULL, e)) return e->code;
            return err_set(e, STOPPED, "stopped in layer %d", l);
        }
        memcpy(x, stage2_entrance(s, l), states);
        forward_attention(s->model, l, b, 0, b->rows, x, s->h);
        if (mode == STAGE2_LEARN) backward_keep(s->backward, l, b->rows);
        memcpy(stage2_middle(s, l), x, states);
        if (teaches && l > 0 && moe_end(s->moe, TEACHER, s->taught, NULL, e)) return e->code;
        stage2_choose(s, l, b->rows);
        if (mode == STAGE2_SHARES && l == layers - 1) break; /* nobody looks at the last output */
        if (moe_begin(s->moe, STUDENT, l, s->h, NULL, b->rows, &how, e)) return e->code;
        if (teaches) taught_attention(s, l, b);
        if (teaches && moe_begin(s->moe, TEACHER, l, s->taught_h, NULL, b->rows, &all, e)) return e->code;
        if (moe_end(s->moe, STUDENT, x, NULL, e)) return e->code;
        stage2_compensate(s, l, b->rows, x);
    }
    if (teaches && moe_end(s->moe, TEACHER, s->taught, NULL, e)) return e->code;
    if (teaches) forward_norm(s->model, s->taught, b->rows, s->taught_h);
    return OK;
}

/* ---- backward ---- */

static status layers_backward(struct stage2 *s, const struct batch *b, struct err *e)
{
    size_t states = (size_t)b->rows * (size_t)s->shape->width * sizeof(float);
    bool norms = adapt_learns(s->o.adapt, ADAPT_NORMS), experts = adapt_learns(s->o.adapt, ADAPT_EXPERTS);

    for (int l = s->shape->layers - 1; l >= 0; l--) {
        bool below = l > 0 || norms; /* nothing else is trained in front of the first choice */

        if (s->o.alive && s->o.alive(s->o.alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
        backward_ffn_input(s->backward, l, stage2_middle(s, l), b->rows, s->h);
        memset(s->dh, 0, states);
        if ((experts ? moe_backward_learn : moe_backward)(s->moe, l, s->h, stage2_sets(s, l), s->dx, b->rows, stage2_scale(s, l),
                                                          below ? s->dh : NULL, s->dgate, e))
            return e->code;
        if (s->o.adapt) adapt_term(s->o.adapt, l, s->h, s->dx, b->rows);
        if (s->o.adapt) adapt_scale(s->o.adapt, l, stage2_sets(s, l), s->dgate, b->rows);
        stage2_gates_backward(s, l, b->rows, below);
        stage2_relax(s, l, b->rows);
        router_model_backward(s->trained, l, s->h, s->dz, b->rows, below ? s->dh : NULL);
        if (!below) break;
        if (norms) adapt_norm(s->o.adapt, ADAPT_FFN, l, s->dh, stage2_middle(s, l), b->rows);
        backward_ffn_norm(s->backward, l, s->dh, stage2_middle(s, l), b->rows, s->dx);
        backward_attention(s->backward, l, b, stage2_entrance(s, l), s->dx);
        if (norms)
            adapt_norm(s->o.adapt, ADAPT_ATTENTION, l, backward_attention_normed(s->backward), stage2_entrance(s, l), b->rows);
    }
    return OK;
}
/* ---- a batch ---- */

/* What stage2_thresholds() will look at. */
static void keep_scores(struct stage2 *s, int rows)
{
    size_t n = (size_t)s->shape->experts, before = (size_t)s->tally.rows;

    for (int l = 0; l < s->shape->layers && s->scores; l++)
        memcpy(s->scores + ((size_t)l * s->score_rows + before) * n, stage2_scores(s, l), (size_t)rows * n * sizeof(float));
}

static status pass(struct stage2 *s, enum stage2_mode mode, const struct window *w, int n, int rows, struct err *e)
{
    struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session};
    size_t at = 0;

    for (int i = 0; i < n; i++)
        for (int p = 0; p < w[i].n; p++, at++) {
            s->token[at] = w[i].token[p];
            s->target[at] = w[i].target[p];
            s->position[at] = p;
            s->session[at] = i;
        }
    if (forwards(s, mode, &b, e)) return e->code;
    keep_scores(s, rows);
    s->tally.loss += stage2_whole_pass(s, rows);
    if (mode == STAGE2_SHARES) return OK;
    stage2_losses(s, rows, mode == STAGE2_LEARN);
    if (!isfinite(s->tally.kl) || !isfinite(s->tally.nll))
        return err_set(e, ERR_FORMAT, "the loss is not finite: the model's states or weights are not");
    return mode == STAGE2_LEARN ? layers_backward(s, &b, e) : OK;
}

static status begin(struct stage2 *s, enum stage2_mode mode, struct err *e)
{
    size_t layers = (size_t)s->shape->layers, n = (size_t)s->shape->experts;
    double *share_of = s->tally.share_of;
    uint64_t *load = s->tally.load;

    memset(share_of, 0, layers * sizeof(*share_of));
    memset(load, 0, layers * n * sizeof(*load));
    s->tally = (struct stage2_tally){.share_of = share_of, .load = load};
    router_model_clear(s->trained);
    if (s->means.n) memset(s->means.gradient, 0, s->means.n * sizeof(float));
    return mode == STAGE2_LEARN && s->o.adapt ? adapt_clear(s->o.adapt, e) : OK;
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
    s->learned = false;
    if (begin(s, mode, e)) return e->code;
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

status stage2_update(struct stage2 *s, double learning_rate, double *norm, struct err *e)
{
    struct adamw_options without_decay = s->o.adamw;
    int64_t steps = stage2_steps(s);
    double squares = 0, more = 0, rows = (double)s->tally.rows;

    BUG_ON(!s->learned);
    if (s->o.adapt && adapt_squares(s->o.adapt, &more, e)) return e->code;
    s->learned = false;
    if (s->o.train_router) squares += router_model_squares(s->trained);
    if (s->means.n) squares += sum_of_squares(s->means.gradient, s->means.n);
    *norm = sqrt(squares + more) / rows;
    double scale = clip_scale(*norm, s->o.clip) / rows;

    if (s->o.adapt && adapt_step(s->o.adapt, steps, scale, learning_rate, &s->o.adamw, e)) return e->code;
    without_decay.weight_decay = 0;
    if (s->o.train_router) router_model_step(s->trained, scale, learning_rate, &s->o.adamw);
    else router_model_set_steps(s->trained, steps + 1);
    if (s->means.n)
        adamw_step(&s->means.adam, s->means.value, s->means.gradient, scale, learning_rate * s->o.means_rate, &without_decay);
    return OK;
}

void stage2_set_temperature(struct stage2 *s, double temperature)
{
    BUG_ON(!(temperature > 0));
    s->temperature = temperature;
}

const struct stage2_tally *stage2_tally(const struct stage2 *s)
{
    return &s->tally;
}
/* ---- state ---- */

int stage2_params(struct stage2 *s, struct router_param *out[STAGE2_PARAMS])
{
    int n = router_model_params(s->trained, out);

    if (s->means.n) out[n++] = &s->means;
    return s->o.adapt ? n + adapt_params(s->o.adapt, out + n) : n;
}

int stage2_arrays(struct stage2 *s, struct checkpoint_array out[STAGE2_ARRAYS])
{
    int n = router_model_arrays(s->trained, out);

    if (s->means.n) {
        out[n++] = (struct checkpoint_array){"router.mu", s->means.value, s->means.n};
        out[n++] = (struct checkpoint_array){"mu.m", s->means.adam.m, s->means.n};
        out[n++] = (struct checkpoint_array){"mu.v", s->means.adam.v, s->means.n};
    }
    return s->o.adapt ? n + adapt_arrays(s->o.adapt, out + n) : n;
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
