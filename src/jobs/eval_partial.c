/* OUTPUT/partial.json: what the finished variants of a run gave that was stopped, so that the next one measures the others only.  It counts for
 * the same spec on the same inputs; numbers are written so that they read back as the same double. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "jobs/eval.h"

static char *path_of(const struct eval_run *r)
{
    return str_join(r->job->spec->output, "partial.json");
}

static void key_of(char out[100], const struct eval_run *r, int side, int variant)
{
    snprintf(out, 100, "%d.%.80s", side, r->side[side].variant[variant].name);
}

static struct json_t *reals(const double *x, size_t n)
{
    struct json_t *list = json_array_new();

    for (size_t i = 0; x && i < n; i++) json_append(list, json_real_new(x[i]));
    return list;
}

static struct json_t *scores(const struct eval_score *x, size_t n)
{
    struct json_t *list = json_array_new();

    for (size_t i = 0; x && i < n; i++) {
        json_append(list, json_real_new(x[i].logp));
        json_append(list, json_int_new(x[i].hits));
        json_append(list, json_real_new(x[i].kl));
    }
    return list;
}

/* Exactly n numbers, or NULL. */
static double *read_reals(const struct json_t *o, const char *key, size_t n)
{
    const struct json_t *list = json_at(o, key);

    if (!list || !json_is_array(list) || !n || json_length(list) != n) return NULL;
    double *x = calloc(n, sizeof(*x));
    BUG_ON(!x);
    for (size_t i = 0; i < n; i++) x[i] = json_number(json_item(list, i));
    return x;
}

static struct eval_score *read_scores(const struct json_t *o, const char *key, size_t n)
{
    double *x = read_reals(o, key, 3 * n);
    struct eval_score *s = x ? calloc(n, sizeof(*s)) : NULL;

    for (size_t i = 0; s && i < n; i++)
        s[i] = (struct eval_score){.logp = x[3 * i], .hits = (int)x[3 * i + 1], .kl = x[3 * i + 2]};
    free(x);
    return s;
}

void eval_partial_open(struct eval_run *r)
{
    char *path = path_of(r);
    struct err ignored;

    if (!r->job->answers[0]) goto out;
    if (file_exists(path) && !json_read(&r->partial, path, (size_t)1 << 30, &ignored)) {
        const struct json_t *answers = json_at(r->partial, "answers_sha256");

        if (answers && json_is_text(answers) && !strcmp(json_text(answers), r->job->answers)) goto out;
        json_free(r->partial);
    }
    r->partial = json_object_new();
    json_put_text(r->partial, "answers_sha256", r->job->answers);

out:
    free(path);
}

bool eval_partial_take(struct eval_run *r, int side, int variant)
{
    const struct eval_side *of = &r->side[side];
    struct eval_variant *x = &r->side[side].variant[variant];
    size_t layers = (size_t)of->layers;
    char key[100];

    key_of(key, r, side, variant);
    const struct json_t *o = r->partial ? json_at(r->partial, key) : NULL;
    if (!o) return false;
    x->blocks = read_scores(o, "blocks", r->n_blocks);
    x->pieces = read_scores(o, "pieces", r->n_pieces);
    x->load = read_reals(o, "load", layers * (size_t)of->experts);
    x->agreement = read_reals(o, "agreement", layers);
    x->seconds = json_number(json_at(o, "seconds"));
    x->active_share = json_number(json_at(o, "active_share"));
    x->items_share = json_number(json_at(o, "items_share"));
    x->overhead.router = json_number(json_at(o, "overhead_router"));
    x->overhead.compensation = json_number(json_at(o, "overhead_compensation"));
    x->kl_tokens = (size_t)json_number(json_at(o, "kl_tokens"));
    x->agreement_tokens = (int64_t)json_number(json_at(o, "agreement_tokens"));
    x->done = (x->blocks || !r->n_blocks) && (x->pieces || !r->n_pieces) && json_at(o, "items_share") &&
              (x->agreement || x->kind != VARIANT_ROUTER || r->job->spec->eval.agreement_tokens == 0) &&
              (x->load || !eval_is_routed(x->kind));
    for (size_t i = 0; x->done && i < r->n_blocks; i++) {
        x->nats -= x->blocks[i].logp;
        x->hits += x->blocks[i].hits;
    }
    if (!x->done) eval_variant_clear(x);
    return x->done;
}

status eval_partial_keep(struct eval_run *r, int side, int variant, struct err *e)
{
    const struct eval_side *of = &r->side[side];
    const struct eval_variant *x = &of->variant[variant];
    size_t layers = (size_t)of->layers;
    struct json_t *o;
    char key[100];

    if (!r->partial) return OK;
    o = json_object_new();
    key_of(key, r, side, variant);
    json_put(o, "blocks", scores(x->blocks, r->n_blocks));
    json_put(o, "pieces", scores(x->pieces, r->n_pieces));
    json_put(o, "load", reals(x->load, layers * (size_t)of->experts));
    json_put(o, "agreement", reals(x->agreement, layers));
    json_put_real(o, "seconds", x->seconds);
    json_put_real(o, "active_share", x->active_share);
    json_put_real(o, "items_share", x->items_share);
    json_put_real(o, "overhead_router", x->overhead.router);
    json_put_real(o, "overhead_compensation", x->overhead.compensation);
    json_put_int(o, "kl_tokens", (int64_t)x->kl_tokens);
    json_put_int(o, "agreement_tokens", x->agreement_tokens);
    json_put(r->partial, key, o);
    char *path = path_of(r);
    status s = json_write(path, r->partial, e);
    free(path);
    return s;
}

void eval_partial_close(struct eval_run *r, bool finished)
{
    char *path = path_of(r);

    if (finished) unlink(path);
    free(path);
    json_free(r->partial);
    r->partial = NULL;
}
