/* One product y = x w^T, done over and over by us or by another library: checked once, then timed.
 *
 * The weights lie in memory several times, more than the caches hold, and runs take turns with them: as in a model, whose layers follow each other.
 */
#ifndef JOBS_BENCH_PRODUCT_H
#define JOBS_BENCH_PRODUCT_H

#include "num/gemm.h"
#include "num/rivals.h"

struct bench_rivals { /* the libraries that compute with weights of a format */
    int n;
    enum rival_kind kind[2];
};
extern const struct bench_rivals bench_rivals[FORMAT_COUNT];

struct bench_operands { /* random; shared by all who compute with them */
    int rows, n, k;     /* x: [rows][k], w: [n][k] */
    float *x, *w;
};
status bench_operands_open(struct bench_operands *o, int rows, int n, int k, struct err *e);
void bench_operands_close(struct bench_operands *o);

struct bench_product;

/* Ours, in `format`; its input is quantized, or rounded after gemm_use_half(), before anything is timed.  The operands are borrowed. */
status bench_product_ours(struct bench_product **out, struct gemm *g, const struct bench_operands *o, enum format format,
                          struct err *e);
/* A library's; ERR_IO: it is not there. */
status bench_product_rival(struct bench_product **out, enum rival_kind kind, int threads, const struct bench_operands *o,
                           struct err *e);
void bench_product_close(struct bench_product *p); /* NULL is fine */

/* Runs it once and holds elements of the answer (every 37th of many rows and the last, about 100 columns of each) against sums in double: ours against what the packed weights say (the definition of the format), and
 * everybody's against the weights as they were, within what the format may lose.  ERR_GATE with what was found. */
status bench_product_check(struct bench_product *p, struct err *e);
/* Seconds of one run, the mean over as many as fill `seconds`; negative: a library failed. */
double bench_product_time(struct bench_product *p, double seconds);

/* The same of the first outputs of ours, so many that their weights stay in the caches: what the instructions allow.  *outputs: how many. */
double bench_product_cached(struct bench_product *p, double seconds, int *outputs);

const char *bench_product_name(const struct bench_product *p); /* "ours", "openblas f32", ... */
double bench_product_bytes(const struct bench_product *p);     /* of the weights of one run; a library's: 0 */

#endif
