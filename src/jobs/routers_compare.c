/* A/B of two routers of one model: which eval that is, and what it found in a few lines. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/json.h"
#include "jobs/routers.h"

/* ---- the job ---- */

/* JSON's texts are YAML's, too. */
static void add_text(struct str *out, const char *text)
{
    struct json_t *v = json_text_new(text, strlen(text));

    json_dump(out, v, false);
    json_free(v);
}

static void add_eval(struct str *yaml, const struct routers_compare *c, const char *text, const char *margin)
{
    str_addf(yaml, "%stext: {", margin);
    if (text) {
        str_addz(yaml, "file: ");
        add_text(yaml, text);
    } else str_addz(yaml, "sample_tokens: 6000, sample_seed: 3");
    str_addf(yaml, "}\n%svariants: [dense, router@%s, router@%s]\n%sbaseline: router@%s\n", margin, c->a, c->b, margin, c->a);
}

static void add_places(struct str *yaml, const struct routers_compare *c)
{
    str_addz(yaml, "model: ");
    add_text(yaml, c->model);
    str_addz(yaml, "\noutput: ");
    if (c->output) add_text(yaml, c->output);
    else str_addf(yaml, "\"runs/routers-%s-%s\"", c->a, c->b);
    str_addz(yaml, "\n");
}

status routers_compare_spec(void *compare, struct str *yaml, struct err *e)
{
    const struct routers_compare *c = compare;

    if (routers_find(c->model, c->a, e) || routers_find(c->model, c->b, e)) return e->code;
    if (!strcmp(c->a, c->b)) return err_set(e, ERR_SPEC, "router compare: expected two versions, found %s twice", c->a);
    str_addf(yaml, "kind: %s\n", c->n_texts > 1 ? "pipeline" : "eval");
    add_places(yaml, c);
    if (c->n_texts < 2) {
        add_eval(yaml, c, c->n_texts ? c->text[0] : NULL, "");
        return OK;
    }
    str_addz(yaml, "steps:\n");
    for (int i = 0; i < c->n_texts; i++) {
        str_addf(yaml, "  - kind: eval\n    name: text-%d\n", i + 1);
        add_eval(yaml, c, c->text[i], "    ");
    }
    return OK;
}

/* ---- what it found ---- */

static double number(const struct json_t *o, const char *a, const char *b, const char *c)
{
    const char *path[] = {a, b, c};

    for (int i = 0; i < 3 && path[i] && o; i++) o = json_is_object(o) ? json_at(o, path[i]) : NULL;
    return o && json_is_real(o) ? json_number(o) : NAN;
}

static const struct metric {
    const char *key, *head;
    int decimals;
    bool less;  /* is better */
    bool shown; /* no more than that: neither side is better for it */
} metrics[] = {
    {"nats_per_token", "nats a token", 4, true, false},
    {"accuracy", "accuracy", 4, false, false},
    {"kl", "KL to dense", 4, true, false},
    {"minimal_pairs", "pairs", 4, false, false},
    {"multiple_choice", "choices", 4, false, false},
    {"last_word", "last word", 4, false, false},
    {"minimal_pairs_changed", "pairs changed", 4, true, true},
    {"multiple_choice_changed", "choices changed", 4, true, true},
};
enum { METRICS = sizeof(metrics) / sizeof(metrics[0]) };

struct side {
    char name[80]; /* router@VERSION */
    const char *version;
};

/* Figures of a side under the names of eval's `figures`. */
static double figure_of(const struct json_t *eval, const struct side *s, const char *metric)
{
    const char *key = !strcmp(metric, "nats_per_token") ? "nats" : metric;
    const struct json_t *figures = json_at(eval, "figures"), *mine = figures ? json_at(figures, s->name) : NULL;

    return mine ? number(mine, key, "value", NULL) : NAN;
}

static void print_eval(const struct json_t *eval, const struct side *a, const struct side *b, const struct json_t *pair)
{
    int better = 0, worse = 0;

    printf("  %-15s %10s %10s %12s   95 %% interval\n", "", a->version, b->version, "difference");
    for (int m = 0; m < METRICS; m++) {
        double d = number(pair, metrics[m].key, "difference", NULL), low = number(pair, metrics[m].key, "low", NULL),
               high = number(pair, metrics[m].key, "high", NULL);

        if (isnan(d)) continue;
        printf("  %-15s %10.4f %10.4f %+12.4f", metrics[m].head, figure_of(eval, a, metrics[m].key),
               figure_of(eval, b, metrics[m].key), d);
        if (isnan(low)) printf("\n");
        else printf("   %+.4f to %+.4f\n", low, high);
        if (metrics[m].shown) continue;
        if (low > 0) *(metrics[m].less ? &worse : &better) += 1;
        if (high < 0) *(metrics[m].less ? &better : &worse) += 1;
    }
    printf("  perplexity      %10.3f %10.3f\n", number(eval, "perplexity", a->name, NULL),
           number(eval, "perplexity", b->name, NULL));
    if (better && !worse) printf("  %s is better than %s\n", b->version, a->version);
    else if (worse && !better) printf("  %s is worse than %s\n", b->version, a->version);
    else if (worse) printf("  %s is better in some figures and worse in others\n", b->version);
    else printf("  no difference is shown: every interval holds 0\n");
}

/* For `router list`: what this version keeps, and on which text. */
static status keep(const char *model, const struct json_t *eval, const struct side *s, struct err *e)
{
    struct json_t *o = json_object_new();
    const struct json_t *text = json_at(eval, "text"), *digest = text && json_is_object(text) ? json_at(text, "digest") : NULL;
    struct str path = {0};
    status st = OK;

    json_put_real(o, "perplexity", number(eval, "perplexity", s->name, NULL));
    json_put_real(o, "kept", number(eval, "accuracy", s->name, NULL) / number(eval, "accuracy", "dense", NULL));
    json_put_real(o, "active_share", number(eval, "active_share", s->name, NULL));
    json_put_int(o, "tokens",
                 text && json_is_object(text) && json_is_int(json_at(text, "tokens")) ? json_int(json_at(text, "tokens")) : 0);
    json_put_text(o, "text_digest", digest && json_is_text(digest) ? json_text(digest) : NULL);
    str_addf(&path, "%s/routers/%s/measured.json", model, s->version);
    if (!isnan(number(eval, "perplexity", s->name, NULL))) st = json_write(path.text, o, e);
    str_free(&path);
    json_free(o);
    return st;
}

static status say(const struct routers_compare *c, const struct json_t *result, const char *step, const char *text,
                  struct json_t *out, struct err *e)
{
    struct side a = {.version = c->a}, b = {.version = c->b};
    const struct json_t *eval = json_at(result, step), *compare = eval ? json_at(eval, "compare") : NULL;
    char pair_name[200];

    snprintf(a.name, sizeof(a.name), "router@%s", c->a);
    snprintf(b.name, sizeof(b.name), "router@%s", c->b);
    snprintf(pair_name, sizeof(pair_name), "%s_vs_%s", b.name, a.name);
    const struct json_t *pair = compare ? json_at(compare, pair_name) : NULL;
    if (!pair || !json_is_object(pair))
        return err_set(e, ERR_FORMAT, "router compare: result.json: %s.compare.%s is missing: keep both versions in variants",
                       step, pair_name);
    if (c->json) {
        json_put(out, text ? text : "sampled", json_clone(pair));
    } else {
        printf("%s on %s\n", c->model, text ? text : "text that the model wrote");
        print_eval(eval, &a, &b, pair);
    }
    return keep(c->model, eval, &a, e) ? e->code : keep(c->model, eval, &b, e);
}

status routers_compare_say(void *compare, const struct spec *s, struct err *e)
{
    const struct routers_compare *c = compare;
    char *path = str_join(s->output, "result.json");
    struct json_t *result = NULL, *out = json_object_new();
    struct str text = {0};
    status st = json_read(&result, path, 64 << 20, e);

    if (!st && c->n_texts < 2) st = say(c, result, s->name, c->n_texts ? c->text[0] : NULL, out, e);
    for (int i = 0; i < c->n_texts && c->n_texts > 1 && !st; i++) {
        char step[24];

        snprintf(step, sizeof(step), "text-%d", i + 1);
        st = say(c, result, step, c->text[i], out, e);
    }
    if (!st && c->json) {
        json_dump(&text, out, true);
        printf("%s\n", text.text);
    }
    fflush(stdout);
    str_free(&text);
    json_free(out);
    json_free(result);
    free(path);
    return st;
}
