#include "jobs/bench_product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"

enum { COLD_LEAST = 128 << 20, COLD_MOST = 1 << 30, COPIES_MAX = 256, CHECK_COLUMNS = 97, WARM_MOST = 8 << 20 };

const struct bench_rivals bench_rivals[FORMAT_COUNT] = {
    [FORMAT_F32] = {2, {RIVAL_OPENBLAS, RIVAL_ONEDNN_F32}},
    [FORMAT_BF16] = {2, {RIVAL_ONEDNN_BF16, RIVAL_OPENBLAS}}, /* the latter in f32, for where the former has nothing */
    [FORMAT_Q8] = {1, {RIVAL_ONEDNN_U8S8}},
};

struct bench_product {
    const struct bench_operands *operands;
    float *y;
    int copies, turn;
    int cached; /* outputs of the first copy that are all there is, or 0 */

    /* ours */
    struct gemm *gemm;
    struct packed packed; /* of the first copy */
    char *memory;
    size_t memory_bytes, copy_bytes;
    struct rows x;
    void *room; /* of the quantized or rounded x */

    /* a library's */
    struct rival *rival;
    enum rival_kind kind;
};

/* ---- operands ---- */

static void fill(float *to, size_t n, float deviation, uint64_t stream)
{
    struct rng r;

    rng_seed(&r, 1, stream);
    for (size_t i = 0; i < n; i++) {
        uint64_t x = rng_u64(&r);

        to[i] = deviation * ((float)(x & 0xffffff) + (float)(x >> 40) - 0x1p24f) * 0x1p-23f;
    }
}

status bench_operands_open(struct bench_operands *o, int rows, int n, int k, struct err *e)
{
    *o = (struct bench_operands){.rows = rows, .n = n, .k = k};
    o->x = malloc((size_t)rows * (size_t)k * sizeof(*o->x));
    o->w = malloc((size_t)n * (size_t)k * sizeof(*o->w));
    if (!o->x || !o->w) {
        bench_operands_close(o);
        return err_set(e, ERR_LIMIT, "no memory for a product of %d rows with %d x %d weights", rows, n, k);
    }
    fill(o->x, (size_t)rows * (size_t)k, 1.0f, 1);
    fill(o->w, (size_t)n * (size_t)k, 0.02f, 2);
    return OK;
}

void bench_operands_close(struct bench_operands *o)
{
    free(o->x);
    free(o->w);
    o->x = o->w = NULL;
}

/* Copies of so many bytes that the caches hold a quarter of them at most. */
static int copies_of(size_t bytes)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t cold = cache > 0 ? 4 * (size_t)cache : 0;

    if (cold < COLD_LEAST) cold = COLD_LEAST;
    if (cold > COLD_MOST) cold = COLD_MOST;
    size_t copies = (cold + bytes - 1) / bytes;
    return copies < COPIES_MAX ? (int)copies : COPIES_MAX;
}

static struct bench_product *product_new(const struct bench_operands *o)
{
    struct bench_product *p = calloc(1, sizeof(*p));

    BUG_ON(!p);
    p->operands = o;
    /* whole panels are written */
    p->y = aligned_alloc(64, (size_t)o->rows * (size_t)packed_panels(o->n) * PANEL_LANES * sizeof(*p->y));
    BUG_ON(!p->y);
    return p;
}

/* ---- ours ---- */

struct packing {
    struct bench_product *p;
    struct mat w;
};

static void pack_task(void *ctx, int panel, int worker)
{
    const struct packing *k = ctx;
    const struct packed *to = &k->p->packed;

    (void)worker;
    pack_panels((void *)to->lines, (uint16_t *)to->scale, to->format, &k->w, panel, 1);
}

static void copy_task(void *ctx, int copy, int worker)
{
    const struct packing *k = ctx;

    (void)worker;
    memcpy(k->p->memory + (size_t)(copy + 1) * k->p->copy_bytes, k->p->memory, k->p->copy_bytes);
}

static size_t whole_lines(size_t bytes)
{
    return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

status bench_product_ours(struct bench_product **out, struct gemm *g, const struct bench_operands *o, enum format format,
                          struct err *e)
{
    size_t lines = whole_lines(packed_line_bytes(format, o->n, o->k)),
           scales = whole_lines(packed_scale_bytes(format, o->n, o->k));
    struct bench_product *p = product_new(o);

    *out = NULL;
    p->gemm = g;
    p->copy_bytes = lines + scales;
    p->copies = copies_of(p->copy_bytes);
    p->memory_bytes = p->copy_bytes * (size_t)p->copies;
    p->memory = mmap(NULL, p->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->memory == MAP_FAILED) {
        p->memory = NULL;
        err_set(e, ERR_LIMIT, "no memory for %d copies of %zu bytes of weights", p->copies, p->copy_bytes);
        bench_product_close(p);
        return e->code;
    }
    madvise(p->memory, p->memory_bytes, MADV_HUGEPAGE);
    p->packed = (struct packed){.lines = p->memory,
                                .scale = scales ? (const uint16_t *)(const void *)(p->memory + lines) : NULL,
                                .format = format,
                                .rows = o->n,
                                .cols = o->k};
    struct packing k = {.p = p, .w = {.data = o->w, .dtype = DT_F32, .rows = o->n, .cols = o->k, .stride = (size_t)o->k}};
    gemm_parallel(g, packed_panels(o->n), pack_task, &k);
    gemm_parallel(g, p->copies - 1, copy_task, &k);
    p->x = (struct rows){.x = o->x, .ld = (size_t)o->k, .n = o->rows, .cols = o->k};
    p->room = aligned_alloc(64, whole_lines(rows_bytes(o->rows, o->k)));
    BUG_ON(!p->room);
    if (gemm_rows(g, &p->x, format, p->room)) gemm_quantize(g, &p->x);
    *out = p;
    return OK;
}

static void run_ours(struct bench_product *p)
{
    size_t at = (size_t)p->turn * p->copy_bytes;
    struct packed w = p->packed;

    if (p->cached) {
        w.rows = p->cached;
        at = 0;
    }
    w.lines = (const char *)w.lines + at;
    if (w.scale) w.scale = (const uint16_t *)(const void *)((const char *)w.scale + at);
    gemm_product(p->gemm, p->y, (size_t)packed_panels(p->packed.rows) * PANEL_LANES, &p->x, &w, NULL);
    p->turn = (p->turn + 1) % p->copies;
}

/* ---- a library's ---- */

status bench_product_rival(struct bench_product **out, enum rival_kind kind, int threads, const struct bench_operands *o,
                           struct err *e)
{
    static const size_t element[RIVAL_KINDS] = {
        [RIVAL_OPENBLAS] = 4, [RIVAL_ONEDNN_F32] = 4, [RIVAL_ONEDNN_BF16] = 2, [RIVAL_ONEDNN_U8S8] = 1};
    struct bench_product *p = product_new(o);

    *out = NULL;
    p->kind = kind;
    p->copies = copies_of((size_t)o->n * (size_t)o->k * element[kind]);
    status st = rival_open(&p->rival, kind, threads, e);
    if (!st)
        st = rival_prepare(p->rival, o->w, (struct rival_shape){.rows = o->rows, .n = o->n, .k = o->k, .copies = p->copies}, e);
    if (st) {
        bench_product_close(p);
        return e->code;
    }
    rival_input(p->rival, o->x);
    *out = p;
    return OK;
}

void bench_product_close(struct bench_product *p)
{
    if (!p) return;
    if (p->memory) munmap(p->memory, p->memory_bytes);
    rival_close(p->rival);
    free(p->room);
    free(p->y);
    free(p);
}

/* ---- both ---- */

const char *bench_product_name(const struct bench_product *p)
{
    return p->rival ? rival_name(p->kind) : "ours";
}

double bench_product_bytes(const struct bench_product *p)
{
    return p->rival ? 0 : (double)p->copy_bytes;
}

/* What the format may lose, relative to the largest sum. */
static double tolerance_of(const struct bench_product *p)
{
    static const double ours[FORMAT_COUNT] = {[FORMAT_F32] = 1e-5, [FORMAT_BF16] = 5e-3, [FORMAT_Q8] = 0.02, [FORMAT_Q4] = 0.15};

    return p->rival ? (double)rival_tolerance(p->kind) : ours[p->packed.format];
}

/* The input as the kernel sees it. */
static double input_at(const struct bench_product *p, int row, int k)
{
    float x = p->operands->x[(size_t)row * (size_t)p->operands->k + (size_t)k];

    if (p->x.half) return (double)widen_bf16(narrow_bf16(x));
    return p->x.q ? (double)rows_input(&p->x, row, k) : (double)x;
}

struct worst {
    double defined, plain, largest; /* errors against the definition, and against the weights as they were */
};

static void check_element(const struct bench_product *p, const float *y, size_t ldy, int row, int n, struct worst *w)
{
    const struct bench_operands *o = p->operands;
    double plain = 0, defined = 0, got = (double)y[(size_t)row * ldy + (size_t)n];

    for (int k = 0; k < o->k; k++) {
        plain += (double)o->x[(size_t)row * (size_t)o->k + (size_t)k] * (double)o->w[(size_t)n * (size_t)o->k + (size_t)k];
        if (!p->rival) defined += input_at(p, row, k) * (double)packed_at(&p->packed, n, k);
    }
    if (p->rival) defined = got;
    if (isnan(got)) w->plain = INFINITY;
    w->defined = fmax(w->defined, fabs(got - defined));
    w->plain = fmax(w->plain, fabs(got - plain));
    w->largest = fmax(w->largest, fabs(plain));
}

/* Strides that share no factor with the sizes of a kernel's tiles, so that every place in a tile comes up; and always the last row. */
static void check_rows(const struct bench_product *p, size_t ldy, struct worst *w)
{
    const struct bench_operands *o = p->operands;
    int step = o->n > CHECK_COLUMNS ? o->n / CHECK_COLUMNS : 1, stride = o->rows > 64 ? 37 : o->rows > 8 ? 5 : 1;

    for (int r = 0; r < o->rows; r = r + stride < o->rows || r == o->rows - 1 ? r + stride : o->rows - 1)
        for (int n = r % step; n < o->n; n += step) check_element(p, p->y, ldy, r, n, w);
}

status bench_product_check(struct bench_product *p, struct err *e)
{
    const struct bench_operands *o = p->operands;
    size_t ldy = p->rival ? (size_t)o->n : (size_t)packed_panels(o->n) * PANEL_LANES;
    struct worst w = {0};

    if (!p->rival) {
        p->turn = 0;
        run_ours(p);
    } else {
        if (rival_run(p->rival, e)) return e->code;
        rival_output(p->rival, p->y);
    }
    check_rows(p, ldy, &w);
    if (!(w.defined <= 1e-5 * w.largest) || !(w.plain <= tolerance_of(p) * w.largest))
        return err_set(e, ERR_GATE, "%s: off by %.2g of the largest sum (allowed %.2g), and by %.2g of what the format says",
                       bench_product_name(p), w.plain / w.largest, tolerance_of(p), w.defined / w.largest);
    return OK;
}

double bench_product_time(struct bench_product *p, double seconds)
{
    double start = clock_now(), passed;
    struct err ignored;
    int runs = 0;

    do {
        if (!p->rival) run_ours(p);
        else if (rival_run(p->rival, &ignored)) return -1;
        runs++;
        passed = clock_now() - start;
    } while (passed < seconds);
    if (p->rival) rival_rest(p->rival);
    return passed / runs;
}

double bench_product_cached(struct bench_product *p, double seconds, int *outputs)
{
    const struct bench_operands *o = p->operands;
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t most = cache > 0 && cache / 4 < WARM_MOST ? (size_t)cache / 4 : WARM_MOST;
    int panels = (int)(most / (p->copy_bytes / (size_t)packed_panels(o->n) + 1));

    BUG_ON(p->rival);
    p->cached = *outputs = panels * PANEL_LANES < o->n ? (panels > 0 ? panels : 1) * PANEL_LANES : o->n;
    run_ours(p); /* brings it in */
    double time = bench_product_time(p, seconds);
    p->cached = 0;
    return time;
}
