/* The matrices of a model directory in the layout of the kernels (num/packed.h): mapped from its packed file and used in place, or packed into memory
 * when the model is opened.
 *
 * The packed file, DIRECTORY/packed.safetensors or its shards, is made by `kind: convert`.  For a matrix NAME [rows][cols] it has
 *   NAME.lines  f32: F32 [panels, steps, 16]; bf16: BF16 [panels, steps, 16, 2]; q8 and q4: U8 [panels, steps, 16, 4]; at a multiple of 64 bytes
 *   NAME.scale  q8 and q4: BF16 [panels, blocks, 16]
 * where model.safetensors has NAME; a tied head is there as lm_head.weight, because it is read in another order than the embedding.  All other tensors
 * are as in model.safetensors.  __metadata__ names its version (`packed`) and the format of every part.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "base/alive.h"
#include "base/arena.h"
#include "data/safetensors.h"
#include "model/shape.h"
#include "num/gemm.h"

#define WEIGHTS_PACKED "packed" /* name of the packed file, without .safetensors */

enum weight_part { WEIGHTS_EXPERTS, WEIGHTS_ATTENTION, WEIGHTS_HEAD, WEIGHT_PARTS };
const char *weight_part_name(enum weight_part p); /* "experts", "attention", "head" */
/* The part that a tensor of model.safetensors belongs to, or -1: a norm, a bias, the embedding, ... */
int weight_part_of(const char *tensor);

/* What is asked for, a byte each: 0 as it is stored (that is: the format that keeps every value), else 1 + enum format. */
struct precision {
    uint8_t part[WEIGHT_PARTS];
    uint8_t router;   /* 0: f32 */
    uint8_t original; /* model.safetensors, although there is a packed file: what others are made of */
};

/* What a directory has, and what will be made of it.  From headers alone. */
struct weights_plan {
    bool packed; /* there is a packed file, and it has what is asked for */
    enum format format[WEIGHT_PARTS];
    enum dtype embedding;
};

/* ERR_SPEC if there is nothing but a packed file and its formats are not those asked for; ERR_IO, ERR_FORMAT. */
status weights_plan(struct weights_plan *out, const char *directory, const struct shape *s, const struct precision *wanted,
                    struct err *e);

/* The formats that the weights of `file` (model.safetensors) would be packed in. */
void weights_formats(enum format out[WEIGHT_PARTS], const struct safetensors *file, const struct shape *s,
                     const struct precision *wanted);

struct weights {
    struct weights_plan plan;
    struct safetensors *file;
    struct gemm *gemm;
    struct arena *memory; /* packed here, unless they are mapped */
    struct alive alive;
    bool verify; /* look for NaN and infinity in what was not converted */
};

/* Opens the file that weights_plan() chose.  gemm, memory (set before the first matrix) and alive are the caller's to fill. */
status weights_open(struct weights *w, const char *directory, const struct shape *s, const struct precision *wanted,
                    struct err *e);
void weights_close(struct weights *w);

/* Bytes of one matrix: of the arena, or of the file if the plan is to map it. */
size_t weights_cost(const struct weights_plan *p, enum weight_part part, int rows, int cols);
struct span {
    int first, n;
};
/* `name` as in model.safetensors, a matrix of so many rows, of which those of `held` are bound: whole panels, or up to the last row.  Views bound before may be gone,
 * unless the file is packed. */
status weights_matrix(struct weights *w, struct packed *out, enum weight_part part, const char *name, int rows, int cols,
                      struct span held, struct err *e);
/* Rows first .. first + rows - 1 of the `of` x cols matrix that is stored, or columns first .. first + cols - 1 of the rows x `of` one, whichever it is.  Not of a packed
 * file. */
status weights_slice(struct weights *w, struct packed *out, enum weight_part part, const char *name, int rows, int cols,
                     int first, int of, struct err *e);
/* Widened, because it is small and used in every row; from `from`, which is w->file or another file. */
status weights_vector(const struct weights *w, float *out, struct safetensors *from, const char *name, int n, struct err *e);
/* A view of a matrix as it is stored, e.g. the embedding. */
status weights_view(const struct weights *w, struct mat *out, const char *name, int rows, int cols, struct err *e);

/* ---- making it ---- */

/* All panels, on the threads of g, with signs of life. */
void pack_matrix(void *lines, uint16_t *scale, enum format f, const struct mat *m, struct gemm *g, const struct alive *alive);
void packed_declare(struct safetensors_writer *w, const char *name, enum format f, int rows, int cols);
/* What packing changed: sums of squares over the elements. */
struct packed_error {
    double difference, whole;
};
/* In pieces of few MiB.  `error` is added to. */
status packed_write(struct safetensors_writer *w, enum format f, const struct mat *m, struct gemm *g, const struct alive *alive,
                    struct packed_error *error, struct err *e);

#endif
