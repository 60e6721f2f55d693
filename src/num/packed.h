/* Weights as the kernels read them.
 *
 * A matrix W [rows][cols] (rows: outputs, cols: inputs, y = W x) is cut into panels of PANEL_LANES = 16 outputs.  A panel is a run of lines of 64 bytes, in
 * the order in which a product needs them: a line holds, for each of the 16 outputs, the same 32 bits' worth of consecutive inputs:
 *
 *   format  inputs in a line   element l of a line (output 16 p + l), inputs k, k + 1, ...
 *   f32     1                  the float
 *   bf16    2                  k in the low 16 bits, k + 1 in the high ones
 *   q8      4                  k + j in byte j: the quantized value + 128, unsigned
 *   q4      8                  k + j in the low, k + 4 + j in the high half of byte j: the quantized value + 8
 *
 * So one line is one AVX-512 register, two AVX2 ones, or a row of an AMX tile; a product of any number of rows reads a panel from one end to the other; and
 * no sum runs across lanes.  q8 and q4 have one scale for each QUANT_BLOCK = 32 inputs of an output, bfloat16, in an array of their own; a matrix whose
 * inputs are no multiple of 32 has a shorter last block.  Padding (outputs beyond rows, inputs beyond cols) has the value zero.
 *
 * Quantization: the scale is the least bfloat16 >= max |w| / 127 (q8), or of the block's largest-in-magnitude value / -8 (q4); 0 for a block of zeros.
 */
#ifndef NUM_PACKED_H
#define NUM_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/mat.h"

enum format { FORMAT_F32, FORMAT_BF16, FORMAT_Q8, FORMAT_Q4, FORMAT_COUNT };
enum { PANEL_LANES = 16, LINE_BYTES = 64, QUANT_BLOCK = 32 };

struct packed {            /* a view; whoever has the memory says how long it lives */
    const void *lines;     /* [panels][packed_steps()] lines, aligned to 64; NULL: this rank does not hold it */
    const uint16_t *scale; /* q8, q4: [panels][packed_blocks()][PANEL_LANES]; else NULL */
    enum format format;
    int rows, cols;
};

const char *format_name(enum format f); /* "f32", "bf16", "q8", "q4" */
bool format_parse(const char *name, enum format *out);
bool format_has_scales(enum format f);
int format_per_line(enum format f); /* inputs in a line: 1, 2, 4, 8 */
/* The format that keeps every value of t: f32 for F32 and F16, bf16 for BF16. */
enum format format_of(enum dtype t);

static inline int packed_panels(int rows)
{
    return (rows + PANEL_LANES - 1) / PANEL_LANES;
}
static inline int packed_blocks(int cols)
{
    return (cols + QUANT_BLOCK - 1) / QUANT_BLOCK;
}
int packed_steps(enum format f, int cols); /* lines of one panel */
size_t packed_line_bytes(enum format f, int rows, int cols);
size_t packed_scale_bytes(enum format f, int rows, int cols); /* 0 for f32 and bf16 */

/* Writes panels first .. first + panels - 1 of w into the arrays of the whole matrix (`lines` aligned to 64; scale may be NULL for f32 and bf16).
 * bf16 rounds to nearest even.  Any thread; panels are independent. */
void pack_panels(void *lines, uint16_t *scale, enum format f, const struct mat *w, int first, int panels);

/* Of W', with w->cols outputs and `inputs` inputs: writes W as its inputs at .. at + w->rows - 1 into panels first .. first + panels - 1 of f32 lines.  For what passes
 * back through W: exactly the weights that the kernels use, and several W beside one another are one product. */
void pack_transposed(void *lines, int inputs, int at, const struct packed *w, int first, int panels);

/* The weight that the kernels use in place of W[row][col]: the slow way, for tests and small things. */
float packed_at(const struct packed *p, int row, int col);

#endif
