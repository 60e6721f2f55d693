#include "data/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "data/safetensors_internal.h"

enum { HEADER_MAX = 100 << 20, INDEX_MAX = 100 << 20, SHARDS_MAX = 100000 };

void *safetensors_grown(void *items, size_t n, size_t size)
{
    void *p = realloc(items, n * size);

    BUG_ON(!p);
    return p;
}

size_t safetensors_element_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        size_t bytes;
    } known[] = {{"F32", 4}, {"F16", 2},     {"BF16", 2},    {"F64", 8}, {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1},
                 {"U8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"U32", 4}, {"U64", 8}, {"BOOL", 1}};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (!strcmp(known[i].name, dtype)) return known[i].bytes;
    return 0;
}

/* dtype, shape and offsets of one entry of the header, checked against each other and against the file. */
static status read_entry(struct tensor *t, const struct shard *s, const char *name, const struct json_t *entry, struct err *e)
{
    const struct json_t *shape = NULL, *offsets = NULL;
    const char *dtype = NULL;
    char place[600];
    uint64_t elements = 1, data_bytes = s->size - s->data;

    snprintf(place, sizeof(place), "%s: tensor %s", s->path, name);
    if (!json_is_object(entry)) return err_set(e, ERR_FORMAT, "%s: expected an object with dtype, shape, data_offsets", place);
    if (json_get_text(&dtype, entry, "dtype", JSON_REQUIRED, place, e)) return e->code;
    if (json_get_array(&shape, entry, "shape", JSON_REQUIRED, place, e)) return e->code;
    if (json_get_array(&offsets, entry, "data_offsets", JSON_REQUIRED, place, e)) return e->code;

    bool overflow = false;
    t->info.dims = (int)json_length(shape);
    for (size_t i = 0; i < json_length(shape); i++) {
        const struct json_t *n = json_item(shape, i);

        if (!json_is_int(n) || json_int(n) < 0)
            return err_set(e, ERR_FORMAT, "%s: shape: expected a list of integers from 0 up, dimension %zu is not", place, i);
        if (i < 4) t->info.shape[i] = json_int(n);
        overflow |= __builtin_mul_overflow(elements, (uint64_t)json_int(n), &elements);
    }
    const struct json_t *from = json_item(offsets, 0), *to = json_item(offsets, 1);
    if (json_length(offsets) != 2 || !json_is_int(from) || !json_is_int(to) || json_int(from) < 0 ||
        json_int(to) < json_int(from))
        return err_set(e, ERR_FORMAT, "%s: data_offsets: expected [begin, end] with 0 <= begin <= end", place);
    if ((uint64_t)json_int(to) > data_bytes)
        return err_set(e, ERR_FORMAT, "%s: data_offsets end at %lld, but the file has %llu bytes of data", place,
                       (long long)json_int(to), (unsigned long long)data_bytes);
    t->begin = (size_t)json_int(from);
    t->end = (size_t)json_int(to);
    t->info.bytes = t->end - t->begin;

    uint64_t size = safetensors_element_bytes(dtype), expected;
    if (overflow || (size && __builtin_mul_overflow(elements, size, &expected)))
        return err_set(e, ERR_FORMAT, "%s: shape: the number of elements overflows", place);
    if (size && expected != t->info.bytes)
        return err_set(e, ERR_FORMAT, "%s: shape and dtype %s make %llu bytes, data_offsets make %zu", place, dtype,
                       (unsigned long long)expected, t->info.bytes);
    t->info.name = str_dup(name);
    t->info.dtype = str_dup(dtype);
    return OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;

    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    int c = strcmp(x->info.name, y->info.name);

    return c ? c : (x->shard > y->shard) - (x->shard < y->shard);
}

/* The tensors of a file must tile its data: no overlap, no hole, nothing behind. */
static status check_tiling(struct tensor *t, size_t n, const struct shard *s, struct err *e)
{
    size_t at = 0, data_bytes = s->size - s->data;

    qsort(t, n, sizeof(*t), by_offset);
    for (size_t i = 0; i < n; i++) {
        if (t[i].begin < at)
            return err_set(e, ERR_FORMAT, "%s: tensors %s and %s overlap in the file", s->path, t[i - 1].info.name,
                           t[i].info.name);
        if (t[i].begin > at)
            return err_set(e, ERR_FORMAT, "%s: %zu bytes before tensor %s belong to no tensor", s->path, t[i].begin - at,
                           t[i].info.name);
        at = t[i].end;
    }
    if (at != data_bytes)
        return err_set(e, ERR_FORMAT, "%s: the tensors make %zu bytes of data, the file has %zu", s->path, at, data_bytes);
    return OK;
}

static status read_whole(int fd, void *to, size_t n, size_t at, const char *path, struct err *e)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)to + done, n - done, (off_t)(at + done));

        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return err_set(e, ERR_IO, "%s: cannot be read: %s", path, got ? strerror(errno) : "it became shorter");
        done += (size_t)got;
    }
    return OK;
}

/* Opens the file of the last shard (its path is set) and appends its tensors. */
static status read_shard(struct safetensors *f, struct err *e)
{
    int index = f->n_shards - 1;
    struct shard *s = &f->shards[index];
    struct stat st;
    unsigned char prefix[8];
    struct json_t *header = NULL;
    char *text = NULL;
    uint64_t length = 0;

    s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0 || fstat(s->fd, &st)) return err_set(e, ERR_IO, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return err_set(e, ERR_IO, "%s: is not a file", s->path);
    s->size = (size_t)st.st_size;
    if (s->size < 8) return err_set(e, ERR_FORMAT, "%s: %zu bytes are too short for a safetensors file", s->path, s->size);
    if (read_whole(s->fd, prefix, 8, 0, s->path, e)) return e->code;
    for (int i = 7; i >= 0; i--) length = length << 8 | prefix[i];
    if (length > HEADER_MAX)
        return err_set(e, ERR_FORMAT, "%s: header of %llu bytes, at most %d are read", s->path, (unsigned long long)length,
                       HEADER_MAX);
    if (length > s->size - 8)
        return err_set(e, ERR_FORMAT, "%s: header of %llu bytes, but the file ends after %zu", s->path,
                       (unsigned long long)length, s->size - 8);
    s->data = 8 + (size_t)length;

    text = malloc((size_t)length + 1);
    BUG_ON(!text);
    if (read_whole(s->fd, text, (size_t)length, 8, s->path, e)) goto done;
    while (length && text[length - 1] == ' ') length--; /* a header may be filled up with megabytes of them */
    if (json_parse(&header, text, (size_t)length, s->path, e)) goto done;
    if (!json_is_object(header)) {
        err_set(e, ERR_FORMAT, "%s: the header is not a JSON object", s->path);
        goto done;
    }
    size_t first = f->n_tensors;
    f->tensors = safetensors_grown(f->tensors, first + json_length(header) + 1, sizeof(*f->tensors));
    for (void *i = json_first(header); i; i = json_next(header, i)) {
        if (!strcmp(json_key(i), "__metadata__")) {
            if (index == 0) f->metadata = json_clone(json_member(i));
            continue;
        }
        struct tensor *t = &f->tensors[f->n_tensors];

        *t = (struct tensor){.shard = index, .listed = true, .info.file = s->path};
        if (read_entry(t, s, json_key(i), json_member(i), e)) goto done;
        f->n_tensors++;
    }
    check_tiling(f->tensors + first, f->n_tensors - first, s, e);

done:
    json_free(header);
    free(text);
    return e->code;
}

static status add_shard(struct safetensors *f, char *path, struct err *e)
{
    f->shards = safetensors_grown(f->shards, (size_t)f->n_shards + 1, sizeof(*f->shards));
    f->shards[f->n_shards++] = (struct shard){.path = path, .fd = -1};
    e->code = OK;
    return read_shard(f, e);
}

/* The shard of a path, or -1. */
static int shard_of(const struct safetensors *f, const char *path)
{
    for (int i = 0; i < f->n_shards; i++)
        if (!strcmp(f->shards[i].path, path)) return i;
    return -1;
}

static struct tensor *find(const struct safetensors *f, const char *name, int shard)
{
    struct tensor key = {.info.name = name, .shard = shard};

    return bsearch(&key, f->tensors, f->n_tensors, sizeof(key), by_name);
}

/* What the index names is the model: every entry must be in its shard; what a shard has beside is left out. */
static status apply_index(struct safetensors *f, const struct json_t *map, const char *directory, const char *path, struct err *e)
{
    for (size_t i = 0; i < f->n_tensors; i++) f->tensors[i].listed = false;
    for (void *i = json_first(map); i; i = json_next(map, i)) {
        char *file = str_join(directory, json_text(json_member(i)));
        struct tensor *t = find(f, json_key(i), shard_of(f, file));

        free(file);
        if (!t)
            return err_set(e, ERR_FORMAT, "%s: tensor %s is not in %s, where the index says it is", path, json_key(i),
                           json_text(json_member(i)));
        t->listed = true;
    }
    size_t kept = 0;
    for (size_t i = 0; i < f->n_tensors; i++) {
        struct tensor t = f->tensors[i];

        if (t.listed) {
            f->tensors[kept++] = t;
        } else {
            free((void *)t.info.name);
            free((void *)t.info.dtype);
        }
    }
    f->n_tensors = kept;
    return OK;
}

/* metadata.total_size is not looked at: models in the wild state it wrongly, and nothing here needs it. */
static status open_index(struct safetensors *f, const char *directory, const char *path, struct err *e)
{
    struct json_t *index = NULL;
    const struct json_t *map = NULL;

    if (json_read(&index, path, INDEX_MAX, e)) return e->code;
    if (json_get_object(&map, index, "weight_map", JSON_REQUIRED, path, e)) goto done;
    for (void *i = json_first(map); i; i = json_next(map, i)) {
        const char *file = json_text(json_member(i));

        if (!file || !file[0] || strchr(file, '/') || file[0] == '.' || strlen(file) != json_text_length(json_member(i))) {
            err_set(e, ERR_FORMAT, "%s: weight_map: %s: expected the name of a file beside the index", path, json_key(i));
            goto done;
        }
        char *shard = str_join(directory, file);

        if (shard_of(f, shard) >= 0) {
            free(shard);
            continue;
        }
        if (f->n_shards == SHARDS_MAX) {
            free(shard);
            err_set(e, ERR_LIMIT, "%s: more than %d shards", path, SHARDS_MAX);
            goto done;
        }
        if (add_shard(f, shard, e)) goto done;
    }
    if (f->n_tensors) qsort(f->tensors, f->n_tensors, sizeof(*f->tensors), by_name);
    if (apply_index(f, map, directory, path, e)) goto done;

done:
    json_free(index);
    return e->code;
}

static char *stem_path(const char *directory, const char *stem, const char *behind)
{
    struct str name = {0};

    str_addf(&name, "%s%s", stem, behind);
    char *path = str_join(directory, name.text);
    str_free(&name);
    return path;
}

static status open_any(struct safetensors **out, const char *path, const char *stem, struct err *e)
{
    struct safetensors *f = calloc(1, sizeof(*f));
    char *whole = stem_path(path, stem, ".safetensors"), *index = stem_path(path, stem, ".safetensors.index.json");

    BUG_ON(!f);
    *out = NULL;
    e->code = OK;
    f->whole = strcmp(stem, "model") != 0;
    if (!file_is_directory(path)) add_shard(f, str_dup(path), e);
    else if (file_exists(whole)) add_shard(f, str_dup(whole), e);
    else if (file_exists(index)) open_index(f, path, index, e);
    else err_set(e, ERR_IO, "%s: has neither %s.safetensors nor %s.safetensors.index.json", path, stem, stem);
    free(whole);
    free(index);
    if (e->code) {
        safetensors_close(f);
        return e->code;
    }
    if (f->n_tensors) qsort(f->tensors, f->n_tensors, sizeof(*f->tensors), by_name);
    *out = f;
    return OK;
}

status safetensors_open(struct safetensors **out, const char *path, struct err *e)
{
    return open_any(out, path, "model", e);
}

status safetensors_open_stem(struct safetensors **out, const char *directory, const char *stem, struct err *e)
{
    return open_any(out, directory, stem, e);
}

bool safetensors_present(const char *directory, const char *stem)
{
    char *whole = stem_path(directory, stem, ".safetensors"), *index = stem_path(directory, stem, ".safetensors.index.json");
    bool there = file_exists(whole) || file_exists(index);

    free(whole);
    free(index);
    return there;
}

void safetensors_close(struct safetensors *f)
{
    if (!f) return;
    safetensors_unmap(f);
    json_free(f->metadata);
    for (size_t i = 0; i < f->n_tensors; i++) {
        free((void *)f->tensors[i].info.name);
        free((void *)f->tensors[i].info.dtype);
    }
    for (int i = 0; i < f->n_shards; i++) {
        if (f->shards[i].fd >= 0) close(f->shards[i].fd);
        free(f->shards[i].path);
    }
    free(f->maps);
    free(f->tensors);
    free(f->shards);
    free(f);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->n_tensors;
}

const struct tensor_info *safetensors_info(const struct safetensors *s, size_t i)
{
    BUG_ON(i >= s->n_tensors);
    return &s->tensors[i].info;
}

struct tensor *safetensors_tensor(const struct safetensors *s, const char *name)
{
    size_t low = 0, high = s->n_tensors;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int c = strcmp(s->tensors[middle].info.name, name);

        if (c == 0) return &s->tensors[middle];
        if (c < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

const struct tensor_info *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct tensor *t = safetensors_tensor(s, name);

    return t ? &t->info : NULL;
}

const char *safetensors_metadata_text(const struct safetensors *s, const char *key)
{
    const struct json_t *v = s->metadata && json_is_object(s->metadata) ? json_at(s->metadata, key) : NULL;

    return v && json_is_text(v) ? json_text(v) : NULL;
}
