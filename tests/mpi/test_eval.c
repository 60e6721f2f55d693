/* The eval job on the ranks: a toy model is factorized and its router trained, then its figures are checked against the plain definition (one
 * token at a time, sums in double) and against each other.
 * np: 1 2 3 5 */
#include "../check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "engine/cluster.h"
#include "jobs/eval.h"
#include "jobs/job.h"
#include "model/router_file.h"

#define TOY "tests/golden/toy-llama"

static struct {
    struct comm *comm;
    struct cluster *cluster;
    struct spec *spec;
    char directory[64], text[96], pairs[96], choices[96];
} world;

static const char *const pair_lines[] = {"{\"id\":\"p0\",\"set\":\"a\",\"good\":\"The mill turns.\",\"bad\":\"The mill turn.\"}",
                                         "{\"id\":\"p1\",\"set\":\"b\",\"good\":\"x\",\"bad\":\"the water of the river\"}"};
#define QUESTION                                                                                                                 \
    "{\"id\":\"c0\",\"set\":\"q\",\"context\":\"Where is the water?\",\"choices\":[\"in the "                                    \
    "mill\",\"gone\",\"up\"],\"answer\":1}\n"
#define LAST_WORD "{\"id\":\"t0\",\"context\":\"The end of the story is the\",\"target\":\"water\"}\n"

static void put(const char *path, const char *text)
{
    struct err e;

    if (file_write(path, text, strlen(text), &e)) fail_msg("%s", e.text);
}

static char *long_context(void)
{
    struct str s = {0};

    for (int i = 0; i < 60; i++) str_addf(&s, "wheel %d and ", i);
    str_addz(&s, "then");
    return s.text;
}

static void write_inputs(void)
{
    char *context = long_context();
    struct str s = {0};

    for (int i = 0; i < 12; i++) str_addz(&s, "The miller had three daughters and one old mill; the water came down the hill.\n");
    put(world.text, s.text);
    str_clear(&s);
    str_addf(&s, "%s\n%s\n", pair_lines[0], pair_lines[1]);
    put(world.pairs, s.text);
    str_clear(&s);
    str_addz(&s, QUESTION LAST_WORD); /* c1's context is longer than the model's positions: it is cut from the left */
    str_addf(&s, "{\"id\":\"c1\",\"set\":\"q\",\"context\":\"%s\",\"choices\":[\"one more time\",\"enough\"],\"answer\":0}\n",
             context);
    put(world.choices, s.text);
    str_free(&s);
    free(context);
}

/* Runs a job spec; its result.json's member comes back (NULL when it failed). */
static status run_job(struct json_t **result, const char *output, const char *yaml, struct err *e)
{
    struct spec *s;
    struct json_t *file;
    struct str text = {0};

    *result = NULL;
    str_addf(&text, "%s\noutput: %s/%s\n", yaml, world.directory, output);
    if (spec_parse(&s, text.text, text.length, "test.yaml", NULL, 0, e)) fail_msg("%s", e->text);
    struct log *log = log_open(stderr, 1);
    status st = job_run(s, "test", world.cluster, log, e);
    log_close(log);
    char *path = str_join(s->output, "result.json");
    struct err late;
    if ((!st || st == ERR_GATE) && json_read(&file, path, 1 << 24, &late) == OK) {
        *result = json_clone(json_at(file, s->name));
        json_free(file);
    }
    free(path);
    spec_free(s);
    str_free(&text);
    return st;
}

static const struct json_t *in(const struct json_t *o, const char *a, const char *b)
{
    const struct json_t *v = json_at(json_at(o, a), b);

    if (!v) fail_msg("%s.%s is missing", a, b);
    return v;
}

static double number(const struct json_t *o, const char *a, const char *b)
{
    return json_number(in(o, a, b));
}

static void test_make_model(void **state)
{
    struct json_t *result;
    struct err e;
    struct str yaml = {0};

    (void)state;
    str_addf(&yaml,
             "kind: factorize\nmodel: " TOY
             "\nexperts: 5\nactive: 2\ngrouping: contiguous\nbudget: uniform\ncompensation: mean\nscale: one\n"
             "calibration: {file: %s}",
             world.text);
    if (run_job(&result, "f", yaml.text, &e)) fail_msg("%s", e.text);
    json_free(result);
    str_clear(&yaml);
    str_addf(&yaml,
             "kind: finetune\nmodel: %s/f/model\ntext: {file: %s}\ntokens: 600\nbatch_tokens: 200\n"
             "labels: gram\nselect: top_k\nstart: random\ncompensation: model\ncompensation_rank: 0\n",
             world.directory, world.text);
    if (run_job(&result, "t", yaml.text, &e)) fail_msg("%s", e.text);
    json_free(result);
    str_free(&yaml);
}

/* The plain definition: BOS and the tokens one by one through the dense paths; the sum of log p from position `from` on. */
static double plain_logp(struct model *m, const int32_t *target, int n, int from, int *hits)
{
    const struct shape *shape = model_shape(m);
    const struct routing all = {.route = ROUTE_ALL};
    float *hidden = malloc((size_t)shape->width * sizeof(float)), *logits = malloc((size_t)shape->vocab * sizeof(float));
    double sum = 0;

    for (int32_t p = 0; p < n; p++) {
        int32_t token = p ? target[p - 1] : shape->bos, session = 0;
        struct batch b = {1, &token, &p, &session, NULL, NULL, false};
        struct err e;
        double total = 0;
        int best = 0;

        if (forward(m, &b, &all, 1, hidden, &e)) fail_msg("%s", e.text);
        forward_logits(m, hidden, 1, logits);
        for (int v = 0; v < shape->vocab; v++) {
            total += exp((double)logits[v]);
            if (logits[v] > logits[best]) best = v;
        }
        if (p < from) continue;
        sum += logits[target[p]] - log(total);
        *hits += best == target[p];
    }
    free(hidden);
    free(logits);
    return sum;
}

static void test_text_and_items(void **state)
{
    struct json_t *result, *items;
    struct str yaml = {0};
    struct err e;
    char *path;

    (void)state;
    str_addf(&yaml,
             "kind: eval\nmodel: %s/f/model\ncompare_model: " TOY
             "\nwindow: 50\ntext: {file: %s, bytes: 900}\nminimal_pairs: [%s]\nmultiple_choice: [%s]\n"
             "limits: {batch_rows: 37, sessions: 3}\nbootstrap: 200",
             world.directory, world.text, world.pairs, world.choices);
    if (run_job(&result, "e", yaml.text, &e)) fail_msg("%s", e.text);

    /* text */
    struct tokenizer *t;
    struct corpus c;
    struct model *m;
    struct model_limits limits = {.rows = 8, .sessions = 1, .positions = 128};
    double logp = 0;
    int hits = 0;
    assert_int_equal(tokenizer_open(&t, TOY, &e), OK);
    assert_int_equal(corpus_read(&c, world.text, 900, t, &e), OK);
    if (cluster_model(world.cluster, TOY, limits, &m, &e)) fail_msg("%s", e.text);
    for (size_t at = 0; at < c.n_tokens; at += 50)
        logp += plain_logp(m, c.tokens + at, (int)(c.n_tokens - at < 50 ? c.n_tokens - at : 50), 0, &hits);
    assert_int_equal(number(result, "text", "tokens"), c.n_tokens);
    assert_int_equal(number(result, "text", "bytes"), 900);
    assert_true(fabs(number(result, "perplexity", "dense") / exp(-logp / (double)c.n_tokens) - 1) < 1e-5);
    assert_true(fabs(number(result, "bits_per_byte", "dense") / (-logp / log(2) / 900) - 1) < 1e-5);
    assert_true(number(result, "accuracy", "dense") * (double)c.n_tokens == hits);

    /* items: the same sums, whatever was batched with what */
    path = str_join(world.directory, "e/items.json");
    assert_int_equal(json_read(&items, path, 1 << 20, &e), OK);
    free(path);
    for (int i = 0; i < 3; i++) {
        static const char *const ids[] = {"c0", "c1", "t0"};
        char *context = long_context();
        const char *contexts[] = {"Where is the water?", context, "The end of the story is the"};
        static const char *const texts[3][3] = {{"in the mill", "gone", "up"}, {"one more time", "enough"}, {"water"}};
        const struct json_t *sums = in(items, "dense", ids[i]);

        for (size_t k = 0; k < 3 && texts[i][k]; k++) {
            struct str whole = {0};
            int32_t *ids_whole, *ids_context;
            size_t n, before, drop;

            str_addf(&whole, "%s %s", contexts[i], texts[i][k]);
            assert_int_equal(tokenizer_encode(t, &ids_whole, &n, whole.text, whole.length, &e), OK);
            assert_int_equal(tokenizer_encode(t, &ids_context, &before, contexts[i], strlen(contexts[i]), &e), OK);
            drop = n > 128 ? n - 128 : 0;
            assert_true((drop > 0) == (i == 1));
            double want = plain_logp(m, ids_whole + drop, (int)(n - drop), (int)(before - drop), &hits);
            assert_true(fabs(json_number(json_item(sums, k)) - want) < 1e-3);
            free(ids_whole);
            free(ids_context);
            str_free(&whole);
        }
        free(context);
    }
    const struct json_t *p0 = in(items, "dense", "p0");
    double good = json_number(json_item(p0, 0)), bad = json_number(json_item(p0, 1));
    assert_true(json_number(json_at(in(result, "minimal_pairs", "dense"), "a")) == (good > bad));
    corpus_free(&c);
    tokenizer_close(t);
    json_free(items);

    /* routing */
    assert_true(number(result, "active_share", "dense") == 1);
    assert_true(fabs(number(result, "active_share", "random") - 0.4) < 0.03); /* 44 neurons in experts of 9 and 8 */
    assert_true(fabs(number(result, "active_share", "static") - 0.4) < 0.03);
    assert_int_equal(json_length(json_at(result, "agreement")), 3);
    for (size_t l = 0; l < 3; l++) {
        double agreement = json_number(json_item(json_at(result, "agreement"), l));
        const struct json_t *load = json_item(json_at(result, "load"), l);

        assert_true(agreement > 0 && agreement <= 1);
        assert_int_equal(json_length(load), 5);
        for (size_t i = 0; i < 5; i++) assert_true(json_number(json_item(load, i)) >= 0 && json_number(json_item(load, i)) <= 1);
    }
    /* the other side is the model that was cut: all experts together are it, so its dense figures are the same to the last bit */
    const struct json_t *other = in(result, "compare", "other");
    const struct json_t *same = json_at(in(other, "differences", "dense"), "nats_per_token");
    assert_true(fabs(number(other, "perplexity", "dense") / number(result, "perplexity", "dense") - 1) < 1e-6);
    assert_true(fabs(json_number(json_at(same, "difference"))) < 1e-6 && fabs(json_number(json_at(same, "high"))) < 1e-5);
    assert_null(json_at(json_at(other, "perplexity"), "router")); /* it has none */
    assert_true(number(in(result, "last_word", "dense"), "lambada", "acc") <= 1);
    const struct json_t *drop = in(in(result, "compare", "router_vs_dense"), "nats_per_token", "difference");
    assert_true(fabs(json_number(drop) - log(number(result, "perplexity", "router") / number(result, "perplexity", "dense"))) <
                1e-9);
    json_free(result);
    str_free(&yaml);
}

/* How rows are packed changes no figure. */
static void test_packing(void **state)
{
    static const char *const limits[] = {"{batch_rows: 16, sessions: 1}", "{batch_rows: 400, sessions: 16}"};
    struct json_t *result[2];
    struct err e;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct str yaml = {0};

        str_addf(&yaml,
                 "kind: eval\nmodel: %s/f/model\ntext: {file: %s, bytes: 500}\nlimits: %s\ncluster: {micro_batches: %d}\n"
                 "variants: [dense, static, random, router, oracle, oracle_variable, neurons]\nagreement_tokens: %d",
                 world.directory, world.text, limits[i], i + 1, i ? 0 : 8192);
        if (run_job(&result[i], i ? "wide" : "narrow", yaml.text, &e)) fail_msg("%s", e.text);
        str_free(&yaml);
    }
    for (int v = 0; v < VARIANTS; v++) {
        const char *name = spec_variant_name((enum spec_variant)v);

        assert_true(number(result[0], "perplexity", name) == number(result[1], "perplexity", name));
        assert_true(number(result[0], "accuracy", name) == number(result[1], "accuracy", name));
    }
    assert_non_null(json_at(json_at(result[0], "agreements"), "router"));
    assert_null(json_at(json_at(result[1], "agreements"), "router")); /* agreement_tokens: 0 */
    json_free(result[0]);
    json_free(result[1]);
}

static void test_gate(void **state)
{
    struct json_t *result;
    struct str yaml = {0};
    struct err e;

    (void)state;
    str_addf(&yaml, "kind: eval\nmodel: %s/f/model\nvariants: [dense, router]\ntext: {sample_tokens: 400}\nmax_drop: 0",
             world.directory);
    status st = run_job(&result, "gate", yaml.text, &e);
    double dense = number(result, "accuracy", "dense"), router = number(result, "accuracy", "router");
    assert_true(router < dense); /* its own text: the dense model is at home */
    assert_int_equal(st, ERR_GATE);
    assert_non_null(strstr(e.text, "max_drop"));
    assert_false(json_bool(in(result, "gate", "passed")));
    json_free(result);
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: %s/f/model\nvariants: [dense, router]\ntext: {sample_tokens: 400}\nmax_drop: 1",
             world.directory);
    assert_int_equal(run_job(&result, "gate", yaml.text, &e), OK);
    assert_true(number(result, "accuracy", "dense") == dense && number(result, "accuracy", "router") == router);
    json_free(result);
    str_free(&yaml);
}

static void refused(const char *yaml, status want, const char *says)
{
    struct json_t *result;
    struct err e;
    status st = run_job(&result, "bad", yaml, &e);

    if (st != want || !strstr(e.text, says))
        fail_msg("%s\ngave %d \"%s\", expected %d and %s", yaml, st, st ? e.text : "", want, says);
    json_free(result);
}

/* KL(dense || router) by its definition: two sessions side by side, one token at a time, sums in double. */
static double plain_kl(struct model *m, const struct router *router, const int32_t *target, int n)
{
    const struct shape *shape = model_shape(m);
    const struct routing how[2] = {
        {.route = ROUTE_ALL}, {.route = ROUTE_ROUTER, .router = router, .scale = shape->scale, .compensate = shape->compensate}};
    float *hidden = malloc((size_t)shape->width * sizeof(float)), *logits[2];
    double kl = 0;

    for (int i = 0; i < 2; i++) logits[i] = malloc((size_t)shape->vocab * sizeof(float));
    for (int32_t p = 0; p < n; p++) {
        double total[2] = {0};

        for (int32_t i = 0; i < 2; i++) {
            int32_t token = p ? target[p - 1] : shape->bos;
            struct batch b = {1, &token, &p, &i, NULL, NULL, false};
            struct err e;

            if (forward(m, &b, &how[i], 1, hidden, &e)) fail_msg("%s", e.text);
            forward_logits(m, hidden, 1, logits[i]);
            for (int v = 0; v < shape->vocab; v++) total[i] += exp((double)logits[i][v]);
        }
        for (int v = 0; v < shape->vocab; v++) {
            double a = (double)logits[0][v] - log(total[0]), b = (double)logits[1][v] - log(total[1]);

            kl += exp(a) * (a - b);
        }
    }
    free(hidden), free(logits[0]), free(logits[1]);
    return kl;
}

static void close_to(double got, double want, double within)
{
    if (!(fabs(got - want) <= within * (1 + fabs(want)))) fail_msg("%.12g, expected %.12g", got, want);
}

/* "a/b/c" */
static const struct json_t *find(const struct json_t *o, const char *path)
{
    char part[64];

    while (*path) {
        size_t n = strcspn(path, "/");

        snprintf(part, sizeof(part), "%.*s", (int)n, path);
        o = json_at(o, part);
        if (!o) fail_msg("%s is missing", path);
        path += n + (path[n] == '/');
    }
    return o;
}

static double value(const struct json_t *o, const char *path)
{
    return json_number(find(o, path));
}

/* Everything that stands on the plain figures, from their definitions. */
static void test_figures(void **state)
{
    struct json_t *r;
    struct str yaml = {0};
    struct err e;

    (void)state;
    str_addf(&yaml,
             "kind: eval\nmodel: %s/f/model\nwindow: 50\ntext: {file: %s, bytes: 300}\nlimits: {batch_rows: 37, sessions: 3}\n"
             "variants: [dense, neurons@0.4091, static@0.7, static@0.4091, static@1, static, router, router@v1, oracle, "
             "oracle_variable, "
             "neurons]\nbaseline: router\nbootstrap: 50\n"
             "minimal_pairs: [%s]\nmultiple_choice: [%s]\nmin_agreement: 0",
             world.directory, world.text, world.pairs, world.choices);
    if (run_job(&r, "figures", yaml.text, &e)) fail_msg("%s", e.text);
    double dense = log(value(r, "perplexity/dense")), fixed = log(value(r, "perplexity/static")),
           router = log(value(r, "perplexity/router")), neurons = log(value(r, "perplexity/neurons"));

    close_to(value(r, "figures/router/nats/value"), router, 1e-9);
    close_to(value(r, "figures/router/accuracy/value"), value(r, "accuracy/router"), 1e-9);
    close_to(value(r, "ppl_ratio/router/value"), exp(router - dense), 1e-9);
    close_to(value(r, "gap_closed/router/nats/value"), (fixed - router) / (fixed - neurons), 1e-9);
    close_to(value(r, "gap_closed/dense/nats/value"), (fixed - dense) / (fixed - neurons), 1e-9);
    assert_true(value(r, "figures/router/nats/low") < router && router < value(r, "figures/router/nats/high"));
    close_to(value(r, "compare/oracle_vs_router/nats_per_token/difference"), log(value(r, "perplexity/oracle")) - router, 1e-9);
    close_to(value(r, "kept/router/minimal_pairs/chance"), 0.5, 1e-12);
    close_to(value(r, "kept/router/multiple_choice/chance"), (1.0 / 3 + 1.0 / 2) / 2, 1e-12);
    /* the version that is the current one: the same to the last bit, so an A/B of the two is exactly nothing */
    assert_true(value(r, "perplexity/router@v1") == value(r, "perplexity/router"));
    assert_true(value(r, "compare/router@v1_vs_router/nats_per_token/high") == 0);
    assert_true(value(r, "compare/router@v1_vs_router/kl/low") == 0);
    /* f, by what is measured: 2 of 5 experts of 9, 9, 9, 9 and 8 of 44 neurons; the ceiling has exactly as many as the model by design */
    close_to(value(r, "active_share/neurons"), round(44 * 2.0 / 5) / 44, 1e-12);
    close_to(value(r, "active_share/oracle_variable"), 0.4, 0.1);
    /* with the f of the design the same to the last bit; all neurons are the dense model, but for the order of sums; any f to the neuron */
    assert_true(value(r, "perplexity/static@0.4091") == value(r, "perplexity/static"));
    assert_true(value(r, "perplexity/neurons@0.4091") == value(r, "perplexity/neurons"));
    close_to(log(value(r, "perplexity/static@1")), dense, 1e-5);
    close_to(value(r, "active_share/static@0.7"), round(0.7 * 44 * 3) / (44 * 3), 1e-12);
    close_to(value(r, "compare/router_vs_static@0.7/nats_per_token/difference"), router - log(value(r, "perplexity/static@0.7")),
             1e-9);
    close_to(value(r, "active_share_of_items/static@0.7"), value(r, "active_share/static@0.7"), 1e-12);
    /* 5 scores of D inputs; 2 means of D */
    close_to(value(r, "overhead/router/router"), 5.0 / (3 * 44), 1e-12);
    close_to(value(r, "overhead/router/compensation"), 2.0 / (3 * 44), 1e-12);
    assert_true(json_bool(find(r, "gate/passed")));

    struct tokenizer *t;
    struct corpus c;
    struct model *m;
    struct shape shape;
    struct router of = {0};
    struct model_limits limits = {.rows = 8, .sessions = 2, .positions = 128};
    double kl = 0;

    str_clear(&yaml);
    str_addf(&yaml, "%s/f/model", world.directory);
    assert_int_equal(tokenizer_open(&t, TOY, &e), OK);
    assert_int_equal(corpus_read(&c, world.text, 300, t, &e), OK);
    assert_int_equal(shape_read(&shape, yaml.text, &e), OK);
    assert_int_equal(router_read(&of, yaml.text, NULL, &shape, &e), OK);
    if (cluster_model(world.cluster, yaml.text, limits, &m, &e)) fail_msg("%s", e.text);
    for (size_t at = 0; at < c.n_tokens; at += 50)
        kl += plain_kl(m, &of, c.tokens + at, (int)(c.n_tokens - at < 50 ? c.n_tokens - at : 50));
    close_to(value(r, "figures/router/kl/value"), kl / (double)c.n_tokens, 1e-4);
    assert_true(kl > 0 && value(r, "figures/router/kl/high") > value(r, "figures/router/kl/value"));
    router_free(&of);
    corpus_free(&c);
    tokenizer_close(t);
    json_free(r);
    str_free(&yaml);
}

static int likeliest(const struct json_t *sums)
{
    int best = 0;

    for (size_t i = 1; i < json_length(sums); i++)
        if (json_number(json_item(sums, i)) > json_number(json_item(sums, (size_t)best))) best = (int)i;
    return best;
}

/* Of the items of a run those whose likeliest text is another than by the dense model, by what items.json has of both. */
static double share_changed(const char *file, const char *variant)
{
    char *path = str_join(world.directory, file);
    double changed = 0, n = 0;
    struct json_t *items;
    struct err e;

    if (json_read(&items, path, 1 << 20, &e)) fail_msg("%s", e.text);
    const struct json_t *mine = json_at(items, variant), *dense = json_at(items, "dense");
    for (void *i = json_first(mine); i; i = json_next(mine, i), n++) {
        changed += likeliest(json_member(i)) != likeliest(json_at(dense, json_key(i)));
    }
    json_free(items);
    free(path);
    return changed / n;
}

/* What is kept of the dense model, on its own text and pairs, some of which it gets right. */
static void kept(void **state)
{
    char *pairs = str_join(world.directory, "own-pairs.jsonl");
    struct str lines = {0}, yaml = {0};
    struct json_t *r;
    struct err e;

    (void)state;
    for (int i = 0; i < 9; i++)
        str_addf(&lines, "{\"id\":\"s%d\",\"set\":\"s\",\"good\":\"%c\",\"bad\":\"the water of the river\"}\n", i, 'a' + i);
    for (int i = 0; i < 9; i++)
        str_addf(&lines, "{\"id\":\"n%d\",\"set\":\"n\",\"good\":\"mill %c\",\"bad\":\"mill %c\"}\n", i, 'a' + i, 'k' + i);
    put(pairs, lines.text);
    str_addf(&yaml,
             "kind: eval\nmodel: %s/f/model\nwindow: 50\ntext: {sample_tokens: 600, sample_seed: 3}\n"
             "variants: [dense, router, random]\nbootstrap: 10\nminimal_pairs: [%s]\n",
             world.directory, pairs);
    if (run_job(&r, "kept", yaml.text, &e)) fail_msg("%s", e.text);
    double accuracy = value(r, "accuracy/dense"), right = value(r, "figures/dense/minimal_pairs/value"),
           routed = value(r, "figures/router/minimal_pairs/value");

    assert_true(accuracy > 0 && right > 0.5);
    close_to(value(r, "kept/router/accuracy/raw/value"), value(r, "accuracy/router") / accuracy, 1e-9);
    close_to(value(r, "kept/router/minimal_pairs/corrected/value"), (routed - 0.5) / (right - 0.5), 1e-9);
    double changed[2] = {share_changed("kept/items.json", "router"), share_changed("kept/items.json", "random")};

    assert_true(changed[0] + changed[1] > 0);
    close_to(value(r, "figures/router/minimal_pairs_changed/value"), changed[0], 1e-9);
    close_to(value(r, "figures/random/minimal_pairs_changed/value"), changed[1], 1e-9);
    assert_null(json_at(find(r, "figures/dense"), "minimal_pairs_changed"));
    json_free(r);
    str_free(&lines), str_free(&yaml);
    free(pairs);
}

/* f of a threshold is another on the text than on the items, and neither is mixed into the other; a share of the choices changes. */
static void shares(void **state)
{
    struct str text = {0}, items = {0}, yaml = {0};
    struct json_t *r;
    struct err e;
    double of_text = 0, of_items = 0;

    (void)state;
    str_addf(&text, "text: {file: %s, bytes: 300}\n", world.text);
    str_addf(&items, "multiple_choice: [%s]\n", world.choices);
    const char *const what[3][2] = {{text.text, ""}, {"", items.text}, {text.text, items.text}};
    for (int i = 0; i < 3; i++) {
        char name[16];

        snprintf(name, sizeof(name), "shares-%d", i);
        str_clear(&yaml);
        str_addf(&yaml,
                 "kind: eval\nmodel: %s/f/model\nvariants: [dense, static, random, router, neurons@0.3]\nbootstrap: 10\n%s%s",
                 world.directory, what[i][0], what[i][1]);
        if (run_job(&r, name, yaml.text, &e)) fail_msg("%s", e.text);
        if (i == 0) of_text = value(r, "active_share/router");
        if (i == 1) of_items = value(r, "active_share/router");
        close_to(value(r, "active_share/neurons@0.3"), 0.3, 0.01);
        if (i == 2) {
            assert_true(value(r, "active_share/router") == of_text && value(r, "active_share_of_items/router") == of_items);
            assert_true(of_text != of_items);
            close_to(value(r, "figures/random/multiple_choice_changed/value"), share_changed("shares-2/items.json", "random"),
                     1e-9);
        }
        close_to(value(r, "active_share/static"), 18.0 / 44, 1e-12);
        json_free(r);
    }
    str_free(&text), str_free(&items), str_free(&yaml);
}

static void test_agreement_gate(void **state)
{
    struct json_t *r;
    struct str yaml = {0};
    struct err e;

    (void)state;
    str_addf(&yaml, "kind: eval\nmodel: %s/f/model\nvariants: [router]\ntext: {file: %s, bytes: 300}\nmin_agreement: 1",
             world.directory, world.text);
    assert_int_equal(run_job(&r, "agree", yaml.text, &e), ERR_GATE);
    assert_non_null(strstr(e.text, "min_agreement: the router chooses "));
    double mean = 0;
    for (size_t l = 0; l < 3; l++) mean += json_number(json_item(find(r, "agreements/router"), l)) / 3;
    close_to(value(r, "gate/agreement"), mean, 1e-12);
    assert_false(json_bool(find(r, "gate/passed")));
    json_free(r);
    str_free(&yaml);
}

/* A domain that is the text of the evaluation has its loads and its figures; the map's members say what they should of two texts. */
static void test_knowledge(void **state)
{
    struct json_t *r, *file;
    struct str yaml = {0};
    struct err e;

    (void)state;
    str_addf(
        &yaml,
        "kind: eval\nmodel: %s/f/model\nwindow: 50\ntext: {file: %s}\nvariants: [router]\nlimits: {batch_rows: 37, sessions: 3}\n"
        "domains: {same: %s, other: %s}\ndomain_tokens: 100000",
        world.directory, world.text, world.text, world.choices);
    if (run_job(&r, "map", yaml.text, &e)) fail_msg("%s", e.text);
    assert_int_equal(value(r, "knowledge/tokens/same"), value(r, "text/tokens"));
    close_to(value(r, "knowledge/perplexity/same"), value(r, "perplexity/router"), 1e-12);
    assert_true(value(r, "knowledge/accuracy/same") == value(r, "accuracy/router"));
    for (size_t l = 0; l < 3; l++) {
        double both = 0, bits = 0, sum[2] = {0};
        const struct json_t *load[2] = {json_item(find(r, "knowledge/load/same"), l),
                                        json_item(find(r, "knowledge/load/other"), l)};

        for (size_t i = 0; i < 5; i++) {
            close_to(json_number(json_item(load[0], i)), json_number(json_item(json_item(find(r, "load"), l), i)), 1e-12);
            for (int d = 0; d < 2; d++) sum[d] += json_number(json_item(load[d], i));
        }
        for (size_t i = 0; i < 5; i++) {
            double p[2], special = json_number(json_item(json_item(find(r, "knowledge/specialisation/same"), l), i));

            for (int d = 0; d < 2; d++) p[d] = json_number(json_item(load[d], i)) / sum[d];
            for (int d = 0; d < 2; d++) bits += p[d] > 0 ? p[d] / 2 * log2(2 * p[d] / (p[0] + p[1])) : 0;
            double a = json_number(json_item(load[0], i)), b = json_number(json_item(load[1], i));
            both += a;
            if (a > 0.1 && b > 0.1) close_to(special, log2(2 * a / (a + b)), 0.02);
        }
        close_to(both, 2, 1e-9); /* k */
        close_to(json_number(json_item(find(r, "knowledge/information"), l)), bits, 1e-9);
        double spread = json_number(json_item(find(r, "knowledge/load_entropy"), l)),
               opinion = json_number(json_item(find(r, "knowledge/router_entropy"), l));
        assert_true(spread > 0 && spread <= 1 && opinion > 0 && opinion <= 1);
    }
    char *path = str_join(world.directory, "map/knowledge.json");
    assert_int_equal(json_read(&file, path, 1 << 22, &e), OK);
    /* an expert with itself is its load over both texts; a row adds up to k times that */
    double tokens[2] = {value(r, "knowledge/tokens/same"), value(r, "knowledge/tokens/other")};
    for (size_t l = 0; l < 3; l++)
        for (size_t i = 0; i < 5; i++) {
            const struct json_t *row = json_item(json_item(find(file, "coactivation"), l), i);
            double mean = 0, sum = 0;

            for (int d = 0; d < 2; d++)
                mean += tokens[d] / (tokens[0] + tokens[1]) *
                        json_number(json_item(json_item(find(file, d ? "load/other" : "load/same"), l), i));
            for (size_t j = 0; j < 5; j++) sum += json_number(json_item(row, j));
            close_to(json_number(json_item(row, i)), mean, 1e-9);
            close_to(sum, 2 * mean, 1e-9);
        }
    free(path);
    json_free(file);
    json_free(r);
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\ndomains: {a: %s}", world.text);
    refused(yaml.text, ERR_SPEC, "domains: expected a factorized model with a trained router");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: %s/f/model\nvariants: [router@nobody]\ntext: {file: %s, bytes: 300}", world.directory,
             world.text);
    refused(yaml.text, ERR_IO, "nobody");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nlast_word: [%s]", world.choices);
    refused(yaml.text, ERR_FORMAT, "choices.jsonl:1: expected a context and its target, found choices");
    str_free(&yaml);
}

static void test_refusals(void **state)
{
    struct str yaml = {0};

    (void)state;
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nvariants: [dense, router]\nmax_drop: 0.1\ntext: {file: %s, bytes: 300}",
             world.text);
    refused(yaml.text, ERR_SPEC, "max_drop"); /* a dense model has no router to hold to it */
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nvariants: [router]\ntext: {file: %s, bytes: 300}", world.text);
    refused(yaml.text, ERR_SPEC, "variants");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nwindow: 129\ntext: {file: %s, bytes: 300}", world.text);
    refused(yaml.text, ERR_SPEC, "128 positions");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: %s/f/model\ncompare_router: nobody\ntext: {file: %s, bytes: 300}", world.directory,
             world.text);
    refused(yaml.text, ERR_IO, "nobody");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nlimits: {positions: 4}\nminimal_pairs: [%s]", world.pairs);
    refused(yaml.text, ERR_LIMIT, "pairs.jsonl:1: ");
    str_clear(&yaml);
    str_addf(&yaml, "kind: eval\nmodel: " TOY "\nmultiple_choice: [%s]", world.pairs);
    refused(yaml.text, ERR_FORMAT, "pairs.jsonl:1: ");
    str_free(&yaml);
}

/* An item whose continuation alone is too long is left out whole and counted; the others stand. */
static void test_left_out(void **state)
{
    struct json_t *result, *items;
    struct str yaml = {0};
    struct err e;

    (void)state;
    str_addf(&yaml,
             "kind: eval\nmodel: " TOY "\nvariants: [dense]\nlimits: {positions: 8}\nminimal_pairs: [%s]\nmultiple_choice: [%s]",
             world.pairs, world.choices);
    if (run_job(&result, "left", yaml.text, &e)) fail_msg("%s", e.text);
    char *path = str_join(world.directory, "left/items.json");
    assert_int_equal(json_read(&items, path, 1 << 20, &e), OK);
    int64_t left = json_int(json_at(result, "items_left_out"));
    assert_int_equal(left, 1); /* c1: "one more time" is nine tokens; the others have eight at most */
    assert_int_equal(json_length(json_at(items, "dense")) + (size_t)left, 5);
    for (void *i = json_first(json_at(items, "dense")); i; i = json_next(json_at(items, "dense"), i))
        for (size_t k = 0; k < json_length(json_member(i)); k++) assert_true(json_number(json_item(json_member(i), k)) < 0);
    free(path);
    json_free(items);
    json_free(result);
    str_free(&yaml);
}

/* Real models against the oracle's numbers. */
static void test_shared_goldens(void **state)
{
    const char *shared = getenv("FACTORLLM_SHARED") ? getenv("FACTORLLM_SHARED") : "../shared";
    struct json_t *result, *items, *want, *golden;
    struct str yaml = {0};
    struct err e;
    char path[512];
    double worst = 0;
    int compared = 0;

    (void)state;
    snprintf(path, sizeof(path), "%s/golden/stories260K/eval_items.json", shared);
    if (!file_exists(path)) skip_because("%s is not there", path);
    assert_int_equal(json_read(&want, path, 1 << 20, &e), OK);
    snprintf(path, sizeof(path), "%s/golden/stories260K/golden.json", shared);
    assert_int_equal(json_read(&golden, path, 1 << 24, &e), OK);
    str_addf(&yaml,
             "kind: eval\nmodel: %s/models/stories260K\nvariants: [dense]\ntext: {file: %s/corpora/tinystories_valid.txt, bytes: "
             "20000}\nwindow: 64\nitems: 2\n"
             "minimal_pairs: [%s/eval/minimal_pairs.jsonl]\nmultiple_choice: [%s/eval/arc_easy.jsonl]\nlast_word: "
             "[%s/eval/lambada.jsonl]",
             shared, shared, shared, shared, shared);
    if (run_job(&result, "golden", yaml.text, &e)) fail_msg("%s", e.text);
    const struct json_t *first = json_item(json_at(golden, "perplexity"), 0);
    assert_int_equal(json_int(json_at(first, "window")), 64);
    assert_int_equal(number(result, "text", "tokens"), json_int(json_at(first, "tokens")));
    assert_true(fabs(number(result, "perplexity", "dense") / json_number(json_at(first, "ppl")) - 1) < 1e-5);
    assert_true(fabs(number(result, "bits_per_byte", "dense") / json_number(json_at(first, "bits_per_byte")) - 1) < 1e-5);
    char *items_path = str_join(world.directory, "golden/items.json");
    assert_int_equal(json_read(&items, items_path, 1 << 20, &e), OK);
    const struct json_t *dense = json_at(items, "dense");
    for (void *i = json_first(dense); i; i = json_next(dense, i)) {
        const struct json_t *sums = json_at(want, json_key(i));

        assert_non_null(sums);
        assert_int_equal(json_length(sums), json_length(json_member(i)));
        for (size_t k = 0; k < json_length(sums); k++, compared++)
            worst = fmax(worst, fabs(json_number(json_item(sums, k)) - json_number(json_item(json_member(i), k))));
    }
    assert_true(compared >= 20 * 2 * 2 + 2 * 3 + 2);
    assert_true(worst < 5e-3); /* sums of up to a hundred terms in float32; the oracle has them in double */
    free(items_path);
    json_free(result);
    json_free(items);
    json_free(want);
    json_free(golden);
    str_free(&yaml);
}

static int lead(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_make_model), cmocka_unit_test(test_text_and_items), cmocka_unit_test(test_packing),
        cmocka_unit_test(test_gate),       cmocka_unit_test(test_figures),        cmocka_unit_test(kept),
        cmocka_unit_test(shares),          cmocka_unit_test(test_agreement_gate), cmocka_unit_test(test_knowledge),
        cmocka_unit_test(test_left_out),   cmocka_unit_test(test_refusals),       cmocka_unit_test(test_shared_goldens),
    };
    struct err e;

    strcpy(world.directory, "/tmp/factorllm-test-XXXXXX");
    if (!mkdtemp(world.directory)) return 1;
    snprintf(world.text, sizeof(world.text), "%s/text.txt", world.directory);
    snprintf(world.pairs, sizeof(world.pairs), "%s/pairs.jsonl", world.directory);
    snprintf(world.choices, sizeof(world.choices), "%s/choices.jsonl", world.directory);
    write_inputs();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cluster_release(world.cluster);
    cluster_stop(world.cluster, OK);
    if (directory_remove(world.directory, &e)) printf("# %s\n", e.text);
    return failed;
}

int main(int argc, char **argv)
{
    static const char yaml[] = "kind: eval\nmodel: " TOY "\noutput: unused\ntext: {file: unused}\n";
    struct err e;
    int failed = 0;

    if (comm_open(&world.comm, &argc, &argv, &e) || spec_parse(&world.spec, yaml, strlen(yaml), "world", NULL, 0, &e) ||
        cluster_open(&world.cluster, world.comm, world.spec, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    if (comm_rank(world.comm) == 0) failed = lead();
    else failed = cluster_follow(world.cluster, &e) != OK;
    cluster_close(world.cluster);
    spec_free(world.spec);
    comm_close(world.comm, OK);
    return failed != 0;
}
