/* Values of keys: what comes in is checked and stored, or refused with what was expected; and what is stored is copied and freed. */
#include "data/spec_table.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"

static void add_number(struct str *out, double x)
{
    str_addf(out, "%.15g", x);
}

static void add_names(struct str *out, const struct key *k)
{
    for (int i = 0; k->set[i]; i++) str_addf(out, "%s%s", i == 0 ? "" : k->set[i + 1] ? ", " : " or ", k->set[i]);
}

void key_expected(struct str *out, const struct key *k)
{
    switch (k->type) {
    case KEY_BOOL:
        str_addz(out, "true or false");
        break;
    case KEY_INT:
    case KEY_REAL:
        str_addz(out, k->type == KEY_INT ? "an integer" : "a number");
        if (k->most >= LARGE) {
            str_addz(out, " of at least ");
            add_number(out, k->least);
        } else {
            str_addz(out, " from ");
            add_number(out, k->least);
            str_addz(out, " to ");
            add_number(out, k->most);
        }
        break;
    case KEY_TEXT:
        str_addz(out, "text");
        break;
    case KEY_ENUM:
        add_names(out, k);
        break;
    case KEY_LIST:
        if (k->set) {
            str_addz(out, "a list of ");
            add_names(out, k);
            if (k->flags & KEY_VARIANTS) str_addz(out, ", or router@VERSION, static@F or neurons@F");
        } else if (k->flags & KEY_MAP) {
            str_addz(out, k->flags & KEY_LISTS ? "a map of names to lists of texts" : "a map of names to texts");
        } else {
            str_addz(out, "a list of texts");
        }
        break;
    case KEY_NUMBERS:
        str_addz(out, k->flags & KEY_WHOLE ? "an integer from " : "a number from ");
        add_number(out, k->least);
        str_addz(out, " to ");
        add_number(out, k->most);
        str_addz(out, ", or a list with one for every layer");
        if (k->set) str_addz(out, ", or ");
        if (k->set) add_names(out, k);
        break;
    }
}

static status refuse(const struct key *k, const char *where, const char *prefix, const struct scalar *v, const char *found,
                     struct err *e)
{
    struct str expected = {0};

    key_expected(&expected, k);
    if (found) err_set(e, ERR_SPEC, "%s: %s%s: expected %s, found %s", where, prefix, k->name, expected.text, found);
    else
        err_set(e, ERR_SPEC, "%s: %s%s: expected %s, found %s'%.60s'%s", where, prefix, k->name, expected.text,
                v->plain ? "" : "the text ", v->text, v->length > 60 ? "..." : "");
    str_free(&expected);
    return ERR_SPEC;
}

static bool is_nothing(const struct scalar *v)
{
    return v->plain && (v->length == 0 || !strcmp(v->text, "~") || !strcasecmp(v->text, "null"));
}

static status check_text(const struct key *k, const struct scalar *v, const char *where, const char *prefix, struct err *e)
{
    if (is_nothing(v)) return refuse(k, where, prefix, v, "nothing", e);
    if (v->length == 0) return refuse(k, where, prefix, v, "an empty text", e);
    if (v->length > TEXT_MAX)
        return err_set(e, ERR_SPEC, "%s: %s%s: expected at most %d bytes of text, found %zu", where, prefix, k->name, TEXT_MAX,
                       v->length);
    for (size_t at = 0, n; at < v->length; at += n) {
        bool valid;

        n = utf8_next(&valid, v->text + at, v->length - at);
        if (!valid) return refuse(k, where, prefix, v, "text that is not UTF-8", e);
        uint32_t code = utf8_code(v->text + at, n);
        if (code == 0 || (!(k->flags & KEY_FREE) && (code < 0x20 || code == 0x7f)))
            return refuse(k, where, prefix, v, "a control character", e);
    }
    return OK;
}

static int name_index(const struct key *k, const struct scalar *v)
{
    for (int i = 0; k->set[i]; i++)
        if (strlen(k->set[i]) == v->length && !memcmp(k->set[i], v->text, v->length)) return i;
    return -1;
}

static status refuse_name(const struct key *k, const struct scalar *v, const char *where, const char *prefix, struct err *e)
{
    int n = 0;

    while (k->set[n]) n++;
    const char *near = v->length < 60 ? str_nearest(v->text, k->set, n) : NULL;
    refuse(k, where, prefix, v, is_nothing(v) ? "nothing" : NULL, e);
    if (near && strlen(e->text) + strlen(near) + 24 < sizeof(e->text)) {
        strcat(e->text, "; did you mean '");
        strcat(e->text, near);
        strcat(e->text, "'?");
    }
    return e->code;
}

static status put_int(struct spec *s, const struct key *k, const struct scalar *v, const char *where, const char *prefix,
                      struct err *e)
{
    char *end;

    if (!v->plain || v->length == 0 || v->text[strspn(v->text, "-0123456789")] || strlen(v->text) != v->length)
        return refuse(k, where, prefix, v, is_nothing(v) ? "nothing" : NULL, e);
    errno = 0;
    long long x = strtoll(v->text, &end, 10);
    if (errno || *end || end == v->text || (double)x < k->least || (double)x > k->most)
        return refuse(k, where, prefix, v, NULL, e);
    *key_int(s, k) = x;
    return OK;
}

static status put_real(struct spec *s, const struct key *k, const struct scalar *v, const char *where, const char *prefix,
                       struct err *e)
{
    char *end;

    /* the characters keep hexadecimal, inf and nan out */
    if (!v->plain || v->length == 0 || v->text[strspn(v->text, "+-.0123456789eE")] || strlen(v->text) != v->length)
        return refuse(k, where, prefix, v, is_nothing(v) ? "nothing" : NULL, e);
    double x = strtod(v->text, &end);
    if (*end || end == v->text || !isfinite(x) || x < k->least || x > k->most) return refuse(k, where, prefix, v, NULL, e);
    *key_real(s, k) = x;
    return OK;
}

/* What stands behind @ is looked at when all keys are there. */
static bool is_variant(const struct scalar *v)
{
    static const char *const with[] = {"router@", "static@", "neurons@"};

    for (int i = 0; i < 3; i++) {
        size_t n = strlen(with[i]);

        if (v->length > n && !strncmp(v->text, with[i], n)) return true;
    }
    return false;
}

/* NAME=TEXT, the name plain enough for tables and file names, and once. */
static status check_pair(const struct key *k, const struct scalar *items, int i, const char *where, const char *prefix,
                         struct err *e)
{
    const struct scalar *v = &items[i];
    size_t n = strspn(v->text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");

    if (n < 1 || n > 32 || v->text[n] != '=' || !v->text[n + 1])
        return err_set(e, ERR_SPEC,
                       "%s: %s%s: expected NAME: TEXT with a name of 1 to 32 of A-Z, a-z, 0-9, _ and -, found '%.60s'", where,
                       prefix, k->name, v->text);
    for (int j = 0; j < i; j++)
        if (!strncmp(items[j].text, v->text, n + 1))
            return err_set(e, ERR_SPEC, "%s: %s%s: expected each name once, found '%.*s' twice", where, prefix, k->name, (int)n,
                           v->text);
    return OK;
}

/* NAME=TEXT for every text of a name, one behind the other. */
static status check_lists(const struct key *k, const struct scalar *items, int i, const char *where, const char *prefix,
                          struct err *e)
{
    const struct scalar *v = &items[i];
    size_t n = strcspn(v->text, "=");

    if (n < 1 || n > 120 || !v->text[n] || !v->text[n + 1])
        return err_set(e, ERR_SPEC, "%s: %s%s: expected NAME: [TEXT, ...] with a name of 1 to 120 bytes, found '%.60s'", where,
                       prefix, k->name, v->text);
    for (int j = 0; j + 1 < i; j++)
        if (!strncmp(items[j].text, v->text, n + 1) && strncmp(items[i - 1].text, v->text, n + 1) != 0)
            return err_set(e, ERR_SPEC, "%s: %s%s: expected each name once, found '%.*s' twice", where, prefix, k->name, (int)n,
                           v->text);
    return OK;
}

static void store_list(struct spec *s, const struct key *k, const struct scalar *items, int n)
{
    key_clear(s, k);
    struct spec_list *list = key_list(s, k);
    list->items = calloc((size_t)n + 1, sizeof(*list->items));
    BUG_ON(!list->items);
    for (int i = 0; i < n; i++) list->items[i] = str_dup(items[i].text);
    list->n = n;
}

static status put_list(struct spec *s, const struct key *k, const struct scalar *items, int n, const char *where,
                       const char *prefix, struct err *e)
{
    if (n > LIST_MAX)
        return err_set(e, ERR_SPEC, "%s: %s%s: expected at most %d items, found %d", where, prefix, k->name, LIST_MAX, n);
    for (int i = 0; i < n; i++) {
        bool variant = k->flags & KEY_VARIANTS && is_variant(&items[i]);

        if (k->set && !variant && name_index(k, &items[i]) < 0) return refuse_name(k, &items[i], where, prefix, e);
        if (check_text(k, &items[i], where, prefix, e)) return e->code;
        if (k->flags & KEY_MAP && (k->flags & KEY_LISTS ? check_lists : check_pair)(k, items, i, where, prefix, e))
            return e->code;
        for (int j = 0; j < i; j++)
            if (items[i].length == items[j].length && !memcmp(items[i].text, items[j].text, items[i].length))
                return err_set(e, ERR_SPEC, "%s: %s%s: expected each item once, found '%.60s' twice", where, prefix, k->name,
                               items[i].text);
    }
    store_list(s, k, items, n);
    return OK;
}

/* Kept as they were written; spec_number() reads them. */
static status put_numbers(struct spec *s, const struct key *k, const struct scalar *items, int n, bool list, const char *where,
                          const char *prefix, struct err *e)
{
    if (n < 1 || n > LIST_MAX)
        return err_set(e, ERR_SPEC, "%s: %s%s: expected 1 to %d numbers, found %d", where, prefix, k->name, LIST_MAX, n);
    for (int i = 0; i < n; i++) {
        const struct scalar *v = &items[i];
        char *end;

        if (n == 1 && k->set && name_index(k, v) >= 0) continue;
        bool written = v->length > 0 && v->length < 40 && strlen(v->text) == v->length && (v->plain || list) &&
                       !v->text[strspn(v->text, k->flags & KEY_WHOLE ? "0123456789" : "+-.0123456789eE")];
        double x = strtod(v->text, &end);
        if (!written || *end || end == v->text || !isfinite(x) || x < k->least || x > k->most)
            return refuse(k, where, prefix, v, is_nothing(v) ? "nothing" : NULL, e);
    }
    store_list(s, k, items, n);
    return OK;
}

status key_put(struct spec *s, const struct key *k, const struct scalar *items, int n, bool list, const char *where,
               const char *prefix, struct err *e)
{
    if (k->type == KEY_NUMBERS) return put_numbers(s, k, items, n, list, where, prefix, e);
    if (k->type == KEY_LIST) {
        if (!list) return refuse(k, where, prefix, items, NULL, e);
        return put_list(s, k, items, n, where, prefix, e);
    }
    if (list) return refuse(k, where, prefix, NULL, "a list", e);
    int name;
    switch (k->type) {
    case KEY_BOOL:
        if (!items->plain || (strcmp(items->text, "true") != 0 && strcmp(items->text, "false") != 0))
            return refuse(k, where, prefix, items, is_nothing(items) ? "nothing" : NULL, e);
        *key_bool(s, k) = items->text[0] == 't';
        return OK;
    case KEY_INT:
        return put_int(s, k, items, where, prefix, e);
    case KEY_REAL:
        return put_real(s, k, items, where, prefix, e);
    case KEY_ENUM:
        name = name_index(k, items);
        if (name < 0) return refuse_name(k, items, where, prefix, e);
        *key_int(s, k) = name;
        return OK;
    default:
        if (check_text(k, items, where, prefix, e)) return e->code;
        key_clear(s, k);
        *key_text(s, k) = str_dup(items->text);
        return OK;
    }
}

/* [a, b] or a,b without quotes: what a person types in a shell. */
static status put_words(struct spec *s, const struct key *k, const char *word, const char *where, const char *prefix,
                        struct err *e)
{
    struct scalar *items = calloc(strlen(word) + 1, sizeof(*items));
    char *copy = str_dup(word), *from = copy;
    size_t length = strlen(copy);
    int n = 0;

    BUG_ON(!items);
    if (length >= 2 && copy[0] == '[' && copy[length - 1] == ']') {
        copy[length - 1] = 0;
        from++;
    }
    while (from) {
        char *comma = strchr(from, ',');

        if (comma) *comma = 0;
        from += strspn(from, " ");
        size_t l = strlen(from);
        while (l > 0 && from[l - 1] == ' ') from[--l] = 0;
        if (l > 0 || comma || n > 0) items[n++] = (struct scalar){.text = from, .length = l, .plain = false};
        from = comma ? comma + 1 : NULL;
    }
    status st = key_put(s, k, items, n, true, where, prefix, e);
    free(copy);
    free(items);
    return st;
}

status key_put_word(struct spec *s, const struct key *k, const char *word, const char *where, const char *prefix, struct err *e)
{
    struct scalar v = {.text = word, .length = strlen(word), .plain = k->type != KEY_TEXT};

    if (k->type == KEY_LIST || k->type == KEY_NUMBERS) return put_words(s, k, word, where, prefix, e);
    return key_put(s, k, &v, 1, false, where, prefix, e);
}

void key_clear(struct spec *s, const struct key *k)
{
    if (k->type == KEY_TEXT) {
        free(*key_text(s, k));
        *key_text(s, k) = NULL;
    } else if (k->type == KEY_LIST || k->type == KEY_NUMBERS) {
        struct spec_list *list = key_list(s, k);

        for (int i = 0; i < list->n; i++) free(list->items[i]);
        free(list->items);
        *list = (struct spec_list){0};
    }
}

void key_copy(struct spec *to, const struct spec *from, const struct key *k)
{
    key_clear(to, k);
    switch (k->type) {
    case KEY_BOOL:
        *key_bool(to, k) = *key_bool(from, k);
        break;
    case KEY_INT:
    case KEY_ENUM:
        *key_int(to, k) = *key_int(from, k);
        break;
    case KEY_REAL:
        *key_real(to, k) = *key_real(from, k);
        break;
    case KEY_TEXT:
        *key_text(to, k) = str_dup(*key_text(from, k));
        break;
    case KEY_LIST:
    case KEY_NUMBERS: {
        const struct spec_list *list = key_list(from, k);

        key_list(to, k)->items = calloc((size_t)list->n + 1, sizeof(char *));
        BUG_ON(!key_list(to, k)->items);
        for (int i = 0; i < list->n; i++) key_list(to, k)->items[i] = str_dup(list->items[i]);
        key_list(to, k)->n = list->n;
        break;
    }
    }
}

bool key_has_value(const struct spec *s, const struct key *k)
{
    switch (k->type) {
    case KEY_TEXT:
        return *key_text(s, k) != NULL;
    case KEY_INT:
        return (double)*key_int(s, k) >= k->least && (double)*key_int(s, k) <= k->most;
    case KEY_REAL:
        return *key_real(s, k) >= k->least && *key_real(s, k) <= k->most;
    default:
        return true;
    }
}

bool key_method_is_paper(const struct spec *s)
{
    return (s->kind == JOB_FACTORIZE && s->factorize.method == METHOD_FACTORLLM) ||
           (s->kind == JOB_FINETUNE && s->finetune.method == METHOD_FACTORLLM);
}
