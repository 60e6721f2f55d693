/* Groupings that look at numbers in place of bits: rows of weights, and energies of neurons.  As those of grouping.h, on the threads of a gemm, with the same bits on any
 * number of them. */
#ifndef MOE_GROUPING_DENSE_H
#define MOE_GROUPING_DENSE_H

#include "moe/grouping.h"
#include "moe/predict.h"

struct group_cut {
    int neurons, shared, experts; /* of the layer; shared: neurons */
    const float *importance;      /* [neurons]: the shared ones are the most important; NULL with none */
    uint64_t seed;
    struct gemm *gemm;
    const struct alive *alive;
};

/* Balanced k-means (clustering.h) on rows x: [neurons][dim], each scaled to length 1 (MoEfication, arXiv 2110.01786: rows of W_gate). */
status group_kmeans(int *order, const struct group_cut *c, const float *x, int dim, struct err *e);

/* Co-activation: neurons that are strong on the same tokens come together (MoEfication; CMoE, arXiv 2502.04416): balanced k-means on
 * strong: [neurons] bit rows over `tokens` tokens, bit t of row j = neuron j is among its token's strongest by |z_j| * |w_down_j|. */
status group_coactivation(int *order, const struct group_cut *c, const uint64_t *strong, int tokens, struct err *e);

/* What neurons do on a sample of tokens. */
struct group_sample {
    int tokens, width;
    const float *h;      /* [tokens][width] input of the FFN */
    const float *energy; /* [tokens][neurons] ((z_j - mean z_j) * |w_down_j|)^2, what is lost in the output where j is off */
};

/* Groups that a router can tell apart.  From balanced k-means on energy profiles (root of the energies on PROFILE_TOKENS tokens), then in turns: the log energy of
 * every group predicted from h (predict.h, each token by a regression that has not seen it); the `active` experts with the largest prediction are a token's set;
 * neurons are assigned anew, in balance, so that the sets hold as much energy as possible.  Ends after PATIENCE turns without a gain, at most
 * TURNS_MAX; the best turn counts.  p: from s->h.  captured: share of the energy of all neurons that the shared ones and the predicted sets hold; NULL is fine.
 * Memory: floats: tokens * (routed neurons + 3 * experts) + neurons * (PROFILE_TOKENS + 2 * experts). */
enum { PROFILE_TOKENS = 1024, TURNS_MAX = 25, PATIENCE = 3 };
status group_predicted(int *order, const struct group_cut *c, const struct group_sample *s, struct predictor *p, int active,
                       double *captured, struct err *e);
/* The same share for any order. */
status group_captured(double *captured, const int *order, const struct group_cut *c, const struct group_sample *s,
                      struct predictor *p, int active, struct err *e);
/* The log energies that are predicted: y[tokens][experts] = log(energy of the expert + 1e-6 * their mean). */
void group_log_energy(float *y, const int *order, const struct group_cut *c, const struct group_sample *s);

#endif
