/* What a model directory says about itself: dimensions and conventions from config.json, checked. */
#ifndef MODEL_SHAPE_H
#define MODEL_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "num/ops.h"

enum { MODEL_LAYERS_MAX = 512, MODEL_EXPERTS_MAX = 4096 };

struct shape {
    char architecture[64]; /* LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM */
    int layers, width, neurons, heads, kv_heads, head_dim, vocab, positions;
    float eps;
    struct rope rope;
    bool tied, qkv_bias;
    int32_t bos, eos[8]; /* bos -1: the model has none, then windows begin with eos[0] */
    int n_eos;
    int window; /* sliding window of attention, 0: none (positions are then limited to it) */

    /* the `factorization` object; experts == 0: a dense model */
    int experts;                     /* N routed */
    int active;                      /* k, the mean over the layers to the nearest */
    int active_of[MODEL_LAYERS_MAX]; /* k of every layer */
    int shared[MODEL_LAYERS_MAX];    /* shared neurons per layer */
    float scale;                     /* of active experts */
    bool compensate;                 /* has mlp.compensation */
    bool sliced;                     /* a dense model, opened as `experts` slices of its FFN, all of them active: shape_slice() */
    bool adapted;    /* weights were trained after it was factorized: the sum of all experts is not the dense model */
    bool calibrated; /* has calibration.safetensors: neuron means and importances, for the static control */
    char method[32], grouping[32];
    char source_digest[65];
};

/* Reads DIRECTORY/config.json.  ERR_IO, ERR_FORMAT; an architecture or a feature we do not know is refused by name. */
status shape_read(struct shape *s, const char *directory, struct err *e);
/* A dense model whose FFN is spread over the ranks: runs of neurons in place of experts, as many of PANEL_LANES neurons or more as make at most SHAPE_SLICES, whatever
 * the number of ranks.  A factorized model stays as it is. */
enum { SHAPE_SLICES = 64 };
void shape_slice(struct shape *s);
int64_t shape_parameters(const struct shape *s); /* all, tied head counted once; routers not counted */
int64_t shape_ffn_parameters(const struct shape *s);
double shape_active_share(const struct shape *s); /* f by design: (shared + k * m) / F, mean over layers; 1 when dense */
/* neurons[layers]: together `share` of all, in the proportions that the layers have by design; what a layer has not got goes to the others.  0 < share <= 1. */
void shape_neurons_at(int *neurons, const struct shape *s, double share);
int shape_expert_neurons(const struct shape *s, int layer, int expert);

#endif
