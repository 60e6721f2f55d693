/* Sequences through the model, packed into passes of at most `rows` rows and `sessions` sequences; a long one goes over several passes.
 * How they are packed changes no result: a row depends on its own sequence alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "base/stop.h"
#include "jobs/eval.h"
#include "moe/route.h"
#include "num/ops.h"

enum { LOGIT_FLOATS = 4 << 20 };

status eval_scorer_open(struct eval_scorer *s, struct job *j, struct model *m, struct err *e)
{
    const struct model_limits *room = model_limits_of(m);
    const struct shape *shape = model_shape(m);
    size_t rows = (size_t)room->rows, width = (size_t)shape->width, vocab = (size_t)shape->vocab;

    *s = (struct eval_scorer){.job = j,
                              .model = m,
                              .rows = room->rows,
                              .sessions = room->sessions,
                              .lockstep = (int)j->spec->eval.decode_batch,
                              .micro_batches = (int)j->spec->cluster.micro_batches,
                              .bos = shape->bos >= 0 ? shape->bos : shape->eos[0]};
    s->logit_rows = LOGIT_FLOATS / vocab < 1 ? 1 : (int)(LOGIT_FLOATS / vocab);
    if (s->logit_rows > s->rows) s->logit_rows = s->rows;
    s->token = malloc(rows * sizeof(*s->token));
    s->position = malloc(rows * sizeof(*s->position));
    s->session = malloc(rows * sizeof(*s->session));
    s->sequence = malloc(rows * sizeof(*s->sequence));
    s->key = malloc(rows * sizeof(*s->key));
    s->hidden = malloc(rows * width * sizeof(float));
    s->x = malloc(rows * width * sizeof(float));
    s->logits = malloc((size_t)s->logit_rows * vocab * sizeof(float));
    s->other = malloc((size_t)s->logit_rows * vocab * sizeof(float));
    s->row = malloc((size_t)s->logit_rows * sizeof(*s->row));
    s->known = malloc((size_t)s->logit_rows * sizeof(*s->known));
    if (s->other && s->row && s->known && s->token && s->position && s->session && s->sequence && s->key && s->hidden && s->x &&
        s->logits)
        return OK;
    return err_set(e, ERR_LIMIT, "out of memory for %zu rows of width %zu", rows, width);
}

void eval_scorer_close(struct eval_scorer *s)
{
    free(s->token);
    free(s->position);
    free(s->session);
    free(s->sequence);
    free(s->key);
    free(s->hidden);
    free(s->x);
    free(s->logits);
    free(s->other);
    free(s->row);
    free(s->known);
    *s = (struct eval_scorer){0};
}

struct cursor { /* where the next pass begins */
    size_t sequence;
    int position, session;
};

static void put(struct eval_scorer *s, int row, const struct eval_sequence *q, size_t sequence, int position, int session,
                uint64_t stream)
{
    s->token[row] = position ? q[sequence].target[position - 1] : s->bos;
    s->position[row] = position;
    s->session[row] = session;
    s->sequence[row] = (int32_t)sequence;
    s->key[row] = rng_hash(stream, sequence, (uint64_t)position, 0);
}

/* The next pass when `lockstep` sequences decode together: one token of each that is not at its end. */
static int pack_step(struct eval_scorer *s, struct cursor *c, const struct eval_sequence *q, size_t n, uint64_t stream)
{
    for (; c->sequence < n; c->sequence += (size_t)s->lockstep, c->position = 0) {
        int rows = 0;

        for (int i = 0; i < s->lockstep && c->sequence + (size_t)i < n; i++)
            if (c->position < q[c->sequence + (size_t)i].n) put(s, rows++, q, c->sequence + (size_t)i, c->position, i, stream);
        c->position++;
        if (rows > 0) return rows;
    }
    return 0;
}

/* The next pass: its number of rows; 0 at the end.  A sequence that does not end in it keeps its session. */
static int pack(struct eval_scorer *s, struct cursor *c, const struct eval_sequence *q, size_t n, uint64_t stream)
{
    int rows = 0;

    if (s->lockstep > 0) return pack_step(s, c, q, n, stream);
    for (int sessions = 0; sessions < s->sessions && rows < s->rows && c->sequence < n; sessions++) {
        const struct eval_sequence *now = &q[c->sequence];

        for (; c->position < now->n && rows < s->rows; c->position++, rows++)
            put(s, rows, q, c->sequence, c->position, c->session, stream);
        if (c->position < now->n) break;
        c->sequence++;
        c->position = 0;
        c->session = (c->session + 1) % s->sessions;
    }
    return rows;
}

status eval_look_around(struct eval_scorer *s, struct err *e)
{
    cluster_alive(s->job->cluster);
    if (stop_asked() == STOP_NO) return OK;
    return err_set(e, STOPPED, "stopped during the evaluation; run the same job again");
}

/* ---- the rows of a pass, scored by all threads ---- */

struct score_rows {
    const struct eval_scorer *s;
    const struct eval_sequence *q;
    int begin; /* first of the rows, among those that count */
    bool reference;
};

/* KL(p || q) of the distributions behind two rows of logits, in nats. */
static double divergence(const float *p, const float *q, int n, double q_total)
{
    double p_total = log_sum_exp(p, n), sum = 0;

    for (int i = 0; i < n; i++) {
        double logp = (double)p[i] - p_total;

        sum += exp(logp) * (logp - ((double)q[i] - q_total));
    }
    return sum;
}

static void score_task(void *ctx, int item, int worker)
{
    const struct score_rows *c = ctx;
    const struct eval_scorer *s = c->s;
    int vocab = model_shape(s->model)->vocab, at = c->begin + item, of = s->sequence[at];
    const float *z = s->logits + (size_t)item * (size_t)vocab;
    int32_t target = c->q[of].target[s->position[at]];
    double total = log_sum_exp(z, vocab);

    (void)worker;
    s->row[item] = (struct eval_score){.logp = (double)z[target] - total, .hits = argmax(z, vocab) == target};
    if (c->reference && s->known[item]) s->row[item].kl = divergence(s->other + (size_t)item * (size_t)vocab, z, vocab, total);
}

/* Rows whose target counts, moved to the front: how many. */
static int keep_counted(struct eval_scorer *s, const struct eval_sequence *q, int rows)
{
    size_t width = (size_t)model_shape(s->model)->width;
    int kept = 0;

    for (int t = 0; t < rows; t++) {
        if (s->position[t] < q[s->sequence[t]].from) continue;
        if (kept < t) memcpy(s->hidden + (size_t)kept * width, s->hidden + (size_t)t * width, width * sizeof(float));
        s->position[kept] = s->position[t];
        s->sequence[kept++] = s->sequence[t];
    }
    return kept;
}

/* Where the reference has a row; false: it does not. */
static bool in_reference(size_t *place, const struct eval_scorer *s, const struct eval_pass *p, int row)
{
    const struct eval_reference *ref = p->reference;

    if (!ref || !ref->hidden) return false;
    *place = (size_t)(p->q[s->sequence[row]].target - ref->tokens) + (size_t)s->position[row];
    return *place < ref->rows;
}

/* Rows begin .. begin + n - 1 into the reference, or the reference's into s->x: how many of them it has are marked in s->known. */
static int meet_reference(struct eval_scorer *s, const struct eval_pass *p, int begin, int n)
{
    size_t width = (size_t)model_shape(s->model)->width, place = 0;
    int known = 0;

    for (int t = 0; t < n; t++) {
        s->known[t] = in_reference(&place, s, p, begin + t);
        if (!s->known[t]) {
            memset(s->x + (size_t)t * width, 0, width * sizeof(float));
            continue;
        }
        float *there = p->reference->hidden + place * width, *here = s->hidden + (size_t)(begin + t) * width;

        if (p->reference->filled) memcpy(s->x + (size_t)t * width, there, width * sizeof(float));
        else memcpy(there, here, width * sizeof(float));
        known += p->reference->filled;
    }
    return known;
}

static status count(struct eval_scorer *s, const struct eval_pass *p, int rows, struct err *e)
{
    size_t width = (size_t)model_shape(s->model)->width;
    int kept = keep_counted(s, p->q, rows);

    for (int begin = 0, n; begin < kept; begin += n) {
        n = kept - begin < s->logit_rows ? kept - begin : s->logit_rows;
        struct score_rows c = {s, p->q, begin, meet_reference(s, p, begin, n) > 0};

        if (forward_words(s->model, s->hidden + (size_t)begin * width, n, s->logits, e)) return e->code;
        if (c.reference && forward_words(s->model, s->x, n, s->other, e)) return e->code;
        gemm_parallel(model_gemm(s->model), n, score_task, &c);
        for (int t = 0; t < n; t++) { /* in order: sums have the same bits on any number of threads */
            const struct eval_sequence *q = &p->q[s->sequence[begin + t]];
            struct eval_score *to = &p->score[q->first_score + (size_t)(q->block ? s->position[begin + t] / q->block : 0)];

            to->logp += s->row[t].logp;
            to->hits += s->row[t].hits;
            to->kl += s->row[t].kl;
        }
    }
    return OK;
}

/* The rows that pack() put together. */
static struct batch pass_of(const struct eval_scorer *s, int rows)
{
    return (struct batch){.rows = rows,
                          .token = s->token,
                          .position = s->position,
                          .session = s->session,
                          .key = s->key,
                          .decodes = s->lockstep > 0};
}

status eval_score(struct eval_scorer *s, const struct eval_pass *p, struct err *e)
{
    struct cursor c = {0};
    double done = 0, total = 0, start = clock_now();
    int rows;

    BUG_ON(p->n > INT32_MAX);
    memset(p->score, 0, p->n_scores * sizeof(*p->score));
    for (size_t i = 0; i < p->n; i++) total += p->q[i].n;
    while ((rows = pack(s, &c, p->q, p->n, p->stream)) > 0) {
        struct batch b = pass_of(s, rows);

        if (forward(s->model, &b, p->how, s->micro_batches, s->hidden, e) || eval_look_around(s, e)) return e->code;
        if (count(s, p, rows, e)) return e->code;
        done += rows;
        log_progress(s->job->log, p->what, done, total, "%.0f tokens/s", done / (clock_now() - start + 1e-9));
    }
    if (p->reference) p->reference->filled = true;
    return OK;
}

/* ---- and looked into ---- */

static status visit_layers(struct eval_scorer *s, const struct batch *b, const struct routing *how, uint64_t *active,
                           void (*visit)(void *ctx, int layer, int rows, const float *h, const uint64_t *active), void *ctx,
                           struct err *e)
{
    struct moe *moe = model_moe(s->model);

    forward_embed(s->model, b, s->x);
    for (int l = 0; l < model_shape(s->model)->layers; l++) {
        forward_attention(s->model, l, b, 0, b->rows, s->x, s->hidden);
        if (forward_failed(s->model, e) || moe_begin(moe, 0, l, s->hidden, s->key, b->rows, how, e) ||
            moe_end(moe, 0, s->x, active, e))
            return e->code;
        visit(ctx, l, b->rows, s->hidden, active);
    }
    forward_norm(s->model, s->x, b->rows, s->hidden);
    return OK;
}

status eval_visit(struct eval_scorer *s, const struct eval_pass *p,
                  void (*visit)(void *ctx, int layer, int rows, const float *h, const uint64_t *active), void *ctx, struct err *e)
{
    uint64_t *active = calloc((size_t)s->rows * (size_t)bits_words(model_shape(s->model)->experts), sizeof(*active));
    struct cursor c = {0};
    double done = 0, total = 0;
    status st = OK;
    int rows;

    if (!active) st = err_set(e, ERR_LIMIT, "out of memory for the sets of %d rows", s->rows);
    memset(p->score, 0, p->n_scores * sizeof(*p->score));
    for (size_t i = 0; i < p->n; i++) total += p->q[i].n;
    while (!st && (rows = pack(s, &c, p->q, p->n, p->stream)) > 0) {
        struct batch b = pass_of(s, rows);

        st = visit_layers(s, &b, p->how, active, visit, ctx, e);
        if (!st) st = eval_look_around(s, e);
        if (!st) st = count(s, p, rows, e);
        done += rows;
        log_progress(s->job->log, p->what, done, total, "domain");
    }
    free(active);
    return st;
}

status eval_agreement(struct eval_scorer *s, double *agreement, const struct eval_sequence *q, size_t n,
                      const struct routing *how, struct err *e)
{
    const struct shape *shape = model_shape(s->model);
    int words = bits_words(shape->experts), rows;
    size_t set_words = (size_t)s->rows * (size_t)words;
    uint64_t *oracle = calloc(set_words, sizeof(*oracle)), *active = calloc(set_words, sizeof(*active));
    struct cursor c = {0};
    double done = 0, total = 0;
    status st = OK;

    if (!oracle || !active) st = err_set(e, ERR_LIMIT, "out of memory for the sets of %d rows", s->rows);
    memset(agreement, 0, (size_t)shape->layers * sizeof(*agreement));
    for (size_t i = 0; i < n; i++) total += q[i].n;
    while (!st && (rows = pack(s, &c, q, n, 0)) > 0) {
        struct batch b = pass_of(s, rows);

        forward_embed(s->model, &b, s->x);
        for (int l = 0; l < shape->layers && !st; l++) {
            struct moe *moe = model_moe(s->model);

            forward_attention(s->model, l, &b, 0, rows, s->x, s->hidden);
            st = forward_failed(s->model, e);
            if (!st) st = moe_gram_sets(moe, l, s->hidden, rows, shape->active_of[l], how->compensate, oracle, e);
            if (!st) st = moe_begin(moe, 0, l, s->hidden, s->key, rows, how, e);
            if (!st) st = moe_end(moe, 0, s->x, active, e);
            for (int t = 0; t < rows && !st; t++) {
                int both = 0;

                for (int w = 0; w < words; w++) both += __builtin_popcountll(active[t * words + w] & oracle[t * words + w]);
                agreement[l] += (double)both / shape->active_of[l];
            }
        }
        if (!st) st = eval_look_around(s, e);
        done += rows;
        log_progress(s->job->log, "router against oracle", done, total, "agreement");
    }
    for (int l = 0; l < shape->layers; l++) agreement[l] /= done > 0 ? done : 1;
    free(oracle);
    free(active);
    return st;
}

/* ---- the variable oracle's thresholds ---- */

enum { GAIN_TOKENS = 8192, GAIN_BYTES = 64 << 20 };

struct gains { /* T tokens, layer by layer */
    struct eval_scorer *s;
    const struct eval_sequence *q;
    const struct routing *how;
    size_t T;
    float *x, *h, *gain; /* [T][D], [T][D], [T][N] */
};

/* Attention of one layer, one sequence after the other: what a layer remembers is needed in that layer alone, so one session does. */
static void gains_attention(struct gains *g, int layer)
{
    struct eval_scorer *s = g->s;
    size_t width = (size_t)model_shape(s->model)->width, at = 0;

    for (const struct eval_sequence *q = g->q; at < g->T; q++)
        for (int position = 0; position < q->n && at < g->T;) {
            int rows = 0;

            for (; rows < s->rows && position < q->n && at + (size_t)rows < g->T; rows++, position++) {
                s->token[rows] = position ? q->target[position - 1] : s->bos;
                s->position[rows] = position;
                s->session[rows] = 0;
            }
            struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session};

            if (layer == 0) forward_embed(s->model, &b, g->x + at * width);
            forward_attention(s->model, layer, &b, 0, rows, g->x + at * width, g->h + at * width);
            at += (size_t)rows;
        }
}

static status gains_layer(struct gains *g, double *gain, int layer, bool last, struct err *e)
{
    struct eval_scorer *s = g->s;
    struct moe *moe = model_moe(s->model);
    const struct shape *shape = model_shape(s->model);
    size_t width = (size_t)shape->width, n = (size_t)shape->experts;

    gains_attention(g, layer);
    if (forward_failed(s->model, e)) return e->code;
    for (size_t at = 0; at < g->T; at += (size_t)s->rows) {
        int rows = g->T - at < (size_t)s->rows ? (int)(g->T - at) : s->rows;

        if (moe_gram_gains(moe, layer, g->h + at * width, rows, g->how->compensate, g->gain + at * n, e) ||
            eval_look_around(s, e))
            return e->code;
    }
    gain[layer] = (double)route_threshold(g->gain, (int64_t)g->T, shape->experts, shape->active_of[layer]);
    for (size_t at = 0; at < g->T && !last; at += (size_t)s->rows) {
        int rows = g->T - at < (size_t)s->rows ? (int)(g->T - at) : s->rows;

        if (moe_begin(moe, 0, layer, g->h + at * width, NULL, rows, g->how, e) || moe_end(moe, 0, g->x + at * width, NULL, e) ||
            eval_look_around(s, e))
            return e->code;
    }
    return OK;
}

status eval_gains(struct eval_scorer *s, double *gain, const struct eval_sequence *q, size_t n, const struct routing *how,
                  struct err *e)
{
    const struct shape *shape = model_shape(s->model);
    size_t width = (size_t)shape->width, row = (2 * width + (size_t)shape->experts) * sizeof(float);
    struct gains g = {.s = s, .q = q, .how = how};
    status st = OK;

    for (size_t i = 0; i < n && g.T < GAIN_TOKENS; i++) g.T += (size_t)q[i].n;
    if (g.T > GAIN_TOKENS) g.T = GAIN_TOKENS;
    if (g.T > GAIN_BYTES / row) g.T = GAIN_BYTES / row;
    g.x = malloc(g.T * width * sizeof(float) + 1);
    g.h = malloc(g.T * width * sizeof(float) + 1);
    g.gain = malloc(g.T * (size_t)shape->experts * sizeof(float) + 1);
    if (!g.x || !g.h || !g.gain) st = err_set(e, ERR_LIMIT, "out of memory for the states of %zu tokens", g.T);
    for (int l = 0; l < shape->layers && !st; l++) {
        st = gains_layer(&g, gain, l, l + 1 == shape->layers, e);
        log_progress(s->job->log, "gains of experts", l + 1, shape->layers, "layers");
    }
    free(g.x);
    free(g.h);
    free(g.gain);
    return st;
}
