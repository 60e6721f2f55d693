#include "jobs/inspect.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "data/json.h"
#include "data/sums.h"
#include "data/tokenizer.h"
#include "model/router_file.h"
#include "model/weights.h"

enum { JSON_BYTES_MAX = 64 << 20, VERSIONS_MAX = 1000 };

/* ---- a model ---- */

static status print_tensors(FILE *to, const char *directory, const char *stem, struct err *e)
{
    struct safetensors *t;
    struct {
        char dtype[8];
        size_t tensors, bytes;
    } kinds[16] = {0};
    int n = 0;

    if (safetensors_open_stem(&t, directory, stem, e)) return e->code;
    for (size_t i = 0; i < safetensors_count(t); i++) {
        const struct tensor_info *info = safetensors_info(t, i);
        int k = 0;

        while (k < n && strcmp(kinds[k].dtype, info->dtype) != 0) k++;
        if (k == 16) continue;
        if (k == n) snprintf(kinds[n++].dtype, sizeof(kinds[0].dtype), "%s", info->dtype);
        kinds[k].tensors++;
        kinds[k].bytes += info->bytes;
    }
    fprintf(to, "%-12s ", strcmp(stem, WEIGHTS_PACKED) != 0 ? "tensors" : "packed");
    for (int k = 0; k < n; k++)
        fprintf(to, "%s%zu %s (%.1f MiB)", k ? ", " : "", kinds[k].tensors, kinds[k].dtype, (double)kinds[k].bytes / (1 << 20));
    fputc('\n', to);
    safetensors_close(t);
    return OK;
}

/* What is opened: the packed file where there is one. */
static status print_weights(FILE *to, const char *directory, const struct shape *s, struct err *e)
{
    const struct precision stored = {0};
    struct weights_plan w;

    if (safetensors_present(directory, "model") && print_tensors(to, directory, "model", e)) return e->code;
    if (safetensors_present(directory, WEIGHTS_PACKED) && print_tensors(to, directory, WEIGHTS_PACKED, e)) return e->code;
    if (weights_plan(&w, directory, s, &stored, e)) return e->code;
    fputs("weights      ", to);
    for (int i = 0; i < WEIGHT_PARTS; i++)
        fprintf(to, "%s%s %s", i ? ", " : "", weight_part_name((enum weight_part)i), format_name(w.format[i]));
    fputs(w.packed ? "; used in place\n" : "; packed into memory when the model is opened\n", to);
    return OK;
}

static void print_shape(FILE *to, const struct shape *s)
{
    fprintf(to, "shape        %d layers, width %d, %d neurons, %d heads (%d of keys and values) of %d\n", s->layers, s->width,
            s->neurons, s->heads, s->kv_heads, s->head_dim);
    fprintf(to, "vocabulary   %d, head %s\n", s->vocab, s->tied ? "tied to the embedding" : "of its own");
    fprintf(to, "context      %d positions%s\n", s->positions, s->window ? ", the width of its sliding attention" : "");
    fprintf(to, "parameters   %.2f M, of which FFNs %.2f M\n", (double)shape_parameters(s) / 1e6,
            (double)shape_ffn_parameters(s) / 1e6);
    if (!s->experts) return;
    int least = s->shared[0], most = s->shared[0];
    for (int l = 1; l < s->layers; l++) {
        if (s->shared[l] < least) least = s->shared[l];
        if (s->shared[l] > most) most = s->shared[l];
    }
    fprintf(to, "experts      %d per layer, %d active: 1R%dE%dK, f = %.1f %%\n", s->experts, s->active, s->experts, s->active,
            100 * shape_active_share(s));
    if (least == most) fprintf(to, "shared       %d neurons per layer\n", most);
    else fprintf(to, "shared       %d to %d neurons per layer\n", least, most);
    fprintf(to, "method       %s: grouping %s, scale %g, %s, %s\n", s->method, s->grouping, (double)s->scale,
            s->compensate ? "mean compensation" : "no compensation", s->calibrated ? "calibrated" : "not calibrated");
    if (s->source_digest[0]) fprintf(to, "source       %.16s...\n", s->source_digest);
}

static int by_name(const void *a, const void *b)
{
    return strverscmp(*(char *const *)a, *(char *const *)b);
}

/* Names of subdirectories, sorted; malloc'ed. */
static int list_versions(char **names, const char *path)
{
    DIR *d = opendir(path);
    struct dirent *f;
    int n = 0;

    while (d && n < VERSIONS_MAX && (f = readdir(d))) {
        char *full = str_join(path, f->d_name);

        if (f->d_name[0] != '.' && !strstr(f->d_name, ".tmp-") && file_is_directory(full)) names[n++] = str_dup(f->d_name);
        free(full);
    }
    if (d) closedir(d);
    qsort(names, (size_t)n, sizeof(*names), by_name);
    return n;
}

static double number(const struct json_t *o, const char *key)
{
    const struct json_t *v = o ? json_at(o, key) : NULL;

    return v && json_is_real(v) ? json_number(v) : NAN;
}

static const char *text(const struct json_t *o, const char *key)
{
    const struct json_t *v = o ? json_at(o, key) : NULL;

    return v && json_is_text(v) ? json_text(v) : "?";
}

/* The mean of a list of numbers. */
static double mean(const struct json_t *o, const char *key)
{
    const struct json_t *list = o ? json_at(o, key) : NULL;
    double sum = 0;

    if (!list || !json_is_array(list) || !json_length(list)) return NAN;
    for (size_t i = 0; i < json_length(list); i++)
        sum += json_is_real(json_item(list, i)) ? json_number(json_item(list, i)) : NAN;
    return sum / (double)json_length(list);
}

/* The factors of the active experts, one a layer, of a router that has them. */
static void print_scale(FILE *to, const struct json_t *router)
{
    const struct json_t *list = router ? json_at(router, "scale") : NULL;
    double least = INFINITY, most = -INFINITY;

    for (size_t i = 0; list && json_is_array(list) && i < json_length(list); i++) {
        const struct json_t *x = json_item(list, i);

        if (!json_is_real(x)) return;
        least = fmin(least, json_number(x));
        most = fmax(most, json_number(x));
    }
    if (least <= most) fprintf(to, ", scale %.3f to %.3f", least, most);
}

static void print_router(FILE *to, const char *routers, const char *version, bool current)
{
    char *directory = str_join(routers, version), *path = str_join(directory, "router.json");
    struct json_t *about;
    struct err e;

    fprintf(to, "  %-12.63s%-10s", version, current ? "(current)" : "");
    if (json_read(&about, path, JSON_BYTES_MAX, &e)) {
        fprintf(to, "  %s\n", e.text);
    } else {
        const struct json_t *metrics = json_at(about, "metrics"), *agreement = metrics ? json_at(metrics, "agreement") : NULL;
        double before = mean(agreement, "before"), after = mean(agreement, "after");

        if (isfinite(after)) fprintf(to, "  agreement with the labels %.3f -> %.3f", before, after);
        const struct json_t *router = json_at(about, "router"), *cost = router ? json_at(router, "cost") : NULL;

        if (cost)
            fprintf(to, "  %.20s, %.2f %% of the FFN's multiply-adds", text(router, "kind"), 100 * number(cost, "share_of_ffn"));
        print_scale(to, router);
        fprintf(to, "  made %.30s\n", text(about, "made"));
        json_free(about);
    }
    free(path);
    free(directory);
}

static status print_routers(FILE *to, const char *directory, struct err *e)
{
    char current[64] = "", *names[VERSIONS_MAX], *routers = str_join(directory, "routers");
    status st = router_current(current, directory, e);
    int n = list_versions(names, routers);

    if (st == OK && n == 0) fputs("routers      none yet: a finetune job makes the first\n", to);
    if (st == OK && n > 0) fprintf(to, "routers      %d\n", n);
    for (int i = 0; i < n; i++) {
        if (st == OK) print_router(to, routers, names[i], !strcmp(names[i], current));
        free(names[i]);
    }
    free(routers);
    return st;
}

static status print_model(FILE *to, const char *directory, struct err *e)
{
    struct tokenizer *t;
    struct shape s;
    struct err no_tokenizer;

    if (shape_read(&s, directory, e)) return e->code;
    fprintf(to, "%s: a %s model (%s)\n", directory, s.experts ? "factorized" : "dense", s.architecture);
    print_shape(to, &s);
    if (print_weights(to, directory, &s, e)) return e->code;
    if (tokenizer_open(&t, directory, &no_tokenizer)) {
        fprintf(to, "tokenizer    cannot be used: %s\n", no_tokenizer.text);
    } else {
        fprintf(to, "tokenizer    %s, %d pieces\n", tokenizer_kind(t), tokenizer_vocab(t));
        tokenizer_close(t);
    }
    return s.experts ? print_routers(to, directory, e) : OK;
}

/* ---- a job's output ---- */

static void print_variants(FILE *to, const struct json_t *eval)
{
    const struct json_t *perplexity = json_at(eval, "perplexity"), *accuracy = json_at(eval, "accuracy");

    for (void *i = json_is_object(perplexity) ? json_first(perplexity) : NULL; i; i = json_next(perplexity, i))
        fprintf(to, "    %-10.20s perplexity %.2f, accuracy %.4f\n", json_key(i), number(perplexity, json_key(i)),
                number(accuracy, json_key(i)));
}

/* What a step found, by what its object has: a result does not say the kinds of its steps. */
static void print_figures(FILE *to, const char *name, const struct json_t *o)
{
    const struct json_t *agreement = json_at(o, "agreement"), *loss = json_at(o, "loss");

    fprintf(to, "  %-12.60s ", name);
    if (json_at(o, "active_share") && json_at(o, "experts"))
        fprintf(to, "%.0f experts a layer, %.0f active: f = %.1f %%; %s", number(o, "experts"), number(o, "active"),
                100 * number(o, "active_share"), text(o, "model"));
    else if (json_at(o, "version") && json_at(o, "stage"))
        fprintf(to, "router %s, end to end: KL %.4f -> %.4f, f %.1f %%, %.0f tokens", text(o, "version"),
                number(json_at(o, "kl"), "before"), number(json_at(o, "kl"), "after"),
                100 * number(json_at(o, "active_share"), "after"), number(o, "tokens"));
    else if (json_at(o, "version"))
        fprintf(to, "router %s: loss %.4f -> %.4f, agreement %.3f -> %.3f, %.0f tokens", text(o, "version"),
                number(loss, "before"), number(loss, "after"), mean(agreement, "before"), mean(agreement, "after"),
                number(o, "tokens"));
    else if (json_at(o, "bytes_after"))
        fprintf(to, "experts %s, attention %s, head %s: %.1f MiB; %s", text(json_at(o, "formats"), "experts"),
                text(json_at(o, "formats"), "attention"), text(json_at(o, "formats"), "head"), number(o, "bytes") / 0x1p20,
                text(o, "model"));
    else if (json_at(o, "generated_tokens"))
        fprintf(to, "%.0f prompts, %.0f refused, %.0f tokens, %.0f tokens/s; %s", number(o, "rows"), number(o, "failed"),
                number(o, "generated_tokens"), number(o, "tokens_per_second"), text(o, "responses"));
    else if (json_at(o, "perplexity"))
        fprintf(to, "perplexity and accuracy of %zu variants", json_length(json_at(o, "perplexity")));
    else fputs("not finished", to);
    if (isfinite(number(o, "seconds"))) fprintf(to, " (%.1f s)", number(o, "seconds"));
    fputc('\n', to);
    print_variants(to, o);
}

static status print_output(FILE *to, const char *directory, const char *path, struct err *e)
{
    struct json_t *result;

    if (json_read(&result, path, JSON_BYTES_MAX, e)) return e->code;
    if (!json_is_object(result)) {
        json_free(result);
        return err_set(e, ERR_FORMAT, "%s: expected an object", path);
    }
    fprintf(to, "%s: the output of a job (%s)\n", directory, text(result, "kind"));
    fprintf(to, "status       %s", text(result, "status"));
    if (json_at(result, "error")) fprintf(to, ": %s", text(result, "error"));
    fprintf(to, "\nstarted      %s, %.1f s on %.0f rank%s\n", text(result, "started"), number(result, "seconds"),
            number(result, "ranks"), number(result, "ranks") == 1 ? "" : "s");
    for (void *i = json_first(result); i; i = json_next(result, i))
        if (json_is_object(json_member(i))) print_figures(to, json_key(i), json_member(i));
    fprintf(to, "everything   %s\n", path);
    json_free(result);
    char *model = str_join(directory, "model"), *config = str_join(model, "config.json");
    if (file_exists(config)) fprintf(to, "\nIt holds a model: factorllm inspect %s\n", model);
    free(config);
    free(model);
    return OK;
}

struct verified {
    struct sums_checked files;
    int without; /* routers of a program that wrote no sums beside them */
};

static status verify_router(struct verified *found, const char *directory, struct err *e)
{
    char *sums = str_join(directory, SUMS_FILE);
    struct sums_checked of_it = {0};
    bool has = file_exists(sums);
    status st = has ? sums_check(&of_it, directory, e) : OK;

    found->without += !has;
    found->files.files += of_it.files;
    found->files.bytes += of_it.bytes;
    free(sums);
    return st;
}

static status verify_files(struct verified *found, const char *directory, bool is_model, struct err *e)
{
    if (!is_model) return err_set(e, ERR_SPEC, "--verify: expected a model, found %s without config.json", directory);
    char *names[VERSIONS_MAX], *routers = str_join(directory, "routers");
    int n = list_versions(names, routers);
    status st = sums_check(&found->files, directory, e);

    for (int i = 0; i < n; i++) {
        char *version = str_join(routers, names[i]);

        if (st == OK) st = verify_router(found, version, e);
        free(version);
        free(names[i]);
    }
    free(routers);
    return st;
}

static void print_verified(FILE *to, const struct verified *found)
{
    fprintf(to, "verified     %d files, %.1f MiB: what " SUMS_FILE " says", found->files.files,
            (double)found->files.bytes / 0x1p20);
    if (found->without)
        fprintf(to, "; %d router%s without " SUMS_FILE " not looked at", found->without, found->without == 1 ? "" : "s");
    fputc('\n', to);
}

status inspect_print(FILE *to, const char *directory, bool verify, struct err *e)
{
    struct verified found = {0};
    char *config, *result;
    status st = OK;

    if (!file_exists(directory)) return err_set(e, ERR_IO, "%s: %s", directory, strerror(errno));
    if (!file_is_directory(directory)) return err_set(e, ERR_IO, "%s: expected a directory, found a file", directory);
    config = str_join(directory, "config.json");
    result = str_join(directory, "result.json");
    bool is_model = file_exists(config), is_output = file_exists(result);
    if (!is_model && !is_output)
        st = err_set(e, ERR_IO, "%s: expected a model (config.json) or a job's output (result.json), found neither", directory);
    if (st == OK && verify) st = verify_files(&found, directory, is_model, e);
    if (is_model && st == OK) st = print_model(to, directory, e);
    if (verify && st == OK) print_verified(to, &found);
    if (is_model && is_output && st == OK) fputc('\n', to);
    if (is_output && st == OK) st = print_output(to, directory, result, e);
    free(config);
    free(result);
    return st;
}
