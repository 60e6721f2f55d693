/* A weight matrix that somebody else owns, usually a view into a mapped file. */
#ifndef BASE_MAT_H
#define BASE_MAT_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DT_F32, DT_F16, DT_BF16 };

struct mat {
    const void *data; /* NULL: this rank does not hold it */
    enum dtype dtype;
    int rows, cols;
    size_t stride; /* elements from one row to the next, >= cols */
};

size_t dtype_bytes(enum dtype t);
const char *dtype_name(enum dtype t); /* as safetensors spells it: F32, F16, BF16 */

float widen_bf16(uint16_t x);
float widen_f16(uint16_t x);
uint16_t narrow_bf16(float x); /* round to nearest even; NaN stays NaN */
uint16_t narrow_f16(float x);  /* round to nearest even; too large becomes infinite */

/* out[rows * cols] = rows first_row .. first_row + rows - 1 of m as float32, exactly. */
void mat_widen(float *out, const struct mat *m, int first_row, int rows);
/* Elements one by one: the slow way, for what is not a hot loop. */
float mat_at(const struct mat *m, int row, int col);

#endif
