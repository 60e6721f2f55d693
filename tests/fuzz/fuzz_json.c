/* Any bytes as JSON: refused with one line, or read; and what was read comes back the same when it is written and read again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct json_t *v, *w;
    struct str once = {0}, twice = {0};
    struct err e;
    const char *text = NULL;
    double x;

    if (json_parse(&v, (const char *)data, size, "FUZZ", &e)) {
        if (v || strchr(e.text, '\n')) abort();
        return 0;
    }
    for (void *i = json_first(v); i; i = json_next(v, i)) {
        json_get_real(&x, v, json_key(i), -1, 1, JSON_OPTIONAL, "FUZZ", &e);
        if (!json_get_text(&text, v, json_key(i), JSON_REQUIRED, "FUZZ", &e) && strlen(text) != json_text_length(json_member(i)))
            abort();
    }
    json_dump(&once, v, false);
    if (json_parse(&w, once.text, once.length, "AGAIN", &e)) abort();
    json_dump(&twice, w, false);
    if (once.length != twice.length || memcmp(once.text, twice.text, once.length)) abort();
    json_free(v);
    json_free(w);
    str_free(&once);
    str_free(&twice);
    v = json_text_new((const char *)data, size);
    json_dump(&once, v, true);
    json_free(v);
    str_free(&once);
    return 0;
}
