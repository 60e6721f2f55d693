#include "base/directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st;
    (void)kind;
    (void)where;
    return remove(path);
}

status directory_remove(const char *path, struct err *e)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT)
        return err_set(e, ERR_IO, "%s: cannot be removed: %s", path, strerror(errno));
    return OK;
}

status directory_replace(const char *temporary, const char *path, struct err *e)
{
    if (!file_exists(path)) {
        if (rename(temporary, path)) return err_set(e, ERR_IO, "%s: cannot be moved into place: %s", path, strerror(errno));
        file_sync_parent(path);
        return OK;
    }
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
        file_sync_parent(path);
        return directory_remove(temporary, e);
    }
    /* Some network file systems cannot exchange: two steps then, and for a moment there is neither. */
    struct str aside = {0};
    status s = OK;

    str_addf(&aside, "%s.old-%ld", path, (long)getpid());
    if (rename(path, aside.text)) {
        s = err_set(e, ERR_IO, "%s: cannot be moved aside: %s", path, strerror(errno));
    } else if (rename(temporary, path)) {
        s = err_set(e, ERR_IO, "%s: cannot be moved into place: %s", path, strerror(errno));
        if (rename(aside.text, path))
            s = err_set(e, ERR_IO, "%s: was moved aside to %s and cannot be moved back", path, aside.text);
    } else {
        file_sync_parent(path);
        s = directory_remove(aside.text, e);
    }
    str_free(&aside);
    return s;
}

status directory_copy(const char *from, const char *to, struct err *e)
{
    DIR *d = opendir(from);
    struct dirent *f;

    if (!d) return err_set(e, ERR_IO, "%s: %s", from, strerror(errno));
    status s = file_make_directory(to, e);
    while (!s && (f = readdir(d))) {
        char *source = str_join(from, f->d_name), *target = str_join(to, f->d_name);
        struct stat st;

        if (f->d_name[0] != '.' && lstat(source, &st) == 0) {
            if (S_ISDIR(st.st_mode)) s = directory_copy(source, target, e);
            else if (S_ISREG(st.st_mode)) s = file_copy(source, target, e);
        }
        free(source);
        free(target);
    }
    closedir(d);
    return s;
}
