/* A checkpoint comes back bit for bit, and nothing else is taken for one: every truncation, every changed byte, another run's, and files with
 * a right digest around wrong contents. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"
#include "base/file.h"
#include "base/str.h"
#include "data/digest.h"
#include "train/checkpoint.h"

static float weight[5] = {1, -2.5f, 0x1p-140f, 3e38f, -0.0f}, moment[3] = {0.1f, 0.2f, 0.3f};
static const struct checkpoint_array arrays[] = {{"weight", weight, 5}, {"moment", moment, 3}};

static struct json_t *identity_of(double lr)
{
    struct json_t *o = json_object_new();

    json_put_text(o, "data", "abcd");
    json_put_real(o, "finetune.learning_rate", lr);
    json_put_int(o, "seed", 7);
    return o;
}

static struct json_t *progress_of(void)
{
    struct json_t *o = json_object_new();

    json_put_int(o, "step", 12);
    json_put_real(o, "loss", 0.1);
    return o;
}

static void good(char **bytes, size_t *n)
{
    struct json_t *identity = identity_of(0.01), *progress = progress_of();
    char path[] = "/tmp/checkpoint-XXXXXX";
    int fd = mkstemp(path);
    struct err e;

    assert_true(fd >= 0);
    assert_int_equal(checkpoint_write(path, identity, progress, arrays, 2, NULL, &e), OK);
    assert_int_equal(file_read(bytes, n, path, 1 << 20, &e), OK);
    assert_int_equal(close(fd), 0); /* the file that was replaced */
    unlink(path);
    json_free(identity);
    json_free(progress);
}

/* Decodes into arrays of the usual shapes; `out` gets them. */
static status decode(float out[8], struct json_t **progress, const char *bytes, size_t n, struct err *e)
{
    struct checkpoint_array into[] = {{"weight", out, 5}, {"moment", out + 5, 3}};
    struct json_t *identity = identity_of(0.01);
    char *copy = malloc(n ? n : 1); /* of exactly this size, for the sanitizer */

    memcpy(copy, bytes, n);
    status s = checkpoint_decode(progress, copy, n, "FILE", identity, into, 2, e);
    free(copy);
    json_free(identity);
    return s;
}

static void count(void *ticks)
{
    ++*(int *)ticks;
}

/* What takes long says that it goes on: more than once for every 16 MiB, on both ways. */
static void signs_of_life(void **state)
{
    enum { N = 10 << 20 };
    char path[] = "/tmp/checkpoint-XXXXXX";
    struct json_t *identity = identity_of(0.01), *progress = progress_of(), *back;
    float *out = malloc(N * sizeof(float)), *in = calloc(N, sizeof(float));
    struct checkpoint_array from[] = {{"weight", out, N}}, into[] = {{"weight", in, N}};
    int ticks = 0, fd = mkstemp(path), parts = N * (int)sizeof(float) / (int)ALIVE_BYTES;
    const struct alive alive = {count, &ticks};
    struct err e;

    (void)state;
    assert_true(fd >= 0 && out && in);
    for (int i = 0; i < N; i++) out[i] = (float)i;
    assert_int_equal(checkpoint_read(&back, path, identity, into, 1, &alive, &e), ERR_FORMAT); /* nothing in it */
    assert_int_equal(checkpoint_write(path, identity, progress, from, 1, &alive, &e), OK);
    assert_true(ticks >= 3 * parts); /* digest, and both sides of what makes it durable */
    ticks = 0;
    assert_int_equal(checkpoint_read(&back, path, identity, into, 1, &alive, &e), OK);
    assert_true(ticks >= 2 * parts);
    assert_memory_equal(in, out, N * sizeof(float));
    json_free(back);
    assert_int_equal(checkpoint_read(&back, "/tmp", identity, into, 1, &alive, &e), ERR_IO);
    assert_int_equal(close(fd), 0); /* the file that was replaced */
    unlink(path);
    json_free(identity);
    json_free(progress);
    free(out);
    free(in);
}

static void round_trip(void **state)
{
    char directory[] = "/tmp/checkpoint-XXXXXX", *path;
    struct json_t *identity = identity_of(0.01), *progress = progress_of(), *back;
    float w[5], m[3];
    struct checkpoint_array into[] = {{"weight", w, 5}, {"moment", m, 3}};
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    path = str_join(directory, "checkpoint");
    assert_int_equal(checkpoint_read(&back, path, identity, into, 2, NULL, &e), ERR_IO);
    assert_null(back);
    for (int i = 0; i < 2; i++) { /* over the previous one too */
        assert_int_equal(checkpoint_write(path, identity, progress, arrays, 2, NULL, &e), OK);
        assert_int_equal(checkpoint_read(&back, path, identity, into, 2, NULL, &e), OK);
        assert_memory_equal(w, weight, sizeof(w));
        assert_memory_equal(m, moment, sizeof(m));
        assert_int_equal(json_int(json_at(back, "step")), 12);
        assert_true(json_number(json_at(back, "loss")) == 0.1);
        json_free(back);
    }
    unlink(path);
    assert_int_equal(rmdir(directory), 0); /* and nothing else was left there */
    free(path);
    json_free(identity);
    json_free(progress);
}

/* A state that could not be read again is not written: the checkpoint before it stays, and nothing beside it. */
static void not_finite(void **state)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    char directory[] = "/tmp/checkpoint-XXXXXX", *path;
    struct json_t *identity = identity_of(0.01), *progress = progress_of(), *back;
    float w[5], m[3], spoiled[3];
    struct checkpoint_array from[] = {arrays[0], {"moment", spoiled, 3}}, into[] = {{"weight", w, 5}, {"moment", m, 3}};
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    path = str_join(directory, "checkpoint");
    assert_int_equal(checkpoint_write(path, identity, progress, arrays, 2, NULL, &e), OK);
    for (int i = 0; i < 3; i++) {
        memcpy(spoiled, moment, sizeof(spoiled));
        spoiled[i] = bad[i];
        assert_int_equal(checkpoint_write(path, identity, progress, from, 2, NULL, &e), ERR_FORMAT);
        assert_non_null(strstr(e.text, "of moment is not finite"));
        assert_non_null(strstr(e.text, path));
        assert_int_equal(checkpoint_read(&back, path, identity, into, 2, NULL, &e), OK);
        assert_memory_equal(m, moment, sizeof(m));
        json_free(back);
    }
    unlink(path);
    assert_int_equal(rmdir(directory), 0);
    free(path);
    json_free(identity);
    json_free(progress);
}

static void truncations_and_mutations(void **state)
{
    struct json_t *progress;
    float out[8], untouched[8];
    char *bytes;
    size_t n;
    struct err e;

    (void)state;
    good(&bytes, &n);
    for (int i = 0; i < 8; i++) untouched[i] = out[i] = 42;
    for (size_t cut = 0; cut < n; cut++) assert_int_equal(decode(out, &progress, bytes, cut, &e), ERR_FORMAT);
    for (size_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit += 3) {
            bytes[i] ^= (char)(1 << bit);
            assert_int_equal(decode(out, &progress, bytes, n, &e), ERR_FORMAT);
            assert_null(progress);
            assert_non_null(strstr(e.text, "FILE"));
            bytes[i] ^= (char)(1 << bit);
        }
    }
    assert_memory_equal(out, untouched, sizeof(out));
    assert_int_equal(decode(out, &progress, bytes, n, &e), OK);
    json_free(progress);
    char *longer = malloc(n + 4);
    memcpy(longer, bytes, n);
    memset(longer + n, 0, 4);
    assert_int_equal(decode(out, &progress, longer, n + 4, &e), ERR_FORMAT);
    free(longer);
    free(bytes);
}

static void other_run(void **state)
{
    struct json_t *mine = identity_of(0.003), *more = identity_of(0.01), *progress;
    float out[8];
    struct checkpoint_array into[] = {{"weight", out, 5}, {"moment", out + 5, 3}};
    char *bytes;
    size_t n;
    struct err e;

    (void)state;
    good(&bytes, &n);
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", mine, into, 2, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "finetune.learning_rate was 0.01"));
    assert_non_null(strstr(e.text, "is 0.003"));
    json_put_text(more, "extra", "x");
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", more, into, 2, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "extra was missing and is \"x\""));
    json_free(mine);
    mine = identity_of(nextafter(0.01, 1)); /* the same in 15 digits */
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", mine, into, 2, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "was 0.01 and is 0.010000000000000002;"));
    json_free(mine);
    json_free(more);

    mine = identity_of(0.01);
    into[1].n = 2; /* arrays of other sizes and names */
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", mine, into, 2, &e), ERR_FORMAT);
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", mine, into, 1, &e), ERR_FORMAT);
    into[1] = (struct checkpoint_array){"momenta", out + 5, 3};
    assert_int_equal(checkpoint_decode(&progress, bytes, n, "FILE", mine, into, 2, &e), ERR_FORMAT);
    json_free(mine);
    free(bytes);
}

/* Somebody who can compute a digest writes whatever JSON and floats he likes. */
static char *forge(size_t *n, const char *json, uint64_t json_bytes, uint64_t says_floats, const float *data, size_t floats)
{
    uint64_t counts[2] = {json_bytes, says_floats};
    size_t text = strlen(json);
    char hex[65], *bytes = malloc(CHECKPOINT_BODY + sizeof(counts) + text + floats * sizeof(float));

    *n = CHECKPOINT_BODY + sizeof(counts) + text + floats * sizeof(float);
    memcpy(bytes + CHECKPOINT_BODY, counts, sizeof(counts));
    memcpy(bytes + CHECKPOINT_BODY + sizeof(counts), json, text);
    memcpy(bytes + CHECKPOINT_BODY + sizeof(counts) + text, data, floats * sizeof(float));
    digest_bytes(hex, bytes + CHECKPOINT_BODY, *n - CHECKPOINT_BODY);
    memcpy(bytes, "factorllm-checkpoint-01\n", 24);
    memcpy(bytes + 24, hex, 64);
    return bytes;
}

#define IDENTITY "\"identity\":{\"data\":\"abcd\",\"finetune.learning_rate\":0.01,\"seed\":7}"
#define ARRAYS   "\"arrays\":[[\"weight\",5],[\"moment\",3]]"

static void forged(void **state)
{
    static const struct {
        const char *json;
        status expected;
    } cases[] = {
        {"{" IDENTITY "," ARRAYS ",\"progress\":{}}", OK},
        {"{" IDENTITY "," ARRAYS ",\"progress\":3}", ERR_FORMAT},
        {"{" IDENTITY "," ARRAYS "}", ERR_FORMAT},
        {"{" IDENTITY ",\"progress\":{}}", ERR_FORMAT},
        {"{" ARRAYS ",\"progress\":{}}", ERR_FORMAT},
        {"{\"identity\":[]," ARRAYS ",\"progress\":{}}", ERR_FORMAT},
        {"{\"identity\":{}," ARRAYS ",\"progress\":{}}", ERR_SPEC},
        {"{" IDENTITY ",\"arrays\":[[\"weight\",5],[\"moment\",-3]],\"progress\":{}}", ERR_FORMAT},
        {"{" IDENTITY ",\"arrays\":[[\"weight\",5],[\"moment\",\"3\"]],\"progress\":{}}", ERR_FORMAT},
        {"{" IDENTITY ",\"arrays\":[[\"weight\",5],{}],\"progress\":{}}", ERR_FORMAT},
        {"{" IDENTITY ",\"arrays\":[[5,5],[]],\"progress\":{}}", ERR_FORMAT},
        {"[]", ERR_FORMAT},
        {"", ERR_FORMAT},
        {"{", ERR_FORMAT},
    };
    float data[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, out[8];
    struct json_t *progress;
    struct err e;
    size_t n;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *bytes = forge(&n, cases[i].json, strlen(cases[i].json), 8, data, 8);

        assert_int_equal(decode(out, &progress, bytes, n, &e), cases[i].expected);
        json_free(progress);
        free(bytes);
    }
    for (int i = 0; i < 8; i++) assert_true(out[i] == data[i]);

    const char *json = cases[0].json;
    const struct {
        uint64_t json_bytes, says;
        size_t floats;
    } sizes[] = {{strlen(json), 9, 9},
                 {strlen(json), 7, 7},
                 {strlen(json), UINT64_MAX, 8},
                 {UINT64_MAX, 8, 8},
                 {UINT64_MAX - 3, 8, 8},
                 {0, 8, 8},
                 {strlen(json), UINT64_MAX / 4 + 9, 8},
                 {strlen(json) + 33, 0, 8}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        char *bytes = forge(&n, json, sizes[i].json_bytes, sizes[i].says, data, sizes[i].floats);

        assert_int_equal(decode(out, &progress, bytes, n, &e), ERR_FORMAT);
        free(bytes);
    }
    data[3] = NAN;
    char *bytes = forge(&n, json, strlen(json), 8, data, 8);
    assert_int_equal(decode(out, &progress, bytes, n, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "not finite"));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip),    cmocka_unit_test(not_finite),
                                       cmocka_unit_test(signs_of_life), cmocka_unit_test(truncations_and_mutations),
                                       cmocka_unit_test(other_run),     cmocka_unit_test(forged)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
