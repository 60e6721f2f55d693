/* What keys say together: names and directories of steps, and combinations that cannot be. */
#include <stdlib.h>
#include <string.h>

#include "data/spec_table.h"

static bool good_step_name(const char *name)
{
    return *name && strlen(name) <= 64 && !name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-")];
}

/* result.json has members of its own beside the steps'. */
static bool is_result_member(const char *name)
{
    static const char *const members[] = {"schema", "version", "kind",    "spec",   "started", "seconds",
                                          "ranks",  "threads", "kernels", "status", "error",   "answers_sha256"};

    for (size_t i = 0; i < sizeof(members) / sizeof(*members); i++)
        if (!strcmp(name, members[i])) return true;
    return false;
}

status steps_name(struct draft *drafts, int n, struct err *e)
{
    for (int i = 0; i < n; i++) {
        const char *name = drafts[i].s->name;

        if (!name) continue;
        if (!good_step_name(name))
            return draft_fail(&drafts[i], "name", e, "expected at most 64 of a-z, 0-9, _ and -, found '%.80s'", name);
        if (key_is_section(name, JOB_PIPELINE) || key_find(name, JOB_PIPELINE) >= 0)
            return draft_fail(&drafts[i], "name", e, "expected a name that is no key of a pipeline, found '%s'", name);
        if (is_result_member(name))
            return draft_fail(&drafts[i], "name", e, "expected a name that is no member of result.json, found '%s'", name);
        for (int j = 0; j < i; j++)
            if (drafts[j].s->name && !strcmp(drafts[j].s->name, name))
                return draft_fail(&drafts[i], "name", e, "expected a name of its own, found '%s' for two steps", name);
    }
    for (int i = 0; i < n; i++) {
        const char *kind = spec_kind_name(drafts[i].s->kind);
        struct str name = {0};

        for (int number = 1; !drafts[i].s->name; number++) {
            bool taken = false;

            str_clear(&name);
            if (number == 1) str_addz(&name, kind);
            else str_addf(&name, "%s-%d", kind, number);
            for (int j = 0; j < n; j++) taken |= drafts[j].s->name && !strcmp(drafts[j].s->name, name.text);
            if (!taken) drafts[i].s->name = str_dup(name.text);
        }
        str_free(&name);
    }
    return OK;
}

/* Tokens of stage 2 above which steps are larger and slower: what is best for half a million leaves a longer run above its best (src/QUALITY.md). */
enum { LONG_RUN = 1000000 };

void job_resolve(struct spec *s)
{
    bool late = s->stage2.stage == 2, far = s->finetune.tokens > LONG_RUN;

    if (s->kind == JOB_INFER && !s->infer.result) s->infer.result = str_join(s->output, "responses.jsonl");
    if (s->kind != JOB_FINETUNE) return;
    if (s->finetune.learning_rate == 0) s->finetune.learning_rate = late ? far ? 0.002 : 0.004 : 0.01;
    if (s->finetune.batch_tokens == 0) {
        s->finetune.batch_tokens = late ? far ? 4096 : 2048 : 512;
        if (s->finetune.batch_tokens > s->finetune.tokens) s->finetune.batch_tokens = s->finetune.tokens;
    }
}

/* A report in a pipeline shows what was done before it. */
static void steps_before(struct spec *s, const struct draft *drafts, int n)
{
    struct spec_list *list = &s->report.inputs;

    if (list->n > 0 || s->report.rows.n > 0) return;
    free(list->items);
    list->items = calloc((size_t)n + 1, sizeof(*list->items));
    BUG_ON(!list->items);
    for (int i = 0; i < n; i++)
        if (drafts[i].s->kind != JOB_REPORT) list->items[list->n++] = str_dup(drafts[i].s->output);
}

/* compare_model may be the name of an earlier step: the model that it makes. */
static void compared_step(struct spec *s, const struct draft *drafts, int n)
{
    for (int i = 0; i < n && s->eval.compare_model; i++) {
        const struct spec *by = drafts[i].s;

        if (!spec_makes_model(by) || strcmp(by->name, s->eval.compare_model) != 0) continue;
        free(s->eval.compare_model);
        s->eval.compare_model = str_join(by->output, "model");
    }
}

status steps_resolve(struct spec *parent, struct draft *drafts, int n, struct err *e)
{
    const struct spec *made = NULL; /* the step whose model the next steps work on */

    for (int i = 0; i < n; i++) {
        struct spec *s = drafts[i].s;

        if (!s->output) s->output = str_join(parent->output, s->name);
        if (s->kind == JOB_REPORT) steps_before(s, drafts, i);
        else if (!s->model && made && s->kind != JOB_FACTORIZE) s->model = str_join(made->output, "model");
        else if (!s->model) s->model = str_dup(parent->model);
        if (spec_makes_model(s)) made = s;
        if (s->kind == JOB_EVAL) compared_step(s, drafts, i);
        job_resolve(s);
        for (int j = 0; j < i; j++)
            if (!strcmp(drafts[j].s->output, s->output))
                return draft_fail(&drafts[i], "output", e, "expected a directory of its own, found '%s', that of step %s",
                                  s->output, drafts[j].s->name);
        if (!strcmp(parent->output, s->output))
            return draft_fail(&drafts[i], "output", e, "expected a directory of its own, found '%s', that of the pipeline",
                              s->output);
    }
    return OK;
}

static status check_text(const struct draft *d, const struct spec_text *t, const char *section, struct err *e)
{
    char file[32], bytes[32], tokens[32], seed[32];

    snprintf(file, sizeof(file), "%s.file", section);
    snprintf(bytes, sizeof(bytes), "%s.bytes", section);
    snprintf(tokens, sizeof(tokens), "%s.sample_tokens", section);
    snprintf(seed, sizeof(seed), "%s.sample_seed", section);
    if (t->file && t->sample_tokens > 0)
        return draft_fail(d, draft_given(d, tokens) ? tokens : file, e, "expected a file or sample_tokens, found both");
    /* a resolved spec holds every key: only what differs from the default is somebody's wish */
    if (!t->file && t->bytes > 0) return draft_fail(d, bytes, e, "expected only with %s, found %lld", file, (long long)t->bytes);
    if (t->sample_tokens == 0 && t->sample_seed != 1)
        return draft_fail(d, seed, e, "expected only with %s, found %lld", tokens, (long long)t->sample_seed);
    return OK;
}

static status check_cluster(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->cluster.placement == PLACE_FILE && !s->cluster.placement_file)
        return draft_fail(d, "cluster.placement", e, "expected a file in cluster.placement_file, found none");
    if (s->cluster.placement != PLACE_FILE && s->cluster.placement_file)
        return draft_fail(d, "cluster.placement_file", e, "expected only with cluster.placement: file, found '%s'",
                          s->cluster.placement_file);
    if (s->cluster.placement == PLACE_FILE && !s->cluster.coordinator_experts)
        return draft_fail(d, "cluster.coordinator_experts", e,
                          "expected only without cluster.placement: file, found false; the file says who holds what");
    if (s->cluster.placement == PLACE_BALANCE && !s->cluster.coordinator_experts)
        return draft_fail(d, "cluster.coordinator_experts", e,
                          "expected only without cluster.placement: balance, found false; it says what rank 0 holds");
    if (s->cluster.placement != PLACE_BALANCE && s->cluster.coordinator_share > 0)
        return draft_fail(d, "cluster.coordinator_share", e, "expected only with cluster.placement: balance, found %g",
                          s->cluster.coordinator_share);
    if (s->limits.sessions > s->limits.batch_rows)
        return draft_fail(
            d, draft_given(d, "limits.sessions") ? "limits.sessions" : "limits.batch_rows", e,
            "expected limits.sessions <= limits.batch_rows, found %lld sessions and %lld rows: every sequence takes a "
            "row of a step",
            (long long)s->limits.sessions, (long long)s->limits.batch_rows);
    return OK;
}

/* Two terms of a sum for each, and two more: num/exact.h adds EXACT_TERMS. */
enum { COMPENSATED_EXPERTS = 4094 };

static status check_factorize(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;
    bool calibrated = s->factorize.calibration.file || s->factorize.calibration.sample_tokens > 0;
    const char *needs = spec_needs_text(s);

    if (spec_largest(&s->factorize.active) > (double)s->factorize.experts)
        return draft_fail(d, draft_given(d, "active") ? "active" : "experts", e,
                          "expected active <= experts, found %g active of %lld experts", spec_largest(&s->factorize.active),
                          (long long)s->factorize.experts);
    if (s->factorize.budget != BUDGET_UNIFORM && s->factorize.scale == SCALE_PAPER)
        return draft_fail(d, draft_given(d, "budget") ? "budget" : "scale", e,
                          "expected uniform with scale: paper, which is N/k of all layers, found %s",
                          s->factorize.budget == BUDGET_KL ? "kl" : "kl_shared");
    if (s->factorize.active.n > 1 && s->factorize.scale == SCALE_PAPER)
        return draft_fail(d, draft_given(d, "active") ? "active" : "scale", e,
                          "expected one number with scale: paper, which is N/k of all layers, found %d", s->factorize.active.n);
    if (s->factorize.compensation == COMPENSATE_MEAN && s->factorize.experts > COMPENSATED_EXPERTS)
        return draft_fail(d, "experts", e, "expected at most %d with compensation: mean, found %lld", COMPENSATED_EXPERTS,
                          (long long)s->factorize.experts);
    if (check_text(d, &s->factorize.calibration, "calibration", e)) return e->code;
    if (needs && !calibrated)
        return draft_fail(d, needs, e,
                          "expected text to calibrate on in calibration.file or calibration.sample_tokens, found none");
    if (s->factorize.calibration.sample_tokens > 0 && s->factorize.calibration.sample_tokens < 2)
        return draft_fail(d, "calibration.sample_tokens", e, "expected at least 2 tokens, found 1");
    return OK;
}

static bool good_version(const char *name)
{
    return strlen(name) < 64 && name[0] != '.' && strcmp(name, "current") != 0 &&
           !name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")];
}

static status check_finetune(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;
    bool labelled = s->stage2.stage == 1;

    if (check_text(d, &s->finetune.text, "text", e)) return e->code;
    if (!s->finetune.text.file && s->finetune.text.sample_tokens == 0)
        return draft_fail(d, "text", e, "expected text to learn from in text.file or text.sample_tokens, found none");
    if (draft_idle_keys(d, e)) return e->code;
    if (labelled && s->finetune.select == SELECT_THRESHOLD && s->finetune.loss == LOSS_PAPER)
        return draft_fail(d, draft_given(d, "select") ? "select" : "loss", e,
                          "expected loss: bce with select: threshold, found loss: paper, whose scores have no common zero");
    if (s->stage2.train.n == 0)
        return draft_fail(d, "train", e, "expected at least one of router, compensation, norms, experts, lora");
    if (spec_trains(s, TRAIN_EXPERTS) && spec_trains(s, TRAIN_LORA))
        return draft_fail(d, "train", e, "expected experts or lora, which is in place of whole experts, found both");
    if (s->stage2.stage == 2 && !spec_trains(s, TRAIN_COMPENSATION) &&
        (s->finetune.compensation_rank > 0 || s->finetune.compensation == REFIT_CONSTANT))
        return draft_fail(d, s->finetune.compensation_rank > 0 ? "compensation_rank" : "compensation", e,
                          "expected compensation in train, found none: what begins as zero has to be trained");
    if (labelled && s->finetune.select == SELECT_THRESHOLD && s->finetune.loss == LOSS_LISTWISE)
        return draft_fail(d, draft_given(d, "select") ? "select" : "loss", e,
                          "expected loss: bce or regression with select: threshold, found loss: listwise, whose scores have no "
                          "common zero");
    if (s->finetune.loss >= LOSS_LISTWISE && s->finetune.labels < LABELS_ENERGY)
        return draft_fail(d, draft_given(d, "loss") ? "loss" : "labels", e,
                          "expected labels: energy or norm with loss: listwise and regression, which learn values, not sets");
    if (s->finetune.method == METHOD_FACTORLLM && s->finetune.router != SPEC_ROUTER_LINEAR)
        return draft_fail(d, "router", e, "expected router: linear with method: factorllm");
    if (s->finetune.batch_tokens > s->finetune.tokens)
        return draft_fail(d, draft_given(d, "batch_tokens") ? "batch_tokens" : "tokens", e,
                          "expected batch_tokens <= tokens, found %lld > %lld", (long long)s->finetune.batch_tokens,
                          (long long)s->finetune.tokens);
    if (s->limits.positions > 0 && s->finetune.sequence > s->limits.positions)
        return draft_fail(d, "sequence", e, "expected at most limits.positions = %lld, found %lld",
                          (long long)s->limits.positions, (long long)s->finetune.sequence);
    if (s->finetune.version && !good_version(s->finetune.version))
        return draft_fail(d, "version", e, "expected fewer than 64 of A-Z, a-z, 0-9, ., _ and -, not 'current', found '%.80s'",
                          s->finetune.version);
    return OK;
}

static bool listed(const struct spec_list *list, const char *name)
{
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->items[i], name)) return true;
    return false;
}

enum { SHARE_TEXT = 16 }; /* it is part of names */

static bool good_share(const char *text)
{
    char *end;
    double f = strtod(text, &end);

    return strlen(text) <= SHARE_TEXT && !text[strspn(text, ".0123456789")] && end != text && !*end && f > 0 && f <= 1;
}

static status check_variants(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->eval.variants.n == 0) return draft_fail(d, "variants", e, "expected at least one variant, found none");
    if (s->eval.variants.n > EVAL_VARIANTS_MAX)
        return draft_fail(d, "variants", e, "expected at most %d variants, found %d", EVAL_VARIANTS_MAX, s->eval.variants.n);
    for (int i = 0; i < s->eval.variants.n; i++) {
        const struct spec_variant_item x = spec_variant_of(s->eval.variants.items[i]);

        if (x.version && !good_version(x.version))
            return draft_fail(d, "variants", e, "expected the name of a router version behind router@, found '%.80s'", x.version);
        if (x.share && !good_share(x.share))
            return draft_fail(
                d, "variants", e,
                "expected a share of the neurons, above 0 and at most 1 in up to 16 characters, behind %s@, found '%.80s'",
                spec_variant_name(x.kind), x.share);
    }
    if (s->eval.domains.n > EVAL_DOMAINS_MAX)
        return draft_fail(d, "domains", e, "expected at most %d texts, found %d", EVAL_DOMAINS_MAX, s->eval.domains.n);
    if (s->eval.baseline && !listed(&s->eval.variants, s->eval.baseline))
        return draft_fail(d, "baseline", e, "expected one of variants, found '%.80s'", s->eval.baseline);
    return OK;
}

static bool has(const struct spec_list *list, enum spec_variant v)
{
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->items[i], spec_variant_name(v))) return true;
    return false;
}

static status check_eval(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;
    bool text = s->eval.text.file || s->eval.text.sample_tokens > 0;
    bool sets = s->eval.minimal_pairs.n > 0 || s->eval.multiple_choice.n > 0 || s->eval.last_word.n > 0;

    if (check_text(d, &s->eval.text, "text", e)) return e->code;
    if (!text && !sets && s->eval.domains.n == 0)
        return draft_fail(
            d, "text", e,
            "expected something to evaluate on in text, minimal_pairs, multiple_choice, last_word or domains, found none");
    if (check_variants(d, e)) return e->code;
    if (s->eval.compare_model && s->eval.compare_router)
        return draft_fail(d, "compare_router", e, "expected compare_model or compare_router, found both");
    if (s->eval.compare_model && !strcmp(s->eval.compare_model, s->model))
        return draft_fail(d, "compare_model", e, "expected another directory than model, found '%s'", s->eval.compare_model);
    if (s->eval.compare_router && !good_version(s->eval.compare_router))
        return draft_fail(d, "compare_router", e, "expected the name of a router version, found '%.80s'", s->eval.compare_router);
    if (s->eval.compare_router && !has(&s->eval.variants, VARIANT_ROUTER))
        return draft_fail(d, "compare_router", e, "expected only with the variant router, found variants without it");
    if (s->eval.max_drop >= 0 && !(has(&s->eval.variants, VARIANT_ROUTER) && has(&s->eval.variants, VARIANT_DENSE)))
        return draft_fail(d, "max_drop", e,
                          "expected only with the variants dense and router, found variants without one of them");
    if (s->eval.max_drop >= 0 && !text)
        return draft_fail(d, "max_drop", e, "expected only with text, found none: the gate is on next-token accuracy");
    if (s->eval.items > 0 && !sets)
        return draft_fail(d, "items", e, "expected only with minimal_pairs, multiple_choice or last_word, found none of them");
    if (s->eval.min_agreement >= 0 && s->eval.agreement_tokens == 0)
        return draft_fail(d, "min_agreement", e, "expected only with agreement_tokens, found 0 of them");
    if (s->eval.min_agreement >= 0 && !has(&s->eval.variants, VARIANT_ROUTER))
        return draft_fail(d, "min_agreement", e, "expected only with the variant router, found variants without it");
    if (s->eval.min_agreement >= 0 && !text && !sets)
        return draft_fail(d, "min_agreement", e, "expected only with text or items, found neither");
    if (s->eval.batch_experts < 1 && s->eval.decode_batch < 2)
        return draft_fail(d, "batch_experts", e,
                          "expected only with decode_batch of 2 and more, found decode_batch %lld: it is for batches that decode",
                          (long long)s->eval.decode_batch);
    if (s->eval.window > 0 && !text && s->eval.domains.n == 0)
        return draft_fail(d, "window", e, "expected only with text, found none");
    if (s->limits.positions > 0 && s->eval.window > s->limits.positions)
        return draft_fail(d, "window", e, "expected at most limits.positions = %lld, found %lld", (long long)s->limits.positions,
                          (long long)s->eval.window);
    return OK;
}

/* Of infer and bench. */
static status check_attention(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->cluster.coordinators > 1 && s->cluster.placement == PLACE_BALANCE)
        return draft_fail(d, "cluster.coordinators", e,
                          "expected 1 with cluster.placement: balance, found %lld: it eases rank 0 alone",
                          (long long)s->cluster.coordinators);
    if (s->cluster.coordinators > 1 && s->cluster.tensor_parallel)
        return draft_fail(
            d, "cluster.tensor_parallel", e,
            "expected false with cluster.coordinators: %lld, found true: attention is shared out in one way or the other",
            (long long)s->cluster.coordinators);
    return OK;
}

static status check_infer(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->cluster.coordinators > 1 && s->infer.variant == VARIANT_ORACLE)
        return draft_fail(d, "cluster.coordinators", e, "expected 1 with variant: oracle, found %lld",
                          (long long)s->cluster.coordinators);
    if (s->cluster.coordinators > 1 && s->infer.batch_experts < 1)
        return draft_fail(d, "batch_experts", e,
                          "expected 1 with cluster.coordinators: %lld, found %g: each of them sees its own part of a batch",
                          (long long)s->cluster.coordinators, s->infer.batch_experts);
    if (!strcmp(s->infer.input, s->infer.result))
        return draft_fail(d, "result", e, "expected another file than input, found '%s' for both", s->infer.result);
    if (s->limits.positions > 0 && s->infer.max_tokens >= s->limits.positions)
        return draft_fail(d, draft_given(d, "max_tokens") ? "max_tokens" : "limits.positions", e,
                          "expected max_tokens < limits.positions, found %lld and %lld: a prompt needs room too",
                          (long long)s->infer.max_tokens, (long long)s->limits.positions);
    return OK;
}

static status check_numbers(const struct draft *d, const char *key, const struct spec_list *list, bool whole, double least,
                            double most, struct err *e)
{
    for (int i = 0; i < list->n; i++) {
        const char *text = list->items[i];
        char *end;
        double x = strtod(text, &end);

        if (*end || end == text || text[strspn(text, "0123456789.")] || x < least || x > most || (whole && strchr(text, '.')))
            return draft_fail(d, key, e, "expected %s from %g to %g, found '%.40s'", whole ? "integers" : "numbers", least, most,
                              text);
    }
    return OK;
}

static status check_bench(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->bench.parts.n == 0) return draft_fail(d, "parts", e, "expected at least one part, found none");
    if (check_numbers(d, "shares", &s->bench.shares, false, 1e-6, 1, e) ||
        check_numbers(d, "rows", &s->bench.rows, true, 1, 65536, e))
        return e->code;
    if (check_numbers(d, "batches", &s->bench.batches, true, 1, 65536, e)) return e->code;
    if (s->bench.shares.n > BENCH_SHARES)
        return draft_fail(d, "shares", e, "expected at most %d, found %d", BENCH_SHARES, s->bench.shares.n);
    if (s->bench.batches.n > BENCH_BATCHES)
        return draft_fail(d, "batches", e, "expected at most %d, found %d", BENCH_BATCHES, s->bench.batches.n);
    if (s->cluster.coordinators > 1 && s->bench.batch_experts < 1)
        return draft_fail(d, "batch_experts", e,
                          "expected 1 with cluster.coordinators: %lld, found %g: each of them sees its own part of a batch",
                          (long long)s->cluster.coordinators, s->bench.batch_experts);
    for (int i = 0; i < s->bench.compare.n; i++)
        if (!strcmp(s->bench.compare.items[i], s->model))
            return draft_fail(d, "compare", e, "expected other directories than model, found '%s'", s->model);
    return OK;
}

static status check_report(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (s->report.inputs.n + s->report.rows.n == 0)
        return draft_fail(d, "inputs", e, "expected output directories of jobs in inputs or rows, found none");
    if (check_numbers(d, "shares", &s->report.shares, false, 1e-6, 1, e)) return e->code;
    if (s->report.shares.n > REPORT_SHARES)
        return draft_fail(d, "shares", e, "expected at most %d, found %d", REPORT_SHARES, s->report.shares.n);
    if (s->report.shares.n > 0 && s->report.rows.n == 0)
        return draft_fail(d, "shares", e, "expected only with rows, found %d", s->report.shares.n);
    for (int i = 0; i < s->report.rows.n; i++) {
        const char *directory = strchr(s->report.rows.items[i], '=') + 1, *mark = strrchr(directory, '#');

        if (mark && (mark == directory || !mark[1]))
            return draft_fail(d, "rows", e, "expected DIRECTORY or DIRECTORY#VARIANT, found '%.80s'", directory);
    }
    for (int i = 0; i < s->report.inputs.n; i++)
        if (!strcmp(s->report.inputs.items[i], s->output))
            return draft_fail(d, "output", e, "expected another directory than those in inputs, found '%s'", s->output);
    return OK;
}

status draft_check(const struct draft *d, struct err *e)
{
    const struct spec *s = d->s;

    if (strlen(s->output) > TEXT_MAX)
        return draft_fail(d, "output", e, "expected a path of at most %d bytes, found %zu", TEXT_MAX, strlen(s->output));
    if (s->kind == JOB_REPORT) return check_cluster(d, e) ? e->code : check_report(d, e);
    if (strlen(s->model) > TEXT_MAX)
        return draft_fail(d, "model", e, "expected a path of at most %d bytes, found %zu", TEXT_MAX, strlen(s->model));
    if (s->kind == JOB_INFER && strlen(s->infer.result) > TEXT_MAX)
        return draft_fail(d, "result", e, "expected a path of at most %d bytes, found %zu", TEXT_MAX, strlen(s->infer.result));
    if (!strcmp(s->output, s->model))
        return draft_fail(d, "output", e, "expected another directory than model, found '%s' for both", s->output);
    if (check_cluster(d, e)) return e->code;
    switch (s->kind) {
    case JOB_FACTORIZE:
        return check_factorize(d, e);
    case JOB_FINETUNE:
        return check_finetune(d, e);
    case JOB_EVAL:
        return check_eval(d, e);
    case JOB_INFER:
        return check_attention(d, e) ? e->code : check_infer(d, e);
    case JOB_BENCH:
        return check_attention(d, e) ? e->code : check_bench(d, e);
    default:
        return OK;
    }
}
