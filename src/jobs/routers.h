/* `factorllm router`: the versions of a model's routers, for a person or as JSON. */
#ifndef JOBS_ROUTERS_H
#define JOBS_ROUTERS_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

/* A table with a line per version: what it came from, how it was trained, on how much, what it keeps, when it was made, which one is in use.
 * json: an array of objects, in the same order.  A description that cannot be read has its line too, and is the error that is returned.
 * ERR_SPEC: not a factorized model. */
status routers_list(FILE *to, const char *model, bool json, struct err *e);

/* Each prints one line (json: an object) that says what is in use now.  ERR_SPEC: it is in use already, or there was none before; ERR_IO: no such version. */
status routers_promote(FILE *to, const char *model, const char *version, bool json, struct err *e);
status routers_rollback(FILE *to, const char *model, bool json, struct err *e);

/* ERR_SPEC, ERR_IO with the versions there are, unless `version` is one of a factorized model. */
status routers_find(const char *model, const char *version, struct err *e);

#endif
