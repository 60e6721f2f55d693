/* One expert whose weights are trained: what it was, what it is, gradients and AdamW's moments, all on the rank that holds it.
 *
 * A weight matrix is kept neuron by neuron, [n][D]: gate, up, and down transposed, so that all three parts look alike.  Either the weights themselves are trained, or
 * (lora) an update of low rank of every part (Hu et al., arXiv 2106.09685): W = W_0 + B A, A [r][D] and B [n][r], A random and B zero at the start.  Each expert has its own B A,
 * not one A for a layer: so everything about an expert stays where the expert is, and nothing but rows travels between ranks, as with whole weights.
 * The kernels read the weights from packed copies, the student's; those of the teacher, which the model was opened with, stay as they are.  What gradients go back through
 * (expert.in_t, down_t) is the student's.
 * Memory, floats: 3 n D each of base, gradient, moments (2) and packed weights; of lora base, gradient, packed weights, and 4 * 3 r (n + D).
 */
#ifndef MOE_ADAPTED_H
#define MOE_ADAPTED_H

#include "base/arena.h"
#include "moe/expert.h"
#include "num/adamw.h"

enum { ADAPTED_PARTS = 3, ADAPTED_SOME = 16 /* neurons at a time: whole panels */ };

struct adapted {
    int neurons, width, rank;     /* rank: of lora, 0: whole weights */
    size_t each;                  /* parameters of a part: n * D, or r * (D + n), A first */
    float *base, *gradient;       /* [parts][n][D]; base: W, or W_0 of lora */
    float *param, *slope, *m, *v; /* [parts][each]; of whole weights param is base and slope is gradient */
    float *merged;                /* lora: [ADAPTED_SOME][D] */
    struct packed own[ADAPTED_PARTS], first[ADAPTED_PARTS]; /* gate, up, down: the student's; those it was opened with */
};

/* Counts, or takes the memory of *a. */
void adapted_take(struct adapted *a, struct arena_taker *t, int neurons, int width, int rank);
/* Where everything begins: the weights of x as the kernels use them.  key: of lora's random numbers, one for each expert of a model. */
void adapted_start(struct adapted *a, const struct expert *x, uint64_t key);
/* x computes with the student's weights, or with those it was opened with. */
void adapted_use(const struct adapted *a, struct expert *x, bool student);
/* The gradient of the parameters, from that of the weights. */
void adapted_slope(struct adapted *a);
double adapted_squares(const struct adapted *a); /* of slope */
/* Step number `steps` + 1 with gscale * slope; decay is for all of it. */
void adapted_step(struct adapted *a, int64_t steps, double gscale, double rate, const struct adamw_options *o);
/* The packed weights, and x's transposed ones, become what the parameters say. */
void adapted_pack(struct adapted *a, struct expert *x);
/* W of neurons first .. first + n - 1 of a part: [n][D]. */
void adapted_weights(const struct adapted *a, int part, int first, int n, float *out);

#endif
