#include "num/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"

void ref_xwt(float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias)
{
    for (int t = 0; t < rows; t++)
        for (int n = 0; n < w->rows; n++) {
            double sum = 0.0;

            for (int k = 0; k < w->cols; k++) sum += (double)x[(size_t)t * ldx + k] * (double)mat_at(w, n, k);
            y[(size_t)t * ldy + n] = (float)(sum + (bias ? (double)bias[n] : 0.0));
        }
}

void ref_atb(float *c, const float *a, int n, const float *b, int d, int rows)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d; j++) {
            double sum = (double)c[(size_t)i * d + j];

            for (int t = 0; t < rows; t++) sum += (double)a[(size_t)t * n + i] * (double)b[(size_t)t * d + j];
            c[(size_t)i * d + j] = (float)sum;
        }
}

void ref_rms_norm(float *out, const float *x, const float *w, int rows, int width, float eps)
{
    for (int t = 0; t < rows; t++, x += width, out += width) {
        double sum = 0.0;

        for (int i = 0; i < width; i++) sum += (double)x[i] * (double)x[i];
        double scale = 1.0 / sqrt(sum / width + (double)eps);
        for (int i = 0; i < width; i++) out[i] = (float)((double)x[i] * scale * (double)w[i]);
    }
}

void ref_silu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) gate[i] = (float)((double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i]);
}

/* Turns per position of pair j, by the published formulas; M_PI * 2 turns are one wave. */
static double ref_speed(int j, int head_dim, const struct rope *r)
{
    double speed = pow(r->theta, -2.0 * j / head_dim);

    if (r->kind == ROPE_LINEAR) return speed / r->factor;
    if (r->kind == ROPE_LLAMA3) {
        double wave = 2.0 * M_PI / speed;

        if (wave > r->original_positions / r->low_freq_factor) return speed / r->factor;
        if (wave >= r->original_positions / r->high_freq_factor) {
            double smooth = (r->original_positions / wave - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);

            return (1.0 - smooth) * speed / r->factor + smooth * speed;
        }
    }
    return speed;
}

void ref_rope_apply(float *x, const int32_t *pos, int rows, int heads, int head_dim, const struct rope *r)
{
    for (int t = 0; t < rows; t++)
        for (int h = 0; h < heads; h++, x += head_dim)
            for (int j = 0; j < head_dim / 2; j++) {
                double angle = pos[t] * ref_speed(j, head_dim, r);
                double a = (double)x[j], b = (double)x[j + head_dim / 2];

                x[j] = (float)(a * cos(angle) - b * sin(angle));
                x[j + head_dim / 2] = (float)(b * cos(angle) + a * sin(angle));
            }
}

void ref_attend_row(float *out, const float *q, const float *k, const float *v, int n, int heads, int kv_heads, int head_dim)
{
    double *p = malloc((size_t)n * sizeof(*p) + 1);

    BUG_ON(!p);
    for (int h = 0; h < heads; h++) {
        int from = h / (heads / kv_heads);
        double most = -INFINITY, total = 0.0;

        for (int j = 0; j < n; j++) {
            p[j] = 0.0;
            for (int d = 0; d < head_dim; d++)
                p[j] += (double)q[h * head_dim + d] * (double)k[((size_t)j * kv_heads + from) * head_dim + d];
            p[j] /= sqrt((double)head_dim);
            if (p[j] > most) most = p[j];
        }
        for (int j = 0; j < n; j++) total += p[j] = exp(p[j] - most);
        for (int d = 0; d < head_dim; d++) {
            double sum = 0.0;

            for (int j = 0; j < n; j++) sum += p[j] / total * (double)v[((size_t)j * kv_heads + from) * head_dim + d];
            out[h * head_dim + d] = (float)sum;
        }
    }
    free(p);
}

void ref_softmax(float *x, int n)
{
    double lse = ref_log_sum_exp(x, n);

    for (int i = 0; i < n; i++) x[i] = (float)exp((double)x[i] - lse);
}

double ref_log_sum_exp(const float *x, int n)
{
    double most = -INFINITY, sum = 0.0;

    for (int i = 0; i < n; i++) most = fmax(most, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

int ref_argmax(const float *x, int n)
{
    int best = -1;

    for (int i = 0; i < n; i++)
        if (!isnan(x[i]) && (best < 0 || x[i] > x[best])) best = i;
    return best < 0 ? 0 : best;
}

/* By its rank: i is in the set if fewer than k others are larger, or equal and before it.  NaN counts as the smallest. */
void ref_top_k(uint64_t *set, const float *x, int n, int k)
{
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    for (int i = 0; i < n; i++) {
        int before = 0;

        for (int j = 0; j < n; j++) {
            int equal = x[j] == x[i] || (isnan(x[i]) && isnan(x[j]));
            int larger = x[j] > x[i] || (isnan(x[i]) && !isnan(x[j]));

            before += larger || (equal && j < i);
        }
        if (before < k) bits_set(set, i);
    }
}
