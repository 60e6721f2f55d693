/* config.json: what is understood, what is refused by name; and routers on disk. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/str.h"
#include "model/router_file.h"
#include "model/shape.h"

static int set_up(void **state)
{
    char *directory = str_dup("/tmp/factorllm-shape-XXXXXX");

    *state = mkdtemp(directory);
    return *state ? 0 : -1;
}

static int tear_down(void **state)
{
    struct err e;

    assert_int_equal(directory_remove(*state, &e), OK);
    free(*state);
    return 0;
}

/* A good config with `change` ("key": value, ...) over it: a member of the same name in the base is left out. */
static status with(struct shape *s, const char *directory, const char *change, struct err *e)
{
    static const char *const base[][2] = {
        {"architectures", "[\"LlamaForCausalLM\"]"},
        {"hidden_size", "64"},
        {"intermediate_size", "172"},
        {"num_hidden_layers", "3"},
        {"num_attention_heads", "8"},
        {"num_key_value_heads", "4"},
        {"vocab_size", "512"},
        {"max_position_embeddings", "256"},
        {"rms_norm_eps", "1e-5"},
        {"bos_token_id", "1"},
        {"eos_token_id", "2"},
        {"hidden_act", "\"silu\""},
    };
    struct str text = {0};
    char *path = str_join(directory, "config.json");
    struct err ignored;

    str_addf(&text, "{%s", change);
    for (size_t i = 0; i < sizeof(base) / sizeof(base[0]); i++) {
        char quoted[64];

        snprintf(quoted, sizeof(quoted), "\"%s\":", base[i][0]);
        if (!strstr(change, quoted)) str_addf(&text, "%s%s%s", text.length > 1 ? "," : "", quoted, base[i][1]);
    }
    str_addz(&text, "}");
    assert_int_equal(file_write(path, text.text, text.length, &ignored), OK);
    str_free(&text);
    free(path);
    *e = (struct err){0};
    return shape_read(s, directory, e);
}

static void test_good(void **state)
{
    struct shape s;
    struct err e;

    assert_int_equal(with(&s, *state, "", &e), OK);
    assert_true(s.layers == 3 && s.width == 64 && s.neurons == 172 && s.heads == 8 && s.kv_heads == 4 && s.head_dim == 8);
    assert_true(s.vocab == 512 && s.positions == 256 && s.eps == 1e-5f && !s.tied && !s.qkv_bias && s.window == 0);
    assert_true(s.bos == 1 && s.n_eos == 1 && s.eos[0] == 2 && s.experts == 0 && shape_active_share(&s) == 1);
    assert_true(s.rope.kind == ROPE_PLAIN && s.rope.theta == 10000);
    /* by hand: embed and head 2*512*64, layer 64*64 (q) + 2*64*32 (k, v) + 64*64 (o) + 2*64 + 3*64*172, final norm 64 */
    assert_int_equal(shape_parameters(&s), 2 * 32768 + 3 * (4096 + 4096 + 4096 + 128 + 33024) + 64);
    assert_int_equal(shape_ffn_parameters(&s), 3 * 33024);

    assert_int_equal(
        with(&s, *state, "\"tie_word_embeddings\":true,\"eos_token_id\":[2,7],\"bos_token_id\":null,\"head_dim\":16", &e), OK);
    assert_true(s.tied && s.n_eos == 2 && s.eos[1] == 7 && s.bos == -1 && s.head_dim == 16);
    assert_int_equal(with(&s, *state, "\"num_key_value_heads\":null", &e), OK);
    assert_int_equal(s.kv_heads, 8);
    assert_int_equal(
        with(&s, *state, "\"architectures\":[\"Qwen2ForCausalLM\"],\"attention_bias\":true,\"sliding_window\":64", &e), OK);
    assert_true(s.qkv_bias && s.window == 0 && s.positions == 256);
    assert_int_equal(with(&s, *state, "\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":64", &e), OK);
    assert_true(s.window == 64 && s.positions == 64);
}

static void test_rope(void **state)
{
    struct shape s;
    struct err e;

    assert_int_equal(with(&s, *state, "\"rope_theta\":500000.0,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}", &e), OK);
    assert_true(s.rope.kind == ROPE_LINEAR && s.rope.factor == 4 && s.rope.theta == 500000);
    assert_int_equal(
        with(&s, *state,
             "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
             "\"original_max_position_embeddings\":8192}",
             &e),
        OK);
    assert_true(s.rope.kind == ROPE_LLAMA3 && s.rope.factor == 8 && s.rope.low_freq_factor == 1 && s.rope.high_freq_factor == 4 &&
                s.rope.original_positions == 8192);
    assert_int_equal(with(&s, *state, "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1000000}", &e), OK);
    assert_true(s.rope.kind == ROPE_PLAIN && s.rope.theta == 1000000);
    assert_int_equal(with(&s, *state, "\"rope_parameters\":{\"rope_type\":\"linear\",\"rope_theta\":2000,\"factor\":2}", &e), OK);
    assert_true(s.rope.kind == ROPE_LINEAR && s.rope.theta == 2000 && s.rope.factor == 2);
}

static void test_refused_by_name(void **state)
{
    static const struct {
        const char *change, *says;
    } cases[] = {
        {"\"architectures\":[\"MixtralForCausalLM\"]", "MixtralForCausalLM"},
        {"\"architectures\":[]", "architectures"},
        {"\"architectures\":\"LlamaForCausalLM\"", "architectures"},
        {"\"hidden_act\":\"gelu\"", "hidden_act: expected silu, found gelu"},
        {"\"attention_bias\":true", "attention_bias"},
        {"\"mlp_bias\":true", "mlp_bias"},
        {"\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {"\"quantization_config\":{}", "quantization_config"},
        {"\"num_local_experts\":8", "num_local_experts"},
        {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}", "yarn"},
        {"\"rope_scaling\":{\"factor\":2}", "rope_type is missing"},
        {"\"rope_scaling\":{\"type\":\"linear\"}", "factor is missing"},
        {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}", "low_freq_factor is missing"},
        {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":64}",
         "high_freq_factor"},
        {"\"rope_scaling\":[]", "rope_scaling"},
        {"\"hidden_size\":0", "hidden_size"},
        {"\"hidden_size\":60", "hidden_size"},
        {"\"hidden_size\":64.0", "hidden_size"},
        {"\"hidden_size\":4611686018427387904", "hidden_size"},
        {"\"num_hidden_layers\":100000", "num_hidden_layers"},
        {"\"num_key_value_heads\":3", "num_key_value_heads"},
        {"\"num_key_value_heads\":0", "num_key_value_heads"},
        {"\"head_dim\":7", "head_dim"},
        {"\"hidden_size\":8", "head_dim"},
        {"\"vocab_size\":-1", "vocab_size"},
        {"\"vocab_size\":null", "vocab_size is missing"},
        {"\"rms_norm_eps\":\"small\"", "rms_norm_eps"},
        {"\"bos_token_id\":512", "bos_token_id"},
        {"\"eos_token_id\":[1,512]", "eos_token_id"},
        {"\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", "eos_token_id"},
        {"\"eos_token_id\":null,\"bos_token_id\":null", "no token to begin"},
    };
    struct shape s;
    struct err e;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (with(&s, *state, cases[i].change, &e) != ERR_FORMAT || !strstr(e.text, cases[i].says) ||
            !strstr(e.text, "config.json"))
            fail_msg("%s: %d %s", cases[i].change, e.code, e.text);
    assert_int_equal(shape_read(&s, "/nowhere", &e), ERR_IO);
}

#define CUT                                                                                                                      \
    "\"version\":1,\"method\":\"default\",\"grouping\":\"random\",\"experts\":7,\"active\":3,\"scale\":1.0,\"compensation\":"    \
    "\"mean\""

static void test_factorization(void **state)
{
    static const struct {
        const char *change, *says;
    } cases[] = {
        {"\"factorization\":{" CUT "}", "shared is missing"},
        {"\"factorization\":{" CUT ",\"shared\":[0,0]}", "one per layer"},
        {"\"factorization\":{" CUT ",\"shared\":[0,0,166]}", "layer 2"},
        {"\"factorization\":{" CUT ",\"shared\":[0,0,-1]}", "layer 2"},
        {"\"factorization\":{" CUT ",\"shared\":[0,0,0.5]}", "layer 2"},
        {"\"factorization\":[]", "factorization"},
        {"\"factorization\":{\"version\":2}", "version"},
        {"\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":4,\"active\":5}", "active"},
        {"\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":5000}", "experts"},
        {"\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":4,\"active\":[1,1]}", "one per layer"},
        {"\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":4,\"active\":[1,5,1]}", "layer 1"},
        {"\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":4,\"active\":[1,1,0.5]}", "layer 2"},
    };
    struct shape s;
    struct err e;

    assert_int_equal(with(&s, *state,
                          "\"factorization\":{" CUT ",\"shared\":[12,0,165],\"calibrated\":true,\"source\":{\"digest\":\"ab\"}}",
                          &e),
                     OK);
    assert_true(s.experts == 7 && s.active == 3 && s.scale == 1 && s.compensate && s.calibrated);
    assert_true(s.shared[0] == 12 && s.shared[1] == 0 && s.shared[2] == 165);
    assert_string_equal(s.method, "default");
    assert_string_equal(s.source_digest, "ab");
    assert_int_equal(shape_expert_neurons(&s, 0, 0), 23); /* 160 = 6 * 23 + 22 */
    assert_int_equal(shape_expert_neurons(&s, 0, 6), 22);
    assert_int_equal(shape_expert_neurons(&s, 2, 6), 1);
    double share = ((12 + 3.0 * 160 / 7) / 172 + 3.0 / 7 + (165 + 3.0) / 172) / 3;
    assert_true(fabs(shape_active_share(&s) - share) < 1e-12);
    /* k of every layer */
    assert_int_equal(with(&s, *state,
                          "\"factorization\":{\"version\":1,\"method\":\"x\",\"grouping\":\"x\",\"experts\":4,\"active\":[1,4,2],"
                          "\"scale\":1,\"compensation\":\"none\",\"shared\":[0,12,0]}",
                          &e),
                     OK);
    assert_true(s.active == 2 && s.active_of[0] == 1 && s.active_of[1] == 4 && s.active_of[2] == 2);
    assert_true(fabs(shape_active_share(&s) - (0.25 + 1 + 0.5) / 3) < 1e-12);
    /* any f: 1 to 4 to 2 until a layer is full, then 1 to 2 of the rest; always the whole number that is nearest */
    static const struct {
        double share;
        int neurons[3];
    } at[] = {
        {1.75 / 3, {43, 172, 86}}, {0.25, {18, 74, 37}}, {0.8, {80, 172, 161}}, {0.95, {146, 172, 172}}, {1, {172, 172, 172}}};
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        int got[3];

        shape_neurons_at(got, &s, at[i].share);
        for (int l = 0; l < 3; l++) assert_int_equal(got[l], at[i].neurons[l]);
    }
    int dense[3];

    assert_int_equal(with(&s, *state, "", &e), OK);
    shape_neurons_at(dense, &s, 0.5);
    for (int l = 0; l < 3; l++) assert_int_equal(dense[l], 86);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (with(&s, *state, cases[i].change, &e) != ERR_FORMAT || !strstr(e.text, cases[i].says))
            fail_msg("%s: %d %s", cases[i].change, e.code, e.text);
}

static void test_every_truncation(void **state)
{
    char *path = str_join(*state, "config.json"), *text;
    size_t length;
    struct shape s;
    struct err e;

    assert_int_equal(with(&s, *state, "\"factorization\":{" CUT ",\"shared\":[12,0,165]}", &e), OK);
    assert_int_equal(file_read(&text, &length, path, 1 << 20, &e), OK);
    for (size_t n = 0; n < length; n++) {
        assert_int_equal(file_write(path, text, n, &e), OK);
        assert_int_equal(shape_read(&s, *state, &e), ERR_FORMAT);
    }
    free(text);
    free(path);
}

static void test_routers(void **state)
{
    struct shape *s = calloc(1, sizeof(*s));
    struct router r, back;
    struct json_t *about = json_object_new();
    char version[64];
    struct err e;

    s->layers = 2;
    s->width = 3;
    s->experts = 4;
    assert_int_equal(router_read(&back, *state, NULL, s, &e), ERR_IO);
    assert_non_null(strstr(e.text, "has no router yet"));
    assert_int_equal(router_next_version(version, *state, &e), OK);
    assert_string_equal(version, "v1");
    assert_int_equal(router_alloc(&r, s, &e), OK);
    router_random(&r, 5);
    float sum = 0;
    for (int i = 0; i < 24; i++) sum += fabsf(r.weight[i]);
    assert_true(sum > 0 && r.bias[0] == 0);
    r.bias[7] = -2.5f;
    assert_int_equal(router_write(&r, *state, "v1", about, false, &e), OK);
    assert_int_equal(router_current(version, *state, &e), OK);
    assert_string_equal(version, "");
    r.by_threshold = true;
    r.threshold[1] = 0.75f;
    r.weight[0] = 1;
    assert_int_equal(router_write(&r, *state, "v2", about, true, &e), OK);
    assert_int_equal(router_current(version, *state, &e), OK);
    assert_string_equal(version, "v2");
    assert_int_equal(router_next_version(version, *state, &e), OK);
    assert_string_equal(version, "v3");

    assert_int_equal(router_read(&back, *state, NULL, s, &e), OK);
    assert_true(back.by_threshold && back.threshold[1] == 0.75f && back.bias[7] == -2.5f);
    assert_memory_equal(back.weight, r.weight, 24 * sizeof(float));
    router_free(&back);
    assert_int_equal(router_read(&back, *state, "v1", s, &e), OK);
    assert_true(!back.by_threshold && back.weight[0] != 1);
    router_free(&back);

    r.weight[0] = 9; /* the same name again is replaced, whole */
    assert_int_equal(router_write(&r, *state, "v1", about, false, &e), OK);
    assert_int_equal(router_read(&back, *state, "v1", s, &e), OK);
    assert_true(back.weight[0] == 9);
    router_free(&back);

    r.bias[1] = NAN;
    assert_int_equal(router_write(&r, *state, "bad", about, false, &e), OK);
    assert_int_equal(router_read(&back, *state, "bad", s, &e), ERR_FORMAT);
    assert_null(back.weight);
    s->experts = 5;
    assert_int_equal(router_read(&back, *state, "v2", s, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "expected shape [5, 3], found [4, 3]"));
    assert_int_equal(router_read(&back, *state, "v9", s, &e), ERR_IO);
    assert_int_equal(router_read(&back, *state, "../v2", s, &e), ERR_SPEC);
    assert_int_equal(router_write(&r, *state, "a/b", about, false, &e), ERR_SPEC);
    assert_int_equal(router_write(&r, *state, "current", about, false, &e), ERR_SPEC);
    s->experts = 0;
    assert_int_equal(router_read(&back, *state, NULL, s, &e), ERR_SPEC);
    char *current = str_join(*state, "routers/current");
    assert_int_equal(file_write(current, "../../etc\n", 10, &e), OK);
    assert_int_equal(router_current(version, *state, &e), ERR_FORMAT);
    free(current);
    router_free(&r);
    json_free(about);
    free(s);
}

static void test_directories(void **state)
{
    char *a = str_join(*state, "a"), *b = str_join(*state, "b"), *in_a = str_join(*state, "a/deep/x"),
         *in_b = str_join(*state, "b/y");
    char *deep = str_join(*state, "a/deep");
    struct err e;

    assert_int_equal(directory_remove(a, &e), OK); /* of nothing */
    assert_int_equal(file_make_directory(deep, &e), OK);
    assert_int_equal(file_write(in_a, "x", 1, &e), OK);
    assert_int_equal(directory_replace(a, b, &e), OK);
    assert_true(!file_exists(a) && file_exists(b));
    assert_int_equal(file_make_directory(a, &e), OK);
    assert_int_equal(directory_replace(a, b, &e), OK);
    assert_true(!file_exists(a) && file_exists(b));
    assert_int_equal(file_write(in_b, "y", 1, &e), OK); /* the old content is gone, the new directory is writable */
    assert_int_equal(directory_replace(a, b, &e), ERR_IO);
    assert_true(file_exists(in_b));
    free(a);
    free(b);
    free(in_a);
    free(in_b);
    free(deep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_good, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rope, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused_by_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_factorization, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_truncation, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_routers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_directories, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
