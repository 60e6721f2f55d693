/* The small operations, fast: lanes.h says how. */
#include "num/ops.h"

#include <math.h>
#include <string.h>

#include "base/bits.h"
#include "num/lanes.h"

/* ---- norm, activation ---- */

BODY void rms_norm_body(float *out, const float *x, const float *w, int rows, int width, float eps)
{
    for (int t = 0; t < rows; t++, x += width, out += width) {
        double lane[LANES] = {0}, sum = 0.0;
        int i = 0;

        for (; i + LANES <= width; i += LANES)
            for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * (double)x[i + l];
        for (; i < width; i++) lane[i % LANES] += (double)x[i] * (double)x[i];
        for (int l = 0; l < LANES; l++) sum += lane[l];

        float scale = (float)(1.0 / sqrt(sum / width + (double)eps));
        for (i = 0; i < width; i++) out[i] = x[i] * scale * w[i];
    }
}
TWICE(, rms_norm, (float *out, const float *x, const float *w, int rows, int width, float eps), (out, x, w, rows, width, eps))

BODY void add_to_body(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}
TWICE(, add_to, (float *x, const float *y, size_t n), (x, y, n))

BODY void silu_mul_body(float *gate, const float *up, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        lanes8 *g = (lanes8 *)(gate + i), e = -*g;

        exp_lanes(&e);
        *g = *g / (1.0f + e) * *(const lanes8 *)(up + i);
    }
    for (; i < n; i++) gate[i] = gate[i] / (1.0f + exp_lane(-gate[i])) * up[i];
}
TWICE(, silu_mul, (float *gate, const float *up, size_t n), (gate, up, n))

/* ---- rotary embedding ---- */

static double rope_speed(const struct rope *r, int pair, int head_dim)
{
    double speed = pow(r->theta, -(double)(2 * pair) / head_dim), wave, smooth;

    switch (r->kind) {
    case ROPE_PLAIN:
        return speed;
    case ROPE_LINEAR:
        return speed / r->factor;
    case ROPE_LLAMA3:
        break;
    }
    /* Llama 3.1: long waves are stretched by the factor, short ones stay, between them it fades over. */
    wave = 2.0 * M_PI / speed;
    if (wave < r->original_positions / r->high_freq_factor) return speed;
    if (wave > r->original_positions / r->low_freq_factor) return speed / r->factor;
    smooth = (r->original_positions / wave - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return speed * ((1.0 - smooth) / r->factor + smooth);
}

void rope_table(float *table, int positions, int head_dim, const struct rope *r)
{
    int half = head_dim / 2;

    for (int j = 0; j < half; j++) {
        double speed = rope_speed(r, j, head_dim);

        for (int p = 0; p < positions; p++) {
            table[(size_t)p * head_dim + j] = (float)cos(p * speed);
            table[(size_t)p * head_dim + half + j] = (float)sin(p * speed);
        }
    }
}

BODY void rope_apply_body(float *x, const int32_t *pos, int rows, int heads, int head_dim, const float *table)
{
    int half = head_dim / 2;

    for (int t = 0; t < rows; t++) {
        const float *restrict c = table + (size_t)pos[t] * head_dim, *restrict s = c + half;

        for (int h = 0; h < heads; h++, x += head_dim) {
            float *restrict low = x, *restrict high = x + half;

            for (int j = 0; j < half; j++) {
                float a = low[j], b = high[j];

                low[j] = a * c[j] - b * s[j];
                high[j] = b * c[j] + a * s[j];
            }
        }
    }
}
TWICE(, rope_apply, (float *x, const int32_t *pos, int rows, int heads, int head_dim, const float *table),
      (x, pos, rows, heads, head_dim, table))

/* ---- over a row of scores ---- */

void softmax(float *x, int n)
{
    double most = -INFINITY, sum = 0.0;

    for (int i = 0; i < n; i++) most = (double)x[i] > most ? (double)x[i] : most;
    for (int i = 0; i < n; i++) {
        double p = exp((double)x[i] - most);

        x[i] = (float)p;
        sum += p;
    }
    for (int i = 0; i < n; i++) x[i] = (float)((double)x[i] / sum);
}

double log_sum_exp(const float *x, int n)
{
    double most = -INFINITY, sum = 0.0;

    for (int i = 0; i < n; i++) most = (double)x[i] > most ? (double)x[i] : most;
    if (isinf(most)) return most;
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

/* The largest first, then where it is first: two passes without branches are much faster than one with. */
BODY void argmax_in_body(const float *x, int n, int *best)
{
    lanes8 high[4];
    float most = -INFINITY;
    int i = 0;

    for (int k = 0; k < 4; k++) high[k] = (lanes8){0} + most;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) raise_lanes(&high[k], (const lanes8 *)(x + i + k * LANES)); /* a NaN is never larger */
    for (int k = 0; k < 4; k++)
        for (int l = 0; l < LANES; l++) most = high[k][l] > most ? high[k][l] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;

    *best = 0;
    for (i = 0; i + LANES <= n; i += LANES) {
        bits8 equal = *(const lanes8 *)(x + i) == (lanes8){0} + most;
        int32_t any = 0;

        for (int l = 0; l < LANES; l++) any |= equal[l];
        if (any) break;
    }
    for (; i < n; i++)
        if (x[i] == most) {
            *best = i;
            return;
        }
}
TWICE(static, argmax_in, (const float *x, int n, int *best), (x, n, best))

int argmax(const float *x, int n)
{
    int best;

    argmax_in(x, n, &best);
    return best;
}

/* Ordered as the floats are, equal ones equal, NaN below all. */
static uint32_t order_of(float x)
{
    uint32_t bits;

    if (isnan(x)) return 0;
    if (x == 0) return 0x80000000; /* of either sign */
    memcpy(&bits, &x, sizeof(bits));
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* For k that are not small: the k-th largest is found byte by byte from above, by counting. */
static void top_many(uint64_t *set, const float *x, int n, int k)
{
    uint32_t least = 0, known = 0; /* bits of the k-th largest, and which of them are found */

    for (int shift = 24; shift >= 0; shift -= 8) {
        int count[256] = {0}, b = 255;

        for (int i = 0; i < n; i++) {
            uint32_t key = order_of(x[i]);

            if ((key & known) == least) count[key >> shift & 255]++;
        }
        for (; count[b] < k; b--) k -= count[b];
        least |= (uint32_t)b << shift;
        known |= (uint32_t)255 << shift;
    }
    for (int i = 0; i < n; i++) {
        uint32_t key = order_of(x[i]);

        if (key > least || (key == least && k-- > 0)) bits_set(set, i);
    }
}

/* Few: k passes, each takes the largest that the passes before did not.  Many: top_many(), the same set.  NaN counts as smaller than everything. */
void top_k(uint64_t *set, const float *x, int n, int k)
{
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    if (k > 16 && k < n && n >= 128) {
        top_many(set, x, n, k);
        return;
    }
    for (; k > 0; k--) {
        int best = -1;

        for (int i = 0; i < n; i++) {
            if (bits_has(set, i)) continue;
            if (best < 0 || x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
        }
        if (best < 0) return;
        bits_set(set, best);
    }
}

void above(uint64_t *set, const float *x, int n, float threshold)
{
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    for (int i = 0; i < n; i++)
        if (x[i] > threshold) bits_set(set, i);
}
