/* The small operations of a transformer, each on plain arrays.  ref.h has the same in the plainest loops: the definition.
 * All are row-invariant: a row's result depends on nothing but the row. */
#ifndef NUM_OPS_H
#define NUM_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * w; x, out: [rows, width]; out may be x.  (Zhang and Sennrich, arXiv 1910.07467.) */
void rms_norm(float *out, const float *x, const float *w, int rows, int width, float eps);

/* x[i] += y[i], n elements. */
void add_to(float *x, const float *y, size_t n);

/* gate[i] = silu(gate[i]) * up[i], n elements. */
void silu_mul(float *gate, const float *up, size_t n);

/* Rotary embedding in halves (element j turns with element j + head_dim / 2), x: [rows, heads, head_dim], row t at position pos[t].
 * table: from rope_table().  (Su et al., arXiv 2104.09864; halves as in Hugging Face.) */
void rope_apply(float *x, const int32_t *pos, int rows, int heads, int head_dim, const float *table);

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };
struct rope {
    enum rope_kind kind;
    double theta, factor;                                         /* factor: linear and llama3 */
    double low_freq_factor, high_freq_factor, original_positions; /* llama3 */
};
/* table[positions][head_dim]: head_dim / 2 cosines, then head_dim / 2 sines; computed in double. */
void rope_table(float *table, int positions, int head_dim, const struct rope *r);

void softmax(float *x, int n);             /* in place, with the maximum taken out */
double log_sum_exp(const float *x, int n); /* in double */
int argmax(const float *x, int n);         /* the lower index of equals; NaN never wins; 0 if all are NaN */

/* set = the k largest of x[0 .. n-1]; of equals the lower index.  set: bits_words(n) words, overwritten. */
void top_k(uint64_t *set, const float *x, int n, int k);
/* set = all i with x[i] > threshold. */
void above(uint64_t *set, const float *x, int n, float threshold);

#endif
