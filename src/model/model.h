/* A model on one rank: mapped weights, tables, the factorized FFNs, and room to run it. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "base/arena.h"
#include "comm/exchange.h"
#include "data/safetensors.h"
#include "model/shape.h"
#include "moe/moe.h"
#include "num/attention.h"

struct model;

struct model_limits {
    int rows;             /* most token rows of one forward pass */
    int sessions;         /* slots of the KV cache */
    int positions;        /* of one session */
    enum kv_format kv;    /* of the KV cache */
    bool oracle;          /* finetune and eval: room for labels */
    bool verify;          /* look for NaN and infinity in the weights this rank maps */
    bool calibration;     /* bind calibration.safetensors (static control); ERR_SPEC if the model has none */
    struct moe_wire wire; /* what travels between ranks */
};

/* Bytes that this rank takes beside the mapped weights; mapped: bytes of weights it maps.  From the shape alone, loads nothing. */
struct model_cost {
    size_t weights, kv, work, exchange;
};
void model_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks, size_t element_bytes,
                struct model_limits limits);

/* Local.  Binds what `rank` needs: the coordinator attention, embeddings, norms, head and shared experts; every rank its own experts.
 * g, x (NULL with one rank), p and a are borrowed.  The coordinator pings through x meanwhile.  ERR_IO, ERR_FORMAT, ERR_LIMIT. */
status model_open(struct model **out, const char *directory, const struct shape *s, const struct placement *p, int rank,
                  struct model_limits limits, struct gemm *g, struct exchange *x, struct arena *a, struct err *e);
void model_close(struct model *m);

const struct shape *model_shape(const struct model *m);
const struct model_limits *model_limits_of(const struct model *m);
struct moe *model_moe(struct model *m);
size_t model_mapped_bytes(const struct model *m);
/* Coordinator, a dense model: the whole FFN of a layer. */
const struct expert *model_dense_ffn(const struct model *m, int layer);

#endif
