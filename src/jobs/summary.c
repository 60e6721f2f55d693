#include "jobs/summary.h"

#include <math.h>
#include <string.h>

#include "base/str.h"

static double number(const struct json_t *o, const char *key)
{
    const struct json_t *v = o ? json_at(o, key) : NULL;

    return v && json_is_real(v) ? json_number(v) : NAN;
}

/* The result of the last step of a kind, or NULL. */
static const struct json_t *result_of(const struct spec *s, const struct json_t *result, enum job_kind kind)
{
    const struct json_t *found = NULL;

    for (int i = 0; i < s->n_steps; i++)
        if (s->steps[i].kind == kind && json_at(result, s->steps[i].name)) found = json_at(result, s->steps[i].name);
    return found;
}

static void human(char out[32], double n, const char *unit)
{
    static const char *const prefix[] = {"", "k", "M", "G", "T"};
    int i = 0;

    while (fabs(n) >= 1000 && i < 4) {
        n /= 1000;
        i++;
    }
    snprintf(out, 32, i ? "%.2f %s%s" : "%.0f %s%s", n, prefix[i], unit);
}

static void print_model(struct log *l, const struct json_t *factorize, const struct json_t *finetune)
{
    char all[32], ffn[32];

    if (!factorize) return;
    human(all, number(factorize, "parameters"), "");
    human(ffn, number(factorize, "ffn_parameters"), "");
    log_line(l, "  parameters       %s, of them %s in the FFNs; none changed", all, ffn);
    log_line(l, "  experts          %.0f a layer, %.0f active for a token: %.1f %% of the FFN's neurons",
             number(factorize, "experts"), number(factorize, "active"), 100 * number(factorize, "active_share"));
    if (finetune)
        log_line(l, "  router           trained on %.0f tokens in %.1f s", number(finetune, "tokens"),
                 number(finetune, "training_seconds"));
}

static const char *what_it_is(const char *variant)
{
    static const char *const says[VARIANTS] = {
        [VARIANT_DENSE] = "the model as it came",
        [VARIANT_STATIC] = "the same neurons for every token",
        [VARIANT_RANDOM] = "experts drawn by lot",
        [VARIANT_ROUTER] = "experts chosen by the trained router",
        [VARIANT_ORACLE] = "the best experts, seen in hindsight",
        [VARIANT_ORACLE_VARIABLE] = "the same, more of them where they matter",
        [VARIANT_NEURONS] = "the best single neurons: a ceiling",
    };

    const struct spec_variant_item of = spec_variant_of(variant); /* named by this launch's own spec */

    return of.version ? "another version of the router" : says[of.kind];
}

/* A line for every variant; `of`: NULL, or the name of compare_model, of which routers are shown. */
static void print_lines(struct log *l, const struct json_t *eval, double dense_ppl, double dense_acc, const char *of)
{
    const struct json_t *perplexity = json_at(eval, "perplexity"), *accuracy = json_at(eval, "accuracy");
    const struct json_t *share = json_at(eval, "active_share"), *speed = json_at(eval, "tokens_per_second");

    for (void *i = json_first(perplexity); i; i = json_next(perplexity, i)) {
        const char *name = json_key(i);
        double ppl = number(perplexity, name), acc = number(accuracy, name);

        if (isnan(ppl) || (of && strncmp(name, "router", 6) != 0)) continue;
        log_line(l, "  %-15s %8.1f %% %11.2f %8.2f %9.4f %5.1f %% %9.0f   %s%s", of ? "other router" : name,
                 100 * number(share, name), ppl, ppl / dense_ppl, acc, 100 * acc / dense_acc, number(speed, name),
                 of ? "of " : what_it_is(name), of ? of : "");
    }
}

static void print_variants(struct log *l, const struct json_t *eval)
{
    const struct json_t *perplexity = json_at(eval, "perplexity"), *accuracy = json_at(eval, "accuracy");
    const struct json_t *compare = json_at(eval, "compare"), *other = compare ? json_at(compare, "other") : NULL;
    double dense_ppl = number(perplexity, "dense"), dense_acc = number(accuracy, "dense");

    if (isnan(dense_ppl) && other) { /* of adapted weights */
        dense_ppl = number(json_at(other, "perplexity"), "dense");
        dense_acc = number(json_at(other, "accuracy"), "dense");
    }
    if (!perplexity) return;
    log_line(l, "\n  %-15s %10s %11s %8s %9s %7s %9s   %s", "variant", "FFN active", "perplexity", "x dense", "accuracy", "kept",
             "tokens/s", "what it is");
    print_lines(l, eval, dense_ppl, dense_acc, NULL);
    if (other && json_at(other, "perplexity")) print_lines(l, other, dense_ppl, dense_acc, json_text(json_at(other, "name")));
}

/* Experts that hardly any token comes to: less than 1 in the table of print_load(). */
static void warn_of_idle(struct log *l, const struct json_t *eval)
{
    const struct json_t *load = json_at(eval, "load");
    size_t idle = 0, all = 0;

    for (size_t i = 0; load && i < json_length(load); i++) {
        const struct json_t *layer = json_item(load, i);

        double sum = 0;

        for (size_t x = 0; x < json_length(layer); x++) sum += json_number(json_item(layer, x));
        for (size_t x = 0; x < json_length(layer); x++, all++) idle += json_number(json_item(layer, x)) < 0.01 * sum;
    }
    if (idle) log_warn(l, "experts with less than 1 %% of their layer's tokens: %zu of %zu", idle, all);
}

static void print_of_speed(struct log *l, const struct json_t *factorize, const struct json_t *result, int processors)
{
    enum { TINY_PARAMETERS = 100000000 };
    double ranks = number(result, "ranks"), parameters = number(factorize, "parameters");

    if (processors > 0 && ranks > processors)
        log_line(l, "  tokens/s says little here: %.0f ranks share %d processor%s.", ranks, processors,
                 processors == 1 ? "" : "s");
    else if (parameters < TINY_PARAMETERS)
        log_line(l, "  tokens/s says little here: the model is so small that a step's own costs outweigh what its experts save.");
}

static void print_load(struct log *l, const struct json_t *eval)
{
    const struct json_t *load = json_at(eval, "load");

    if (!load || !json_length(load)) return;
    log_line(l, "\n  tokens per expert, %% of the layer's (router)");
    for (size_t i = 0; i < json_length(load); i++) {
        const struct json_t *layer = json_item(load, i);
        size_t n = json_length(layer), shown = n < 16 ? n : 16;
        double sum = 0;
        struct str line = {0};

        for (size_t e = 0; e < n; e++) sum += json_number(json_item(layer, e));
        for (size_t e = 0; e < shown; e++)
            str_addf(&line, " %5.1f", sum > 0 ? 100 * json_number(json_item(layer, e)) / sum : 0.0);
        log_line(l, "    layer %2zu %s%s", i, line.text ? line.text : "", shown < n ? " ..." : "");
        str_free(&line);
    }
}

static void print_traffic(struct log *l, const struct spec *s, const struct json_t *result)
{
    double out = 0, back = 0;
    char a[32], b[32];

    for (int i = 0; i < s->n_steps; i++) {
        const struct json_t *step = json_at(result, s->steps[i].name), *x = step ? json_at(step, "exchange") : NULL;

        if (!x) continue;
        out += number(x, "bytes_out");
        back += number(x, "bytes_back");
    }
    human(a, out, "B");
    human(b, back, "B");
    log_line(l, "\n  exchanged        %s out to the experts, %s back, between %.0f ranks", a, b, number(result, "ranks"));
}

void summary_print(struct log *l, const struct spec *s, const struct json_t *result, int processors)
{
    const struct json_t *eval = result_of(s, result, JOB_EVAL), *infer = result_of(s, result, JOB_INFER);

    log_line(l, "\n%s", s->model);
    print_model(l, result_of(s, result, JOB_FACTORIZE), result_of(s, result, JOB_FINETUNE));
    if (eval) {
        print_variants(l, eval);
        print_of_speed(l, result_of(s, result, JOB_FACTORIZE), result, processors);
        print_load(l, eval);
        warn_of_idle(l, eval);
    }
    if (number(result, "ranks") > 1) print_traffic(l, s, result);
    else log_line(l, "%s", "");
    if (infer)
        log_line(l, "  answered         %.0f prompts, %.0f tokens, %.0f tokens/s", number(infer, "rows"),
                 number(infer, "generated_tokens"), number(infer, "tokens_per_second"));
    log_line(l, "  time             %.1f s", number(result, "seconds"));
}
