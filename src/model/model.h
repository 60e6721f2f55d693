/* A model on one rank: weights, tables, the factorized FFNs, and room to run it. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "base/arena.h"
#include "comm/exchange.h"
#include "model/shape.h"
#include "model/weights.h"
#include "moe/moe.h"
#include "num/attention.h"

struct model;

struct model_limits {
    int rows;             /* most token rows of one forward pass */
    int sessions;         /* slots of the KV cache */
    int positions;        /* of one session */
    enum kv_format kv;    /* of the KV cache */
    bool oracle;          /* finetune and eval: room for labels */
    bool train;           /* finetune end to end: weights transposed, too, and moe_backward() */
    bool adapt;           /* and weights of experts, too (moe_adapt_*()): a factorized model, with `train` */
    int lora;             /* by updates of this rank, 0: whole; */
    uint64_t lora_seed;   /* of their random numbers */
    bool verify;          /* look for NaN and infinity in the weights this rank maps */
    bool calibration;     /* bind calibration.safetensors (static control); ERR_SPEC if the model has none */
    bool slices;          /* a dense model's FFN is spread over the ranks: shape_slice() */
    bool notes;           /* moe_note(), */
    int sample;           /* with so many tokens at most */
    struct moe_wire wire; /* what travels between ranks */
    int coordinators;     /* the lowest ranks, which have attention, and `sessions` in equal shares; 0: one */
    bool split;           /* attention and head are parted among all ranks (split.h); with one coordinator */
    struct precision precision;
    bool half;     /* activations are bfloat16 where weights are (num/half.h); whoever has the gemm sees to it */
    size_t beside; /* bytes that the job takes on the coordinator beside the model; they only count */
};

/* What one coordinator has of all sessions. */
static inline int model_share(int sessions, int coordinators)
{
    return coordinators > 1 ? (sessions + coordinators - 1) / coordinators : sessions;
}

/* Bytes of one rank.  From the shape and the plan alone, loads nothing. */
struct model_cost {
    size_t mapped;  /* read-only views of files, which ranks of one host share: packed weights, the embedding */
    size_t weights; /* packed when the model is opened */
    size_t kv, work, exchange;
    size_t beside; /* limits.beside, on rank 0 */
    size_t
        common; /* of `mapped`: the same pages for every coordinator (attention, head, embedding, shared experts); 0 if these are parted */
};
void model_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks,
                const struct weights_plan *plan, struct model_limits limits);
static inline size_t model_cost_total(const struct model_cost *c)
{
    return c->mapped + c->weights + c->kv + c->work + c->exchange + c->beside;
}

/* Bytes of the ranks of one host together: what several coordinators map in common is there once; experts and parts of a split belong to one rank each. */
struct host_cost {
    size_t apart, common;
};
static inline void host_cost_add(struct host_cost *h, const struct model_cost *c)
{
    h->apart += model_cost_total(c) - c->common;
    if (h->common < c->common) h->common = c->common;
}
static inline size_t host_cost_total(const struct host_cost *h)
{
    return h->apart + h->common;
}

/* What travels between ranks for a model with these limits: raises x to it. */
void model_exchange_limits(struct exchange_limits *x, const struct shape *s, int ranks, struct model_limits limits);

/* Local.  Binds what `rank` needs: the coordinator attention, embeddings, norms, head and shared experts; every rank its own experts, and its part of a split.  What a packed file
 * has is used in place, else weights are packed into memory.
 * g, x (NULL with one rank), p and a are borrowed.  The coordinator pings through x meanwhile.  ERR_IO, ERR_FORMAT, ERR_LIMIT. */
status model_open(struct model **out, const char *directory, const struct shape *s, const struct placement *p, int rank,
                  struct model_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e);
void model_close(struct model *m);

/* Where this rank's time is counted from now on; NULL: nowhere. */
void model_time(struct model *m, struct timing *t);

const struct shape *model_shape(const struct model *m);
const struct model_limits *model_limits_of(const struct model *m);
struct timing *model_timing(const struct model *m);
struct gemm *model_gemm(const struct model *m);
struct moe *model_moe(struct model *m);
const struct weights_plan *model_weights(const struct model *m);
size_t model_packed_bytes(const struct model *m); /* packed into memory by this rank */
/* Coordinator: the means of a layer's experts, [N, D], or NULL if the model has none. */
const float *model_means(const struct model *m, int layer);
/* Coordinator: the weights of all its norms of a kind, [layers][D] or [D] of the last one; returns how many.  out NULL: only that. */
enum model_norm { MODEL_NORM_ATTENTION, MODEL_NORM_FFN, MODEL_NORM_LAST };
size_t model_norms(const struct model *m, enum model_norm which, float *out);
void model_set_norms(struct model *m, enum model_norm which, const float *from); /* a training's */
/* Coordinator, a dense model: the whole FFN of a layer. */
const struct expert *model_dense_ffn(const struct model *m, int layer);

#endif
