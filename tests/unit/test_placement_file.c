/* Placement files: a table, or one line that says what is wrong. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "data/placement_file.h"

static const char text[] = "{\"ranks\": 3, \"layers\": [[0, 1], [2, 2]]}";

static status parse(int **t, const char *s, size_t n, struct err *e)
{
    return placement_file_parse(t, s, n, "p.json", 2, 2, 3, e);
}

static void test_read(void **state)
{
    char directory[] = "/tmp/test_placement_XXXXXX", *path;
    struct err e = {0};
    int *t;

    (void)state;
    assert_non_null(mkdtemp(directory));
    path = str_join(directory, "p.json");
    assert_int_equal(file_write(path, text, strlen(text), &e), OK);
    assert_int_equal(placement_file_read(&t, path, 2, 2, 3, &e), OK);
    assert_int_equal(t[0], 0);
    assert_int_equal(t[1], 1);
    assert_int_equal(t[2], 2);
    assert_int_equal(t[3], 2);
    free(t);
    unlink(path);
    assert_int_equal(placement_file_read(&t, path, 2, 2, 3, &e), ERR_IO);
    assert_null(t);
    rmdir(directory);
    free(path);
}

static void test_errors(void **state)
{
    static const struct {
        const char *text;
        status code;
        const char *expected;
    } bad[] = {
        {"", ERR_FORMAT, "p.json"},
        {"[]", ERR_FORMAT, "p.json: expected an object with ranks and layers"},
        {"{}", ERR_FORMAT, "ranks"},
        {"{\"ranks\": 3}", ERR_FORMAT, "layers"},
        {"{\"ranks\": 0, \"layers\": []}", ERR_FORMAT, "ranks"},
        {"{\"ranks\": 3.5, \"layers\": []}", ERR_FORMAT, "ranks"},
        {"{\"ranks\": 2, \"layers\": [[0, 1], [1, 1]]}", ERR_SPEC,
         "p.json: ranks: expected 3, the ranks of this launch, found 2"},
        {"{\"ranks\": 3, \"layers\": [[0, 1]]}", ERR_SPEC, "p.json: layers: expected 2, those of the model, found 1"},
        {"{\"ranks\": 3, \"layers\": [[0, 1], 4]}", ERR_FORMAT, "p.json: layers[1]: expected a list of ranks"},
        {"{\"ranks\": 3, \"layers\": [[0, 1], [0, 1, 2]]}", ERR_SPEC,
         "p.json: layers[1]: expected the ranks of 2 experts, found 3"},
        {"{\"ranks\": 3, \"layers\": [[0, 1], [0, 3]]}", ERR_SPEC, "p.json: layers[1][1]: expected a rank from 0 to 2, found 3"},
        {"{\"ranks\": 3, \"layers\": [[0, -1], [0, 1]]}", ERR_SPEC,
         "p.json: layers[0][1]: expected a rank from 0 to 2, found -1"},
        {"{\"ranks\": 3, \"layers\": [[0, \"1\"], [0, 1]]}", ERR_FORMAT, "p.json: layers[0][1]: expected a rank"},
        {"{\"ranks\": 3, \"layers\": [[0, 4294967296], [0, 1]]}", ERR_SPEC, "found 4294967296"},
    };
    struct err e = {0};
    int *t;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(parse(&t, bad[i].text, strlen(bad[i].text), &e), bad[i].code);
        assert_null(t);
        if (!strstr(e.text, bad[i].expected)) fail_msg("expected \"%s\", found \"%s\"", bad[i].expected, e.text);
    }
}

static void test_truncated(void **state)
{
    struct err e = {0};
    int *t;

    (void)state;
    for (size_t n = 0; n < strlen(text); n++) {
        char *part = malloc(n + 1);

        memcpy(part, text, n);
        assert_int_equal(parse(&t, part, n, &e), ERR_FORMAT);
        assert_null(t);
        free(part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_truncated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
