#include "model/router_versions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"

enum { CURRENT_BYTES_MAX = 1 << 16 };

/* A version is the name of a directory and nothing else. */
status router_check_version(const char *version, struct err *e)
{
    size_t n = strlen(version);

    if (n == 0 || n >= ROUTER_VERSION_MAX || version[0] == '.' ||
        strspn(version, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != n)
        return err_set(e, ERR_SPEC, "router version: expected 1 to %d letters, digits, '.', '_' or '-', found \"%.100s\"",
                       ROUTER_VERSION_MAX - 1, version);
    return OK;
}

static char *current_path(const char *directory)
{
    return str_join(directory, "routers/current");
}

static status parse(struct router_history *h, char *text, const char *path, struct err *e)
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\r\n", &save); line && h->n < ROUTER_HISTORY_MAX; line = strtok_r(NULL, "\r\n", &save)) {
        struct err bad;

        if (router_check_version(line, &bad))
            return err_set(e, ERR_FORMAT, "%s: expected the name of a router version, found \"%.100s\"", path, line);
        memcpy(h->version[h->n++], line, strlen(line) + 1);
    }
    if (h->n == 0) return err_set(e, ERR_FORMAT, "%s: expected the name of a router version, found \"\"", path);
    return OK;
}

status router_history_read(struct router_history *h, const char *directory, struct err *e)
{
    char *path = current_path(directory), *text = NULL;
    size_t length;
    status s = OK;

    h->n = 0;
    if (file_exists(path) && !(s = file_read(&text, &length, path, CURRENT_BYTES_MAX, e))) s = parse(h, text, path, e);
    free(text);
    free(path);
    return s;
}

static status write_history(const struct router_history *h, int from, const char *directory, struct err *e)
{
    char *path = current_path(directory);
    struct str text = {0};

    for (int i = from; i < h->n; i++) str_addf(&text, "%s\n", h->version[i]);
    status s = file_write(path, text.text, text.length, e);
    str_free(&text);
    free(path);
    return s;
}

static bool is_there(const char *directory, const char *version)
{
    struct str path = {0};

    str_addf(&path, "%s/routers/%s/router.safetensors", directory, version);
    bool there = file_exists(path.text);
    str_free(&path);
    return there;
}

/* Between reading `current` and replacing it nobody else may do so.  -1 where there is no directory, or no lock to be had: then the last one wins. */
static int lock(const char *directory)
{
    char *path = str_join(directory, "routers");
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0) flock(fd, LOCK_EX);
    free(path);
    return fd;
}

static void unlock(int fd)
{
    if (fd >= 0) close(fd);
}

status router_promote(const char *directory, const char *version, struct err *e)
{
    struct router_history *h = malloc(sizeof(*h));
    int held = lock(directory);
    status s = router_check_version(version, e);

    BUG_ON(!h);
    if (!s) s = router_find(directory, version, e);
    if (!s) s = router_history_read(h, directory, e);
    if (!s && !(h->n > 0 && !strcmp(h->version[0], version))) {
        if (h->n == ROUTER_HISTORY_MAX) h->n--;
        memmove(h->version[1], h->version[0], (size_t)h->n * sizeof(h->version[0]));
        memset(h->version[0], 0, sizeof(h->version[0]));
        memcpy(h->version[0], version, strlen(version));
        h->n++;
        s = write_history(h, 0, directory, e);
    }
    unlock(held);
    free(h);
    return s;
}

status router_rollback(char from[ROUTER_VERSION_MAX], char to[ROUTER_VERSION_MAX], const char *directory, struct err *e)
{
    struct router_history *h = malloc(sizeof(*h));
    int held = lock(directory);
    status s = router_history_read(h, directory, e);

    BUG_ON(!h);
    if (!s && h->n == 0) s = err_set(e, ERR_SPEC, "%s: has no router in use, nothing to roll back", directory);
    if (!s && h->n == 1)
        s = err_set(e, ERR_SPEC, "%s: %s is the first router that was in use, there is none to roll back to", directory,
                    h->version[0]);
    if (!s && !is_there(directory, h->version[1]))
        s = err_set(e, ERR_IO, "%s: router version %s, which was in use before %s, is not there any more", directory,
                    h->version[1], h->version[0]);
    if (!s) {
        memcpy(from, h->version[0], ROUTER_VERSION_MAX);
        memcpy(to, h->version[1], ROUTER_VERSION_MAX);
        s = write_history(h, 1, directory, e);
    }
    unlock(held);
    free(h);
    return s;
}

/* ---- the list ---- */

static int by_version(const void *a, const void *b)
{
    return strverscmp(*(char *const *)a, *(char *const *)b);
}

status router_versions(char ***names, int *n, const char *directory, struct err *e)
{
    char *path = str_join(directory, "routers");
    DIR *d = opendir(path);
    struct dirent *f;
    struct err ignored;
    status s = OK;

    *n = 0;
    *names = calloc(ROUTER_VERSIONS_MAX, sizeof(**names));
    BUG_ON(!*names);
    if (!d && errno != ENOENT) s = err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    while (d && *n < ROUTER_VERSIONS_MAX && (f = readdir(d))) {
        char *full = str_join(path, f->d_name);

        if (!router_check_version(f->d_name, &ignored) && !strstr(f->d_name, ".tmp-") && file_is_directory(full))
            (*names)[(*n)++] = str_dup(f->d_name);
        free(full);
    }
    if (d) closedir(d);
    free(path);
    if (s) {
        router_versions_free(*names, *n);
        *names = NULL;
        return s;
    }
    qsort(*names, (size_t)*n, sizeof(**names), by_version);
    return OK;
}

void router_versions_free(char **names, int n)
{
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
}

status router_find(const char *directory, const char *version, struct err *e)
{
    enum { SHOWN = 12 };
    struct str there = {0};
    char **names;
    int n, found = 0;
    status s = router_check_version(version, e);

    if (s || is_there(directory, version)) return s;
    if (router_versions(&names, &n, directory, e)) return e->code;
    for (int i = 0; i < n && found <= SHOWN; i++)
        if (is_there(directory, names[i]) && found++ < SHOWN) str_addf(&there, "%s%s", there.length ? ", " : "", names[i]);
    if (found > SHOWN) str_addz(&there, ", ...");
    s = err_set(e, ERR_IO, "%s: has no router version %s; there %s %s", directory, version, found == 1 ? "is" : "are",
                found ? there.text : "none yet: a finetune job makes the first");
    str_free(&there);
    router_versions_free(names, n);
    return s;
}
