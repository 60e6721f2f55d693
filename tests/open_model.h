/* A model on one rank, opened for a test, and its golden numbers. */
#ifndef TESTS_OPEN_MODEL_H
#define TESTS_OPEN_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "check.h"
#include "data/json.h"
#include "model/forward.h"
#include "model/model.h"

struct opened {
    struct arena *arena;
    struct gemm *gemm;
    struct placement placement;
    struct shape shape;
    struct model *model;
};

static inline status opened_try(struct opened *o, const char *directory, struct model_limits limits, int threads, struct err *e)
{
    *o = (struct opened){0};
    if (shape_read(&o->shape, directory, e)) return e->code;
    if (placement_make(&o->placement, PLACEMENT_BLOCK, o->shape.layers, o->shape.experts, 1, true, e)) return e->code;
    if (arena_open(&o->arena, "test", (size_t)1 << 30, e)) return e->code;
    if (gemm_open(&o->gemm, threads, isa_best(), e)) return e->code;
    return model_open(&o->model, directory, &o->shape, &o->placement, 0, limits, o->gemm, NULL, o->arena, e);
}

static inline void opened_close(struct opened *o)
{
    model_close(o->model);
    gemm_close(o->gemm);
    arena_close(o->arena);
    placement_free(&o->placement);
}

static inline void opened_open(struct opened *o, const char *directory, struct model_limits limits, int threads)
{
    struct err e;

    if (opened_try(o, directory, limits, threads, &e)) fail_msg("%s", e.text);
}

/* FACTORLLM_SHARED/name, or "" if there is nothing: skip_because() then. */
static inline const char *shared_path(char out[512], const char *name)
{
    const char *shared = getenv("FACTORLLM_SHARED");

    snprintf(out, 512, "%s/%s", shared ? shared : "../shared", name);
    FILE *f = fopen(out, "rb");
    if (!f) return "";
    fclose(f);
    return out;
}

static inline int json_ints(int32_t *out, const struct json_t *array, int most)
{
    int n = (int)json_length(array);

    assert_true(n <= most);
    for (int i = 0; i < n; i++) out[i] = (int32_t)json_int(json_item(array, (size_t)i));
    return n;
}

static inline int json_floats(float *out, const struct json_t *array, int most)
{
    int n = (int)json_length(array);

    assert_true(n <= most);
    for (int i = 0; i < n; i++) out[i] = (float)json_number(json_item(array, (size_t)i));
    return n;
}

/* Positions first .. first + n - 1 of one session. */
static inline void run_rows(struct model *m, const int32_t *ids, int first, int n, int session, float *hidden)
{
    int32_t *position = malloc((size_t)n * sizeof(*position)), *sessions = malloc((size_t)n * sizeof(*sessions));
    const struct routing all = {.route = ROUTE_ALL};
    struct err e;

    assert_true(position && sessions);
    for (int i = 0; i < n; i++) position[i] = first + i, sessions[i] = session;
    const struct batch b = {n, ids + first, position, sessions, NULL, NULL, false};
    if (forward(m, &b, &all, 1, hidden, &e)) fail_msg("%s", e.text);
    free(position);
    free(sessions);
}

#endif
