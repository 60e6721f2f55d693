/* A placement made by hand or by a study: {"ranks": R, "layers": [[rank of expert 0, rank of expert 1, ...], ...]}, one row per layer. */
#ifndef DATA_PLACEMENT_FILE_H
#define DATA_PLACEMENT_FILE_H

#include <stddef.h>

#include "base/err.h"

/* *table: malloc'ed [layers][experts], every rank in 0 .. ranks-1.  The file must be made for this number of layers, experts and
 * ranks: ERR_SPEC says which differs.  ERR_IO, ERR_FORMAT. */
status placement_file_read(int **table, const char *path, int layers, int experts, int ranks, struct err *e);
status placement_file_parse(int **table, const char *text, size_t length, const char *source, int layers, int experts, int ranks,
                            struct err *e);

#endif
