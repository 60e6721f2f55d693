/* JSON behind its door, and digests: hostile texts are refused with a line that names the place. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "data/digest.h"
#include "data/json.h"
#include "data/sums.h"

static struct json_t *parsed(const char *text)
{
    struct json_t *v;
    struct err e = {0};

    if (json_parse(&v, text, strlen(text), "TEXT", &e)) fail_msg("%s: %s", text, e.text);
    return v;
}

static void test_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "{",
        "[1,]",
        "{\"a\":1,\"a\":2}",
        "[1] 2",
        "nul",
        "{a:1}",
        "\"\xff\"",
        "[1e999]",
        "[01]",
        "\"\\ud800\"",
        "[NaN]",
        "[99999999999999999999]",
        "'a'",
        "{\"a\":{\"b\":1,\"b\":1}}",
        "[\"a\nb\"]",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct json_t *v;
        struct err e = {0};

        if (json_parse(&v, bad[i], strlen(bad[i]), "TEXT", &e) != ERR_FORMAT || v || strncmp(e.text, "TEXT: ", 6))
            fail_msg("%s: %d %s", bad[i], e.code, e.text);
    }
}

static void test_depth(void **state)
{
    struct str s = {0};
    struct json_t *v;
    struct err e = {0};

    (void)state;
    for (int i = 0; i < 100; i++) str_addz(&s, "[");
    for (int i = 0; i < 100; i++) str_addz(&s, "]");
    assert_int_equal(json_parse(&v, s.text, s.length, "TEXT", &e), OK);
    json_free(v);
    str_clear(&s);
    for (int i = 0; i < 100000; i++) str_addz(&s, "{\"a\":");
    assert_int_equal(json_parse(&v, s.text, s.length, "TEXT", &e), ERR_LIMIT);
    str_clear(&s);
    str_addz(&s, "\"");
    for (int i = 0; i < 1000; i++) str_addz(&s, "[{\\\"");
    str_addz(&s, "\""); /* brackets in a string are no nesting */
    assert_int_equal(json_parse(&v, s.text, s.length, "TEXT", &e), OK);
    assert_int_equal(json_text_length(v), 3000);
    json_free(v);
    str_free(&s);
}

static void test_members(void **state)
{
    struct json_t *o = parsed("{\"i\":5,\"r\":2.5,\"t\":\"x\",\"z\":null,\"b\":true,\"o\":{},\"a\":[1],\"n\":\"a\\u0000b\"}");
    int64_t i = -1;
    double r = -1;
    bool b = false;
    const char *t = NULL;
    const struct json_t *v = NULL;
    struct err e;

    (void)state;
    assert_int_equal(json_get_int(&i, o, "i", 0, 5, JSON_REQUIRED, "S", &e), OK);
    assert_int_equal(i, 5);
    assert_int_equal(json_get_int(&i, o, "i", 6, 9, JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_string_equal(e.text, "S: i: expected 6 to 9, found 5");
    assert_int_equal(json_get_int(&i, o, "r", 0, 9, JSON_OPTIONAL, "S", &e), ERR_FORMAT);
    assert_string_equal(e.text, "S: r: expected an integer, found a real number");
    assert_int_equal(json_get_int(&i, o, "none", 0, 9, JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_string_equal(e.text, "S: none is missing");
    i = 77;
    assert_int_equal(json_get_int(&i, o, "z", 0, 9, JSON_OPTIONAL, "S", &e), OK);
    assert_int_equal(i, 77);
    assert_int_equal(json_get_int(&i, o, "z", 0, 9, JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_int_equal(json_get_real(&r, o, "i", 0, 9, JSON_REQUIRED, "S", &e), OK);
    assert_true(r == 5);
    assert_int_equal(json_get_real(&r, o, "r", 0, 9, JSON_REQUIRED, "S", &e), OK);
    assert_true(r == 2.5);
    assert_int_equal(json_get_real(&r, o, "t", 0, 9, JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_int_equal(json_get_bool(&b, o, "b", JSON_REQUIRED, "S", &e), OK);
    assert_true(b);
    assert_int_equal(json_get_bool(&b, o, "i", JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_int_equal(json_get_text(&t, o, "t", JSON_REQUIRED, "S", &e), OK);
    assert_string_equal(t, "x");
    assert_int_equal(json_get_text(&t, o, "n", JSON_REQUIRED, "S", &e), ERR_FORMAT); /* no text is cut at its NUL */
    assert_int_equal(json_get_object(&v, o, "o", JSON_REQUIRED, "S", &e), OK);
    assert_int_equal(json_get_object(&v, o, "a", JSON_REQUIRED, "S", &e), ERR_FORMAT);
    assert_int_equal(json_get_array(&v, o, "a", JSON_REQUIRED, "S", &e), OK);
    assert_int_equal(json_length(v), 1);
    assert_int_equal(json_get_int(&i, v, "a", 0, 9, JSON_REQUIRED, "S", &e), ERR_FORMAT); /* a list has no members */
    assert_null(json_item(v, 1));
    assert_true(json_is_null(json_at(o, "z")) && json_is_null(NULL) && json_is_real(json_at(o, "i")) &&
                !json_is_int(json_at(o, "r")));
    int n = 0;
    static const char *const keys[] = {"i", "r", "t", "z", "b", "o", "a", "n"};
    for (void *at = json_first(o); at; at = json_next(o, at)) assert_string_equal(json_key(at), keys[n++]);
    assert_int_equal(n, 8);
    json_free(o);
}

static void test_numbers_come_back(void **state)
{
    static const double x[] = {0.1, 1.0 / 3, DBL_MAX, DBL_MIN, 5e-324, -0.0, 1e22, 123456789012345678.0};

    (void)state;
    for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); i++) {
        struct json_t *a = json_array_new();
        struct str s = {0};

        json_append(a, json_real_new(x[i]));
        json_dump(&s, a, false);
        struct json_t *b = parsed(s.text);
        double y = json_number(json_item(b, 0));

        assert_memory_equal(&y, &x[i], sizeof(y));
        json_free(a);
        json_free(b);
        str_free(&s);
    }
    struct json_t *nan = json_real_new(NAN), *big = json_int_new(INT64_MIN);
    assert_true(json_is_null(nan));
    assert_true(json_int(big) == INT64_MIN);
    json_free(nan);
    json_free(big);
}

static void test_bytes_that_are_no_text(void **state)
{
    /* cut character, lone continuation, overlong, surrogate, above U+10FFFF; what is good stays */
    struct json_t *v = json_text_new("a\xc3|\x80|\xc0\xaf|\xed\xa0\x80|\xf4\x90\x80\x80|\xf0\x9f\x98\x80", 21);

    (void)state;
    assert_string_equal(json_text(v), "a\xef\xbf\xbd|\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|"
                                      "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|\xf0\x9f\x98\x80");
    json_free(v);
}

static void test_copies_are_deep(void **state)
{
    struct json_t *a = parsed("{\"x\":{\"y\":[1,2]}}"), *b = json_clone(a);
    struct str s = {0};

    (void)state;
    json_put_int(a, "x", 3);
    json_dump(&s, b, false);
    assert_string_equal(s.text, "{\"x\": {\"y\": [1, 2]}}");
    json_free(a);
    json_free(b);
    str_free(&s);
}

static void test_digests(void **state)
{
    /* FIPS 180-4's examples */
    static const char *const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    static const char *const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    char hex[65], path[] = "/tmp/factorllm-digest-XXXXXX";
    struct err e;

    (void)state;
    digest_bytes(hex, "abc", 3);
    assert_string_equal(hex, abc);
    digest_bytes(hex, "", 0);
    assert_string_equal(hex, empty);
    int fd = mkstemp(path);
    assert_int_equal(write(fd, "abc", 3), 3);
    close(fd);
    assert_int_equal(digest_file(hex, path, &e), OK);
    assert_string_equal(hex, abc);
    struct digest *pieces = digest_begin();
    digest_add(pieces, "a", 1);
    digest_add(pieces, "bc", 2);
    digest_end(pieces, hex);
    assert_string_equal(hex, abc);
    unlink(path);
    assert_int_equal(digest_file(hex, path, &e), ERR_IO);
}

static void put(const char *directory, const char *name, const char *text, size_t length)
{
    char *path = str_join(directory, name);
    struct err e;

    assert_int_equal(file_write(path, text, length, &e), OK);
    free(path);
}

/* Sums of a directory: written, read back, and whatever is wrong with a file or with the list is said. */
static void test_sums(void **state)
{
    static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    static const char *const bad[] = {"",        "\n",          "x",          "SUM",       "SUM \n",
                                      "SUM  \n", "SUM  ../a\n", "SUM  b/c\n", "SUM  .a\n", "SUMa  a\n"};
    char directory[] = "/tmp/factorllm-sums-XXXXXX", *list, *inner;
    struct sums_checked found;
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    list = str_join(directory, SUMS_FILE), inner = str_join(directory, "inner");
    assert_int_equal(sums_check(&found, directory, &e), ERR_IO);
    put(directory, "b", "", 0), put(directory, "a", "abc", 3);
    assert_int_equal(file_make_directory(inner, &e), OK); /* is left out */
    assert_int_equal(sums_write(directory, NULL, &e), OK);
    assert_int_equal(sums_write(directory, NULL, &e), OK); /* and the list does not list itself */
    char *text;
    size_t length;
    assert_int_equal(file_read(&text, &length, list, 1000, &e), OK);
    assert_int_equal(length, 2 * 68);
    assert_memory_equal(text, abc, 64);
    assert_memory_equal(text + 64, "  a\n", 4);
    free(text);
    assert_int_equal(sums_check(&found, directory, &e), OK);
    assert_true(found.files == 2 && found.bytes == 3);
    put(directory, "a", "abd", 3);
    assert_int_equal(sums_check(&found, directory, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "/a: is not what was written"));
    put(directory, "a", "abc", 3);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct str s = {0};

        if (!strncmp(bad[i], "SUM", 3)) str_addf(&s, "%s%s", abc, bad[i] + 3);
        else str_addz(&s, bad[i]);
        put(directory, SUMS_FILE, s.text, s.length);
        if (sums_check(&found, directory, &e) != ERR_FORMAT) fail_msg("'%s': %s", bad[i], e.text);
        str_free(&s);
    }
    put(directory, SUMS_FILE, "a\0b", 3);
    assert_int_equal(sums_check(&found, directory, &e), ERR_FORMAT);
    assert_int_equal(directory_remove(directory, &e), OK);
    assert_int_equal(sums_write(directory, NULL, &e), ERR_IO);
    free(list), free(inner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_numbers_come_back),
        cmocka_unit_test(test_bytes_that_are_no_text),
        cmocka_unit_test(test_copies_are_deep),
        cmocka_unit_test(test_digests),
        cmocka_unit_test(test_sums),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
