/* Items of evaluation: one JSON object per line.  Files come from outside: whatever is wrong with a line is one clear message. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "jobs/eval.h"

enum { FILE_BYTES_MAX = 256 << 20 };

static void item_free(struct item *i)
{
    free(i->id);
    free(i->context);
    for (int t = 0; t < i->n; t++) free(i->text[t]);
}

void items_leave_out(struct items *from, struct item *i)
{
    from->sets[i->set].n--;
    item_free(i);
}

void items_free(struct items *to)
{
    for (size_t i = 0; i < to->n; i++) item_free(&to->item[i]);
    for (int s = 0; s < to->n_sets; s++) free(to->sets[s].name);
    free(to->item);
    *to = (struct items){0};
}

static status find_set(int *set, struct items *to, const char *name, enum item_kind kind, const char *source, struct err *e)
{
    for (*set = 0; *set < to->n_sets; ++*set) {
        if (strcmp(to->sets[*set].name, name)) continue;
        if (to->sets[*set].kind == kind) return OK;
        return err_set(e, ERR_FORMAT, "%s: set \"%.60s\" has items of another form", source, name);
    }
    if (to->n_sets == ITEM_SETS_MAX) return err_set(e, ERR_LIMIT, "%s: more than %d sets", source, ITEM_SETS_MAX);
    to->sets[to->n_sets].name = str_dup(name);
    to->sets[to->n_sets].kind = kind;
    to->sets[to->n_sets].n = 0;
    to->n_sets++;
    return OK;
}

static status get_text(char **out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    const char *text;

    if (json_get_text(&text, o, key, JSON_REQUIRED, source, e)) return e->code;
    if (!*text) return err_set(e, ERR_FORMAT, "%s: %s: expected text, found nothing", source, key);
    *out = str_dup(text);
    return OK;
}

static status get_choices(struct item *i, const struct json_t *o, const char *source, struct err *e)
{
    const struct json_t *choices;
    int64_t answer;

    if (json_get_array(&choices, o, "choices", JSON_REQUIRED, source, e)) return e->code;
    size_t n = json_length(choices);
    if (n < 2 || n > ITEM_CHOICES_MAX)
        return err_set(e, ERR_FORMAT, "%s: choices: expected 2 to %d of them, found %zu", source, ITEM_CHOICES_MAX, n);
    if (json_get_int(&answer, o, "answer", 0, (int64_t)n - 1, JSON_REQUIRED, source, e)) return e->code;
    i->answer = (int)answer;
    for (size_t c = 0; c < n; c++) {
        const struct json_t *v = json_item(choices, c);

        if (!json_is_text(v) || !json_text_length(v))
            return err_set(e, ERR_FORMAT, "%s: choices[%zu]: expected text that is not empty", source, c);
        i->text[i->n++] = str_dup(json_text(v));
    }
    return OK;
}

static status read_item(struct item *i, const struct json_t *o, enum item_file as, const char *source, struct err *e)
{
    bool words = as == ITEMS_LAST_WORDS;

    if (as == ITEMS_PAIRS) {
        i->kind = ITEM_PAIR;
        if (get_text(&i->text[0], o, "good", source, e)) return e->code;
        i->n = 1;
        if (get_text(&i->text[1], o, "bad", source, e)) return e->code;
        i->n = 2;
        return OK;
    }
    i->kind = json_at(o, "choices") && !words ? ITEM_CHOICE : ITEM_TARGET;
    if (words && json_at(o, "choices"))
        return err_set(e, ERR_FORMAT, "%s: expected a context and its target, found choices: those belong into multiple_choice",
                       source);
    if (!words && !json_at(o, "choices") && !json_at(o, "target"))
        return err_set(e, ERR_FORMAT, "%s: expected choices and answer, or a target", source);
    if (get_text(&i->context, o, "context", source, e)) return e->code;
    if (i->kind == ITEM_CHOICE) return get_choices(i, o, source, e);
    if (get_text(&i->text[0], o, "target", source, e)) return e->code;
    i->n = 1;
    return OK;
}

status items_parse_line(struct items *to, const char *line, size_t length, const char *file, int number, enum item_file as,
                        int64_t most, struct err *e)
{
    struct item item = {.line = number, .file = file};
    const char *id = NULL, *set = as == ITEMS_PAIRS ? "pairs" : NULL;
    struct json_t *o = NULL;
    char source[512];

    snprintf(source, sizeof(source), "%.480s:%d", file, number);
    if (length > ITEM_LINE_MAX)
        return err_set(e, ERR_LIMIT, "%s: a line of %zu bytes, at most %d are read", source, length, ITEM_LINE_MAX);
    if (json_parse(&o, line, length, source, e)) return e->code;
    status s = OK;
    if (!json_is_object(o)) s = err_set(e, ERR_FORMAT, "%s: expected a JSON object", source);
    if (!s) s = read_item(&item, o, as, source, e);
    if (!s) s = json_get_text(&id, o, "id", JSON_OPTIONAL, source, e);
    if (!s) s = json_get_text(&set, o, "set", JSON_OPTIONAL, source, e);
    if (!s) s = find_set(&item.set, to, set ? set : item.kind == ITEM_TARGET ? "lambada" : "choices", item.kind, source, e);
    if (s || (most && (int64_t)to->sets[item.set].n >= most)) {
        item_free(&item);
        json_free(o);
        return s;
    }
    item.id = str_dup(id ? id : source); /* FILE:LINE names it as well */
    json_free(o);
    if (to->n == to->room) {
        to->room = to->room ? 2 * to->room : 256;
        to->item = realloc(to->item, to->room * sizeof(*to->item));
        BUG_ON(!to->item);
    }
    to->item[to->n++] = item;
    to->sets[item.set].n++;
    return OK;
}

status items_read(struct items *to, const char *file, enum item_file as, int64_t most, struct err *e)
{
    char *text;
    size_t length, before = to->n;
    int number = 0;
    status s = OK;

    if (file_read(&text, &length, file, FILE_BYTES_MAX, e)) return e->code;
    for (size_t at = 0; at < length && !s;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t n = end ? (size_t)(end - text) - at : length - at;
        bool blank = strspn(text + at, " \t\r") >= n;

        number++;
        if (!blank) s = items_parse_line(to, text + at, n, file, number, as, most, e);
        at += n + 1;
    }
    free(text);
    if (!s && to->n == before) s = err_set(e, ERR_FORMAT, "%s: no items", file);
    return s;
}

status items_read_spec(struct items *to, const struct spec *s, struct err *e)
{
    const struct spec_list *files[] = {[ITEMS_PAIRS] = &s->eval.minimal_pairs,
                                       [ITEMS_QUESTIONS] = &s->eval.multiple_choice,
                                       [ITEMS_LAST_WORDS] = &s->eval.last_word};

    for (int as = ITEMS_PAIRS; as <= ITEMS_LAST_WORDS; as++)
        for (int i = 0; i < files[as]->n; i++)
            if (items_read(to, files[as]->items[i], (enum item_file)as, s->eval.items, e)) return e->code;
    return OK;
}

status items_longest(int *longest, const struct items *all, const struct tokenizer *t, int cap, struct err *e)
{
    struct str whole = {0};
    status s = OK;

    *longest = 0;
    for (size_t i = 0; i < all->n && !s; i++)
        for (int k = 0; k < all->item[i].n && !s; k++) {
            int32_t *ids = NULL;
            size_t n = 0;

            str_clear(&whole);
            if (all->item[i].context) str_addf(&whole, "%s ", all->item[i].context);
            str_addz(&whole, all->item[i].text[k]);
            s = tokenizer_encode(t, &ids, &n, whole.text, whole.length, e);
            if (!s && n > (size_t)*longest) *longest = n < (size_t)cap ? (int)n : cap;
            free(ids);
        }
    str_free(&whole);
    return s;
}
