/* `factorllm router list|compare|promote|rollback MODEL ...`. */
#ifndef CLI_ROUTER_H
#define CLI_ROUTER_H

#include <stdbool.h>

#include "base/err.h"

struct router_call {
    const char *version;        /* of the program */
    const char *const *operand; /* what stands behind `router` */
    int n_operands;
    const char *const *text; /* --text */
    int n_texts;
    const char *output; /* --output; NULL: not given */
    const char *const *overrides;
    int n_overrides;
    bool quiet, json;
    void (*report)(const struct err *e);
    int *argc; /* the program's, for MPI */
    char ***argv;
    bool usage; /* out: the error is one of the command line's form */
};

/* Returns the exit code.  e->code is set when there is an error that nobody has printed yet. */
int router_command(struct router_call *c, struct err *e);

#endif
