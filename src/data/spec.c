#include "data/spec.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/spec_table.h"
#include "data/spec_yaml.h"

enum { SPEC_BYTES_MAX = 1 << 20 };

/* What is being read: the overrides are marked as they find their job, so that those that find none can be named. */
struct input {
    const char *source;
    const char *const *overrides;
    int n_overrides;
};

static void clear(struct spec *s)
{
    for (int i = 0; i < s->n_steps; i++) clear(&s->steps[i]);
    free(s->steps);
    for (int i = 0; i < key_count(); i++) key_clear(s, key_row(i));
    free(s->source);
}

void spec_free(struct spec *s)
{
    if (!s) return;
    clear(s);
    free(s);
}

/* ---- where ---- */

void draft_where(const struct draft *d, int row, struct str *out)
{
    int line = row < 0 ? d->first_line : d->line[row];

    if (line == FROM_COMMAND_LINE) str_addz(out, "--set");
    else if (line == FROM_MESSAGE || d->first_line == FROM_MESSAGE) str_addz(out, "message from the coordinator");
    else str_addf(out, "%s:%d", d->source, line > 0 ? line : d->first_line);
}

status draft_fail(const struct draft *d, const char *key, struct err *e, const char *format, ...)
{
    struct str where = {0};
    char text[800];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    draft_where(d, key_find(key, d->s->kind), &where);
    err_set(e, ERR_SPEC, "%s: %s%s: %s", where.text, d->prefix, key, text);
    str_free(&where);
    return ERR_SPEC;
}

bool draft_given(const struct draft *d, const char *key)
{
    int row = key_find(key, d->s->kind);

    return row >= 0 && d->line[row] != FROM_DEFAULT && d->line[row] != FROM_PARENT;
}

/* ---- from YAML ---- */

static status unknown_key(const struct draft *d, const char *name, const char *where, struct err *e)
{
    struct str hint = {0};

    key_suggest(&hint, name, d->s->kind);
    err_set(e, ERR_SPEC, "%s: %s%.80s: expected a key of %s jobs, found an unknown one%s", where, d->prefix, name,
            spec_kind_name(d->s->kind), hint.text ? hint.text : "");
    str_free(&hint);
    return ERR_SPEC;
}

/* Is this row allowed here?  Rows of the whole launch stand at the top of a pipeline. */
static status check_place(const struct draft *d, int row, const char *where, struct err *e)
{
    const struct key *k = key_row(row);

    if (d->step && k->flags & KEY_TOP)
        return err_set(e, ERR_SPEC,
                       "%s: %s%s: expected at the top of the pipeline, found in a step: it holds for all ranks of the launch",
                       where, d->prefix, k->name);
    return OK;
}

static status put_pair(struct str *out, const struct draft *d, const struct key *k, const struct yaml *name,
                       const struct yaml *value, struct err *e)
{
    bool text = value->kind == YAML_TEXT;

    if (!text || strlen(name->text) != name->length || strlen(value->text) != value->length || strchr(name->text, '='))
        return err_set(e, ERR_SPEC, "%s:%d: %s%s: expected NAME: %s, found %s", d->source, value->line, d->prefix, k->name,
                       k->flags & KEY_LISTS ? "[TEXT, ...]" : "TEXT", text ? "something else" : spec_yaml_kind_name(value->kind));
    str_addf(out, "%s=%s", name->text, value->text);
    return OK;
}

/* A map NAME: TEXT, or NAME: [TEXT, ...], as the list of its NAME=TEXT. */
static status put_pairs(struct draft *d, const struct key *k, const struct yaml *v, struct err *e)
{
    int n = 0, most = 0;
    for (int i = 1; i < v->n; i += 2) most += v->item[i].kind == YAML_LIST ? v->item[i].n : 1;
    struct str *text = calloc((size_t)most + 1, sizeof(*text)), where = {0};
    struct scalar *items = calloc((size_t)most + 1, sizeof(*items));
    status st = OK;

    BUG_ON(!text || !items);
    str_addf(&where, "%s:%d", d->source, v->line);
    for (int i = 0; i + 1 < v->n && st == OK; i += 2) {
        const struct yaml *name = &v->item[i], *value = &v->item[i + 1];
        bool list = value->kind == YAML_LIST && k->flags & KEY_LISTS && value->n > 0;

        for (int j = 0; j < i && k->flags & KEY_LISTS && st == OK; j += 2) /* elsewhere key_put() sees that */
            if (!strcmp(v->item[j].text, name->text))
                st = err_set(e, ERR_SPEC, "%s:%d: %s%s: expected each name once, found '%.60s' twice", d->source, name->line,
                             d->prefix, k->name, name->text);
        for (int j = 0; j < (list ? value->n : 1) && st == OK; j++) {
            st = put_pair(&text[n], d, k, name, list ? &value->item[j] : value, e);
            items[n] = (struct scalar){.text = text[n].text, .length = text[n].length};
            n++;
        }
    }
    if (st == OK) st = key_put(d->s, k, items, n, true, where.text, d->prefix, e);
    for (int i = 0; i < n; i++) str_free(&text[i]);
    free(text);
    free(items);
    str_free(&where);
    return st;
}

static status put_node(struct draft *d, int row, const struct yaml *v, struct err *e)
{
    const struct key *k = key_row(row);
    struct str where = {0};
    struct scalar *items = NULL;
    status st;

    str_addf(&where, "%s:%d", d->source, v->line);
    if (check_place(d, row, where.text, e)) {
        st = e->code;
    } else if (v->kind == YAML_MAP && k->flags & KEY_MAP) {
        st = put_pairs(d, k, v, e);
    } else if (v->kind == YAML_MAP) {
        struct str expected = {0};

        key_expected(&expected, k);
        st = err_set(e, ERR_SPEC, "%s: %s%s: expected %s, found a map", where.text, d->prefix, k->name, expected.text);
        str_free(&expected);
    } else if (v->kind == YAML_TEXT) {
        struct scalar one = {.text = v->text, .length = v->length, .plain = v->plain};

        st = key_put(d->s, k, &one, 1, false, where.text, d->prefix, e);
    } else {
        st = OK;
        items = calloc((size_t)v->n + 1, sizeof(*items));
        BUG_ON(!items);
        for (int i = 0; i < v->n && st == OK; i++) {
            if (v->item[i].kind != YAML_TEXT)
                st = err_set(e, ERR_SPEC, "%s:%d: %s%s: expected a list of single values, found %s in it", d->source,
                             v->item[i].line, d->prefix, k->name, spec_yaml_kind_name(v->item[i].kind));
            items[i] = (struct scalar){v->item[i].text, v->item[i].length, v->item[i].plain};
        }
        if (st == OK) st = key_put(d->s, k, items, v->n, true, where.text, d->prefix, e);
    }
    free(items);
    str_free(&where);
    return st;
}

static bool is(const struct yaml *v, const char *text)
{
    return v->kind == YAML_TEXT && strlen(v->text) == v->length && !strcmp(v->text, text);
}

/* Members of `map`, whose keys begin with `section` ("cluster.") or nothing. */
static status put_map(struct draft *d, const struct yaml *map, const char *section, struct err *e)
{
    struct str name = {0}, where = {0};
    status st = OK;

    for (int i = 0; i < map->n && st == OK; i += 2) {
        const struct yaml *key = &map->item[i], *value = &map->item[i + 1];

        if (!*section && (is(key, "kind") || (is(key, "steps") && d->s->kind == JOB_PIPELINE))) continue;
        str_clear(&name);
        str_clear(&where);
        str_addf(&name, "%s%s", section, key->text);
        str_addf(&where, "%s:%d", d->source, key->line);
        int row = strchr(key->text, '.') ? -1 : key_find(name.text, d->s->kind);
        if (strlen(key->text) != key->length) {
            st = err_set(e, ERR_SPEC, "%s: expected a key, found text with a NUL in it", where.text);
        } else if (row < 0 && !strchr(key->text, '.') && key_is_section(name.text, d->s->kind)) {
            if (value->kind != YAML_MAP) {
                st = err_set(e, ERR_SPEC, "%s: %s%s: expected a map of keys, found %s", where.text, d->prefix, name.text,
                             spec_yaml_kind_name(value->kind));
            } else {
                str_addz(&name, ".");
                for (int j = 0; j < i && st == OK; j += 2)
                    if (is(&map->item[j], key->text))
                        st = err_set(e, ERR_SPEC, "%s: %s%s: expected once, found again; the first is in line %d", where.text,
                                     d->prefix, key->text, map->item[j].line);
                if (st == OK) st = put_map(d, value, name.text, e);
            }
        } else if (row < 0) {
            st = unknown_key(d, name.text, where.text, e);
        } else if (d->line[row] > 0) {
            st = err_set(e, ERR_SPEC, "%s: %s%s: expected once, found again; the first is in line %d", where.text, d->prefix,
                         name.text, d->line[row]);
        } else {
            st = put_node(d, row, value, e);
            d->line[row] = key->line;
        }
    }
    str_free(&name);
    str_free(&where);
    return st;
}

/* ---- from the command line ---- */

static bool split(const char *override, struct str *key, const char **value)
{
    const char *equal = strchr(override, '=');

    str_clear(key);
    if (!equal || equal == override) return false;
    str_add(key, override, (size_t)(equal - override));
    *value = equal + 1;
    return true;
}

/* Overrides that begin with `prefix` ("" or "STEP."). */
static status put_overrides(struct draft *d, const struct input *in, const char *const *skip, int n_skip, struct err *e)
{
    struct str key = {0};
    const char *value;
    status st = OK;

    for (int i = 0; i < in->n_overrides && st == OK; i++) {
        bool other = false;

        if (!split(in->overrides[i], &key, &value)) {
            st = err_set(e, ERR_SPEC, "--set: expected key=value, found '%.80s'", in->overrides[i]);
            break;
        }
        if (strncmp(key.text, d->prefix, strlen(d->prefix)) != 0) continue;
        const char *name = key.text + strlen(d->prefix);
        for (int j = 0; j < n_skip; j++) other |= !strncmp(name, skip[j], strlen(skip[j])) && name[strlen(skip[j])] == '.';
        if (other) continue;
        int row = key_find(name, d->s->kind);
        if (!strcmp(name, "kind") || !strcmp(name, "steps") || !strcmp(name, "name")) {
            st = err_set(e, ERR_SPEC, "--set: %s: expected in the job file, it cannot be set from outside", key.text);
        } else if (row < 0) {
            st = unknown_key(d, name, "--set", e);
        } else if (check_place(d, row, "--set", e) || key_put_word(d->s, key_row(row), value, "--set", d->prefix, e)) {
            st = e->code;
        } else {
            d->line[row] = FROM_COMMAND_LINE;
        }
    }
    str_free(&key);
    return st;
}

/* ---- one job ---- */

static status find_kind(struct draft *d, const struct yaml *map, struct err *e)
{
    const struct yaml *found = NULL;
    const char *names[JOB_KINDS];

    if (map->kind != YAML_MAP)
        return err_set(e, ERR_SPEC, "%s:%d: %s: expected a map of keys, found %s", d->source, map->line,
                       d->step ? "steps" : "kind", spec_yaml_kind_name(map->kind));
    for (int i = 0; i < map->n; i += 2) {
        if (!is(&map->item[i], "kind")) continue;
        if (found)
            return err_set(e, ERR_SPEC, "%s:%d: kind: expected once, found again; the first is in line %d", d->source,
                           map->item[i].line, found->line);
        found = &map->item[i + 1];
    }
    for (int i = 0; i < JOB_KINDS; i++) names[i] = spec_kind_name((enum job_kind)i);
    int n = d->step ? JOB_PIPELINE : JOB_KINDS; /* the pipeline stands last, and a step is none */
    char expected[128] = "";
    for (int i = 0, at = 0; i < n; i++)
        at += snprintf(expected + at, sizeof(expected) - (size_t)at, "%s%s", i == 0 ? "" : i == n - 1 ? " or " : ", ", names[i]);
    if (!found) return err_set(e, ERR_SPEC, "%s:%d: kind: expected %s, found no such key", d->source, map->line, expected);
    int kind = found->kind == YAML_TEXT && strlen(found->text) == found->length ? spec_kind_find(found->text) : -1;
    if (kind < 0 || kind >= n) {
        const char *near = found->kind == YAML_TEXT && found->length < 60 ? str_nearest(found->text, names, n) : NULL;

        return err_set(e, ERR_SPEC, "%s:%d: kind: expected %s, found %s%.60s%s%s%s%s", d->source, found->line, expected,
                       found->kind == YAML_TEXT ? "'" : "",
                       found->kind == YAML_TEXT ? found->text : spec_yaml_kind_name(found->kind),
                       found->kind == YAML_TEXT ? "'" : "", near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    d->s->kind = (enum job_kind)kind;
    d->first_line = found->line;
    d->s->source = str_dup(d->source);
    return OK;
}

const char *key_default(const struct spec *s, const struct key *k)
{
    bool stage2 = k->flags & KEY_STAGE1 && s->stage2.stage == 2;

    return k->paper && (stage2 || key_method_is_paper(s)) ? k->paper : k->plain;
}

void key_put_default(struct spec *s, const struct key *k, const char *text)
{
    struct err e;

    if (!text) return;
    if (k->type == KEY_INT) *key_int(s, k) = strtoll(text, NULL, 10); /* may say "not set" by a number out of range */
    else if (k->type == KEY_REAL) *key_real(s, k) = strtod(text, NULL);
    else BUG_ON(key_put_word(s, k, text, "default", "", &e));
}

/* Defaults that depend on keys that were given, so that one key says what is meant. */
static void suit_defaults(struct draft *d)
{
    struct spec *s = d->s;

    if (s->kind == JOB_FACTORIZE) {
        if ((s->factorize.scale == SCALE_PAPER || s->factorize.active.n > 1) && !draft_given(d, "budget"))
            s->factorize.budget = BUDGET_UNIFORM; /* one k, or the k of every layer, is what was asked for */
        /* The best method knows its neurons: without a text of the user's, from text the model writes itself. */
        if (!draft_given(d, "calibration.file") && !draft_given(d, "calibration.sample_tokens") && spec_needs_text(s))
            s->factorize.calibration.sample_tokens = 16384;
    }
    if (s->kind == JOB_FINETUNE) {
        if (s->finetune.labels < LABELS_ENERGY && s->finetune.loss >= LOSS_LISTWISE && !draft_given(d, "loss"))
            s->finetune.loss = LOSS_BCE; /* sets, not values */
        if ((s->finetune.loss == LOSS_PAPER || s->finetune.loss == LOSS_LISTWISE) && !draft_given(d, "select"))
            s->finetune.select = SELECT_TOP_K; /* scores without a common zero */
    }
}

status draft_finish(struct draft *d, const struct spec *parent, struct err *e)
{
    struct spec *s = d->s;

    /* the method and the stage decide over other defaults, and their own come to what 0 does */
    for (int i = 0; i < key_count(); i++) {
        const struct key *k = key_row(i);

        if (!(k->kinds >> s->kind & 1) || d->line[i] != FROM_DEFAULT) continue;
        bool own = !strcmp(k->name, "name") || !strcmp(k->name, "output") || !strcmp(k->name, "model");
        if (parent && k->kinds >> JOB_PIPELINE & 1 && !own) {
            key_copy(s, parent, k);
            d->line[i] = FROM_PARENT;
        } else {
            key_put_default(s, k, key_default(s, k));
        }
        if (k->flags & KEY_REQUIRED && !parent) return draft_fail(d, k->name, e, "expected %s, found no such key", k->help);
        if (k->flags & KEY_REQUIRED && !own) return draft_fail(d, k->name, e, "expected %s, found no such key", k->help);
    }
    suit_defaults(d);
    return OK;
}

status job_finish(struct draft *d, struct err *e)
{
    if (steps_name(d, 1, e) || draft_finish(d, NULL, e)) return e->code;
    job_resolve(d->s);
    return draft_check(d, e);
}

status pipeline_finish(struct draft *top, struct draft *drafts, int n, struct err *e)
{
    struct spec *s = top->s;

    if (steps_name(drafts, n, e) || draft_finish(top, NULL, e)) return e->code;
    s->name = str_dup(spec_kind_name(s->kind));
    for (int i = 0; i < n; i++) {
        snprintf(drafts[i].prefix, sizeof(drafts[i].prefix), "%s.", drafts[i].s->name);
        if (draft_finish(&drafts[i], s, e)) return e->code;
    }
    if (steps_resolve(s, drafts, n, e) || draft_check(top, e)) return e->code;
    for (int i = 0; i < n; i++)
        if (draft_check(&drafts[i], e)) return e->code;
    return OK;
}

/* ---- pipelines ---- */

static const struct yaml *find_steps(const struct yaml *map)
{
    for (int i = 0; i < map->n; i += 2)
        if (is(&map->item[i], "steps")) return &map->item[i + 1];
    return NULL;
}

static status pipeline(struct draft *top, const struct yaml *map, const struct input *in, struct err *e)
{
    const struct yaml *list = find_steps(map);
    struct spec *s = top->s;
    struct draft *drafts = NULL;
    const char *names[STEPS_MAX];
    status st = OK;

    if (!list || list->kind != YAML_LIST || list->n < 1 || list->n > STEPS_MAX)
        return err_set(e, ERR_SPEC, "%s:%d: steps: expected a list of 1 to %d jobs, found %s", in->source,
                       list ? list->line : top->first_line, STEPS_MAX,
                       !list                     ? "no such key"
                       : list->kind != YAML_LIST ? spec_yaml_kind_name(list->kind)
                       : list->n                 ? "more"
                                                 : "none");
    for (int i = 0, seen = 0; i < map->n; i += 2)
        if (is(&map->item[i], "steps") && seen++)
            return err_set(e, ERR_SPEC, "%s:%d: steps: expected once, found again", in->source, map->item[i].line);
    s->steps = calloc((size_t)list->n, sizeof(*s->steps));
    drafts = calloc((size_t)list->n, sizeof(*drafts));
    BUG_ON(!s->steps || !drafts);
    s->n_steps = list->n;
    for (int i = 0; i < list->n && st == OK; i++) {
        drafts[i] = (struct draft){.s = &s->steps[i], .source = in->source, .step = true};
        st = find_kind(&drafts[i], &list->item[i], e);
        if (st == OK) st = put_map(&drafts[i], &list->item[i], "", e);
    }
    if (st == OK) st = steps_name(drafts, list->n, e);
    for (int i = 0; i < list->n && st == OK; i++) {
        names[i] = s->steps[i].name;
        snprintf(drafts[i].prefix, sizeof(drafts[i].prefix), "%s.", names[i]);
        st = put_overrides(&drafts[i], in, NULL, 0, e);
    }
    if (st == OK) st = put_overrides(top, in, names, list->n, e);
    if (st == OK) st = pipeline_finish(top, drafts, list->n, e);
    free(drafts);
    return st;
}

static status read_job(struct draft *d, const struct yaml *map, const struct input *in, struct err *e)
{
    if (find_kind(d, map, e) || put_map(d, map, "", e)) return e->code;
    if (d->s->kind == JOB_PIPELINE) return pipeline(d, map, in, e);
    if (put_overrides(d, in, NULL, 0, e)) return e->code;
    return job_finish(d, e);
}

status spec_parse(struct spec **out, const char *text, size_t length, const char *source, const char *const *overrides,
                  int n_overrides, struct err *e)
{
    struct input in = {.source = source, .overrides = overrides, .n_overrides = n_overrides};
    struct yaml *tree = NULL;
    struct spec *s;

    *out = NULL;
    if (length > SPEC_BYTES_MAX)
        return err_set(e, ERR_SPEC, "%s:1: expected at most %d bytes of YAML, found %zu", source, SPEC_BYTES_MAX, length);
    if (spec_yaml_parse(&tree, text, length, source, e)) return e->code;
    s = calloc(1, sizeof(*s));
    BUG_ON(!s);
    struct draft d = {.s = s, .source = source};
    status st = read_job(&d, tree, &in, e);
    spec_yaml_free(tree);
    if (st) {
        spec_free(s);
        return st;
    }
    *out = s;
    return OK;
}

status spec_load(struct spec **out, const char *path, const char *const *overrides, int n_overrides, struct err *e)
{
    char *text;
    size_t length;

    *out = NULL;
    if (file_read(&text, &length, path, SPEC_BYTES_MAX, e)) return e->code;
    status st = spec_parse(out, text, length, path, overrides, n_overrides, e);
    free(text);
    return st;
}
