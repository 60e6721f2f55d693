/* `factorllm router`: the versions of a model's routers, for a person or as JSON. */
#ifndef JOBS_ROUTERS_H
#define JOBS_ROUTERS_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "data/spec.h"

/* A table with a line per version: what it came from, how it was trained, on how much, what it keeps, when it was made, which one is in use.
 * json: an array of objects, in the same order.  A description that cannot be read has its line too, and is the error that is returned.
 * ERR_SPEC: not a factorized model. */
status routers_list(FILE *to, const char *model, bool json, struct err *e);

/* Each prints one line (json: an object) that says what is in use now.  ERR_SPEC: it is in use already, or there was none before; ERR_IO: no such version. */
status routers_promote(FILE *to, const char *model, const char *version, bool json, struct err *e);
status routers_rollback(FILE *to, const char *model, bool json, struct err *e);

/* A/B of two versions: an eval on every text, and what it says in a few lines. */
enum { ROUTERS_TEXTS_MAX = 16 };
struct routers_compare {
    const char *model, *a, *b, *output; /* output NULL: runs/routers-A-B */
    const char *text[ROUTERS_TEXTS_MAX];
    int n_texts; /* 0: text that the model writes itself */
    bool json;
};
/* The job's spec: an eval, or a pipeline of one for every text.  ERR_SPEC, ERR_IO: no such model or version. */
status routers_compare_spec(void *compare, struct str *yaml, struct err *e);
/* Prints what the job's result.json says of B - A, and keeps perplexity and accuracy in routers/VERSION/measured.json, for routers_list(). */
status routers_compare_say(void *compare, const struct spec *s, struct err *e);

/* ERR_SPEC, ERR_IO with the versions there are, unless `version` is one of a factorized model. */
status routers_find(const char *model, const char *version, struct err *e);

#endif
