#include "jobs/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/stop.h"
#include "model/forward.h"

/* One pass over a batch of windows. */
struct pass {
    struct calibration *c;
    struct model *m;
    struct gemm *gemm;
    struct batch batch;
    int64_t first, total; /* of this batch in the text; of the text */
    float *x, *h;         /* [rows][D] */
    float *z, *up;        /* [rows][F] */
    uint64_t *chosen;     /* [rows][bits_words(F)] the strongest of a row */
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

/* The k-th largest of x (k >= 1), which is reordered: Hoare's selection with the middle of three as pivot. */
static float kth_largest(float *x, int n, int k)
{
    int low = 0, high = n - 1;

    while (low < high) {
        float a = x[low], b = x[(low + high) / 2], c = x[high];
        float pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        int i = low, j = high;

        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                float t = x[i];
                x[i++] = x[j];
                x[j--] = t;
            }
        }
        if (k - 1 <= j) high = j;
        else if (k - 1 >= i) low = i;
        else break;
    }
    return x[k - 1];
}

/* The strongest quarter of row t's neurons; of equals the lower ones.  Overwrites the row of `up`, which is done with. */
struct choosing {
    const struct pass *p;
    const float *norm;
};

static void choose_row(void *ctx, int t, int worker)
{
    const struct choosing *o = ctx;
    const struct pass *p = o->p;
    int n = p->c->neurons, k = n / STRONG_SHARE > 1 ? n / STRONG_SHARE : 1;
    const float *z = p->z + (size_t)t * (size_t)n;
    float *strength = p->up + (size_t)t * (size_t)n;
    uint64_t *set = p->chosen + (size_t)t * (size_t)bits_words(n);

    (void)worker;
    for (int j = 0; j < n; j++) strength[j] = fabsf(z[j]) * o->norm[j];
    float least = kth_largest(strength, n, k);
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    int left = k;
    for (int j = 0; j < n; j++)
        if (fabsf(z[j]) * o->norm[j] > least) {
            bits_set(set, j);
            left--;
        }
    for (int j = 0; j < n && left > 0; j++)
        if (fabsf(z[j]) * o->norm[j] == least) {
            bits_set(set, j);
            left--;
        }
}

/* The place of token t of the text in the even sample, or -1. */
static int sample_place(const struct pass *p, int64_t t)
{
    int64_t before = t * p->c->strong_tokens / p->total, behind = (t + 1) * p->c->strong_tokens / p->total;

    return behind > before ? (int)before : -1;
}

static void note_strong(struct pass *p, int layer)
{
    struct choosing o = {p, p->c->down_norm + (size_t)layer * (size_t)p->c->neurons};
    int n = p->c->neurons;
    size_t words = (size_t)bits_words(p->c->strong_tokens);
    uint64_t *rows = p->c->strong + (size_t)layer * (size_t)n * words;

    gemm_parallel(p->gemm, p->batch.rows, choose_row, &o);
    for (int t = 0; t < p->batch.rows; t++) {
        const uint64_t *set = p->chosen + (size_t)t * (size_t)bits_words(n);
        int place = sample_place(p, p->first + t);

        if (place < 0) continue;
        for (int j = bits_next(set, n, 0); j < n; j = bits_next(set, n, j + 1)) bits_set(rows + (size_t)j * words, place);
    }
}

/* Sums run over the tokens in the order of the text, so they do not depend on how it is cut into batches. */
static void note_sums(struct pass *p, int layer)
{
    size_t n = (size_t)p->c->neurons;
    double *sum = p->c->sum + (size_t)layer * n, *square = p->c->square + (size_t)layer * n;

    for (int t = 0; t < p->batch.rows; t++) {
        const float *z = p->z + (size_t)t * n;

        for (size_t j = 0; j < n; j++) {
            double v = z[j];

            sum[j] += v;
            square[j] += v * v;
        }
    }
}

/* The dense model's layers over one batch of windows: the same steps as forward(), with the neurons in sight. */
static status run_batch(struct pass *p, struct job *j, struct err *e)
{
    size_t width = (size_t)model_shape(p->m)->width, n = (size_t)p->c->neurons;
    int rows = p->batch.rows;
    struct rows neurons = {.x = p->z, .ld = n, .n = rows, .cols = p->c->neurons};

    forward_embed(p->m, &p->batch, p->x);
    for (int l = 0; l < p->c->layers; l++) {
        if (stop_asked()) return err_set(e, STOPPED, "%s: stopped while calibrating; run it again", j->spec->source);
        cluster_alive(j->cluster);
        forward_attention(p->m, l, &p->batch, 0, rows, p->x, p->h);
        expert_neurons(p->gemm, p->z, p->up, model_dense_ffn(p->m, l), p->h, rows);
        note_sums(p, l);
        if (p->c->strong) note_strong(p, l);
        gemm_product(p->gemm, p->h, width, &neurons, &model_dense_ffn(p->m, l)->down, NULL);
        for (size_t i = 0; i < (size_t)rows * width; i++) p->x[i] += p->h[i];
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

static status reserve(struct calibration *c, const struct shape *s, int64_t tokens, bool strong, struct err *e)
{
    size_t all = (size_t)s->layers * (size_t)s->neurons, room = STRONG_BYTES_MAX / (all * sizeof(uint64_t)) * 64;

    *c = (struct calibration){.layers = s->layers, .neurons = s->neurons, .tokens = tokens};
    c->sum = calloc(all, sizeof(*c->sum));
    c->square = calloc(all, sizeof(*c->square));
    c->down_norm = calloc(all, sizeof(*c->down_norm));
    if (strong) {
        if (room < 64) room = 64;
        c->strong_tokens = tokens < STRONG_TOKENS_MAX ? (int)tokens : STRONG_TOKENS_MAX;
        if (room < (size_t)c->strong_tokens) c->strong_tokens = (int)room;
        c->strong = calloc(all, (size_t)bits_words(c->strong_tokens) * sizeof(*c->strong));
    }
    if (!c->sum || !c->square || !c->down_norm || (strong && !c->strong))
        return err_set(e, ERR_LIMIT, "no memory to calibrate %d layers of %d neurons", s->layers, s->neurons);
    return OK;
}

status calibrate(struct calibration *c, struct job *j, struct model *m, struct safetensors *weights, const struct corpus *text,
                 int window, bool strong, struct err *e)
{
    const struct shape *s = model_shape(m);
    const struct model_limits *limits = model_limits_of(m);
    size_t rows = (size_t)limits->rows, n = (size_t)s->neurons, width = (size_t)s->width;
    struct cursor at = {0};
    struct pass p = {.c = c, .m = m, .gemm = cluster_gemm(j->cluster), .total = (int64_t)text->n_tokens};
    int32_t *ids = malloc(3 * rows * sizeof(*ids)), *input = malloc(2 * (size_t)window * sizeof(*input));
    double *square = malloc(n * sizeof(*square));

    BUG_ON(window < 1 || window > limits->positions);
    status st = reserve(c, s, (int64_t)text->n_tokens, strong, e);
    p.x = malloc(rows * width * sizeof(float));
    p.h = malloc(rows * width * sizeof(float));
    p.z = malloc(rows * n * sizeof(float));
    p.up = malloc(rows * n * sizeof(float));
    p.chosen = malloc(rows * (size_t)bits_words(s->neurons) * sizeof(*p.chosen));
    if (!st && (!ids || !input || !square || !p.x || !p.h || !p.z || !p.up || !p.chosen))
        st = err_set(e, ERR_LIMIT, "no memory to calibrate on %zu rows at once: lower limits.batch_rows", rows);
    if (!st) st = check_tokens(text, s, e);
    for (int l = 0; !st && l < s->layers; l++) {
        cluster_alive(j->cluster);
        st = find_norms(c->down_norm + (size_t)l * n, weights, s, l, square, p.z, e);
    }
    while (!st && at.window < corpus_windows(text, window)) {
        fill_batch(&p, text, window, &at, ids, input);
        st = run_batch(&p, j, e);
        p.first += p.batch.rows;
        log_progress(j->log, "calibrate", (double)p.first, (double)p.total, "%lld of %lld tokens", (long long)p.first,
                     (long long)p.total);
    }
    log_progress_end(j->log);
    if (!st) st = check_finite(c, e);
    free(ids);
    free(input);
    free(square);
    free(p.x);
    free(p.h);
    free(p.z);
    free(p.up);
    free(p.chosen);
    if (st) calibration_free(c);
    return st;
}

void calibration_free(struct calibration *c)
{
    free(c->sum);
    free(c->square);
    free(c->down_norm);
    free(c->strong);
    *c = (struct calibration){0};
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
