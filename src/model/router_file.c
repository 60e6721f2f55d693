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
#include "model/router_versions.h"
#include "model/weights.h"

enum { VERSION_MAX = ROUTER_VERSION_MAX };

status router_alloc(struct router *r, const struct shape *s, struct err *e)
{
    size_t rows = (size_t)s->layers * (size_t)s->experts;

    *r = (struct router){.layers = s->layers, .experts = s->experts, .width = s->width};
    r->weight = calloc(rows ? rows : 1, (size_t)s->width * sizeof(*r->weight));
    r->bias = calloc(rows ? rows : 1, sizeof(*r->bias));
    r->threshold = calloc((size_t)s->layers, sizeof(*r->threshold));
    if (r->weight && r->bias && r->threshold) return OK;
    router_free(r);
    return err_set(e, ERR_LIMIT, "no memory for a router of %d layers, %d experts, width %d", s->layers, s->experts, s->width);
}

void router_free(struct router *r)
{
    free(r->weight);
    free(r->bias);
    free(r->threshold);
    if (r->packed) free((void *)r->packed[0].lines); /* of all layers */
    free((void *)r->packed);
    *r = (struct router){0};
}

/* One block: lines of all layers, then their scales. */
status router_pack(struct router *r, enum format f, struct gemm *g, struct err *e)
{
    size_t lines = packed_line_bytes(f, r->experts, r->width), scale = packed_scale_bytes(f, r->experts, r->width);
    size_t layers = (size_t)r->layers, element = (size_t)r->experts * (size_t)r->width;
    struct packed *out = calloc(layers + 1, sizeof(*out));
    char *memory = aligned_alloc(LINE_BYTES, layers * lines + (layers * scale + LINE_BYTES) / LINE_BYTES * LINE_BYTES);

    BUG_ON(r->packed);
    if (!out || !memory) {
        free(out);
        free(memory);
        return err_set(e, ERR_LIMIT, "no memory to pack a router of %d layers and %d experts", r->layers, r->experts);
    }
    for (size_t l = 0; l < layers; l++) {
        const struct mat m = {r->weight + l * element, DT_F32, r->experts, r->width, (size_t)r->width};
        uint16_t *s = scale ? (uint16_t *)(void *)(memory + layers * lines + l * scale) : NULL;

        pack_matrix(memory + l * lines, s, f, &m, g, NULL);
        out[l] = (struct packed){memory + l * lines, s, f, r->experts, r->width};
    }
    r->packed = out;
    return OK;
}

void router_random(struct router *r, uint64_t seed)
{
    size_t rows = (size_t)r->layers * (size_t)r->experts, n = rows * (size_t)r->width;
    double small = 0.1 / sqrt(r->width); /* scores well below 1 on normed states */
    struct rng g;

    rng_seed(&g, seed, 0x726f7574);
    for (size_t i = 0; i < n; i++) r->weight[i] = (float)(small * rng_normal(&g));
    memset(r->bias, 0, rows * sizeof(*r->bias));
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

static status read_layer(struct router *r, struct safetensors *f, int layer, struct err *e)
{
    size_t n = (size_t)r->experts;
    struct mat m;
    char name[80];

    tensor_name(name, layer, "weight");
    if (safetensors_mat(&m, f, name, r->experts, r->width, e) || mat_check_finite(&m, name, NULL, e)) return e->code;
    mat_widen(r->weight + (size_t)layer * n * (size_t)r->width, &m, 0, r->experts);
    tensor_name(name, layer, "bias");
    if (safetensors_mat(&m, f, name, 1, r->experts, e) || mat_check_finite(&m, name, NULL, e)) return e->code;
    mat_widen(r->bias + (size_t)layer * n, &m, 0, 1);
    if (!r->by_threshold) return OK;
    tensor_name(name, layer, "threshold");
    if (safetensors_mat(&m, f, name, 1, 1, e) || mat_check_finite(&m, name, NULL, e)) return e->code;
    mat_widen(r->threshold + layer, &m, 0, 1);
    return OK;
}

status router_read(struct router *r, const char *directory, const char *version, const struct shape *s, struct err *e)
{
    char current[VERSION_MAX], name[80];
    struct safetensors *f = NULL;

    *r = (struct router){0};
    if (!s->experts) return err_set(e, ERR_SPEC, "%s: is a dense model, it has no router", directory);
    if (!version) {
        if (router_current(current, directory, e)) return e->code;
        if (!current[0])
            return err_set(e, ERR_IO, "%s: has no router yet (no routers/current): run a finetune job on it first", directory);
        version = current;
    }
    if (router_check_version(version, e)) return e->code;
    char *path = version_path(directory, version, "/router.safetensors");
    status code = safetensors_open(&f, path, e);

    free(path);
    if (code) return code;
    if ((code = router_alloc(r, s, e))) goto done;
    tensor_name(name, 0, "threshold");
    r->by_threshold = safetensors_find(f, name) != NULL;
    for (int l = 0; l < s->layers; l++)
        if ((code = read_layer(r, f, l, e))) goto done;

done:
    safetensors_close(f);
    if (code) router_free(r);
    return code;
}

static status write_tensors(const struct router *r, const char *path, struct err *e)
{
    struct safetensors_writer *w;
    size_t n = (size_t)r->experts, width = (size_t)r->width;
    int64_t shape[2] = {r->experts, r->width}, one = 1;
    char name[80];

    if (safetensors_create_file(&w, path, e)) return e->code;
    for (int l = 0; l < r->layers; l++) {
        tensor_name(name, l, "weight");
        safetensors_declare(w, name, DT_F32, 2, shape);
        tensor_name(name, l, "bias");
        safetensors_declare(w, name, DT_F32, 1, shape);
        tensor_name(name, l, "threshold");
        if (r->by_threshold) safetensors_declare(w, name, DT_F32, 1, &one);
    }
    for (size_t l = 0; l < (size_t)r->layers; l++)
        if (safetensors_write(w, r->weight + l * n * width, n * width * sizeof(float), e) ||
            safetensors_write(w, r->bias + l * n, n * sizeof(float), e) ||
            (r->by_threshold && safetensors_write(w, r->threshold + l, sizeof(float), e))) {
            safetensors_abandon(w);
            return e->code;
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
    if (!s) s = directory_replace(temporary, path, e);
    if (s) directory_remove(temporary, &ignored);
    if (!s && promote) s = router_promote(directory, version, e);
    free(path);
    free(temporary);
    free(tensors);
    free(description);
    return s;
}
