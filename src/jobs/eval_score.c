/* Sequences through the model, packed into passes of at most `rows` rows and `sessions` sequences; a long one goes over several passes.
 * How they are packed changes no result: a row depends on its own sequence alone. */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "base/stop.h"
#include "jobs/eval.h"
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
    if (s->token && s->position && s->session && s->sequence && s->key && s->hidden && s->x && s->logits) return OK;
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

static status look_around(struct eval_scorer *s, struct err *e)
{
    cluster_alive(s->job->cluster);
    if (stop_asked() == STOP_NO) return OK;
    return err_set(e, STOPPED, "stopped during the evaluation; run the same job again");
}

static void count(struct eval_scorer *s, struct eval_score *score, const struct eval_sequence *q, int rows)
{
    size_t width = (size_t)model_shape(s->model)->width;
    int vocab = model_shape(s->model)->vocab, kept = 0;

    for (int t = 0; t < rows; t++) { /* rows whose target counts, moved to the front */
        if (s->position[t] < q[s->sequence[t]].from) continue;
        if (kept < t) memcpy(s->hidden + (size_t)kept * width, s->hidden + (size_t)t * width, width * sizeof(float));
        s->position[kept] = s->position[t];
        s->sequence[kept++] = s->sequence[t];
    }
    for (int begin = 0; begin < kept; begin += s->logit_rows) {
        int n = kept - begin < s->logit_rows ? kept - begin : s->logit_rows;

        forward_logits(s->model, s->hidden + (size_t)begin * width, n, s->logits);
        for (int t = 0; t < n; t++) {
            const float *z = s->logits + (size_t)t * (size_t)vocab;
            int of = s->sequence[begin + t], target = q[of].target[s->position[begin + t]];

            score[of].logp += (double)z[target] - log_sum_exp(z, vocab);
            score[of].hits += argmax(z, vocab) == target;
        }
    }
}

status eval_score(struct eval_scorer *s, struct eval_score *score, const struct eval_sequence *q, size_t n,
                  const struct routing *how, uint64_t stream, const char *what, struct err *e)
{
    struct cursor c = {0};
    double done = 0, total = 0, start = clock_now();
    int rows;

    BUG_ON(n > INT32_MAX);
    memset(score, 0, n * sizeof(*score));
    for (size_t i = 0; i < n; i++) total += q[i].n;
    while ((rows = pack(s, &c, q, n, stream)) > 0) {
        struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session, .key = s->key};

        if (forward(s->model, &b, how, s->micro_batches, s->hidden, e) || look_around(s, e)) return e->code;
        count(s, score, q, rows);
        done += rows;
        log_progress(s->job->log, what, done, total, "%.0f tokens/s", done / (clock_now() - start + 1e-9));
    }
    return OK;
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
        struct batch b = {.rows = rows, .token = s->token, .position = s->position, .session = s->session, .key = s->key};

        forward_embed(s->model, &b, s->x);
        for (int l = 0; l < shape->layers && !st; l++) {
            struct moe *moe = model_moe(s->model);

            forward_attention(s->model, l, &b, 0, rows, s->x, s->hidden);
            st = moe_gram_sets(moe, l, s->hidden, rows, shape->active_of[l], how->compensate, oracle, e);
            if (!st) st = moe_begin(moe, 0, l, s->hidden, s->key, rows, how, e);
            if (!st) st = moe_end(moe, 0, s->x, active, e);
            for (int t = 0; t < rows && !st; t++) {
                int both = 0;

                for (int w = 0; w < words; w++) both += __builtin_popcountll(active[t * words + w] & oracle[t * words + w]);
                agreement[l] += (double)both / shape->active_of[l];
            }
        }
        if (!st) st = look_around(s, e);
        done += rows;
        log_progress(s->job->log, "router against oracle", done, total, "agreement");
    }
    for (int l = 0; l < shape->layers; l++) agreement[l] /= done > 0 ? done : 1;
    free(oracle);
    free(active);
    return st;
}
