/* What the small operations of a transformer pass back: gradients of a loss, on one thread, over plain arrays.
 *
 * With a loss L and an operation y = f(x), each takes dy = dL/dy and gives dx = dL/dx.  Weights are frozen, so nothing here makes gradients of matrices; products pass
 * back through W' as packed by pack_transposed() (packed.h).  Element-wise arithmetic and sums are in the order of the C text, so results depend neither on the threads
 * nor on the processor; a row's result depends on the row alone (of attention: on its window alone).
 */
#ifndef NUM_BACKWARD_H
#define NUM_BACKWARD_H

#include <stddef.h>
#include <stdint.h>

#include "num/kernel.h"

/* y = rms_norm(x, w): dx += dy J; x, dy, dx: [rows, width], no two the same. */
void rms_norm_backward(float *dx, const float *dy, const float *x, const float *w, int rows, int width, float eps);

/* The norm's own weights: dw[width] += the sum over rows of dy * x / rms(x), in the order of the rows. */
void rms_norm_weight_backward(float *dw, const float *dy, const float *x, int rows, int width, float eps);

/* Of y = rope_apply(x): dy in place. */
void rope_backward(float *dy, const int32_t *pos, int rows, int heads, int head_dim, const float *table);

/* z[j] = silu(gate[j]) * up[j]; n is a multiple of 8.  gate and up become dL/dgate and dL/dup for dL/dz = dz, and dz becomes z[j] * dz[j]. */
void silu_mul_backward(float *gate, float *up, float *dz, int n);

/* Two losses of a student's logits s against a teacher's t and the next token, and their gradient:
 *   kl = sum_v p_v (log p_v - log q_v), p = softmax(t), q = softmax(s);  nll = -log q[target]
 * s becomes d(kl + lm * nll)/ds; t is destroyed.  kl and nll are added to. */
void distill_backward(float *s, float *t, int n, int target, double lm, double *kl, double *nll);

/* Attention of one window, positions 0 .. rows - 1, with the query heads of one KV head: out_i = sum_{j <= i} p_ij v_j, p_i = softmax_j(q_i k_j / sqrt(head_dim)).
 * Row t, query head h at q + t * ldq + h * head_dim, and so dout and dq with their ld; row t of k, v at + t * ldk, and of dk, dv at + t * lddk. dq, dk, dv are set. */
struct attend_backward {
    const struct kernel *kernel;
    int rows, heads, head_dim;
    const float *q, *k, *v, *dout;
    size_t ldq, ldk, ldout;
    float *dq, *dk, *dv;
    size_t lddq, lddk;
};
size_t attend_backward_bytes(int rows, int head_dim);
/* scratch: the kernel's; room: attend_backward_bytes(), aligned to 64. */
void attend_backward(const struct attend_backward *a, void *scratch, void *room);

#endif
