/* Owns: the sequences in flight and their places in the KV cache.
 *
 * A place in the cache is the index of the session; `order` lists the sessions in use in order of arrival, which is what the scheduler
 * sees.  Since no more sequences are accepted than there are sessions, a queued one always has its place already.
 * What a sequence leaves behind (tokens and text) is swapped into `done`, so that its session can be used again at once while the caller
 * still reads it.
 */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/schedule.h"

enum { LOGITS_AT_ONCE = 64 }; /* rows: a step with more sampling rows takes them in pieces, because vocabularies are large */

struct session {
    uint64_t tag;
    enum schedule_state state;
    uint64_t last_step;
    struct sampling how;
    int32_t *tokens; /* [positions] prompt, then what was generated */
    int prompt, n, passed;
    struct str text;
    size_t longest_stop;
    bool text_begins; /* nothing but special tokens came before: the first blank may be the tokenizer's own */
};

struct engine {
    struct model *m;
    struct cluster *cluster; /* NULL: this rank alone has attention */
    const struct tokenizer *t;
    struct routing how;
    int micro_batches, width, vocab;
    struct engine_limits limits;
    struct engine_stats stats;

    struct session *session; /* [sessions] */
    int *order;              /* [sessions] in use, in order of arrival */
    int *unused;             /* [sessions] the others, a stack */
    int n_order, n_unused;
    struct sequence *done;               /* [sessions] */
    int32_t **done_tokens;               /* [sessions] the storage behind done[] */
    struct str *done_text;               /* [sessions] */
    struct str piece;                    /* bytes of one token */
    struct schedule_entry *entry;        /* [sessions] */
    struct schedule_piece *plan;         /* [sessions] */
    int32_t *token, *position, *place;   /* [rows] */
    uint64_t *key;                       /* [rows] */
    bool *asked;                         /* [rows]: there will be a token behind it */
    float *hidden;                       /* [rows, D] */
    float *logits;                       /* [LOGITS_AT_ONCE, V] */
    struct sample_candidate *candidates; /* [threads][V] */
};

static void *take(size_t n, size_t size, bool *failed)
{
    void *p = calloc(n ? n : 1, size);

    *failed |= !p;
    return p;
}

static status take_memory(struct engine *g, struct err *e)
{
    size_t sessions = (size_t)g->limits.sessions, rows = (size_t)g->limits.rows, positions = (size_t)g->limits.positions;
    size_t at_once = sessions < LOGITS_AT_ONCE ? sessions : LOGITS_AT_ONCE;
    bool failed = false;

    g->session = take(sessions, sizeof(*g->session), &failed);
    g->order = take(sessions, sizeof(*g->order), &failed);
    g->unused = take(sessions, sizeof(*g->unused), &failed);
    g->done = take(sessions, sizeof(*g->done), &failed);
    g->done_tokens = take(sessions, sizeof(*g->done_tokens), &failed);
    g->done_text = take(sessions, sizeof(*g->done_text), &failed);
    g->entry = take(sessions, sizeof(*g->entry), &failed);
    g->plan = take(sessions, sizeof(*g->plan), &failed);
    g->token = take(rows, sizeof(*g->token), &failed);
    g->position = take(rows, sizeof(*g->position), &failed);
    g->place = take(rows, sizeof(*g->place), &failed);
    g->key = take(rows, sizeof(*g->key), &failed);
    g->asked = take(rows, sizeof(*g->asked), &failed);
    g->hidden = take(rows, (size_t)g->width * sizeof(*g->hidden), &failed);
    g->logits = take(at_once, (size_t)g->vocab * sizeof(*g->logits), &failed);
    g->candidates =
        take((size_t)threads_count(gemm_threads(model_gemm(g->m))) * (size_t)g->vocab, sizeof(*g->candidates), &failed);
    for (size_t i = 0; !failed && i < sessions; i++) {
        g->session[i].tokens = take(positions, sizeof(int32_t), &failed);
        g->done_tokens[i] = take(positions, sizeof(int32_t), &failed);
        g->unused[i] = (int)(sessions - 1 - i);
    }
    if (failed)
        return err_set(e, ERR_LIMIT, "out of memory for %zu sessions of %zu positions and %zu rows a step", sessions, positions,
                       rows);
    g->n_unused = g->limits.sessions;
    return OK;
}

status engine_open(struct engine **out, struct model *m, const struct tokenizer *t, const struct routing *how, int micro_batches,
                   struct engine_limits limits, struct err *e)
{
    const struct model_limits *room = model_limits_of(m);
    const struct shape *shape = model_shape(m);
    struct engine *g;

    *out = NULL;
    BUG_ON(limits.rows < 1 || limits.sessions < 1 || limits.positions < 2);
    if (limits.rows > room->rows || limits.sessions > room->sessions || limits.positions - 1 > room->positions)
        return err_set(e, ERR_LIMIT, "%d rows, %d sessions and %d positions do not fit: the model was opened for %d, %d and %d",
                       limits.rows, limits.sessions, limits.positions, room->rows, room->sessions, room->positions);
    g = calloc(1, sizeof(*g));
    if (!g) return err_set(e, ERR_LIMIT, "out of memory for the engine");
    *g = (struct engine){.m = m,
                         .t = t,
                         .how = *how,
                         .micro_batches = micro_batches,
                         .width = shape->width,
                         .vocab = shape->vocab,
                         .limits = limits};
    if (take_memory(g, e)) {
        engine_close(g);
        return e->code;
    }
    *out = g;
    return OK;
}

void engine_close(struct engine *g)
{
    if (!g) return;
    for (int i = 0; i < g->limits.sessions; i++) {
        if (g->session) {
            free(g->session[i].tokens);
            str_free(&g->session[i].text);
        }
        if (g->done_tokens) free(g->done_tokens[i]);
        if (g->done_text) str_free(&g->done_text[i]);
    }
    str_free(&g->piece);
    free(g->session);
    free(g->order);
    free(g->unused);
    free(g->done);
    free(g->done_tokens);
    free(g->done_text);
    free(g->entry);
    free(g->plan);
    free(g->token);
    free(g->position);
    free(g->place);
    free(g->key);
    free(g->asked);
    free(g->hidden);
    free(g->logits);
    free(g->candidates);
    free(g);
}

status engine_spread(struct engine *g, struct cluster *c, struct err *e)
{
    g->cluster = c;
    return cluster_router(c, g->how.router, e);
}

bool engine_has_room(const struct engine *g)
{
    return g->n_unused > 0;
}

bool engine_busy(const struct engine *g)
{
    return g->n_order > 0;
}

const struct engine_stats *engine_stats(const struct engine *g)
{
    return &g->stats;
}

static status check_prompt(const struct engine *g, const int32_t *prompt, int n, struct err *e)
{
    if (n < 1) return err_set(e, ERR_LIMIT, "the prompt is empty");
    if (n >= g->limits.positions)
        return err_set(e, ERR_LIMIT, "the prompt has %d tokens, at most %d leave room for an answer in %d positions", n,
                       g->limits.positions - 1, g->limits.positions);
    for (int i = 0; i < n; i++)
        if (prompt[i] < 0 || prompt[i] >= g->vocab)
            return err_set(e, ERR_FORMAT, "token %d of the prompt is %d, the model has 0 to %d: tokenizer and model do not fit",
                           i, (int)prompt[i], g->vocab - 1);
    return OK;
}

status engine_submit(struct engine *g, uint64_t tag, const int32_t *prompt, int n, const struct sampling *how, struct err *e)
{
    size_t longest = 0;

    BUG_ON(!engine_has_room(g));
    BUG_ON(how->max_tokens < 1 || how->n_stop < 0);
    if (check_prompt(g, prompt, n, e)) return e->code;
    if (how->n_stop && !g->t) return err_set(e, ERR_SPEC, "stop strings need a tokenizer");
    for (int i = 0; i < how->n_stop; i++) {
        size_t length = strlen(how->stop[i]);

        if (!length) return err_set(e, ERR_SPEC, "stop string %d is empty", i);
        if (length > longest) longest = length;
    }

    int place = g->unused[--g->n_unused];
    struct session *s = &g->session[place];

    s->tag = tag;
    s->state = SCHEDULE_QUEUED;
    s->last_step = 0;
    s->how = *how;
    memcpy(s->tokens, prompt, (size_t)n * sizeof(*prompt));
    s->prompt = s->n = n;
    s->passed = 0;
    s->longest_stop = longest;
    s->text_begins = true;
    for (int i = 0; i < n && g->t; i++) s->text_begins &= tokenizer_is_special(g->t, prompt[i]);
    str_clear(&s->text);
    g->order[g->n_order++] = place;
    return OK;
}

/* Lays the planned rows out as a batch; rows of one session are together and in order. */
static int fill_batch(struct engine *g, int pieces)
{
    int rows = 0;

    for (int p = 0; p < pieces; p++) {
        int place = g->order[g->plan[p].entry];
        struct session *s = &g->session[place];

        if (s->state == SCHEDULE_DECODE) g->stats.decode_rows++;
        else g->stats.prefill_rows += (uint64_t)g->plan[p].rows;
        for (int i = 0; i < g->plan[p].rows; i++, rows++) {
            g->token[rows] = s->tokens[s->passed + i];
            g->position[rows] = s->passed + i;
            g->place[rows] = place;
            g->key[rows] = rng_hash(s->how.seed, (uint64_t)(s->passed + i), 1, 0);
            g->asked[rows] = s->passed + i + 1 == s->n;
        }
        s->passed += g->plan[p].rows;
        s->state = s->passed < s->n ? SCHEDULE_PREFILL : SCHEDULE_DECODE;
        s->last_step = g->stats.steps;
    }
    return rows;
}

static bool is_eos(const struct engine *g, int32_t token)
{
    const struct shape *shape = model_shape(g->m);

    for (int i = 0; i < shape->n_eos; i++)
        if (shape->eos[i] == token) return true;
    return false;
}

/* Appends the bytes of the token; returns whether the text now has a stop string, and then cuts it. */
static bool add_text(struct engine *g, struct session *s, int32_t token)
{
    size_t before = s->text.length, from, cut;

    if (!g->t || tokenizer_is_special(g->t, token)) return false;
    str_clear(&g->piece);
    tokenizer_piece(g->t, &g->piece, token);
    if (!g->piece.length) return false;
    const char *bytes = g->piece.text;
    size_t length = g->piece.length;

    if (s->text_begins && bytes[0] == ' ') {
        /* does the tokenizer take this blank for its own when it begins a text? */
        struct str alone = {0};

        tokenizer_decode(g->t, &alone, &token, 1);
        if (!alone.length || alone.text[0] != ' ') {
            bytes++;
            length--;
        }
        str_free(&alone);
    }
    s->text_begins = false;
    if (length) str_add(&s->text, bytes, length);

    /* a stop string may have begun in earlier tokens, but not ended there */
    from = before >= s->longest_stop ? before - s->longest_stop + 1 : 0;
    cut = s->text.length;
    for (int i = 0; i < s->how.n_stop; i++) {
        const char *found = NULL;

        if (s->text.length > from)
            found = memmem(s->text.text + from, s->text.length - from, s->how.stop[i], strlen(s->how.stop[i]));
        if (found && (size_t)(found - s->text.text) < cut) cut = (size_t)(found - s->text.text);
    }
    if (cut == s->text.length) return false;
    s->text.length = cut;
    s->text.text[cut] = 0;
    return true;
}

static enum finish accept(struct engine *g, struct session *s, int32_t token)
{
    if (!s->how.ignore_eos && is_eos(g, token)) return FINISH_STOP;
    s->tokens[s->n++] = token;
    g->stats.tokens++;
    if (add_text(g, s, token)) return FINISH_STOP;
    if (s->n - s->prompt >= s->how.max_tokens || s->n >= g->limits.positions) return FINISH_LENGTH;
    return FINISH_NONE;
}

static void finish_session(struct engine *g, int place, enum finish why, int at)
{
    struct session *s = &g->session[place];
    int32_t *tokens = g->done_tokens[at];
    struct str text = g->done_text[at];

    g->done_tokens[at] = s->tokens;
    g->done_text[at] = s->text;
    s->tokens = tokens;
    s->text = text;
    g->done[at] = (struct sequence){.tag = s->tag,
                                    .finish = why,
                                    .prompt_tokens = s->prompt,
                                    .tokens = g->done_tokens[at] + s->prompt,
                                    .n_tokens = s->n - s->prompt,
                                    .text = g->done_text[at].text ? g->done_text[at].text : "",
                                    .text_length = g->done_text[at].length};
    s->prompt = -1; /* leaves `order` at the end of the step */
    g->unused[g->n_unused++] = place;
}

struct draw { /* one token for each row of logits */
    const struct engine *g;
    const int *place;
    int32_t *token;
};

static void draw_task(void *ctx, int i, int worker)
{
    const struct draw *d = ctx;
    const struct engine *g = d->g;
    const struct session *s = &g->session[d->place[i]];
    size_t V = (size_t)g->vocab;

    d->token[i] = sample_token(g->logits + (size_t)i * V, g->vocab, &s->how, (uint64_t)(s->n - s->prompt),
                               g->candidates + (size_t)worker * V);
}

static void draw_tokens(const struct engine *g, const int *place, int n, int32_t *token)
{
    struct draw d = {g, place, token};
    enum timing_section was = timing_enter(model_timing(g->m), TIME_SAMPLE);

    gemm_parallel(model_gemm(g->m), n, draw_task, &d);
    timing_step(model_timing(g->m), 0, n);
    timing_enter(model_timing(g->m), was);
}

static status head(struct engine *g, int n, struct err *e)
{
    if (g->cluster) return cluster_logits(g->cluster, g->hidden, n, g->logits, e);
    return forward_words(g->m, g->hidden, n, g->logits, e);
}

/* Samples for every planned session whose tokens have all passed; *done: how many ended. */
static status sample_rows(struct engine *g, int pieces, int *done, struct err *e)
{
    size_t width = (size_t)g->width;
    int n_done = 0, row = -1;

    for (int p = 0; p < pieces;) {
        int place[LOGITS_AT_ONCE], n = 0;
        int32_t token[LOGITS_AT_ONCE];

        /* the rows to sample from move to the front: never behind where they come from */
        for (; p < pieces && n < LOGITS_AT_ONCE; p++) {
            int candidate = g->order[g->plan[p].entry];

            row += g->plan[p].rows;
            if (g->session[candidate].passed < g->session[candidate].n) continue;
            memmove(g->hidden + (size_t)n * width, g->hidden + (size_t)row * width, width * sizeof(float));
            place[n++] = candidate;
        }
        if (n && head(g, n, e)) return e->code;
        draw_tokens(g, place, n, token);
        for (int i = 0; i < n; i++) {
            enum finish why = accept(g, &g->session[place[i]], token[i]);

            if (why) finish_session(g, place[i], why, n_done++);
        }
    }
    *done = n_done;
    return OK;
}

static status pass(struct engine *g, const struct batch *b, struct err *e)
{
    if (g->cluster) return cluster_forward(g->cluster, b, &g->how, g->micro_batches, g->hidden, e);
    return forward(g->m, b, &g->how, g->micro_batches, g->hidden, e);
}

status engine_step(struct engine *g, const struct sequence **done, int *n_done, struct err *e)
{
    int kept = 0;

    *done = g->done;
    *n_done = 0;
    if (!g->n_order) return OK;
    g->stats.steps++;
    for (int i = 0; i < g->n_order; i++) {
        const struct session *s = &g->session[g->order[i]];

        g->entry[i] = (struct schedule_entry){.state = s->state, .pending = s->n - s->passed, .last_step = s->last_step};
    }
    struct schedule_limits limits = {.rows = g->limits.rows, .sessions = g->limits.sessions, .chunk = g->limits.chunk};
    int pieces = schedule_step(g->plan, g->entry, g->n_order, limits);
    struct batch b = {.rows = fill_batch(g, pieces),
                      .token = g->token,
                      .position = g->position,
                      .session = g->place,
                      .key = g->key,
                      .asked = g->asked};
    b.decodes = b.rows == pieces;
    if (b.decodes) b.asked = NULL; /* all */

    if (pass(g, &b, e)) return e->code;
    if (sample_rows(g, pieces, n_done, e)) return e->code;
    for (int i = 0; i < g->n_order; i++)
        if (g->session[g->order[i]].prompt >= 0) g->order[kept++] = g->order[i];
    g->n_order = kept;
    return OK;
}
