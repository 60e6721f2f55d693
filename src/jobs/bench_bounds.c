/* What the arithmetic of a shape allows.  Pure. */
#include <math.h>

#include "jobs/bench.h"
#include "num/packed.h"

double bench_format_bytes(int format)
{
    enum { ROWS = 1024, COLS = 1024 }; /* large enough that nothing is padded */
    enum format f = (enum format)format;

    return (double)(packed_line_bytes(f, ROWS, COLS) + packed_scale_bytes(f, ROWS, COLS)) / ((double)ROWS * COLS);
}

double bench_attention_weights(const struct shape *s)
{
    double width = s->width, q = (double)s->heads * s->head_dim, kv = (double)s->kv_heads * s->head_dim;

    return s->layers * (2 * width * q + 2 * width * kv) + (double)s->vocab * width;
}

double bench_ffn_weights(const struct shape *s)
{
    return (double)s->layers * 3 * s->neurons * s->width;
}

double bench_touched(int experts, int active, int sequences)
{
    return 1 - pow(1 - (double)active / experts, sequences);
}

double bench_gain(const struct shape *s, double f)
{
    double rest = bench_attention_weights(s), ffn = bench_ffn_weights(s);

    return (rest + ffn) / (rest + f * ffn);
}

double bench_prefill_flops(const struct shape *s, double f, int n)
{
    double head = (double)s->vocab * s->width, pairs = 0.5 * n * (n + 1.0);
    double rows = bench_attention_weights(s) - head + f * bench_ffn_weights(s);

    return 2 * (n * rows + head) + 4 * pairs * s->layers * s->heads * s->head_dim;
}
