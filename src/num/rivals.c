/* What all rivals share, and OpenBLAS's choice of kernels.  The libraries are in rivals_openblas.c and rivals_onednn.c. */
#include "num/rivals.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

#include "num/rivals_library.h"

const char *rival_name(enum rival_kind kind)
{
    static const char *const name[RIVAL_KINDS] = {"openblas f32", "onednn f32", "onednn bf16", "onednn u8s8"};

    BUG_ON(kind >= RIVAL_KINDS);
    return name[kind];
}

float rival_tolerance(enum rival_kind kind)
{
    static const float room[RIVAL_KINDS] = {1e-5f, 1e-5f, 1e-2f, 5e-2f};

    BUG_ON(kind >= RIVAL_KINDS);
    return room[kind];
}

const char *rival_describe(const struct rival *r)
{
    return r->about;
}

float *rival_floats(size_t n)
{
    return aligned_alloc(64, (n * sizeof(float) + 63) & ~(size_t)63);
}

status rival_absent(const char *what, const char *package, struct err *e)
{
    const char *why = dlerror();

    return err_set(e, ERR_IO, "%s cannot be loaded (%s); on Debian it is in the package %s", what, why ? why : "no reason given",
                   package);
}

status rival_open(struct rival **out, enum rival_kind kind, int threads, struct err *e)
{
    BUG_ON(threads < 1 || kind >= RIVAL_KINDS);
    const struct rival_library *library = kind == RIVAL_OPENBLAS ? &rival_openblas : &rival_onednn;
    struct rival *r = calloc(1, sizeof(*r));

    *out = NULL;
    if (r) r->own = calloc(1, library->bytes);
    if (!r || !r->own) {
        free(r);
        return err_set(e, ERR_LIMIT, "no memory for %s", rival_name(kind));
    }
    r->kind = kind;
    r->threads = threads;
    r->library = library;
    if (library->open(r, e)) {
        rival_close(r);
        return e->code;
    }
    *out = r;
    return OK;
}

void rival_close(struct rival *r)
{
    if (!r) return;
    r->library->close(r);
    free(r->own);
    free(r);
}

status rival_prepare(struct rival *r, const float *w, struct rival_shape shape, struct err *e)
{
    BUG_ON(shape.rows < 1 || shape.n < 1 || shape.k < 1 || shape.copies < 1);
    r->shape = shape;
    r->turn = 0;
    return r->library->prepare(r, w, e);
}

void rival_input(struct rival *r, const float *x)
{
    r->library->input(r, x);
}

status rival_run(struct rival *r, struct err *e)
{
    status s = r->library->run(r, e);

    r->turn = (r->turn + 1) % r->shape.copies;
    return s;
}

void rival_output(const struct rival *r, float *y)
{
    r->library->output(r, y);
}

void rival_rest(const struct rival *r)
{
    if (r->threads > 1) nanosleep(&(struct timespec){.tv_nsec = 60 * 1000 * 1000}, NULL);
}

/* ---- OpenBLAS's choice of kernels ---- */

struct rival_processor rival_this_processor(void)
{
    struct rival_processor p = {false, false, false, false};

#ifdef __x86_64__
    p.amd = __builtin_cpu_is("amd");
    p.avx = __builtin_cpu_supports("avx");
    p.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    p.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return p;
}

/* What a core type's kernels use: 0 SSE, 1 AVX, 2 AVX2 with FMA, 3 AVX-512; -1: a name that is not known here. */
static int core_level(const char *name)
{
    static const char *const core[4][17] = {
        {"Katmai", "Coppermine", "Northwood", "Prescott", "Banias", "Atom", "Core2", "Penryn", "Dunnington", "Nehalem", "Athlon",
         "Opteron", "Opteron_SSE3", "Barcelona", "Bobcat", "Nano"},
        {"Sandybridge", "Bulldozer", "Piledriver", "Steamroller"},
        {"Haswell", "Excavator", "Zen"},
        {"SkylakeX", "Cooperlake", "SapphireRapids"},
    };

    for (int level = 0; level < 4; level++)
        for (int i = 0; core[level][i]; i++)
            if (!strcasecmp(name, core[level][i])) return level;
    return -1;
}

const char *rival_core_type(struct rival_processor p, const char *picked)
{
    int has = p.avx512 ? 3 : p.avx2 ? 2 : p.avx ? 1 : 0, uses = core_level(picked);

    if (uses < 0 || uses >= has) return NULL;
    return has == 3 ? "SkylakeX" : has == 1 ? "Sandybridge" : p.amd ? "Zen" : "Haswell";
}
