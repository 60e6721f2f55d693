/* The texts of --help. */
#ifndef CLI_MANUAL_H
#define CLI_MANUAL_H

#include "data/spec.h"

const char *manual_head(void);
const char *manual_tail(void);
const char *manual_command(const char *name); /* of a row of the command table */
const char *manual_kind(enum job_kind k);

#endif
