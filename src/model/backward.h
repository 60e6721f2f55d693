/* The backward pass, in the pieces that forward.h has: gradients of a loss with respect to the states of the residual stream.  Coordinator only.
 *
 * Weights are frozen: gradients pass through them (model_limits.train) and none are made of them.  A trainer keeps the states in front of attention and behind it of every
 * layer, and takes the loop over layers into its own hands, from the last to the first, because the FFN between these pieces is its own (moe_backward(), gates, routers).
 * What a piece needs beside those states it computes once more, a norm; or it is kept: queries, keys and values, with backward_keep().
 * Windows: sessions of a batch are whole windows, positions 0, 1, 2, ...
 * Shapes: T rows, D width, V vocabulary.  Everything is computed in f32 on the coordinator, in an order that depends on the batch alone.
 */
#ifndef MODEL_BACKWARD_H
#define MODEL_BACKWARD_H

#include "model/forward.h"

struct backward;

/* Room for passes of the model's rows; m is borrowed.  ERR_LIMIT. */
status backward_open(struct backward **out, struct model *m, struct err *e);
void backward_close(struct backward *b); /* NULL is fine */
size_t backward_cost(const struct shape *s, struct model_limits limits, int threads);

/* dhidden [n, D] = dlogits [n, V] back through the head. */
void backward_logits(struct backward *b, const float *dlogits, int n, float *dhidden);
/* dx [T, D] of the states x behind the last layer. */
void backward_norm(struct backward *b, const float *dhidden, const float *x, int rows, float *dx);
/* h [T, D]: what entered the layer's FFN, from the states behind its attention. */
void backward_ffn_input(struct backward *b, int layer, const float *middle, int rows, float *h);
/* dx += dh back through the norm in front of the FFN. */
void backward_ffn_norm(struct backward *b, int layer, const float *dh, const float *middle, int rows, float *dx);
/* Straight after forward_attention() of all rows of a batch, whose queries, keys and values of the layer it keeps: backward_attention() of the layer wants them. */
void backward_keep(struct backward *b, int layer, int rows);
/* dx, of the states behind attention, becomes that of the states x in front of it. */
void backward_attention(struct backward *b, int layer, const struct batch *batch, const float *x, float *dx);
/* After it: the error [T, D] behind the norm in front of that attention. */
const float *backward_attention_normed(const struct backward *b);

#endif
