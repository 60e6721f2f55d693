/* What the dense model does on a text: per neuron, streaming over the tokens.
 *
 * z_j is a neuron's value, silu(gate_j . h) * (up_j . h).  For every layer: the sums behind mean and variance of z_j, and on request which
 * neurons are a token's strongest, by |z_j| * |w_down_j|, on an even sample of the tokens.
 * Memory: 16 bytes per neuron; the sample is cut so that its bits stay below STRONG_BYTES_MAX and STRONG_TOKENS_MAX tokens; one batch
 * of `rows` tokens takes rows * (2 * D + 2 * F) floats.  Nothing grows with the text.
 */
#ifndef JOBS_CALIBRATE_H
#define JOBS_CALIBRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/corpus.h"
#include "data/safetensors.h"
#include "jobs/job.h"

enum { STRONG_TOKENS_MAX = 4096, STRONG_BYTES_MAX = 512 << 20, STRONG_SHARE = 4 /* a quarter of the neurons */ };

struct calibration {
    int layers, neurons;
    int64_t tokens;
    double *sum, *square; /* [layers][neurons] */
    float *down_norm;     /* [layers][neurons] |w_down_j| */
    int strong_tokens;    /* of the sample */
    uint64_t *strong;     /* [layers][neurons][bits_words(strong_tokens)], or NULL */
};

/* Runs the dense model m over the whole text in windows of `window` tokens.  weights: the same model's files, for the FFNs.  ERR_LIMIT, ERR_FORMAT,
 * STOPPED. */
status calibrate(struct calibration *c, struct job *j, struct model *m, struct safetensors *weights, const struct corpus *text,
                 int window, bool strong, struct err *e);
void calibration_free(struct calibration *c);

double calibration_mean(const struct calibration *c, int layer, int neuron);
/* Var(z_j) * |w_down_j|^2: what a layer's output loses, in the mean square, where neuron j is replaced by its mean. */
double calibration_importance(const struct calibration *c, int layer, int neuron);

#endif
