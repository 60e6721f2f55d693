/* Files: read whole with a limit, written under a temporary name and renamed. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/alive.h"
#include "base/err.h"

/* The whole file, with a 0 behind it (not counted).  The caller frees *out.  ERR_IO, or ERR_LIMIT if it is longer than limit. */
status file_read(char **out, size_t *length, const char *path, size_t limit, struct err *e);

/* The whole file, mapped read-only: it takes no memory but the page cache's.  For files that are replaced, never changed in place. */
struct file_map {
    const char *bytes; /* NULL if length is 0 */
    size_t length;
};
status file_map(struct file_map *m, const char *path, struct err *e); /* ERR_IO */
void file_unmap(struct file_map *m);

/* `bytes` under path.tmp-PID, fsync, rename to path, fsync of the directory: after a crash the file is the old or the new one, whole. */
status file_write(const char *path, const void *bytes, size_t length, struct err *e);

/* The same in pieces: file_begin() opens the temporary file, the caller writes to it, file_commit() makes it durable and renames,
 * file_abandon() removes it (also after a failed commit; a second call does nothing).
 * file_append() is for what is large: it makes durable as it goes, so that the commit has little left to wait for. */
struct file_writer {
    FILE *f;
    char *path, *temporary;
    size_t pending; /* appended and not yet made durable */
};
status file_begin(struct file_writer *w, const char *path, struct err *e);
status file_append(struct file_writer *w, const void *bytes, size_t length, const struct alive *alive, struct err *e);
status file_commit(struct file_writer *w, struct err *e);
void file_abandon(struct file_writer *w);

void file_sync_parent(const char *path); /* makes a rename in the directory of `path` durable, where the file system can */
status file_copy(const char *from, const char *to, struct err *e); /* through file_write's way */
bool file_exists(const char *path);
bool file_is_directory(const char *path);
status file_make_directory(const char *path, struct err *e); /* with parents; fine if it is there */

#endif
