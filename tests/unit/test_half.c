/* Products with bfloat16 activations: every level against its definition, rows the same in any company, and AMX's logic with tiles in plain C. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/mat.h"
#include "base/rng.h"
#include "num/half.h"

#include "../emulate/amx_intrinsics.h"
#include "../emulate/vector_c.h"
#define EMULATE_AMX
#define kernel_amx kernel_amx_in_c
#include "../../src/num/kernel_amx.c"
#undef kernel_amx

static bool exactly; /* the processor is known to do what the manual says */
static int every = 1;

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);

    assert_non_null(p);
    memset(p, 0xa5, (bytes + 127) & ~(size_t)63); /* of which nothing may be read before it is written */
    return p;
}

struct product_case {
    struct packed w;
    struct rows x;
    void *lines, *half;
    float *values;
};

static struct product_case make(int n, int cols, int out, enum format f, float size, uint64_t seed)
{
    struct product_case c = {.values = room((size_t)n * (size_t)(cols + 3) * sizeof(float))};
    float *from = room((size_t)out * (size_t)cols * sizeof(float));
    struct mat m = {from, DT_F32, out, cols, (size_t)cols};
    struct rng r;

    rng_seed(&r, seed, 0);
    for (int i = 0; i < n * (cols + 3); i++) c.values[i] = i % (cols + 3) < cols ? (float)rng_normal(&r) * size : NAN;
    for (int i = 0; i < out * cols; i++) from[i] = (float)rng_normal(&r) * size;
    c.lines = room(packed_line_bytes(f, out, cols));
    pack_panels(c.lines, NULL, f, &m, 0, packed_panels(out));
    c.w = (struct packed){c.lines, NULL, f, out, cols};
    c.x = (struct rows){.x = c.values, .ld = (size_t)cols + 3, .n = n, .cols = cols};
    c.half = room(rows_bytes(n, cols));
    half_room(&c.x, c.half);
    rows_quantize(&c.x, 0, n);
    free(from);
    return c;
}

static void drop(struct product_case *c)
{
    free(c->lines);
    free(c->half);
    free(c->values);
}

static float x_at(const struct product_case *c, int row, int k)
{
    return widen_bf16(narrow_bf16(c->values[(size_t)row * c->x.ld + (size_t)k]));
}

static float flushed(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}

/* y[row][out] as half.h defines it. */
static float defined(enum isa level, const struct product_case *c, int row, int out)
{
    int cols = c->w.cols, step = level == ISA_AMX ? 32 : CHAIN;
    float y = 0.0f;

    for (int begin = 0; begin < cols; begin += step) {
        int end = cols - begin < step && level != ISA_AMX ? cols : begin + step; /* a tile goes on with zeros */
        float part[2] = {0.0f, 0.0f};

        for (int i = 0; i < end - begin; i++) {
            int k = begin + (level == ISA_BF16 ? i ^ 1 : i), to = level == ISA_AMX ? i % 2 : 0;
            float a = k < cols ? x_at(c, row, k) : 0.0f, b = k < cols ? packed_at(&c->w, out, k) : 0.0f;

            part[to] = level < ISA_BF16 ? fmaf(a, b, part[to]) : flushed(fmaf(flushed(a), flushed(b), part[to]));
        }
        if (level == ISA_BF16 && (end - begin) % 2) { /* the last pair has one input only: its odd half came above, as zero */
            int k = end - 1;

            part[0] = flushed(fmaf(flushed(x_at(c, row, k)), flushed(packed_at(&c->w, out, k)), part[0]));
        }
        if (level == ISA_AMX) y = flushed(y + flushed(part[0] + part[1]));
        else y = begin ? y + part[0] : part[0];
    }
    return y;
}

static double nearly(const struct product_case *c, int row, int out, double *size)
{
    double y = 0.0;

    *size = 0.0;
    for (int k = 0; k < c->w.cols; k++) {
        double a = (double)x_at(c, row, k) * (double)packed_at(&c->w, out, k);

        y += a;
        *size += fabs(a);
    }
    return y;
}

/* n rows by index against all panels: near what is right, the defined bits where they are known, nothing beside, and panels and rows alone the same. */
static void check_product(const struct kernel *k, enum isa definition, bool bits, const struct product_case *c, const int *index,
                          int n)
{
    int outputs = c->w.rows, panels = packed_panels(outputs), columns = panels * PANEL_LANES;
    int step = n > 5 ? 7 : 1;
    size_t ld = (size_t)columns + 5, cells = (size_t)n * ld;
    float *y = room(cells * sizeof(*y)), *again = room(cells * sizeof(*y));
    void *scratch = room(kernel_scratch_bytes());

    memcpy(again, y, cells * sizeof(*y));
    k->product(y, ld, &c->x, index, n, &c->w, 0, panels, scratch);
    for (int i = 0; i < n; i++) {
        int row = index ? index[i] : i;

        assert_memory_equal(y + (size_t)i * ld + columns, again + (size_t)i * ld + columns, 5 * sizeof(*y));
        for (int j = i % 3; j < outputs; j += step) {
            double size, want = nearly(c, row, j, &size), got = (double)y[(size_t)i * ld + (size_t)j];
            float same = bits ? defined(definition, c, row, j) : 0.0f;

            if (!(fabs(got - want) <= 1e-6 * size + 1e-30))
                fail_msg("%s: %d rows, %d x %d: row %d output %d is %g, not %g", isa_name(k->isa), n, c->w.rows, c->w.cols, i, j,
                         got, want);
            if (bits && memcmp(&same, y + (size_t)i * ld + j, sizeof(same)))
                fail_msg("%s: %d rows, %d x %d: row %d output %d is %a, by definition %a", isa_name(k->isa), n, c->w.rows,
                         c->w.cols, i, j, got, (double)same);
        }
    }
    for (int i = 0; i<n; i += n> 8 ? 7 : 1) {
        int row = index ? index[i] : i, first = i % panels;

        k->product(again, ld, &c->x, &row, 1, &c->w, first, panels - first, scratch);
        assert_memory_equal(again, y + (size_t)i * ld + (size_t)first * PANEL_LANES,
                            (size_t)(panels - first) * PANEL_LANES * sizeof(*y));
    }
    free(y);
    free(again);
    free(scratch);
}

static void check_level(const struct kernel *k, enum isa definition, bool bits)
{
    static const int cols[] = {1, 2, 31, 32, 75, 257, 515, 1100}, out[] = {1, 17, 48, 80};
    static const int rows[] = {1, 2, 7, 15, 16, 17, 24, 31, 32, 33, 47, 48, 70};
    enum { MOST = 70 };
    int at = 0;

    for (size_t a = 0; a < sizeof(cols) / sizeof(*cols); a++)
        for (size_t b = 0; b < sizeof(out) / sizeof(*out); b++) {
            if (at++ % every) continue;
            struct product_case c = make(MOST, cols[a], out[b], FORMAT_BF16, 1.0f, a * 10 + b);

            for (size_t i = (a + b) % 4; i < sizeof(rows) / sizeof(*rows); i += 4) {
                int index[MOST];

                check_product(k, definition, bits, &c, NULL, rows[i]);
                for (int t = 0; t < rows[i]; t++) index[t] = (11 * t + (int)b) % MOST;
                check_product(k, definition, bits, &c, index, rows[i]);
                for (int t = 0; t < rows[i]; t++) index[t] = MOST - rows[i] + t; /* one after the other, not from the first on */
                check_product(k, definition, bits, &c, index, rows[i]);
            }
            drop(&c);
        }
}

static void every_level(void **state)
{
    const struct kernel *before = NULL;

    (void)state;
    for (int i = 0; i < ISA_COUNT; i++) {
        const struct kernel *k = kernel_half_for((enum isa)i);

        assert_true((int)k->isa <= i && k->isa <= isa_best());
        if (k != before) {
            assert_true(half_check(k));
            check_level(k, k->isa, k->isa < ISA_BF16 || exactly);
        }
        before = k;
    }
}

static void tiles_in_c(void **state)
{
    (void)state;
    assert_true(half_check(&kernel_amx_in_c));
    check_level(&kernel_amx_in_c, ISA_AMX, true);
}

static void many_rows_and_small_numbers(void **state)
{
    const struct kernel *levels[] = {kernel_half_for(isa_best()), &kernel_amx_in_c};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct product_case many = make(2 * MOST_ROWS + 9, 20, 33, FORMAT_BF16, 1.0f, 5);
        struct product_case small = make(20, 70, 33, FORMAT_BF16, 1e-19f, 6); /* products around 1e-38 */
        bool bits = i || levels[i]->isa < ISA_BF16 || exactly,
             flushes = bits && (i || levels[i]->isa < ISA_BF16); /* emulators keep some denormals */
        int back[2 * MOST_ROWS + 9];

        for (int t = 0; t < many.x.n; t++) back[t] = many.x.n - 1 - t;
        check_product(levels[i], levels[i]->isa, bits, &many, NULL, many.x.n);
        check_product(levels[i], levels[i]->isa, bits, &many, back, many.x.n);
        check_product(levels[i], levels[i]->isa, flushes, &small, NULL, small.x.n);
        drop(&many);
        drop(&small);
    }
}

/* Rows without `half`, and weights of other formats, are not touched by all this. */
static void others_as_before(void **state)
{
    const struct kernel *levels[] = {kernel_half_for(isa_best()), &kernel_amx_in_c};

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct product_case c = make(9, 50, 40, i < 2 ? FORMAT_F32 : FORMAT_BF16, 1.0f, 7);
        float want[9 * 48], got[9 * 48];
        void *scratch = room(kernel_scratch_bytes());

        if (i > 1) c.x.half = NULL;
        kernel_plain.product(want, 48, &c.x, NULL, 9, &c.w, 0, 3, scratch);
        levels[i % 2]->product(got, 48, &c.x, NULL, 9, &c.w, 0, 3, scratch);
        assert_memory_equal(want, got, sizeof(want));
        free(scratch);
        drop(&c);
    }
}

/* Rounded as narrow_bf16() does, zeros behind, parts as the whole, quantized rows beside them. */
static void rows_are_rounded(void **state)
{
    enum { ROWS = 5, COLS = 530 };
    struct product_case c = make(ROWS, COLS, 1, FORMAT_BF16, 1.0f, 8);
    size_t ld = half_ld(COLS), whole = (size_t)packed_blocks(COLS) * QUANT_BLOCK;
    struct rows both = c.x;
    void *memory = room(rows_bytes(ROWS, COLS));

    (void)state;
    c.values[3] = -INFINITY, c.values[4] = NAN, c.values[5] = -0.0f, c.values[6] = 3.4e38f, c.values[7] = 1e-41f;
    rows_quantize(&c.x, 0, ROWS);
    rows_room(&both, memory, isa_best());
    half_room(&both, memory);
    for (int b = packed_blocks(COLS); b-- > 0;) rows_quantize_part(&both, both.x + b * QUANT_BLOCK, both.ld, 0, ROWS, b, 1);
    for (int t = 0; t < ROWS; t++) {
        for (int k = 0; k < COLS; k++)
            assert_int_equal(c.x.half[(size_t)t * ld + (size_t)k], narrow_bf16(c.values[(size_t)t * c.x.ld + (size_t)k]));
        for (size_t k = COLS; k < whole; k++) assert_int_equal(c.x.half[(size_t)t * ld + k], 0);
        assert_memory_equal(c.x.half + (size_t)t * ld, both.half + (size_t)t * ld, whole * sizeof(uint16_t));
    }
    assert_true((char *)both.half >= (char *)(both.sum + ROWS * packed_blocks(COLS)) && (uintptr_t)both.half % 64 == 0);
    assert_true((char *)(both.half + ROWS * ld) <= (char *)memory + rows_bytes(ROWS, COLS));
    for (int cols = 1; cols < 3000; cols += cols < 70 ? 1 : 61) /* what whoever plans the rows of many experts counts on */
        assert_true(rows_bytes(7, cols) <= 7 * (size_t)packed_blocks(cols) * ROWS_BLOCK_BYTES + 3 * 64);
    free(memory);
    drop(&c);
}

static void wrong(float *y, size_t ldy, const struct rows *x, const int *index, int n, const struct packed *w, int first,
                  int panels, void *scratch)
{
    kernel_half_for(ISA_PLAIN)->product(y, ldy, x, index, n, w, first, panels, scratch);
    y[(size_t)(n - 1) * ldy + 5] *= 1.01f;
}

static void a_wrong_kernel_is_noticed(void **state)
{
    const struct kernel k = {ISA_AMX, 1, wrong};

    (void)state;
    assert_false(half_check(&k));
}

/* Arguments, for the emulator: "exact" compares bits on levels where a processor may differ, a number takes every so manieth shape. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_rounded), cmocka_unit_test(a_wrong_kernel_is_noticed),
        cmocka_unit_test(others_as_before), cmocka_unit_test(tiles_in_c),
        cmocka_unit_test(every_level),      cmocka_unit_test(many_rows_and_small_numbers),
    };

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "exact")) exactly = true;
        else every = atoi(argv[i]) > 0 ? atoi(argv[i]) : 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
