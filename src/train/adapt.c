#include "train/adapt.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "num/backward.h"

enum { MIRRORS = 3 }; /* parameters, m, v */

struct adapt {
    struct model *model;
    struct router *router;
    struct moe *moe;
    struct gemm *gemm;
    const struct shape *shape;
    struct adapt_options o;
    struct router_param param[ADAPT_PARAMS];
    int params;
    struct router_param *norm[3], *inward, *outward, *offset, *scale; /* of these, or NULL */
    float *first; /* norms as the model was opened: those of param[0 .. 2], one behind the other */
    bool student;
    float *low, *dlow, *turned; /* [rows][c], the same, [c][D] */
    float *mirror[MIRRORS];     /* of all experts, or NULL */
    size_t floats;
};

static struct router_param *add(struct adapt *a, const char *name, float *value, size_t n, bool decays)
{
    struct router_param *p = &a->param[a->params++];

    *p = (struct router_param){.name = name, .value = value, .n = n, .decays = decays};
    p->adam.n = n;
    p->gradient = calloc(n, sizeof(float));
    p->adam.m = calloc(n, sizeof(float));
    p->adam.v = calloc(n, sizeof(float));
    return p;
}

static bool failed(const struct adapt *a)
{
    for (int i = 0; i < a->params; i++)
        if (!a->param[i].gradient || !a->param[i].adam.m || !a->param[i].adam.v) return true;
    return (a->o.norms && !a->first) || (a->inward && (!a->low || !a->dlow || !a->turned));
}

static void open_norms(struct adapt *a)
{
    static const char *const name[] = {"norm.attention", "norm.ffn", "norm.last"};
    size_t total = 0, at = 0;

    for (int i = 0; i < 3; i++) {
        size_t n = model_norms(a->model, (enum model_norm)i, NULL);
        float *value = malloc(n * sizeof(*value));

        if (value) model_norms(a->model, (enum model_norm)i, value);
        a->norm[i] = add(a, name[i], value, n, false);
        total += n;
    }
    a->first = malloc(total * sizeof(*a->first));
    for (int i = 0; i < 3 && a->first; at += a->norm[i++]->n)
        if (a->norm[i]->value) memcpy(a->first + at, a->norm[i]->value, a->norm[i]->n * sizeof(float));
}

static void open_term(struct adapt *a)
{
    struct router *r = a->router;
    size_t c = (size_t)r->low_rank, d = (size_t)r->width, layers = (size_t)r->layers;

    a->offset = add(a, "offset", r->offset, layers * d, false);
    if (!c) return;
    a->inward = add(a, "inward", r->inward, layers * c * d, true);
    a->outward = add(a, "outward", r->outward, layers * c * d, true);
    a->low = malloc((size_t)a->o.rows * c * sizeof(float));
    a->dlow = malloc((size_t)a->o.rows * c * sizeof(float));
    a->turned = malloc(c * d * sizeof(float));
}

static size_t expert_floats(const struct adapt *a)
{
    size_t n = 0;

    for (int l = 0; l < a->shape->layers; l++)
        for (int i = -1; i < a->shape->experts; i++) n += 3 * moe_adapted_floats(a->moe, l, i, MOE_ADAPTED_PARAM);
    return n;
}

status adapt_open(struct adapt **out, struct model *m, struct router *r, const struct adapt_options *o, struct err *e)
{
    struct adapt *a = calloc(1, sizeof(*a));

    *out = NULL;
    BUG_ON((o->experts && !model_limits_of(m)->adapt) || (o->scale && !r->scale));
    if (!a) return err_set(e, ERR_LIMIT, "out of memory for weights to be trained");
    *a = (struct adapt){
        .model = m, .router = r, .moe = model_moe(m), .gemm = model_gemm(m), .shape = model_shape(m), .o = *o, .student = true};
    if (o->norms) open_norms(a);
    if (o->term && r->offset) open_term(a);
    if (o->scale) a->scale = add(a, "scale", r->scale, (size_t)r->layers, false);
    if (o->experts) a->floats = expert_floats(a);
    if (failed(a)) {
        adapt_close(a);
        return err_set(e, ERR_LIMIT, "out of memory for weights to be trained");
    }
    *out = a;
    return OK;
}

void adapt_close(struct adapt *a)
{
    if (!a) return;
    for (int i = 0; i < a->params; i++) {
        free(a->param[i].gradient), free(a->param[i].adam.m), free(a->param[i].adam.v);
        for (int n = 0; n < 3; n++)
            if (a->norm[n] == &a->param[i]) free(a->param[i].value);
    }
    for (int i = 0; i < MIRRORS; i++) free(a->mirror[i]);
    free(a->first), free(a->low), free(a->dlow), free(a->turned);
    free(a);
}

bool adapt_changes(const struct adapt *a)
{
    return a && (a->o.norms || a->o.experts);
}

bool adapt_learns(const struct adapt *a, enum adapt_where where)
{
    return a && (where == ADAPT_NORMS ? a->o.norms : a->o.experts);
}

/* ---- which weights ---- */

static void use_norms(struct adapt *a)
{
    for (size_t i = 0, at = 0; i < 3 && a->norm[i]; at += a->norm[i++]->n)
        model_set_norms(a->model, (enum model_norm)i, a->student ? a->norm[i]->value : a->first + at);
}

status adapt_use(struct adapt *a, bool student, struct err *e)
{
    a->student = student;
    use_norms(a);
    return a->o.experts ? moe_adapt_use(a->moe, student, e) : OK;
}

/* ---- gradients ---- */

status adapt_clear(struct adapt *a, struct err *e)
{
    for (int i = 0; i < a->params; i++) memset(a->param[i].gradient, 0, a->param[i].n * sizeof(float));
    return a->o.experts ? moe_adapt_clear(a->moe, e) : OK;
}

void adapt_term(struct adapt *a, int layer, const float *h, const float *dy, int rows)
{
    const struct router *r = a->router;
    size_t c = (size_t)r->low_rank, d = (size_t)r->width, at = (size_t)layer * c * d;
    struct mat inward = {.data = r->inward + at, .dtype = DT_F32, .rows = (int)c, .cols = (int)d, .stride = d};
    struct mat outward = {.data = a->turned, .dtype = DT_F32, .rows = (int)c, .cols = (int)d, .stride = d};

    if (!a->offset) return;
    for (int t = 0; t < rows; t++)
        for (size_t i = 0; i < d; i++) a->offset->gradient[(size_t)layer * d + i] += dy[(size_t)t * d + i];
    if (!a->inward) return;
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < c; j++) a->turned[j * d + i] = r->outward[at + i * c + j];
    gemm_xwt(a->gemm, a->low, c, h, d, rows, &inward, NULL);
    gemm_xwt(a->gemm, a->dlow, c, dy, d, rows, &outward, NULL);
    gemm_atb(a->gemm, a->outward->gradient + at, dy, (int)d, a->low, (int)c, rows);
    gemm_atb(a->gemm, a->inward->gradient + at, a->dlow, (int)c, h, (int)d, rows);
}

/* With y = e_s + s sum_A e_i: dL/ds = sum_A <dy, e_i>. */
void adapt_scale(struct adapt *a, int layer, const uint64_t *set, const float *dgate, int rows)
{
    int n = a->router->experts, words = bits_words(n);
    float scale = a->router->scale ? a->router->scale[layer] : 0;
    double sum = 0;

    if (!a->scale || scale == 0) return; /* what a scale of 0 lets through says nothing of it */
    for (int t = 0; t < rows; t++, set += words, dgate += n)
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) sum += (double)dgate[i];
    a->scale->gradient[layer] += (float)(sum / (double)scale);
}

void adapt_norm(struct adapt *a, enum adapt_norm which, int layer, const float *dy, const float *x, int rows)
{
    size_t width = (size_t)a->shape->width;

    if (!a->norm[which]) return;
    rms_norm_weight_backward(a->norm[which]->gradient + (which == ADAPT_LAST ? 0 : (size_t)layer * width), dy, x, rows,
                             a->shape->width, a->shape->eps);
}

status adapt_squares(struct adapt *a, double *sum, struct err *e)
{
    double experts = 0;

    *sum = 0;
    for (int i = 0; i < a->params; i++) *sum += sum_of_squares(a->param[i].gradient, a->param[i].n);
    if (a->o.experts && moe_adapt_squares(a->moe, &experts, e)) return e->code;
    *sum += experts;
    return OK;
}

status adapt_step(struct adapt *a, int64_t steps, double gscale, double rate, const struct adamw_options *o, struct err *e)
{
    struct adamw_options without_decay = *o;

    without_decay.weight_decay = 0;
    for (int i = 0; i < a->params; i++) {
        struct router_param *p = &a->param[i];

        p->adam.steps = steps;
        adamw_step(&p->adam, p->value, p->gradient, gscale, p == a->offset ? rate * a->o.offset_rate : rate,
                   p->decays ? o : &without_decay);
    }
    use_norms(a);
    return a->o.experts ? moe_adapt_step(a->moe, steps, gscale, rate * a->o.expert_rate, o, e) : OK;
}

/* ---- state ---- */

int adapt_params(struct adapt *a, struct router_param *out[ADAPT_PARAMS])
{
    for (int i = 0; i < a->params; i++) out[i] = &a->param[i];
    return a->params;
}

int adapt_arrays(struct adapt *a, struct checkpoint_array out[ADAPT_ARRAYS])
{
    static const char *const moment[] = {"experts", "experts.m", "experts.v"};
    static const struct {
        const char *value, *m, *v;
    } name[] = {{"norm.attention", "norm.attention.m", "norm.attention.v"},
                {"norm.ffn", "norm.ffn.m", "norm.ffn.v"},
                {"norm.last", "norm.last.m", "norm.last.v"},
                {"offset", "offset.m", "offset.v"},
                {"inward", "inward.m", "inward.v"},
                {"outward", "outward.m", "outward.v"},
                {"scale", "scale.m", "scale.v"}};
    int n = 0;

    for (int i = 0; i < a->params; i++)
        for (size_t k = 0; k < sizeof(name) / sizeof(*name); k++) {
            struct router_param *p = &a->param[i];

            if (strcmp(p->name, name[k].value) != 0) continue;
            out[n++] = (struct checkpoint_array){name[k].value, p->value, p->n};
            out[n++] = (struct checkpoint_array){name[k].m, p->adam.m, p->n};
            out[n++] = (struct checkpoint_array){name[k].v, p->adam.v, p->n};
        }
    for (int i = 0; i < MIRRORS && a->mirror[i]; i++) out[n++] = (struct checkpoint_array){moment[i], a->mirror[i], a->floats};
    return n;
}

static void forget(struct adapt *a)
{
    for (int i = 0; i < MIRRORS; i++) {
        free(a->mirror[i]);
        a->mirror[i] = NULL;
    }
}

/* All arrays of all experts: from the ranks, or to them. */
static status exchange_arrays(struct adapt *a, bool get, struct err *e)
{
    static const enum moe_adapted what[MIRRORS] = {MOE_ADAPTED_PARAM, MOE_ADAPTED_M, MOE_ADAPTED_V};

    for (int k = 0; k < MIRRORS; k++) {
        float *at = a->mirror[k];

        for (int l = 0; l < a->shape->layers; l++)
            for (int i = -1; i < a->shape->experts; i++)
                for (int part = 0; part < 3; part++, at += moe_adapted_floats(a->moe, l, i, what[k]))
                    if (get ? moe_adapt_get(a->moe, l, i, part, what[k], at, e)
                            : moe_adapt_put(a->moe, l, i, part, what[k], at, e))
                        return e->code;
    }
    return OK;
}

status adapt_gather(struct adapt *a, bool fill, struct err *e)
{
    bool room = true;

    if (!a->o.experts) return OK;
    for (int i = 0; i < MIRRORS; i++) room = (a->mirror[i] = malloc(a->floats * sizeof(float))) && room;
    if (room && (!fill || exchange_arrays(a, true, e) == OK)) return OK;
    forget(a);
    if (room) return e->code;
    return err_set(e, ERR_LIMIT, "out of memory for the experts of a checkpoint: %zu MiB",
                   a->floats * MIRRORS * sizeof(float) >> 20);
}

status adapt_scatter(struct adapt *a, bool use, struct err *e)
{
    status s = OK;

    if (use) use_norms(a);
    if (!a->o.experts) return OK;
    if (use) s = exchange_arrays(a, false, e);
    if (use && !s) s = moe_adapt_pack(a->moe, e);
    forget(a);
    return s;
}
