/* What this machine can do, measured: the yardstick that rates of products and of whole steps are held against.  Not a promise: other work on the machine
 * lowers it as it lowers what is compared with it, so measure it beside, not once for all. */
#ifndef NUM_PROBE_H
#define NUM_PROBE_H

#include "base/err.h"
#include "num/gemm.h"

struct probe {   /* all threads of the gemm together */
    double read; /* bytes/s read from memory, of the best of the ways tried */
    double fma;  /* operations/s of f32 fused multiply-adds in registers, two each */
    /* The same of exact products of bytes, by the instructions with which AVX2 has most of them (PAIR_SUMS in kernel_quant.h): two additions of 16 bits, a multiplication of
     * pairs and an addition of 32 bits for 32 multiply-adds.  Of the level AVX2 only, else 0. */
    double bytes;
};

struct probe_memory; /* what is read: larger than the caches */

/* Takes `bytes` of memory and touches it on all threads.  ERR_LIMIT. */
status probe_open(struct probe_memory **out, struct gemm *g, size_t bytes, struct err *e);
void probe_close(struct probe_memory *m); /* NULL is fine */

/* One round: the memory is read once in each way; the multiply-adds of a kind take about `seconds`. */
void probe_round(struct probe *out, struct gemm *g, struct probe_memory *m, double seconds);

#endif
