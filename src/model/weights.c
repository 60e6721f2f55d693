#include "model/weights.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

/* Mapped source files beside the packed weights: more than a window or two is only in the way. */
static const size_t MAPPED_MAX = (size_t)256 << 20;

static const char *const part_names[WEIGHT_PARTS] = {"experts", "attention", "head"};

const char *weight_part_name(enum weight_part p)
{
    return part_names[p];
}

int weight_part_of(const char *tensor)
{
    static const char suffix[] = "_proj.weight";
    size_t n = strlen(tensor);

    if (!strcmp(tensor, "lm_head.weight")) return WEIGHTS_HEAD;
    if (n < sizeof(suffix) || strcmp(tensor + n - sizeof(suffix) + 1, suffix) != 0) return -1;
    if (strstr(tensor, ".mlp.")) return WEIGHTS_EXPERTS;
    return strstr(tensor, ".self_attn.") ? WEIGHTS_ATTENTION : -1;
}

/* ---- what there is, and what is asked for ---- */

static status embedding_dtype(enum dtype *out, const struct safetensors *f, const char *directory, struct err *e)
{
    const struct tensor_info *t = safetensors_find(f, "model.embed_tokens.weight");

    if (!t) return err_set(e, ERR_FORMAT, "%s: model.embed_tokens.weight is missing", directory);
    for (enum dtype d = DT_F32; d <= DT_BF16; d++)
        if (!strcmp(t->dtype, dtype_name(d))) {
            *out = d;
            return OK;
        }
    return err_set(e, ERR_FORMAT, "%s: tensor %s: expected F32, F16 or BF16, found %s", t->file, t->name, t->dtype);
}

/* As stored: the format that keeps every value of all tensors of a part. */
void weights_formats(enum format out[WEIGHT_PARTS], const struct safetensors *file, const struct shape *s,
                     const struct precision *wanted)
{
    for (int p = 0; p < WEIGHT_PARTS; p++) out[p] = FORMAT_BF16;
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct tensor_info *t = safetensors_info(file, i);
        int part = weight_part_of(t->name);

        if (s->tied && part == WEIGHTS_HEAD) part = -1;
        if (s->tied && !strcmp(t->name, "model.embed_tokens.weight")) part = WEIGHTS_HEAD;
        if (part >= 0 && strcmp(t->dtype, "BF16") != 0) out[part] = FORMAT_F32;
    }
    for (int p = 0; p < WEIGHT_PARTS; p++)
        if (wanted->part[p]) out[p] = (enum format)(wanted->part[p] - 1);
}

static status plan_packed(struct weights_plan *out, const struct safetensors *f, const char *directory, struct err *e)
{
    const char *version = safetensors_metadata_text(f, "packed");

    if (!version || strcmp(version, "1") != 0)
        return err_set(e, ERR_FORMAT,
                       "%s: " WEIGHTS_PACKED ".safetensors: expected version 1 in its metadata, found %s: convert again",
                       directory, version ? version : "none");
    for (int p = 0; p < WEIGHT_PARTS; p++) {
        const char *name = safetensors_metadata_text(f, part_names[p]);

        if (!name || !format_parse(name, &out->format[p]))
            return err_set(e, ERR_FORMAT, "%s: " WEIGHTS_PACKED ".safetensors: metadata: %s: expected a format, found %.20s",
                           directory, part_names[p], name ? name : "none");
    }
    out->packed = true;
    return embedding_dtype(&out->embedding, f, directory, e);
}

static int wrong_part(const struct weights_plan *p, const struct precision *wanted)
{
    for (int i = 0; i < WEIGHT_PARTS; i++)
        if (wanted->part[i] && wanted->part[i] != 1 + (int)p->format[i]) return i;
    return -1;
}

/* Chooses the file and opens it. */
static status open_file(struct safetensors **file, struct weights_plan *out, const char *directory, const struct shape *s,
                        const struct precision *wanted, struct err *e)
{
    *file = NULL;
    *out = (struct weights_plan){0};
    if (!wanted->original && safetensors_present(directory, WEIGHTS_PACKED)) {
        if (safetensors_open_stem(file, directory, WEIGHTS_PACKED, e) || plan_packed(out, *file, directory, e)) return e->code;
        int wrong = wrong_part(out, wanted);

        if (wrong < 0) return OK;
        if (!safetensors_present(directory, "model"))
            return err_set(e, ERR_SPEC,
                           "%s: precision.%s: expected stored or %s, as its packed weights are, found %s: convert the original",
                           directory, part_names[wrong], format_name(out->format[wrong]),
                           format_name((enum format)(wanted->part[wrong] - 1)));
        safetensors_close(*file);
        *out = (struct weights_plan){0};
    }
    if (safetensors_open(file, directory, e) || embedding_dtype(&out->embedding, *file, directory, e)) return e->code;
    weights_formats(out->format, *file, s, wanted);
    return OK;
}

status weights_plan(struct weights_plan *out, const char *directory, const struct shape *s, const struct precision *wanted,
                    struct err *e)
{
    struct safetensors *file;
    status st = open_file(&file, out, directory, s, wanted, e);

    safetensors_close(file);
    return st;
}

status weights_open(struct weights *w, const char *directory, const struct shape *s, const struct precision *wanted,
                    struct err *e)
{
    status st = open_file(&w->file, &w->plan, directory, s, wanted, e);

    if (st) weights_close(w);
    return st;
}

void weights_close(struct weights *w)
{
    safetensors_close(w->file);
    w->file = NULL;
}

size_t weights_cost(const struct weights_plan *p, enum weight_part part, int rows, int cols)
{
    size_t lines = packed_line_bytes(p->format[part], rows, cols), scale = packed_scale_bytes(p->format[part], rows, cols);

    return p->packed ? lines + scale : arena_cost(lines, 1) + arena_cost(scale, 1);
}

/* ---- the packed file ---- */

struct tensors { /* the two of a matrix */
    char lines[192], scale[192];
    const char *dtype;
    int dims;
    int64_t shape[4], blocks[3];
};

static void tensors_of(struct tensors *t, const char *name, enum format f, int rows, int cols)
{
    int panels = packed_panels(rows), lanes = f == FORMAT_F32 ? 1 : f == FORMAT_BF16 ? 2 : 4;

    snprintf(t->lines, sizeof(t->lines), "%s.lines", name);
    snprintf(t->scale, sizeof(t->scale), "%s.scale", name);
    t->dtype = f == FORMAT_F32 ? "F32" : f == FORMAT_BF16 ? "BF16" : "U8";
    t->dims = lanes == 1 ? 3 : 4;
    t->shape[0] = t->blocks[0] = panels;
    t->shape[1] = packed_steps(f, cols);
    t->shape[2] = t->blocks[2] = PANEL_LANES;
    t->shape[3] = lanes;
    t->blocks[1] = packed_blocks(cols);
}

static status bind_packed(struct packed *out, struct safetensors *from, const char *name, enum format f, int rows, int cols,
                          struct err *e)
{
    struct tensors t;
    const void *lines, *scale = NULL;

    tensors_of(&t, name, f, rows, cols);
    if (safetensors_raw(&lines, from, t.lines, t.dtype, t.dims, t.shape, LINE_BYTES, e)) return e->code;
    if (format_has_scales(f) && safetensors_raw(&scale, from, t.scale, "BF16", 3, t.blocks, sizeof(uint16_t), e)) return e->code;
    *out = (struct packed){.lines = lines, .scale = scale, .format = f, .rows = rows, .cols = cols};
    return OK;
}

void packed_declare(struct safetensors_writer *w, const char *name, enum format f, int rows, int cols)
{
    struct tensors t;

    tensors_of(&t, name, f, rows, cols);
    safetensors_declare_raw(w, t.lines, t.dtype, t.dims, t.shape);
    if (format_has_scales(f)) safetensors_declare_raw(w, t.scale, "BF16", 3, t.blocks);
}

/* ---- binding ---- */

status weights_view(const struct weights *w, struct mat *out, const char *name, int rows, int cols, struct err *e)
{
    status s = safetensors_mat(out, w->file, name, rows, cols, e);

    alive_tick(&w->alive);
    return s || !w->verify || w->plan.packed ? s : mat_check_finite(out, name, &w->alive, e);
}

status weights_vector(const struct weights *w, float *out, struct safetensors *from, const char *name, int n, struct err *e)
{
    struct mat view;
    status s = safetensors_mat(&view, from, name, 1, n, e);

    if (!s && w->verify) s = mat_check_finite(&view, name, &w->alive, e);
    if (!s) mat_widen(out, &view, 0, 1);
    return s;
}

/* Rows of a packed matrix: panels do not know of each other. */
static void cut_packed(struct packed *p, struct span held)
{
    size_t panel = (size_t)(held.first / PANEL_LANES);

    if (p->scale) p->scale += panel * (size_t)packed_blocks(p->cols) * PANEL_LANES;
    p->lines = (const char *)p->lines + panel * (size_t)packed_steps(p->format, p->cols) * LINE_BYTES;
    p->rows = held.n;
}

static status pack_view(struct weights *w, struct packed *out, enum format f, const struct mat *view, struct err *e)
{
    void *lines, *scale = NULL;

    if (!(lines = arena_alloc(w->memory, packed_line_bytes(f, view->rows, view->cols), 1, e))) return e->code;
    if (format_has_scales(f) && !(scale = arena_alloc(w->memory, packed_scale_bytes(f, view->rows, view->cols), 1, e)))
        return e->code;
    pack_matrix(lines, scale, f, view, w->gemm, &w->alive);
    *out = (struct packed){.lines = lines, .scale = scale, .format = f, .rows = view->rows, .cols = view->cols};
    return OK;
}

status weights_matrix(struct weights *w, struct packed *out, enum weight_part part, const char *name, int rows, int cols,
                      struct span held, struct err *e)
{
    enum format f = w->plan.format[part];
    struct mat view;

    BUG_ON(held.first % PANEL_LANES || (held.n % PANEL_LANES && held.first + held.n != rows));
    if (w->plan.packed) {
        if (bind_packed(out, w->file, name, f, rows, cols, e)) return e->code;
        cut_packed(out, held);
        return OK;
    }
    safetensors_trim(w->file, MAPPED_MAX);
    if (weights_view(w, &view, name, rows, cols, e)) return e->code;
    view.data = (const char *)view.data + (size_t)held.first * view.stride * dtype_bytes(view.dtype);
    view.rows = held.n;
    return pack_view(w, out, f, &view, e);
}

status weights_slice(struct weights *w, struct packed *out, enum weight_part part, const char *name, int rows, int cols,
                     int first, int of, struct err *e)
{
    const struct tensor_info *t = safetensors_find(w->file, name);
    bool by_rows = t && t->dims == 2 && t->shape[0] == of && t->shape[1] == cols;
    struct mat view;

    BUG_ON(w->plan.packed);
    safetensors_trim(w->file, MAPPED_MAX);
    if (by_rows ? safetensors_rows(&view, w->file, name, of, cols, first, rows, e)
                : safetensors_mat(&view, w->file, name, rows, of, e))
        return e->code;
    if (!by_rows) {
        view.data = (const char *)view.data + (size_t)first * dtype_bytes(view.dtype);
        view.cols = cols;
    }
    alive_tick(&w->alive);
    if (w->verify && mat_check_finite(&view, name, &w->alive, e)) return e->code;
    return pack_view(w, out, w->plan.format[part], &view, e);
}
