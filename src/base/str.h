/* A growing string with a limit. */
#ifndef BASE_STR_H
#define BASE_STR_H

#include <stddef.h>

#include "base/err.h"

struct str {
    char *text; /* always terminated once anything was added; NULL when empty from the start */
    size_t length, room;
};

/* All zero is an empty string.  Growth aborts the program only when memory is exhausted, as BUG_ON would: strings are small. */
void str_add(struct str *s, const char *text, size_t length);
void str_addz(struct str *s, const char *text);
void str_addf(struct str *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void str_clear(struct str *s); /* length 0, memory kept */
void str_free(struct str *s);

/* The name among `names` nearest to `word` by edit distance, for "did you mean"; NULL when none is near. */
const char *str_nearest(const char *word, const char *const *names, int n);

char *str_dup(const char *text);                         /* never NULL; NULL in gives NULL */
char *str_join(const char *directory, const char *name); /* directory/name; an absolute name stays as it is */

#endif
