#include "train/checkpoint.h"

#include <math.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "data/digest.h"

static const char MAGIC[] = "factorllm-checkpoint-01\n";
enum { MAGIC_BYTES = sizeof(MAGIC) - 1, DIGEST_BYTES = 64, COUNTS = 16, JSON_MAX = 1 << 24 };

static size_t total_floats(const struct checkpoint_array *arrays, int n_arrays)
{
    size_t n = 0;

    for (int i = 0; i < n_arrays; i++) n += arrays[i].n;
    return n;
}

/* What stands in front of the floats, behind the digest. */
static void describe(struct str *out, const struct json_t *identity, const struct json_t *progress,
                     const struct checkpoint_array *arrays, int n_arrays)
{
    struct json_t *top = json_object_new(), *list = json_array_new();
    struct str text = {0};

    for (int i = 0; i < n_arrays; i++) {
        struct json_t *entry = json_array_new();

        json_append(entry, json_text_new(arrays[i].name, strlen(arrays[i].name)));
        json_append(entry, json_int_new((int64_t)arrays[i].n));
        json_append(list, entry);
    }
    json_put(top, "identity", json_clone(identity));
    json_put(top, "progress", json_clone(progress));
    json_put(top, "arrays", list);
    json_dump(&text, top, false);
    json_free(top);
    BUG_ON(text.length > JSON_MAX);
    uint64_t counts[2] = {text.length, total_floats(arrays, n_arrays)};

    str_add(out, (const char *)counts, COUNTS);
    str_add(out, text.text, text.length);
    str_free(&text);
}

static void digest_in_pieces(struct digest *d, const void *bytes, size_t length, const struct alive *alive)
{
    for (size_t n; length; bytes = (const char *)bytes + n, length -= n) {
        n = length < ALIVE_BYTES ? length : ALIVE_BYTES;
        digest_add(d, bytes, n);
        alive_tick(alive);
    }
}

static void digest_all(char hex[65], const struct str *head, const struct checkpoint_array *arrays, int n_arrays,
                       const struct alive *alive)
{
    struct digest *d = digest_begin();

    digest_add(d, head->text, head->length);
    for (int i = 0; i < n_arrays; i++) digest_in_pieces(d, arrays[i].data, arrays[i].n * sizeof(float), alive);
    digest_end(d, hex);
}

/* What would never be read again does not take the place of what can be. */
static status check_arrays(const struct checkpoint_array *arrays, int n_arrays, const char *path, const struct alive *alive,
                           struct err *e)
{
    for (int i = 0; i < n_arrays; i++)
        for (size_t k = 0; k < arrays[i].n; k++) {
            if (k % (ALIVE_BYTES / sizeof(float)) == 0) alive_tick(alive);
            if (!isfinite(arrays[i].data[k]))
                return err_set(e, ERR_FORMAT, "%s: not written: number %zu of %s is not finite", path, k, arrays[i].name);
        }
    return OK;
}

status checkpoint_write(const char *path, const struct json_t *identity, const struct json_t *progress,
                        const struct checkpoint_array *arrays, int n_arrays, const struct alive *alive, struct err *e)
{
    struct file_writer w;
    struct str head = {0};
    char hex[65];

    if (check_arrays(arrays, n_arrays, path, alive, e) || file_begin(&w, path, e)) return e->code;
    describe(&head, identity, progress, arrays, n_arrays);
    digest_all(hex, &head, arrays, n_arrays, alive);
    status s = file_append(&w, MAGIC, MAGIC_BYTES, alive, e);

    if (!s) s = file_append(&w, hex, DIGEST_BYTES, alive, e);
    if (!s) s = file_append(&w, head.text, head.length, alive, e);
    for (int i = 0; !s && i < n_arrays; i++) s = file_append(&w, arrays[i].data, arrays[i].n * sizeof(float), alive, e);
    str_free(&head);
    if (!s) return file_commit(&w, e);
    file_abandon(&w);
    return s;
}

/* For a person; in full what would be spelled alike and is not the same. */
static void spell_apart(struct str *was, struct str *is, const struct json_t *found, const struct json_t *wanted)
{
    str_clear(was);
    str_clear(is);
    json_spell(was, found);
    json_spell(is, wanted);
    if (strcmp(was->text, is->text) != 0) return;
    str_clear(was);
    str_clear(is);
    json_dump(was, found, false);
    json_dump(is, wanted, false);
}

/* Is this file of the run that wants it?  Both are flat, so members are compared by their text. */
static status same_identity(const struct json_t *found, const struct json_t *wanted, const char *source, struct err *e)
{
    struct str was = {0}, is = {0};
    status s = OK;

    for (void *i = json_first(wanted); i && !s; i = json_next(wanted, i)) {
        const struct json_t *other = json_at(found, json_key(i));

        str_clear(&was);
        str_clear(&is);
        json_dump(&is, json_member(i), false);
        if (other) json_dump(&was, other, false);
        if (other && !strcmp(was.text, is.text)) continue;
        spell_apart(&was, &is, other, json_member(i));
        s = err_set(
            e, ERR_SPEC,
            "%s: belongs to another run: %s was %.200s and is %.200s; remove the file to start over, or use another output",
            source, json_key(i), was.text, is.text);
    }
    if (!s && json_length(found) != json_length(wanted))
        s = err_set(e, ERR_SPEC, "%s: belongs to another run: %zu settings, this one has %zu; remove the file to start over",
                    source, json_length(found), json_length(wanted));
    str_free(&was);
    str_free(&is);
    return s;
}

static status same_arrays(const struct json_t *list, const struct checkpoint_array *arrays, int n_arrays, const char *source,
                          struct err *e)
{
    if (json_length(list) != (size_t)n_arrays)
        return err_set(e, ERR_FORMAT, "%s: %zu arrays, expected %d", source, json_length(list), n_arrays);
    for (int i = 0; i < n_arrays; i++) {
        const struct json_t *entry = json_item(list, (size_t)i);
        const char *name = json_text(json_item(entry, 0));

        if (!name || strcmp(name, arrays[i].name) || !json_is_int(json_item(entry, 1)) ||
            (uint64_t)json_int(json_item(entry, 1)) != arrays[i].n)
            return err_set(e, ERR_FORMAT, "%s: array %d is not %s of %zu floats", source, i, arrays[i].name, arrays[i].n);
    }
    return OK;
}

/* All of them before any is used. */
static status check_floats(const char *at, size_t n, const char *source, const struct alive *alive, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        float x;

        if (i % (ALIVE_BYTES / sizeof(x)) == 0) alive_tick(alive);
        memcpy(&x, at + i * sizeof(x), sizeof(x));
        if (!isfinite(x)) return err_set(e, ERR_FORMAT, "%s: number %zu is not finite", source, i);
    }
    return OK;
}

static status check_body(const char *bytes, size_t length, const char *source, const struct alive *alive, uint64_t counts[2],
                         struct err *e)
{
    char hex[65];

    if (length < CHECKPOINT_BODY + COUNTS || memcmp(bytes, MAGIC, MAGIC_BYTES))
        return err_set(e, ERR_FORMAT, "%s: is not a checkpoint of this program", source);
    size_t left = length - CHECKPOINT_BODY - COUNTS;

    memcpy(counts, bytes + CHECKPOINT_BODY, COUNTS);
    if (counts[0] > left || counts[0] > JSON_MAX || counts[1] != (left - counts[0]) / sizeof(float) ||
        (left - counts[0]) % sizeof(float))
        return err_set(e, ERR_FORMAT, "%s: %zu bytes do not hold what its header says (%llu of JSON, %llu floats)", source,
                       length, (unsigned long long)counts[0], (unsigned long long)counts[1]);
    struct digest *d = digest_begin();

    digest_in_pieces(d, bytes + CHECKPOINT_BODY, length - CHECKPOINT_BODY, alive);
    digest_end(d, hex);
    if (memcmp(hex, bytes + MAGIC_BYTES, DIGEST_BYTES))
        return err_set(e, ERR_FORMAT, "%s: is damaged: its digest does not match", source);
    return OK;
}

static status decode(struct json_t **progress, const char *bytes, size_t length, const char *source,
                     const struct json_t *identity, const struct checkpoint_array *arrays, int n_arrays,
                     const struct alive *alive, struct err *e)
{
    struct json_t *top = NULL;
    const struct json_t *found, *list, *own;
    uint64_t counts[2];

    *progress = NULL;
    if (check_body(bytes, length, source, alive, counts, e)) return e->code;
    const char *text = bytes + CHECKPOINT_BODY + COUNTS, *at = text + counts[0];

    if (json_parse(&top, text, counts[0], source, e)) return e->code;
    if (!json_is_object(top)) {
        err_set(e, ERR_FORMAT, "%s: expected an object", source);
        goto fail;
    }
    if (json_get_object(&found, top, "identity", JSON_REQUIRED, source, e) || same_identity(found, identity, source, e))
        goto fail;
    if (json_get_array(&list, top, "arrays", JSON_REQUIRED, source, e) || same_arrays(list, arrays, n_arrays, source, e))
        goto fail;
    if (json_get_object(&own, top, "progress", JSON_REQUIRED, source, e)) goto fail;
    if (counts[1] != total_floats(arrays, n_arrays)) {
        err_set(e, ERR_FORMAT, "%s: %llu floats, its arrays have %zu", source, (unsigned long long)counts[1],
                total_floats(arrays, n_arrays));
        goto fail;
    }
    if (check_floats(at, counts[1], source, alive, e)) goto fail;
    for (int i = 0; i < n_arrays; at += arrays[i].n * sizeof(float), i++) {
        memcpy(arrays[i].data, at, arrays[i].n * sizeof(float));
        alive_tick(alive);
    }
    *progress = json_clone(own);
    json_free(top);
    return OK;

fail:
    json_free(top);
    return e->code;
}

status checkpoint_decode(struct json_t **progress, const char *bytes, size_t length, const char *source,
                         const struct json_t *identity, const struct checkpoint_array *arrays, int n_arrays, struct err *e)
{
    return decode(progress, bytes, length, source, identity, arrays, n_arrays, NULL, e);
}

status checkpoint_read(struct json_t **progress, const char *path, const struct json_t *identity,
                       const struct checkpoint_array *arrays, int n_arrays, const struct alive *alive, struct err *e)
{
    struct file_map m;

    *progress = NULL;
    if (file_map(&m, path, e)) return e->code;
    status s = decode(progress, m.bytes, m.length, path, identity, arrays, n_arrays, alive, e);
    file_unmap(&m);
    return s;
}
