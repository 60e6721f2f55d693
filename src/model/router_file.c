#include "model/router_file.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/directory.h"
#include "base/file.h"
#include "base/rng.h"
#include "data/digest.h"
#include "data/sums.h"
#include "model/router_versions.h"
#include "model/weights.h"

enum { VERSION_MAX = ROUTER_VERSION_MAX };

struct router_form router_form_of(const struct router *r)
{
    return (struct router_form){(int32_t)r->kind, r->rank,     r->mu != NULL,
                                r->scale != NULL, r->low_rank, r->offset && !r->low_rank};
}

status router_alloc(struct router *r, const struct shape *s, struct err *e)
{
    return router_alloc_form(r, s, &(struct router_form){0}, e);
}

status router_alloc_form(struct router *r, const struct shape *s, const struct router_form *form, struct err *e)
{
    float wanted = 0; /* in place of arrays to come: router_parts() lists what is not NULL */
    struct router_part part[ROUTER_PARTS];
    bool linear = form->kind == ROUTER_LINEAR;

    *r = (struct router){.layers = s->layers, .experts = s->experts, .width = s->width};
    if (form->kind < 0 || form->kind >= ROUTER_KINDS || form->rank < !linear || form->rank > (linear ? 0 : s->width))
        return err_set(e, ERR_SPEC, "router: rank: expected 1 to %d, the width of the model, found %d", s->width, form->rank);
    if (form->low_rank < 0 || form->low_rank > s->width)
        return err_set(e, ERR_SPEC, "router: compensation rank: expected 0 to %d, the width of the model, found %d", s->width,
                       form->low_rank);
    r->kind = (enum router_kind)form->kind;
    r->rank = form->rank;
    r->low_rank = form->low_rank;
    if (form->means) r->mu = &wanted;
    if (form->scaled) r->scale = &wanted;
    if (form->constant) r->offset = &wanted;
    int n = router_parts(r, part);
    bool all = true;

    for (int i = 0; i < n; i++) {
        size_t of_layer = part[i].rows * part[i].cols;

        *part[i].where = calloc((size_t)s->layers * of_layer + 1, sizeof(float));
        all = all && *part[i].where;
    }
    for (int l = 0; all && r->scale && l < s->layers; l++) r->scale[l] = 1;
    if (all) return OK;
    router_free(r);
    return err_set(e, ERR_LIMIT, "no memory for a router of %d layers, %d experts, width %d", s->layers, s->experts, s->width);
}

void router_free(struct router *r)
{
    struct router_part part[ROUTER_PARTS];
    int n = router_parts(r, part);

    for (int i = 0; i < n; i++) free(*part[i].where);
    if (r->packed) free((void *)r->packed[0].lines); /* the block of all of them */
    free((void *)r->packed);
    *r = (struct router){0};
}

void router_digest(char hex[65], const struct router *r)
{
    struct router borrowed = *r;
    struct router_part part[ROUTER_PARTS];
    int n = router_parts(&borrowed, part);
    struct str text = {0};

    str_addf(&text, "%d %d\n", (int)r->kind, r->by_threshold);
    for (int i = 0; i < n; i++) {
        char bytes[65];

        digest_bytes(bytes, *part[i].where, (size_t)r->layers * part[i].rows * part[i].cols * sizeof(float));
        str_addf(&text, "%s %zu %zu %s\n", part[i].name, part[i].rows, part[i].cols, bytes);
    }
    digest_bytes(hex, text.text, text.length);
    str_free(&text);
}

/* One matrix of all layers. */
struct packing {
    const float *from;
    int rows, cols;
    enum format format;
};

enum { PACKINGS = 4 };

static void list_packings(struct packing p[PACKINGS], const struct router *r, enum format f)
{
    int n = r->experts, c = r->low_rank, factors = router_factors(r);

    p[0] = (struct packing){r->weight, n, router_inner(r), factors ? FORMAT_F32 : f};
    p[1] = (struct packing){r->factor, factors, r->width, f};
    p[2] = (struct packing){r->inward, c, r->width, FORMAT_F32};
    p[3] = (struct packing){r->outward, c ? r->width : 0, c, FORMAT_F32};
}

static size_t line_multiple(size_t bytes)
{
    return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

/* One block: of every matrix the lines of all layers, then their scales. */
status router_pack(struct router *r, enum format f, struct gemm *g, struct err *e)
{
    struct packing all[PACKINGS];
    size_t layers = (size_t)r->layers, total = LINE_BYTES;
    struct packed *out = calloc(PACKINGS * layers + 1, sizeof(*out));

    BUG_ON(r->packed);
    list_packings(all, r, f);
    for (int i = 0; i < PACKINGS; i++)
        if (all[i].rows)
            total += layers * packed_line_bytes(all[i].format, all[i].rows, all[i].cols) +
                     line_multiple(layers * packed_scale_bytes(all[i].format, all[i].rows, all[i].cols));
    char *memory = aligned_alloc(LINE_BYTES, total), *at = memory;

    if (!out || !memory) {
        free(out);
        free(memory);
        return err_set(e, ERR_LIMIT, "no memory to pack a router of %d layers and %d experts", r->layers, r->experts);
    }
    for (size_t i = 0; i < PACKINGS * layers; i++) {
        const struct packing *p = &all[i / layers];
        size_t l = i % layers, cols = (size_t)p->cols, scale = packed_scale_bytes(p->format, p->rows, p->cols),
               lines = packed_line_bytes(p->format, p->rows, p->cols);

        if (!p->rows) continue;
        const struct mat m = {p->from + l * (size_t)p->rows * cols, DT_F32, p->rows, p->cols, cols};
        uint16_t *s = scale ? (uint16_t *)(void *)(at + layers * lines + l * scale) : NULL;

        pack_matrix(at + l * lines, s, p->format, &m, g, NULL);
        out[i] = (struct packed){at + l * lines, s, p->format, p->rows, p->cols};
        if (l == layers - 1) at += layers * lines + line_multiple(layers * scale);
    }
    r->packed = out;
    return OK;
}

struct router_cost router_cost_of(const struct router *r, const struct shape *s)
{
    double active = 0;

    for (int l = 0; l < s->layers; l++) active += (double)s->active_of[l] / s->layers;
    return router_cost(r, active, s->compensate);
}

struct json_t *router_cost_json(const struct router *r, const struct shape *s)
{
    struct router_cost c = router_cost_of(r, s);
    struct json_t *o = json_object_new();

    json_put_real(o, "scores", c.scores);
    json_put_real(o, "low_rank", c.low_rank);
    json_put_real(o, "additions", c.additions);
    json_put_real(o, "share_of_ffn", (c.scores + c.low_rank + c.additions) / (3.0 * s->width * s->neurons));
    return o;
}

static void draw(float *x, size_t n, double spread, struct rng *g)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(spread * rng_normal(g));
}

void router_random(struct router *r, uint64_t seed)
{
    size_t layers = (size_t)r->layers, rows = layers * (size_t)r->experts;
    struct rng g;

    rng_seed(&g, seed, 0x726f7574);
    draw(r->weight, rows * (size_t)router_inner(r), 0.1 / sqrt(router_inner(r)), &g); /* scores well below 1 on normed states */
    memset(r->bias, 0, rows * sizeof(*r->bias));
    if (r->factor) draw(r->factor, layers * (size_t)router_factors(r) * (size_t)r->width, 1 / sqrt(r->width), &g);
}

static char *version_path(const char *directory, const char *version, const char *suffix)
{
    struct str name = {0};

    str_addf(&name, "routers/%s%s", version, suffix);
    char *path = str_join(directory, name.text);
    str_free(&name);
    return path;
}

status router_current(char version[64], const char *directory, struct err *e)
{
    struct router_history *h = malloc(sizeof(*h));

    BUG_ON(!h);
    status s = router_history_read(h, directory, e);
    snprintf(version, VERSION_MAX, "%s", !s && h->n > 0 ? h->version[0] : "");
    free(h);
    return s;
}

status router_next_version(char version[64], const char *directory, struct err *e)
{
    for (int i = 1; i < 1000000; i++) {
        snprintf(version, VERSION_MAX, "v%d", i);
        char *path = version_path(directory, version, "");
        bool taken = file_exists(path);

        free(path);
        if (!taken) return OK;
    }
    return err_set(e, ERR_LIMIT, "%s/routers: every version up to v999999 is taken", directory);
}

/* The tensors of one layer, in the order in which they stand in the file. */
static void tensor_name(char out[80], int layer, const char *what)
{
    snprintf(out, 80, "model.layers.%d.mlp.router.%s", layer, what);
}

/* What the file's tensors of layer 0 say it is; shapes that fit nothing are refused when they are read. */
static struct router_form form_in(const struct safetensors *f, bool *by_threshold)
{
    static const char *const what[] = {"threshold", "factor", "weight", "mu", "scale", "inward", "projection", "offset"};
    const struct tensor_info *t[8];
    struct router_form form = {0};
    char name[80];

    for (int i = 0; i < 8; i++) {
        tensor_name(name, 0, what[i]);
        t[i] = safetensors_find(f, name);
    }
    *by_threshold = t[0];
    if ((t[1] || t[6]) && t[2] && t[2]->dims == 2 && (t[6] || t[1]->dims == 2)) {
        form.rank = t[2]->shape[1] < INT32_MAX ? (int32_t)t[2]->shape[1] : INT32_MAX;
        form.kind = t[6] ? ROUTER_LOW_RANK : t[1]->shape[0] == t[2]->shape[1] ? ROUTER_BOTTLENECK : ROUTER_GATE;
    }
    form.means = t[3] != NULL;
    form.scaled = t[4] != NULL;
    form.constant = t[7] && !t[5];
    if (t[5] && t[5]->dims > 0) form.low_rank = t[5]->shape[0] < INT32_MAX ? (int32_t)t[5]->shape[0] : INT32_MAX;
    return form;
}

static bool is_kept(const struct router *r, const struct router_part *p)
{
    return r->by_threshold || p->where != &r->threshold;
}

static status check_finite(const struct mat *m, const char *path, const char *name, struct err *e)
{
    struct str where = {0};

    str_addf(&where, "%s: %s", path, name);
    status code = mat_check_finite(m, where.text, NULL, e);
    str_free(&where);
    return code;
}

static status read_layer(struct router *r, struct safetensors *f, const char *path, int layer, struct err *e)
{
    struct router_part part[ROUTER_PARTS];
    int n = router_parts(r, part);
    struct mat m;
    char name[80];

    for (int i = 0; i < n; i++) {
        size_t of_layer = part[i].rows * part[i].cols;

        if (!is_kept(r, &part[i])) continue;
        tensor_name(name, layer, part[i].name);
        if (safetensors_mat(&m, f, name, (int)part[i].rows, (int)part[i].cols, e)) return e->code;
        if (check_finite(&m, path, name, e)) return e->code;
        mat_widen(*part[i].where + (size_t)layer * of_layer, &m, 0, (int)part[i].rows);
    }
    return OK;
}

status router_read(struct router *r, const char *directory, const char *version, const struct shape *s, struct err *e)
{
    char current[VERSION_MAX];
    struct safetensors *f = NULL;
    bool by_threshold;

    *r = (struct router){0};
    if (!s->experts) return err_set(e, ERR_SPEC, "%s: is a dense model, it has no router", directory);
    if (!version) {
        if (router_current(current, directory, e)) return e->code;
        if (!current[0])
            return err_set(e, ERR_IO, "%s: has no router yet (no routers/current): run a finetune job on it first", directory);
        version = current;
    }
    if (router_find(directory, version, e)) return e->code;
    char *path = version_path(directory, version, "/router.safetensors");
    status code = safetensors_open(&f, path, e);

    if (code) goto done;
    struct router_form form = form_in(f, &by_threshold);

    if ((code = router_alloc_form(r, s, &form, e))) {
        if (code == ERR_SPEC) code = err_set(e, ERR_FORMAT, "%s: its tensors fit no router of this model", path);
        goto done;
    }
    r->by_threshold = by_threshold;
    for (int l = 0; l < s->layers; l++)
        if ((code = read_layer(r, f, path, l, e))) goto done;

done:
    free(path);
    safetensors_close(f);
    if (code) router_free(r);
    return code;
}

static status write_tensors(const struct router *r, const char *path, struct err *e)
{
    struct router copy = *r;
    struct router_part part[ROUTER_PARTS];
    struct safetensors_writer *w;
    int n = router_parts(&copy, part);
    char name[80];

    if (safetensors_create_file(&w, path, e)) return e->code;
    for (int i = 0; i < r->layers * n; i++) {
        const struct router_part *p = &part[i % n];
        int64_t both[2] = {(int64_t)p->rows, (int64_t)p->cols};
        bool vector =
            p->where == &copy.bias || p->where == &copy.threshold || p->where == &copy.offset || p->where == &copy.scale;

        tensor_name(name, i / n, p->name);
        if (is_kept(&copy, p)) safetensors_declare(w, name, DT_F32, vector ? 1 : 2, vector ? both + 1 : both);
    }
    for (int i = 0; i < r->layers * n; i++) {
        const struct router_part *p = &part[i % n];
        size_t of_layer = p->rows * p->cols;

        if (!is_kept(&copy, p)) continue;
        if (safetensors_write(w, *p->where + (size_t)(i / n) * of_layer, of_layer * sizeof(float), e)) {
            safetensors_abandon(w);
            return e->code;
        }
    }
    return safetensors_commit(w, e);
}

status router_write(const struct router *r, const char *directory, const char *version, const struct json_t *about, bool promote,
                    struct err *e)
{
    char suffix[32];
    struct err ignored;

    if (router_check_version(version, e)) return e->code;
    if (!strcmp(version, "current"))
        return err_set(e, ERR_SPEC, "router version: \"current\" is the file that names the one in use");
    snprintf(suffix, sizeof(suffix), ".tmp-%ld", (long)getpid());
    char *path = version_path(directory, version, ""), *temporary = version_path(directory, version, suffix);
    char *tensors = str_join(temporary, "router.safetensors"), *description = str_join(temporary, "router.json");
    status s = file_make_directory(temporary, e);

    if (!s) s = write_tensors(r, tensors, e);
    if (!s) s = json_write(description, about, e);
    if (!s) s = sums_write(temporary, NULL, e);
    if (!s) s = directory_replace(temporary, path, e);
    if (s) directory_remove(temporary, &ignored);
    if (!s && promote) s = router_promote(directory, version, e);
    free(path);
    free(temporary);
    free(tensors);
    free(description);
    return s;
}
