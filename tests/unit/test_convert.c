/* convert: what is opened in place has the bits of what is packed at opening, for every format; a file that is not what it says is refused in one line. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../open_model.h"
#include "base/directory.h"
#include "base/file.h"
#include "engine/cluster.h"
#include "jobs/job.h"
#include "jobs/plan.h"
#include "model/router_file.h"

#define TOY "tests/golden/toy-llama"  /* F32; toy-qwen2 has biases, toy-mistral a sliding window */
enum { ROWS = 40, D = 128, V = 512 }; /* most */

struct bench {
    char directory[64], *out, *made;
    struct comm *comm;
};

static int set_up(void **state)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct err e;

    strcpy(b->directory, "/tmp/factorllm-convert-XXXXXX");
    if (!mkdtemp(b->directory) || comm_open(&b->comm, NULL, NULL, &e)) return -1;
    b->out = str_join(b->directory, "out");
    b->made = str_join(b->directory, "out/model");
    *state = b;
    return 0;
}

static int tear_down(void **state)
{
    struct bench *b = *state;
    struct err e;

    comm_close(b->comm, OK);
    assert_int_equal(directory_remove(b->directory, &e), OK);
    free(b->out);
    free(b->made);
    free(b);
    return 0;
}

/* The job of a spec with `more` lines; *result, if not NULL, gets what it reports. */
static status run(struct bench *b, const char *kind, const char *model, const char *out, const char *more, struct json_t **result,
                  struct err *e)
{
    struct str text = {0};
    struct spec *s;
    struct cluster *c;

    str_addf(&text, "kind: %s\nmodel: %s\noutput: %s\ncluster: {threads: 2}\n%s", kind, model, out, more);
    *e = (struct err){0};
    status st = spec_parse(&s, text.text, text.length, "SPEC", NULL, 0, e);
    str_free(&text);
    if (st) return st;
    if (cluster_open(&c, b->comm, s, e)) fail_msg("%s", e->text);
    assert_int_equal(file_make_directory(s->output, e), OK);
    struct job j = {.spec = s, .cluster = c, .result = json_object_new()};
    st = s->kind == JOB_CONVERT ? job_convert(&j, e) : job_factorize(&j, e);
    if (result) *result = json_clone(j.result);
    json_free(j.result);
    cluster_close(c);
    spec_free(s);
    return st;
}

static void convert(struct bench *b, const char *model, const char *precision)
{
    struct err e;

    if (run(b, "convert", model, b->out, precision, NULL, &e)) fail_msg("%s", e.text);
}

static const struct model_limits plain = {.rows = ROWS, .sessions = 1, .positions = 64, .verify = true};

static struct model_limits limits_with(enum format experts, enum format attention, enum format head)
{
    struct model_limits l = plain;

    l.precision.part[WEIGHTS_EXPERTS] = (uint8_t)(1 + experts);
    l.precision.part[WEIGHTS_ATTENTION] = (uint8_t)(1 + attention);
    l.precision.part[WEIGHTS_HEAD] = (uint8_t)(1 + head);
    return l;
}

/* Logits of some tokens. */
static void logits_of(const char *directory, struct model_limits l, bool packed, float *logits)
{
    static float hidden[ROWS * D];
    int32_t ids[ROWS];
    struct opened o;

    opened_open(&o, directory, l, 2);
    assert_true(o.shape.width <= D && o.shape.vocab <= V);
    for (int i = 0; i < ROWS; i++) ids[i] = (i * 37 + 5) % o.shape.vocab;
    assert_int_equal(model_weights(o.model)->packed, packed);
    assert_true((model_packed_bytes(o.model) == 0) == packed);
    run_rows(o.model, ids, 0, ROWS, 0, hidden);
    memset(logits, 0, (size_t)ROWS * V * sizeof(*logits));
    forward_logits(o.model, hidden, ROWS, logits);
    opened_close(&o);
}

static void in_place_has_the_bits_of_packed_at_opening(void **state)
{
    static const enum format formats[][WEIGHT_PARTS] = {{FORMAT_F32, FORMAT_F32, FORMAT_F32},
                                                        {FORMAT_BF16, FORMAT_BF16, FORMAT_BF16},
                                                        {FORMAT_Q8, FORMAT_Q8, FORMAT_Q8},
                                                        {FORMAT_Q4, FORMAT_Q4, FORMAT_Q4},
                                                        {FORMAT_Q4, FORMAT_BF16, FORMAT_Q8}};
    static const char *const models[] = {TOY, "tests/golden/toy-qwen2", "tests/golden/toy-mistral"};
    static float here[ROWS * V], there[ROWS * V], stored[ROWS * V];
    struct bench *b = *state;

    for (size_t m = 0; m < sizeof(models) / sizeof(*models); m++) {
        logits_of(models[m], plain, false, stored);
        for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
            const enum format *f = formats[i];
            struct str precision = {0};

            str_addf(&precision, "precision: {experts: %s, attention: %s, head: %s}\n", format_name(f[0]), format_name(f[1]),
                     format_name(f[2]));
            convert(b, models[m], precision.text);
            str_free(&precision);
            logits_of(models[m], limits_with(f[0], f[1], f[2]), false, here);
            logits_of(b->made, limits_with(f[0], f[1], f[2]), true, there);
            assert_memory_equal(here, there, sizeof(here));
            logits_of(b->made, plain, true, there); /* as stored */
            assert_memory_equal(here, there, sizeof(here));
            if (i == 0) assert_memory_equal(here, stored, sizeof(here));
            else if (i > 1) assert_memory_not_equal(here, stored, sizeof(here));
        }
    }
}

/* Formats and errors are said, and what is exact says 0. */
static void the_report_tells_what_was_changed(void **state)
{
    struct bench *b = *state;
    struct json_t *r, *config;
    struct err e;

    if (run(b, "convert", TOY, b->out, "precision: {experts: q4, attention: q8}\n", &r, &e)) fail_msg("%s", e.text);
    const struct json_t *error = json_at(r, "error");
    double q4 = json_number(json_at(error, "experts")), q8 = json_number(json_at(error, "attention"));
    if (!(q4 > 0.02 && q4 < 0.15 && q8 > 0.002 && q8 < 0.01)) fail_msg("errors of q4 %g and q8 %g", q4, q8);
    assert_true(json_number(json_at(error, "head")) == 0.0);
    assert_string_equal(json_text(json_at(json_at(r, "formats"), "head")), "f32");
    assert_true(json_int(json_at(json_at(r, "bytes_after"), "attention")) <
                json_int(json_at(json_at(r, "bytes_before"), "attention")));
    char *path = str_join(b->made, "config.json");
    assert_int_equal(json_read(&config, path, 1 << 20, &e), OK);
    assert_string_equal(json_text(json_at(json_at(config, "packed"), "experts")), "q4");
    json_free(config);
    json_free(r);
    free(path);
}

/* factorize with `precision` writes both; what is asked for decides which is opened; routers and the rest travel along with a conversion. */
static void a_factorized_model_is_packed_too(void **state)
{
    static float here[ROWS * V], there[ROWS * V];
    struct bench *b = *state;
    const char *more = "experts: 5\nactive: 2\ncalibration: {file: tests/cli/common.bash}\n";
    char *cut = str_join(b->directory, "cut"), *model = str_join(b->directory, "cut/model"), *path;
    struct str spec = {0};
    struct router router;
    struct shape s;
    struct err e;

    str_addf(&spec, "%sprecision: {experts: q8}\n", more);
    if (run(b, "factorize", TOY, cut, spec.text, NULL, &e)) fail_msg("%s", e.text);
    logits_of(model, plain, true, there);
    logits_of(model, limits_with(FORMAT_Q8, FORMAT_F32, FORMAT_F32), true, here);
    assert_memory_equal(here, there, sizeof(here));
    logits_of(model, limits_with(FORMAT_F32, FORMAT_F32, FORMAT_F32), false, here);
    assert_memory_not_equal(here, there, sizeof(here));
    assert_int_equal(shape_read(&s, model, &e), OK);
    assert_int_equal(router_alloc(&router, &s, &e), OK);
    router_random(&router, 3);
    struct json_t *about = json_object_new();
    assert_int_equal(router_write(&router, model, "v1", about, true, &e), OK);
    json_free(about);
    router_free(&router);
    convert(b, model, "precision: {experts: q8}\n");
    assert_int_equal(router_read(&router, b->made, NULL, &s, &e), OK);
    router_free(&router);
    path = str_join(b->made, "calibration.safetensors");
    assert_true(file_exists(path));
    logits_of(b->made, plain, true, here);
    assert_memory_equal(here, there, sizeof(here));
    /* what is packed only cannot be converted or factorized */
    assert_int_equal(run(b, "convert", b->made, cut, "", NULL, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "packed weights only"));
    free(path);
    free(cut);
    free(model);
    str_free(&spec);
}

/* A packed router gives the bits of one that is packed in every step. */
static void a_router_is_packed_once(void **state)
{
    struct router r = {.layers = 3, .experts = 37, .width = 50};
    float weight[3 * 37 * 50], bias[3 * 37], x[5 * 50], want[5 * 37], got[5 * 37];
    struct gemm *g;
    struct err e;

    (void)state;
    r.weight = weight;
    r.bias = bias;
    router_random(&r, 9);
    for (int i = 0; i < 5 * 50; i++) x[i] = sinf((float)i);
    assert_int_equal(gemm_open(&g, 2, isa_best(), &e), OK);
    assert_int_equal(router_pack(&r, FORMAT_F32, g, &e), OK);
    for (int l = 0; l < 3; l++) {
        const struct mat w = {weight + (size_t)l * 37 * 50, DT_F32, 37, 50, 50};
        const struct rows in = {.x = x, .ld = 50, .n = 5, .cols = 50};

        gemm_xwt(g, want, 37, x, 50, 5, &w, bias);
        gemm_product(g, got, 37, &in, &r.packed[l], bias);
        assert_memory_equal(want, got, sizeof(want));
    }
    gemm_close(g);
    free((void *)r.packed[0].lines);
    free((void *)r.packed);
}

/* ---- refusals ---- */

static void refused(const char *where, struct model_limits l, status code, const char *word)
{
    struct opened o;
    struct err e = {0};
    status st = opened_try(&o, where, l, 1, &e);

    if (st != code || !strstr(e.text, word)) fail_msg("%d, expected %d with \"%s\": %s", st, code, word, e.text);
    if (strchr(e.text, '\n')) fail_msg("more than a line: %s", e.text);
    opened_close(&o);
}

/* `from` in the header becomes `to`, of the same length. */
static void damage(const char *path, const char *whole, size_t length, const char *from, const char *to)
{
    char *copy = malloc(length);
    struct err e;

    assert_non_null(copy);
    memcpy(copy, whole, length);
    char *at = memmem(copy, length, from, strlen(from));
    if (!at) fail_msg("no %s in the file", from);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    assert_int_equal(file_write(path, copy, length, &e), OK);
    free(copy);
}

static void what_is_not_what_it_says_is_refused(void **state)
{
    static const struct {
        const char *from, *to, *word;
    } cases[] = {
        {"\"packed\": \"1\"", "\"packed\": \"7\"", "expected version 1"},
        {"\"attention\": \"f32\"", "\"attention\": \"f99\"", "attention: expected a format"},
        {"\"head\": \"f32\"", "\"head\": \"q8\" ", "lm_head.weight.lines: expected U8"},
        {"layers.1.mlp.up_proj.weight.lines", "layers.1.mlp.up_prox.weight.lines",
         "layers.1.mlp.up_proj.weight.lines is missing"},
        {"layers.2.mlp.up_proj.weight.scale", "layers.2.mlp.up_prox.weight.scale",
         "layers.2.mlp.up_proj.weight.scale is missing"},
        {"\"shape\": [3, 12, 16, 4]", "\"shape\": [3, 16, 12, 4]",
         "expected U8 of shape [3, 12, 16, 4], found U8 of [3, 16, 12, 4]"},
    };
    struct bench *b = *state;
    struct err e;
    size_t length;
    char *path, *bytes;

    convert(b, TOY, "precision: {experts: q8}\n");
    path = str_join(b->made, "packed.safetensors");
    assert_int_equal(file_read(&bytes, &length, path, 1 << 24, &e), OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        damage(path, bytes, length, cases[i].from, cases[i].to);
        refused(b->made, plain, ERR_FORMAT, cases[i].word);
    }
    /* lines that do not begin at a multiple of 64: one blank of the header less */
    memmove(bytes + 8 + 2097144 - 1, bytes + 8 + 2097144, length - 8 - 2097144);
    bytes[0]--, bytes[0] == (char)0xff ? bytes[1]-- : 0;
    assert_int_equal(file_write(path, bytes, length - 1, &e), OK);
    refused(b->made, plain, ERR_FORMAT, "expected a multiple of 64");
    free(bytes);
    /* cut off */
    assert_int_equal(truncate(path, (off_t)length / 2), 0);
    refused(b->made, plain, ERR_FORMAT, "packed.safetensors");
    free(path);

    convert(b, TOY, "precision: {experts: q8}\n");
    refused(b->made, limits_with(FORMAT_BF16, FORMAT_F32, FORMAT_F32), ERR_SPEC, "precision.experts: expected stored or q8");
    refused(b->made, limits_with(FORMAT_Q8, FORMAT_F32, FORMAT_Q4), ERR_SPEC, "precision.head: expected stored or f32");
}

/* A value that is no number is found when it is converted: nobody looks again. */
static void not_finite_is_not_converted(void **state)
{
    struct bench *b = *state;
    char *model = str_join(b->directory, "bad"), *path = str_join(model, "model.safetensors"), *bytes;
    size_t length;
    struct err e;

    assert_int_equal(directory_copy(TOY, model, &e), OK);
    assert_int_equal(file_read(&bytes, &length, path, 1 << 24, &e), OK);
    memset(bytes + length - 4, 0xff, 4);
    assert_int_equal(file_write(path, bytes, length, &e), OK);
    assert_int_equal(run(b, "convert", model, b->out, "", NULL, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "is NaN"));
    assert_false(file_exists(b->made)); /* and nothing half made */
    free(bytes);
    free(path);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(in_place_has_the_bits_of_packed_at_opening, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_report_tells_what_was_changed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_factorized_model_is_packed_too, set_up, tear_down),
        cmocka_unit_test(a_router_is_packed_once),
        cmocka_unit_test_setup_teardown(what_is_not_what_it_says_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_finite_is_not_converted, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
