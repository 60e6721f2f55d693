#include "jobs/infer_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "jobs/infer_rows.h"

static const size_t journal_bytes_max = (size_t)16 << 30;

struct journal {
    int fd;
    char *path;
    struct str buffer;
};

char *journal_meta_path(const char *path)
{
    struct str s = {0};
    size_t n = strlen(path);

    if (n > 6 && strcmp(path + n - 6, ".jsonl") == 0) n -= 6;
    str_add(&s, path, n);
    str_addz(&s, ".meta.json");
    return s.text;
}

/* How a person calls a member of meta; NULL: as the spec calls it, and its values tell something. */
static const char *name_of(const char *key)
{
    static const char *const names[][2] = {{"model_sha256", "the model (its weights are others)"},
                                           {"router_sha256", "the router"},
                                           {"input_sha256", "the input (more than rows at its end)"},
                                           {"input_bytes", "the input (it is shorter)"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(names[i][0], key)) return names[i][1];
    return NULL;
}

/* Appends a member that is not the same, in words.  Either may be NULL: not there. */
static void difference(struct str *out, const char *key, const struct json_t *was, const struct json_t *is)
{
    struct str mine = {0}, theirs = {0};
    const char *name = name_of(key);

    json_spell(&mine, is);
    json_spell(&theirs, was); /* spelled alike: the same double */
    if (strcmp(mine.text, theirs.text) != 0) {
        str_addz(out, out->length ? ", " : "");
        if (name) str_addz(out, name);
        else str_addf(out, "%s (was %.80s, is %.80s)", key, theirs.text, mine.text);
    }
    str_free(&mine);
    str_free(&theirs);
}

static void differences(struct str *out, const struct json_t *there, const struct json_t *meta)
{
    for (void *m = json_first(meta); m; m = json_next(meta, m))
        difference(out, json_key(m), json_at(there, json_key(m)), json_member(m));
    for (void *m = json_first(there); m; m = json_next(there, m)) /* settings that stand there only if they are used */
        if (!json_at(meta, json_key(m))) difference(out, json_key(m), json_member(m), NULL);
}

static status compare_meta(const char *path, const char *meta_file, const struct json_t *meta, struct err *e)
{
    struct json_t *there = NULL;
    struct str changed = {0};
    status s = OK;

    if (!file_exists(meta_file))
        return err_set(e, ERR_SPEC, "%s: has rows, but %s, which says what they belong to, is missing; move it away", path,
                       meta_file);
    if (json_read(&there, meta_file, 1 << 20, e)) return e->code;
    differences(&changed, there, meta);
    if (changed.length)
        s = err_set(e, ERR_SPEC,
                    "%s: its rows belong to another run; what changed: %.600s; move it away or choose another output", path,
                    changed.text);
    str_free(&changed);
    json_free(there);
    return s;
}

static status lock(struct journal *j, struct err *e)
{
    j->fd = open(j->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (j->fd < 0) return err_set(e, ERR_IO, "%s: %s", j->path, strerror(errno));
    /* file systems without locks are none of our business */
    if (flock(j->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return err_set(e, ERR_IO, "%s: another process is writing it", j->path);
    return OK;
}

/* Renames the file and opens a new one in its place. */
static status start_afresh(struct journal *j, struct err *e)
{
    struct str old = {0};
    status s = OK;

    str_addf(&old, "%s.old", j->path);
    if (rename(j->path, old.text)) s = err_set(e, ERR_IO, "%s: cannot be moved to %s: %s", j->path, old.text, strerror(errno));
    str_free(&old);
    close(j->fd);
    j->fd = -1;
    return s ? s : lock(j, e);
}

/* Reads the rows; *whole becomes the length of what is sound.  Only at the very end may something be broken: that is a torn write. */
static status recover(const char *path, const char *text, size_t length, size_t *whole, journal_row *row, void *context,
                      struct err *e)
{
    int64_t number = 0;

    *whole = 0;
    while (*whole < length) {
        const char *line = text + *whole, *end = memchr(line, '\n', length - *whole);
        struct str source = {0};
        char *key;
        bool ok;
        status s;

        if (!end) return OK;
        str_addf(&source, "%s line %lld", path, (long long)++number);
        s = infer_read_row(&key, &ok, line, (size_t)(end - line), source.text, e);
        if (s && end + 1 == text + length) s = OK;
        else if (!s && !(s = row(context, key, ok, source.text, e))) *whole = (size_t)(end + 1 - text);
        free(key);
        str_free(&source);
        if (s) return s;
        if (*whole < (size_t)(end + 1 - text)) return OK; /* the broken last line */
    }
    return OK;
}

status journal_open(struct journal **out, const char *path, const struct json_t *meta, journal_row *row, void *context,
                    bool replace, bool *replaced, struct err *e)
{
    struct journal *j = calloc(1, sizeof(*j));
    char *meta_file = journal_meta_path(path), *text = NULL;
    size_t length = 0, whole = 0;
    status s;

    *out = NULL;
    *replaced = false;
    BUG_ON(!j);
    *j = (struct journal){.fd = -1, .path = str_dup(path)};
    s = lock(j, e);
    if (!s) s = file_read(&text, &length, path, journal_bytes_max, e);
    if (!s && length) s = compare_meta(path, meta_file, meta, e);
    if (s == ERR_SPEC && replace) {
        s = start_afresh(j, e);
        length = 0;
        *replaced = true;
    }
    if (!s && length) s = recover(path, text, length, &whole, row, context, e);
    if (!s && whole < length && (ftruncate(j->fd, (off_t)whole) || fdatasync(j->fd)))
        s = err_set(e, ERR_IO, "%s: cannot be cut to its whole rows: %s", path, strerror(errno));
    if (!s && !length) s = json_write(meta_file, meta, e); /* before the first row can be there */
    free(meta_file);
    free(text);
    if (s) {
        journal_close(j);
        return s;
    }
    *out = j;
    return OK;
}

void journal_close(struct journal *j)
{
    if (!j) return;
    if (j->fd >= 0) close(j->fd);
    str_free(&j->buffer);
    free(j->path);
    free(j);
}

struct str *journal_buffer(struct journal *j)
{
    return &j->buffer;
}

status journal_sync(struct journal *j, struct err *e)
{
    size_t done = 0;

    if (!j->buffer.length) return OK;
    while (done < j->buffer.length) {
        ssize_t n = write(j->fd, j->buffer.text + done, j->buffer.length - done);

        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(e, ERR_IO, "%s: cannot be written: %s", j->path, strerror(errno));
        done += (size_t)n;
    }
    if (fdatasync(j->fd)) return err_set(e, ERR_IO, "%s: cannot be written: %s", j->path, strerror(errno));
    str_clear(&j->buffer);
    return OK;
}
