#include "data/json.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* Jansson's macros of these names give way to the functions of json.h. */
#undef json_is_array
#undef json_is_null
#undef json_is_object
#undef json_is_real

enum { DEPTH_MAX = 128 }; /* far above any file we read, far below what recursion over values could not stand */

/* Nesting of brackets outside of strings, before Jansson is given the text.  Broken texts are its business. */
static int text_depth(const char *text, size_t length)
{
    int depth = 0, most = 0;
    bool in_string = false;

    for (size_t i = 0; i < length; i++) {
        char c = text[i];

        if (in_string) {
            if (c == '\\') i++;
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > most) most = depth;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return most;
}

status json_parse(struct json_t **out, const char *text, size_t length, const char *source, struct err *e)
{
    json_error_t why;
    int depth = text_depth(text, length);

    *out = NULL;
    if (depth > DEPTH_MAX)
        return err_set(e, ERR_LIMIT, "%s: JSON is nested %d deep, at most %d is read", source, depth, DEPTH_MAX);
    *out = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!*out)
        return err_set(e, ERR_FORMAT, "%s: not valid JSON at line %d, column %d: %s", source, why.line, why.column, why.text);
    return OK;
}

status json_read(struct json_t **out, const char *path, size_t limit, struct err *e)
{
    char *text;
    size_t length;

    *out = NULL;
    if (file_read(&text, &length, path, limit, e)) return e->code;
    status s = json_parse(out, text, length, path, e);
    free(text);
    return s;
}

void json_free(struct json_t *v)
{
    json_decref(v);
}

static const char *kind_name(const struct json_t *v)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "a list", [JSON_STRING] = "a text", [JSON_INTEGER] = "an integer",
        [JSON_REAL] = "a real number", [JSON_TRUE] = "true",    [JSON_FALSE] = "false",   [JSON_NULL] = "null",
    };

    return names[json_typeof(v)];
}

/* *v = NULL where the key is missing and may be.  Everything asked of a value that is not an object is missing. */
static status look(const struct json_t **v, const struct json_t *object, const char *key, enum json_need need, const char *source,
                   struct err *e)
{
    *v = json_at(object, key);
    if (json_is_null(*v)) *v = NULL;
    if (!*v && need == JSON_REQUIRED) {
        if (!json_is_object(object))
            return err_set(e, ERR_FORMAT, "%s: expected an object with %s, found %s", source, key,
                           object ? kind_name(object) : "nothing");
        return err_set(e, ERR_FORMAT, "%s: %s is missing", source, key);
    }
    return OK;
}

static status unexpected(const struct json_t *v, const char *key, const char *expected, const char *source, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: %s: expected %s, found %s", source, key, expected, kind_name(v));
}

status json_get_int(int64_t *out, const struct json_t *object, const char *key, int64_t min, int64_t max, enum json_need need,
                    const char *source, struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_integer(v)) return unexpected(v, key, "an integer", source, e);
    int64_t x = json_integer_value(v);
    if (x < min || x > max)
        return err_set(e, ERR_FORMAT, "%s: %s: expected %lld to %lld, found %lld", source, key, (long long)min, (long long)max,
                       (long long)x);
    *out = x;
    return OK;
}

status json_get_real(double *out, const struct json_t *object, const char *key, double min, double max, enum json_need need,
                     const char *source, struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_number(v)) return unexpected(v, key, "a number", source, e);
    double x = json_number_value(v);
    if (!(x >= min && x <= max)) return err_set(e, ERR_FORMAT, "%s: %s: expected %g to %g, found %g", source, key, min, max, x);
    *out = x;
    return OK;
}

status json_get_bool(bool *out, const struct json_t *object, const char *key, enum json_need need, const char *source,
                     struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_boolean(v)) return unexpected(v, key, "true or false", source, e);
    *out = json_is_true(v);
    return OK;
}

status json_get_text(const char **out, const struct json_t *object, const char *key, enum json_need need, const char *source,
                     struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_string(v)) return unexpected(v, key, "a text", source, e);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return err_set(e, ERR_FORMAT, "%s: %s: expected a text, found one with a NUL character in it", source, key);
    *out = json_string_value(v);
    return OK;
}

status json_get_object(const struct json_t **out, const struct json_t *object, const char *key, enum json_need need,
                       const char *source, struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_object(v)) return unexpected(v, key, "an object", source, e);
    *out = v;
    return OK;
}

status json_get_array(const struct json_t **out, const struct json_t *object, const char *key, enum json_need need,
                      const char *source, struct err *e)
{
    const struct json_t *v;

    if (look(&v, object, key, need, source, e)) return e->code;
    if (!v) return OK;
    if (!json_is_array(v)) return unexpected(v, key, "a list", source, e);
    *out = v;
    return OK;
}

const struct json_t *json_at(const struct json_t *object, const char *key)
{
    return json_object_get(object, key); /* NULL where it is not an object */
}

size_t json_length(const struct json_t *v)
{
    return json_is_array(v) ? json_array_size(v) : json_object_size(v); /* 0 where it is neither */
}

const struct json_t *json_item(const struct json_t *array, size_t i)
{
    return json_array_get(array, i);
}

bool json_is_object(const struct json_t *v)
{
    return v && json_typeof(v) == JSON_OBJECT;
}

bool json_is_array(const struct json_t *v)
{
    return v && json_typeof(v) == JSON_ARRAY;
}

bool json_is_text(const struct json_t *v)
{
    return json_is_string(v);
}

bool json_is_int(const struct json_t *v)
{
    return json_is_integer(v);
}

bool json_is_real(const struct json_t *v)
{
    /* not json_is_number(): Jansson's macro asks json_is_real(), and that is this function */
    return v && (json_typeof(v) == JSON_INTEGER || json_typeof(v) == JSON_REAL);
}

bool json_is_null(const struct json_t *v)
{
    return !v || json_typeof(v) == JSON_NULL;
}

const char *json_text(const struct json_t *v)
{
    return json_string_value(v);
}

size_t json_text_length(const struct json_t *v)
{
    return json_string_length(v);
}

int64_t json_int(const struct json_t *v)
{
    return json_integer_value(v);
}

double json_number(const struct json_t *v)
{
    return json_number_value(v);
}

bool json_bool(const struct json_t *v)
{
    return json_is_true(v);
}

/* Jansson's iterators want an object that is not const; they do not change it. */
static json_t *not_const(const struct json_t *v)
{
    union {
        const json_t *in;
        json_t *out;
    } u = {.in = v};

    return u.out;
}

void *json_first(const struct json_t *object)
{
    return json_object_iter(not_const(object));
}

void *json_next(const struct json_t *object, void *i)
{
    return json_object_iter_next(not_const(object), i);
}

const char *json_key(void *i)
{
    return json_object_iter_key(i);
}

const struct json_t *json_member(void *i)
{
    return json_object_iter_value(i);
}

static struct json_t *made(struct json_t *v)
{
    BUG_ON(!v);
    return v;
}

struct json_t *json_object_new(void)
{
    return made(json_object());
}

struct json_t *json_array_new(void)
{
    return made(json_array());
}

/* Length of the well-formed UTF-8 character at s (n > 0 bytes are there), 0 if there is none. */
static size_t utf8_character(const unsigned char *s, size_t n)
{
    size_t length = s[0] < 0x80                   ? 1
                    : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                    : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                    : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                  : 0;

    if (length == 0 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0; /* overlong */
    if (s[0] == 0xed && s[1] > 0x9f) return 0; /* surrogates */
    if (s[0] == 0xf0 && s[1] < 0x90) return 0; /* overlong */
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0; /* above U+10FFFF */
    return length;
}

struct json_t *json_text_new(const char *text, size_t length)
{
    json_t *v = json_stringn(text, length);

    if (v) return v;
    struct str s = {0};

    str_add(&s, "", 0);
    for (size_t i = 0; i < length;) {
        size_t n = utf8_character((const unsigned char *)text + i, length - i);

        if (n) str_add(&s, text + i, n);
        else str_addz(&s, "\xef\xbf\xbd");
        i += n ? n : 1;
    }
    v = made(json_stringn(s.text, s.length));
    str_free(&s);
    return v;
}

struct json_t *json_real_new(double x)
{
    return isfinite(x) ? made(json_real(x)) : json_null();
}

struct json_t *json_int_new(int64_t x)
{
    return made(json_integer(x));
}

struct json_t *json_bool_new(bool x)
{
    return json_boolean(x);
}

struct json_t *json_clone(const struct json_t *v)
{
    return v ? made(json_deep_copy(v)) : NULL;
}

void json_put(struct json_t *object, const char *key, struct json_t *value)
{
    BUG_ON(json_object_set_new(object, key, value));
}

void json_put_text(struct json_t *object, const char *key, const char *text)
{
    json_put(object, key, text ? json_text_new(text, strlen(text)) : json_null());
}

void json_put_real(struct json_t *object, const char *key, double x)
{
    json_put(object, key, json_real_new(x));
}

void json_put_int(struct json_t *object, const char *key, int64_t x)
{
    json_put(object, key, json_int_new(x));
}

void json_put_bool(struct json_t *object, const char *key, bool x)
{
    json_put(object, key, json_bool_new(x));
}

void json_append(struct json_t *array, struct json_t *value)
{
    BUG_ON(json_array_append_new(array, value));
}

static int add_piece(const char *piece, size_t length, void *out)
{
    str_add(out, piece, length);
    return 0;
}

void json_dump(struct str *out, const struct json_t *v, bool indented)
{
    size_t flags = JSON_ENCODE_ANY | JSON_REAL_PRECISION(17) | (indented ? JSON_INDENT(2) : 0);

    BUG_ON(json_dump_callback(v, add_piece, out, flags));
}

void json_spell(struct str *out, const struct json_t *v)
{
    struct str number = {0};

    if (!v) {
        str_addz(out, "missing");
    } else if (json_is_real(v) && !json_is_int(v)) {
        str_addf(&number, "%.15g", json_number(v));
        str_addf(out, strtod(number.text, NULL) == json_number(v) ? "%.15g" : "%.17g", json_number(v));
        str_free(&number);
    } else {
        json_dump(out, v, false);
    }
}

status json_write(const char *path, const struct json_t *v, struct err *e)
{
    struct str text = {0};

    json_dump(&text, v, true);
    str_addz(&text, "\n");
    status s = file_write(path, text.text, text.length, e);
    str_free(&text);
    return s;
}
