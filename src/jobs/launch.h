/* One launch on all ranks: who reads the spec, who leads, who follows, and how it ends. */
#ifndef JOBS_LAUNCH_H
#define JOBS_LAUNCH_H

#include <stdbool.h>

#include "base/err.h"

struct launch {
    const char *version; /* of the program, for what it writes */
    const char *path;    /* of the job spec; only rank 0 reads it */
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
