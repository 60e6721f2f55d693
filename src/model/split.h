/* Attention and the head over all ranks (tensor parallel): every rank has some KV heads with the query heads that read them, and their part of the
 * cache, some outputs of the o projection, and some words of the head.
 *
 * The coordinator sends rows of a layer to all, computes its own part meanwhile, and puts theirs beside it:
 *   ATTEND  positions and slots i32 [n] each, then normed rows [n][D]   ->  [n][query heads of the rank * head_dim]
 *   OUT     what all heads gave, [n][heads * head_dim]                  ->  [n][outputs of the rank]
 *   HEAD    hidden states [n][D]                                        ->  [n][words of the rank]
 * all f32, whatever cluster.exchange_rows and exchange_answers say, which are for experts; parts begin at multiples of 64 bytes.  A head, and an output of a product, does not depend on the others (num/kernel.h), so the bits are those of one rank.
 * This file knows who has what and moves rows; what is computed stands in forward.c.
 */
#ifndef MODEL_SPLIT_H
#define MODEL_SPLIT_H

#include "model/model.h"

enum split_kind { SPLIT_ATTEND, SPLIT_OUT, SPLIT_HEAD, SPLIT_KINDS };
enum { SPLIT_KIND_FIRST = 20, SPLIT_KIND_LAST = SPLIT_KIND_FIRST + SPLIT_KINDS - 1, SPLIT_HEAD_ROWS = 64 /* at once */ };

/* What a rank has: KV heads, outputs of o, words of the head.  All of it without a split, and nothing if the rank is no coordinator then. */
struct split_part {
    struct span heads, out, words;
};
struct split_part split_part(const struct shape *s, struct model_limits limits, int rank, int ranks);

/* Raises x to what travels; nothing without a split. */
void split_limits(struct exchange_limits *x, const struct shape *s, struct model_limits limits, int ranks);

/* Bytes of a token in a layer that leave rank 0 for attention, and that come back. */
void split_traffic(const struct shape *s, struct model_limits limits, int ranks, double *out, double *back);

/* Coordinator.  Posts n rows to all that have a part; then takes their parts of a result [n][ld] to where the part of the rank belongs.  An error stays in the model
 * (forward_failed()), and nothing is moved from then on.  Nothing else is in flight in slot 0.  position, session: of ATTEND. */
void split_ask(struct model *m, enum split_kind kind, int layer, int n, const int32_t *position, const int32_t *session,
               const float *x);
void split_take(struct model *m, enum split_kind kind, int n, float *to, size_t ld);

/* Follower: answers a request of kinds SPLIT_KIND_FIRST .. SPLIT_KIND_LAST, which came in x. */
void split_answer(struct model *m, struct exchange *x, const struct request *r, const void *payload);

#endif
