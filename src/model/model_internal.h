/* What model.c binds and forward.c runs. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/kvcache.h"
#include "model/model.h"

enum { ATTEND_TASKS = 64 }; /* pieces that the attention of a batch is cut into, each with room for one row's scores */

struct block { /* one layer's attention; vectors are widened */
    struct packed q, k, v, o;
    float *q_bias, *k_bias, *v_bias;  /* NULL: none */
    float *attention_norm, *ffn_norm; /* [D] */
};

struct model {
    struct shape shape;
    struct model_limits limits;
    struct gemm *gemm;
    struct moe *moe;
    struct moe_layer *moe_layers;
    struct expert *experts; /* [layers][N] */
    struct safetensors *weights, *calibration;
    struct arena *packed; /* weights, in the layout of the kernels */
    int rank;

    /* coordinator only */
    struct mat embed; /* mapped: rows are looked up */
    struct packed head;
    struct block *blocks;
    float *final_norm, *rope; /* rope: [positions][head_dim] */
    struct kvcache kv;
    float *x, *h;             /* [rows][D] residual stream, FFN input */
    float *q, *k, *v, *mixed; /* [rows][heads or kv_heads][head_dim] */
    float *scores;            /* [ATTEND_TASKS][positions] */
};

#endif
