/* oneDNN, loaded at run time; its header gives the types. */
#include "num/rivals_library.h"

#if defined __has_include
#if __has_include(<oneapi/dnnl/dnnl.h>)
#include <oneapi/dnnl/dnnl.h>
#if DNNL_VERSION_MAJOR == 2
#define HAVE_DNNL 1
#endif
#endif
#endif

#ifdef HAVE_DNNL

#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mat.h"

/* Inputs in 7 bits around 64, see rivals.h. */
enum { U8_ZERO = 64, U8_RANGE = 63 };
enum { OMP_PAUSE_HARD = 2 }; /* of OpenMP's own header, which not every compiler has */

/* The calls that are used, without their prefix. */
/* clang-format off */
#define CALLS(X)                                                                                                        \
    X(version) X(engine_create) X(engine_destroy) X(stream_create) X(stream_destroy) X(stream_wait) X(memory_create)   \
    X(memory_destroy) X(memory_get_data_handle) X(memory_desc_init_by_tag) X(inner_product_forward_desc_init)          \
    X(matmul_desc_init) X(primitive_desc_create) X(primitive_desc_destroy) X(primitive_desc_query)                     \
    X(primitive_desc_query_md) X(reorder_primitive_desc_create) X(primitive_create) X(primitive_destroy)               \
    X(primitive_execute)
/* clang-format on */

/* The library has two operations for a product, and which is faster depends on the shape and the processor. */
enum operation { INNER_PRODUCT, MATMUL, OPERATIONS };

struct dnnl {
    void *handle;
#define MEMBER(name) __typeof__(dnnl_##name) *name;
    CALLS(MEMBER)
#undef MEMBER
    void (*set_threads)(int n);
    int (*pause)(int how); /* ends the OpenMP runtime's threads; may be missing */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t product;
    dnnl_memory_t x, y, *w; /* w in the layout that the product wants */
    int copies;             /* of w */
    const char *chosen;     /* the library's name for the implementation */
    float x_scale;
    float *w_scale;   /* u8s8: of each row of weights */
    int32_t *w_shift; /* u8s8: what the inputs' zero point adds to its sums */
};

static status failed(const struct rival *r, dnnl_status_t s, struct err *e)
{
    return err_set(e, ERR_LIMIT, "%s: %s", rival_name(r->kind),
                   s == dnnl_unimplemented   ? "the library has no implementation for this processor"
                   : s == dnnl_out_of_memory ? "no memory"
                                             : "the library fails");
}

static status onednn_open(struct rival *r, struct err *e)
{
    struct dnnl *d = r->own;
    dnnl_status_t s;

    /* never unloaded: its OpenMP runtime may keep threads, which would be left without code */
    d->handle = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!d->handle) return rival_absent("oneDNN", "libdnnl2", e);
#define FIND(name)                                                                                                               \
    if (!(*(void **)&d->name = dlsym(d->handle, "dnnl_" #name))) return err_set(e, ERR_IO, "oneDNN lacks dnnl_" #name);
    CALLS(FIND)
#undef FIND
    *(void **)&d->set_threads = dlsym(d->handle, "omp_set_num_threads");
    *(void **)&d->pause = dlsym(d->handle, "omp_pause_resource_all");
    if (!d->set_threads) return err_set(e, ERR_IO, "oneDNN is built without OpenMP here, its number of threads cannot be set");
    if ((s = d->engine_create(&d->engine, dnnl_cpu, 0)) ||
        (s = d->stream_create(&d->stream, d->engine, dnnl_stream_default_flags)))
        return failed(r, s, e);
    snprintf(r->about, sizeof(r->about), "oneDNN %d.%d.%d", d->version()->major, d->version()->minor, d->version()->patch);
    return OK;
}

/* The product and its buffers; what the weights were narrowed with stays. */
static void drop_product(struct dnnl *d)
{
    for (int i = 0; d->w && i < d->copies; i++)
        if (d->w[i]) d->memory_destroy(d->w[i]);
    free(d->w);
    d->w = NULL;
    if (d->x) d->memory_destroy(d->x);
    if (d->y) d->memory_destroy(d->y);
    if (d->product) d->primitive_destroy(d->product);
    d->x = d->y = NULL;
    d->product = NULL;
}

static void drop_scales(struct dnnl *d)
{
    free(d->w_scale);
    free(d->w_shift);
    d->w_scale = NULL;
    d->w_shift = NULL;
}

static void onednn_close(struct rival *r)
{
    struct dnnl *d = r->own;

    drop_product(d);
    drop_scales(d);
    if (d->stream) d->stream_destroy(d->stream);
    if (d->engine) d->engine_destroy(d->engine);
    if (d->pause) d->pause(OMP_PAUSE_HARD);
    if (d->handle) dlclose(d->handle);
}

static dnnl_data_type_t element(enum rival_kind kind, bool weight)
{
    return kind == RIVAL_ONEDNN_BF16 ? dnnl_bf16 : kind == RIVAL_ONEDNN_F32 ? dnnl_f32 : weight ? dnnl_s8 : dnnl_u8;
}

static size_t element_bytes(enum rival_kind kind)
{
    return kind == RIVAL_ONEDNN_F32 ? 4 : kind == RIVAL_ONEDNN_BF16 ? 2 : 1;
}

static void *data_of(const struct dnnl *d, dnnl_memory_t m)
{
    void *p = NULL;

    BUG_ON(d->memory_get_data_handle(m, &p));
    return p;
}

/* ---- weights ---- */

static void narrow_row_s8(struct dnnl *d, int8_t *out, const float *w, size_t row, size_t k)
{
    float most = 0.0f;

    for (size_t j = 0; j < k; j++) most = fmaxf(most, fabsf(w[j]));
    d->w_scale[row] = most / 127.0f;
    d->w_shift[row] = 0;
    for (size_t j = 0; j < k; j++) {
        out[j] = (int8_t)(most > 0.0f ? lrintf(w[j] * (127.0f / most)) : 0);
        d->w_shift[row] += U8_ZERO * out[j];
    }
}

/* w in the element type, row-major, to be freed; NULL: no memory. */
static void *narrow_weights(struct rival *r, const float *w)
{
    size_t n = (size_t)r->shape.n, k = (size_t)r->shape.k;
    struct dnnl *d = r->own;
    void *out = rival_floats(n * k); /* more than the narrow ones need */

    if (r->kind == RIVAL_ONEDNN_U8S8) {
        d->w_scale = rival_floats(n);
        d->w_shift = calloc(n, sizeof(*d->w_shift));
    }
    if (!out || (r->kind == RIVAL_ONEDNN_U8S8 && (!d->w_scale || !d->w_shift))) {
        free(out);
        return NULL;
    }
    if (r->kind == RIVAL_ONEDNN_F32) memcpy(out, w, n * k * sizeof(*w));
    else if (r->kind == RIVAL_ONEDNN_BF16)
        for (size_t i = 0; i < n * k; i++) ((uint16_t *)out)[i] = narrow_bf16(w[i]);
    else
        for (size_t i = 0; i < n; i++) narrow_row_s8(d, (int8_t *)out + i * k, w + i * k, i, k);
    return out;
}

/* Puts row-major weights into the layout `want`, once per copy.  To matmul they are the transpose of an inner product's. */
static dnnl_status_t place_weights(struct rival *r, enum operation op, void *plain, const dnnl_memory_desc_t *want)
{
    const dnnl_dims_t nk = {r->shape.n, r->shape.k}, kn = {r->shape.k, r->shape.n};
    struct dnnl *d = r->own;
    dnnl_memory_desc_t md;
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_status_t s =
        d->memory_desc_init_by_tag(&md, 2, op == MATMUL ? kn : nk, element(r->kind, true), op == MATMUL ? dnnl_ba : dnnl_ab);

    if (!s) s = d->memory_create(&from, &md, d->engine, plain);
    if (!s) s = d->reorder_primitive_desc_create(&pd, &md, d->engine, want, d->engine, NULL);
    if (!s) s = d->primitive_create(&reorder, pd);
    for (int i = 0; !s && i < d->copies; i++) {
        s = d->memory_create(&d->w[i], want, d->engine, DNNL_MEMORY_ALLOCATE);
        if (!s)
            s = d->primitive_execute(reorder, d->stream, 2, (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, d->w[i]}});
        if (!s) s = d->stream_wait(d->stream);
    }
    if (reorder) d->primitive_destroy(reorder);
    if (pd) d->primitive_desc_destroy(pd);
    if (from) d->memory_destroy(from);
    return s;
}

/* ---- the product ---- */

/* The implementation that the library likes best for the shape; *want: the layout of the weights that it wants. */
static dnnl_status_t make_primitive(struct rival *r, enum operation op, const dnnl_memory_desc_t *x, const dnnl_memory_desc_t *y,
                                    dnnl_memory_desc_t *want)
{
    const dnnl_dims_t nk = {r->shape.n, r->shape.k}, kn = {r->shape.k, r->shape.n};
    struct dnnl *d = r->own;
    dnnl_memory_desc_t w;
    dnnl_inner_product_desc_t inner;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = d->memory_desc_init_by_tag(&w, 2, op == MATMUL ? kn : nk, element(r->kind, true), dnnl_format_tag_any);

    if (s) return s;
    if (op == MATMUL) s = d->matmul_desc_init(&matmul, x, &w, NULL, y);
    else s = d->inner_product_forward_desc_init(&inner, dnnl_forward_inference, x, &w, NULL, y);
    if (!s) s = d->primitive_desc_create(&pd, op == MATMUL ? (void *)&matmul : (void *)&inner, NULL, d->engine, NULL);
    if (s) return s;
    *want = *d->primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    d->primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &d->chosen);
    s = d->primitive_create(&d->product, pd);
    d->primitive_desc_destroy(pd);
    return s;
}

static dnnl_status_t make_product(struct rival *r, enum operation op, void *plain)
{
    const dnnl_dims_t xd = {r->shape.rows, r->shape.k}, yd = {r->shape.rows, r->shape.n};
    struct dnnl *d = r->own;
    dnnl_memory_desc_t x, y, want;
    dnnl_status_t s;

    drop_product(d);
    d->copies = r->shape.copies;
    d->w = calloc((size_t)d->copies, sizeof(*d->w));
    if (!d->w) return dnnl_out_of_memory;
    s = d->memory_desc_init_by_tag(&x, 2, xd, element(r->kind, false), dnnl_ab);
    if (!s) s = d->memory_desc_init_by_tag(&y, 2, yd, r->kind == RIVAL_ONEDNN_U8S8 ? dnnl_s32 : dnnl_f32, dnnl_ab);
    if (!s) s = make_primitive(r, op, &x, &y, &want);
    if (!s) s = d->memory_create(&d->x, &x, d->engine, DNNL_MEMORY_ALLOCATE);
    if (!s) s = d->memory_create(&d->y, &y, d->engine, DNNL_MEMORY_ALLOCATE);
    if (!s) s = place_weights(r, op, plain, &want);
    if (!s) memset(data_of(d, d->x), 0, (size_t)r->shape.rows * (size_t)r->shape.k * element_bytes(r->kind));
    return s;
}

static dnnl_status_t execute(struct dnnl *d, int copy)
{
    const dnnl_exec_arg_t arg[] = {{DNNL_ARG_SRC, d->x}, {DNNL_ARG_WEIGHTS, d->w[copy]}, {DNNL_ARG_DST, d->y}};
    dnnl_status_t s = d->primitive_execute(d->product, d->stream, 3, arg);

    return s ? s : d->stream_wait(d->stream);
}

/* Seconds of the best of some runs; the first one, which makes buffers, does not count. */
static double time_product(struct dnnl *d)
{
    double best = INFINITY, spent = 0.0;

    for (int i = 0; i < 30 && (i < 4 || spent < 0.2); i++) {
        double start = clock_now(), took;

        if (execute(d, i % d->copies)) return INFINITY;
        took = clock_now() - start;
        spent += took;
        if (i) best = fmin(best, took);
    }
    return best;
}

/* The faster of the two operations. */
static dnnl_status_t choose_product(struct rival *r, void *plain)
{
    static const char *const name[OPERATIONS] = {"inner product", "matmul"};
    struct dnnl *d = r->own;
    double seconds[OPERATIONS];
    enum operation best = INNER_PRODUCT;
    dnnl_status_t s[OPERATIONS];

    for (enum operation op = INNER_PRODUCT; op < OPERATIONS; op++) {
        s[op] = make_product(r, op, plain);
        seconds[op] = s[op] ? INFINITY : time_product(d);
        if (seconds[op] < seconds[best]) best = op;
    }
    if (best != MATMUL && !s[best]) s[best] = make_product(r, best, plain);
    if (s[best]) return s[best];
    snprintf(r->about, sizeof(r->about), "oneDNN %d.%d.%d, %s, %s by %s for %d x %d x %d, %d thread%s", d->version()->major,
             d->version()->minor, d->version()->patch, rival_name(r->kind) + strlen("onednn "), name[best], d->chosen,
             r->shape.rows, r->shape.n, r->shape.k, r->threads, r->threads == 1 ? "" : "s");
    return dnnl_success;
}

static status onednn_prepare(struct rival *r, const float *w, struct err *e)
{
    struct dnnl *d = r->own;
    dnnl_status_t s;
    void *plain;

    drop_product(d);
    drop_scales(d);
    d->set_threads(r->threads);
    plain = narrow_weights(r, w);
    s = plain ? choose_product(r, plain) : dnnl_out_of_memory;
    free(plain);
    return s ? failed(r, s, e) : OK;
}

static void onednn_input(struct rival *r, const float *x)
{
    struct dnnl *d = r->own;
    size_t n = (size_t)r->shape.rows * (size_t)r->shape.k;
    void *to = data_of(d, d->x);
    float most = 0.0f;

    if (r->kind == RIVAL_ONEDNN_F32) memcpy(to, x, n * sizeof(*x));
    if (r->kind == RIVAL_ONEDNN_BF16)
        for (size_t i = 0; i < n; i++) ((uint16_t *)to)[i] = narrow_bf16(x[i]);
    if (r->kind != RIVAL_ONEDNN_U8S8) return;
    for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    d->x_scale = most / U8_RANGE;
    for (size_t i = 0; i < n; i++) ((uint8_t *)to)[i] = (uint8_t)(U8_ZERO + (most > 0.0f ? lrintf(x[i] * (U8_RANGE / most)) : 0));
}

static status onednn_run(struct rival *r, struct err *e)
{
    struct dnnl *d = r->own;
    dnnl_status_t s;

    d->set_threads(r->threads); /* another rival may have set its own */
    s = execute(d, r->turn);
    return s ? failed(r, s, e) : OK;
}

static void onednn_output(const struct rival *r, float *y)
{
    const struct dnnl *d = r->own;
    size_t rows = (size_t)r->shape.rows, n = (size_t)r->shape.n;
    const int32_t *sum = data_of(d, d->y);

    if (r->kind != RIVAL_ONEDNN_U8S8) memcpy(y, data_of(d, d->y), rows * n * sizeof(*y));
    else
        for (size_t t = 0; t < rows; t++)
            for (size_t i = 0; i < n; i++) y[t * n + i] = d->x_scale * d->w_scale[i] * (float)(sum[t * n + i] - d->w_shift[i]);
}

const struct rival_library rival_onednn = {sizeof(struct dnnl), onednn_open, onednn_close, onednn_prepare,
                                           onednn_input,        onednn_run,  onednn_output};

#else /* built without the header: it can be asked for, and says why not */

static status onednn_open(struct rival *r, struct err *e)
{
    (void)r;
    return err_set(
        e, ERR_IO,
        "oneDNN: this program was built without the header of its version 2 (on Debian: package libdnnl-dev, then build again)");
}

static void onednn_close(struct rival *r)
{
    (void)r;
}

const struct rival_library rival_onednn = {1, onednn_open, onednn_close, NULL, NULL, NULL, NULL};

#endif
