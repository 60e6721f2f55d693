/* YAML text as a small tree with line numbers, and the one door to libyaml.
 *
 * Only what a job spec needs: one document of maps, lists and scalars.  Anchors, aliases, tags, keys that are not scalars, a second
 * document, more than YAML_DEPTH levels and text that is not YAML are refused with "SOURCE:LINE: ...", ERR_SPEC.
 * Duplicate keys are kept: whoever walks a map knows its keys and refuses them there.
 */
#ifndef DATA_SPEC_YAML_H
#define DATA_SPEC_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum { YAML_DEPTH = 8 };

enum yaml_kind { YAML_TEXT, YAML_LIST, YAML_MAP };

struct yaml {
    enum yaml_kind kind;
    int line;      /* from 1 */
    char *text;    /* of a scalar, terminated; may hold NULs */
    size_t length; /* of text */
    bool plain;    /* not quoted: may be a number or a word like true */
    struct yaml *item;
    int n; /* items of a list; keys and values in turn of a map: 2 x members */
};

status spec_yaml_parse(struct yaml **out, const char *text, size_t length, const char *source, struct err *e);
void spec_yaml_free(struct yaml *y); /* NULL is fine */

const char *spec_yaml_kind_name(enum yaml_kind k); /* "a value", "a list", "a map" */

#endif
