/* Many rows of few inputs into exact sums.
 *
 * A sum of 16 inputs is 16 multiply-adds, and on its way into the exact sums (exact.h) nearly as many other operations, of other units of the processor.  One after the
 * other they take as long as both together, since a core looks no further ahead than the one kind of work: so they are interleaved here.  What a tile of rows gave
 * is kept in the first cache, and goes into the sums while the next tile's products are made.
 */
#include "num/exact_many.h"

#if defined(__x86_64__)

#include "num/line_avx2.h"

enum { TILE = 5, BLOCK = 16 /* inputs during which a whole tile goes into the sums */, VECTORS_OF_TILE = 2 * TILE };

struct many {
    const float *x; /* of the tile's first row */
    size_t ld;
    const float *w; /* [inputs][PANEL_LANES] */
    int inputs;
    float scale;
    __m256i most;
    /* The tile before: its terms, and the sums they belong to; what it has less of rows goes where nobody reads. */
    uint64_t *sum[TILE];
    float term[TILE * PANEL_LANES] __attribute__((aligned(64)));
    uint64_t nobody[PANEL_LANES] __attribute__((aligned(64)));
};

INLINE void many_step(int rows, __m256 (*sum)[2], const float *x, size_t ld, const float *w)
{
    __m256 low = _mm256_load_ps(w), high = _mm256_load_ps(w + 8);

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        __m256 a = _mm256_broadcast_ss(x + (size_t)r * ld);

        add_product(&sum[r][0], a, low);
        add_product(&sum[r][1], a, high);
    }
}

/* Vector i of the tile before. */
INLINE void many_lift(const struct many *m, int i)
{
    uint64_t *to = m->sum[i / 2] + i % 2 * 8;

    lift4(to, _mm_load_ps(m->term + 8 * i));
    lift4(to + 4, _mm_load_ps(m->term + 8 * i + 4));
}

INLINE void many_body(int rows, struct many *m)
{
    __m256 sum[TILE][2], scale;
    __m256i most;
    const float *x = m->x, *w = m->w;
    size_t ld = m->ld;
    int k = 0, inputs = m->inputs;

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    if (inputs >= BLOCK) {
#pragma GCC unroll 16
        for (; k < BLOCK; k++) {
            many_step(rows, sum, x + k, ld, w + k * PANEL_LANES);
            if (k < VECTORS_OF_TILE) many_lift(m, k);
        }
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < VECTORS_OF_TILE; i++) many_lift(m, i);
    }
    for (; k < inputs; k++) many_step(rows, sum, x + k, ld, w + k * PANEL_LANES);
    scale = _mm256_set1_ps(m->scale), most = m->most;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256 term = _mm256_mul_ps(scale, sum[r][i]);

            most = larger(most, term);
            _mm256_store_ps(m->term + (2 * r + i) * 8, term);
        }
    m->most = most;
}

#define ROWS(X) X(1) X(2) X(3) X(4) X(5)
#define MANY_OF(rows)                                                                                                            \
    VECTORS static void many_##rows(struct many *m)                                                                              \
    {                                                                                                                            \
        many_body(rows, m);                                                                                                      \
    }
ROWS(MANY_OF)
#define ENTRY_OF(rows) [rows] = many_##rows,
static void (*const many_of[TILE + 1])(struct many *m) = {ROWS(ENTRY_OF)};

/* A panel as floats, input by input. */
VECTORS static const float *widened(float *out, const char *lines, bool half, int inputs)
{
    if (!half) return (const float *)(const void *)lines;
    for (int k = 0; k < inputs; k++)
        for (int i = 0; i < 2; i++)
            _mm256_store_ps(out + k * PANEL_LANES + i * 8, line_of(lines + (size_t)(k / 2) * LINE_BYTES + i * 32, true, k % 2));
    return out;
}

/* All rows by the panel m->w, in tiles of nearly equal height. */
static void many_rows(struct many *m, const float *x, uint64_t *const *sum, int n, size_t column)
{
    int tiles = (n + TILE - 1) / TILE, low = n / tiles, lower = tiles - n % tiles;

    for (int i = 0, begin = 0, rows; i < tiles; i++, begin += rows) {
        rows = low + (i >= lower);
        m->x = x + (size_t)begin * m->ld;
        many_of[rows](m);
        for (int r = 0; r < TILE; r++) m->sum[r] = r < rows ? sum[begin + r] + column : m->nobody;
    }
}

VECTORS uint32_t exact_many(const float *x, size_t ld, uint64_t *const *sum, int n, const struct packed *w, int from, int panels,
                            float scale, const char *next)
{
    float wide[CHAIN * PANEL_LANES] __attribute__((aligned(64)));
    size_t panel = (size_t)packed_steps(w->format, w->cols) * LINE_BYTES;
    struct many m = {.ld = ld, .inputs = w->cols, .scale = scale, .most = _mm256_setzero_si256()};

    for (int r = 0; r < TILE; r++) m.sum[r] = m.nobody;
    for (int p = 0; p < panels; p++) {
        m.w = widened(wide, (const char *)w->lines + (size_t)(from + p) * panel, w->format == FORMAT_BF16, w->cols);
        for (size_t i = 0; next && i < panel; i += LINE_BYTES) _mm_prefetch(next + (size_t)p * panel + i, _MM_HINT_T0);
        many_rows(&m, x, sum, n, (size_t)p * PANEL_LANES);
    }
    for (int i = 0; i < VECTORS_OF_TILE; i++) many_lift(&m, i);
    return largest(m.most);
}

#endif
