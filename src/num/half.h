/* Activations as bfloat16: `precision.activations: bf16`.
 *
 * For bf16 weights only, rows are rounded to bfloat16 (nearest even) once, and products take two inputs in one step where the processor has instructions for that.
 * They add in an order of their own, so that results depend on the level (isa.h), though on nothing else: a row's result is still the same in any company, on any number
 * of threads and ranks.
 *   amx        for every 32 inputs the sums of the even and of the odd ones, each in order with fused multiply-adds, then the two, then added to what there is; denormals are 0
 *   bf16       chains of CHAIN = 256 inputs, in which for every pair the odd and then the even one is added; the chains' results in order; denormals are 0
 *   below      the definition in kernel.h, over the rounded rows
 * The first two as Intel's manual describes the instructions; a processor may differ in the last bit of a pair. */
#ifndef NUM_HALF_H
#define NUM_HALF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "num/kernel.h"

/* Elements from one row of rows.half to the next: whole blocks, and one more where else the rows of a tile would meet in few sets of the cache. */
static inline size_t half_ld(int cols)
{
    size_t blocks = (size_t)packed_blocks(cols);

    return (blocks + (blocks % 16 == 0 && blocks > 0)) * QUANT_BLOCK;
}

/* Most inputs of a product with such rows; below bf16 they are widened into so much. */
enum { HALF_COLS = 1 << 16 };

size_t half_bytes(int n, int cols);
/* Places r->half in `memory` of rows_bytes(), aligned to 64, where rows_room() puts nothing. */
void half_room(struct rows *r, void *memory);
/* Rounds blocks block .. block + blocks - 1 (of 32 inputs) of rows first .. first + n - 1, which are where rows_quantize_part() says; half_room() came before.  Any thread. */
void half_fill(struct rows *r, const float *x, size_t ld, int first, int n, int block, int blocks);

/* The kernels for rows with `half`, up to the level `most`: products of bf16 weights with such rows are as above, all others are kernel_for()'s. */
const struct kernel *kernel_half_for(enum isa most);
/* Whether a small product of k's is right, within what bfloat16 and the order of additions allow: a processor, or an emulator, may claim what it cannot do. */
bool half_check(const struct kernel *k);

#endif
