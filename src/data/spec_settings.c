/* What a job was told that shapes what it makes, for the descriptions of what it made. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/json.h"
#include "data/spec_table.h"

static struct json_t *text_of(const char *text)
{
    return json_text_new(text, strlen(text));
}

static struct json_t *number_of(double x)
{
    return x == floor(x) && fabs(x) < LARGE ? json_int_new((int64_t)x) : json_real_new(x);
}

static struct json_t *list_of(const struct spec_list *l, bool numbers)
{
    struct json_t *a = json_array_new();

    for (int i = 0; i < l->n; i++) json_append(a, numbers ? number_of(strtod(l->items[i], NULL)) : text_of(l->items[i]));
    return a;
}

static struct json_t *value_of(const struct spec *s, const struct key *k)
{
    switch (k->type) {
    case KEY_BOOL:
        return json_bool_new(*key_bool(s, k));
    case KEY_INT:
        return json_int_new(*key_int(s, k));
    case KEY_REAL:
        return json_real_new(*key_real(s, k));
    case KEY_TEXT:
        return text_of(*key_text(s, k));
    case KEY_ENUM:
        return text_of(k->set[*key_int(s, k)]);
    case KEY_LIST:
        return list_of(key_list(s, k), false);
    case KEY_NUMBERS:
        return list_of(key_list(s, k), true);
    }
    BUG_ON(true);
    return NULL;
}

struct json_t *spec_settings(const struct spec *s)
{
    struct json_t *o = json_object_new();

    for (int i = 0; i < key_count(); i++) {
        const struct key *k = key_row(i);

        if (!(k->kinds >> s->kind & 1) || k->flags & (KEY_TOP | KEY_ASIDE)) continue;
        if (key_has_value(s, k) && !key_is_idle(s, k)) json_put(o, k->name, value_of(s, k));
    }
    return o;
}

struct json_t *spec_settings_of_run(const struct spec *s, const struct json_t *run, struct json_t *rest)
{
    struct json_t *o = spec_settings(s);

    for (void *i = json_first(run); i; i = json_next(run, i)) {
        const char *name = json_key(i);
        const struct json_t *is = json_member(i);

        if (key_find(name, s->kind) >= 0) {
            if (json_is_real(is) || !json_at(o, name)) json_put(o, name, json_clone(is));
        } else if (!key_is_section(name, s->kind)) {
            json_put(rest, name, json_clone(is));
        }
    }
    return o;
}
