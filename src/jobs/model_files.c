#include "jobs/model_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/stop.h"
#include "base/str.h"
#include "data/digest.h"
#include "data/sums.h"

enum { BLOCK = 1 << 20 };

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char **model_files(const struct safetensors *t, int *n)
{
    size_t all = safetensors_count(t);
    const char **files = malloc((all + 1) * sizeof(*files));

    BUG_ON(!files);
    for (size_t i = 0; i < all; i++) files[i] = safetensors_info(t, i)->file;
    qsort(files, all, sizeof(*files), by_text);
    *n = 0;
    for (size_t i = 0; i < all; i++)
        if (*n == 0 || strcmp(files[*n - 1], files[i])) files[(*n)++] = files[i];
    return files;
}

status model_digest(char hex[65], int64_t *bytes, struct job *j, const struct safetensors *t, const char *what, struct err *e)
{
    int n;
    const char **files = model_files(t, &n);
    char *block = malloc(BLOCK), one[65];
    struct digest *all = digest_begin();
    double done = 0, total = 0;
    struct stat st;
    status s = OK;

    BUG_ON(!block);
    for (int i = 0; i < n; i++) total += stat(files[i], &st) ? 0 : (double)st.st_size;
    for (int i = 0; !s && i < n; i++) {
        FILE *f = fopen(files[i], "rbe");
        struct digest *d = digest_begin();
        size_t got;

        while (f && !s && (got = fread(block, 1, BLOCK, f)) > 0) {
            digest_add(d, block, got);
            done += (double)got;
            cluster_alive(j->cluster);
            log_progress(j->log, what, done, total, "%.1f of %.1f MiB", done / 0x1p20, total / 0x1p20);
            if (stop_asked()) s = err_set(e, STOPPED, "%s: stopped while reading the weights; run it again", j->spec->source);
        }
        if (!s && (!f || ferror(f))) s = err_set(e, ERR_IO, "%s: cannot be read", files[i]);
        if (f) fclose(f);
        digest_end(d, n == 1 ? hex : one);
        if (n > 1) digest_add(all, one, 64);
    }
    if (n == 1) digest_end(all, one); /* of nothing: one file is its own digest */
    else digest_end(all, hex);
    log_progress_end(j->log);
    *bytes = (int64_t)done;
    free(block);
    free(files);
    return s;
}

status model_copy_beside(const char *source, const char *directory, struct err *e)
{
    static const char *const names[] = {"tokenizer.model",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "generation_config.json",
                                        "chat_template.json",
                                        "chat_template.jinja",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "NOTICE"};
    status s = OK;

    for (size_t i = 0; !s && i < sizeof(names) / sizeof(names[0]); i++) {
        char *from = str_join(source, names[i]), *to = str_join(directory, names[i]);

        if (file_exists(from)) s = file_copy(from, to, e);
        free(from);
        free(to);
    }
    return s;
}

status model_sums(struct job *j, const char *directory, struct err *e)
{
    return sums_write(directory, &(struct alive){cluster_tick, j->cluster}, e);
}
