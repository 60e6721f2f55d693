/* Rounded activations, and products with them on processors without instructions for that: the f32 kernels over the rows, widened again. */
#include "num/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mat.h"
#include "num/kernel_levels.h"
#include "num/widen.h"

_Static_assert(HALF_SCRATCH_BYTES >= HALF_COLS * sizeof(float), "a row of products has room");

size_t half_bytes(int n, int cols)
{
    return (size_t)n * half_ld(cols) * sizeof(uint16_t);
}

void half_room(struct rows *r, void *memory)
{
    r->half = (uint16_t *)(void *)((char *)memory + rows_bytes(r->n, r->cols) - half_bytes(r->n, r->cols));
}

void half_fill(struct rows *r, const float *x, size_t ld, int first, int n, int block, int blocks)
{
    size_t ld_half = half_ld(r->cols);
    int from = block * QUANT_BLOCK, end = (block + blocks) * QUANT_BLOCK, inputs = (end < r->cols ? end : r->cols) - from;

    BUG_ON(!r->half || first < 0 || first + n > r->n || block < 0 || block + blocks > packed_blocks(r->cols));
    for (int t = first; t < first + n; t++, x += ld) {
        uint16_t *to = r->half + (size_t)t * ld_half + (size_t)from;

        narrow_many(to, x, (size_t)inputs);
        memset(to + inputs, 0, (size_t)(end - from - inputs) * sizeof(*to));
    }
}

static void over(const struct kernel *below, float *y, size_t ldy, const struct rows *x, const int *index, int n,
                 const struct packed *w, int first, int panels, void *scratch)
{
    size_t ld = half_ld(x->cols), width = (size_t)(x->cols ? x->cols : 1);
    int most = (int)(HALF_SCRATCH_BYTES / (width * sizeof(float)));
    float *wide = (float *)(void *)((char *)scratch + KERNEL_SCRATCH_BYTES);

    if (!x->half || w->format != FORMAT_BF16) {
        below->product(y, ldy, x, index, n, w, first, panels, scratch);
        return;
    }
    BUG_ON(x->cols > HALF_COLS);
    for (int i = 0; i < n; i += most) {
        struct rows part = {.x = wide, .ld = width, .n = n - i < most ? n - i : most, .cols = x->cols};

        for (int t = 0; t < part.n; t++) {
            const uint16_t *row = x->half + (size_t)(index ? index[i + t] : i + t) * ld;

            for (int k = 0; k < x->cols; k++) wide[(size_t)t * width + (size_t)k] = widen_bf16(row[k]);
        }
        below->product(y + (size_t)i * ldy, ldy, &part, NULL, part.n, w, first, panels, scratch);
    }
}

#define OVER(level, isa, tile)                                                                                                   \
    static void over_##level(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w,        \
                             int first, int panels, void *scratch)                                                               \
    {                                                                                                                            \
        over(&kernel_##level, y, ldy, x, index, n, w, first, panels, scratch);                                                   \
    }                                                                                                                            \
    static const struct kernel half_##level = {isa, tile, over_##level};

OVER(plain, ISA_PLAIN, 1)
#if defined(__x86_64__)
OVER(avx2, ISA_AVX2, 6)
OVER(avx512, ISA_AVX512, 12)
OVER(vnni, ISA_VNNI, 12)
#endif

const struct kernel *kernel_half_for(enum isa most)
{
#if defined(__x86_64__)
    static const struct kernel *const levels[ISA_COUNT] = {&half_plain, &half_avx2,   &half_avx512,
                                                           &half_vnni,  &kernel_bf16, &kernel_amx};
    enum isa best = isa_best();

    return levels[most < best ? most : best];
#else
    (void)most;
    return &half_plain;
#endif
}

/* Numbers that go round, of either sign and several sizes. */
static float number(int i)
{
    return (float)((i * 37 + 11) % 64 - 32) * (i % 5 ? 0.03125f : 1.0f);
}

bool half_check(const struct kernel *k)
{
    enum { ROWS = 37, OUT = 80, COLS = 75 };
    static const int shape[][2] = {{ROWS, 0}, {1, 3}, {17, 20}};
    size_t lines = packed_line_bytes(FORMAT_BF16, OUT, COLS), halves = rows_bytes(ROWS, COLS);
    char *memory = aligned_alloc(64, ((kernel_scratch_bytes() + 63) & ~(size_t)63) + lines + halves);
    float x[ROWS * COLS], w[OUT * COLS], y[ROWS * OUT];
    struct mat m = {w, DT_F32, OUT, COLS, COLS};
    struct packed p = {memory, NULL, FORMAT_BF16, OUT, COLS};
    struct rows r = {.x = x, .ld = COLS, .n = ROWS, .cols = COLS};
    bool right = memory != NULL;

    if (!memory) return false;
    for (int i = 0; i < ROWS * COLS; i++) x[i] = number(i);
    for (int i = 0; i < OUT * COLS; i++) w[i] = number(3 * i + 1);
    pack_panels(memory, NULL, FORMAT_BF16, &m, 0, packed_panels(OUT));
    half_room(&r, memory + lines);
    half_fill(&r, r.x, r.ld, 0, ROWS, 0, packed_blocks(COLS));
    for (size_t s = 0; s < sizeof(shape) / sizeof(*shape); s++) {
        int index[ROWS];

        for (int t = 0; t < ROWS; t++) index[t] = (7 * t + shape[s][1]) % ROWS;
        k->product(y, OUT, &r, s ? index : NULL, shape[s][0], &p, 0, packed_panels(OUT), memory + lines + halves);
        for (int t = 0; t < shape[s][0]; t++)
            for (int j = 0; j < OUT; j++) {
                double want = 0.0, room = 1e-3;

                for (int i = 0; i < COLS; i++) {
                    double a = (double)x[(s ? index[t] : t) * COLS + i] * (double)w[j * COLS + i];

                    want += a;
                    room += 1e-6 * fabs(a);
                }
                right = right && fabs((double)y[t * OUT + j] - want) <= room;
            }
    }
    free(memory);
    return right;
}
