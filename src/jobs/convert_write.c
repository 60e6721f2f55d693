#include "jobs/convert_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
#include "jobs/room.h"

/* A tensor of the source and what becomes of it. */
struct item {
    const struct tensor_info *from;
    int part; /* WEIGHT_PARTS: copied as it is */
    const char *name;
};

struct writing {
    struct converted *out;
    struct job *job;
    struct safetensors *from;
    struct safetensors_writer *to;
    struct alive alive;
    struct item *items;
    size_t n;
    double done, total;
};

static const size_t MAPPED_MAX = (size_t)256 << 20;

static bool can_copy(const struct tensor_info *t)
{
    return (t->dims == 1 || t->dims == 2) && (!strcmp(t->dtype, "F32") || !strcmp(t->dtype, "F16") || !strcmp(t->dtype, "BF16"));
}

static status add(struct writing *w, const struct tensor_info *t, int part, const char *name, struct err *e)
{
    if (part < WEIGHT_PARTS && (t->dims != 2 || t->shape[0] > INT32_MAX || t->shape[1] > INT32_MAX))
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected a matrix, found %d dimensions", t->file, t->name, t->dims);
    if (!can_copy(t)) {
        log_warn(w->job->log, "%s: tensor %s (%s, %d dimensions) is left out", t->file, t->name, t->dtype, t->dims);
        return OK;
    }
    w->items[w->n++] = (struct item){t, part, name};
    w->total += (double)t->bytes;
    return OK;
}

/* Tensors whose names begin with `prefix`, or with no layer's if it is NULL. */
static status list_some(struct writing *w, const struct shape *s, const char *prefix, struct err *e)
{
    for (size_t i = 0; i < safetensors_count(w->from); i++) {
        const struct tensor_info *t = safetensors_info(w->from, i);
        int part = weight_part_of(t->name);

        if (prefix ? strncmp(t->name, prefix, strlen(prefix)) : !strncmp(t->name, "model.layers.", 13)) continue;
        if (part == WEIGHTS_HEAD && s->tied) continue; /* the embedding stands for it */
        if (add(w, t, part < 0 ? WEIGHT_PARTS : part, t->name, e)) return e->code;
    }
    return OK;
}

/* In the order in which a step reads them, the head last. */
static status list_items(struct writing *w, const struct shape *s, struct err *e)
{
    const struct tensor_info *embedding = safetensors_find(w->from, "model.embed_tokens.weight");

    w->items = calloc(safetensors_count(w->from) + 1, sizeof(*w->items));
    BUG_ON(!w->items);
    for (int l = 0; l < s->layers; l++) {
        char prefix[64];

        snprintf(prefix, sizeof(prefix), "model.layers.%d.", l);
        if (list_some(w, s, prefix, e)) return e->code;
    }
    if (list_some(w, s, NULL, e)) return e->code;
    if (!embedding) return err_set(e, ERR_FORMAT, "%s: model.embed_tokens.weight is missing", w->job->spec->model);
    return s->tied ? add(w, embedding, WEIGHTS_HEAD, "lm_head.weight", e) : OK;
}

static void declare(struct writing *w)
{
    struct converted *c = w->out;

    for (size_t i = 0; i < w->n; i++) {
        const struct item *t = &w->items[i];
        bool tied = t->part < WEIGHT_PARTS && t->name != t->from->name;

        if (!tied) c->before[t->part] += (int64_t)t->from->bytes;
        if (t->part == WEIGHT_PARTS) {
            enum dtype d = !strcmp(t->from->dtype, "F32") ? DT_F32 : !strcmp(t->from->dtype, "F16") ? DT_F16 : DT_BF16;

            safetensors_declare(w->to, t->name, d, t->from->dims, t->from->shape);
            c->after[t->part] += (int64_t)t->from->bytes;
        } else {
            int rows = (int)t->from->shape[0], cols = (int)t->from->shape[1];
            enum format f = c->format[t->part];

            packed_declare(w->to, t->name, f, rows, cols);
            c->after[t->part] += (int64_t)(packed_line_bytes(f, rows, cols) + packed_scale_bytes(f, rows, cols));
        }
    }
}

static status write_item(struct writing *w, const struct item *t, struct err *e)
{
    struct converted *c = w->out;
    int rows = t->from->dims == 2 ? (int)t->from->shape[0] : 1, cols = (int)t->from->shape[t->from->dims - 1];
    struct mat m;

    safetensors_trim(w->from, MAPPED_MAX);
    if (safetensors_mat(&m, w->from, t->from->name, rows, cols, e)) return e->code;
    if (mat_check_finite(&m, t->from->name, &w->alive, e)) return e->code;
    if (t->part == WEIGHT_PARTS) return safetensors_write(w->to, m.data, t->from->bytes, e);
    return packed_write(w->to, c->format[t->part], &m, cluster_gemm(w->job->cluster), &w->alive, &c->error[t->part], e);
}

static void describe(struct writing *w)
{
    safetensors_metadata(w->to, "packed", "1");
    for (int p = 0; p < WEIGHT_PARTS; p++)
        safetensors_metadata(w->to, weight_part_name((enum weight_part)p), format_name(w->out->format[p]));
}

status write_packed(struct converted *out, struct job *j, const struct shape *s, struct safetensors *from, const char *directory,
                    size_t shard_bytes, struct err *e)
{
    struct precision wanted = room_precision(j->spec);
    struct writing w = {.out = out, .job = j, .from = from, .alive = {cluster_tick, j->cluster}};
    status st;

    *out = (struct converted){0};
    weights_formats(out->format, from, s, &wanted);
    st = list_items(&w, s, e);
    if (!st) st = safetensors_create_stem(&w.to, directory, WEIGHTS_PACKED, shard_bytes, e);
    if (!st) {
        safetensors_alive(w.to, w.alive);
        describe(&w);
        declare(&w);
    }
    for (size_t i = 0; !st && i < w.n; i++) {
        if (stop_asked()) st = err_set(e, STOPPED, "%s: stopped while converting; run it again", j->spec->source);
        cluster_alive(j->cluster);
        if (!st) st = write_item(&w, &w.items[i], e);
        w.done += (double)w.items[i].from->bytes;
        log_progress(j->log, "convert", w.done, w.total, "%.1f of %.1f MiB", w.done / 0x1p20, w.total / 0x1p20);
    }
    log_progress_end(j->log);
    if (st) safetensors_abandon(w.to);
    else st = safetensors_commit(w.to, e);
    free(w.items);
    return st;
}

/* ---- what was made ---- */

struct json_t *converted_description(const struct converted *c, const char *source_digest)
{
    struct json_t *o = json_object_new(), *source = json_object_new();

    json_put_int(o, "version", 1);
    for (int p = 0; p < WEIGHT_PARTS; p++) json_put_text(o, weight_part_name((enum weight_part)p), format_name(c->format[p]));
    json_put_text(source, "digest", source_digest);
    json_put(o, "source", source);
    return o;
}

void converted_report(struct json_t *to, const struct converted *c)
{
    struct json_t *formats = json_object_new(), *before = json_object_new(), *after = json_object_new(),
                  *error = json_object_new();

    for (int p = 0; p <= WEIGHT_PARTS; p++) {
        const char *name = p < WEIGHT_PARTS ? weight_part_name((enum weight_part)p) : "other";

        json_put_int(before, name, c->before[p]);
        json_put_int(after, name, c->after[p]);
        if (p == WEIGHT_PARTS) continue;
        json_put_text(formats, name, format_name(c->format[p]));
        json_put_real(error, name, c->error[p].whole > 0 ? sqrt(c->error[p].difference / c->error[p].whole) : 0);
    }
    json_put(to, "formats", formats);
    json_put(to, "bytes_before", before);
    json_put(to, "bytes_after", after);
    json_put(to, "error", error);
}
