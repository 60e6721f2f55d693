/* What the files of a directory were when they were written: DIRECTORY/SHA256SUMS, in the form that `sha256sum -c` reads and writes.
 *
 * Opening a model checks what it reads anyway: the header of every safetensors file, and its size against that header.  Contents are looked at only when somebody
 * asks (`factorllm inspect --verify`), because that reads all of it. */
#ifndef DATA_SUMS_H
#define DATA_SUMS_H

#include <stdint.h>

#include "base/alive.h"
#include "base/err.h"

#define SUMS_FILE "SHA256SUMS"

/* Of all files in the directory, not of directories in it, in order of name.  alive may be NULL.  ERR_IO, STOPPED. */
status sums_write(const char *directory, const struct alive *alive, struct err *e);

struct sums_checked {
    int files;
    int64_t bytes;
};

/* Reads every file that is listed; files that are not are nobody's business.  ERR_FORMAT: one is not what it was, or the list is malformed; ERR_IO: a listed file or the
 * list cannot be read. */
status sums_check(struct sums_checked *out, const char *directory, struct err *e);

#endif
