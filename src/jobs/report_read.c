/* What the report is made of: result.json of every input and row, and the jobs in them. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "jobs/report.h"

void report_row_parse(char **label, char ***directories, const char *row)
{
    const char *equal = strstr(row, " = "), *at = equal ? equal + 3 : row;
    size_t n = 0;

    *label = str_dup(row);
    if (equal) (*label)[equal - row] = 0;
    *directories = calloc(strlen(at) / 2 + 2, sizeof(**directories));
    BUG_ON(!*directories);
    while (*at) {
        const char *bar = strstr(at, " | ");
        size_t length = bar ? (size_t)(bar - at) : strlen(at);

        while (length > 0 && *at == ' ') {
            at++;
            length--;
        }
        while (length > 0 && at[length - 1] == ' ') length--;
        if (length > 0) {
            (*directories)[n] = str_dup(at);
            (*directories)[n++][length] = 0;
        }
        at = bar ? bar + 3 : at + strlen(at);
    }
}

/* ---- optional members ---- */

status report_number(double *out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    *out = NAN;
    return o ? json_get_real(out, o, key, -1e300, 1e300, JSON_OPTIONAL, source, e) : OK;
}

status report_object(const struct json_t **out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    *out = NULL;
    return o ? json_get_object(out, o, key, JSON_OPTIONAL, source, e) : OK;
}

status report_array(const struct json_t **out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    *out = NULL;
    return o ? json_get_array(out, o, key, JSON_OPTIONAL, source, e) : OK;
}

status report_word(const char **out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    *out = NULL;
    return o ? json_get_text(out, o, key, JSON_OPTIONAL, source, e) : OK;
}

/* ---- runs ---- */

/* A pipeline's result.json does not say the kinds of its steps: what they have does. */
static enum job_kind kind_of(const struct json_t *o)
{
    if (json_at(o, "ffn_parameters") || json_at(o, "factorization")) return JOB_FACTORIZE;
    if (json_at(o, "loss") && json_at(o, "version")) return JOB_FINETUNE;
    if (json_at(o, "bytes_after")) return JOB_CONVERT;
    if (json_at(o, "generated_tokens")) return JOB_INFER;
    if (json_at(o, "perplexity") || json_at(o, "accuracy") || json_at(o, "minimal_pairs")) return JOB_EVAL;
    if (json_at(o, "refused")) return JOB_BENCH;
    return JOB_KINDS;
}

/* The step's own result.json does, where it is still there. */
static enum job_kind kind_of_step(const char *directory, const struct json_t *o)
{
    char *path = str_join(directory, "result.json");
    struct json_t *file = NULL;
    const char *kind = NULL;
    struct err ignored;
    int found = -1;

    if (file_exists(path) && !json_read(&file, path, 64 << 20, &ignored) && json_is_object(file) &&
        !report_word(&kind, file, "kind", path, &ignored) && kind)
        found = spec_kind_find(kind);
    json_free(file);
    free(path);
    return found >= 0 ? (enum job_kind)found : kind_of(o);
}

static struct report_run *add_run(struct report *r, const struct report_run *like, const char *path, const char *directory,
                                  const char *name)
{
    struct report_run *run = &r->run[r->n++];
    struct str source = {0};

    *run = *like;
    str_addf(&source, "%s: %s", path, name);
    run->source = source.text;
    run->directory = str_dup(directory);
    run->label = str_dup(like->label);
    run->name = str_dup(name);
    return run;
}

/* Jobs of one result.json: all its members that are objects.  *file is kept by the first run, or freed. */
static status add_file(struct report *r, struct report_run *like, const char *directory, const char *path, struct err *e)
{
    const char *kind = NULL;
    bool pipeline, any = false;

    like->file = NULL;
    if (json_read(&like->file, path, 64 << 20, e)) return e->code;
    if (!json_is_object(like->file)) {
        json_free(like->file);
        return err_set(e, ERR_FORMAT, "%s: expected an object", path);
    }
    status s = report_word(&kind, like->file, "kind", path, e);
    pipeline = !s && kind && !strcmp(kind, "pipeline");
    for (void *i = json_first(like->file); i && !s; i = json_next(like->file, i)) {
        if (!json_is_object(json_member(i))) continue;
        if (r->n == REPORT_RUNS_MAX) {
            s = err_set(e, ERR_LIMIT, "%s: more than %d jobs for one page", path, REPORT_RUNS_MAX);
            break;
        }
        char *step = pipeline ? str_join(directory, json_key(i)) : str_dup(directory);
        struct report_run *run = add_run(r, like, path, step, json_key(i));

        run->o = json_member(i);
        run->file = any ? NULL : like->file;
        int known = kind && !pipeline ? spec_kind_find(kind) : -1;
        run->kind = known >= 0 ? (enum job_kind)known : pipeline ? kind_of_step(step, run->o) : kind_of(run->o);
        free(step);
        any = true;
    }
    if (!any) {
        if (!s) report_missing(r, "%s: has no job's results in it", path);
        json_free(like->file);
    }
    return s;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

static status add_input(struct report *r, const char *directory, const char *label, int row, struct err *e)
{
    struct report_run like = {.label = (char *)(label ? label : base_name(directory)), .input = r->inputs++, .row = row};
    char *path = str_join(directory, "result.json");
    status s = OK;

    if (!file_is_directory(directory))
        s = err_set(e, ERR_IO, "%s: expected the output directory of a job, found none", directory);
    else if (!file_exists(path)) report_missing(r, "%s: has no result.json: its job has not ended, or never began", directory);
    else s = add_file(r, &like, directory, path, e);
    free(path);
    return s;
}

static status add_row(struct report *r, const char *row, struct err *e)
{
    char **directories;
    status s = OK;

    if (r->rows == (int)(sizeof(r->row_label) / sizeof(*r->row_label)))
        return err_set(e, ERR_LIMIT, "rows: expected at most %d", r->rows);
    report_row_parse(&r->row_label[r->rows], &directories, row);
    for (int i = 0; directories[i]; i++) {
        if (!s) s = add_input(r, directories[i], r->row_label[r->rows], r->rows, e);
        free(directories[i]);
    }
    free(directories);
    r->rows++;
    return s;
}

status report_read(struct report *r, struct err *e)
{
    const struct spec *s = r->job->spec;

    r->run = calloc(REPORT_RUNS_MAX, sizeof(*r->run));
    BUG_ON(!r->run);
    for (int i = 0; i < s->report.inputs.n; i++)
        if (add_input(r, s->report.inputs.items[i], NULL, -1, e)) return e->code;
    for (int i = 0; i < s->report.rows.n; i++)
        if (add_row(r, s->report.rows.items[i], e)) return e->code;
    return OK;
}

void report_free(struct report *r)
{
    for (int i = 0; i < r->n; i++) {
        free(r->run[i].name);
        free(r->run[i].directory);
        free(r->run[i].source);
        free(r->run[i].label);
        json_free(r->run[i].file);
    }
    for (int i = 0; i < r->rows; i++) free(r->row_label[i]);
    free(r->run);
    str_free(&r->lead);
    str_free(&r->nav);
    str_free(&r->body);
    str_free(&r->missing);
}

const struct report_run *report_find(const struct report *r, int input, enum job_kind kind)
{
    for (int i = 0; i < r->n; i++)
        if ((input < 0 || r->run[i].input == input) && r->run[i].kind == kind) return &r->run[i];
    return NULL;
}

/* ---- lines of JSON ---- */

status report_lines(struct json_t **out, const char *directory, const char *name, struct err *e)
{
    char *path = str_join(directory, name), *text = NULL;
    size_t length = 0;
    int line = 0;
    status s = OK;

    *out = NULL;
    if (!file_exists(path)) goto out;
    if ((s = file_read(&text, &length, path, REPORT_BYTES_MAX, e))) goto out;
    *out = json_array_new();
    for (const char *at = text, *end = text + length; at < end && !s;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = stop ? (size_t)(stop - at) : (size_t)(end - at);
        struct json_t *v = NULL;
        char where[4200];

        snprintf(where, sizeof(where), "%s line %d", path, ++line);
        if (n > 0) s = json_parse(&v, at, n, where, e);
        if (n > 0 && s && !stop) s = OK; /* torn by a kill: what stands before it counts */
        else if (n > 0 && !s && !json_is_object(v)) s = err_set(e, ERR_FORMAT, "%s: expected an object", where);
        if (v && !s) json_append(*out, v);
        else if (v) json_free(v);
        at += n + 1;
    }
    if (s) {
        json_free(*out);
        *out = NULL;
    }
out:
    free(text);
    free(path);
    return s;
}
