/* What the report is made of: result.json of every input and row, and the jobs in them. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "jobs/report.h"

void report_row_parse(char **label, char **directory, char **variant, const char *row)
{
    const char *equal = strchr(row, '=');

    BUG_ON(!equal); /* the spec was checked */
    *label = str_dup(row);
    (*label)[equal - row] = 0;
    *directory = str_dup(equal + 1);
    char *mark = strrchr(*directory, '#');
    *variant = mark ? str_dup(mark + 1) : NULL;
    if (mark) *mark = 0;
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
    if ((json_at(o, "loss") || json_at(o, "stage")) && json_at(o, "version")) return JOB_FINETUNE;
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
    run->variant = like->variant ? str_dup(like->variant) : NULL;
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
        run->json = like->file;
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

/* A row's file that was read before, for another variant of it. */
static bool add_again(struct report *r, const struct report_run *like, const char *path)
{
    int first = 0;

    for (; first < r->n; first++) {
        const char *source = r->run[first].source;
        size_t n = strlen(path);

        if (!strncmp(source, path, n) && source[n] == ':') break;
    }
    int end = r->n, input = first < end ? r->run[first].input : 0;
    for (int i = first; i < end && r->run[i].input == input && r->n < REPORT_RUNS_MAX; i++) {
        struct report_run *run = add_run(r, like, path, r->run[i].directory, r->run[i].name);

        run->o = r->run[i].o;
        run->kind = r->run[i].kind;
        run->json = r->run[first].json;
    }
    return first < end;
}

static status add_input(struct report *r, struct report_run like, const char *directory, struct err *e)
{
    char *path = str_join(directory, "result.json");
    status s = OK;

    like.input = r->inputs++;
    if (!file_is_directory(directory))
        s = err_set(e, ERR_IO, "%s: expected the output directory of a job, found none", directory);
    else if (!file_exists(path)) report_missing(r, "%s: has no result.json: its job has not ended, or never began", directory);
    else if (like.row < 0 || !add_again(r, &like, path)) s = add_file(r, &like, directory, path, e);
    free(path);
    return s;
}

/* "LABEL=DIRECTORY#VARIANT"; those of one row stand together. */
static status add_row(struct report *r, const char *row, struct err *e)
{
    char *label, *directory, *variant;

    report_row_parse(&label, &directory, &variant, row);
    bool again = r->rows > 0 && !strcmp(label, r->row_label[r->rows - 1]);
    status s = OK;
    if (again) {
        free(label);
    } else if (r->rows == (int)(sizeof(r->row_label) / sizeof(*r->row_label))) {
        s = err_set(e, ERR_LIMIT, "rows: expected at most %d", r->rows);
        free(label);
    } else {
        r->row_label[r->rows++] = label;
    }
    if (!s)
        s = add_input(r, (struct report_run){.label = r->row_label[r->rows - 1], .row = r->rows - 1, .variant = variant},
                      directory, e);
    free(directory);
    free(variant);
    return s;
}

status report_read(struct report *r, struct err *e)
{
    const struct spec *s = r->job->spec;

    r->run = calloc(REPORT_RUNS_MAX, sizeof(*r->run));
    BUG_ON(!r->run);
    for (int i = 0; i < s->report.inputs.n; i++)
        if (add_input(r, (struct report_run){.label = (char *)base_name(s->report.inputs.items[i]), .row = -1},
                      s->report.inputs.items[i], e))
            return e->code;
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
        free(r->run[i].variant);
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
