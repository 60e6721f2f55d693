/* What the arithmetic of a shape allows.  Pure. */
#include <math.h>

#include "jobs/bench.h"

double bench_format_bytes(enum format format)
{
    enum { ROWS = 1024, COLS = 1024 }; /* large enough that nothing is padded */

    return (double)(packed_line_bytes(format, ROWS, COLS) + packed_scale_bytes(format, ROWS, COLS)) / ((double)ROWS * COLS);
}

double bench_attention_weights(const struct shape *s)
{
    double width = s->width, q = (double)s->heads * s->head_dim, kv = (double)s->kv_heads * s->head_dim;

    return s->layers * (2 * width * q + 2 * width * kv);
}

double bench_ffn_weights(const struct shape *s)
{
    return (double)s->layers * 3 * s->neurons * s->width;
}

double bench_head_weights(const struct shape *s)
{
    return (double)s->vocab * s->width;
}

double bench_touched(int experts, int active, int sequences)
{
    return 1 - pow(1 - (double)active / experts, sequences);
}

double bench_step_bytes(const struct shape *s, const enum format format[WEIGHT_PARTS], double touched)
{
    return bench_attention_weights(s) * bench_format_bytes(format[WEIGHTS_ATTENTION]) +
           bench_head_weights(s) * bench_format_bytes(format[WEIGHTS_HEAD]) +
           touched * bench_ffn_weights(s) * bench_format_bytes(format[WEIGHTS_EXPERTS]);
}

double bench_prefill_flops(const struct shape *s, double f, int n)
{
    double ffn = f * bench_ffn_weights(s), all = 0.5 * n * (n + 1.0), heads = (double)s->heads * s->head_dim;
    double weights = n * (bench_attention_weights(s) + ffn), pairs = s->layers * all;

    /* the last layer is asked for one row: of the others it takes keys and values */
    weights -= (n - 1) * (ffn / s->layers + 2 * heads * s->width);
    pairs -= all - n;
    return 2 * (weights + bench_head_weights(s)) + 4 * pairs * heads;
}
