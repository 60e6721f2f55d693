/* Which router is in use, and the way back. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "model/router_versions.h"

static int make(void **state)
{
    char *d = str_dup("/tmp/factorllm-versions-XXXXXX");

    *state = d;
    return mkdtemp(d) ? 0 : -1;
}

static int drop(void **state)
{
    struct err e;
    int code = directory_remove(*state, &e);

    free(*state);
    return code;
}

static void put(const char *directory, const char *name, const char *text)
{
    struct str path = {0};
    struct err e;

    str_addf(&path, "%s/routers/%s", directory, name);
    char *slash = strrchr(path.text, '/');
    *slash = 0;
    assert_int_equal(file_make_directory(path.text, &e), OK);
    *slash = '/';
    assert_int_equal(file_write(path.text, text, strlen(text), &e), OK);
    str_free(&path);
}

static void expect(const char *directory, const char *text)
{
    char *path = str_join(directory, "routers/current"), *found;
    size_t n;
    struct err e;

    assert_int_equal(file_read(&found, &n, path, 1 << 16, &e), OK);
    assert_string_equal(found, text);
    free(found);
    free(path);
}

static void test_promote_and_rollback(void **state)
{
    const char *d = *state;
    char from[ROUTER_VERSION_MAX], to[ROUTER_VERSION_MAX];
    struct router_history *h = malloc(sizeof(*h));
    struct err e;

    assert_non_null(h);
    assert_int_equal(router_history_read(h, d, &e), OK);
    assert_int_equal(h->n, 0);
    assert_int_equal(router_rollback(from, to, d, &e), ERR_SPEC);
    assert_int_equal(router_promote(d, "v1", &e), ERR_IO); /* is not there */
    for (int i = 1; i <= 3; i++) {
        char name[64];

        snprintf(name, sizeof(name), "v%d/router.safetensors", i);
        put(d, name, "x");
    }
    assert_int_equal(router_promote(d, "v1", &e), OK);
    assert_int_equal(router_rollback(from, to, d, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "v1 is the first"));
    assert_int_equal(router_promote(d, "v3", &e), OK);
    assert_int_equal(router_promote(d, "v3", &e), OK); /* changes nothing: the way back is as it was */
    assert_int_equal(router_promote(d, "v1", &e), OK);
    assert_int_equal(router_promote(d, "v2", &e), OK);
    expect(d, "v2\nv1\nv3\nv1\n");
    static const char *const back[] = {"v1", "v3", "v1"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(router_rollback(from, to, d, &e), OK);
        assert_string_equal(to, back[i]);
    }
    assert_string_equal(from, "v3");
    expect(d, "v1\n");
    assert_int_equal(router_promote(d, "../v2", &e), ERR_SPEC);
    assert_int_equal(router_promote(d, "", &e), ERR_SPEC);
    expect(d, "v1\n");

    put(d, "current", "v1\nv9\n"); /* what was in use before is gone: nothing else is taken for it */
    assert_int_equal(router_rollback(from, to, d, &e), ERR_IO);
    expect(d, "v1\nv9\n");
    put(d, "current", "v1\n../etc\n");
    assert_int_equal(router_history_read(h, d, &e), ERR_FORMAT);
    put(d, "current", "");
    assert_int_equal(router_history_read(h, d, &e), ERR_FORMAT);
    put(d, "current", "v1"); /* as it was written before there was a history */
    assert_int_equal(router_history_read(h, d, &e), OK);
    assert_true(h->n == 1 && !strcmp(h->version[0], "v1"));
    free(h);
}

static void test_long_history(void **state)
{
    const char *d = *state;
    struct router_history *h = malloc(sizeof(*h));
    struct err e;

    assert_non_null(h);
    put(d, "a/router.safetensors", "x");
    put(d, "b/router.safetensors", "x");
    for (int i = 0; i < 2 * ROUTER_HISTORY_MAX + 1; i++) assert_int_equal(router_promote(d, i % 2 ? "b" : "a", &e), OK);
    assert_int_equal(router_history_read(h, d, &e), OK);
    assert_int_equal(h->n, ROUTER_HISTORY_MAX);
    for (int i = 0; i < h->n; i++) assert_string_equal(h->version[i], i % 2 ? "b" : "a");
    free(h);
}

static void test_list(void **state)
{
    const char *d = *state;
    char **names;
    struct err e;
    int n;

    assert_int_equal(router_versions(&names, &n, d, &e), OK);
    assert_int_equal(n, 0);
    router_versions_free(names, n);
    put(d, "v10/router.safetensors", "x");
    put(d, "v2/router.safetensors", "x");
    put(d, "v3.tmp-12/router.safetensors", "x");
    put(d, "best/router.safetensors", "x");
    put(d, "current", "v2\n");
    assert_int_equal(router_versions(&names, &n, d, &e), OK);
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "best");
    assert_string_equal(names[1], "v2");
    assert_string_equal(names[2], "v10");
    router_versions_free(names, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_promote_and_rollback, make, drop),
        cmocka_unit_test_setup_teardown(test_long_history, make, drop),
        cmocka_unit_test_setup_teardown(test_list, make, drop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
