/* The infer job: a file of requests through the engine, rows to disk as they finish.
 *
 * Before anything starts the whole input is looked through once for ids, so that duplicates are refused while nothing is done; a line is
 * parsed fully when its turn comes.  Nothing of a sequence in flight is kept: after an interruption it is done again, and gives the same.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/stop.h"
#include "data/digest.h"
#include "jobs/fingerprint.h"
#include "jobs/infer_input.h"
#include "jobs/infer_journal.h"
#include "jobs/job.h"
#include "jobs/room.h"
#include "model/router_file.h"

enum { SHOW_ROWS = 20, COLUMNS_DEFAULT = 110, EVENT_SECONDS = 10 };

struct infer {
    struct job *j;
    struct infer_input in;
    size_t next; /* the first line that was not submitted */

    struct shape shape;
    struct tokenizer *t;
    struct router router;
    struct routing how;
    struct room room;
    struct engine *engine;
    struct journal *journal;
    const char *model_name;

    int64_t ok, failed, skipped, prompt_tokens, generated;
    double start, last_event;
};

/* --- what was done before -------------------------------------------------------------------------------------------- */

static status mark_done(void *context, const char *key, bool ok, const char *source, struct err *e)
{
    struct infer *f = context;
    struct infer_line *l = infer_input_find(&f->in, key);

    (void)ok;
    if (!l) return err_set(e, ERR_FORMAT, "%s: id %.200s is not in %s", source, key, f->in.path);
    if (l->done) return err_set(e, ERR_FORMAT, "%s: id %.200s is there a second time", source, key);
    l->done = true;
    f->skipped++;
    return OK;
}

static void describe_input(struct json_t *meta, const struct infer *f, size_t bytes)
{
    char digest[65];

    digest_bytes(digest, f->in.text, bytes);
    json_put_text(meta, "input_sha256", digest);
    json_put_int(meta, "input_bytes", (int64_t)bytes);
}

/* Was `there` said of the first lines of this input?  Then only lines have come to its end, and the rows that are there stand. */
static bool has_grown(const struct infer *f, const struct json_t *there, size_t *bytes)
{
    const struct json_t *n = json_at(there, "input_bytes"), *digest = json_at(there, "input_sha256");
    char prefix[65];

    if (!n || !json_is_int(n) || json_int(n) < 1 || (uint64_t)json_int(n) >= f->in.length || !digest || !json_is_text(digest))
        return false;
    *bytes = (size_t)json_int(n);
    if (f->in.text[*bytes] != '\n' && f->in.text[*bytes - 1] != '\n') return false;
    digest_bytes(prefix, f->in.text, *bytes);
    return !strcmp(prefix, json_text(digest));
}

/* Everything that decides what a row says, and nothing that does not (ranks, batch sizes, threads). */
static status describe_run(const struct infer *f, struct json_t *meta, struct err *e)
{
    const struct spec *s = f->j->spec;
    struct json_t *stop = json_array_new();
    char digest[65];

    for (int i = 0; i < s->infer.stop.n; i++)
        json_append(stop, json_text_new(s->infer.stop.items[i], strlen(s->infer.stop.items[i])));
    json_put(meta, "stop", stop);
    describe_input(meta, f, f->in.length);

    if (fingerprint_model(digest, s->model, e)) return e->code;
    json_put_text(meta, "model_sha256", digest);
    if (f->how.router) {
        router_digest(digest, f->how.router);
        json_put_text(meta, "router_sha256", digest);
    }
    json_put_text(meta, "variant", spec_variant_name((enum spec_variant)s->infer.variant));
    json_put_int(meta, "positions", room_positions(s, &f->shape)); /* not what this input needs: it may grow */
    json_put_int(meta, "max_tokens", s->infer.max_tokens);
    json_put_real(meta, "temperature", s->infer.temperature);
    json_put_real(meta, "top_p", s->infer.top_p);
    json_put_real(meta, "min_p", s->infer.min_p);
    json_put_int(meta, "top_k", s->infer.top_k);
    json_put_bool(meta, "ignore_eos", s->infer.ignore_eos);
    if (s->infer.batch_experts < 1) json_put_real(meta, "batch_experts", s->infer.batch_experts);
    json_put_int(meta, "seed", s->seed);
    json_put_int(meta, "exchange_rows", s->cluster.exchange_rows);
    json_put_int(meta, "exchange_answers", s->cluster.exchange_answers);
    json_put(meta, "precision", room_precision_json(s));
    if (s->precision.activations) { /* then answers depend on the level, too */
        struct gemm *g = cluster_gemm(f->j->cluster);

        gemm_use_half(g, true, f->j->log);
        json_put_text(meta, "kernels", isa_name(gemm_kernel(g)->isa));
    }
    return OK;
}

static status open_journal(struct infer *f, struct err *e)
{
    const struct spec *s = f->j->spec;
    char *path = s->infer.result ? str_dup(s->infer.result) : str_join(s->output, "responses.jsonl");
    struct json_t *meta = json_object_new();
    char *meta_file = journal_meta_path(path);
    struct json_t *there = NULL;
    struct err ignored;
    size_t before = 0;
    bool replaced = false;
    status st = describe_run(f, meta, e);
    bool grown =
        !st && file_exists(meta_file) && !json_read(&there, meta_file, 1 << 20, &ignored) && has_grown(f, there, &before);

    if (grown) describe_input(meta, f, before);
    if (!st) st = journal_open(&f->journal, path, meta, mark_done, f, f->j->in_pipeline, &replaced, e);
    if (!st && replaced)
        log_line(f->j->log, "%s: its rows belonged to an earlier run of the pipeline; they are in %s.old now", path, path);
    if (!st && grown) {
        describe_input(meta, f, f->in.length);
        st = json_write(meta_file, meta, e);
    }
    if (!st && f->skipped) log_line(f->j->log, "%s: %lld of %zu rows are there already", path, (long long)f->skipped, f->in.n);
    if (!st) json_put_text(f->j->result, "responses", path);
    json_free(there);
    json_free(meta);
    free(meta_file);
    free(path);
    return st;
}

/* --- the model ------------------------------------------------------------------------------------------------------- */

/* A dense model has nothing to route; `dense` and the default are then the same thing. */
static status choose_routing(struct infer *f, struct err *e)
{
    static const enum route routes[VARIANTS_INFER] = {[VARIANT_DENSE] = ROUTE_ALL,
                                                      [VARIANT_STATIC] = ROUTE_STATIC,
                                                      [VARIANT_RANDOM] = ROUTE_RANDOM,
                                                      [VARIANT_ROUTER] = ROUTE_ROUTER,
                                                      [VARIANT_ORACLE] = ROUTE_GRAM};
    const struct spec *s = f->j->spec;
    enum spec_variant v = (enum spec_variant)s->infer.variant;

    f->how = (struct routing){.route = routes[v],
                              .scale = f->shape.scale,
                              .compensate = f->shape.compensate,
                              .seed = (uint64_t)s->seed,
                              .batch_experts = s->infer.batch_experts < 1 ? s->infer.batch_experts : 0};
    if (!f->shape.experts) {
        if (v != VARIANT_DENSE && v != VARIANT_ROUTER)
            return err_set(e, ERR_SPEC, "%s: variant: %s needs a factorized model, %s is dense", s->source, spec_variant_name(v),
                           s->model);
        f->how.route = ROUTE_ALL;
        return OK;
    }
    if (v != VARIANT_ROUTER) return OK;
    f->how.router = &f->router;
    if (router_read(&f->router, s->model, NULL, &f->shape, e)) return e->code;
    f->how.compensate = f->shape.compensate || router_compensates(&f->router);
    return router_pack(&f->router, room_router(s), cluster_gemm(f->j->cluster), e);
}

static void alive(void *cluster)
{
    cluster_alive(cluster);
}

static status set_room(struct infer *f, struct err *e)
{
    int64_t longest = infer_input_longest(&f->in, f->t);

    return room_infer(&f->room, f->j->spec, &f->shape, (int64_t)f->in.n, longest, e);
}

static status open_engine(struct infer *f, struct err *e)
{
    struct model_limits *limits = &f->room.limits;
    int64_t waiting = (int64_t)f->in.n - f->skipped;
    struct model *m;

    if (limits->sessions > waiting) limits->sessions = (int)waiting; /* memory for more would never be used */
    if (room_open(f->j->cluster, f->j->spec->model, &f->room, &m, e)) return e->code;
    if (engine_open(&f->engine, m, f->t, &f->how, (int)f->j->spec->cluster.micro_batches,
                    (struct engine_limits){.rows = limits->rows,
                                           .sessions = limits->sessions,
                                           .positions = limits->positions,
                                           .chunk = (int)f->j->spec->limits.prefill_chunk},
                    e))
        return e->code;
    return engine_spread(f->engine, f->j->cluster, e);
}

/* --- the run --------------------------------------------------------------------------------------------------------- */

static status encode_prompt(struct infer *f, const struct infer_request *r, int32_t **ids, int *n, struct err *e)
{
    int32_t *text = NULL, first = f->shape.bos;
    size_t n_text = 0;

    *ids = NULL;
    *n = 0;
    if (tokenizer_encode(f->t, &text, &n_text, r->prompt, r->prompt_length, e)) return e->code;
    if (first < 0 && n_text == 0 && f->shape.n_eos) first = f->shape.eos[0]; /* something has to stand before the first token */
    if (n_text >= (size_t)f->room.limits.positions) { /* the engine counts the same way; this one before int overflows */
        free(text);
        return err_set(e, ERR_LIMIT, "the prompt has %zu tokens, at most %d leave room for an answer in %d positions",
                       n_text + (first >= 0), f->room.limits.positions - 1, f->room.limits.positions);
    }
    *ids = malloc((n_text + 1) * sizeof(**ids));
    BUG_ON(!*ids);
    if (first >= 0) (*ids)[(*n)++] = first;
    if (n_text) memcpy(*ids + *n, text, n_text * sizeof(*text));
    *n += (int)n_text;
    free(text);
    return OK;
}

/* A request that cannot be done gets its error row; only the machine's own errors are returned. */
static void submit(struct infer *f, size_t at)
{
    struct infer_line *l = &f->in.line[at];
    struct infer_request *r = calloc(1, sizeof(*r));
    struct str source = {0}, message = {0};
    int32_t *ids = NULL;
    struct err e;
    int n;

    BUG_ON(!r);
    infer_input_source(&source, &f->in, l->number);
    bool parsed = !infer_parse(r, f->in.text + l->at, l->length, source.text, l->number, &f->in.defaults, f->in.batch, &e);
    if (parsed && !encode_prompt(f, r, &ids, &n, &e) && !engine_submit(f->engine, at, ids, n, &r->how, &e)) {
        l->request = r;
    } else {
        if (parsed) str_addf(&message, "%s: %s", source.text, e.text); /* the parser's messages name the line themselves */
        else str_addz(&message, e.text);
        infer_add_error(journal_buffer(f->journal), r, message.text);
        f->failed++;
        infer_request_clear(r);
        free(r);
    }
    free(ids);
    str_free(&source);
    str_free(&message);
}

static int terminal_columns(void)
{
    struct winsize w;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0) return w.ws_col - 1;
    return COLUMNS_DEFAULT;
}

static void finish(struct infer *f, const struct sequence *s)
{
    struct infer_line *l = &f->in.line[s->tag];

    infer_add_answer(journal_buffer(f->journal), l->request, s, f->model_name);
    f->ok++;
    f->prompt_tokens += s->prompt_tokens;
    f->generated += s->n_tokens;
    if (f->in.n <= SHOW_ROWS) {
        struct str shown = {0};

        infer_show(&shown, l->request->prompt, l->request->prompt_length, s->text, s->text_length, terminal_columns() - 2);
        log_line(f->j->log, "  %s", shown.text);
        str_free(&shown);
    }
    infer_request_clear(l->request);
    free(l->request);
    l->request = NULL;
}

static status feed(struct infer *f, struct err *e)
{
    enum { BUFFER_BYTES = 1 << 20 };

    while (f->next < f->in.n && engine_has_room(f->engine)) {
        size_t at = f->next++;

        if (f->in.line[at].done) continue;
        submit(f, at);
        if (at % 256 == 255) cluster_alive(f->j->cluster);
        if (journal_buffer(f->journal)->length > BUFFER_BYTES && journal_sync(f->journal, e)) return e->code;
    }
    return OK;
}

static status run(struct infer *f, struct err *e)
{
    const struct engine_stats *stats = engine_stats(f->engine);
    const struct sequence *done;
    int n_done;

    f->start = clock_now();
    for (;;) {
        if (feed(f, e)) return e->code;
        if (engine_step(f->engine, &done, &n_done, e)) return e->code;
        for (int i = 0; i < n_done; i++) finish(f, &done[i]);
        if (journal_sync(f->journal, e)) return e->code;
        if (!engine_busy(f->engine) && f->next == f->in.n) return OK;

        int64_t rows = f->ok + f->failed + f->skipped;
        double seconds = clock_now() - f->start;

        log_progress(f->j->log, "infer", (double)rows, (double)f->in.n, "%lld of %zu rows, %.0f tokens/s", (long long)rows,
                     f->in.n, seconds > 0 ? (double)stats->tokens / seconds : 0.0);
        if (seconds - f->last_event > EVENT_SECONDS) {
            struct json_t *o = json_object_new();

            f->last_event = seconds;
            json_put_int(o, "rows", rows);
            json_put_int(o, "generated_tokens", (int64_t)stats->tokens);
            json_put_real(o, "tokens_per_second", (double)stats->tokens / seconds);
            job_event(f->j, "progress", o);
        }
        if (stop_asked())
            return err_set(e, STOPPED, "stopped on request with %lld of %zu rows done; run the same command again to go on",
                           (long long)rows, f->in.n);
    }
}

static void report(const struct infer *f)
{
    static const struct engine_stats nothing;
    const struct engine_stats *s = f->engine ? engine_stats(f->engine) : &nothing;
    double seconds = f->engine ? clock_now() - f->start : 0;
    struct json_t *o = f->j->result;

    json_put_int(o, "rows", (int64_t)f->in.n);
    json_put_int(o, "ok", f->ok);
    json_put_int(o, "failed", f->failed);
    json_put_int(o, "skipped", f->skipped);
    json_put_int(o, "prompt_tokens", f->prompt_tokens);
    json_put_int(o, "generated_tokens", f->generated);
    json_put_real(o, "tokens_per_second", seconds > 0 ? (double)s->tokens / seconds : 0);
    json_put_int(o, "steps", (int64_t)s->steps);
    json_put_int(o, "prefill_rows", (int64_t)s->prefill_rows);
    json_put_int(o, "decode_rows", (int64_t)s->decode_rows);
    json_put_real(o, "mean_batch", s->steps ? (double)(s->prefill_rows + s->decode_rows) / (double)s->steps : 0);
    json_put_real(o, "generation_seconds", seconds);
    json_put_text(o, "variant",
                  f->shape.experts ? spec_variant_name((enum spec_variant)f->j->spec->infer.variant)
                                   : spec_variant_name(VARIANT_DENSE));
    log_line(f->j->log,
             "%lld rows answered, %lld refused, %lld done before; %lld tokens in %.1f s (%.0f tokens/s, %.1f rows a step)",
             (long long)f->ok, (long long)f->failed, (long long)f->skipped, (long long)s->tokens, seconds,
             seconds > 0 ? (double)s->tokens / seconds : 0.0,
             s->steps ? (double)(s->prefill_rows + s->decode_rows) / (double)s->steps : 0.0);
}

static void release(struct infer *f)
{
    engine_close(f->engine);
    journal_close(f->journal);
    tokenizer_close(f->t);
    router_free(&f->router);
    infer_input_free(&f->in);
}

status job_infer(struct job *j, struct err *e)
{
    struct infer f = {.j = j, .model_name = strrchr(j->spec->model, '/')};
    status s;

    f.model_name = f.model_name && f.model_name[1] ? f.model_name + 1 : j->spec->model;
    infer_input_init(&f.in, j->spec);
    f.in.alive = alive;
    f.in.alive_ctx = j->cluster;
    s = infer_input_read(&f.in, e);
    if (!s) s = shape_read(&f.shape, j->spec->model, e);
    if (!s) s = choose_routing(&f, e);
    if (!s) s = tokenizer_open(&f.t, j->spec->model, e);
    if (!s) s = set_room(&f, e);
    if (!s) s = open_journal(&f, e);
    if (!s && f.skipped < (int64_t)f.in.n) s = open_engine(&f, e);
    if (!s) {
        if (f.engine) s = run(&f, e);
        log_progress_end(j->log);
        report(&f);
    }
    release(&f);
    return s;
}
