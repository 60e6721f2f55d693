#include "jobs/fingerprint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"
#include "data/digest.h"

enum { BLOCK = 1 << 16, BLOCKS = 32 };

static int is_weights(const struct dirent *d)
{
    size_t n = strlen(d->d_name);

    return n > 12 && strcmp(d->d_name + n - 12, ".safetensors") == 0;
}

static int by_bytes(const struct dirent **a, const struct dirent **b) /* alphasort() depends on the locale */
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static status add_file(struct str *s, const char *directory, const char *name, struct err *e)
{
    char *path = str_join(directory, name), *block = malloc(BLOCK), hex[65];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    status result = OK;

    BUG_ON(!block);
    if (fd < 0 || fstat(fd, &st)) {
        result = err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    } else {
        int64_t last = st.st_size > BLOCK ? st.st_size - BLOCK : 0;

        str_addf(s, "%s %lld", name, (long long)st.st_size);
        for (int i = 0; i < BLOCKS && !result; i++) {
            ssize_t n = pread(fd, block, BLOCK, (off_t)(last / (BLOCKS - 1) * i));

            if (n < 0) result = err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
            else digest_bytes(hex, block, (size_t)n);
            if (!result) str_addf(s, " %s", hex);
        }
        str_addz(s, "\n");
    }
    if (fd >= 0) close(fd);
    free(block);
    free(path);
    return result;
}

status fingerprint_model(char hex[65], const char *directory, struct err *e)
{
    struct dirent **files;
    struct str s = {0};
    int n = scandir(directory, &files, is_weights, by_bytes);
    char *config = str_join(directory, "config.json");
    status result = OK;

    if (n < 0) result = err_set(e, ERR_IO, "%s: %s", directory, strerror(errno));
    if (!result) result = digest_file(hex, config, e);
    if (!result) str_addf(&s, "%s\n", hex);
    for (int i = 0; i < n; i++) {
        if (!result) result = add_file(&s, directory, files[i]->d_name, e);
        free(files[i]);
    }
    if (n >= 0) free(files);
    if (!result) digest_bytes(hex, s.text, s.length);
    str_free(&s);
    free(config);
    return result;
}
