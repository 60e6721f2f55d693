#include "jobs/factorize_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/stop.h"
#include "moe/grouping.h"

/* The tensors of the new model in the order in which they stand in the file. */
enum what { COPY, GATE, UP, DOWN, COMPENSATION };

struct item {
    enum what what;
    int layer, expert;              /* expert -1: the shared one */
    const struct tensor_info *from; /* COPY */
};

struct writing {
    struct job *job;
    struct alive alive;
    const struct cut *cut;
    struct safetensors *from;
    struct safetensors_writer *to;
    struct item *items;
    size_t n_items, room;
    struct mat gate, up, down; /* of the layer at hand */
    int layer;
    char *gathered; /* the down matrix of one expert */
    size_t gathered_room;
    float *mu; /* [experts][width] of the layer at hand */
    double done, total;
};

static void add(struct writing *w, struct item item)
{
    if (w->n_items == w->room) {
        w->room = w->room ? 2 * w->room : 256;
        w->items = realloc(w->items, w->room * sizeof(*w->items));
        BUG_ON(!w->items);
    }
    w->items[w->n_items++] = item;
}

static bool is_ffn(const char *behind_layer)
{
    return !strcmp(behind_layer, "mlp.gate_proj.weight") || !strcmp(behind_layer, "mlp.up_proj.weight") ||
           !strcmp(behind_layer, "mlp.down_proj.weight");
}

static bool can_copy(const struct tensor_info *t)
{
    return (t->dims == 1 || t->dims == 2) && (!strcmp(t->dtype, "F32") || !strcmp(t->dtype, "F16") || !strcmp(t->dtype, "BF16"));
}

/* Tensors beside the FFNs that begin with `prefix`, or with none of the layers' prefixes if it is NULL. */
static void list_copies(struct writing *w, const char *prefix, int layer)
{
    size_t length = prefix ? strlen(prefix) : 0;

    for (size_t i = 0; i < safetensors_count(w->from); i++) {
        const struct tensor_info *t = safetensors_info(w->from, i);

        if (prefix ? strncmp(t->name, prefix, length) || is_ffn(t->name + length) : !strncmp(t->name, "model.layers.", 13))
            continue;
        if (can_copy(t)) add(w, (struct item){.what = COPY, .layer = layer, .from = t});
        else log_warn(w->job->log, "%s: tensor %s (%s, %d dimensions) is left out", t->file, t->name, t->dtype, t->dims);
    }
}

static void list_items(struct writing *w)
{
    const struct cut *c = w->cut;

    list_copies(w, NULL, -1);
    for (int l = 0; l < c->dense->layers; l++) {
        char prefix[64];

        snprintf(prefix, sizeof(prefix), "model.layers.%d.", l);
        list_copies(w, prefix, l);
        for (int i = c->shared[l] ? -1 : 0; i < c->experts; i++)
            for (enum what what = GATE; what <= DOWN; what++) add(w, (struct item){.what = what, .layer = l, .expert = i});
        if (c->compensate) add(w, (struct item){.what = COMPENSATION, .layer = l});
    }
}

/* The neurons of an item's expert: where they begin in the new order, and how many. */
static int neurons_of(const struct cut *c, int expert, const int **order, int layer)
{
    int f = c->dense->neurons;
    int begin = expert < 0 ? 0 : group_begin(f, c->shared[layer], c->experts, expert);

    *order = c->order + (size_t)layer * (size_t)f + begin;
    return expert < 0 ? c->shared[layer] : group_size(f, c->shared[layer], c->experts, expert);
}

/* Binds the FFN of a layer, if it is not the one at hand. */
static status take_layer(struct writing *w, int layer, bool check, struct err *e)
{
    static const char *const names[] = {"gate", "up", "down"};
    struct mat *mats[] = {&w->gate, &w->up, &w->down};
    const struct shape *s = w->cut->dense;
    char name[96];

    if (w->layer == layer) return OK;
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.%s_proj.weight", layer, names[i]);
        if (safetensors_mat(mats[i], w->from, name, i < 2 ? s->neurons : s->width, i < 2 ? s->width : s->neurons, e))
            return e->code;
        if (check && w->job->spec->verify_weights && mat_check_finite(mats[i], name, &w->alive, e)) return e->code;
    }
    w->layer = layer;
    return OK;
}

static status declare(struct writing *w, struct err *e)
{
    static const char *const names[] = {[GATE] = "gate", [UP] = "up", [DOWN] = "down"};
    const struct shape *s = w->cut->dense;
    const int *order;
    char name[128];

    for (size_t i = 0; i < w->n_items; i++) {
        const struct item *t = &w->items[i];

        if (t->what == COPY) {
            enum dtype d = !strcmp(t->from->dtype, "F32") ? DT_F32 : !strcmp(t->from->dtype, "F16") ? DT_F16 : DT_BF16;

            safetensors_declare(w->to, t->from->name, d, t->from->dims, t->from->shape);
            w->total += (double)t->from->bytes;
            continue;
        }
        if (take_layer(w, t->layer, false, e)) return e->code;
        if (t->what == COMPENSATION) {
            snprintf(name, sizeof(name), "model.layers.%d.mlp.compensation", t->layer);
            safetensors_declare(w->to, name, DT_F32, 2, (int64_t[]){w->cut->experts, s->width});
            w->total += (double)w->cut->experts * s->width * 4;
            continue;
        }
        enum dtype d = t->what == GATE ? w->gate.dtype : t->what == UP ? w->up.dtype : w->down.dtype;
        int n = neurons_of(w->cut, t->expert, &order, t->layer);
        if (t->expert < 0)
            snprintf(name, sizeof(name), "model.layers.%d.mlp.shared_expert.%s_proj.weight", t->layer, names[t->what]);
        else snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%d.%s_proj.weight", t->layer, t->expert, names[t->what]);
        safetensors_declare(w->to, name, d, 2, t->what == DOWN ? (int64_t[]){s->width, n} : (int64_t[]){n, s->width});
        w->total += (double)n * s->width * (double)dtype_bytes(d);
    }
    return OK;
}

static status copy(struct writing *w, const struct tensor_info *t, struct err *e)
{
    int rows = t->dims == 2 ? (int)t->shape[0] : 1, cols = (int)t->shape[t->dims - 1];
    struct mat m;

    if (safetensors_mat(&m, w->from, t->name, rows, cols, e)) return e->code;
    if (w->job->spec->verify_weights && mat_check_finite(&m, t->name, &w->alive, e)) return e->code;
    return safetensors_write(w->to, m.data, t->bytes, e);
}

static status write_rows(struct writing *w, const struct mat *m, const int *order, int n, struct err *e)
{
    size_t row = m->stride * dtype_bytes(m->dtype);

    for (int i = 0; i < n; i++)
        if (safetensors_write(w->to, (const char *)m->data + (size_t)order[i] * row, row, e)) return e->code;
    return OK;
}

/* Columns order[0 .. n-1] of the down matrix. */
static status write_columns(struct writing *w, const int *order, int n, struct err *e)
{
    const struct mat *m = &w->down;
    size_t element = dtype_bytes(m->dtype), bytes = (size_t)m->rows * (size_t)n * element;
    char *to;

    if (bytes > w->gathered_room) {
        free(w->gathered);
        w->gathered = malloc(bytes);
        BUG_ON(!w->gathered);
        w->gathered_room = bytes;
    }
    to = w->gathered;
    for (int d = 0; d < m->rows; d++) {
        const char *row = (const char *)m->data + (size_t)d * m->stride * element;

        for (int i = 0; i < n; i++, to += element) memcpy(to, row + (size_t)order[i] * element, element);
    }
    return safetensors_write(w->to, w->gathered, bytes, e);
}

/* mu of an expert: the mean of its output is its down matrix times the mean of its neurons. */
static void mean_output(float *mu, const struct cut *c, int layer, const struct mat *down, const int *order, int n)
{
    for (int d = 0; d < down->rows; d++) {
        double sum = 0;

        for (int i = 0; i < n; i++) sum += calibration_mean(&c->calibration, layer, order[i]) * mat_at(down, d, order[i]);
        mu[d] = (float)sum;
    }
}

static status write_item(struct writing *w, const struct item *t, struct err *e)
{
    const struct cut *c = w->cut;
    size_t width = (size_t)c->dense->width;
    const int *order;

    if (t->what == COPY) return copy(w, t->from, e);
    if (take_layer(w, t->layer, true, e)) return e->code;
    if (t->what == COMPENSATION) return safetensors_write(w->to, w->mu, (size_t)c->experts * width * sizeof(float), e);
    int n = neurons_of(c, t->expert, &order, t->layer);
    if (t->what == GATE) return write_rows(w, &w->gate, order, n, e);
    if (t->what == UP) return write_rows(w, &w->up, order, n, e);
    if (c->compensate && t->expert >= 0) mean_output(w->mu + (size_t)t->expert * width, c, t->layer, &w->down, order, n);
    return write_columns(w, order, n, e);
}

static size_t item_bytes(const struct writing *w, const struct item *t)
{
    const int *order;

    if (t->what == COPY) return t->from->bytes;
    if (t->what == COMPENSATION) return (size_t)w->cut->experts * (size_t)w->cut->dense->width * sizeof(float);
    const struct mat *m = t->what == GATE ? &w->gate : t->what == UP ? &w->up : &w->down;
    return (size_t)neurons_of(w->cut, t->expert, &order, t->layer) * (size_t)w->cut->dense->width * dtype_bytes(m->dtype);
}

status write_experts(struct job *j, const struct cut *c, struct safetensors *from, const char *directory, struct err *e)
{
    struct writing w = {.job = j, .alive = {cluster_tick, j->cluster}, .cut = c, .from = from, .layer = -1};
    status s = safetensors_create(&w.to, directory, (size_t)j->spec->factorize.shard_mib << 20, e);

    if (!s) safetensors_alive(w.to, w.alive);
    if (!s) safetensors_metadata(w.to, "format", "pt"); /* Python's readers ask for it */
    w.mu = malloc((size_t)c->experts * (size_t)c->dense->width * sizeof(*w.mu));
    if (!s && !w.mu) s = err_set(e, ERR_LIMIT, "no memory for the compensation of %d experts", c->experts);
    if (!s) list_items(&w);
    if (!s) s = declare(&w, e);
    w.layer = -1;
    for (size_t i = 0; !s && i < w.n_items; i++) {
        if (stop_asked()) s = err_set(e, STOPPED, "%s: stopped while writing; run it again", j->spec->source);
        cluster_alive(j->cluster);
        if (!s) s = write_item(&w, &w.items[i], e);
        if (!s) w.done += (double)item_bytes(&w, &w.items[i]);
        log_progress(j->log, "write", w.done, w.total, "%.1f of %.1f MiB", w.done / 0x1p20, w.total / 0x1p20);
    }
    log_progress_end(j->log);
    if (s) safetensors_abandon(w.to);
    else s = safetensors_commit(w.to, e);
    free(w.items);
    free(w.gathered);
    free(w.mu);
    return s;
}

status write_calibration(const struct cut *c, const char *directory, struct err *e)
{
    struct safetensors_writer *w;
    size_t f = (size_t)c->dense->neurons;
    char *path = str_join(directory, "calibration.safetensors"), name[96];
    float *row = malloc(f * sizeof(*row));
    status s = safetensors_create_file(&w, path, e);

    BUG_ON(!row);
    free(path);
    for (int l = 0; !s && l < c->dense->layers; l++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_mean", l);
        safetensors_declare(w, name, DT_F32, 1, (int64_t[]){(int64_t)f});
        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_importance", l);
        safetensors_declare(w, name, DT_F32, 1, (int64_t[]){(int64_t)f});
    }
    for (int l = 0; !s && l < c->dense->layers; l++) {
        const int *order = c->order + (size_t)l * f;

        for (size_t i = 0; i < f; i++) row[i] = (float)calibration_mean(&c->calibration, l, order[i]);
        s = safetensors_write(w, row, f * sizeof(*row), e);
        for (size_t i = 0; i < f; i++) row[i] = (float)calibration_importance(&c->calibration, l, order[i]);
        if (!s) s = safetensors_write(w, row, f * sizeof(*row), e);
    }
    if (s) safetensors_abandon(w);
    else s = safetensors_commit(w, e);
    free(row);
    return s;
}

status write_permutation(const struct cut *c, const char *directory, struct err *e)
{
    struct str text = {0};
    int f = c->dense->neurons;
    char *path = str_join(directory, "permutation.json");

    str_addz(&text, "{\"layers\":[");
    for (int l = 0; l < c->dense->layers; l++) {
        str_addz(&text, l ? ",\n[" : "\n[");
        for (int i = 0; i < f; i++) str_addf(&text, i ? ",%d" : "%d", c->order[(size_t)l * (size_t)f + (size_t)i]);
        str_addz(&text, "]");
    }
    str_addz(&text, "\n]}\n");
    status s = file_write(path, text.text, text.length, e);
    str_free(&text);
    free(path);
    return s;
}
