/* factorize: no value changes, the calibration is what it says, and a directory is whole or not there. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bits.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/stop.h"
#include "data/digest.h"
#include "jobs/calibrate.h"
#include "jobs/job.h"
#include "moe/grouping.h"

#define TOY "tests/golden/toy-llama"

struct bench {
    char directory[64], *out, *made;
    struct comm *comm;
};

static int set_up(void **state)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct err e;

    strcpy(b->directory, "/tmp/factorllm-cut-XXXXXX");
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
static status run(struct bench *b, const char *model, const char *more, struct json_t **result, struct err *e)
{
    struct str text = {0};
    struct spec *s;
    struct cluster *c;

    str_addf(&text, "kind: factorize\nmodel: %s\noutput: %s\n%s", model, b->out, more);
    *e = (struct err){0};
    status st = spec_parse(&s, text.text, text.length, "SPEC", NULL, 0, e);
    str_free(&text);
    if (st) return st;
    if (cluster_open(&c, b->comm, s, e)) fail_msg("%s", e->text);
    assert_int_equal(file_make_directory(s->output, e), OK);
    struct job j = {.spec = s, .cluster = c, .result = json_object_new()};
    st = job_factorize(&j, e);
    if (result) *result = json_clone(j.result);
    json_free(j.result);
    cluster_close(c);
    spec_free(s);
    return st;
}

static struct mat taken(struct safetensors *t, const char *name, int rows, int cols)
{
    struct mat m;
    struct err e;

    if (safetensors_mat(&m, t, name, rows, cols, &e)) fail_msg("%s", e.text);
    return m;
}

static bool same_elements(const struct mat *a, int ra, int ca, const struct mat *b, int rb, int cb)
{
    size_t n = dtype_bytes(a->dtype);

    return a->dtype == b->dtype && memcmp((const char *)a->data + ((size_t)ra * a->stride + (size_t)ca) * n,
                                          (const char *)b->data + ((size_t)rb * b->stride + (size_t)cb) * n, n) == 0;
}

/* Every tensor of `made` against `model` through permutation.json, bit for bit; nothing is missing and nothing is there twice. */
static void check_weights(const char *model, const char *made)
{
    struct shape *dense = malloc(sizeof(*dense)), *cut = malloc(sizeof(*cut));
    struct safetensors *from, *to;
    struct json_t *permutation;
    char *path = str_join(made, "permutation.json"), name[128];
    size_t found = 0;
    struct err e = {0};

    if (shape_read(dense, model, &e) || shape_read(cut, made, &e) || safetensors_open(&from, model, &e) ||
        safetensors_open(&to, made, &e) || json_read(&permutation, path, 1 << 24, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < safetensors_count(from); i++) {
        const struct tensor_info *t = safetensors_info(from, i), *u;

        if (strstr(t->name, ".mlp.")) continue;
        u = safetensors_find(to, t->name);
        assert_true(u && u->dims == t->dims && u->bytes == t->bytes && !strcmp(u->dtype, t->dtype));
        int rows = t->dims == 2 ? (int)t->shape[0] : 1, cols = (int)t->shape[t->dims - 1];
        struct mat a = taken(from, t->name, rows, cols), b = taken(to, t->name, rows, cols);
        assert_memory_equal(a.data, b.data, t->bytes);
        found++;
    }
    for (int l = 0; l < dense->layers; l++) {
        const struct json_t *order = json_item(json_at(permutation, "layers"), (size_t)l);
        int width = dense->width, neurons = dense->neurons;
        bool *seen = calloc((size_t)neurons, sizeof(*seen));
        struct mat whole[3], part[3];

        assert_int_equal(json_length(order), neurons);
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof(name), "model.layers.%d.mlp.%s_proj.weight", l, k == 0 ? "gate" : k == 1 ? "up" : "down");
            whole[k] = taken(from, name, k < 2 ? neurons : width, k < 2 ? width : neurons);
        }
        for (int i = cut->shared[l] ? -1 : 0; i < cut->experts; i++) {
            int begin = i < 0 ? 0 : group_begin(neurons, cut->shared[l], cut->experts, i);
            int n = i < 0 ? cut->shared[l] : shape_expert_neurons(cut, l, i);
            char expert[32];

            snprintf(expert, sizeof(expert), i < 0 ? "shared_expert" : "experts.%d", i);
            for (int k = 0; k < 3; k++) {
                snprintf(name, sizeof(name), "model.layers.%d.mlp.%s.%s_proj.weight", l, expert,
                         k == 0   ? "gate"
                         : k == 1 ? "up"
                                  : "down");
                part[k] = taken(to, name, k < 2 ? n : width, k < 2 ? width : n);
                found++;
            }
            /* the three of one expert stand one after another */
            assert_ptr_equal(part[1].data, (const char *)part[0].data + (size_t)n * (size_t)width * dtype_bytes(part[0].dtype));
            assert_ptr_equal(part[2].data, (const char *)part[1].data + (size_t)n * (size_t)width * dtype_bytes(part[0].dtype));
            for (int j = 0; j < n; j++) {
                int original = (int)json_int(json_item(order, (size_t)(begin + j)));

                assert_true(original >= 0 && original < neurons && !seen[original]);
                seen[original] = true;
                for (int d = 0; d < width; d++) {
                    assert_true(same_elements(&part[0], j, d, &whole[0], original, d));
                    assert_true(same_elements(&part[1], j, d, &whole[1], original, d));
                    assert_true(same_elements(&part[2], d, j, &whole[2], d, original));
                }
            }
        }
        if (cut->compensate) found++;
        free(seen);
    }
    assert_int_equal(found, safetensors_count(to));
    json_free(permutation);
    safetensors_close(from);
    safetensors_close(to);
    free(dense);
    free(cut);
    free(path);
}

static void test_without_a_text(void **state)
{
    static const char *const specs[] = {
        "method: factorllm\nexperts: 4\nactive: 2\n",
        "method: factorllm\nexperts: 44\nactive: 1\n",
        "method: factorllm\nexperts: 1\nactive: 1\n",
        "experts: 7\nactive: 3\ngrouping: random\ncompensation: none\nscale: paper\nseed: 9\n",
    };
    struct bench *b = *state;

    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        struct json_t *r;
        struct err e;

        if (run(b, TOY, specs[i], &r, &e)) fail_msg("%s", e.text);
        check_weights(TOY, b->made);
        assert_int_equal(json_int(json_at(r, "neurons")), 44);
        json_free(r);
    }
    struct shape *s = malloc(sizeof(*s));
    struct err e;
    assert_int_equal(shape_read(s, b->made, &e), OK);
    assert_true(s->experts == 7 && s->active == 3 && fabsf(s->scale - 7.0f / 3) < 1e-6f && !s->compensate && !s->calibrated);
    free(s);
}

static void test_with_a_text(void **state)
{
    struct bench *b = *state;
    char *tokenizer = str_join(b->made, "tokenizer.model"), *calibration = str_join(b->made, "calibration.safetensors");
    char first[65], again[65], *weights = str_join(b->made, "model.safetensors");
    struct shape *s = malloc(sizeof(*s));
    struct json_t *r;
    struct err e;
    static const char spec[] = "experts: 7\nactive: 3\nshared: 0.15\ncompensation: mean\ncalibration: {file: "
                               "tests/unit/test_factorize.c, bytes: 800}\n";

    if (run(b, TOY, spec, &r, &e)) fail_msg("%s", e.text);
    check_weights(TOY, b->made);
    assert_int_equal(shape_read(s, b->made, &e), OK);
    assert_true(s->experts == 7 && s->shared[0] == 7 && s->compensate && s->calibrated && s->scale == 1); /* round(0.15 * 44) */
    assert_true(file_exists(tokenizer) && file_exists(calibration));
    char digest[65];
    assert_int_equal(digest_file(digest, weights, &e), OK);
    assert_string_equal(json_text(json_at(r, "digest")), digest);
    json_free(r);

    /* compensation is the experts' down matrix times the means, and the shared neurons are the most important */
    struct safetensors *t, *c;
    assert_int_equal(safetensors_open(&t, b->made, &e), OK);
    assert_int_equal(safetensors_open(&c, calibration, &e), OK);
    for (int l = 0; l < s->layers; l++) {
        char name[128];

        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_mean", l);
        struct mat mean = taken(c, name, 1, 44);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.neuron_importance", l);
        struct mat importance = taken(c, name, 1, 44);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.compensation", l);
        struct mat mu = taken(t, name, 7, 48);
        float least = INFINITY, most = 0;

        for (int j = 0; j < 44; j++) {
            float x = mat_at(&importance, 0, j);

            if (j < 7) least = x < least ? x : least;
            else most = x > most ? x : most;
        }
        assert_true(least >= most && most > 0);
        for (int i = 0; i < 7; i++) {
            int n = shape_expert_neurons(s, l, i);

            snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%d.down_proj.weight", l, i);
            struct mat down = taken(t, name, 48, n);
            for (int d = 0; d < 48; d++) {
                double sum = 0, scale = 1e-9;

                for (int j = 0; j < n; j++) {
                    double term = (double)mat_at(&down, d, j) * mat_at(&mean, 0, group_begin(44, 7, 7, i) + j);

                    sum += term;
                    scale += fabs(term);
                }
                assert_true(fabs(sum - mat_at(&mu, i, d)) < 1e-6 * scale);
            }
        }
    }
    safetensors_close(t);
    safetensors_close(c);

    /* again, in small batches: the same bits */
    assert_int_equal(digest_file(first, weights, &e), OK);
    char more[256];
    snprintf(more, sizeof(more), "%slimits: {batch_rows: 37, sessions: 2}\ncluster: {threads: 2}\n", spec);
    if (run(b, TOY, more, NULL, &e)) fail_msg("%s", e.text);
    assert_int_equal(digest_file(again, weights, &e), OK);
    assert_string_equal(first, again);
    free(s);
    free(tokenizer);
    free(calibration);
    free(weights);
}

static void test_refusals(void **state)
{
    static const char *const needs_text[] = {
        "experts: 4\nactive: 2\ngrouping: coactivation\ncompensation: none\ncalibration: {sample_tokens: 0}\n",
        "experts: 4\nactive: 2\ngrouping: random\ncompensation: mean\ncalibration: {sample_tokens: 0}\n",
        "experts: 4\nactive: 2\ngrouping: random\ncompensation: none\nshared: 0.2\ncalibration: {sample_tokens: 0}\n",
    };
    struct bench *b = *state;
    char *stranger = str_join(b->made, "precious.txt");
    struct err e;

    for (size_t i = 0; i < 3; i++) assert_int_equal(run(b, TOY, needs_text[i], NULL, &e), ERR_SPEC);
    assert_int_equal(run(b, TOY, "method: factorllm\nexperts: 45\nactive: 1\n", NULL, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "experts: expected 1 to 44"));
    assert_int_equal(run(b, "/nowhere", "method: factorllm\n", NULL, &e), ERR_IO);
    assert_int_equal(file_make_directory(b->made, &e), OK);
    assert_int_equal(file_write(stranger, "x", 1, &e), OK);
    assert_int_equal(run(b, TOY, "method: factorllm\n", NULL, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "expected another output"));
    assert_true(file_exists(stranger)); /* and what is not ours is left alone */
    assert_int_equal(directory_remove(b->made, &e), OK);
    assert_int_equal(run(b, TOY, "method: factorllm\n", NULL, &e), OK);
    char *model = str_dup(b->made);
    free(b->out);
    b->out = str_join(b->directory, "second");
    assert_int_equal(run(b, model, "method: factorllm\n", NULL, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "is factorized already"));
    free(model);
    free(stranger);
}

/* Left by a run that was killed; and a stop on the way leaves the old result as it was. */
static void test_half_written(void **state)
{
    struct bench *b = *state;
    char *temporary = str_join(b->out, "model.tmp"), *rest = str_join(temporary, "model.safetensors.tmp-1");
    char *config = str_join(b->made, "config.json"), before[65], after[65];
    struct err e;

    assert_int_equal(file_make_directory(temporary, &e), OK);
    assert_int_equal(file_write(rest, "x", 1, &e), OK);
    assert_int_equal(run(b, TOY, "method: factorllm\n", NULL, &e), OK);
    assert_false(file_exists(temporary));
    assert_int_equal(digest_file(before, config, &e), OK);
    stop_install();
    raise(SIGUSR1);
    assert_int_equal(run(b, TOY, "method: factorllm\nexperts: 2\n", NULL, &e), STOPPED);
    stop_reset();
    assert_false(file_exists(temporary));
    assert_int_equal(digest_file(after, config, &e), OK);
    assert_string_equal(before, after);
    free(temporary);
    free(rest);
    free(config);
}

static void test_shards_and_bfloat16(void **state)
{
    struct bench *b = *state;
    struct str model = {0};
    const char *shared = getenv("FACTORLLM_SHARED");
    struct err e;

    str_addf(&model, "%s/models/stories260K-sharded", shared ? shared : "../shared");
    if (!file_is_directory(model.text)) {
        str_free(&model);
        skip_because("models/stories260K-sharded is not there");
    }
    if (run(b, model.text, "experts: 5\nactive: 2\nseed: 4\ncalibration: {file: tests/unit/test_factorize.c, bytes: 500}\n", NULL,
            &e))
        fail_msg("%s", e.text);
    check_weights(model.text, b->made);
    str_free(&model);
}

/* Sums against numbers of another implementation, in float64: the golden sequence as one window, BOS in front. */
static void test_golden_variances(void **state)
{
    static const char *const models[] = {"quillan-6m", "tiny1m", "stories260K"};
    struct bench *b = *state;
    const char *shared = getenv("FACTORLLM_SHARED");

    if (!shared) shared = "../shared";
    for (size_t k = 0; k < 3; k++) {
        struct str model = {0}, golden = {0}, text = {0};
        struct json_t *numbers;
        char *variances;
        size_t length;
        struct spec *s;
        struct cluster *cluster;
        struct model *m;
        struct safetensors *weights;
        struct calibration c;
        struct corpus corpus;
        int32_t tokens[40] = {0};
        struct err e = {0};

        str_addf(&model, "%s/models/%s", shared, models[k]);
        str_addf(&golden, "%s/golden/%s/golden.json", shared, models[k]);
        if (!file_exists(golden.text)) {
            str_free(&model);
            str_free(&golden);
            skip_because("golden/%s is not there", models[k]);
        }
        assert_int_equal(json_read(&numbers, golden.text, 1 << 26, &e), OK);
        str_clear(&golden);
        str_addf(&golden, "%s/golden/%s/neuron_var_s40.bin", shared, models[k]);
        assert_int_equal(file_read(&variances, &length, golden.text, 1 << 26, &e), OK);
        const struct json_t *ids = json_at(json_item(json_at(numbers, "sequences"), 2), "ids");
        assert_int_equal(json_length(ids), 40);
        for (size_t i = 1; i < 40; i++) tokens[i - 1] = (int32_t)json_int(json_item(ids, i));
        corpus_from_tokens(&corpus, tokens, 40, 0);

        str_addf(&text, "kind: factorize\nmodel: %s\noutput: %s\nmethod: factorllm\n", model.text, b->out);
        assert_int_equal(spec_parse(&s, text.text, text.length, "SPEC", NULL, 0, &e), OK);
        assert_int_equal(cluster_open(&cluster, b->comm, s, &e), OK);
        struct job j = {.spec = s, .cluster = cluster};
        if (cluster_model(
                cluster, model.text,
                (struct model_limits){.rows = 16, .sessions = 1, .positions = 40, .slices = true, .notes = true, .sample = 64},
                &m, &e) ||
            safetensors_open(&weights, model.text, &e) || calibrate(&c, &j, m, weights, &corpus, 40, &e))
            fail_msg("%s", e.text);
        assert_int_equal(c.tokens, 40);
        assert_int_equal(length, (size_t)c.layers * (size_t)c.neurons * sizeof(float));
        for (int l = 0; l < c.layers; l++) {
            double most = 0;
            int strong = 0, kept;
            float *z = malloc(40 * (size_t)c.neurons * sizeof(*z));

            assert_int_equal(calibration_values(&c, m, l, z, &e), OK);
            uint64_t *bits = calibration_strong(&c, l, z, &kept, NULL);
            assert_int_equal(kept, 40);

            for (int n = 0; n < c.neurons; n++) most = fmax(most, ((const float *)(const void *)variances)[l * c.neurons + n]);
            for (int n = 0; n < c.neurons; n++) {
                double norm = c.down_norm[l * c.neurons + n], found = calibration_importance(&c, l, n) / (norm * norm);

                assert_true(fabs(found - ((const float *)(const void *)variances)[l * c.neurons + n]) < 1e-4 * most);
                strong += bits_count(bits + n, 40);
            }
            assert_int_equal(strong, 40 * (c.neurons / 4));
            free(bits);
            free(z);
        }
        calibration_free(&c);
        safetensors_close(weights);
        cluster_release(cluster);
        cluster_close(cluster);
        spec_free(s);
        corpus_free(&corpus);
        json_free(numbers);
        free(variances);
        str_free(&model);
        str_free(&golden);
        str_free(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_without_a_text, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_with_a_text, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_half_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_shards_and_bfloat16, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_golden_variances, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
