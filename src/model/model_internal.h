/* What model.c opens, bind.c fills and forward.c runs. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/kvcache.h"
#include "model/model.h"
#include "model/split.h"

struct tile { /* rows of one session that attend together, from the first of the part that is on */
    int first, rows;
};

struct asked_rows { /* [rows] each: of rows that are asked for, in the last layer */
    uint64_t *key;
    int32_t *position, *session;
};

struct block {                        /* one layer's attention; vectors are widened, and whole */
    struct packed q, k, v, o;         /* the part of this rank */
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
    int rank, ranks;
    bool coordinator;
    struct split_part part;    /* of this rank in attention and head */
    struct exchange *exchange; /* of a split, or NULL */
    struct err failed;         /* of a split: what ended it */

    /* coordinator only */
    struct mat embed; /* mapped: rows are looked up */
    float *final_norm;
    float *x, *h; /* [rows][D] residual stream, FFN input */
    float *mixed; /* [rows][heads][head_dim] */

    /* who has a part in attention */
    struct packed head, head_t; /* head_t, with limits.train: [D outputs, V inputs] */
    struct block *blocks;
    float *rope; /* [positions][head_dim] */
    struct kvcache kv;
    float *q, *k, *v;   /* [rows][this rank's heads or KV heads][head_dim] */
    struct tile *tiles; /* [rows] */
    struct asked_rows asked;
    void *quantized; /* rows of one product, for weights that need them quantized: rows_bytes() */
};

/* The matrices of a rank (model.c): one walk for what is planned and what is bound. */
struct matrix {
    struct packed *out; /* NULL while planning */
    enum weight_part part;
    int rows, cols;
    struct span held; /* rows */
    int first, of;    /* of > 0: all of these rows and columns, which are a part of a matrix of `of` neurons: weights_slice() */
    char name[128];
};

struct walk {
    status (*each)(void *ctx, const struct matrix *w);
    void *ctx;
};

/* In the order in which a step reads them; m->experts, m->moe_layers and m->blocks may be NULL. */
status walk_matrices(const struct walk *k, struct model *m, const struct placement *p, const struct weights_plan *plan);
bool model_holds(const struct model *m, const struct placement *p, int layer, int expert);

/* Fills what was taken, and points at what is mapped (bind.c); m->weights is open. */
status model_bind(struct model *m, const struct placement *p, const char *directory, struct err *e);

/* The weights that gradients go back through (transposed.c): counted, or taken and packed. */
void transposed_take(struct model *m, const struct placement *p, struct arena_taker *t);
/* The state of experts in training (trained.c), likewise, behind those. */
void trained_take(struct model *m, const struct placement *p, struct arena_taker *t);

/* The memory of forward.c, counted or taken: the KV cache, and room for the rows of a pass. */
void forward_take_cache(struct model *m, struct arena_taker *t);
void forward_take_work(struct model *m, struct arena_taker *t);

/* What this rank computes of attention and head; layer is ignored for the head.
 * Rows as the weights of `kind` want them; they use m->quantized. */
struct rows forward_input(struct model *m, const float *x, int cols, int n, enum split_kind kind, int layer);
/* Q, K, V, the cache and attention, of the rank's heads: row t at mixed + t * ld. */
void forward_heads(struct model *m, int layer, const int32_t *position, const int32_t *session, const struct rows *normed,
                   float *mixed, size_t ld);
/* The rank's outputs of o or words of the head. */
void forward_part(struct model *m, enum split_kind kind, int layer, const struct rows *in, float *out, size_t ld);

#endif
