/* The forward pass.  Coordinator only.
 *
 * A batch is rows of (token, position, session), rows of one session together and in order of position.  Attention writes keys and values of
 * every row into the session's cache first and then reads positions 0 .. pos, so a prompt may come in one or several passes.
 * Row-invariant and exact over ranks: a row's output depends on its session's tokens alone.
 * Shapes: T rows, D width, V vocabulary.
 */
#ifndef MODEL_FORWARD_H
#define MODEL_FORWARD_H

#include "model/model.h"

struct batch {
    int rows;
    const int32_t *token, *position, *session;
    const uint64_t *key; /* for ROUTE_RANDOM, or NULL */
    /* Whose hidden state is wanted, or NULL: all.  The others end with the last layer's keys and values (of a split model: with its attention), and what is written for them means nothing. */
    const bool *asked;
    bool decodes; /* every row is the next token of its session: what routing.batch_experts is for */
};

/* hidden: [T, D] after the final norm.  micro_batches 2: the batch is cut in the middle where that may hide waiting (other ranks hold experts, and the rows
 * are so many that reading all weights twice costs little); 1: never.  The bits are the same.
 * ERR_RANK and STOPPED from the exchange.
 * Of routing.batch_experts: only a batch that decodes is held to it, and as a whole, never cut. */
status forward(struct model *m, const struct batch *b, const struct routing *how, int micro_batches, float *hidden,
               struct err *e);
/* The same, cut in `parts` (1 or 2) whatever the rows: for tests and measurements. */
status forward_parts(struct model *m, const struct batch *b, const struct routing *how, int parts, float *hidden, struct err *e);
/* logits: [n, V] of n rows of hidden; over all ranks if the model is split (model/split.h), then ERR_RANK and STOPPED. */
status forward_words(struct model *m, const float *hidden, int n, float *logits, struct err *e);
/* The same of a model that is not split. */
void forward_logits(struct model *m, const float *hidden, int n, float *logits);

/* The pieces, for the trainer, which takes the loop over layers into its own hands. */
void forward_embed(struct model *m, const struct batch *b, float *x); /* x: [T, D] */
void forward_attention(struct model *m, int layer, const struct batch *b, int first, int rows, float *x,
                       float *h); /* rows of b; x, h: those rows.  x += attention; h = FFN input */
void forward_norm(struct model *m, const float *x, int rows, float *hidden);
/* After forward_attention() of a split model: what ended it, ERR_RANK or STOPPED; OK else. */
status forward_failed(const struct model *m, struct err *e);

#endif
