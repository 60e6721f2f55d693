/* Which router of a model is in use, and which ones were before it.
 *
 * DIRECTORY/routers/current has the name of the version in use in its first line, and below it those that were in use before, the latest first.  It is one file, replaced in
 * one step under a lock on the directory: after a crash it says the old or the new state, whole, and rolling back is exact.
 */
#ifndef MODEL_ROUTER_VERSIONS_H
#define MODEL_ROUTER_VERSIONS_H

#include "base/err.h"

enum { ROUTER_VERSION_MAX = 64, ROUTER_HISTORY_MAX = 200, ROUTER_VERSIONS_MAX = 1000 };

struct router_history {
    int n;                                                /* 0: no version is in use */
    char version[ROUTER_HISTORY_MAX][ROUTER_VERSION_MAX]; /* [0] is in use, [1] was before it; the oldest fall off the end */
};

/* ERR_SPEC unless it can be the name of a version: 1 to 63 of A-Z a-z 0-9 . _ -, no dot in front. */
status router_check_version(const char *version, struct err *e);

/* ERR_IO if it is not there, with the names of those that are. */
status router_find(const char *directory, const char *version, struct err *e);

/* n = 0 if there is no such file.  ERR_IO, ERR_FORMAT. */
status router_history_read(struct router_history *h, const char *directory, struct err *e);

/* Makes a version that is there the one in use; nothing happens if it is already.  ERR_IO: no such version, or it cannot be written. */
status router_promote(const char *directory, const char *version, struct err *e);
/* Back to what was in use before: undoes the last router_promote() that changed anything.  ERR_SPEC: there was none before it; ERR_IO: it is gone. */
status router_rollback(char from[ROUTER_VERSION_MAX], char to[ROUTER_VERSION_MAX], const char *directory, struct err *e);

/* Names of the versions of a model, in order (v2 before v10); each and the list malloc'ed.  None: n = 0. */
status router_versions(char ***names, int *n, const char *directory, struct err *e);
void router_versions_free(char **names, int n);

#endif
