#include "train/stage1.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bits.h"
#include "model/forward.h"
#include "num/gemm.h"
#include "num/ops.h"
#include "train/loss.h"
#include "train/router_model.h"

struct stage1 {
    struct router *router;
    struct model *model;
    struct gemm *gemm;
    struct stage1_options o;
    struct arena *arena;
    struct router_model *trained;

    double row_weight; /* 1 / rows of the batch */
    struct stage1_tally tally;
    int64_t *common; /* [layers] */
    double *weight;  /* [layers] of the batch's rows */

    /* one pass */
    float *x, *h, *y;         /* [rows, D] */
    float *z, *dz, *score;    /* [rows, N] */
    double *row;              /* [rows] weights */
    uint64_t *label, *chosen; /* [rows][words] */
    int32_t *token, *position, *session;
};

static status take_memory(struct stage1 *s, struct err *e)
{
    size_t layers = (size_t)s->router->layers, n = (size_t)s->router->experts, d = (size_t)s->router->width,
           rows = (size_t)s->o.rows;
    size_t words = rows * (size_t)bits_words(s->router->experts), states = s->model ? rows * d : 0, ids = s->model ? rows : 0;
    const struct {
        void *where; /* of a pointer */
        size_t n, size;
    } wanted[] = {
        {&s->tally.loss, layers, sizeof(double)},
        {&s->tally.agreement, layers, sizeof(double)},
        {&s->tally.load, layers * n, sizeof(uint64_t)},
        {&s->common, layers, sizeof(int64_t)},
        {&s->weight, layers, sizeof(double)},
        {&s->row, rows, sizeof(double)},
        {&s->x, states, sizeof(float)},
        {&s->h, states, sizeof(float)},
        {&s->y, states, sizeof(float)},
        {&s->z, rows * n, sizeof(float)},
        {&s->dz, rows * n, sizeof(float)},
        {&s->score, rows * n, sizeof(float)},
        {&s->label, words, sizeof(uint64_t)},
        {&s->chosen, words, sizeof(uint64_t)},
        {&s->token, ids, sizeof(int32_t)},
        {&s->position, ids, sizeof(int32_t)},
        {&s->session, ids, sizeof(int32_t)},
    };
    enum { WANTED = sizeof(wanted) / sizeof(wanted[0]) };
    size_t total = 0;

    for (int i = 0; i < WANTED; i++) total += arena_cost(wanted[i].n, wanted[i].size);
    if (arena_open(&s->arena, "stage 1", total, e)) return e->code;
    for (int i = 0; i < WANTED; i++) {
        void *p = arena_alloc(s->arena, wanted[i].n, wanted[i].size, e);

        if (!p) return e->code;
        memcpy(wanted[i].where, &p, sizeof(p));
    }
    arena_freeze(s->arena);
    return OK;
}

status stage1_open(struct stage1 **out, struct router *r, struct model *m, struct gemm *g, const struct stage1_options *o,
                   struct err *e)
{
    struct stage1 *s = calloc(1, sizeof(*s));

    *out = NULL;
    BUG_ON(!s || o->rows < 1 || o->sessions < 1);
    for (int l = 0; l < r->layers; l++) BUG_ON(o->active[l] < 1 || o->active[l] > r->experts);
    *s = (struct stage1){.router = r, .model = m, .gemm = g, .o = *o};
    if (take_memory(s, e) || router_model_open(&s->trained, r, g, o->rows, e)) {
        stage1_close(s);
        return e->code;
    }
    *out = s;
    return OK;
}

void stage1_close(struct stage1 *s)
{
    if (!s) return;
    router_model_close(s->trained);
    arena_close(s->arena);
    free(s);
}

void stage1_begin(struct stage1 *s, int64_t rows)
{
    size_t layers = (size_t)s->router->layers;

    BUG_ON(rows < 1);
    s->row_weight = 1.0 / (double)rows;
    s->tally.rows = rows;
    memset(s->tally.loss, 0, layers * sizeof(double));
    memset(s->tally.load, 0, layers * (size_t)s->router->experts * sizeof(uint64_t));
    memset(s->common, 0, layers * sizeof(int64_t));
    memset(s->weight, 0, layers * sizeof(double));
    router_model_clear(s->trained);
}

static double loss_of(const struct stage1 *s, const uint64_t *label, const float *value, int rows)
{
    int n = s->router->experts;

    switch (s->o.loss) {
    case LOSS_PAPER:
        return loss_paper(s->dz, s->z, label, rows, n, s->row);
    case LOSS_BCE:
        return loss_bce(s->dz, s->z, label, rows, n, s->row);
    case LOSS_LISTWISE:
        return loss_listwise(s->dz, s->z, value, rows, n, s->row);
    case LOSS_REGRESSION:
        return loss_regression(s->dz, s->z, value, rows, n, s->row);
    }
    return 0;
}

void stage1_weights(const struct stage1 *s, const float *y, int rows, double *weight)
{
    size_t d = (size_t)s->router->width;

    BUG_ON(!y && s->o.token_weights != TOKENS_EVEN);
    for (int t = 0; t < rows; t++) {
        double squares = s->o.token_weights == TOKENS_EVEN ? 1 : sum_of_squares(y + (size_t)t * d, d);

        weight[t] = s->o.token_weights == TOKENS_LENGTH ? sqrt(squares) : squares;
    }
}

void stage1_learn(struct stage1 *s, enum stage1_mode mode, int layer, const float *h, const float *y, const uint64_t *label,
                  const float *value, int rows)
{
    int n = s->router->experts, words = bits_words(n);
    size_t at = (size_t)layer * (size_t)n;

    BUG_ON(rows > s->o.rows || layer < 0 || layer >= s->router->layers || (s->o.loss >= LOSS_LISTWISE && !value));
    router_model_scores(s->trained, layer, h, rows, s->z);
    stage1_weights(s, y, rows, s->row);
    for (int t = 0; t < rows; t++) {
        s->weight[layer] += s->row[t];
        s->row[t] *= s->row_weight;
    }
    s->tally.loss[layer] += loss_of(s, label, value, rows);
    for (int t = 0; t < rows; t++) {
        uint64_t *set = s->chosen + (size_t)t * (size_t)words;

        top_k(set, s->z + (size_t)t * (size_t)n, n, s->o.active[layer]);
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) s->tally.load[at + (size_t)i]++;
    }
    s->common[layer] += sets_common(s->chosen, label, rows, n);
    if (mode == STAGE1_LEARN) router_model_backward(s->trained, layer, h, s->dz, rows, NULL);
}

void stage1_end(struct stage1 *s)
{
    for (int l = 0; l < s->router->layers && s->o.token_weights != TOKENS_EVEN; l++) {
        double by = s->weight[l] > 0 ? (double)s->tally.rows / s->weight[l] : 0;

        s->tally.loss[l] *= by;
        router_model_scale(s->trained, l, by);
    }
    for (int l = 0; l < s->router->layers; l++)
        s->tally.agreement[l] = (double)s->common[l] / ((double)s->tally.rows * s->o.active[l]);
}

status stage1_teach(struct stage1 *s, int layer, const float *h, const float *y, int rows, const uint64_t **label,
                    const float **value, struct err *e)
{
    struct moe *moe = model_moe(s->model);
    int n = s->router->experts, k = s->o.active[layer];
    status st = OK;

    *label = s->label;
    *value = NULL;
    switch (s->o.labels) {
    case LABELS_GRAM:
        return moe_gram_sets(moe, layer, h, rows, k, s->o.compensate, s->label, e);
    case LABELS_PAPER:
        st = moe_paper_scores(moe, layer, h, y, rows, k, s->score, e);
        break;
    case LABELS_ENERGY:
    case LABELS_NORM:
        st = moe_values(moe, s->o.labels == LABELS_NORM ? MOE_NORM : MOE_ENERGY, layer, h, rows, s->score, e);
        *value = s->score;
        break;
    }
    for (int t = 0; !st && t < rows; t++)
        top_k(s->label + (size_t)t * (size_t)bits_words(n), s->score + (size_t)t * (size_t)n, n, k);
    return st;
}

/* The dense model over `rows` rows of whole windows, each window a session of its own. */
static status run_pass(struct stage1 *s, enum stage1_mode mode, const struct window *w, int n, int rows, float *kept,
                       size_t stride, struct err *e)
{
    struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session};
    int layers = s->router->layers, experts = s->router->experts;
    size_t d = (size_t)s->router->width, at = 0;

    for (int i = 0; i < n; i++) {
        for (int p = 0; p < w[i].n; p++, at++) {
            s->token[at] = w[i].token[p];
            s->position[at] = p;
            s->session[at] = i;
        }
    }
    forward_embed(s->model, &b, s->x);
    for (int l = 0; l < layers; l++) {
        if (s->o.alive && s->o.alive(s->o.alive_ctx)) return err_set(e, STOPPED, "stopped in layer %d", l);
        forward_attention(s->model, l, &b, 0, rows, s->x, s->h);
        if (mode == STAGE1_SCORES) {
            router_model_scores(s->trained, l, s->h, rows, s->z);
            memcpy(kept + (size_t)l * stride, s->z, (size_t)rows * (size_t)experts * sizeof(float));
            if (l == layers - 1) break; /* nobody looks at the last output */
        }
        if (moe_dense(model_moe(s->model), l, s->h, rows, s->y, e)) return e->code;
        if (mode != STAGE1_SCORES) {
            const uint64_t *label;
            const float *value;

            if (stage1_teach(s, l, s->h, s->y, rows, &label, &value, e)) return e->code;
            stage1_learn(s, mode, l, s->h, s->y, label, value, rows);
            if (!isfinite(s->tally.loss[l]))
                return err_set(e, ERR_FORMAT,
                               "layer %d: the loss of the router is not finite: the model's states or weights are not", l);
        }
        for (size_t i = 0; i < (size_t)rows * d; i++) s->x[i] += s->y[i];
    }
    return OK;
}

status stage1_batch(struct stage1 *s, enum stage1_mode mode, const struct window *w, int n, float *kept, struct err *e)
{
    size_t experts = (size_t)s->router->experts, done = 0;
    int64_t total = 0;

    BUG_ON(!s->model || n < 1 || (mode == STAGE1_SCORES) != (kept != NULL));
    for (int i = 0; i < n; i++) total += w[i].n;
    stage1_begin(s, total);
    for (int first = 0, next; first < n; first = next) {
        int rows = 0;

        for (next = first; next < n && next - first < s->o.sessions && rows + w[next].n <= s->o.rows; next++) rows += w[next].n;
        BUG_ON(next == first);
        if (run_pass(s, mode, w + first, next - first, rows, kept ? kept + done * experts : NULL, (size_t)total * experts, e))
            return e->code;
        done += (size_t)rows;
    }
    stage1_end(s);
    return OK;
}

double stage1_update(struct stage1 *s, double learning_rate)
{
    double norm = sqrt(router_model_squares(s->trained));

    router_model_step(s->trained, clip_scale(norm, s->o.clip), learning_rate, &s->o.adamw);
    return norm;
}

const struct stage1_tally *stage1_tally(const struct stage1 *s)
{
    return &s->tally;
}

int stage1_arrays(struct stage1 *s, struct checkpoint_array out[STAGE1_ARRAYS])
{
    return router_model_arrays(s->trained, out);
}

int64_t stage1_steps(const struct stage1 *s)
{
    return router_model_steps(s->trained);
}

void stage1_set_steps(struct stage1 *s, int64_t steps)
{
    router_model_set_steps(s->trained, steps);
}
