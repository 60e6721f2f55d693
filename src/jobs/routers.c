#include "jobs/routers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "data/json.h"
#include "model/router_versions.h"
#include "model/shape.h"

enum { JSON_BYTES_MAX = 64 << 20, TEXT_MAX = 200 };

/* One version, as a line of the table.  Numbers are NaN where nobody measured them. */
struct line {
    char version[ROUTER_VERSION_MAX], parent[ROUTER_VERSION_MAX], made[32];
    char how[TEXT_MAX]; /* stage and method, in a few words */
    bool current;
    double tokens, share, agreement, perplexity, kept;
    char text[12];  /* first digits of the digest of the text that they were measured on */
    struct err bad; /* its description cannot be read */
};

static status check_model(struct shape *s, const char *model, struct err *e)
{
    if (!file_is_directory(model))
        return err_set(e, ERR_IO, "%s: expected the directory of a factorized model, found none", model);
    if (shape_read(s, model, e)) return e->code;
    if (!s->experts) return err_set(e, ERR_SPEC, "%s: is a dense model, it has no routers", model);
    return OK;
}

static status get_word(char *out, size_t room, const struct json_t *o, const char *key, const char *path, struct err *e)
{
    const char *text = NULL;

    if (json_get_text(&text, o, key, JSON_OPTIONAL, path, e)) return e->code;
    snprintf(out, room, "%s", text ? text : "");
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return OK;
}

/* "1: layer-local, teacher-forced" and the choices that decide a stage 1: "1, gram, bce, top_k". */
static status describe(struct line *l, const struct json_t *about, const struct json_t *spec, const char *path, struct err *e)
{
    static const char *const keys[] = {"router", "labels", "loss"};
    struct str how = {0};
    char word[64];
    status s = get_word(word, sizeof(word), about, "stage", path, e);

    word[strcspn(word, ":")] = 0;
    if (*word) str_addf(&how, "stage %s", word);
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys) && spec && !s; i++) {
        s = get_word(word, sizeof(word), spec, keys[i], path, e);
        if (!s && *word) str_addf(&how, "%s%s", how.length ? ", " : "", word);
    }
    if (!s) s = get_word(word, sizeof(word), about, "select", path, e);
    if (!s && *word) str_addf(&how, "%s%s", how.length ? ", " : "", word);
    snprintf(l->how, sizeof(l->how), "%s", how.text ? how.text : "");
    str_free(&how);
    return s;
}

static status mean_after(double *out, const struct json_t *metrics, const char *path, struct err *e)
{
    const struct json_t *agreement = NULL, *after = NULL;
    double sum = 0;

    if (json_get_object(&agreement, metrics, "agreement", JSON_OPTIONAL, path, e) || !agreement) return e->code;
    if (json_get_array(&after, agreement, "after", JSON_OPTIONAL, path, e) || !after || !json_length(after)) return e->code;
    for (size_t i = 0; i < json_length(after); i++) {
        if (!json_is_real(json_item(after, i)))
            return err_set(e, ERR_FORMAT, "%s: metrics.agreement.after: expected numbers, found something else", path);
        sum += json_number(json_item(after, i));
    }
    *out = sum / (double)json_length(after);
    return OK;
}

/* A number; of stage 2, before and after. */
static status share_after(double *out, const struct json_t *metrics, const char *path, struct err *e)
{
    const struct json_t *share = json_at(metrics, "active_share");
    bool both = share && json_is_object(share);

    return json_get_real(out, both ? share : metrics, both ? "after" : "active_share", 0, 1, JSON_OPTIONAL, path, e);
}

static status read_about(struct line *l, const struct json_t *about, const char *path, struct err *e)
{
    const struct json_t *spec = NULL, *metrics = NULL;

    e->code = OK;
    if (!json_is_object(about)) return err_set(e, ERR_FORMAT, "%s: expected an object", path);
    if (get_word(l->parent, sizeof(l->parent), about, "parent", path, e) ||
        get_word(l->made, sizeof(l->made), about, "made", path, e) ||
        json_get_object(&spec, about, "spec", JSON_OPTIONAL, path, e) || describe(l, about, spec, path, e) ||
        json_get_object(&metrics, about, "metrics", JSON_OPTIONAL, path, e))
        return e->code;
    if (spec && json_get_real(&l->tokens, spec, "tokens", 0, 1e18, JSON_OPTIONAL, path, e)) return e->code;
    if (!metrics) return OK;
    if (mean_after(&l->agreement, metrics, path, e) ||
        json_get_real(&l->perplexity, metrics, "perplexity", 0, 1e300, JSON_OPTIONAL, path, e) ||
        json_get_real(&l->kept, metrics, "kept", 0, 1e6, JSON_OPTIONAL, path, e) || share_after(&l->share, metrics, path, e))
        return e->code;
    return OK;
}

/* What `router compare` has kept. */
static status read_measured(struct line *l, const char *model, const char *version, struct err *e)
{
    struct str path = {0};
    struct json_t *o = NULL;
    status s = OK;

    str_addf(&path, "%s/routers/%s/measured.json", model, version);
    if (file_exists(path.text)) s = json_read(&o, path.text, JSON_BYTES_MAX, e);
    if (o && !json_is_object(o)) s = err_set(e, ERR_FORMAT, "%s: expected an object", path.text);
    if (o && !s) s = json_get_real(&l->perplexity, o, "perplexity", 0, 1e300, JSON_OPTIONAL, path.text, e);
    if (o && !s) s = json_get_real(&l->kept, o, "kept", 0, 1e6, JSON_OPTIONAL, path.text, e);
    if (o && !s) s = json_get_real(&l->share, o, "active_share", 0, 1, JSON_OPTIONAL, path.text, e);
    if (o && !s) s = get_word(l->text, 9, o, "text_digest", path.text, e);
    json_free(o);
    str_free(&path);
    return s;
}

static void read_line(struct line *l, const char *model, const char *version, const char *current, const struct shape *shape)
{
    struct str path = {0};
    struct json_t *about;

    *l = (struct line){.share = shape_active_share(shape), .tokens = NAN, .agreement = NAN, .perplexity = NAN, .kept = NAN};
    snprintf(l->version, sizeof(l->version), "%s", version);
    l->current = !strcmp(version, current);
    str_addf(&path, "%s/routers/%s/router.json", model, version);
    if (!json_read(&about, path.text, JSON_BYTES_MAX, &l->bad)) {
        l->bad.code = OK;
        read_about(l, about, path.text, &l->bad);
        json_free(about);
        if (!l->bad.code) read_measured(l, model, version, &l->bad);
    }
    str_free(&path);
}

static void add_number(struct str *s, double x, const char *format)
{
    if (isnan(x)) str_addz(s, "-");
    else str_addf(s, format, x);
}

enum { COLUMNS = 11 };

static void fill_cells(struct str cell[COLUMNS], const struct line *l)
{
    for (int c = 0; c < COLUMNS; c++) str_clear(&cell[c]);
    str_addz(&cell[0], l->current ? "*" : " ");
    str_addz(&cell[1], l->version);
    str_addz(&cell[2], *l->parent ? l->parent : "-");
    str_addz(&cell[3], *l->how ? l->how : "-");
    add_number(&cell[4], l->tokens, "%.0f");
    add_number(&cell[5], 100 * l->share, "%.1f %%");
    add_number(&cell[6], l->agreement, "%.3f");
    add_number(&cell[7], l->perplexity, "%.3f");
    add_number(&cell[8], 100 * l->kept, "%.1f %%");
    str_addz(&cell[9], *l->text ? l->text : "-");
    str_addz(&cell[10], l->bad.code ? l->bad.text : *l->made ? l->made : "-");
}

static void print_table(FILE *to, const struct line *lines, int n)
{
    static const char *const heads[COLUMNS] = {"",          "version", "parent", "trained", "tokens", "f",
                                               "agreement", "ppl",     "kept",   "on text", "made"};
    static const bool number[COLUMNS] = {[4] = true, [5] = true, [6] = true, [7] = true, [8] = true};
    struct str cell[COLUMNS] = {0};
    int width[COLUMNS];

    for (int c = 0; c < COLUMNS; c++) width[c] = (int)strlen(heads[c]);
    width[0] = 1;
    for (int pass = 0; pass < 2; pass++)
        for (int i = pass ? -1 : 0; i < n; i++) { /* -1: the heads */
            if (i >= 0) fill_cells(cell, &lines[i]);
            for (int c = 0; c < COLUMNS; c++) {
                const char *text = i < 0 ? heads[c] : cell[c].text;
                bool last = c == COLUMNS - 1;

                if (pass == 0 && !last && (int)strlen(text) > width[c]) width[c] = (int)strlen(text);
                if (pass == 1 && last) fprintf(to, "  %s\n", text);
                else if (pass == 1) fprintf(to, number[c] ? "%s%*s" : "%s%-*s", c ? "  " : "", width[c], text);
            }
        }
    for (int c = 0; c < COLUMNS; c++) str_free(&cell[c]);
}

static void put_number(struct json_t *o, const char *key, double x)
{
    if (!isnan(x)) json_put_real(o, key, x);
}

static void print_json(FILE *to, const struct line *lines, int n)
{
    struct json_t *list = json_array_new();
    struct str text = {0};

    for (int i = 0; i < n; i++) {
        const struct line *l = &lines[i];
        struct json_t *o = json_object_new();

        json_put_text(o, "version", l->version);
        json_put_bool(o, "current", l->current);
        json_put_text(o, "parent", *l->parent ? l->parent : NULL);
        json_put_text(o, "trained", *l->how ? l->how : NULL);
        json_put_text(o, "made", *l->made ? l->made : NULL);
        put_number(o, "tokens", l->tokens);
        put_number(o, "active_share", l->share);
        put_number(o, "agreement", l->agreement);
        put_number(o, "perplexity", l->perplexity);
        put_number(o, "kept", l->kept);
        if (*l->text) json_put_text(o, "text_digest", l->text);
        if (l->bad.code) json_put_text(o, "error", l->bad.text);
        json_append(list, o);
    }
    json_dump(&text, list, true);
    fprintf(to, "%s\n", text.text);
    str_free(&text);
    json_free(list);
}

status routers_list(FILE *to, const char *model, bool json, struct err *e)
{
    struct router_history *h = malloc(sizeof(*h));
    struct shape *shape = malloc(sizeof(*shape));
    struct line *lines = NULL;
    char **names = NULL;
    int n = 0;

    BUG_ON(!h || !shape);
    status s = check_model(shape, model, e);
    if (!s) s = router_history_read(h, model, e);
    if (!s) s = router_versions(&names, &n, model, e);
    if (!s) {
        lines = calloc((size_t)n + 1, sizeof(*lines));
        BUG_ON(!lines);
        for (int i = 0; i < n; i++) read_line(&lines[i], model, names[i], h->n ? h->version[0] : "", shape);
        if (json) print_json(to, lines, n);
        else if (n == 0) fprintf(to, "%s: no routers yet: a finetune job makes the first\n", model);
        else print_table(to, lines, n);
        if (!json && h->n > 1) fprintf(to, "* in use; before it: %s\n", h->version[1]);
        else if (!json && h->n) fputs("* in use\n", to);
        for (int i = 0; i < n && !s; i++)
            if (lines[i].bad.code) {
                *e = lines[i].bad;
                s = e->code;
            }
        router_versions_free(names, n);
    }
    free(lines);
    free(shape);
    free(h);
    return s;
}

status routers_find(const char *model, const char *version, struct err *e)
{
    struct shape *shape = malloc(sizeof(*shape));

    BUG_ON(!shape);
    status s = check_model(shape, model, e);
    if (!s) s = router_find(model, version, e);
    free(shape);
    return s;
}

static void print_use(FILE *to, const char *model, const char *now, const char *before, bool json)
{
    struct json_t *o = json_object_new();
    struct str text = {0};

    json_put_text(o, "model", model);
    json_put_text(o, "current", now);
    json_put_text(o, "before", *before ? before : NULL);
    json_dump(&text, o, false);
    if (json) fprintf(to, "%s\n", text.text);
    else fprintf(to, "%s: router %s is in use now%s%s\n", model, now, *before ? ", before it: " : "", before);
    str_free(&text);
    json_free(o);
}

status routers_promote(FILE *to, const char *model, const char *version, bool json, struct err *e)
{
    struct router_history *h = malloc(sizeof(*h));
    status s = routers_find(model, version, e);

    BUG_ON(!h);
    if (!s) s = router_history_read(h, model, e);
    if (!s && h->n && !strcmp(h->version[0], version))
        s = err_set(e, ERR_SPEC, "%s: router %s is in use already", model, version);
    if (!s) s = router_promote(model, version, e);
    if (!s) print_use(to, model, version, h->n ? h->version[0] : "", json);
    free(h);
    return s;
}

status routers_rollback(FILE *to, const char *model, bool json, struct err *e)
{
    struct shape *shape = malloc(sizeof(*shape));
    char from[ROUTER_VERSION_MAX], now[ROUTER_VERSION_MAX];

    BUG_ON(!shape);
    status s = check_model(shape, model, e);
    free(shape);
    if (!s) s = router_rollback(from, now, model, e);
    if (!s) print_use(to, model, now, from, json);
    return s;
}
