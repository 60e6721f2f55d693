#include "jobs/inputs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "data/digest.h"
#include "jobs/fingerprint.h"
#include "model/router_file.h"

struct gathering {
    struct str *text; /* one line per input */
    struct cluster *cluster;
};

static status add_file(struct gathering *g, const char *path, struct err *e)
{
    struct stat st;
    char hex[65];

    if (!path || !*path) return OK;
    if (stat(path, &st) || !S_ISREG(st.st_mode)) return err_set(e, ERR_IO, "%s: cannot be read, or is not a file", path);
    cluster_alive(g->cluster);
    if (digest_file(hex, path, e)) return e->code;
    str_addf(g->text, "%s %s\n", path, hex);
    return OK;
}

static status add_files(struct gathering *g, const struct spec_list *paths, struct err *e)
{
    for (int i = 0; i < paths->n; i++)
        if (add_file(g, paths->items[i], e)) return e->code;
    return OK;
}

static status add_model(struct gathering *g, const char *directory, struct err *e)
{
    char hex[65];

    cluster_alive(g->cluster);
    if (fingerprint_model(hex, directory, e)) return e->code;
    str_addf(g->text, "%s %s\n", directory, hex);
    return OK;
}

/* `version` NULL: the current one.  A model may have none: whether that is wrong is for the job to say. */
static status add_router(struct gathering *g, const char *directory, const char *version, struct err *e)
{
    struct str path = {0};
    char current[64];
    status s = OK;

    if (!version || !*version) {
        if (router_current(current, directory, e)) return e->code;
        version = current;
    }
    if (*version) {
        str_addf(&path, "%s/routers/%s/router.safetensors", directory, version);
        s = add_file(g, path.text, e);
    }
    str_free(&path);
    return s;
}

/* What a report reads is what jobs wrote last; who has none is for the report to say. */
static status add_directory(struct gathering *g, const char *directory, size_t length, struct err *e)
{
    static const char *const names[] = {"result.json", "log.jsonl", "bench.jsonl"};
    struct str path = {0};
    status st = OK;

    for (size_t f = 0; f < sizeof(names) / sizeof(*names) && !st; f++) {
        str_clear(&path);
        str_addf(&path, "%.*s/%s", (int)length, directory, names[f]);
        if (file_exists(path.text)) st = add_file(g, path.text, e);
    }
    str_free(&path);
    return st;
}

static status add_results(struct gathering *g, const struct spec *s, struct err *e)
{
    for (int i = 0; i < s->report.inputs.n; i++)
        if (add_directory(g, s->report.inputs.items[i], strlen(s->report.inputs.items[i]), e)) return e->code;
    for (int i = 0; i < s->report.rows.n; i++) {
        const char *directory = strchr(s->report.rows.items[i], '=') + 1, *mark = strrchr(directory, '#');

        if (add_directory(g, directory, mark ? (size_t)(mark - directory) : strlen(directory), e)) return e->code;
    }
    return OK;
}

static status gather(struct gathering *g, const struct spec *s, struct err *e)
{
    if (s->kind == JOB_REPORT) return add_results(g, s, e);
    if (add_model(g, s->model, e)) return e->code;
    switch (s->kind) {
    case JOB_FACTORIZE:
        return add_file(g, s->factorize.calibration.file, e);
    case JOB_FINETUNE:
        if (s->stage2.from && add_router(g, s->model, s->stage2.from, e)) return e->code;
        return add_file(g, s->finetune.text.file, e);
    case JOB_CONVERT:
        return add_router(g, s->model, NULL, e);
    case JOB_EVAL:
        if (add_router(g, s->model, NULL, e) || add_file(g, s->eval.text.file, e) || add_files(g, &s->eval.minimal_pairs, e) ||
            add_files(g, &s->eval.multiple_choice, e) || add_files(g, &s->eval.last_word, e))
            return e->code;
        for (int i = 0; i < s->eval.domains.n; i++)
            if (add_file(g, strchr(s->eval.domains.items[i], '=') + 1, e)) return e->code;
        for (int i = 0; i < s->eval.variants.n; i++) {
            const char *version = spec_variant_of(s->eval.variants.items[i]).version;

            if (version && add_router(g, s->model, version, e)) return e->code;
        }
        if (s->eval.compare_router && *s->eval.compare_router && add_router(g, s->model, s->eval.compare_router, e))
            return e->code;
        if (!s->eval.compare_model || !*s->eval.compare_model) return OK;
        return add_model(g, s->eval.compare_model, e) ? e->code : add_router(g, s->eval.compare_model, NULL, e);
    case JOB_INFER:
        return add_router(g, s->model, NULL, e) ? e->code : add_file(g, s->infer.input, e);
    case JOB_BENCH:
        for (int i = 0; i < s->bench.compare.n; i++)
            if (add_model(g, s->bench.compare.items[i], e)) return e->code;
        return OK;
    default:
        return OK;
    }
}

status inputs_digest(char hex[65], const struct spec *s, struct cluster *c, struct err *e)
{
    struct str text = {0};
    struct gathering g = {&text, c};
    status st = gather(&g, s, e);

    hex[0] = 0;
    if (!st) digest_bytes(hex, text.text, text.length);
    str_free(&text);
    return st;
}

static bool made(const char *directory, const char *name)
{
    char *path = str_join(directory, name);
    bool there = file_exists(path);

    free(path);
    return there;
}

bool inputs_product_exists(const struct spec *s, const struct json_t *mine)
{
    const struct json_t *version = json_at(mine, "version");
    char name[128];

    if (spec_makes_model(s)) return made(s->output, "model/config.json");
    switch (s->kind) {
    case JOB_FINETUNE:
        if (!version || !json_is_text(version)) return false;
        snprintf(name, sizeof(name), "routers/%.64s/router.safetensors", json_text(version));
        return made(s->model, name);
    case JOB_REPORT:
        return made(s->output, "report.html");
    case JOB_INFER:
        return s->infer.result ? file_exists(s->infer.result) : made(s->output, "responses.jsonl");
    default:
        return true;
    }
}
