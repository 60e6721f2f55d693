#include "num/pair_product.h"

#include "base/err.h"

#if defined(__x86_64__)

#include "num/line_avx2.h"

enum { MOST_CHAINS = 64, AHEAD = 2048 /* bytes that each of the streams asks for ahead of their use */ };

/* Chains of kernel.h, of one panel of both matrices: sum[chain][row][matrix][...]. */
struct pair {
    const float *x[PAIR_ROWS];
    const char *w[2];
    int inputs, chains;
    float sum[MOST_CHAINS][PAIR_ROWS][2][PANEL_LANES] __attribute__((aligned(64)));
};

INLINE void step(int rows, int wide, bool half, bool high, __m256 (*sum)[2][2][2], const float *const *x, const size_t *from,
                 const char *const (*w)[2])
{
#pragma GCC unroll 4
    for (int c = 0; c < wide; c++)
#pragma GCC unroll 4
        for (int m = 0; m < 2; m++) {
            __m256 low = line_of(w[c][m], half, high), up = line_of(w[c][m] + 32, half, high);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                __m256 a = _mm256_broadcast_ss(x[r] + from[c]);

                add_product(&sum[r][c][m][0], a, low);
                add_product(&sum[r][c][m][1], a, up);
            }
        }
}

/* Chains first[0] .. first[wide - 1], all of `inputs` inputs. */
INLINE void chains(int rows, int wide, bool half, struct pair *p, const int *first, int inputs)
{
    __m256 sum[PAIR_ROWS][2][2][2];
    const char *w[2][2];
    size_t from[2];
    int k = 0;

#pragma GCC unroll 4
    for (int c = 0; c < wide; c++) {
        from[c] = (size_t)first[c] * CHAIN;
#pragma GCC unroll 4
        for (int m = 0; m < 2; m++) {
            w[c][m] = p->w[m] + from[c] / (half ? 2 : 1) * LINE_BYTES;
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sum[r][c][m][0] = sum[r][c][m][1] = _mm256_setzero_ps();
        }
    }
    for (; k + 1 < inputs; k += 2) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (i / 2 < wide) _mm_prefetch(w[i / 2][i % 2] + AHEAD, _MM_HINT_T0);
            if (i / 2 < wide && !half) _mm_prefetch(w[i / 2][i % 2] + AHEAD + LINE_BYTES, _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int high = 0; high < 2; high++) {
            step(rows, wide, half, high, sum, p->x, from, (const char *const(*)[2])w);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                if (i % 2 == 0 && i / 2 < wide) from[i / 2]++;
                if (i / 2 < wide && (high || !half)) w[i / 2][i % 2] += LINE_BYTES;
            }
        }
    }
    if (k < inputs) step(rows, wide, half, false, sum, p->x, from, (const char *const(*)[2])w);
#pragma GCC unroll 4
    for (int c = 0; c < wide; c++)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int m = 0; m < 2; m++) {
                _mm256_store_ps(p->sum[first[c]][r][m], sum[r][c][m][0]);
                _mm256_store_ps(p->sum[first[c]][r][m] + 8, sum[r][c][m][1]);
            }
}

/* One row has two streams in each matrix, which read its two halves. */
INLINE void all_chains(int rows, bool half, struct pair *p)
{
    int whole = p->inputs / CHAIN, pairs = rows == 1 ? whole / 2 : 0, rest = p->inputs % CHAIN;

    for (int c = 0; c < pairs; c++) chains(rows, 2, half, p, (int[]){c, pairs + c}, CHAIN);
    for (int c = 2 * pairs; c < whole; c++) chains(rows, 1, half, p, &c, CHAIN);
    if (rest) chains(rows, 1, half, p, &whole, rest);
}

typedef void pair_function(struct pair *p);

#define ROWS(X) X(1) X(2) X(3)
#define PAIR_OF(rows)                                                                                                            \
    VECTORS static void f32_##rows(struct pair *p)                                                                               \
    {                                                                                                                            \
        all_chains(rows, false, p);                                                                                              \
    }                                                                                                                            \
    VECTORS static void bf16_##rows(struct pair *p)                                                                              \
    {                                                                                                                            \
        all_chains(rows, true, p);                                                                                               \
    }
ROWS(PAIR_OF)
#define ENTRY_OF(rows) [0][rows] = f32_##rows, [1][rows] = bf16_##rows,
static pair_function *const pairs_of[2][PAIR_ROWS + 1] = {ROWS(ENTRY_OF)};

/* y = s_0, y = y + s_1, ... */
static void add_chains(float *y, const struct pair *p, int row, int matrix)
{
    for (int l = 0; l < PANEL_LANES; l++) {
        float total = p->sum[0][row][matrix][l];

        for (int c = 1; c < p->chains; c++) total += p->sum[c][row][matrix][l];
        y[l] = total;
    }
}

bool pair_product_has(const struct kernel *k, const struct rows *x, const struct packed *wa, const struct packed *wb)
{
    return k->isa == ISA_AVX2 && wa->format == wb->format && !format_has_scales(wa->format) && !x->half && wa->cols >= 1 &&
           wa->cols <= MOST_CHAINS * CHAIN;
}

bool pair_product(const struct kernel *k, float *a, float *b, size_t ld, const struct rows *x, const int *index, int n,
                  const struct packed *wa, const struct packed *wb, int panel)
{
    struct pair p;
    size_t bytes = (size_t)panel * (size_t)packed_steps(wa->format, wa->cols) * LINE_BYTES;
    int chains = (wa->cols + CHAIN - 1) / CHAIN;

    BUG_ON(x->cols != wa->cols || wa->cols != wb->cols);
    if (n < 1 || n > PAIR_ROWS || !pair_product_has(k, x, wa, wb)) return false;
    for (int i = 0; i < n; i++) p.x[i] = x->x + (size_t)index[i] * x->ld;
    p.w[0] = (const char *)wa->lines + bytes;
    p.w[1] = (const char *)wb->lines + bytes;
    p.inputs = wa->cols, p.chains = chains;
    pairs_of[wa->format == FORMAT_BF16][n](&p);
    for (int i = 0; i < n; i++) {
        add_chains(a + (size_t)i * ld, &p, i, 0);
        add_chains(b + (size_t)i * ld, &p, i, 1);
    }
    return true;
}

#else

bool pair_product_has(const struct kernel *k, const struct rows *x, const struct packed *wa, const struct packed *wb)
{
    (void)k, (void)x, (void)wa, (void)wb;
    return false;
}

bool pair_product(const struct kernel *k, float *a, float *b, size_t ld, const struct rows *x, const int *index, int n,
                  const struct packed *wa, const struct packed *wb, int panel)
{
    (void)k, (void)a, (void)b, (void)ld, (void)x, (void)index, (void)n, (void)wa, (void)wb, (void)panel;
    return false;
}

#endif
