/* One launch on all ranks: who reads the spec, who leads, who follows, and how it ends. */
#ifndef JOBS_LAUNCH_H
#define JOBS_LAUNCH_H

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"
#include "data/spec.h"

struct launch {
    const char *version; /* of the program, for what it writes */
    const char *path;    /* of the job spec; only rank 0 reads it */
    /* In place of a file: makes the spec's YAML, on rank 0; `path` is then its name in messages.  NULL: there is a file. */
    status (*make)(void *ctx, struct str *yaml, struct err *e);
    /* Called on rank 0 when the job has ended well, or with ERR_GATE.  NULL: nothing. */
    status (*done)(void *ctx, const struct spec *s, struct err *e);
    void *ctx;
    const char *const *overrides;
    int n_overrides;
    bool quiet;
    /* Prints one error; called on the rank that has something to say, before it leaves. */
    void (*report)(const struct err *e);
};

/* Collective.  Returns the exit code, the same on every rank.  When a rank was lost nothing collective is possible any more: then the
 * error is reported and all ranks are ended with ERR_RANK, and this does not return. */
status launch_run(const struct launch *l, int *argc, char ***argv);

#endif
