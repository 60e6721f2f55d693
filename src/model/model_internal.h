/* What model.c binds and forward.c runs. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/kvcache.h"
#include "model/model.h"

struct tile { /* rows of one session that attend together, from the first of the part that is on */
    int first, rows;
};

struct block { /* one layer's attention; vectors are widened */
    struct packed q, k, v, o;
    float *q_bias, *k_bias, *v_bias;  /* NULL: none */
    float *attention_norm, *ffn_norm; /* [D] */
    /* limits.train: [D outputs, inputs of Q, K and V side by side], [heads * head_dim outputs, D inputs] */
    struct packed qkv_t, o_t;
};

struct model {
    struct shape shape;
    struct model_limits limits;
    struct gemm *gemm;
    struct moe *moe;
    struct moe_layer *moe_layers;
    struct expert *experts; /* [layers][N] */
    struct weights weights;
    struct safetensors *calibration;
    struct arena *packed;  /* weights.memory */
    struct timing *timing; /* NULL: nobody counts */
    int rank;
    bool coordinator;

    /* coordinator only */
    struct mat embed; /* mapped: rows are looked up */
    struct packed head, head_t; /* head_t, with limits.train: [D outputs, V inputs] */
    struct block *blocks;
    float *final_norm, *rope; /* rope: [positions][head_dim] */
    struct kvcache kv;
    float *x, *h;             /* [rows][D] residual stream, FFN input */
    float *q, *k, *v, *mixed; /* [rows][heads or kv_heads][head_dim] */
    struct tile *tiles;       /* [rows] */
    void *quantized;          /* rows of one product, for weights that need them quantized: rows_bytes() */
};

/* The weights that gradients go back through (transposed.c): counted, or taken and packed. */
void transposed_take(struct model *m, const struct placement *p, struct arena_taker *t);

/* The memory of forward.c, counted or taken: the KV cache, and room for the rows of a pass. */
void forward_take_cache(struct model *m, struct arena_taker *t);
void forward_take_work(struct model *m, struct arena_taker *t);

#endif
