/* The definition of num: every operation of gemm.h and ops.h in the plainest loops, sums in double.  For tests, and for a benchmark to check
 * itself before it times.  Arguments as there. */
#ifndef NUM_REF_H
#define NUM_REF_H

#include "base/mat.h"
#include "num/ops.h"

void ref_xwt(float *y, size_t ldy, const float *x, size_t ldx, int rows, const struct mat *w, const float *bias);
void ref_atb(float *c, const float *a, int n, const float *b, int d, int rows);

void ref_rms_norm(float *out, const float *x, const float *w, int rows, int width, float eps);
void ref_silu_mul(float *gate, const float *up, size_t n);
void ref_rope_apply(float *x, const int32_t *pos, int rows, int heads, int head_dim, const struct rope *r);
/* One query row over a cache: out[heads, head_dim] = softmax(q k^T / sqrt(head_dim)) v.  Query head h reads key/value head h / (heads / kv_heads).
 * k, v: [n, kv_heads, head_dim] for positions 0 .. n-1. */
void ref_attend_row(float *out, const float *q, const float *k, const float *v, int n, int heads, int kv_heads, int head_dim);
void ref_softmax(float *x, int n);
double ref_log_sum_exp(const float *x, int n);
int ref_argmax(const float *x, int n);
void ref_top_k(uint64_t *set, const float *x, int n, int k);

#endif
