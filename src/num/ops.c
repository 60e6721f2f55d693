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

void rope_apply(float *x, const int32_t *pos, int rows, int heads, int head_dim, const float *table)
{
    int half = head_dim / 2;

    for (int t = 0; t < rows; t++) {
        const float *c = table + (size_t)pos[t] * head_dim, *s = c + half;

        for (int h = 0; h < heads; h++, x += head_dim)
            for (int j = 0; j < half; j++) {
                float a = x[j], b = x[j + half];

                x[j] = a * c[j] - b * s[j];
                x[j + half] = b * c[j] + a * s[j];
            }
    }
}

/* ---- attention ---- */

/* s[j] = q . k_j * scale, k_j at k + j * stride; returns the largest. */
BODY float attend_scores(float *s, const float *q, const float *k, size_t stride, int n, int d, float scale)
{
    float most = -INFINITY;

    for (int j = 0; j < n; j++, k += stride) {
        lanes8 lane = {0};
        int i = 0;

        for (; i + LANES <= d; i += LANES) lane += *(const lanes8 *)(q + i) * *(const lanes8 *)(k + i);
        for (int l = 0; i < d; i++, l++) lane[l] += q[i] * k[i];
        float sum = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
        s[j] = sum * scale;
        most = s[j] > most ? s[j] : most;
    }
    return most;
}

/* s = exp(s - most); returns the sum, in lanes. */
BODY float attend_exp(float *s, int n, float most)
{
    float lane[LANES] = {0}, sum = 0.0f;
    int j = 0;

    for (int i = 0; i < n; i++) s[i] = exp_lane(s[i] - most);
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += s[j + l];
    for (int l = 0; j < n; j++, l++) lane[l] += s[j];
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

/* out = sum_j s[j] v_j / total, in order of j for every element; four vectors at a time stay in registers. */
BODY void attend_mix(float *out, const float *s, const float *v, size_t stride, int n, int d, float total)
{
    float inverse = 1.0f / total;
    int i = 0;

    for (; i + 4 * LANES <= d; i += 4 * LANES) {
        lanes8 a = {0}, b = {0}, c = {0}, e = {0};
        const float *at = v + i;

        for (int j = 0; j < n; j++, at += stride) {
            a += s[j] * *(const lanes8 *)at;
            b += s[j] * *(const lanes8 *)(at + LANES);
            c += s[j] * *(const lanes8 *)(at + 2 * LANES);
            e += s[j] * *(const lanes8 *)(at + 3 * LANES);
        }
        *(lanes8 *)(out + i) = a * inverse;
        *(lanes8 *)(out + i + LANES) = b * inverse;
        *(lanes8 *)(out + i + 2 * LANES) = c * inverse;
        *(lanes8 *)(out + i + 3 * LANES) = e * inverse;
    }
    for (; i + LANES <= d; i += LANES) {
        lanes8 a = {0};

        for (int j = 0; j < n; j++) a += s[j] * *(const lanes8 *)(v + j * stride + i);
        *(lanes8 *)(out + i) = a * inverse;
    }
    for (; i < d; i++) {
        float a = 0.0f;

        for (int j = 0; j < n; j++) a += s[j] * v[j * stride + i];
        out[i] = a * inverse;
    }
}

BODY void attend_row_body(float *out, const float *q, const float *k, const float *v, int n, int heads, int kv_heads,
                          int head_dim, float *scratch)
{
    size_t stride = (size_t)kv_heads * head_dim;
    float scale = (float)(1.0 / sqrt((double)head_dim));

    for (int h = 0; h < heads; h++, q += head_dim, out += head_dim) {
        size_t from = (size_t)(h / (heads / kv_heads)) * head_dim;
        float most = attend_scores(scratch, q, k + from, stride, n, head_dim, scale);

        attend_mix(out, scratch, v + from, stride, n, head_dim, attend_exp(scratch, n, most));
    }
}
TWICE(, attend_row,
      (float *out, const float *q, const float *k, const float *v, int n, int heads, int kv_heads, int head_dim, float *scratch),
      (out, q, k, v, n, heads, kv_heads, head_dim, scratch))

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

int argmax(const float *x, int n)
{
    float most = -INFINITY;
    int best = -1;

    for (int i = 0; i < n; i++) {
        if (x[i] > most) {
            most = x[i];
            best = i;
        } else if (best < 0 && x[i] == most) {
            best = i;
        }
    }
    return best < 0 ? 0 : best;
}

/* k passes: each takes the largest that the passes before did not.  NaN counts as smaller than everything. */
void top_k(uint64_t *set, const float *x, int n, int k)
{
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
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
