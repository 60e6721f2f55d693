/* base: what everything stands on. */
#include "../check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/bits.h"
#include "base/file.h"
#include "base/mat.h"
#include "base/rng.h"
#include "base/str.h"

static void test_err_is_one_line(void **state)
{
    (void)state;
    struct err e;
    char long_text[4096];

    assert_int_equal(err_set(&e, ERR_FORMAT, "%s", "a\nb\033[1mc"), ERR_FORMAT);
    assert_string_equal(e.text, "a?b?[1mc");
    memset(long_text, 'x', sizeof(long_text));
    long_text[sizeof(long_text) - 1] = 0;
    err_set(&e, ERR_IO, "%s", long_text);
    assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
}

static void test_arena_limit_and_alignment(void **state)
{
    (void)state;
    struct arena *a;
    struct err e;

    assert_int_equal(arena_open(&a, "test", 10000, &e), OK);
    char *p = arena_alloc(a, 3, 5, &e), *q = arena_alloc(a, 1, 1, &e);
    assert_int_equal((uintptr_t)p % 64, 0);
    assert_int_equal(q - p, 64);
    assert_int_equal(arena_used(a), arena_cost(3, 5) + arena_cost(1, 1));
    for (int i = 0; i < 15; i++) assert_int_equal(p[i], 0);
    assert_null(arena_alloc(a, 12288, 1, &e));
    assert_int_equal(e.code, ERR_LIMIT);
    assert_non_null(strstr(e.text, "test"));
    assert_null(arena_alloc(a, SIZE_MAX, 8, &e)); /* the product overflows */
    assert_null(arena_alloc(a, SIZE_MAX / 4, 8, &e));
    assert_non_null(arena_alloc(a, 12288 - 128, 1, &e)); /* the limit is rounded up to pages, and can be used up */
    assert_null(arena_alloc(a, 1, 1, &e));
    arena_close(a);
    arena_close(NULL);
}

static void test_rng_is_the_published_generator(void **state)
{
    (void)state;
    /* xoshiro256** from the state 1, 2, 3, 4: the first outputs, worked out by hand from the paper's definition:
     * rotl(2*5, 7)*9 = 11520, then s[1] is 0 and gives 0, then 1509978240. */
    struct rng r = {{1, 2, 3, 4}};

    assert_true(rng_u64(&r) == 11520);
    assert_true(rng_u64(&r) == 0);
    assert_true(rng_u64(&r) == 1509978240);
}

static void test_rng_streams_differ_and_repeat(void **state)
{
    (void)state;
    struct rng a, b, c;
    int items[100], seen[100] = {0};
    double sum = 0, square = 0;

    rng_seed(&a, 1, 0);
    rng_seed(&b, 1, 0);
    rng_seed(&c, 1, 1);
    assert_true(rng_u64(&a) == rng_u64(&b));
    assert_true(rng_u64(&a) != rng_u64(&c));
    for (int i = 0; i < 100; i++) items[i] = i;
    rng_shuffle(&a, items, 100);
    for (int i = 0; i < 100; i++) seen[items[i]]++;
    for (int i = 0; i < 100; i++) assert_int_equal(seen[i], 1);
    for (int i = 0; i < 20000; i++) {
        double x = rng_normal(&a);

        sum += x;
        square += x * x;
        assert_true(rng_below(&a, 7) < 7);
    }
    assert_true(fabs(sum / 20000) < 0.03 && fabs(square / 20000 - 1) < 0.05);
    assert_true(rng_hash(1, 2, 3, 4) == rng_hash(1, 2, 3, 4) && rng_hash(1, 2, 3, 4) != rng_hash(1, 2, 4, 3));
}

static void test_half_precision_round_trip(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = widen_f16(h), b = widen_bf16(h);

        if (!isnan(f)) assert_int_equal(narrow_f16(f), h);
        else assert_true(isnan(widen_f16(narrow_f16(f))));
        if (!isnan(b)) assert_int_equal(narrow_bf16(b), h);
        else assert_true(isnan(widen_bf16(narrow_bf16(b))));
    }
    assert_true(widen_f16(0x3c00) == 1.0f && widen_f16(0x0001) == 0x1p-24f && widen_f16(0x7bff) == 65504.0f);
    assert_int_equal(narrow_f16(65519.0f), 0x7bff);
    assert_int_equal(narrow_f16(65520.0f), 0x7c00);
    /* ties go to even: halfway between 1 and the next value, and between that and the one after */
    assert_int_equal(narrow_bf16(1.00390625f), 0x3f80);
    assert_int_equal(narrow_bf16(1.01171875f), 0x3f82);
    assert_int_equal(narrow_f16(1.00048828125f), 0x3c00);
    assert_int_equal(narrow_f16(1.00146484375f), 0x3c02);
}

static void test_mat_views_by_stride(void **state)
{
    (void)state;
    const float data[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const uint16_t bf[] = {0x3f80, 0x4000, 0x4040, 0x4080};
    struct mat m = {.data = data, .dtype = DT_F32, .rows = 2, .cols = 3, .stride = 4},
               b = {.data = bf, .dtype = DT_BF16, .rows = 2, .cols = 2, .stride = 2};
    float out[6];

    mat_widen(out, &m, 0, 2);
    const float want[] = {1, 2, 3, 5, 6, 7};
    assert_memory_equal(out, want, sizeof(want));
    assert_true(mat_at(&m, 1, 2) == 7);
    mat_widen(out, &b, 1, 1);
    assert_true(out[0] == 3 && out[1] == 4 && mat_at(&b, 0, 1) == 2);
}

static void test_bits(void **state)
{
    (void)state;
    uint64_t set[3] = {0};

    assert_int_equal(bits_words(0), 0);
    assert_int_equal(bits_words(64), 1);
    assert_int_equal(bits_words(65), 2);
    assert_int_equal(bits_next(set, 130, 0), 130);
    bits_set(set, 0);
    bits_set(set, 63);
    bits_set(set, 64);
    bits_set(set, 129);
    assert_int_equal(bits_count(set, 130), 4);
    int found[5], n = 0;
    for (int i = bits_next(set, 130, 0); i < 130; i = bits_next(set, 130, i + 1)) found[n++] = i;
    assert_int_equal(n, 4);
    assert_true(found[0] == 0 && found[1] == 63 && found[2] == 64 && found[3] == 129);
    assert_true(bits_has(set, 63) && !bits_has(set, 62));
}

static void test_nearest_name(void **state)
{
    (void)state;
    const char *names[] = {"threads", "placement", "deadline_seconds"};

    assert_string_equal(str_nearest("thread", names, 3), "threads");
    assert_string_equal(str_nearest("placment", names, 3), "placement");
    assert_null(str_nearest("zebra", names, 3));
}

static void count_tick(void *ctx)
{
    ++*(int *)ctx;
}

/* What is large says that it lives, and arrives whole in any number of pieces. */
static void test_large_file(void **state)
{
    size_t length = 2 * ALIVE_BYTES + 12345, n, first = ALIVE_BYTES - 7;
    char directory[] = "/tmp/factorllm-base-XXXXXX", *bytes = malloc(length), *text;
    int ticks = 0;
    struct alive alive = {count_tick, &ticks};
    struct file_writer w;
    struct err e;

    (void)state;
    assert_non_null(bytes);
    for (size_t i = 0; i < length; i++) bytes[i] = (char)(i * 7 + i / 1000);
    assert_non_null(mkdtemp(directory));
    char *path = str_join(directory, "file");
    assert_int_equal(file_begin(&w, path, &e), OK);
    assert_int_equal(file_append(&w, bytes, first, &alive, &e), OK);
    assert_int_equal(ticks, 0);
    assert_int_equal(file_append(&w, bytes + first, length - first, &alive, &e), OK);
    assert_true(ticks >= 2);
    assert_int_equal(file_commit(&w, &e), OK);
    assert_int_equal(file_read(&text, &n, path, length, &e), OK);
    assert_true(n == length && memcmp(text, bytes, n) == 0);
    unlink(path);
    rmdir(directory);
    free(text);
    free(bytes);
    free(path);
}

static void test_files_appear_whole(void **state)
{
    (void)state;
    char directory[] = "/tmp/factorllm-base-XXXXXX";
    struct file_writer w;
    struct err e;
    char *text;
    size_t n;

    assert_non_null(mkdtemp(directory));
    char *deep = str_join(directory, "a/b/c"), *path = str_join(deep, "file");
    assert_int_equal(file_make_directory(deep, &e), OK);
    assert_int_equal(file_make_directory(deep, &e), OK);
    assert_int_equal(file_write(path, "one", 3, &e), OK);
    assert_int_equal(file_begin(&w, path, &e), OK);
    fputs("two", w.f);
    assert_int_equal(file_read(&text, &n, path, 100, &e), OK); /* still the old one */
    assert_string_equal(text, "one");
    free(text);
    file_abandon(&w);
    assert_int_equal(file_read(&text, &n, path, 2, &e), ERR_LIMIT);
    assert_int_equal(file_read(&text, &n, deep, 100, &e), ERR_IO);
    assert_int_equal(file_read(&text, &n, "/dev/zero", 100, &e), ERR_IO);
    assert_non_null(strstr(e.text, "found a pipe or a device"));
    assert_int_equal(file_write("/nonexistent/x", "", 0, &e), ERR_IO);
    assert_non_null(strstr(e.text, "/nonexistent/x"));
    assert_int_equal(file_make_directory(path, &e), ERR_IO);
    char command[512];
    snprintf(command, sizeof(command), "test \"$(ls %s | wc -l)\" = 1 && rm -r %s", deep, directory);
    assert_int_equal(system(command), 0); /* and no temporary file is left */
    free(deep);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_is_one_line),
        cmocka_unit_test(test_arena_limit_and_alignment),
        cmocka_unit_test(test_rng_is_the_published_generator),
        cmocka_unit_test(test_rng_streams_differ_and_repeat),
        cmocka_unit_test(test_half_precision_round_trip),
        cmocka_unit_test(test_mat_views_by_stride),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_nearest_name),
        cmocka_unit_test(test_large_file),
        cmocka_unit_test(test_files_appear_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
