#include "jobs/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/stop.h"
#include "model/forward.h"
#include "moe/grouping.h"
#include "num/ops.h"

/* One pass over a batch of windows. */
struct pass {
    struct calibration *c;
    struct model *m;
    struct batch batch;
    int64_t first, total; /* of this batch in the text; of the text */
    float *x, *h;         /* [rows][D] */
    int32_t *place;       /* [rows] in the sample, -1: not there */
};

/* |w_down_j| of every neuron: norms of columns, row by row because that is how the matrix lies. */
static status find_norms(float *norm, struct safetensors *weights, const struct shape *s, int layer, double *square, float *row,
                         struct err *e)
{
    struct mat down;
    char name[96];

    snprintf(name, sizeof(name), "model.layers.%d.mlp.down_proj.weight", layer);
    if (safetensors_mat(&down, weights, name, s->width, s->neurons, e)) return e->code;
    memset(square, 0, (size_t)down.cols * sizeof(*square));
    for (int d = 0; d < down.rows; d++) {
        mat_widen(row, &down, d, 1);
        for (int j = 0; j < down.cols; j++) square[j] += (double)row[j] * row[j];
    }
    for (int j = 0; j < down.cols; j++) norm[j] = (float)sqrt(square[j]);
    return OK;
}

/* The place of token t of the text in the even sample, or -1. */
static int32_t sample_place(const struct pass *p, int64_t t)
{
    int64_t before = t * p->c->sample / p->total, behind = (t + 1) * p->c->sample / p->total;

    return behind > before ? (int32_t)before : -1;
}

static void keep_inputs(struct pass *p, int layer)
{
    size_t width = (size_t)p->c->width;
    uint16_t *h = p->c->h + (size_t)layer * (size_t)p->c->sample * width;

    for (int t = 0; t < p->batch.rows; t++)
        for (size_t d = 0; p->place[t] >= 0 && d < width; d++)
            h[(size_t)p->place[t] * width + d] = narrow_bf16(p->h[(size_t)t * width + d]);
}

/* The dense model's layers over one batch of windows: the same steps as forward(), with notes of the neurons. */
static status run_batch(struct pass *p, struct job *j, struct err *e)
{
    int rows = p->batch.rows;

    for (int t = 0; t < rows; t++) p->place[t] = sample_place(p, p->first + t);
    forward_embed(p->m, &p->batch, p->x);
    for (int l = 0; l < p->c->layers; l++) {
        if (stop_asked()) return err_set(e, STOPPED, "%s: stopped while calibrating; run it again", j->spec->source);
        cluster_alive(j->cluster);
        forward_attention(p->m, l, &p->batch, 0, rows, p->x, p->h);
        if (p->c->sample) keep_inputs(p, l);
        if (moe_note(model_moe(p->m), l, p->h, p->place, rows, p->x, e)) return e->code;
    }
    return OK;
}

/* Where the next batch begins: window `window`, at its token `offset`. */
struct cursor {
    size_t window;
    int offset;
};

/* Whole windows while there is room for them; a window that is longer than a batch comes alone, in pieces, in session 0. */
static void fill_batch(struct pass *p, const struct corpus *text, int window, struct cursor *at, int32_t *ids, int32_t *input)
{
    const struct model_limits *limits = model_limits_of(p->m);
    int32_t bos = model_shape(p->m)->bos >= 0 ? model_shape(p->m)->bos : model_shape(p->m)->eos[0];
    int32_t *token = ids, *position = ids + limits->rows, *session = ids + 2 * (size_t)limits->rows;
    int rows = 0;

    for (int s = 0; s < limits->sessions && at->window < corpus_windows(text, window); s++) {
        int left = corpus_window(text, window, at->window, bos, input, input + window) - at->offset;
        int n = left < limits->rows - rows ? left : limits->rows - rows;

        if (n < left && rows > 0) break;
        for (int t = 0; t < n; t++) {
            token[rows + t] = input[at->offset + t];
            position[rows + t] = at->offset + t;
            session[rows + t] = s;
        }
        rows += n;
        at->offset = n < left ? at->offset + n : 0;
        if (n < left) break;
        at->window++;
    }
    p->batch = (struct batch){.rows = rows, .token = token, .position = position, .session = session};
}

static status check_tokens(const struct corpus *text, const struct shape *s, struct err *e)
{
    if (text->n_tokens < 2)
        return err_set(e, ERR_SPEC, "calibration: expected a text of 2 tokens or more, found %zu", text->n_tokens);
    for (size_t i = 0; i < text->n_tokens; i++)
        if (text->tokens[i] < 0 || text->tokens[i] >= s->vocab)
            return err_set(e, ERR_FORMAT, "calibration: the tokenizer gives token %d, the model's vocabulary has %d",
                           text->tokens[i], s->vocab);
    return OK;
}

/* A sum of squares that is not finite says that some value was not, or that the model's numbers have run away. */
static status check_finite(const struct calibration *c, struct err *e)
{
    for (int l = 0; l < c->layers; l++)
        for (int j = 0; j < c->neurons; j++)
            if (!isfinite(c->square[(size_t)l * (size_t)c->neurons + (size_t)j]))
                return err_set(e, ERR_FORMAT,
                               "calibration: layer %d, neuron %d is not finite on this text: are the weights sound?", l, j);
    return OK;
}

static status reserve(struct calibration *c, const struct model *m, int64_t tokens, struct err *e)
{
    const struct shape *s = model_shape(m);
    const struct model_limits *limits = model_limits_of(m);
    size_t all = (size_t)s->layers * (size_t)s->neurons;
    int sample = tokens < limits->sample ? (int)tokens : limits->sample;

    *c = (struct calibration){.layers = s->layers, .neurons = s->neurons, .width = s->width, .tokens = tokens, .sample = sample};
    c->sum = calloc(all, sizeof(*c->sum));
    c->square = calloc(all, sizeof(*c->square));
    c->down_norm = calloc(all, sizeof(*c->down_norm));
    if (sample) c->h = calloc((size_t)s->layers * (size_t)sample * (size_t)s->width, sizeof(*c->h));
    if (!c->sum || !c->square || !c->down_norm || (sample && !c->h))
        return err_set(e, ERR_LIMIT,
                       "no memory to calibrate %d layers of %d neurons; lower calibration.profile_tokens (%d fit profile_mib)",
                       s->layers, s->neurons, sample);
    return OK;
}

/* Of every layer: norms of W_down from the files, sums from the ranks. */
static status collect(struct calibration *c, struct job *j, struct model *m, struct safetensors *weights, struct err *e)
{
    const struct shape *s = model_shape(m);
    size_t n = (size_t)s->neurons;
    double *square = malloc(n * sizeof(*square));
    float *row = malloc(n * sizeof(*row));
    status st = OK;

    if (!square || !row) st = err_set(e, ERR_LIMIT, "no memory for the norms of %d neurons", s->neurons);
    for (int l = 0; !st && l < s->layers; l++) {
        size_t at = (size_t)l * n;

        cluster_alive(j->cluster);
        st = find_norms(c->down_norm + at, weights, s, l, square, row, e);
        for (int i = 0; !st && i < s->experts; i++) {
            size_t first = at + (size_t)group_begin(s->neurons, 0, s->experts, i);

            st = moe_notes(model_moe(m), l, i, c->sum + first, c->square + first, NULL, e);
        }
    }
    free(square);
    free(row);
    return st;
}

status calibrate(struct calibration *c, struct job *j, struct model *m, struct safetensors *weights, const struct corpus *text,
                 int window, struct err *e)
{
    const struct shape *s = model_shape(m);
    const struct model_limits *limits = model_limits_of(m);
    size_t rows = (size_t)limits->rows, width = (size_t)s->width;
    struct cursor at = {0};
    struct pass p = {.c = c, .m = m, .total = (int64_t)text->n_tokens};
    int32_t *ids = malloc(3 * rows * sizeof(*ids)), *input = malloc(2 * (size_t)window * sizeof(*input));

    BUG_ON(window < 1 || window > limits->positions || !s->sliced || !limits->notes);
    status st = reserve(c, m, (int64_t)text->n_tokens, e);
    p.x = malloc(rows * width * sizeof(float));
    p.h = malloc(rows * width * sizeof(float));
    p.place = malloc(rows * sizeof(*p.place));
    if (!st && (!ids || !input || !p.x || !p.h || !p.place))
        st = err_set(e, ERR_LIMIT, "no memory to calibrate on %zu rows at once: lower limits.batch_rows", rows);
    if (!st) st = check_tokens(text, s, e);
    while (!st && at.window < corpus_windows(text, window)) {
        fill_batch(&p, text, window, &at, ids, input);
        st = run_batch(&p, j, e);
        p.first += p.batch.rows;
        log_progress(j->log, "calibrate", (double)p.first, (double)p.total, "%lld of %lld tokens", (long long)p.first,
                     (long long)p.total);
    }
    log_progress_end(j->log);
    if (!st) st = collect(c, j, m, weights, e);
    if (!st) st = check_finite(c, e);
    free(ids);
    free(input);
    free(p.x);
    free(p.h);
    free(p.place);
    if (st) calibration_free(c);
    return st;
}

void calibration_free(struct calibration *c)
{
    free(c->sum);
    free(c->square);
    free(c->down_norm);
    free(c->h);
    *c = (struct calibration){0};
}

/* ---- the sample ---- */

status calibration_values(const struct calibration *c, struct model *m, int layer, float *z, struct err *e)
{
    const struct shape *s = model_shape(m);
    size_t n = (size_t)c->neurons, room = (size_t)model_limits_of(m)->sample,
           most = (size_t)group_size(c->neurons, 0, s->experts, 0);
    double *sums = malloc(2 * most * sizeof(*sums));
    uint16_t *kept = malloc(most * room * sizeof(*kept));
    status st = OK;

    if (!sums || !kept) st = err_set(e, ERR_LIMIT, "no memory for %d tokens of %zu neurons", c->sample, most);
    for (int i = 0; !st && i < s->experts; i++) {
        size_t first = (size_t)group_begin(c->neurons, 0, s->experts, i), some = (size_t)group_size(c->neurons, 0, s->experts, i);

        st = moe_notes(model_moe(m), layer, i, sums, sums + most, kept, e);
        for (size_t t = 0; !st && t < (size_t)c->sample; t++)
            for (size_t j = 0; j < some; j++) z[t * n + first + j] = widen_bf16(kept[j * room + t]);
    }
    free(sums);
    free(kept);
    return st;
}

void calibration_inputs(const struct calibration *c, int layer, float *h)
{
    size_t all = (size_t)c->sample * (size_t)c->width;

    for (size_t i = 0; i < all; i++) h[i] = widen_bf16(c->h[(size_t)layer * all + i]);
}

void calibration_energies(const struct calibration *c, int layer, float *z)
{
    size_t n = (size_t)c->neurons, at = (size_t)layer * n;

    for (size_t t = 0; t < (size_t)c->sample; t++)
        for (size_t j = 0; j < n; j++) {
            double x = ((double)z[t * n + j] - c->sum[at + j] / (double)c->tokens) * (double)c->down_norm[at + j];

            z[t * n + j] = (float)(x * x);
        }
}

uint64_t *calibration_strong(const struct calibration *c, int layer, const float *z, int *tokens, const struct alive *alive)
{
    int n = c->neurons, k = n / STRONG_SHARE > 1 ? n / STRONG_SHARE : 1, all = c->sample;
    const float *norm = c->down_norm + (size_t)layer * (size_t)n;

    *tokens = all < STRONG_TOKENS_MAX ? all : STRONG_TOKENS_MAX;
    size_t words = (size_t)bits_words(*tokens);
    uint64_t *strong = calloc((size_t)n * words, sizeof(*strong)), *set = calloc((size_t)bits_words(n), sizeof(*set));
    float *strength = malloc((size_t)n * sizeof(*strength));

    BUG_ON(!strong || !set || !strength);
    for (int t = 0; t < *tokens; t++) {
        const float *row = z + (size_t)((int64_t)t * all / *tokens) * (size_t)n;

        if (t % 256 == 0) alive_tick(alive);
        for (int j = 0; j < n; j++) strength[j] = fabsf(row[j]) * norm[j];
        top_k(set, strength, n, k);
        for (int j = bits_next(set, n, 0); j < n; j = bits_next(set, n, j + 1)) bits_set(strong + (size_t)j * words, t);
    }
    free(set);
    free(strength);
    return strong;
}

double calibration_mean(const struct calibration *c, int layer, int neuron)
{
    return c->sum[(size_t)layer * (size_t)c->neurons + (size_t)neuron] / (double)c->tokens;
}

double calibration_importance(const struct calibration *c, int layer, int neuron)
{
    size_t i = (size_t)layer * (size_t)c->neurons + (size_t)neuron;
    double mean = c->sum[i] / (double)c->tokens, variance = c->square[i] / (double)c->tokens - mean * mean;

    return variance > 0 ? variance * c->down_norm[i] * c->down_norm[i] : 0;
}
