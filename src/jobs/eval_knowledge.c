#include "jobs/eval_knowledge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/str.h"
#include "model/router_file.h"
#include "num/ops.h"

/* --- counting --- */

static double *zeros(size_t n)
{
    double *x = calloc(n + 1, sizeof(*x));

    BUG_ON(!x);
    return x;
}

void knowledge_open(struct knowledge *k, int layers, int experts, int domains)
{
    size_t cells = (size_t)layers * (size_t)experts;

    *k = (struct knowledge){.layers = layers, .experts = experts, .domains = domains};
    k->domain = calloc((size_t)domains + 1, sizeof(*k->domain));
    BUG_ON(!k->domain);
    for (int d = 0; d < domains; d++) {
        k->domain[d].count = zeros(cells);
        k->domain[d].load = zeros(cells);
        k->domain[d].special = zeros(cells);
    }
    if (experts <= KNOWLEDGE_PAIR_EXPERTS) k->both = zeros(cells * (size_t)experts);
    k->opinion = zeros((size_t)layers);
    k->load_entropy = zeros((size_t)layers);
    k->information = zeros((size_t)layers);
    k->router_entropy = zeros((size_t)layers);
}

void knowledge_close(struct knowledge *k)
{
    for (int d = 0; d < k->domains; d++) {
        free(k->domain[d].count);
        free(k->domain[d].load);
        free(k->domain[d].special);
    }
    free(k->domain);
    free(k->both);
    free(k->opinion);
    free(k->load_entropy);
    free(k->information);
    free(k->router_entropy);
    *k = (struct knowledge){0};
}

/* Of softmax(z), over log n. */
static double entropy_of(const float *z, int n)
{
    double total = log_sum_exp(z, n), sum = 0;

    for (int i = 0; i < n; i++) {
        double logp = (double)z[i] - total;

        if (logp > -700) sum -= exp(logp) * logp;
    }
    return n > 1 ? sum / log(n) : 0;
}

void knowledge_add(struct knowledge *k, int domain, int layer, int rows, const uint64_t *set, const float *z)
{
    int n = k->experts, words = bits_words(n);
    size_t at = (size_t)layer * (size_t)n;

    for (int t = 0; t < rows; t++, set += words, z += n) {
        for (int i = bits_next(set, n, 0); i < n; i = bits_next(set, n, i + 1)) {
            double *row = k->both ? k->both + (at + (size_t)i) * (size_t)n : NULL;

            k->domain[domain].count[at + (size_t)i]++;
            for (int j = row ? bits_next(set, n, 0) : n; j < n; j = bits_next(set, n, j + 1)) row[j]++;
        }
        k->opinion[layer] += entropy_of(z, n);
    }
    if (layer > 0) return; /* a token goes through every layer */
    k->domain[domain].tokens += rows;
    k->tokens += rows;
}

/* --- what it means --- */

static void finish_layer(struct knowledge *k, int layer, double *mean)
{
    int n = k->experts, D = k->domains;
    size_t at = (size_t)layer * (size_t)n;
    double total = 0;

    for (int i = 0; i < n; i++) {
        double smooth = 0;

        mean[i] = 0;
        for (int d = 0; d < D; d++) {
            mean[i] += k->domain[d].load[at + (size_t)i] / D;
            smooth += (k->domain[d].count[at + (size_t)i] + 0.5) / (k->domain[d].tokens + 1) / D;
        }
        for (int d = 0; d < D; d++)
            k->domain[d].special[at + (size_t)i] =
                log2((k->domain[d].count[at + (size_t)i] + 0.5) / (k->domain[d].tokens + 1) / smooth);
        total += mean[i];
    }
    for (int i = 0; i < n && total > 0; i++)
        if (mean[i] > 0 && n > 1) k->load_entropy[layer] -= mean[i] / total * log(mean[i] / total) / log(n);
    /* p(e) of an activation, whatever the domain: the mean of p(e | d) */
    for (int i = 0; i < n; i++) mean[i] = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int d = 0; d < D; d++) {
            const double *load = k->domain[d].load + at;
            double sum = 0;

            for (int i = 0; i < n; i++) sum += load[i];
            for (int i = 0; i < n && sum > 0; i++) {
                double p = load[i] / sum;

                if (pass == 0) mean[i] += p / D;
                else if (p > 0) k->information[layer] += p / D * log2(p / mean[i]);
            }
        }
}

void knowledge_finish(struct knowledge *k)
{
    double *mean = zeros((size_t)k->experts);

    for (int d = 0; d < k->domains; d++)
        for (int i = 0; i < k->layers * k->experts; i++)
            k->domain[d].load[i] = k->domain[d].tokens > 0 ? k->domain[d].count[i] / k->domain[d].tokens : 0;
    for (int l = 0; l < k->layers; l++) {
        k->router_entropy[l] = k->tokens > 0 ? k->opinion[l] / k->tokens : 0;
        k->load_entropy[l] = k->information[l] = 0;
        finish_layer(k, l, mean);
    }
    free(mean);
}

int knowledge_top(const struct knowledge *k, int domain, int *at, int n)
{
    const struct knowledge_domain *d = &k->domain[domain];
    int found = 0;

    for (int i = 0; i < k->layers * k->experts; i++) {
        double says = d->load[i] * d->special[i];
        int place = found < n ? found++ : n;

        while (place > 0 && says > d->load[at[place - 1]] * d->special[at[place - 1]]) {
            if (place < n) at[place] = at[place - 1];
            place--;
        }
        if (place < n) at[place] = i;
    }
    while (found > 0 && !(d->special[at[found - 1]] > 0)) found--;
    return found;
}

/* --- result.json and knowledge.json --- */

static struct json_t *reals(const double *x, int n)
{
    struct json_t *list = json_array_new();

    for (int i = 0; i < n; i++) json_append(list, json_real_new(x[i]));
    return list;
}

static struct json_t *matrix(const double *x, int rows, int cols)
{
    struct json_t *list = json_array_new();

    for (int i = 0; i < rows; i++) json_append(list, reals(x + (size_t)i * (size_t)cols, cols));
    return list;
}

static struct json_t *top_json(const struct knowledge *k, int d)
{
    struct json_t *list = json_array_new();
    int at[KNOWLEDGE_TOP], n = knowledge_top(k, d, at, KNOWLEDGE_TOP);

    for (int i = 0; i < n; i++) {
        struct json_t *o = json_object_new();

        json_put_int(o, "layer", at[i] / k->experts);
        json_put_int(o, "expert", at[i] % k->experts);
        json_put_real(o, "specialisation", k->domain[d].special[at[i]]);
        json_put_real(o, "load", k->domain[d].load[at[i]]);
        json_append(list, o);
    }
    return list;
}

struct pair {
    int layer, a, b;
    double share, ratio;
};

/* Pairs by share * log(ratio): often together, and more often than by chance.  Returns how many. */
static int best_pairs(const struct knowledge *k, struct pair *best, int most)
{
    size_t n = (size_t)k->experts;
    int found = 0;

    for (int l = 0; k->both && l < k->layers; l++)
        for (size_t a = 0; a < n; a++)
            for (size_t b = a + 1; b < n; b++) {
                const double *both = k->both + (size_t)l * n * n;
                double share = both[a * n + b] / k->tokens, pa = both[a * n + a] / k->tokens, pb = both[b * n + b] / k->tokens;
                struct pair p = {l, (int)a, (int)b, share, share > 0 ? share / (pa * pb) : 0};
                double says = share > 0 ? share * log(p.ratio) : 0;
                int place = found;

                if (!(says > 0)) continue;
                while (place > 0 && says > best[place - 1].share * log(best[place - 1].ratio)) place--;
                if (place >= most) continue;
                if (found < most) found++;
                memmove(best + place + 1, best + place, (size_t)(found - place - 1) * sizeof(*best));
                best[place] = p;
            }
    return found;
}

static struct json_t *pairs_json(const struct knowledge *k)
{
    struct pair best[2 * KNOWLEDGE_TOP];
    int n = best_pairs(k, best, 2 * KNOWLEDGE_TOP);
    struct json_t *list = json_array_new();

    for (int i = 0; i < n; i++) {
        struct json_t *o = json_object_new();

        json_put_int(o, "layer", best[i].layer);
        json_put_int(o, "a", best[i].a);
        json_put_int(o, "b", best[i].b);
        json_put_real(o, "ratio", best[i].ratio);
        json_put_real(o, "share", best[i].share);
        json_append(list, o);
    }
    return list;
}

static struct json_t *coactivation_json(const struct knowledge *k)
{
    struct json_t *layers = json_array_new();
    size_t n = (size_t)k->experts, cells = n * n;
    double *share = zeros(cells);

    for (int l = 0; l < k->layers; l++) {
        for (size_t i = 0; i < cells; i++) share[i] = k->both[(size_t)l * cells + i] / k->tokens;
        json_append(layers, matrix(share, k->experts, k->experts));
    }
    free(share);
    return layers;
}

/* whole: with all matrices, whatever their size. */
static struct json_t *knowledge_json(const struct knowledge *k, bool whole)
{
    struct json_t *o = json_object_new(), *tokens = json_object_new(), *accuracy = json_object_new(), *ppl = json_object_new(),
                  *load = json_object_new(), *special = json_object_new(), *top = json_object_new();
    bool matrices = whole || (int64_t)k->layers * k->experts * k->domains <= KNOWLEDGE_INLINE;

    for (int d = 0; d < k->domains; d++) {
        const struct knowledge_domain *x = &k->domain[d];

        json_put_int(tokens, x->name, (int64_t)x->tokens);
        json_put_real(accuracy, x->name, x->hits / x->tokens);
        json_put_real(ppl, x->name, exp(x->nats / x->tokens));
        json_put(top, x->name, top_json(k, d));
        if (!matrices) continue;
        json_put(load, x->name, matrix(x->load, k->layers, k->experts));
        json_put(special, x->name, matrix(x->special, k->layers, k->experts));
    }
    json_put_text(o, "variant", "router");
    json_put_int(o, "layers", k->layers);
    json_put_int(o, "experts", k->experts);
    json_put(o, "tokens", tokens);
    json_put(o, "accuracy", accuracy);
    json_put(o, "perplexity", ppl);
    json_put(o, "load_entropy", reals(k->load_entropy, k->layers));
    json_put(o, "router_entropy", reals(k->router_entropy, k->layers));
    json_put(o, "information", reals(k->information, k->layers));
    json_put(o, "top", top);
    json_put(o, "together", pairs_json(k));
    if (matrices) json_put(o, "load", load);
    else json_free(load);
    if (matrices) json_put(o, "specialisation", special);
    else json_free(special);
    if (whole && k->both) json_put(o, "coactivation", coactivation_json(k));
    return o;
}

/* --- measuring --- */

struct visit {
    struct knowledge *k;
    int domain;
    const struct router *router;
    struct gemm *gemm;
    void *quantized, *room;
    float *z;
};

static void visit_rows(void *ctx, int layer, int rows, const float *h, const uint64_t *active)
{
    const struct visit *v = ctx;
    struct rows in = {.x = h, .ld = (size_t)v->router->width, .n = rows, .cols = v->router->width};

    router_scores(v->router, v->gemm, layer, &in, v->quantized, v->room, v->z);
    knowledge_add(v->k, v->domain, layer, rows, active, v->z);
}

static status visit_domain(struct eval_run *r, struct visit *v, struct eval_scorer *s, const struct routing *how,
                           const char *item, struct err *e)
{
    enum { BYTES_OF_TOKEN = 16 }; /* more than a token has in the mean: what is read is bounded */
    struct knowledge_domain *d = &v->k->domain[v->domain];
    const char *equal = strchr(item, '=');
    int64_t most = r->job->spec->eval.domain_tokens;
    struct corpus c = {0};
    size_t n_windows, n_scores;

    snprintf(d->name, sizeof(d->name), "%.*s", (int)(equal - item), item);
    if (corpus_read(&c, equal + 1, (size_t)most * BYTES_OF_TOKEN, r->tokenizer, e)) return e->code;
    if (c.n_tokens > (size_t)most) c.n_tokens = (size_t)most;
    struct eval_sequence *windows = eval_windows(&n_windows, &n_scores, &c, r->window);
    struct eval_score *score = calloc(n_scores + 1, sizeof(*score));
    struct str what = {0};

    BUG_ON(!score);
    str_addf(&what, "knowledge: %s", d->name);
    struct eval_pass pass = {
        .q = windows, .n = n_windows, .how = how, .stream = 2, .what = what.text, .score = score, .n_scores = n_scores};
    status st = eval_visit(s, &pass, visit_rows, v, e);
    for (size_t i = 0; i < n_scores && !st; i++) {
        d->nats -= score[i].logp;
        d->hits += score[i].hits;
    }
    str_free(&what);
    free(score);
    free(windows);
    corpus_free(&c);
    return st;
}

static status visit_all(struct eval_run *r, struct knowledge *k, struct eval_scorer *s, const struct router *router,
                        struct err *e)
{
    const struct spec_list *domains = &r->job->spec->eval.domains;
    const struct shape *shape = model_shape(s->model);
    struct visit v = {.k = k, .router = router, .gemm = model_gemm(s->model)};
    const struct routing how = eval_route(VARIANT_ROUTER, shape, router, r->job->spec);
    size_t room = (router_room(router, s->rows) + 63) & ~(size_t)63,
           bytes = (rows_bytes(s->rows, shape->width) + 63) & ~(size_t)63;
    status st = OK;

    v.z = malloc((size_t)s->rows * (size_t)shape->experts * sizeof(float));
    v.room = aligned_alloc(64, room + 64);
    v.quantized = aligned_alloc(64, bytes + 64);
    if (!v.z || !v.room || !v.quantized) st = err_set(e, ERR_LIMIT, "out of memory for the scores of %d rows", s->rows);
    for (v.domain = 0; v.domain < k->domains && !st; v.domain++) st = visit_domain(r, &v, s, &how, domains->items[v.domain], e);
    free(v.z);
    free(v.room);
    free(v.quantized);
    return st;
}

status eval_knowledge(struct eval_run *r, struct model *model, const char *directory, struct err *e)
{
    const struct spec *s = r->job->spec;
    const struct shape *shape = model_shape(model);
    struct eval_scorer scorer = {0};
    struct router router = {0};
    struct knowledge k;
    bool has = false;

    if (!s->eval.domains.n) return OK;
    if (shape->experts && eval_has_router(&has, directory, e)) return e->code;
    if (!has)
        return err_set(e, ERR_SPEC, "%s: domains: expected a factorized model with a trained router, found none in %s", s->source,
                       directory);
    knowledge_open(&k, shape->layers, shape->experts, s->eval.domains.n);
    status st = eval_open_router(&router, r, model, directory, NULL, e);
    if (!st) st = eval_scorer_open(&scorer, r->job, model, e);
    if (!st) st = visit_all(r, &k, &scorer, &router, e);
    if (!st) {
        char *path = str_join(s->output, "knowledge.json");

        knowledge_finish(&k);
        json_put(r->job->result, "knowledge", knowledge_json(&k, false));
        struct json_t *all = knowledge_json(&k, true);
        st = json_write(path, all, e);
        json_free(all);
        free(path);
    }
    eval_scorer_close(&scorer);
    router_free(&router);
    knowledge_close(&k);
    return st;
}

/* --- for a person --- */

static double cell(const struct json_t *o, const char *list, int i)
{
    return json_number(json_item(json_at(o, list), (size_t)i));
}

void eval_print_knowledge(const struct eval_run *r)
{
    const struct json_t *o = json_at(r->job->result, "knowledge"), *tokens;
    struct log *l = r->job->log;
    struct str line = {0};

    if (!o) return;
    tokens = json_at(o, "tokens");
    log_line(l, "  knowledge map of the router: experts (layer.expert) that a domain asks for more than the mean of all does");
    log_line(l, "  %-16s %8s %9s %8s   %s", "domain", "tokens", "ppl", "accuracy", "experts");
    for (void *i = json_first(tokens); i; i = json_next(tokens, i)) {
        const struct json_t *top = json_at(json_at(o, "top"), json_key(i));

        str_clear(&line);
        str_addf(&line, "  %-16.16s %8lld %9.3f %8.4f  ", json_key(i), (long long)json_int(json_member(i)),
                 json_number(json_at(json_at(o, "perplexity"), json_key(i))),
                 json_number(json_at(json_at(o, "accuracy"), json_key(i))));
        for (size_t t = 0; t < json_length(top); t++) {
            const struct json_t *x = json_item(top, t);

            str_addf(&line, " %lld.%lld x%.1f", (long long)json_int(json_at(x, "layer")),
                     (long long)json_int(json_at(x, "expert")), exp2(json_number(json_at(x, "specialisation"))));
        }
        log_line(l, "%s", line.text);
    }
    log_line(l, "  %-8s %14s %14s %17s", "layer", "load entropy", "router entropy", "bits about domain");
    for (int i = 0; i < (int)json_length(json_at(o, "load_entropy")); i++)
        log_line(l, "  %-8d %14.3f %14.3f %17.4f", i, cell(o, "load_entropy", i), cell(o, "router_entropy", i),
                 cell(o, "information", i));
    str_free(&line);
}
