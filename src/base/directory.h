/* Whole directories: made beside their place, moved into it in one step. */
#ifndef BASE_DIRECTORY_H
#define BASE_DIRECTORY_H

#include "base/err.h"

/* Moves directory `temporary` to `path`, in place of a directory that stands there (which is then removed): at every moment `path` is
 * the old or the new one, whole.  Both on one file system.  ERR_IO; `temporary` is then still there. */
status directory_replace(const char *temporary, const char *path, struct err *e);

/* Removes it with all that is in it, without following links.  Fine if there is nothing.  ERR_IO. */
status directory_remove(const char *path, struct err *e);

/* Copies it with all that is in it into a new directory `to`: directories and files; anything else (links, pipes) and what begins with a dot is left out.
 * ERR_IO. */
status directory_copy(const char *from, const char *to, struct err *e);

#endif
