/* The libraries that our matrix products are measured against: OpenBLAS and oneDNN.  For the benchmark alone.
 *
 * Both are optional and loaded when they are asked for; one that is absent is ERR_IO with a line that says what to install.
 * oneDNN needs its header (version 2) when this is compiled.
 *
 *     rival_open(&r, RIVAL_ONEDNN_BF16, 2, e);
 *     rival_prepare(r, w, (struct rival_shape){.rows = 512, .n = 5632, .k = 2048, .copies = 4}, e);
 *     rival_input(r, x);      not to be timed: converts to what the library computes with
 *     rival_run(r, e);        to be timed: the product and nothing else
 *     rival_output(r, y);     not to be timed: as f32, to be checked before timing
 *     rival_close(r);
 *
 * Weights are in the library's own favourite layout, converting the inputs is not charged to it, and of oneDNN's two
 * operations the faster one is taken: the bar is as high as it can be.
 * u8s8: weights have a scale per row; inputs one scale and 7 bits, because without VNNI the library adds pairs of products in
 * 16 bits, which 8 bits overflow.
 *
 * Threads: open and run from one thread.  After a run on several threads the library's others spin for a while (OpenBLAS
 * about 30 ms) and would disturb whatever is timed next: rival_rest() waits until that is over.
 */
#ifndef NUM_RIVALS_H
#define NUM_RIVALS_H

#include <stdbool.h>

#include "base/err.h"

enum rival_kind { RIVAL_OPENBLAS, RIVAL_ONEDNN_F32, RIVAL_ONEDNN_BF16, RIVAL_ONEDNN_U8S8, RIVAL_KINDS };

struct rival_shape {
    int rows, n, k; /* y[rows][n] = x[rows][k] w[n][k]^T, all dense */
    int copies;     /* of the weights in memory, at least 1; runs take turns, so that no cache need hold the next one */
};

struct rival;

/* Loads the library, `threads` threads.  The environment is as before when it returns; no other thread may read it meanwhile.
 * ERR_IO: not there; ERR_LIMIT: no memory, or the library refuses. */
status rival_open(struct rival **out, enum rival_kind kind, int threads, struct err *e);
void rival_close(struct rival *r); /* NULL is fine */

/* Takes copies of w [n][k].  ERR_LIMIT, for oneDNN also if it has no implementation on this processor. */
status rival_prepare(struct rival *r, const float *w, struct rival_shape shape, struct err *e);
void rival_input(struct rival *r, const float *x); /* [rows][k] */
status rival_run(struct rival *r, struct err *e);
void rival_output(const struct rival *r, float *y); /* [rows][n] */
void rival_rest(const struct rival *r);

const char *rival_name(enum rival_kind kind); /* "openblas f32", "onednn bf16" */
/* Version, kernels, threads.  OpenBLAS: which kernels it picked, and what was put right.  oneDNN: which operation and
 * implementation was chosen for the shape prepared last; one with "ref" in its name is slow, the processor has nothing better. */
const char *rival_describe(const struct rival *r);
/* The largest error that a right answer may have, relative to the largest |y|, for well-behaved data. */
float rival_tolerance(enum rival_kind kind);

/* ---- OpenBLAS's choice of kernels ----
 *
 * OpenBLAS knows processors by their model numbers, and takes kernels of the year 2004 for an Intel model that is newer than
 * itself (0.3.21: five times slower).  rival_open() looks what it picks, and if the processor can do more, loads it again
 * with OPENBLAS_CORETYPE; a variable that the user has set is left alone. */
struct rival_processor {
    bool amd;
    bool avx, avx2, avx512; /* that the system lets programs use; avx2: with FMA; avx512: F, CD, BW, DQ and VL */
};

struct rival_processor rival_this_processor(void);
/* The core type to set, or NULL if `picked` uses what the processor has, or is a name that is not known here. */
const char *rival_core_type(struct rival_processor p, const char *picked);

#endif
