#include "num/exact.h"

#if defined(__x86_64__)
#include "num/line_avx2.h"
#endif

static const uint32_t magnitude = 0x7fffffff, limit_bits = 0x47000000; /* of 2^15 */

void exact_begin(struct exact *e, const double *start, int columns)
{
    size_t cols = (size_t)e->cols;

    memset(e->terms, 0, (size_t)e->rows * sizeof(*e->terms));
    memset(e->sum, 0, (size_t)e->rows * cols * sizeof(*e->sum));
    e->most = 0;
    if (!start || e->rows == 0) return;
    for (int c = 0; c < columns; c++) {
        if (fabs(start[c]) < SUM_LIMIT) e->sum[c] = (int64_t)(start[c] / EXACT_UNIT);
        else e->most = magnitude; /* no number */
    }
    for (int r = 1; r < e->rows; r++) memcpy(e->sum + (size_t)r * cols, e->sum, cols * sizeof(*e->sum));
}

/* ---- terms: three widths of the same arithmetic ---- */

struct adding {
    uint64_t *sum; /* of the row numbered 0 */
    const int *at;
    const float *y;
    size_t cols, ldy;
    int n;
    float scale;
};

static uint32_t add_plain(const struct adding *a)
{
    uint32_t most = 0;

    for (int i = 0; i < a->n; i++) {
        uint64_t *sum = a->sum + (ptrdiff_t)a->at[i] * (ptrdiff_t)a->cols;
        const float *y = a->y + (size_t)i * a->ldy;

        for (size_t c = 0; c < a->cols; c++) {
            float x = a->scale * y[c];
            double lifted = (double)x + EXACT_MAGIC;
            uint64_t bits;
            uint32_t size;

            memcpy(&bits, &lifted, sizeof(bits));
            memcpy(&size, &x, sizeof(size));
            sum[c] += bits;
            size &= magnitude;
            most = size > most ? size : most;
        }
    }
    return most;
}

#if defined(__x86_64__)

VECTORS static uint32_t add_avx2(const struct adding *a)
{
    const __m256 scale = _mm256_set1_ps(a->scale);
    __m256i most = _mm256_setzero_si256();

    for (int i = 0; i < a->n; i++) {
        uint64_t *sum = a->sum + (ptrdiff_t)a->at[i] * (ptrdiff_t)a->cols;
        const float *y = a->y + (size_t)i * a->ldy;

        for (size_t c = 0; c < a->cols; c += 8) most = lift8(sum + c, _mm256_loadu_ps(y + c), scale, most);
    }
    return largest(most);
}

__attribute__((target("avx512f,avx512dq,fma"))) static uint32_t add_avx512(const struct adding *a)
{
    const __m256 scale = _mm256_set1_ps(a->scale);
    const __m512d magic = _mm512_set1_pd(EXACT_MAGIC);
    __m256i most = _mm256_setzero_si256();

    for (int i = 0; i < a->n; i++) {
        uint64_t *sum = a->sum + (ptrdiff_t)a->at[i] * (ptrdiff_t)a->cols;
        const float *y = a->y + (size_t)i * a->ldy;

        for (size_t c = 0; c < a->cols; c += 8) {
            __m256 x = _mm256_mul_ps(scale, _mm256_loadu_ps(y + c));
            __m512d lifted = _mm512_add_pd(_mm512_cvtps_pd(x), magic);

            most = larger(most, x);
            _mm512_storeu_si512(sum + c, _mm512_add_epi64(_mm512_loadu_si512(sum + c), _mm512_castpd_si512(lifted)));
        }
    }
    return largest(most);
}

static uint32_t add_rows(enum isa isa, const struct adding *a)
{
    if (isa >= ISA_AVX512) return add_avx512(a);
    if (isa >= ISA_AVX2) return add_avx2(a);
    return add_plain(a);
}

#else

static uint32_t add_rows(enum isa isa, const struct adding *a)
{
    (void)isa;
    return add_plain(a);
}

#endif

void exact_add(struct exact *e, enum isa isa, const int *at, int first, int n, const float *y, size_t ldy, float scale)
{
    size_t cols = (size_t)e->cols;
    struct adding a = {(uint64_t *)e->sum - (ptrdiff_t)first * (ptrdiff_t)cols, at, y, cols, ldy, n, scale};
    uint32_t most = add_rows(isa, &a);

    e->most = most > e->most ? most : e->most;
    for (int i = 0; i < n; i++) e->terms[at[i] - first]++;
}

void exact_take(struct exact *e, const int *at, int first, int n, const float *x, int columns)
{
    for (int c = 0; c < columns; c++) {
        uint64_t term = (uint64_t)exact_of(x[c]);
        uint32_t size;

        memcpy(&size, &x[c], sizeof(size));
        size &= magnitude;
        e->most = size > e->most ? size : e->most;
        for (int i = 0; i < n; i++) {
            int64_t *sum = e->sum + (size_t)(at[i] - first) * (size_t)e->cols + (size_t)c;

            *sum = (int64_t)((uint64_t)*sum - term);
        }
    }
}

/* ---- sums ---- */

/* 0 for sums of the range, which is (-2^15, 2^15] here. */
static uint64_t beyond(int64_t sum)
{
    return ((uint64_t)sum + (UINT64_C(1) << 50) - 1) >> 51;
}

/* exact_value() of a sum in the range, in a way that every processor has vectors for: the bits of 1.5 * 2^52 plus the sum are a double. */
static double value_in_range(int64_t sum)
{
    const double magic = 0x1.8p52;
    uint64_t bits = UINT64_C(0x4338000000000000) + (uint64_t)sum;
    double lifted;

    memcpy(&lifted, &bits, sizeof(lifted));
    return (lifted - magic) * EXACT_UNIT;
}

static double first_beyond(const int64_t *sum, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (beyond(sum[i])) return exact_value(sum[i]);
    return 0.0;
}

void exact_merge(struct exact *e, const struct exact *part)
{
    size_t cells = (size_t)e->rows * (size_t)e->cols;

    for (size_t i = 0; i < cells; i++) e->sum[i] = (int64_t)((uint64_t)e->sum[i] + (uint64_t)part->sum[i]);
    for (int r = 0; r < e->rows; r++) e->terms[r] += part->terms[r];
    e->most = part->most > e->most ? part->most : e->most;
}

bool exact_settle(struct exact *e, double *found)
{
    uint64_t bad = 0;
    size_t cols = (size_t)e->cols;

    for (int r = 0; r < e->rows; r++) {
        uint64_t bias = (uint64_t)EXACT_BIAS * (uint64_t)e->terms[r];
        int64_t *sum = e->sum + (size_t)r * cols;

        for (size_t c = 0; c < cols; c++) {
            sum[c] = (int64_t)((uint64_t)sum[c] - bias);
            bad |= beyond(sum[c]);
        }
    }
    if (e->most < limit_bits && !bad) return true;
    if (e->most >= limit_bits) {
        float term;

        memcpy(&term, &e->most, sizeof(term));
        *found = (double)term;
    } else {
        *found = first_beyond(e->sum, (size_t)e->rows * cols);
    }
    return false;
}

bool exact_join(int64_t *out, const int64_t *part, int n, double *found)
{
    uint64_t bad = 0;

    for (int i = 0; i < n; i++) {
        out[i] += part[i];
        bad |= beyond(out[i]);
    }
    if (bad) *found = first_beyond(out, (size_t)n);
    return !bad;
}

bool exact_join_float(int64_t *out, const float *part, int n, double *found)
{
    for (int i = 0; i < n; i++) {
        if (!(fabsf(part[i]) <= (float)SUM_LIMIT)) {
            *found = (double)part[i];
            return false;
        }
        out[i] += exact_of(part[i]);
        if (beyond(out[i])) {
            *found = exact_value(out[i]);
            return false;
        }
    }
    return true;
}

void exact_to_float(float *out, const int64_t *sum, int n)
{
    for (int i = 0; i < n; i++) out[i] = (float)value_in_range(sum[i]);
}

void exact_finish(float *x, const int64_t *sum, int n)
{
    for (int i = 0; i < n; i++) x[i] += (float)value_in_range(sum[i]);
}
