/* Safetensors: single files and sharded models with an index, mapped read-only; and writing them.
 *
 * Format: u64 little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, raw little-endian data.
 * Only F32, F16 and BF16 tensors can be bound; others may be present and are refused when asked for.
 * The header is checked against the file size before anything is believed: overlapping or out-of-range offsets, offsets that do
 * not match shape and dtype, duplicate names, sizes that overflow are ERR_FORMAT naming file and tensor.
 */
#ifndef DATA_SAFETENSORS_H
#define DATA_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/alive.h"
#include "base/err.h"
#include "base/mat.h"

struct safetensors;

struct tensor_info {
    const char *name;  /* owned by the reader */
    const char *file;  /* the shard's path */
    const char *dtype; /* as written in the file */
    int dims;
    int64_t shape[4];
    size_t bytes;
};

/* Opens a directory (model.safetensors, or model.safetensors.index.json with its shards) or one .safetensors file.  Reads headers
 * only; maps nothing.  ERR_IO, ERR_FORMAT. */
status safetensors_open(struct safetensors **out, const char *path, struct err *e);
/* The same for DIRECTORY/STEM.safetensors or its shards.  Files of another stem than "model" are mapped whole when they are first asked for: address space
 * is not memory, and huge pages need mappings that are not cut. */
status safetensors_open_stem(struct safetensors **out, const char *directory, const char *stem, struct err *e);
bool safetensors_present(const char *directory, const char *stem);
void safetensors_close(struct safetensors *s); /* unmaps; NULL is fine */

size_t safetensors_count(const struct safetensors *s);
const struct tensor_info *safetensors_info(const struct safetensors *s, size_t i);         /* i-th in name order */
const struct tensor_info *safetensors_find(const struct safetensors *s, const char *name); /* NULL if there is none */

/* A view of tensor `name` as rows x cols (rows = 1 for vectors): its bytes are mapped (shared with neighbours that were mapped
 * before), never copied.  With shape (rows, cols) not as in the file: ERR_FORMAT naming the tensor, what was expected and found.
 * Tensors asked for are remembered until close. */
status safetensors_mat(struct mat *out, struct safetensors *s, const char *name, int rows, int cols, struct err *e);
/* The same for rows first .. first + rows - 1 of a tensor of `of_rows` rows: only their pages are mapped. */
status safetensors_rows(struct mat *out, struct safetensors *s, const char *name, int of_rows, int cols, int first, int rows,
                        struct err *e);
/* The bytes of a tensor of any dtype, as they lie in the file: ERR_FORMAT naming the tensor, what was expected and found, if dtype or shape are others, or
 * if it does not begin at a multiple of `align` bytes of the file. */
status safetensors_raw(const void **out, struct safetensors *s, const char *name, const char *dtype, int dims,
                       const int64_t *shape, size_t align, struct err *e);
/* A text of __metadata__, of the first file if there are several; NULL if there is none. */
const char *safetensors_metadata_text(const struct safetensors *s, const char *key);
size_t safetensors_mapped_bytes(const struct safetensors *s);
/* Unmaps everything once more than `most` bytes are mapped: for readers that go through a model and copy.  Views bound before are gone then. */
void safetensors_trim(struct safetensors *s, size_t most);

/* ERR_FORMAT naming tensor, row and column if an element is NaN or infinite.  Reads all of it, perhaps from the disk. */
status mat_check_finite(const struct mat *m, const char *name, const struct alive *alive, struct err *e);

/* Writing.  Declare every tensor in order, then give their data in the same order, in any number of pieces; the file appears under
 * its name at commit only.  Splits into shards of at most shard_bytes with an index when the total is larger (0: never). */
struct safetensors_writer;
status safetensors_create(struct safetensors_writer **out, const char *directory, size_t shard_bytes,
                          struct err *e); /* model.safetensors in it */
/* DIRECTORY/STEM.safetensors.  Its data begins at a multiple of 2 MiB of the file, and tensors of a multiple of 64 bytes stand first, so that they all begin at
 * multiples of 64. */
status safetensors_create_stem(struct safetensors_writer **out, const char *directory, const char *stem, size_t shard_bytes,
                               struct err *e);
status safetensors_create_file(struct safetensors_writer **out, const char *path, struct err *e); /* one file of any name */
void safetensors_declare(struct safetensors_writer *w, const char *name, enum dtype t, int dims, const int64_t *shape);
/* The same for any dtype, by its name in the file ("U8"). */
void safetensors_declare_raw(struct safetensors_writer *w, const char *name, const char *dtype, int dims, const int64_t *shape);
size_t safetensors_element_bytes(const char *dtype); /* 0: unknown */
void safetensors_metadata(struct safetensors_writer *w, const char *key,
                          const char *value);                             /* __metadata__, before the first data */
void safetensors_alive(struct safetensors_writer *w, struct alive alive); /* called while data is written and made durable */
status safetensors_write(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e);
status safetensors_commit(struct safetensors_writer *w, struct err *e); /* frees w, also on error */
void safetensors_abandon(struct safetensors_writer *w);                 /* removes what was begun; NULL is fine */

#endif
