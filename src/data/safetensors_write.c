/* Writing safetensors.  All shards are temporary files until the commit; an index, if there is one, is written last, because a
 * reader believes the index. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "data/json.h"
#include "data/safetensors.h"

enum { ALIGN = 64, HUGE_PAGE = 2 << 20 }; /* of the first data byte in the file */

struct declared {
    char *name;
    const char *dtype; /* as in the file: lives as long as the program */
    int dims;
    int64_t shape[4];
    size_t element, bytes;
    int shard;
    size_t offset; /* in the shard's data */
};

struct part {
    struct file_writer file;
    char *name; /* beside the index */
    size_t data;
    /* In files for kernels: what comes is gathered to whole huge pages of the file, because a page cache that takes them in pieces keeps them in pieces. */
    char *page;
    size_t at, filled; /* page[0] belongs at byte `at` of the file */
};

struct safetensors_writer {
    char *directory, *stem, *path; /* path: of a single file of any name */
    size_t align;                  /* of the first data byte; HUGE_PAGE: of every tensor that can be to ALIGN, too */
    size_t shard_bytes;
    struct declared *tensors;
    size_t n, room;
    struct json_t *metadata;
    struct alive alive; /* tick NULL: nobody waits */

    struct part *parts; /* from the first data on */
    int n_parts;
    size_t at, given; /* the tensor that is being written, bytes of it that are there */
};

static struct safetensors_writer *writer_new(void)
{
    struct safetensors_writer *w = calloc(1, sizeof(*w));

    BUG_ON(!w);
    w->metadata = json_object_new();
    json_put_text(w->metadata, "format", "pt"); /* Hugging Face's loader insists on it */
    return w;
}

static status create(struct safetensors_writer **out, const char *directory, const char *stem, size_t align, size_t shard_bytes,
                     struct err *e)
{
    *out = NULL;
    if (!file_is_directory(directory)) return err_set(e, ERR_IO, "%s: is not a directory", directory);
    *out = writer_new();
    (*out)->directory = str_dup(directory);
    (*out)->stem = str_dup(stem);
    (*out)->align = align;
    (*out)->shard_bytes = shard_bytes;
    return OK;
}

status safetensors_create(struct safetensors_writer **out, const char *directory, size_t shard_bytes, struct err *e)
{
    return create(out, directory, "model", ALIGN, shard_bytes, e);
}

status safetensors_create_stem(struct safetensors_writer **out, const char *directory, const char *stem, size_t shard_bytes,
                               struct err *e)
{
    return create(out, directory, stem, HUGE_PAGE, shard_bytes, e);
}

status safetensors_create_file(struct safetensors_writer **out, const char *path, struct err *e)
{
    (void)e; /* the file is opened when the first data comes */
    *out = writer_new();
    (*out)->align = ALIGN;
    (*out)->path = str_dup(path);
    return OK;
}

void safetensors_declare(struct safetensors_writer *w, const char *name, enum dtype t, int dims, const int64_t *shape)
{
    safetensors_declare_raw(w, name, dtype_name(t), dims, shape);
}

void safetensors_declare_raw(struct safetensors_writer *w, const char *name, const char *dtype, int dims, const int64_t *shape)
{
    size_t element = safetensors_element_bytes(dtype);
    struct declared d = {.name = str_dup(name), .dtype = dtype, .dims = dims, .element = element, .bytes = element};

    BUG_ON(w->parts || !element || dims < 0 || dims > 4);
    for (int i = 0; i < dims; i++) {
        BUG_ON(shape[i] < 0 || __builtin_mul_overflow(d.bytes, (size_t)shape[i], &d.bytes));
        d.shape[i] = shape[i];
    }
    if (w->n == w->room) {
        w->room = w->room ? 2 * w->room : 64;
        w->tensors = realloc(w->tensors, w->room * sizeof(*w->tensors));
        BUG_ON(!w->tensors);
    }
    w->tensors[w->n++] = d;
}

void safetensors_metadata(struct safetensors_writer *w, const char *key, const char *value)
{
    BUG_ON(w->parts);
    json_put_text(w->metadata, key, value);
}

/* Which tensors come first in a shard: 8 the widest elements, so that every tensor is aligned to its elements whatever the sizes are; 16: in files for
 * kernels, tensors that leave the next one aligned to ALIGN. */
static size_t rank_of(const struct safetensors_writer *w, const struct declared *t)
{
    return w->align == HUGE_PAGE && t->bytes % ALIGN == 0 ? 16 : t->element;
}

/* Gives every tensor its shard and its place: by rank, else in the order of declaration. */
static void plan(struct safetensors_writer *w)
{
    size_t total = 0, filled = 0;
    int shard = 0;

    for (size_t i = 0; i < w->n; i++) total += w->tensors[i].bytes;
    bool split = w->shard_bytes && total > w->shard_bytes;
    for (size_t i = 0; i < w->n; i++) {
        struct declared *t = &w->tensors[i];

        if (split && filled && filled + t->bytes > w->shard_bytes) {
            shard++;
            filled = 0;
        }
        t->shard = shard;
        filled += t->bytes;
    }
    w->n_parts = shard + 1;
    w->parts = calloc((size_t)w->n_parts, sizeof(*w->parts));
    BUG_ON(!w->parts);
    for (size_t rank = 16; rank; rank /= 2)
        for (size_t i = 0; i < w->n; i++) {
            struct declared *t = &w->tensors[i];

            if (rank_of(w, t) != rank) continue;
            t->offset = w->parts[t->shard].data; /* counts the data for now */
            w->parts[t->shard].data += t->bytes;
        }
    for (int p = 0; p < w->n_parts; p++) {
        struct str name = {0};

        if (w->n_parts == 1) str_addf(&name, "%s.safetensors", w->stem ? w->stem : "");
        else str_addf(&name, "%s-%05d-of-%05d.safetensors", w->stem, p + 1, w->n_parts);
        w->parts[p].name = name.text;
    }
}

static void header(struct str *out, const struct safetensors_writer *w, int part)
{
    struct json_t *h = json_object_new();

    json_put(h, "__metadata__", json_clone(w->metadata));
    for (size_t i = 0; i < w->n; i++) {
        const struct declared *t = &w->tensors[i];

        if (t->shard != part) continue;
        BUG_ON(json_at(h, t->name)); /* declared twice */
        struct json_t *entry = json_object_new(), *shape = json_array_new(), *offsets = json_array_new();

        for (int d = 0; d < t->dims; d++) json_append(shape, json_int_new(t->shape[d]));
        json_append(offsets, json_int_new((int64_t)t->offset));
        json_append(offsets, json_int_new((int64_t)(t->offset + t->bytes)));
        json_put_text(entry, "dtype", t->dtype);
        json_put(entry, "shape", shape);
        json_put(entry, "data_offsets", offsets);
        json_put(h, t->name, entry);
    }
    json_dump(out, h, false);
    while ((out->length + 8) % w->align) str_addz(out, " ");
    json_free(h);
}

static status begin_parts(struct safetensors_writer *w, struct err *e)
{
    plan(w);
    for (int p = 0; p < w->n_parts; p++) {
        struct part *part = &w->parts[p];
        struct str text = {0};
        unsigned char prefix[8];
        char *path = w->path ? str_dup(w->path) : str_join(w->directory, part->name);
        status s = file_begin(&part->file, path, e);

        free(path);
        if (s) return s;
        if (w->align == HUGE_PAGE) setvbuf(part->file.f, NULL, _IONBF, 0); /* what is gathered here is written in one go */
        header(&text, w, p);
        for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)(text.length >> (8 * i) & 0xff);
        size_t done = fwrite(prefix, 1, 8, part->file.f) + fwrite(text.text, 1, text.length, part->file.f);
        part->data = 8 + text.length;
        str_free(&text);
        if (done != part->data) return err_set(e, ERR_IO, "%s: cannot be written: %s", part->file.path, strerror(errno));
    }
    return OK;
}

static status flush_page(struct safetensors_writer *w, struct part *p, struct err *e)
{
    size_t n = p->filled;

    p->at += n;
    p->filled = 0;
    return n ? file_append(&p->file, p->page, n, w->alive.tick ? &w->alive : NULL, e) : OK;
}

static status part_append(struct safetensors_writer *w, struct part *p, const char *data, size_t bytes, struct err *e)
{
    if (w->align != HUGE_PAGE) return file_append(&p->file, data, bytes, w->alive.tick ? &w->alive : NULL, e);
    while (bytes) {
        size_t room = HUGE_PAGE - (p->at + p->filled) % HUGE_PAGE, n = bytes < room ? bytes : room;

        memcpy(p->page + p->filled, data, n);
        p->filled += n;
        data += n;
        bytes -= n;
        if (n == room && flush_page(w, p, e)) return e->code;
    }
    return OK;
}

static status part_seek(struct safetensors_writer *w, struct part *p, size_t at, struct err *e)
{
    if (p->page && p->at + p->filled == at) return OK;
    if (p->page && flush_page(w, p, e)) return e->code;
    if (w->align == HUGE_PAGE && !p->page && !(p->page = malloc(HUGE_PAGE)))
        return err_set(e, ERR_LIMIT, "%s: no memory to write", p->file.path);
    p->at = at;
    if (fseeko(p->file.f, (off_t)at, SEEK_SET))
        return err_set(e, ERR_IO, "%s: cannot be written: %s", p->file.path, strerror(errno));
    return OK;
}

/* Past tensors that are complete, and to the place of the next one. */
static status seek_tensor(struct safetensors_writer *w, struct err *e)
{
    while (w->at < w->n && w->given == w->tensors[w->at].bytes) {
        w->at++;
        w->given = 0;
    }
    if (w->at == w->n || w->given) return OK;
    struct part *p = &w->parts[w->tensors[w->at].shard];
    return part_seek(w, p, p->data + w->tensors[w->at].offset, e);
}

void safetensors_alive(struct safetensors_writer *w, struct alive alive)
{
    w->alive = alive;
}

status safetensors_write(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e)
{
    if (!w->parts && begin_parts(w, e)) return e->code;
    while (bytes) {
        if (seek_tensor(w, e)) return e->code;
        BUG_ON(w->at == w->n); /* more than was declared */
        const struct declared *t = &w->tensors[w->at];
        struct part *p = &w->parts[t->shard];
        size_t n = bytes < t->bytes - w->given ? bytes : t->bytes - w->given;

        if (part_append(w, p, data, n, e)) return e->code;
        data = (const char *)data + n;
        bytes -= n;
        w->given += n;
    }
    return OK;
}

static char *in_directory(const struct safetensors_writer *w, const char *behind)
{
    struct str name = {0};

    str_addf(&name, "%s%s", w->stem, behind);
    char *path = str_join(w->directory, name.text);
    str_free(&name);
    return path;
}

static status write_index(const struct safetensors_writer *w, struct err *e)
{
    struct json_t *index = json_object_new(), *metadata = json_object_new(), *map = json_object_new();
    char *path = in_directory(w, ".safetensors.index.json");
    size_t total = 0;

    for (size_t i = 0; i < w->n; i++) {
        json_put_text(map, w->tensors[i].name, w->parts[w->tensors[i].shard].name);
        total += w->tensors[i].bytes;
    }
    json_put_int(metadata, "total_size", (int64_t)total);
    json_put(index, "metadata", metadata);
    json_put(index, "weight_map", map);
    status s = json_write(path, index, e);
    json_free(index);
    free(path);
    return s;
}

status safetensors_commit(struct safetensors_writer *w, struct err *e)
{
    status s = OK;

    if (!w->parts) s = begin_parts(w, e); /* nothing but empty tensors */
    if (!s) s = seek_tensor(w, e);
    BUG_ON(!s && w->at != w->n); /* less than was declared */
    for (int p = 0; !s && p < w->n_parts; p++) {
        if (w->alive.tick) alive_tick(&w->alive);
        if ((s = flush_page(w, &w->parts[p], e))) break;
        s = file_commit(&w->parts[p].file, e);
    }
    if (!s && w->directory) {
        char *stale = in_directory(w, w->n_parts > 1 ? ".safetensors" : ".safetensors.index.json");

        if (w->n_parts > 1) s = write_index(w, e);
        if (!s) unlink(stale); /* of an earlier model here; a reader would take it for this one */
        free(stale);
    }
    safetensors_abandon(w);
    return s;
}

void safetensors_abandon(struct safetensors_writer *w)
{
    if (!w) return;
    for (int p = 0; w->parts && p < w->n_parts; p++) {
        file_abandon(&w->parts[p].file);
        free(w->parts[p].name);
        free(w->parts[p].page);
    }
    for (size_t i = 0; i < w->n; i++) free(w->tensors[i].name);
    json_free(w->metadata);
    free(w->parts);
    free(w->tensors);
    free(w->directory);
    free(w->stem);
    free(w->path);
    free(w);
}
