/* Models to measure on: a given shape, random weights, in the Hugging Face format.  They say nothing, but they cost what the real ones do. */
#ifndef JOBS_BENCH_MODEL_H
#define JOBS_BENCH_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mat.h"

struct bench_shape {
    int width, neurons, layers, heads, kv_heads, vocab, positions;
    bool tied; /* the head is the embedding */
    enum dtype dtype;
};

/* "tinyllama" (1.1B), "quillan" (the small model that ships), then or instead "key=value" with commas between: width, neurons, layers, heads, kv_heads,
 * vocab, positions, tied (0, 1), dtype (f32, f16, bf16); what is not said is TinyLlama's.  Or the path of a config.json.  ERR_SPEC, and ERR_FORMAT
 * and ERR_IO of the file. */
status bench_shape_parse(struct bench_shape *out, const char *text, struct err *e);
int64_t bench_shape_parameters(const struct bench_shape *s);

/* Makes DIRECTORY: config.json, model.safetensors, a tokenizer.json of bytes that is filled up to the vocabulary.  Weights are functions of (seed, tensor,
 * place) alone: about normal, standard deviation 0.02, what is added to the residual stream over sqrt(2 * layers), norms 1.  Holds no more than a few
 * rows in memory.  ERR_SPEC if the directory has a model already.  `log` may be NULL. */
status bench_make_model(const char *directory, const struct bench_shape *s, uint64_t seed, struct log *log, struct err *e);

#endif
