/* What the dense model does on a text: per neuron, in one streaming pass over the tokens, spread over the ranks.
 *
 * z_j is a neuron's value, silu(gate_j . h) * (up_j . h).  The dense model is opened in slices (model_limits.slices): every rank holds runs of neurons, computes them for
 * all rows, answers with its share of the FFN's output, and keeps the sums behind mean and variance of z_j, and z_j on an even sample of the tokens
 * (moe/moe.h, moe_note()).  The coordinator runs all else of the forward pass and keeps the FFN's input of the sampled tokens.  The bits do not depend on the number
 * of ranks, on the placement, or on how the text is cut into batches.
 * Memory, besides that of the open model (which has the notes: 16 + 2 * sample bytes a neuron, over the ranks): on the coordinator 20 bytes a neuron,
 * 2 * sample * D bytes a layer, and rows * 2 * D floats.  Nothing grows with the text: the sample has at most calibration.profile_tokens tokens, and is cut
 * so that all of it, on all ranks, stays below calibration.profile_mib.
 */
#ifndef JOBS_CALIBRATE_H
#define JOBS_CALIBRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/corpus.h"
#include "data/safetensors.h"
#include "jobs/job.h"

enum { STRONG_TOKENS_MAX = 4096, STRONG_SHARE = 4 /* a quarter of the neurons */ };

struct calibration {
    int layers, neurons, width;
    int64_t tokens;
    double *sum, *square; /* [layers][neurons] */
    float *down_norm;     /* [layers][neurons] |w_down_j| */
    int sample;           /* tokens of it; 0: none was asked for */
    uint16_t *h;          /* [layers][sample][width] bfloat16 */
};

/* Runs the dense model m, open with slices and notes and as many tokens of a sample as limits.sample or the text have, over the whole text in windows of `window` tokens.  weights: the same
 * model's files, for the norms of W_down.  ERR_LIMIT, ERR_FORMAT, ERR_RANK, STOPPED. */
status calibrate(struct calibration *c, struct job *j, struct model *m, struct safetensors *weights, const struct corpus *text,
                 int window, struct err *e);
void calibration_free(struct calibration *c);

double calibration_mean(const struct calibration *c, int layer, int neuron);
/* Var(z_j) * |w_down_j|^2: what a layer's output loses, in the mean square, where neuron j is replaced by its mean. */
double calibration_importance(const struct calibration *c, int layer, int neuron);

/* Of the sample, while m is open; floats.  z: [sample][neurons], gathered from the ranks; h: [sample][width]. */
status calibration_values(const struct calibration *c, struct model *m, int layer, float *z, struct err *e);
void calibration_inputs(const struct calibration *c, int layer, float *h);
/* In place: ((z_j - mean z_j) * |w_down_j|)^2 */
void calibration_energies(const struct calibration *c, int layer, float *z);
/* Bit rows [neurons][bits_words(tokens)] over `tokens` tokens evenly out of the sample: neuron j is among the strongest quarter of its token, by |z_j| * |w_down_j|; of equals the
 * lower ones.  Malloc'ed; *tokens: sample or STRONG_TOKENS_MAX. */
uint64_t *calibration_strong(const struct calibration *c, int layer, const float *z, int *tokens, const struct alive *alive);

#endif
