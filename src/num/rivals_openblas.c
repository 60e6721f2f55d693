/* OpenBLAS, loaded at run time, with the kernels that the processor deserves. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "num/rivals_library.h"

/* The C interface with 32-bit integers, and its numbers. */
enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 };
typedef void sgemm_call(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                        int ldb, float beta, float *c, int ldc);
typedef void sgemv_call(int order, int ta, int m, int n, float alpha, const float *a, int lda, const float *x, int incx,
                        float beta, float *y, int incy);

struct blas {
    void *handle;
    sgemm_call *sgemm;
    sgemv_call *sgemv;
    void (*set_threads)(int n);
    char *(*config)(void), *(*core_name)(void);
    float *x, *y, **w;
    int copies; /* of w */
};

static void *load(void)
{
    void *handle = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);

    return handle ? handle : dlopen("libopenblas.so", RTLD_NOW | RTLD_LOCAL);
}

static status find(struct blas *b, struct err *e)
{
    if (!b->handle) return rival_absent("OpenBLAS", "libopenblas0", e);
    *(void **)&b->sgemm = dlsym(b->handle, "cblas_sgemm");
    *(void **)&b->sgemv = dlsym(b->handle, "cblas_sgemv");
    *(void **)&b->set_threads = dlsym(b->handle, "openblas_set_num_threads");
    *(void **)&b->config = dlsym(b->handle, "openblas_get_config");
    *(void **)&b->core_name = dlsym(b->handle, "openblas_get_corename");
    if (!b->sgemm || !b->sgemv || !b->set_threads || !b->config || !b->core_name)
        return err_set(e, ERR_IO, "the OpenBLAS of this system lacks cblas_sgemm, cblas_sgemv or openblas_set_num_threads");
    if (strstr(b->config(), "USE64BITINT"))
        return err_set(e, ERR_IO, "the OpenBLAS of this system has 64-bit integers, the benchmark needs the usual ones");
    return OK;
}

/* Sets a variable and returns what it was, to be freed, or NULL. */
static char *env_swap(const char *name, const char *value)
{
    const char *was = getenv(name);
    char *copy = was ? strdup(was) : NULL;

    setenv(name, value, 1);
    return copy;
}

static void env_restore(const char *name, char *was)
{
    if (was) setenv(name, was, 1);
    else unsetenv(name);
    free(was);
}

/* Loads it again with another core type: it reads the variable while it is being loaded, and unloading it is clean. */
static status correct(struct blas *b, const char *core, struct err *e)
{
    char *was = env_swap("OPENBLAS_CORETYPE", core);

    dlclose(b->handle);
    b->handle = load();
    env_restore("OPENBLAS_CORETYPE", was);
    return find(b, e);
}

/* `alone`: nobody else had it loaded, so it can be loaded anew. */
static status pick(struct rival *r, bool alone, struct err *e)
{
    struct blas *b = r->own;
    const char *user = getenv("OPENBLAS_CORETYPE"), *better;
    char version[32] = "?", picked[32], why[128];

    if (find(b, e)) return e->code;
    snprintf(picked, sizeof(picked), "%s", b->core_name());
    better = rival_core_type(rival_this_processor(), picked);
    if (!better) snprintf(why, sizeof(why), "%s", user ? "OPENBLAS_CORETYPE is set" : "its own choice");
    else if (user) snprintf(why, sizeof(why), "as OPENBLAS_CORETYPE says, though this processor can do %s", better);
    else if (!alone)
        snprintf(why, sizeof(why), "its own choice; %s would be right, but it was loaded before it could be told", better);
    else {
        if (correct(b, better, e)) return e->code;
        snprintf(why, sizeof(why), "by itself it picked %s, which leaves this processor's vectors unused: corrected", picked);
    }
    sscanf(b->config(), "OpenBLAS %31s", version);
    b->set_threads(r->threads);
    snprintf(r->about, sizeof(r->about), "OpenBLAS %s, %s kernels (%s), %d thread%s", version, b->core_name(), why, r->threads,
             r->threads == 1 ? "" : "s");
    return OK;
}

static status blas_open(struct rival *r, struct err *e)
{
    struct blas *b = r->own;
    void *before = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_NOLOAD);
    char number[16], *was;
    status s;

    snprintf(number, sizeof(number), "%d", r->threads);
    was = env_swap("OPENBLAS_NUM_THREADS", number); /* it starts that many when it is loaded, by default one per processor */
    b->handle = load();
    s = pick(r, !before, e);
    env_restore("OPENBLAS_NUM_THREADS", was);
    if (before) dlclose(before);
    return s;
}

static void drop(struct blas *b)
{
    for (int i = 0; b->w && i < b->copies; i++) free(b->w[i]);
    free(b->w);
    free(b->x);
    free(b->y);
    b->w = NULL;
    b->x = b->y = NULL;
}

static void blas_close(struct rival *r)
{
    struct blas *b = r->own;

    drop(b);
    if (b->handle) dlclose(b->handle);
}

static status blas_prepare(struct rival *r, const float *w, struct err *e)
{
    struct blas *b = r->own;
    size_t rows = (size_t)r->shape.rows, n = (size_t)r->shape.n, k = (size_t)r->shape.k;
    bool all;

    drop(b);
    b->copies = r->shape.copies;
    b->w = calloc((size_t)b->copies, sizeof(*b->w));
    b->x = rival_floats(rows * k);
    b->y = rival_floats(rows * n);
    all = b->w && b->x && b->y;
    for (int i = 0; all && i < b->copies; i++) {
        all = (b->w[i] = rival_floats(n * k)) != NULL;
        if (all) memcpy(b->w[i], w, n * k * sizeof(float));
    }
    return all ? OK : err_set(e, ERR_LIMIT, "no memory for %d copies of %zu x %zu weights and %zu rows", b->copies, n, k, rows);
}

static void blas_input(struct rival *r, const float *x)
{
    struct blas *b = r->own;

    memcpy(b->x, x, (size_t)r->shape.rows * (size_t)r->shape.k * sizeof(*x));
}

static status blas_run(struct rival *r, struct err *e)
{
    const struct blas *b = r->own;
    const struct rival_shape s = r->shape;
    const float *w = b->w[r->turn];

    (void)e;
    if (s.rows == 1)
        b->sgemv(ROW_MAJOR, AS_IT_IS, s.n, s.k, 1.0f, w, s.k, b->x, 1, 0.0f, b->y, 1); /* sgemm takes twice as long */
    else b->sgemm(ROW_MAJOR, AS_IT_IS, TRANSPOSED, s.rows, s.n, s.k, 1.0f, b->x, s.k, w, s.k, 0.0f, b->y, s.n);
    return OK;
}

static void blas_output(const struct rival *r, float *y)
{
    const struct blas *b = r->own;

    memcpy(y, b->y, (size_t)r->shape.rows * (size_t)r->shape.n * sizeof(*y));
}

const struct rival_library rival_openblas = {sizeof(struct blas), blas_open, blas_close, blas_prepare,
                                             blas_input,          blas_run,  blas_output};
