/* JSON, and the one door to Jansson.  Values are Jansson's own; other layers pass them around and touch them through here.
 *
 * Everything read is hostile: duplicate keys, depth, trailing text, invalid UTF-8 and numbers out of range are refused with one
 * line that names the source, the line or the key, what was expected and what was found.
 */
#ifndef DATA_JSON_H
#define DATA_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

/* Jansson's value.  Names here stay clear of the symbols that libjansson exports (json_real, json_copy, ...): one of ours would take the
 * place of one of its own inside the library. */
struct json_t;

/* `source` names the text in errors (a path, "FILE line 7").  The caller owns *out: json_free().  ERR_FORMAT, ERR_IO, ERR_LIMIT. */
status json_parse(struct json_t **out, const char *text, size_t length, const char *source, struct err *e);
status json_read(struct json_t **out, const char *path, size_t limit, struct err *e);
void json_free(struct json_t *v);

/* Reading.  `source` again only names the place in errors; `key` may not exist: then *out keeps what it had, for the optional
 * form, or ERR_FORMAT "SOURCE: KEY is missing" for the required form.  A JSON null counts as missing.
 * Strings stay owned by the value. */
enum json_need { JSON_REQUIRED, JSON_OPTIONAL };
status json_get_int(int64_t *out, const struct json_t *object, const char *key, int64_t min, int64_t max, enum json_need need,
                    const char *source, struct err *e);
status json_get_real(double *out, const struct json_t *object, const char *key, double min, double max, enum json_need need,
                     const char *source, struct err *e);
status json_get_bool(bool *out, const struct json_t *object, const char *key, enum json_need need, const char *source,
                     struct err *e);
status json_get_text(const char **out, const struct json_t *object, const char *key, enum json_need need, const char *source,
                     struct err *e);
status json_get_object(const struct json_t **out, const struct json_t *object, const char *key, enum json_need need,
                       const char *source, struct err *e);
status json_get_array(const struct json_t **out, const struct json_t *object, const char *key, enum json_need need,
                      const char *source, struct err *e);

/* Plain looks, for walking. NULL / 0 / false where the value is not of that kind. */
const struct json_t *json_at(const struct json_t *object, const char *key);
size_t json_length(const struct json_t *array_or_object);
const struct json_t *json_item(const struct json_t *array, size_t i);
bool json_is_object(const struct json_t *v);
bool json_is_array(const struct json_t *v);
bool json_is_text(const struct json_t *v);
bool json_is_int(const struct json_t *v);
bool json_is_real(const struct json_t *v); /* any number */
bool json_is_null(const struct json_t *v); /* also NULL */
const char *json_text(const struct json_t *v);
size_t json_text_length(const struct json_t *v);
int64_t json_int(const struct json_t *v);
double json_number(const struct json_t *v); /* any number */
bool json_bool(const struct json_t *v);
/* Members in file order: for (void *i = json_first(o); i; i = json_next(o, i)) */
void *json_first(const struct json_t *object);
void *json_next(const struct json_t *object, void *i);
const char *json_key(void *i);
const struct json_t *json_member(void *i);

/* Building.  New values are owned by the caller until they are put somewhere.  Memory exhaustion is a BUG. */
struct json_t *json_object_new(void);
struct json_t *json_array_new(void);
struct json_t *json_text_new(const char *text, size_t length); /* bytes that are not UTF-8 become U+FFFD */
struct json_t *json_real_new(double x);                        /* not finite: null */
struct json_t *json_int_new(int64_t x);
struct json_t *json_bool_new(bool x);
struct json_t *json_clone(const struct json_t *v);                            /* deep */
void json_put(struct json_t *object, const char *key, struct json_t *value);  /* takes value */
void json_put_text(struct json_t *object, const char *key, const char *text); /* NULL: null */
void json_put_real(struct json_t *object, const char *key, double x);
void json_put_int(struct json_t *object, const char *key, int64_t x);
void json_put_bool(struct json_t *object, const char *key, bool x);
void json_append(struct json_t *array, struct json_t *value); /* takes value */

/* Numbers are written so that they read back as the same double (17 digits). */
void json_dump(struct str *out, const struct json_t *v, bool indented);
/* For a person: 0.3 and not its 17 digits, but where it takes them to read back as the same double; NULL: missing. */
void json_spell(struct str *out, const struct json_t *v);
status json_write(const char *path, const struct json_t *v, struct err *e); /* indented, newline, atomic (file_write) */

#endif
