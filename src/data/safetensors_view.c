/* Views into safetensors: what is bound is mapped. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "data/safetensors_internal.h"

/* Mappings are cut along these lines, so that the many small tensors of a factorized model share them and their number stays far
 * below what the kernel allows a process (vm.max_map_count).  Address space is not memory: only pages that are read are resident. */
static const size_t WINDOW = (size_t)64 << 20;

void safetensors_unmap(struct safetensors *f)
{
    for (size_t i = 0; i < f->n_maps; i++) munmap(f->maps[i].base, f->maps[i].end - f->maps[i].begin);
    f->n_maps = 0;
}

void safetensors_trim(struct safetensors *f, size_t most)
{
    size_t mapped = 0;

    for (size_t i = 0; i < f->n_maps; i++) mapped += f->maps[i].end - f->maps[i].begin;
    if (mapped > most) safetensors_unmap(f);
}

/* Bytes begin .. end of a file, end > begin. */
static status map_range(const char **out, struct safetensors *f, int shard, size_t begin, size_t end, struct err *e)
{
    const struct shard *s = &f->shards[shard];

    for (size_t i = f->n_maps; i-- > 0;) { /* the latest first: neighbours are asked for one after another */
        const struct mapping *m = &f->maps[i];

        if (m->shard == shard && m->begin <= begin && end <= m->end) {
            *out = m->base + (begin - m->begin);
            return OK;
        }
    }
    size_t from = begin / WINDOW * WINDOW, to = (end + WINDOW - 1) / WINDOW * WINDOW;
    if (f->whole) from = 0;
    if (f->whole || to > s->size) to = s->size;
    char *base = mmap(NULL, to - from, PROT_READ, MAP_SHARED, s->fd, (off_t)from);
    if (base == MAP_FAILED) return err_set(e, ERR_IO, "%s: %zu bytes cannot be mapped: %s", s->path, to - from, strerror(errno));
    if (f->whole) madvise(base, to - from, MADV_HUGEPAGE); /* where the file system has them; a wish, and no harm if refused */
    if (f->n_maps == f->room_maps) {
        f->room_maps = f->room_maps ? 2 * f->room_maps : 16;
        f->maps = safetensors_grown(f->maps, f->room_maps, sizeof(*f->maps));
    }
    f->maps[f->n_maps++] = (struct mapping){.shard = shard, .begin = from, .end = to, .base = base};
    *out = base + (begin - from);
    return OK;
}

static void shape_text(char out[80], const struct tensor_info *t)
{
    int n = 0;

    out[0] = 0;
    for (int i = 0; i < t->dims && i < 4 && n < 79; i++)
        n += snprintf(out + n, (size_t)(80 - n), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    if (t->dims > 4 && n < 70) snprintf(out + n, (size_t)(80 - n), ", ...");
}

static void note_asked(struct safetensors *s, struct tensor *t, size_t bytes)
{
    size_t more = bytes < t->info.bytes - t->asked ? bytes : t->info.bytes - t->asked;

    t->asked += more;
    s->asked += more;
}

status safetensors_mat(struct mat *out, struct safetensors *s, const char *name, int rows, int cols, struct err *e)
{
    return safetensors_rows(out, s, name, rows, cols, 0, rows, e);
}

status safetensors_rows(struct mat *out, struct safetensors *s, const char *name, int of_rows, int cols, int first, int rows,
                        struct err *e)
{
    static const enum dtype known[] = {DT_F32, DT_F16, DT_BF16};
    struct tensor *t = safetensors_tensor(s, name);
    const char *data = (const char *)s; /* of an empty tensor: not to be followed */
    int found = -1;

    BUG_ON(of_rows < 0 || cols < 0 || first < 0 || rows < 0 || first > of_rows - rows);
    *out = (struct mat){0};
    if (!t) return err_set(e, ERR_FORMAT, "%s: tensor %s is missing", s->n_shards ? s->shards[0].path : "no file", name);
    for (int i = 0; i < 3; i++)
        if (!strcmp(t->info.dtype, dtype_name(known[i]))) found = (int)known[i];
    if (found < 0)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected F32, F16 or BF16, found %s", t->info.file, name, t->info.dtype);
    bool same = (t->info.dims == 2 && t->info.shape[0] == of_rows && t->info.shape[1] == cols) ||
                (t->info.dims == 1 && of_rows == 1 && t->info.shape[0] == cols);
    if (!same) {
        char shape[80];

        shape_text(shape, &t->info);
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected shape [%d, %d], found [%s]", t->info.file, name, of_rows, cols,
                       shape);
    }
    size_t element = dtype_bytes((enum dtype)found), row = (size_t)cols * element;
    size_t begin = s->shards[t->shard].data + t->begin + (size_t)first * row, bytes = (size_t)rows * row;
    if (begin % element)
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s begins at byte %zu of the file, which is no multiple of %zu (%s): rewrite the file",
                       t->info.file, name, begin, element, t->info.dtype);
    if (bytes && map_range(&data, s, t->shard, begin, begin + bytes, e)) return e->code;
    note_asked(s, t, bytes);
    *out = (struct mat){.data = data, .dtype = (enum dtype)found, .rows = rows, .cols = cols, .stride = (size_t)cols};
    return OK;
}

status safetensors_raw(const void **out, struct safetensors *s, const char *name, const char *dtype, int dims,
                       const int64_t *shape, size_t align, struct err *e)
{
    struct tensor *t = safetensors_tensor(s, name);
    const char *data = (const char *)s; /* of an empty tensor: not to be followed */

    BUG_ON(dims < 0 || dims > 4);
    *out = NULL;
    if (!t) return err_set(e, ERR_FORMAT, "%s: tensor %s is missing", s->n_shards ? s->shards[0].path : "no file", name);
    bool same = t->info.dims == dims && !strcmp(t->info.dtype, dtype);
    for (int i = 0; same && i < dims; i++) same = t->info.shape[i] == shape[i];
    if (!same) {
        struct tensor_info wanted = {.dims = dims};
        char found[80], expected[80];

        memcpy(wanted.shape, shape, (size_t)dims * sizeof(*shape));
        shape_text(found, &t->info);
        shape_text(expected, &wanted);
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected %s of shape [%s], found %s of [%s]", t->info.file, name, dtype,
                       expected, t->info.dtype, found);
    }
    size_t begin = s->shards[t->shard].data + t->begin;
    if (begin % align)
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s begins at byte %zu of the file, expected a multiple of %zu: rewrite the file", t->info.file,
                       name, begin, align);
    if (t->info.bytes && map_range(&data, s, t->shard, begin, begin + t->info.bytes, e)) return e->code;
    note_asked(s, t, t->info.bytes);
    *out = data;
    return OK;
}

size_t safetensors_mapped_bytes(const struct safetensors *s)
{
    return s->asked;
}

status mat_check_finite(const struct mat *m, const char *name, const struct alive *alive, struct err *e)
{
    size_t row_bytes = (size_t)m->cols * dtype_bytes(m->dtype), unseen = 0;

    for (int r = 0; r < m->rows; r++) {
        if ((unseen += row_bytes) > ALIVE_BYTES) {
            alive_tick(alive);
            unseen = 0;
        }
        size_t at = (size_t)r * m->stride, cols = (size_t)m->cols;
        bool bad = false;

        /* an exponent of ones is infinity or NaN; one pass without a branch per element */
        if (m->dtype == DT_F32) {
            const float *x = (const float *)m->data + at;
            for (size_t c = 0; c < cols; c++) bad |= !isfinite(x[c]);
        } else {
            const uint16_t *x = (const uint16_t *)m->data + at, ones = m->dtype == DT_BF16 ? 0x7f80 : 0x7c00;
            for (size_t c = 0; c < cols; c++) bad |= (x[c] & ones) == ones;
        }
        for (int c = 0; bad && c < m->cols; c++) {
            float x = mat_at(m, r, c);

            if (!isfinite(x))
                return err_set(e, ERR_FORMAT, "%s: row %d, column %d is %s", name, r, c, isnan(x) ? "NaN" : "infinite");
        }
    }
    alive_tick(alive);
    return OK;
}
