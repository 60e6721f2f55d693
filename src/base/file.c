#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

/* A file that can be read from, or -1. */
static int open_file(struct stat *st, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would keep us waiting */

    if (fd < 0 || fstat(fd, st)) err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    else if (S_ISDIR(st->st_mode)) err_set(e, ERR_IO, "%s: is a directory, expected a file", path);
    else if (!S_ISREG(st->st_mode)) err_set(e, ERR_IO, "%s: expected a file, found a pipe or a device", path);
    else return fd;
    if (fd >= 0) close(fd);
    return -1;
}

status file_read(char **out, size_t *length, const char *path, size_t limit, struct err *e)
{
    struct stat st;
    char *text = NULL;
    size_t n = 0;
    int fd = open_file(&st, path, e);

    *out = NULL;
    *length = 0;
    if (fd < 0) return e->code;
    if (st.st_size < 0 || (size_t)st.st_size > limit) {
        err_set(e, ERR_LIMIT, "%s: %lld bytes, at most %zu are read", path, (long long)st.st_size, limit);
        goto fail;
    }
    text = malloc((size_t)st.st_size + 1);
    if (!text) {
        err_set(e, ERR_LIMIT, "%s: no memory for %lld bytes", path, (long long)st.st_size);
        goto fail;
    }
    while (n < (size_t)st.st_size) {
        ssize_t got = read(fd, text + n, (size_t)st.st_size - n);

        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (got == 0) break;
        n += (size_t)got;
    }
    text[n] = 0;
    close(fd);
    *out = text;
    *length = n;
    return OK;

fail:
    free(text);
    close(fd);
    return e->code;
}

status file_map(struct file_map *m, const char *path, struct err *e)
{
    struct stat st;
    int fd = open_file(&st, path, e);

    *m = (struct file_map){0};
    if (fd < 0) return e->code;
    void *base = st.st_size > 0 ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    int why = errno;

    close(fd);
    if (base == MAP_FAILED) return err_set(e, ERR_IO, "%s: cannot be mapped: %s", path, strerror(why));
    *m = (struct file_map){base, base ? (size_t)st.st_size : 0};
    return OK;
}

void file_unmap(struct file_map *m)
{
    if (m->bytes) munmap((void *)m->bytes, m->length);
    *m = (struct file_map){0};
}

status file_begin(struct file_writer *w, const char *path, struct err *e)
{
    struct str temporary = {0};

    str_addf(&temporary, "%s.tmp-%ld", path, (long)getpid());
    *w = (struct file_writer){.path = str_dup(path), .temporary = temporary.text};
    w->f = fopen(w->temporary, "wbe");
    if (!w->f) {
        err_set(e, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
        free(w->path);
        free(w->temporary);
        *w = (struct file_writer){0};
        return e->code;
    }
    return OK;
}

status file_append(struct file_writer *w, const void *bytes, size_t length, const struct alive *alive, struct err *e)
{
    while (length) {
        size_t n = length < ALIVE_BYTES ? length : ALIVE_BYTES;
        bool bad = fwrite(bytes, 1, n, w->f) != n;

        w->pending += n;
        if (!bad && w->pending >= ALIVE_BYTES) {
            alive_tick(alive);
            bad = fflush(w->f) || fdatasync(fileno(w->f)); /* its error is reported once: it cannot be left to the commit */
            alive_tick(alive);
            w->pending = 0;
        }
        if (bad) return err_set(e, ERR_IO, "%s: cannot be written: %s", w->path, strerror(errno));
        bytes = (const char *)bytes + n;
        length -= n;
    }
    return OK;
}

void file_sync_parent(const char *path)
{
    char *copy = str_dup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0) {
        fsync(fd); /* some file systems refuse; the rename itself is still atomic */
        close(fd);
    }
    free(copy);
}

status file_commit(struct file_writer *w, struct err *e)
{
    bool bad = ferror(w->f) || fflush(w->f) || fsync(fileno(w->f));
    int why = errno;

    if (fclose(w->f) && !bad) {
        bad = true;
        why = errno;
    }
    w->f = NULL;
    if (!bad && rename(w->temporary, w->path)) {
        bad = true;
        why = errno;
    }
    if (bad) {
        err_set(e, ERR_IO, "%s: cannot be written: %s", w->path, strerror(why));
        file_abandon(w);
        return e->code;
    }
    file_sync_parent(w->path);
    free(w->path);
    free(w->temporary);
    *w = (struct file_writer){0};
    return OK;
}

void file_abandon(struct file_writer *w)
{
    if (w->f) fclose(w->f);
    if (w->temporary) unlink(w->temporary);
    free(w->path);
    free(w->temporary);
    *w = (struct file_writer){0};
}

status file_write(const char *path, const void *bytes, size_t length, struct err *e)
{
    struct file_writer w;

    if (file_begin(&w, path, e)) return e->code;
    if (length) fwrite(bytes, 1, length, w.f); /* a short write leaves the stream's error flag, which commit reads */
    return file_commit(&w, e);
}

status file_copy(const char *from, const char *to, struct err *e)
{
    struct file_writer w;
    char block[1 << 16];
    size_t n;
    FILE *in = fopen(from, "rbe");

    if (!in) return err_set(e, ERR_IO, "%s: %s", from, strerror(errno));
    if (file_begin(&w, to, e)) {
        fclose(in);
        return e->code;
    }
    while ((n = fread(block, 1, sizeof(block), in)) > 0) fwrite(block, 1, n, w.f);
    bool bad = ferror(in);
    fclose(in);
    if (bad) {
        file_abandon(&w);
        return err_set(e, ERR_IO, "%s: cannot be read", from);
    }
    return file_commit(&w, e);
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool file_is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

status file_make_directory(const char *path, struct err *e)
{
    char *copy = str_dup(path);
    status s = OK;

    for (char *at = copy + 1; s == OK && *copy; at++) {
        if (*at != '/' && *at) continue;
        char kept = *at;

        *at = 0;
        if (mkdir(copy, 0777) && errno != EEXIST) s = err_set(e, ERR_IO, "%s: cannot be made: %s", copy, strerror(errno));
        *at = kept;
        if (!kept) break;
    }
    if (!s && !file_is_directory(path)) s = err_set(e, ERR_IO, "%s: is not a directory", path);
    free(copy);
    return s;
}
