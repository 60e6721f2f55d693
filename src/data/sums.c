#include "data/sums.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/stop.h"
#include "base/str.h"
#include "data/digest.h"

enum { BLOCK = 1 << 20, LIST_MAX = 1 << 20, HEX = 64 };

/* bytes += the file's length. */
static status sum_of(char hex[65], int64_t *bytes, const char *path, const struct alive *alive, struct err *e)
{
    FILE *f = fopen(path, "rbe");
    struct digest *d;
    char *block;
    size_t n;
    status s = OK;

    if (!f) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    block = malloc(BLOCK);
    BUG_ON(!block);
    d = digest_begin();
    while (!s && (n = fread(block, 1, BLOCK, f)) > 0) {
        digest_add(d, block, n);
        *bytes += (int64_t)n;
        alive_tick(alive);
        if (stop_asked()) s = err_set(e, STOPPED, "%s: stopped while reading it; run it again", path);
    }
    if (!s && ferror(f)) s = err_set(e, ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    digest_end(d, hex);
    free(block);
    fclose(f);
    return s;
}

static int files_only(const struct dirent *d)
{
    return d->d_name[0] != '.' && strcmp(d->d_name, SUMS_FILE) != 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* alphasort() would ask the locale */
}

status sums_write(const char *directory, const struct alive *alive, struct err *e)
{
    struct dirent **entries;
    struct str list = {0};
    int n = scandir(directory, &entries, files_only, by_name);
    status s = OK;

    if (n < 0) return err_set(e, ERR_IO, "%s: %s", directory, strerror(errno));
    for (int i = 0; i < n; i++) {
        char hex[65], *path = str_join(directory, entries[i]->d_name);
        int64_t bytes = 0;

        if (!s && !file_is_directory(path) && !(s = sum_of(hex, &bytes, path, alive, e)))
            str_addf(&list, "%s  %s\n", hex, entries[i]->d_name);
        free(path);
        free(entries[i]);
    }
    free(entries);
    char *path = str_join(directory, SUMS_FILE);
    if (!s) s = file_write(path, list.text ? list.text : "", list.length, e);
    free(path);
    str_free(&list);
    return s;
}

/* "HEX  NAME", or "HEX *NAME" as sha256sum says on request; NULL: it is no such line. */
static const char *name_in(const char *line)
{
    const char *name = line + HEX + 2;

    if (strspn(line, "0123456789abcdef") != HEX || line[HEX] != ' ' || (line[HEX + 1] != ' ' && line[HEX + 1] != '*'))
        return NULL;
    return *name && *name != '.' && !strchr(name, '/') ? name : NULL;
}

static status check_line(struct sums_checked *out, const char *directory, const char *list, int number, const char *line,
                         struct err *e)
{
    const char *name = name_in(line);
    char hex[65];

    if (!name)
        return err_set(e, ERR_FORMAT, "%s:%d: expected 64 hexadecimal digits, two blanks and the name of a file beside it", list,
                       number);
    char *path = str_join(directory, name);
    status s = sum_of(hex, &out->bytes, path, NULL, e);
    if (!s && memcmp(hex, line, HEX) != 0)
        s = err_set(e, ERR_FORMAT, "%s: is not what was written: its SHA-256 is %.16s..., " SUMS_FILE " says %.16s...", path, hex,
                    line);
    out->files++;
    free(path);
    return s;
}

status sums_check(struct sums_checked *out, const char *directory, struct err *e)
{
    char *list = str_join(directory, SUMS_FILE), *text = NULL, *next;
    size_t length = 0;
    int number = 0;
    status s;

    *out = (struct sums_checked){0};
    if (!file_exists(list))
        s = err_set(e, ERR_IO,
                    "%s: has no " SUMS_FILE " to verify it against; jobs that make a model write one, and `sha256sum *` does",
                    directory);
    else s = file_read(&text, &length, list, LIST_MAX, e);
    if (!s && strlen(text) != length) s = err_set(e, ERR_FORMAT, "%s: expected text, found a byte of 0", list);
    for (char *line = text; !s && *line; line = next) {
        next = strchrnul(line, '\n');
        if (*next) *next++ = 0;
        s = check_line(out, directory, list, ++number, line, e);
    }
    if (!s && !number) s = err_set(e, ERR_FORMAT, "%s: lists no file", list);
    free(text);
    free(list);
    return s;
}
