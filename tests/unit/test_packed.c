/* Packing against its definition, element by element, for odd shapes, all formats and types; padding is zero; pieces are the whole. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/rng.h"
#include "num/packed_joined.h"

static const int sizes[] = {1, 2, 7, 15, 16, 17, 31, 33, 64, 255, 256, 257, 300};
enum { SIZES = sizeof(sizes) / sizeof(*sizes), EXTRA = 3 };

/* Values of very different size, zeros, whole blocks of zeros, denormals. */
static float value(struct rng *r, int i)
{
    if (i / 32 % 5 == 4) return 0.0f;
    if (i % 11 == 0) return -0.0f;
    if (i / 32 % 7 == 3) return (float)rng_normal(r) * 0x1p-140f;
    return (float)rng_normal(r) * ldexpf(1.0f, (int)rng_below(r, 12) - 6);
}

static struct mat random_mat(int rows, int cols, enum dtype t, uint64_t seed)
{
    size_t stride = (size_t)cols + EXTRA, n = (size_t)rows * stride;
    void *data = malloc(n * sizeof(float));
    struct rng r;

    assert_non_null(data);
    rng_seed(&r, seed, 0);
    for (size_t i = 0; i < n; i++) {
        float x = value(&r, (int)i);

        if (t == DT_F32) ((float *)data)[i] = x;
        else ((uint16_t *)data)[i] = t == DT_BF16 ? narrow_bf16(x) : narrow_f16(x);
    }
    return (struct mat){data, t, rows, cols, stride};
}

/* The least bfloat16 >= x >= 0, found by trying. */
static float up(float x)
{
    uint16_t b = narrow_bf16(x);

    while (widen_bf16(b) < x) b++;
    while (b > 0 && widen_bf16((uint16_t)(b - 1)) >= x) b--;
    return widen_bf16(b);
}

/* What num/packed.h says of element k of a row. */
static float defined(const float *row, int cols, int k, enum format f)
{
    float most = 0.0f, scale;

    if (f == FORMAT_F32) return row[k];
    if (f == FORMAT_BF16) return widen_bf16(narrow_bf16(row[k]));
    for (int i = k / 32 * 32; i < cols && i < k / 32 * 32 + 32; i++)
        if (fabsf(row[i]) > fabsf(most)) most = row[i];
    scale = f == FORMAT_Q8 ? up(fabsf(most) / 127.0f) : -copysignf(up(fabsf(most) / 8.0f), most);
    if (scale == 0.0f) return 0.0f;
    float q = rintf(row[k] / scale);
    if (f == FORMAT_Q4 && q > 7.0f) q = 7.0f;
    return q * scale;
}

static void check(int rows, int cols, enum dtype t, enum format f)
{
    struct mat w = random_mat(rows, cols, t, (uint64_t)(rows * 1000 + cols));
    size_t bytes = packed_line_bytes(f, rows, cols), scales = packed_scale_bytes(f, rows, cols);
    char *lines = aligned_alloc(64, bytes), *again = aligned_alloc(64, bytes);
    uint16_t *scale = malloc(scales + 1), *scale_again = malloc(scales + 1);
    float row[512];

    assert_true(lines && again && scale && scale_again);
    memset(lines, 0xee, bytes);
    memset(again, 0x11, bytes);
    memset(scale, 0xee, scales);
    pack_panels(lines, scales ? scale : NULL, f, &w, 0, packed_panels(rows));
    for (int p = packed_panels(rows) - 1; p >= 0; p--) pack_panels(again, scales ? scale_again : NULL, f, &w, p, 1);
    assert_memory_equal(lines, again, bytes);
    assert_memory_equal(scale, scale_again, scales);
    const struct packed padded = {lines, scale, f, packed_panels(rows) * PANEL_LANES, packed_steps(f, cols) * format_per_line(f)};
    const struct packed p = {lines, scale, f, rows, cols};
    for (int r = 0; r < padded.rows; r++) {
        for (int c = 0; r < rows && c < cols; c++) row[c] = mat_at(&w, r, c);
        for (int c = 0; c < cols; c++) {
            float want = r < rows ? defined(row, cols, c, f) : 0.0f, got = packed_at(&p, r, c);

            if (got != want)
                fail_msg("%d x %d %s from %s: element %d, %d is %a, not %a", rows, cols, format_name(f), dtype_name(t), r, c,
                         (double)got, (double)want);
        }
        /* inputs that only fill the last line: of f32 there are none; in q8 and q4 they share the last block's scale */
        for (int c = cols; c < padded.cols && (c - 1) / 32 == (cols - 1) / 32; c++) assert_true(packed_at(&p, r, c) == 0.0f);
    }
    free((void *)w.data);
    free(lines);
    free(again);
    free(scale);
    free(scale_again);
}

static void packing_is_its_definition(void **state)
{
    (void)state;
    for (int i = 0; i < SIZES; i++)
        for (int j = 0; j < SIZES; j++)
            for (enum dtype t = DT_F32; t <= DT_BF16; t++)
                for (enum format f = FORMAT_F32; f < FORMAT_COUNT; f++)
                    if (sizes[i] < 64 || (i + j) % 3 == 0) check(sizes[i], sizes[j], t, f);
}

static struct packed packed_of(enum format f, int rows, int cols, uint64_t seed)
{
    struct packed p = {.format = f, .rows = rows, .cols = cols};
    void *lines = aligned_alloc(64, packed_line_bytes(f, rows, cols)), *scale = malloc(packed_scale_bytes(f, rows, cols) + 1);
    struct mat m = random_mat(rows, cols, DT_F32, seed);

    assert_non_null(lines);
    assert_non_null(scale);
    pack_panels(lines, scale, f, &m, 0, packed_panels(rows));
    p.lines = lines, p.scale = scale;
    free((void *)m.data);
    return p;
}

static void packed_free(struct packed *p)
{
    free((void *)p->lines), free((void *)p->scale);
}

/* Matrices of odd sizes joined, of every format and as f32 of it: element by element what they are one by one, and zeros behind the last. */
static void joined_are_side_by_side(void **state)
{
    enum { PARTS = 4, COLS = 70 };
    static const int rows[PARTS] = {11, 1, 37, 16};

    (void)state;
    for (int f = 0; f < 2 * FORMAT_COUNT; f++) {
        enum format from = (enum format)(f / 2), to = f % 2 ? FORMAT_F32 : from;
        struct packed out = packed_of(to, 65, COLS, 99), part[PARTS], across = packed_of(FORMAT_F32, 65, COLS, 98);
        int at = 0;

        if (!format_has_scales(to)) free((void *)out.scale), out.scale = NULL;
        free((void *)across.scale), across.scale = NULL;
        pack_nothing(&out);
        pack_nothing(&across);
        for (int i = 0; i < PARTS; at += rows[i++]) {
            struct packed turned = packed_of(from, COLS, rows[i], (uint64_t)(50 + i));

            part[i] = packed_of(from, rows[i], COLS, (uint64_t)i);
            pack_outputs(&out, at, &part[i]);
            pack_inputs(&across, at, &turned);
            for (int r = 0; r < rows[i]; r++)
                for (int c = 0; c < COLS; c++) assert_true(packed_at(&across, at + r, c) == packed_at(&turned, c, r));
            packed_free(&turned);
        }
        assert_int_equal(at, 65);
        at = 0;
        for (int i = 0; i < PARTS; at += rows[i++]) {
            for (int r = 0; r < rows[i]; r++)
                for (int c = 0; c < COLS; c++) assert_true(packed_at(&out, at + r, c) == packed_at(&part[i], r, c));
            packed_free(&part[i]);
        }
        for (int r = 65; r < 80; r++)
            for (int c = 0; c < COLS; c++) assert_true(packed_at(&out, r, c) == 0.0f && packed_at(&across, r, c) == 0.0f);
        packed_free(&out), packed_free(&across);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(packing_is_its_definition), cmocka_unit_test(joined_are_side_by_side)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
