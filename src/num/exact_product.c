#include "num/exact_product.h"

#include "base/err.h"

#if defined(__x86_64__)

#include "num/exact_many.h"
#include "num/line_avx2.h"

enum { FEW = 3, WIDE = 4, AHEAD = 1024 /* bytes that each stream asks for ahead of their use */ };

/* All rows, which are few, by some panels, `apart` panels from each other. */
struct tile {
    const float *const *x;
    uint64_t *const *sum;
    size_t column; /* of the sums */
    const char *w;
    size_t panel; /* bytes */
    int apart, inputs;
    float scale;
    __m256i most;
};

/* Input k of all rows, whose line begins at w. */
INLINE void step(int rows, int wide, bool half, bool high, __m256 (*sum)[2 * WIDE], const float *const *x, int k, const char *w,
                 size_t panel)
{
    __m256 a[FEW];

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) a[r] = _mm256_broadcast_ss(x[r] + k);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * wide; i++) {
        __m256 line = line_of(w + (size_t)(i / 2) * panel + (i % 2) * 32, half, high);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) add_product(&sum[r][i], a[r], line);
    }
}

INLINE void tile_body(int rows, int wide, bool half, struct tile *t)
{
    __m256 sum[FEW][2 * WIDE], scale = _mm256_set1_ps(t->scale);
    __m256i most = t->most;
    const float *x[FEW];
    const char *w = t->w;
    int k = 0, inputs = t->inputs;
    size_t panel = t->panel * (size_t)t->apart;

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        x[r] = t->x[r];
#pragma GCC unroll 16
        for (int i = 0; i < 2 * wide; i++) sum[r][i] = _mm256_setzero_ps();
    }
    for (; k + 1 < inputs; k += 2, w += (half ? 1 : 2) * LINE_BYTES) {
#pragma GCC unroll 16
        for (int p = 0; p < wide; p++) {
            _mm_prefetch(w + (size_t)p * panel + AHEAD, _MM_HINT_T0);
            if (!half) _mm_prefetch(w + (size_t)p * panel + AHEAD + LINE_BYTES, _MM_HINT_T0);
        }
        step(rows, wide, half, false, sum, x, k, w, panel);
        step(rows, wide, half, true, sum, x, k + 1, half ? w : w + LINE_BYTES, panel);
    }
    if (k < inputs) step(rows, wide, half, false, sum, x, k, w, panel);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        uint64_t *to = t->sum[r] + t->column;
#pragma GCC unroll 16
        for (int i = 0; i < 2 * wide; i++)
            most = lift8(to + (size_t)(i / 2 * t->apart) * PANEL_LANES + i % 2 * 8, sum[r][i], scale, most);
    }
    t->most = most;
}

typedef void tile_function(struct tile *t);

#define TILES(X) X(1, 1) X(1, 4) X(2, 1) X(2, 2) X(3, 1) X(3, 2)
#define TILE_OF(rows, wide)                                                                                                      \
    VECTORS static void f32_##rows##x##wide(struct tile *t)                                                                      \
    {                                                                                                                            \
        tile_body(rows, wide, false, t);                                                                                         \
    }                                                                                                                            \
    VECTORS static void bf16_##rows##x##wide(struct tile *t)                                                                     \
    {                                                                                                                            \
        tile_body(rows, wide, true, t);                                                                                          \
    }
TILES(TILE_OF)
#define ENTRY_OF(rows, wide) [0][rows][wide] = f32_##rows##x##wide, [1][rows][wide] = bf16_##rows##x##wide,
static tile_function *const tiles_of[2][FEW + 1][WIDE + 1] = {TILES(ENTRY_OF)};

/* The panels are read in `wide` streams, one of each part of them: several are read faster than one (one row and panels of 512 bytes: by half), for the processor asks ahead
 * in each by itself. */
VECTORS static uint32_t product(const float *const *x, uint64_t *const *sum, int n, const struct packed *w, int from, int panels,
                                float scale)
{
    static const int wides[FEW + 1] = {0, 4, 2, 2};
    size_t panel = (size_t)packed_steps(w->format, w->cols) * LINE_BYTES;
    int wide = wides[n], each = panels / wide;
    struct tile t = {
        .x = x, .sum = sum, .panel = panel, .apart = each, .inputs = w->cols, .scale = scale, .most = _mm256_setzero_si256()};

    for (int i = 0; i < each + panels % wide; i++) {
        int p = i < each ? i : i + each * (wide - 1); /* the last ones alone */

        t.w = (const char *)w->lines + (size_t)(from + p) * panel;
        t.column = (size_t)p * PANEL_LANES;
        tiles_of[w->format == FORMAT_BF16][n][i < each ? wide : 1](&t);
    }
    return largest(t.most);
}

bool exact_product_has(const struct kernel *k, const struct rows *x, const struct packed *w)
{
    return k->isa == ISA_AVX2 && !format_has_scales(w->format) && !x->half && w->cols >= 1 && w->cols <= CHAIN &&
           x->n <= EXACT_PRODUCT_ROWS;
}

bool exact_product(struct exact *e, const struct kernel *k, const int *at, int first, const struct rows *x,
                   const struct packed *w, int from, int panels, float scale, const void *next)
{
    const float *row[EXACT_PRODUCT_ROWS];
    uint64_t *sum[EXACT_PRODUCT_ROWS], *sums = (uint64_t *)e->sum;
    uint32_t most;

    BUG_ON(x->cols != w->cols || e->cols < panels * PANEL_LANES);
    if (!exact_product_has(k, x, w)) return false;
    for (int i = 0; i < x->n; i++) {
        row[i] = x->x + (size_t)i * x->ld;
        sum[i] = sums + (size_t)(at[i] - first) * (size_t)e->cols;
        e->terms[at[i] - first]++;
    }
    most = x->n > FEW ? exact_many(x->x, x->ld, sum, x->n, w, from, panels, scale, next)
                      : product(row, sum, x->n, w, from, panels, scale);
    e->most = most > e->most ? most : e->most;
    return true;
}

#else

bool exact_product_has(const struct kernel *k, const struct rows *x, const struct packed *w)
{
    (void)k, (void)x, (void)w;
    return false;
}

bool exact_product(struct exact *e, const struct kernel *k, const int *at, int first, const struct rows *x,
                   const struct packed *w, int from, int panels, float scale, const void *next)
{
    (void)e, (void)k, (void)at, (void)first, (void)x, (void)w, (void)from, (void)panels, (void)scale, (void)next;
    return false;
}

#endif
