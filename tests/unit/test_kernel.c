/* Every level of kernels this processor has, and AMX with tiles in plain C, gives the bits of the definition, kernel_plain.c, over odd shapes and odd numbers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/kernel.h"
#include "num/kernel_levels.h"

#include "../emulate/amx_intrinsics.h"
#include "../emulate/vector_c.h"
#define EMULATE_AMX
#define MOST_ROWS  MOST_ROWS_OF_AMX
#define kernel_amx kernel_amx_in_c
#include "../../src/num/kernel_amx.c"
#undef kernel_amx
#undef MOST_ROWS

enum { MOST_ROWS = 250 };

/* What the command line may narrow down, for a processor that is emulated: `test_kernel LEVEL STEP` looks at one level and every STEP-th shape. */
struct narrow {
    enum isa first, last;
    int step;
};

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);

    assert_non_null(p);
    memset(p, 0xa5, (bytes + 127) & ~(size_t)63); /* of which nothing may be read before it is written */
    return p;
}

struct weights {
    struct packed p;
    float *from;
};

/* [rows][cols] at `from`, which is theirs from then on. */
static struct weights packed(enum format f, float *from, int rows, int cols)
{
    struct mat m = {from, DT_F32, rows, cols, (size_t)cols};
    uint16_t *scale = format_has_scales(f) ? room(packed_scale_bytes(f, rows, cols)) : NULL;
    void *lines = room(packed_line_bytes(f, rows, cols));

    pack_panels(lines, scale, f, &m, 0, packed_panels(rows));
    return (struct weights){{lines, scale, f, rows, cols}, from};
}

static struct weights weights(enum format f, int rows, int cols, struct rng *r)
{
    float *from = room((size_t)rows * (size_t)cols * sizeof(float));

    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++) from[i] = (float)rng_normal(r);
    return packed(f, from, rows, cols);
}

static void weights_free(struct weights *w)
{
    free((void *)w->p.lines);
    free((void *)w->p.scale);
    free(w->from);
}

static struct rows some_rows(int n, int cols, struct rng *r)
{
    size_t ld = (size_t)cols + 3;
    float *x = room((size_t)n * ld * sizeof(float));
    struct rows rows = {.x = x, .ld = ld, .n = n, .cols = cols};

    for (int t = 0; t < n; t++) {
        for (int k = 0; k < cols; k++) x[(size_t)t * ld + (size_t)k] = (float)rng_normal(r);
        for (size_t k = (size_t)cols; k < ld; k++) x[(size_t)t * ld + k] = NAN; /* behind a row nothing may be read */
    }
    return rows;
}

static void quantize(struct rows *r, bool wide)
{
    rows_room(r, room(rows_bytes(r->n, r->cols)), isa_best());
    if (wide) rows_wide_room(r, r->q);
    rows_quantize(r, 0, r->n);
}

static void rows_free(struct rows *r)
{
    free((void *)r->x);
    free(r->q);
}

/* The same bits; which NaN it is may differ. */
static bool same(const float *a, const float *b, int n)
{
    if (!memcmp(a, b, (size_t)n * sizeof(*a))) return true;
    for (int i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof(*a)) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* `k` against the definition; columns between the rows of y must stay as they are. */
static void compare(const struct kernel *k, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                    int panels)
{
    size_t columns = (size_t)panels * PANEL_LANES, ld = columns + 5;
    float *want = room((size_t)n * ld * sizeof(float)), *got = room((size_t)n * ld * sizeof(float));
    void *scratch = room(kernel_scratch_bytes());

    kernel_plain.product(want, ld, x, index, n, w, first, panels, NULL);
    k->product(got, ld, x, index, n, w, first, panels, scratch);
    for (int i = 0; i < n; i++)
        if (!same(want + (size_t)i * ld, got + (size_t)i * ld, (int)ld))
            fail_msg("%s %s: %d rows%s, panels %d + %d of %d x %d: row %d differs", isa_name(k->isa), format_name(w->format), n,
                     index ? " by index" : "", first, panels, w->rows, w->cols, i);
    free(want);
    free(got);
    free(scratch);
}

/* One format's shapes; every shape meets some numbers of rows, and every `step`-th is looked at. */
static void check_shapes(const struct kernel *k, enum format f, int step)
{
    static const int cols[] = {1, 2, 3, 7, 16, 31, 33, 64, 100, 255, 257, 320, 511, 777, 1061};
    static const int out[] = {1, 16, 17, 50, 130};
    static const int rows[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13,  14,       15,
                               16, 17, 18, 19, 20, 25, 28, 45, 46, 47, 50, 64, 107, MOST_ROWS};
    const int shapes = (int)(sizeof(cols) / sizeof(*cols) * sizeof(out) / sizeof(*out)), heights = sizeof(rows) / sizeof(*rows);
    struct rng r;

    rng_seed(&r, 1, (uint64_t)f);
    for (int shape = (int)f % step; shape < shapes; shape += step) {
        int inputs = cols[shape % (int)(sizeof(cols) / sizeof(*cols))],
            outputs = out[shape / (int)(sizeof(cols) / sizeof(*cols))];
        int all = packed_panels(outputs);
        struct rows x = some_rows(MOST_ROWS, inputs, &r);
        struct weights w = weights(f, outputs, inputs, &r);
        float *bad = (float *)x.x; /* rows that are not finite keep that to themselves */

        bad[2 * x.ld] = NAN;
        bad[9 * x.ld + (size_t)inputs - 1] = -INFINITY;
        quantize(&x, shape % 3 > 0);
        for (int i = (shape + (int)f) % 8; i < heights; i += 8) {
            int first = (int)rng_below(&r, (uint64_t)all), index[MOST_ROWS];

            if (step > 3 && rows[i] > 28) continue;
            compare(k, &x, NULL, rows[i], &w.p, 0, all);
            for (int t = 0; t < rows[i]; t++) index[t] = (int)rng_below(&r, MOST_ROWS);
            compare(k, &x, index, rows[i], &w.p, first, 1 + (int)rng_below(&r, (uint64_t)(all - first)));
        }
        weights_free(&w);
        rows_free(&x);
    }
}

static void shapes(void **state)
{
    const struct narrow *narrow = *state;
    const struct kernel *before = &kernel_plain;

    for (int i = (int)narrow->first; i <= (int)narrow->last; i++) {
        const struct kernel *k = kernel_for((enum isa)i);

        assert_true((int)k->isa <= i && k->isa <= isa_best());
        if (k != before)
            for (int f = 0; f < FORMAT_COUNT; f++) check_shapes(k, (enum format)f, narrow->step);
        before = k;
    }
}

static void tiles_in_c(void **state)
{
    (void)state;
    check_shapes(&kernel_amx_in_c, FORMAT_Q8, 3);
    check_shapes(&kernel_amx_in_c, FORMAT_Q4, 3);
}

/* Block b once more as 16 bits, and what kernels know of it beforehand. */
static void check_wide(const struct rows *x, const struct rows *plain, const struct rows *part, size_t b)
{
    static const int order[] = {0, 2, 1, 3};
    int32_t sum = 0, pairs = 0;

    for (int i = 0; i < QUANT_BLOCK; i++) {
        assert_int_equal(x->wide[b].x[i], x->q[b * QUANT_BLOCK + (size_t)(i / 4 * 4 + order[i % 4])]);
        sum += x->q[b * QUANT_BLOCK + (size_t)i];
        if (i % 2 == 0) pairs += x->q[b * QUANT_BLOCK + (size_t)i] * x->q[b * QUANT_BLOCK + (size_t)i + 1];
    }
    assert_int_equal(x->wide[b].start, -128 * sum);
    assert_true(x->wide[b].pairs == (float)(ROWS_BIG + pairs + 128 * sum));
    assert_true(same(&x->wide[b].scale, x->scale + b, 1));
    assert_memory_equal(x->wide[b].x, plain->wide[b].x, sizeof(x->wide[b].x));
    assert_true(x->wide[b].pairs == plain->wide[b].pairs);
    assert_int_equal(x->wide[b].start, plain->wide[b].start);
    assert_memory_equal(x->wide[b].x, part->wide[b].x, sizeof(x->wide[b].x));
    assert_true(x->wide[b].pairs == part->wide[b].pairs);
}

/* The largest sums that there can be, of numbers that are all as far from zero as they get: nothing runs over. */
static void largest_sums(void **state)
{
    enum { N = 64, COLS = 96, OUT = 32 };
    struct rows x = {.x = room(N * COLS * sizeof(float)), .ld = COLS, .n = N, .cols = COLS};

    (void)state;
    for (int t = 0; t < N; t++)
        for (int k = 0; k < COLS; k++) ((float *)x.x)[t * COLS + k] = t >> (k % 5) & 1 ? 3.0f : -3.0f;
    quantize(&x, true);
    for (int f = FORMAT_Q8; f <= FORMAT_Q4; f++) {
        float *m = room(OUT * COLS * sizeof(float));

        for (int c = 0; c < OUT; c++)
            for (int k = 0; k < COLS; k++) m[c * COLS + k] = c >> (k % 5) & 1 ? 2.0f : -2.0f;

        struct weights w = packed((enum format)f, m, OUT, COLS);

        for (int i = ISA_PLAIN; i <= (int)isa_best(); i++)
            compare(kernel_for((enum isa)i), &x, NULL, N, &w.p, 0, OUT / PANEL_LANES);
        weights_free(&w);
    }
    rows_free(&x);
}

/* Blocks of all sizes, from numbers that are as good as zero to infinity: the bits of the plain text, and near x. */
static void quantized_rows(void **state)
{
    static const int cols[] = {1, 31, 32, 33, 200, 1000};
    static const float size[] = {1.0f, 1e-40f, 1e-44f, 3e38f, 1e-37f, 1e-30f, 0.0f};
    struct rng r;

    (void)state;
    rng_seed(&r, 3, 0);
    for (size_t c = 0; c < sizeof(cols) / sizeof(*cols); c++) {
        struct rows x = some_rows(70, cols[c], &r), plain, part;
        float *values = (float *)x.x;
        size_t blocks = (size_t)x.n * (size_t)packed_blocks(cols[c]);

        for (int t = 0; t < x.n; t++)
            for (int k = 0; k < cols[c]; k++) values[(size_t)t * x.ld + (size_t)k] *= 0.25f * size[t % 7];
        values[9 * x.ld] = NAN, values[16 * x.ld + (size_t)cols[c] - 1] = -INFINITY, values[20 * x.ld] = -0.0f;
        plain = part = x;
        quantize(&x, true);
        rows_room(&plain, room(rows_bytes(x.n, x.cols)), ISA_PLAIN);
        rows_wide_room(&plain, plain.q);
        rows_quantize(&plain, 0, plain.n);
        rows_room(&part, room(rows_bytes(x.n, x.cols)), isa_best());
        rows_wide_room(&part, part.q);
        for (int b = 0; b < packed_blocks(cols[c]); b++)
            rows_quantize_part(&part, part.x + b * QUANT_BLOCK, part.ld, 0, part.n, b, 1);
        assert_memory_equal(x.q, plain.q, blocks * QUANT_BLOCK);
        assert_memory_equal(x.sum, plain.sum, blocks * sizeof(*x.sum));
        assert_true(same(x.scale, plain.scale, (int)blocks));
        assert_memory_equal(x.q, part.q, blocks * QUANT_BLOCK);
        assert_true(same(x.scale, part.scale, (int)blocks));
        assert_true((char *)(x.wide + blocks) <= (char *)x.q + rows_bytes(x.n, x.cols));
        for (size_t b = 0; b < blocks; b++) check_wide(&x, &plain, &part, b);
        assert_true(isnan(x.scale[9 * packed_blocks(cols[c])]) && isnan(x.scale[17 * packed_blocks(cols[c]) - 1]));
        for (int t = 0; t < x.n; t += 7)
            for (int k = 0; k < cols[c]; k++) {
                size_t b = (size_t)t * (size_t)packed_blocks(cols[c]) + (size_t)(k / QUANT_BLOCK);
                float from = values[(size_t)t * x.ld + (size_t)k], near = (float)x.q[b * QUANT_BLOCK + (size_t)(k % QUANT_BLOCK)];

                assert_true(fabsf(from - near * x.scale[b]) <= 0.501f * x.scale[b]);
            }
        free(plain.q);
        free(part.q);
        rows_free(&x);
    }
}

int main(int count, char **argument)
{
    struct narrow narrow = {ISA_PLAIN, ISA_COUNT - 1, 1};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(shapes, &narrow),
        cmocka_unit_test(tiles_in_c),
        cmocka_unit_test(largest_sums),
        cmocka_unit_test(quantized_rows),
    };
    const struct CMUnitTest emulated[] = {
        /* it has the real tiles */
        cmocka_unit_test_prestate(shapes, &narrow),
        cmocka_unit_test(largest_sums),
        cmocka_unit_test(quantized_rows),
    };

    if (count == 3) {
        if (!isa_parse(argument[1], &narrow.first) || (narrow.step = atoi(argument[2])) < 1) return 2;
        narrow.last = narrow.first;
        return cmocka_run_group_tests(emulated, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
