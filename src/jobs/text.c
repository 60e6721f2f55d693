/* Text for calibration, fine-tuning and evaluation: from a file, or the dense model's own.
 *
 * Own text: sequences from BOS alone at temperature 1, each up to one window long; the EOS ends one and is not part of it.  Sequence i has
 * its own seed and the text is the sequences in order of i, so it is the same however many are in flight and on any number of ranks.
 */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/stop.h"
#include "data/corpus.h"
#include "engine/engine.h"
#include "jobs/fingerprint.h"
#include "jobs/job.h"
#include "jobs/room.h"

enum { SESSIONS_MAX = 64, EMPTY_MAX = 1000 /* sequences on end that begin with the EOS */ };

struct sampled {
    int32_t *tokens; /* NULL until it is done */
    int n;
};

struct sampler {
    struct engine *engine;
    struct sampled *sequence;
    size_t submitted, room;
    size_t whole;  /* sequences 0 .. whole - 1 are done */
    int64_t ready; /* their tokens */
    int64_t wanted;
    int empty; /* of the last of them, on end, without a token */
};

static void submit(struct sampler *s, int32_t bos, int window, uint64_t seed)
{
    struct sampling how = {
        .temperature = 1, .top_p = 1, .seed = rng_hash(seed, s->submitted, 0, 0), .max_tokens = window, .n_stop = 0};
    struct err e;

    if (s->submitted == s->room) {
        s->room = s->room ? 2 * s->room : 256;
        s->sequence = realloc(s->sequence, s->room * sizeof(*s->sequence));
        BUG_ON(!s->sequence);
    }
    s->sequence[s->submitted] = (struct sampled){0};
    BUG_ON(engine_submit(s->engine, s->submitted, &bos, 1, &how, &e)); /* one token, and it is the model's own */
    s->submitted++;
}

static void keep(struct sampler *s, const struct sequence *done)
{
    struct sampled *to = &s->sequence[done->tag];

    to->tokens = malloc(((size_t)done->n_tokens + 1) * sizeof(*to->tokens));
    BUG_ON(!to->tokens);
    memcpy(to->tokens, done->tokens, (size_t)done->n_tokens * sizeof(*to->tokens));
    to->n = done->n_tokens;
    for (; s->whole < s->submitted && s->sequence[s->whole].tokens; s->whole++) {
        s->ready += s->sequence[s->whole].n;
        s->empty = s->sequence[s->whole].n ? 0 : s->empty + 1;
    }
}

static status sample_all(struct sampler *s, struct job *j, int32_t bos, int window, uint64_t seed, struct err *e)
{
    const struct sequence *done;
    int n_done;

    while (s->ready < s->wanted) {
        while (engine_has_room(s->engine)) submit(s, bos, window, seed);
        if (engine_step(s->engine, &done, &n_done, e)) return e->code;
        for (int i = 0; i < n_done; i++) keep(s, &done[i]);
        if (s->empty > EMPTY_MAX)
            return err_set(e, ERR_FORMAT, "%s: cannot give text: it ended %d sequences on end before their first token",
                           j->spec->model, s->empty);
        log_progress(j->log, "sampling", (double)engine_stats(s->engine)->tokens, (double)s->wanted, "text of the model's own");
        if (stop_asked()) return err_set(e, STOPPED, "stopped on request while text was sampled; run the same command again");
    }
    return OK;
}

/* The first `wanted` tokens of the sequences in order. */
static int32_t *join(const struct sampler *s)
{
    int32_t *tokens = malloc((size_t)s->wanted * sizeof(*tokens));
    int64_t at = 0;

    BUG_ON(!tokens);
    for (size_t i = 0; i < s->whole && at < s->wanted; i++)
        for (int t = 0; t < s->sequence[i].n && at < s->wanted; t++) tokens[at++] = s->sequence[i].tokens[t];
    BUG_ON(at < s->wanted);
    return tokens;
}

static size_t decoded_bytes(const struct tokenizer *k, const int32_t *tokens, int64_t n)
{
    struct str text = {0};

    tokenizer_decode(k, &text, tokens, (size_t)n);
    size_t bytes = text.length;
    str_free(&text);
    return bytes;
}

static status sample_text(struct job *j, const struct spec_text *t, struct model *m, int window, int32_t **tokens, struct err *e)
{
    const struct model_limits *room = model_limits_of(m);
    const struct shape *shape = model_shape(m);
    struct engine_limits limits = {
        .rows = room->rows, .sessions = room->sessions < SESSIONS_MAX ? room->sessions : SESSIONS_MAX, .positions = window + 1};
    struct sampler s = {.wanted = t->sample_tokens};
    struct routing all = {.route = ROUTE_ALL};
    int32_t bos = shape->bos >= 0 ? shape->bos : shape->n_eos ? shape->eos[0] : -1;
    status result;

    if (bos < 0)
        return err_set(e, ERR_FORMAT, "%s: has neither a BOS nor an EOS to begin text with; give a file of text instead",
                       j->spec->model);
    result = engine_open(&s.engine, m, NULL, &all, (int)j->spec->cluster.micro_batches, limits, e);
    if (!result) result = sample_all(&s, j, bos, window, (uint64_t)t->sample_seed, e);
    log_progress_end(j->log);
    if (!result) *tokens = join(&s);
    engine_close(s.engine);
    for (size_t i = 0; i < s.submitted; i++) free(s.sequence[i].tokens);
    free(s.sequence);
    return result;
}

static struct json_t *cache_key(const struct spec *spec, const struct spec_text *t, const char *model, int window,
                                const struct shape *shape)
{
    struct json_t *key = json_object_new();

    json_put_text(key, "model_sha256", model);
    json_put_int(key, "tokens", t->sample_tokens);
    json_put_int(key, "seed", t->sample_seed);
    json_put_int(key, "window", window);
    json_put_int(key, "vocab", shape->vocab);
    json_put(key, "precision", room_precision_json(spec));
    return key;
}

/* A cache that is not exactly what would be made now is as good as none. */
static bool read_cache(struct corpus *out, const char *path, const struct json_t *key, int64_t n, int vocab)
{
    struct json_t *cache = NULL;
    struct str mine = {0}, theirs = {0};
    struct err ignored;
    int64_t bytes = 0;
    int32_t *tokens = NULL;
    bool good = false;

    if (json_read(&cache, path, (size_t)1 << 30, &ignored)) return false;
    const struct json_t *list = json_at(cache, "tokens");
    if (!json_at(cache, "key") || !json_is_array(list) || (int64_t)json_length(list) != n) goto out;
    if (json_get_int(&bytes, cache, "bytes", 0, INT64_MAX, JSON_REQUIRED, path, &ignored)) goto out;
    json_dump(&mine, key, false);
    json_dump(&theirs, json_at(cache, "key"), false);
    if (strcmp(mine.text, theirs.text) != 0) goto out;
    tokens = malloc((size_t)n * sizeof(*tokens));
    BUG_ON(!tokens);
    for (int64_t i = 0; i < n; i++) {
        const struct json_t *v = json_item(list, (size_t)i);

        if (!json_is_int(v) || json_int(v) < 0 || json_int(v) >= vocab) goto out;
        tokens[i] = (int32_t)json_int(v);
    }
    corpus_from_tokens(out, tokens, (size_t)n, (size_t)bytes);
    good = true;

out:
    free(tokens);
    str_free(&mine);
    str_free(&theirs);
    json_free(cache);
    return good;
}

static status write_cache(const char *path, const struct json_t *key, const struct corpus *c, struct err *e)
{
    struct json_t *cache = json_object_new(), *list = json_array_new();
    struct str text = {0};

    for (size_t i = 0; i < c->n_tokens; i++) json_append(list, json_int_new(c->tokens[i]));
    json_put(cache, "key", json_clone(key));
    json_put_int(cache, "bytes", (int64_t)c->bytes);
    json_put(cache, "tokens", list);
    json_dump(&text, cache, false); /* one line: a number per line would be four times as long */
    str_addz(&text, "\n");
    status s = file_write(path, text.text, text.length, e);
    str_free(&text);
    json_free(cache);
    return s;
}

status job_text(struct job *j, const struct spec_text *t, const char *name, struct model *m, const struct tokenizer *k,
                struct corpus *out, struct err *e)
{
    *out = (struct corpus){0};
    if (t->file) return corpus_read(out, t->file, (size_t)t->bytes, k, e);
    if (t->sample_tokens < 1)
        return err_set(e, ERR_SPEC, "%s: %s: expected a file of text or a number of tokens to sample", j->spec->source, name);

    const struct shape *shape = model_shape(m);
    const struct model_limits *room = model_limits_of(m);
    int window = room->positions < ROOM_SAMPLE_WINDOW ? room->positions : ROOM_SAMPLE_WINDOW;
    struct str file_name = {0};
    struct json_t *key = NULL;
    int32_t *tokens = NULL;
    char model[65];
    status s = fingerprint_model(model, j->spec->model, e);

    str_addf(&file_name, "%s.tokens.json", name);
    char *path = str_join(j->spec->output, file_name.text);
    if (s) goto out;
    key = cache_key(j->spec, t, model, window, shape);
    if (read_cache(out, path, key, t->sample_tokens, shape->vocab)) {
        log_line(j->log, "%s: %lld tokens of the model's own text, sampled before: %s", name, (long long)t->sample_tokens, path);
        goto out;
    }
    log_line(j->log, "%s: sampling %lld tokens of text from the dense model itself", name, (long long)t->sample_tokens);
    s = sample_text(j, t, m, window, &tokens, e);
    if (s) goto out;
    corpus_from_tokens(out, tokens, (size_t)t->sample_tokens, decoded_bytes(k, tokens, t->sample_tokens));
    s = write_cache(path, key, out, e);
    if (s) corpus_free(out);

out:
    free(tokens);
    json_free(key);
    free(path);
    str_free(&file_name);
    return s;
}
