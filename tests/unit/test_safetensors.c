/* Safetensors: what is written is read back, and nothing that is broken is believed. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "data/safetensors.h"

struct place {
    char directory[64];
};

static void run(const char *format, const char *argument)
{
    struct str s = {0};

    str_addf(&s, format, argument); /* NOLINT: formats are ours */
    assert_int_equal(system(s.text), 0);
    str_free(&s);
}

static int set_up(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    strcpy(p->directory, "/tmp/factorllm-st-XXXXXX");
    if (!mkdtemp(p->directory)) return -1;
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;

    run("rm -rf %s", p->directory);
    free(p);
    return 0;
}

/* A file of header text and data under DIRECTORY/name; the path in *path. */
static void put_file(char **path, void **state, const char *name, const char *header, const void *data, size_t bytes)
{
    struct place *p = *state;
    struct str s = {0};
    size_t length = strlen(header);
    struct err e;

    for (int i = 0; i < 8; i++) {
        char c = (char)(length >> (8 * i) & 0xff);
        str_add(&s, &c, 1);
    }
    str_addz(&s, header);
    str_add(&s, data, bytes);
    *path = str_join(p->directory, name);
    assert_int_equal(file_write(*path, s.text, s.length, &e), OK);
    str_free(&s);
}

static status opened(const char *path, struct err *e)
{
    struct safetensors *f;
    status s = safetensors_open(&f, path, e);

    if (s) assert_null(f);
    safetensors_close(f);
    return s;
}

static void test_header_by_hand(void **state)
{
    static const uint16_t data[] = {0x3f80, 0x4000, 0xbf80, 0x0000, 0x3f00, 0x4040, 0x3f80, 0x3f80}; /* bf16 */
    char *path;
    struct safetensors *f;
    struct mat m;
    struct err e;

    /* a header of even length: the data begins at an even byte */
    put_file(&path, state, "a.safetensors",
             "{\"w\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[4,16]},\"n\":{\"dtype\":\"F32\",\"shape\":[],"
             "\"data_offsets\":[0,4]}}",
             data, sizeof(data));
    assert_int_equal(safetensors_open(&f, path, &e), OK);
    assert_int_equal(safetensors_count(f), 2);
    assert_string_equal(safetensors_info(f, 0)->name, "n");
    assert_string_equal(safetensors_info(f, 1)->name, "w");
    assert_null(safetensors_find(f, "x"));
    assert_int_equal(safetensors_find(f, "w")->bytes, 12);
    assert_int_equal(safetensors_mapped_bytes(f), 0);
    assert_int_equal(safetensors_mat(&m, f, "w", 3, 2, &e), OK);
    assert_true(mat_at(&m, 0, 0) == -1 && mat_at(&m, 0, 1) == 0 && mat_at(&m, 1, 0) == 0.5f && mat_at(&m, 1, 1) == 3);
    assert_int_equal(safetensors_rows(&m, f, "w", 3, 2, 1, 1, &e), OK);
    assert_true(m.rows == 1 && mat_at(&m, 0, 0) == 0.5f);
    assert_int_equal(safetensors_mapped_bytes(f), 12);
    assert_int_equal(safetensors_mat(&m, f, "w", 2, 3, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "expected shape [2, 3], found [3, 2]"));
    assert_int_equal(safetensors_mat(&m, f, "x", 2, 3, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "tensor x is missing"));
    safetensors_close(f);
    free(path);
}

static void test_bad_headers(void **state)
{
    static const struct {
        const char *why, *header, *text;
        size_t data;
    } cases[] = {
        {"overlap",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[8],"
         "\"data_offsets\":[4,12]}}",
         "overlap", 12},
        {"same bytes twice",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[8],"
         "\"data_offsets\":[0,8]}}",
         "overlap", 8},
        {"hole",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[8,12]}}",
         "belong to no tensor", 12},
        {"data behind", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "the file has 5", 5},
        {"beyond the end", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "the file has 3", 3},
        {"no tensors but data", "{}", "the file has 1", 1},
        {"backwards", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", "data_offsets", 4},
        {"negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[-4,0]}}", "data_offsets", 4},
        {"one offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4]}}", "data_offsets", 4},
        {"real offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4.0]}}", "data_offsets", 4},
        {"negative dimension", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-2,-2],\"data_offsets\":[0,4]}}", "shape", 4},
        {"shape is no list", "{\"a\":{\"dtype\":\"U8\",\"shape\":4,\"data_offsets\":[0,4]}}", "shape", 4},
        {"bytes do not match", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", "make 8 bytes", 4},
        {"elements overflow", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", "overflow",
         0},
        {"elements overflow to 4", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4611686018427387905,4],\"data_offsets\":[0,4]}}",
         "overflow", 4},
        {"bytes overflow", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", "overflow", 0},
        {"duplicate name",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[2,4]}}",
         "duplicate", 4},
        {"no dtype", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,2]}}", "dtype is missing", 2},
        {"dtype is a number", "{\"a\":{\"dtype\":5,\"shape\":[2],\"data_offsets\":[0,2]}}", "expected a text", 2},
        {"entry is a list", "{\"a\":[1]}", "expected an object", 0},
        {"not an object", "[1]", "not a JSON object", 0},
        {"not JSON", "{\"a\"", "not valid JSON", 0},
        {"text behind", "{} x", "not valid JSON", 0},
    };

    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        char *path, zero[16] = {0};
        struct err e = {0};

        put_file(&path, state, "bad.safetensors", cases[c].header, zero, cases[c].data);
        if (opened(path, &e) != ERR_FORMAT || !strstr(e.text, cases[c].text) || !strstr(e.text, path))
            fail_msg("%s: %d %s", cases[c].why, e.code, e.text);
        free(path);
    }
}

static void test_lengths_of_the_header(void **state)
{
    static const uint64_t lengths[] = {3, 1 << 20, 100ull << 20, (100ull << 20) + 1, UINT64_MAX, UINT64_MAX - 7, 1ull << 63};
    struct place *p = *state;
    char *path = str_join(p->directory, "length.safetensors");

    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        char bytes[10] = {0};
        struct err e = {0};

        memcpy(bytes, &lengths[i], 8); /* little-endian machines only, as everything here */
        bytes[8] = '{';
        bytes[9] = '}';
        assert_int_equal(file_write(path, bytes, sizeof(bytes), &e), OK);
        assert_int_equal(opened(path, &e), ERR_FORMAT);
    }
    free(path);
}

static void test_every_truncation(void **state)
{
    struct place *p = *state;
    char *path, *whole, *cut = str_join(p->directory, "cut.safetensors");
    size_t length;
    struct err e;

    put_file(&path, state, "good.safetensors",
             "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
             "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[16,24]}}",
             "0123456789abcdefghijklmn", 24);
    assert_int_equal(opened(path, &e), OK);
    assert_int_equal(file_read(&whole, &length, path, 1 << 20, &e), OK);
    for (size_t n = 0; n < length; n++) {
        assert_int_equal(file_write(cut, whole, n, &e), OK);
        assert_int_equal(opened(cut, &e), ERR_FORMAT);
    }
    whole = realloc(whole, length + 1);
    whole[length] = 0;
    assert_int_equal(file_write(cut, whole, length + 1, &e), OK);
    assert_int_equal(opened(cut, &e), ERR_FORMAT);
    free(whole);
    free(path);
    free(cut);
}

static void test_dtypes_and_alignment(void **state)
{
    char *path, data[16] = {0};
    struct safetensors *f;
    struct mat m;
    struct err e;

    put_file(&path, state, "d.safetensors",
             "{\"i\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]},\"q\":{\"dtype\":\"Q4\",\"shape\":[1],"
             "\"data_offsets\":[8,11]},\"f\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[11,15]}}",
             data, 15);
    assert_int_equal(safetensors_open(&f, path, &e), OK);
    assert_int_equal(safetensors_mat(&m, f, "i", 1, 2, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "expected F32, F16 or BF16, found I32"));
    assert_int_equal(safetensors_mat(&m, f, "q", 1, 1, &e), ERR_FORMAT);
    assert_int_equal(safetensors_mat(&m, f, "f", 1, 1, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "no multiple of 4"));
    safetensors_close(f);
    free(path);
}

static void test_not_finite(void **state)
{
    float x[6] = {0, 1, -2, 3.4e38f, 1e-40f, 5};
    uint16_t b[3] = {0x7f7f, 0xff80, 0}, h[3] = {0x7bff, 0x0001, 0x7e01};
    struct mat m = {.data = x, .dtype = DT_F32, .rows = 2, .cols = 3, .stride = 3};
    struct err e;

    (void)state;
    assert_int_equal(mat_check_finite(&m, "w", NULL, &e), OK);
    memcpy(&x[5], "\x00\x00\xc0\x7f", 4);
    assert_int_equal(mat_check_finite(&m, "w", NULL, &e), ERR_FORMAT);
    assert_string_equal(e.text, "w: row 1, column 2 is NaN");
    m = (struct mat){.data = b, .dtype = DT_BF16, .rows = 1, .cols = 3, .stride = 3};
    assert_int_equal(mat_check_finite(&m, "w", NULL, &e), ERR_FORMAT);
    assert_string_equal(e.text, "w: row 0, column 1 is infinite");
    m = (struct mat){.data = h, .dtype = DT_F16, .rows = 3, .cols = 1, .stride = 1};
    assert_int_equal(mat_check_finite(&m, "w", NULL, &e), ERR_FORMAT);
    assert_string_equal(e.text, "w: row 2, column 0 is NaN");
    m.rows = 2;
    assert_int_equal(mat_check_finite(&m, "w", NULL, &e), OK);
}

/* n tensors t0 .. of [i + 1, 3], BF16 and F32 in turn; element j of tensor i is i + j. */
static void write_some(const char *directory, int n, size_t shard_bytes)
{
    struct safetensors_writer *w;
    struct err e;

    assert_int_equal(safetensors_create(&w, directory, shard_bytes, &e), OK);
    for (int i = 0; i < n; i++) {
        char name[16];
        int64_t shape[2] = {i + 1, 3};

        snprintf(name, sizeof(name), "t%d", i);
        safetensors_declare(w, name, i % 2 ? DT_F32 : DT_BF16, 2, shape);
    }
    safetensors_metadata(w, "made_by", "a test");
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 3 * (i + 1); j++) {
            float x = (float)(i + j);
            uint16_t narrow = narrow_bf16(x);

            if (i % 2) assert_int_equal(safetensors_write(w, &x, 4, &e), OK);
            else assert_int_equal(safetensors_write(w, &narrow, 2, &e), OK);
        }
    assert_int_equal(safetensors_commit(w, &e), OK);
}

static void check_some(const char *directory, int n)
{
    struct safetensors *f;
    struct mat m;
    struct err e = {0};

    if (safetensors_open(&f, directory, &e)) fail_msg("%s", e.text);
    assert_int_equal(safetensors_count(f), n);
    for (int i = 0; i < n; i++) {
        char name[16];

        snprintf(name, sizeof(name), "t%d", i);
        if (safetensors_mat(&m, f, name, i + 1, 3, &e)) fail_msg("%s", e.text);
        for (int r = 0; r <= i; r++)
            for (int c = 0; c < 3; c++) assert_true(mat_at(&m, r, c) == (float)(i + 3 * r + c));
    }
    safetensors_close(f);
}

static void test_written_is_read(void **state)
{
    struct place *p = *state;
    char *index = str_join(p->directory, "model.safetensors.index.json"), *one = str_join(p->directory, "model.safetensors");

    write_some(p->directory, 9, 0);
    assert_true(file_exists(one) && !file_exists(index));
    check_some(p->directory, 9);
    write_some(p->directory, 8, 100); /* many shards; must replace the single file */
    assert_true(!file_exists(one) && file_exists(index));
    check_some(p->directory, 8);
    write_some(p->directory, 3, 1 << 20);
    assert_true(file_exists(one) && !file_exists(index));
    check_some(p->directory, 3);
    free(index);
    free(one);
}

static void test_abandoned_leaves_nothing(void **state)
{
    struct place *p = *state;
    struct safetensors_writer *w;
    int64_t shape[1] = {4};
    struct err e;

    assert_int_equal(safetensors_create(&w, p->directory, 8, &e), OK);
    safetensors_declare(w, "a", DT_F32, 1, shape);
    safetensors_declare(w, "b", DT_F32, 1, shape);
    assert_int_equal(safetensors_write(w, shape, 8, &e), OK);
    safetensors_abandon(w);
    run("test -z \"$(ls -A %s)\"", p->directory);
    assert_int_equal(safetensors_create(&w, "/nowhere/at/all", 0, &e), ERR_IO);
    assert_null(w);
    assert_int_equal(opened(p->directory, &e), ERR_IO);
    assert_non_null(strstr(e.text, "neither model.safetensors nor"));
}

/* Shards as write_some() makes them, under indexes of all kinds. */
static void test_bad_indexes(void **state)
{
    static const struct {
        const char *why, *index, *text;
        status code;
    } cases[] = {
        {"good", "{\"weight_map\":{\"t0\":\"S1\",\"t1\":\"S1\"}}", NULL, OK},
        {"a total that is wrong", "{\"metadata\":{\"total_size\":31},\"weight_map\":{\"t0\":\"S1\",\"t1\":\"S1\"}}", NULL, OK},
        {"missing tensor", "{\"weight_map\":{\"t0\":\"S1\",\"zz\":\"S1\"}}", "tensor zz is not in", ERR_FORMAT},
        {"tensor of another shard", "{\"weight_map\":{\"t0\":\"S1\",\"t1\":\"S2\"}}", "tensor t1 is not in", ERR_FORMAT},
        {"missing shard", "{\"weight_map\":{\"t0\":\"S1\",\"t1\":\"none.safetensors\"}}", "none.safetensors", ERR_IO},
        {"outside", "{\"weight_map\":{\"t0\":\"../S1\"}}", "beside the index", ERR_FORMAT},
        {"absolute", "{\"weight_map\":{\"t0\":\"/S1\"}}", "beside the index", ERR_FORMAT},
        {"empty name", "{\"weight_map\":{\"t0\":\"\"}}", "beside the index", ERR_FORMAT},
        {"number for a name", "{\"weight_map\":{\"t0\":5}}", "beside the index", ERR_FORMAT},
        {"no map", "{\"metadata\":{}}", "weight_map is missing", ERR_FORMAT},
        {"not JSON", "{", "not valid JSON", ERR_FORMAT},
        {"twice", "{\"weight_map\":{\"t0\":\"S1\",\"t0\":\"S1\"}}", "duplicate", ERR_FORMAT},
        {"empty", "{\"weight_map\":{}}", NULL, OK},
    };
    struct place *p = *state;
    char *index = str_join(p->directory, "model.safetensors.index.json");

    write_some(p->directory, 4, 31); /* t0 and t1 (6 + 24 bytes) are shard 1 */
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct str text = {0};
        struct err e = {0};

        for (const char *s = cases[c].index; *s; s++)
            if (*s == 'S') str_addf(&text, "model-%05d-of-00003.safetensors", *++s - '0');
            else str_add(&text, s, 1);
        assert_int_equal(file_write(index, text.text, text.length, &e), OK);
        e = (struct err){0};
        if (opened(p->directory, &e) != cases[c].code || (cases[c].text && !strstr(e.text, cases[c].text)))
            fail_msg("%s: %d %s", cases[c].why, e.code, e.text);
        str_free(&text);
    }
    free(index);
}

/* A file for kernels: any dtypes, tensors of whole lines first and at multiples of 64, data at a multiple of 2 MiB; one file and shards. */
static void test_raw_for_kernels(void **state)
{
    static const int64_t odd[] = {3}, lines[] = {2, 1, 16, 4}, scales[] = {1, 1, 16};
    struct place *p = *state;
    uint8_t bytes[128], part[12] = {0}, scale[32];
    const void *at;
    struct err e = {0};

    memset(scale, 7, sizeof(scale));
    for (int i = 0; i < 128; i++) bytes[i] = (uint8_t)i;
    for (size_t shard = 0; shard <= 100; shard += 100) {
        struct safetensors_writer *w;
        struct safetensors *f;

        assert_int_equal(safetensors_create_stem(&w, p->directory, "packed", shard, &e), OK);
        safetensors_metadata(w, "experts", "q8");
        safetensors_declare(w, "norm", DT_F32, 1, odd);
        safetensors_declare_raw(w, "a.scale", "BF16", 3, scales);
        safetensors_declare_raw(w, "a.lines", "U8", 4, lines);
        safetensors_declare_raw(w, "b.lines", "U8", 4, lines);
        assert_int_equal(safetensors_write(w, part, sizeof(part), &e), OK);
        assert_int_equal(safetensors_write(w, scale, sizeof(scale), &e), OK);
        assert_int_equal(safetensors_write(w, bytes, sizeof(bytes), &e), OK);
        assert_int_equal(safetensors_write(w, bytes, sizeof(bytes), &e), OK);
        assert_int_equal(safetensors_commit(w, &e), OK);
        assert_true(safetensors_present(p->directory, "packed"));
        assert_false(safetensors_present(p->directory, "model"));
        assert_int_equal(safetensors_open_stem(&f, p->directory, "packed", &e), OK);
        assert_string_equal(safetensors_metadata_text(f, "experts"), "q8");
        assert_null(safetensors_metadata_text(f, "head"));
        for (int i = 0; i < 2; i++) {
            assert_int_equal(safetensors_raw(&at, f, i ? "b.lines" : "a.lines", "U8", 4, lines, 64, &e), OK);
            assert_memory_equal(at, bytes, sizeof(bytes));
            assert_true((uintptr_t)at % 64 == 0);
        }
        assert_int_equal(safetensors_raw(&at, f, "a.scale", "BF16", 3, scales, 2, &e), OK);
        assert_memory_equal(at, scale, sizeof(scale));
        assert_int_equal(safetensors_raw(&at, f, "c", "U8", 4, lines, 64, &e), ERR_FORMAT);
        assert_non_null(strstr(e.text, "tensor c is missing"));
        assert_int_equal(safetensors_raw(&at, f, "a.lines", "U8", 3, scales, 64, &e), ERR_FORMAT);
        assert_non_null(strstr(e.text, "expected U8 of shape [1, 1, 16], found U8 of [2, 1, 16, 4]"));
        assert_int_equal(safetensors_raw(&at, f, "a.lines", "BF16", 4, lines, 64, &e), ERR_FORMAT);
        assert_null(at);
        safetensors_trim(f, 0);
        assert_int_equal(safetensors_raw(&at, f, "a.lines", "U8", 4, lines, 64, &e), OK);
        assert_memory_equal(at, bytes, sizeof(bytes));
        safetensors_close(f);
    }
}

/* Data that begins in the middle of a line is no place for a kernel. */
static void test_raw_misaligned(void **state)
{
    static const uint8_t data[64] = {0};
    static const int64_t lines[] = {1, 1, 16, 4};
    struct safetensors *f;
    const void *at;
    struct err e = {0};
    char *path;

    put_file(&path, state, "packed.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,16,4],\"data_offsets\":[0,64]}}  ",
             data, sizeof(data));
    assert_int_equal(safetensors_open(&f, path, &e), OK);
    assert_int_equal(safetensors_raw(&at, f, "a", "U8", 4, lines, 64, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "expected a multiple of 64"));
    safetensors_close(f);
    free(path);
}

static void test_models_at_hand(void **state)
{
    static const struct {
        const char *model;
        int vocab, width;
        enum dtype dtype;
    } models[] = {{"quillan-6m", 4096, 256, DT_BF16}, {"tiny1m", 512, 128, DT_F32}, {"stories260K-sharded", 512, 64, DT_BF16}};
    const char *shared = getenv("FACTORLLM_SHARED");

    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        struct str path = {0};
        struct safetensors *f;
        struct mat m;
        struct err e = {0};

        str_addf(&path, "%s/models/%s", shared ? shared : "../shared", models[i].model);
        if (!file_is_directory(path.text)) {
            str_free(&path);
            skip_because("models/%s is not there", models[i].model);
        }
        if (safetensors_open(&f, path.text, &e)) fail_msg("%s", e.text);
        for (size_t t = 0; t < safetensors_count(f); t++) {
            const struct tensor_info *info = safetensors_info(f, t);
            int rows = info->dims == 2 ? (int)info->shape[0] : 1;

            if (safetensors_mat(&m, f, info->name, rows, (int)info->shape[info->dims - 1], &e)) fail_msg("%s", e.text);
            if (mat_check_finite(&m, info->name, NULL, &e)) fail_msg("%s", e.text);
        }
        assert_int_equal(safetensors_mat(&m, f, "model.embed_tokens.weight", models[i].vocab, models[i].width, &e), OK);
        assert_int_equal(m.dtype, models[i].dtype);
        safetensors_close(f);
        str_free(&path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_header_by_hand, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_headers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lengths_of_the_header, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_truncation, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_dtypes_and_alignment, set_up, tear_down),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test_setup_teardown(test_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_abandoned_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_indexes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_raw_for_kernels, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_raw_misaligned, set_up, tear_down),
        cmocka_unit_test(test_models_at_hand),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
