/* The dense forward pass against golden numbers, and the same bits whatever way the rows come. */
#include <math.h>

#include "../open_model.h"
#include "base/rng.h"

enum { ROWS = 128, VOCAB = 4096, WIDTH = 256 };

/* Logits are within 1e-4 of the largest magnitude: so is a lead that the best must keep. */
static float allowed(const float *want, int n)
{
    float most = 0.0f;

    for (int i = 0; i < n; i++) most = fmaxf(most, fabsf(want[i]));
    assert_true(most > 0.0f);
    return 1e-4f * most;
}

static void same(const char *what, const float *x, const float *want, int n)
{
    float room = allowed(want, n);

    for (int i = 0; i < n; i++)
        if (!(fabsf(x[i] - want[i]) <= room))
            fail_msg("%s: element %d is %.7g, not %.7g", what, i, (double)x[i], (double)want[i]);
}

/* The argmax of every position: [n][vocab] logits; positions with a lead below what rounding may change are counted and must be few. */
static void same_argmax(const char *what, struct model *m, const float *hidden, int n, const int32_t *argmax_want,
                        const float *lead)
{
    int vocab = model_shape(m)->vocab, width = model_shape(m)->width, near = 0;
    float *logits = malloc((size_t)vocab * sizeof(*logits));

    assert_non_null(logits);
    for (int t = 0; t < n; t++) {
        forward_logits(m, hidden + (size_t)t * width, 1, logits);
        if (lead[t] <= 2.0f * allowed(logits, vocab)) near++;
        else if (argmax(logits, vocab) != argmax_want[t])
            fail_msg("%s: position %d gives %d, not %d", what, t, argmax(logits, vocab), argmax_want[t]);
    }
    assert_true(near * 10 <= n);
    free(logits);
}

static void same_greedy(const char *what, struct model *m, const struct json_t *greedy)
{
    static float hidden[ROWS * WIDTH], logits[VOCAB], lead[ROWS];
    int32_t ids[2 * ROWS], want[ROWS];
    int prompt = json_ints(ids, json_at(greedy, "prompt_ids"), ROWS), n = json_ints(want, json_at(greedy, "ids"), ROWS);
    int vocab = model_shape(m)->vocab, width = model_shape(m)->width;

    assert_true(n >= 20);
    assert_int_equal(json_floats(lead, json_at(greedy, "lead"), ROWS), n);
    run_rows(m, ids, 0, prompt, 0, hidden);
    forward_logits(m, hidden + (size_t)(prompt - 1) * width, 1, logits);
    for (int i = 0; i < n; i++) {
        ids[prompt + i] = argmax(logits, vocab);
        if (ids[prompt + i] != want[i]) {
            if (lead[i] <= 2.0f * allowed(logits, vocab)) return; /* a near tie: from here on the texts may differ */
            fail_msg("%s: token %d of the continuation is %d, not %d", what, i, ids[prompt + i], want[i]);
        }
        run_rows(m, ids, prompt + i, 1, 0, hidden);
        forward_logits(m, hidden, 1, logits);
    }
}

/* FFN inputs and outputs of the last `n` of `rows` positions, in the first and the last layer. */
static void run_layers(struct model *m, const int32_t *ids, int rows, float *in[2], float *out[2])
{
    static float x[ROWS * WIDTH], h[ROWS * WIDTH], y[ROWS * WIDTH];
    const struct shape *s = model_shape(m);
    const struct routing all = {.route = ROUTE_ALL};
    int32_t position[ROWS], session[ROWS] = {0};
    size_t bytes = (size_t)rows * (size_t)s->width * sizeof(float);
    struct err e;

    for (int i = 0; i < rows; i++) position[i] = i;
    const struct batch b = {rows, ids, position, session, NULL, NULL, false};
    forward_embed(m, &b, x);
    for (int l = 0; l < s->layers; l++) {
        int which = l == 0 ? 0 : 1;

        forward_attention(m, l, &b, 0, rows, x, h);
        memset(y, 0, bytes);
        assert_int_equal(moe_begin(model_moe(m), 0, l, h, NULL, rows, &all, &e), OK);
        assert_int_equal(moe_end(model_moe(m), 0, y, NULL, &e), OK);
        for (int i = 0; i < rows * s->width; i++) x[i] += y[i];
        if (l > 0 && l < s->layers - 1) continue;
        memcpy(in[which], h, bytes);
        memcpy(out[which], y, bytes);
    }
}

static void check_toy(const char *name)
{
    static float hidden[ROWS * WIDTH], logits[VOCAB], want[VOCAB], lead[ROWS], in[2][ROWS * WIDTH], out[2][ROWS * WIDTH];
    static const char *const in_name[] = {"ffn_in_first", "ffn_in_last"}, *const out_name[] = {"ffn_out_first", "ffn_out_last"};
    int32_t ids[ROWS], best[ROWS];
    char directory[128], path[160];
    struct json_t *golden;
    struct opened o;
    struct err e;

    snprintf(directory, sizeof(directory), "tests/golden/%s", name);
    snprintf(path, sizeof(path), "%s/golden.json", directory);
    assert_int_equal(json_read(&golden, path, 1 << 20, &e), OK);
    opened_open(&o, directory, (struct model_limits){.rows = ROWS, .sessions = 2, .positions = ROWS, .verify = true}, 1);
    int n = json_ints(ids, json_at(golden, "ids"), ROWS), width = o.shape.width, vocab = o.shape.vocab;
    int middle = (int)json_int(json_at(golden, "middle"));

    assert_int_equal(n, 100);
    run_rows(o.model, ids, 0, n, 1, hidden);
    forward_logits(o.model, hidden + (size_t)(n - 1) * width, 1, logits);
    assert_int_equal(json_floats(want, json_at(golden, "logits_last"), VOCAB), vocab);
    same(name, logits, want, vocab);
    forward_logits(o.model, hidden + (size_t)middle * width, 1, logits);
    assert_int_equal(json_floats(want, json_at(golden, "logits_middle"), VOCAB), vocab);
    same(name, logits, want, vocab);
    assert_int_equal(json_ints(best, json_at(golden, "argmax"), ROWS), n);
    assert_int_equal(json_floats(lead, json_at(golden, "argmax_lead"), ROWS), n);
    same_argmax(name, o.model, hidden, n, best, lead);
    same_greedy(name, o.model, json_at(golden, "greedy"));

    run_layers(o.model, ids, n, (float *[]){in[0], in[1]}, (float *[]){out[0], out[1]});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(json_floats(want, json_at(golden, in_name[i]), VOCAB), width);
        same(in_name[i], in[i] + (size_t)(n - 1) * width, want, width);
        assert_int_equal(json_floats(want, json_at(golden, out_name[i]), VOCAB), width);
        same(out_name[i], out[i] + (size_t)(n - 1) * width, want, width);
    }
    opened_close(&o);
    json_free(golden);
}

static void toy_llama(void **state)
{
    (void)state;
    check_toy("toy-llama");
}

static void toy_qwen2(void **state)
{
    (void)state;
    check_toy("toy-qwen2");
}

static void toy_mistral(void **state)
{
    (void)state;
    check_toy("toy-mistral");
}

static void toy_rope_linear(void **state)
{
    (void)state;
    check_toy("toy-rope-linear");
}

static void toy_rope_llama3(void **state)
{
    (void)state;
    check_toy("toy-rope-llama3");
}

/* ---- trained models, where they are at hand ---- */

static void read_floats(float *out, int n, const char *golden, const char *file)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/%s", golden, file);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(out, sizeof(*out), (size_t)n, f), n);
    fclose(f);
}

static void check_trained(const char *name)
{
    static float hidden[ROWS * WIDTH], logits[VOCAB], want[VOCAB], lead[ROWS], in[2][ROWS * WIDTH], out[2][ROWS * WIDTH];
    char part[128], directory[512], golden[512], file[64];
    struct json_t *numbers;
    int32_t ids[ROWS], best[ROWS];
    struct opened o;
    struct err e;

    snprintf(part, sizeof(part), "golden/%s/golden.json", name);
    if (!*shared_path(golden, part)) skip_because("%s is not there", part);
    assert_int_equal(json_read(&numbers, golden, 1 << 24, &e), OK);
    *strrchr(golden, '/') = 0;
    snprintf(part, sizeof(part), "models/%s", name);
    opened_open(&o, shared_path(directory, part), (struct model_limits){.rows = ROWS, .sessions = 1, .positions = ROWS}, 2);
    int width = o.shape.width, vocab = o.shape.vocab;

    const struct json_t *sequences = json_at(numbers, "sequences");
    assert_int_equal(json_length(sequences), 3);
    for (size_t i = 0; i < 3; i++) {
        const struct json_t *q = json_item(sequences, i);
        int n = json_ints(ids, json_at(q, "ids"), ROWS);

        run_rows(o.model, ids, 0, n, 0, hidden);
        forward_logits(o.model, hidden + (size_t)(n - 1) * width, 1, logits);
        snprintf(file, sizeof(file), "logits_%s.bin", json_text(json_at(q, "name")));
        read_floats(want, vocab, golden, file);
        same(file, logits, want, vocab);
        json_ints(best, json_at(q, "argmax"), ROWS);
        json_floats(lead, json_at(q, "argmax_lead"), ROWS);
        same_argmax(file, o.model, hidden, n, best, lead);
        if (n != 7) continue;
        run_layers(o.model, ids, n, (float *[]){in[0], in[1]}, (float *[]){out[0], out[1]});
        read_floats(want, 7 * width, golden, "ffn_in_first_s7.bin");
        same("ffn_in_first", in[0], want, 7 * width);
        read_floats(want, 7 * width, golden, "ffn_in_last_s7.bin");
        same("ffn_in_last", in[1], want, 7 * width);
        read_floats(want, 7 * width, golden, "ffn_out_first_s7.bin");
        same("ffn_out_first", out[0], want, 7 * width);
        read_floats(want, 7 * width, golden, "ffn_out_last_s7.bin");
        same("ffn_out_last", out[1], want, 7 * width);
    }
    same_greedy(name, o.model, json_at(numbers, "greedy"));
    opened_close(&o);
    json_free(numbers);
}

static void quillan_6m(void **state)
{
    (void)state;
    check_trained("quillan-6m");
}

static void tiny1m(void **state)
{
    (void)state;
    check_trained("tiny1m");
}

static void stories260k(void **state)
{
    (void)state;
    check_trained("stories260K");
}

static void stories260k_sharded(void **state)
{
    (void)state;
    check_trained("stories260K-sharded");
}

/* ---- the same bits ---- */

static void random_ids(int32_t *ids, int n, int vocab, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed, 0);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

static void a_prompt_in_pieces_of_any_size(void **state)
{
    static const char *const toys[] = {"tests/golden/toy-llama", "tests/golden/toy-qwen2", "tests/golden/toy-mistral"};
    static float whole[ROWS * WIDTH], pieces[ROWS * WIDTH];
    static const int sizes[] = {1, 1, 2, 7, 33, 64, 100};
    enum { N = 110 };
    int32_t ids[N];
    struct opened o, three;

    (void)state;
    for (int toy = 0; toy < 3 * KV_COUNT; toy++) {
        const struct model_limits limits = {.rows = N, .sessions = 3, .positions = N, .kv = (enum kv_format)(toy / 3)};

        opened_open(&o, toys[toy % 3], limits, 1);
        opened_open(&three, toys[toy % 3], limits, 3);
        random_ids(ids, N, o.shape.vocab, 5);
        size_t bytes = (size_t)N * (size_t)o.shape.width * sizeof(float);

        run_rows(o.model, ids, 0, N, 0, whole);
        run_rows(three.model, ids, 0, N, 0, pieces);
        assert_memory_equal(whole, pieces, bytes); /* threads do not matter either */
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
            for (int first = 0; first < N; first += sizes[i]) {
                int n = first + sizes[i] <= N ? sizes[i] : N - first;

                run_rows(i % 3 ? three.model : o.model, ids, first, n, 1 + (int)i % 2,
                         pieces + (size_t)first * (size_t)o.shape.width);
            }
            assert_memory_equal(whole, pieces, bytes);
        }
        opened_close(&three);
        opened_close(&o);
    }
}

/* What a narrower cache may change: little, but something, or it is not in use. */
static void a_narrow_cache_is_near(void **state)
{
    static float exact[ROWS * WIDTH], narrow[ROWS * WIDTH];
    static const double most[KV_COUNT] = {0.0, 0.02, 0.04};
    int32_t ids[ROWS];
    struct opened o;

    (void)state;
    for (int f = 0; f < KV_COUNT; f++) {
        const struct model_limits limits = {.rows = ROWS, .sessions = 1, .positions = ROWS, .kv = (enum kv_format)f};
        double off = 0.0, size = 0.0;

        opened_open(&o, "tests/golden/toy-llama", limits, 2);
        random_ids(ids, ROWS, o.shape.vocab, 9);
        run_rows(o.model, ids, 0, ROWS, 0, f ? narrow : exact);
        for (int i = 0; f && i < ROWS * o.shape.width; i++) {
            off = fmax(off, fabs((double)narrow[i] - (double)exact[i]));
            size = fmax(size, fabs((double)exact[i]));
        }
        if (f && !(off > 1e-5 * size && off < most[f] * size))
            fail_msg("%s is off by %g of %g", kv_name((enum kv_format)f), off, size);
        opened_close(&o);
    }
}

/* Rows that are quantized for q8 and q4 weights: together and in pieces, on any number of threads. */
static void narrow_weights_in_pieces_too(void **state)
{
    static float whole[ROWS * WIDTH], pieces[ROWS * WIDTH], logits[3 * VOCAB], one[VOCAB];
    static const enum format formats[] = {FORMAT_BF16, FORMAT_Q8, FORMAT_Q4};
    enum { N = 90 };
    int32_t ids[N];
    struct opened o, three;

    (void)state;
    for (size_t f = 0; f < sizeof(formats) / sizeof(*formats); f++) {
        const uint8_t narrow = (uint8_t)(1 + formats[f]);
        const struct model_limits limits = {
            .rows = N,
            .sessions = 2,
            .positions = N,
            .precision = {.part = {[WEIGHTS_ATTENTION] = narrow, [WEIGHTS_HEAD] = narrow}},
        };

        opened_open(&o, "tests/golden/toy-qwen2", limits, 1);
        opened_open(&three, "tests/golden/toy-qwen2", limits, 3);
        random_ids(ids, N, o.shape.vocab, 5);
        size_t D = (size_t)o.shape.width, V = (size_t)o.shape.vocab;

        run_rows(o.model, ids, 0, N, 0, whole);
        for (int first = 0; first < N; first += 13)
            run_rows(three.model, ids, first, N - first < 13 ? N - first : 13, 1, pieces + (size_t)first * D);
        assert_memory_equal(whole, pieces, (size_t)N * D * sizeof(float));
        forward_logits(o.model, whole, 3, logits);
        for (int t = 0; t < 3; t++) {
            forward_logits(three.model, whole + (size_t)t * D, 1, one);
            assert_memory_equal(one, logits + (size_t)t * V, V * sizeof(float));
        }
        opened_close(&three);
        opened_close(&o);
    }
}

/* Five sessions of different lengths, their rows in one batch, whole and cut in two; each against itself alone. */
static void a_batch_of_sessions_is_each_of_them_alone(void **state)
{
    static const int lengths[] = {1, 30, 13, 2, 50};
    static float alone[ROWS * WIDTH], together[ROWS * WIDTH];
    enum { SESSIONS = 5, N = 96 };
    int32_t ids[N], position[N], session[N];
    const struct routing all = {.route = ROUTE_ALL};
    struct opened o;
    struct err e;
    int at = 0;

    (void)state;
    opened_open(&o, "tests/golden/toy-llama", (struct model_limits){.rows = N, .sessions = 2 * SESSIONS, .positions = 64}, 2);
    size_t D = (size_t)o.shape.width;
    random_ids(ids, N, o.shape.vocab, 6);
    for (int s = 0; s < SESSIONS; at += lengths[s++]) {
        run_rows(o.model, ids + at, 0, lengths[s], s, alone + (size_t)at * D);
        for (int i = 0; i < lengths[s]; i++) position[at + i] = i, session[at + i] = 2 * SESSIONS - 1 - s;
    }
    assert_int_equal(at, N);
    for (int parts = 1; parts <= 2; parts++) {
        struct batch b = {.rows = N, .token = ids, .position = position, .session = session};

        memset(together, 0, sizeof(together));
        if (forward_parts(o.model, &b, &all, parts, together, &e)) fail_msg("%s", e.text);
        assert_memory_equal(alone, together, (size_t)N * D * sizeof(float));
        for (int every = 1; every <= N; every *= 5) { /* some rows only, of one part none; row 0 alone */
            bool asked[N];

            for (int t = 0; t < N; t++) asked[t] = t % every == 0 && t < N / 2 + every / 25 * N;
            b.asked = asked;
            memset(together, 0, sizeof(together));
            if (forward_parts(o.model, &b, &all, parts, together, &e)) fail_msg("%s", e.text);
            for (size_t t = 0; t < N; t++)
                assert_memory_equal(together + t * D, asked[t] ? alone + t * D : (float[WIDTH]){0}, D * sizeof(float));
        }
    }
    opened_close(&o);
}

/* Of a prompt in two chunks some rows of the first are asked for, or none, in a session that has nothing yet: they are what they are when all are, and so is all of the second, which reads the cache. */
static void rows_that_are_not_asked_for_are_remembered(void **state)
{
    static const char *const toys[] = {"tests/golden/toy-llama", "tests/golden/toy-qwen2" /* has biases */};
    static float whole[ROWS * WIDTH], some[ROWS * WIDTH], zeros[WIDTH];
    enum { N = 60, CHUNK = 49, ASKS = 3 };
    int32_t ids[N], position[N], session[N];
    const struct routing all = {.route = ROUTE_ALL};
    struct err e;

    (void)state;
    for (int i = 0; i < 2 * 2; i++) { /* as it is stored, and q8 */
        struct model_limits limits = {.rows = N, .sessions = 1 + 2 * ASKS, .positions = 64};
        struct opened o;

        for (int p = 0; p < WEIGHT_PARTS && i % 2; p++) limits.precision.part[p] = 1 + FORMAT_Q8;
        opened_open(&o, toys[i / 2], limits, 2);
        size_t D = (size_t)o.shape.width;
        random_ids(ids, N, o.shape.vocab, 8);
        run_rows(o.model, ids, 0, N, 0, whole);
        for (int s = 1; s <= 2 * ASKS; s++) {
            bool asked[N] = {false};
            struct batch b = {.rows = CHUNK, .token = ids, .position = position, .session = session, .asked = asked};

            for (int t = 0; t < N; t++) position[t] = t, session[t] = s;
            for (int t = 0; t < CHUNK; t++) asked[t] = s % ASKS == 0 ? false : s % ASKS == 1 ? t % 9 == 4 : t == CHUNK - 1;
            memset(some, 0, sizeof(some));
            struct timing none = {0}, every = {0};

            timing_start(&none, 0);
            model_time(o.model, &none);
            if (forward_parts(o.model, &b, &all, 1 + (s > ASKS), some, &e)) fail_msg("%s", e.text);
            if (s % ASKS == 0) { /* nobody asks: without queries and outputs in the last layer */
                timing_start(&every, 0);
                model_time(o.model, &every);
                run_rows(o.model, ids, 0, CHUNK, 0, whole);
                assert_true(every.flops[TIME_ATTENTION] - none.flops[TIME_ATTENTION] >
                            4.0 * CHUNK * o.shape.width * o.shape.heads * o.shape.head_dim);
            }
            model_time(o.model, NULL);
            for (size_t t = 0; t < CHUNK; t++)
                assert_memory_equal(some + t * D, asked[t] ? whole + t * D : zeros, D * sizeof(float));
            run_rows(o.model, ids, CHUNK, N - CHUNK, s, some + CHUNK * D);
            assert_memory_equal(some + CHUNK * D, whole + CHUNK * D, (N - CHUNK) * D * sizeof(float));
        }
        opened_close(&o);
    }
}

/* Two parts may cut a session: any number of rows, on top of what the session has already. */
static void a_session_cut_in_two_is_the_session(void **state)
{
    static const int sizes[] = {1, 2, 3, 17, 40};
    static float whole[ROWS * WIDTH], halves[ROWS * WIDTH];
    enum { N = 63 };
    int32_t ids[N], position[N], session[N] = {0};
    const struct routing all = {.route = ROUTE_ALL};
    struct opened o;
    struct err e;
    int first = 0;

    (void)state;
    opened_open(&o, "tests/golden/toy-mistral", (struct model_limits){.rows = N, .sessions = 2, .positions = N}, 1);
    size_t D = (size_t)o.shape.width;
    random_ids(ids, N, o.shape.vocab, 8);
    run_rows(o.model, ids, 0, N, 1, whole);
    for (int i = 0; i < N; i++) position[i] = i;
    for (int i = 0; i < 5; first += sizes[i++]) {
        const struct batch b = {.rows = sizes[i], .token = ids + first, .position = position + first, .session = session};

        if (forward_parts(o.model, &b, &all, 2, halves + (size_t)first * D, &e)) fail_msg("%s", e.text);
    }
    assert_int_equal(first, N);
    assert_memory_equal(whole, halves, (size_t)N * D * sizeof(float));
    opened_close(&o);
}

static void an_empty_batch_is_fine(void **state)
{
    const struct routing all = {.route = ROUTE_ALL};
    const struct batch none = {0};
    struct opened o;
    struct err e;

    (void)state;
    opened_open(&o, "tests/golden/toy-rope-linear", (struct model_limits){.rows = 4, .sessions = 1, .positions = 4}, 1);
    assert_int_equal(forward(o.model, &none, &all, 2, NULL, &e), OK);
    opened_close(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(toy_llama),
        cmocka_unit_test(toy_qwen2),
        cmocka_unit_test(toy_mistral),
        cmocka_unit_test(toy_rope_linear),
        cmocka_unit_test(toy_rope_llama3),
        cmocka_unit_test(quillan_6m),
        cmocka_unit_test(tiny1m),
        cmocka_unit_test(stories260k),
        cmocka_unit_test(stories260k_sharded),
        cmocka_unit_test(a_prompt_in_pieces_of_any_size),
        cmocka_unit_test(a_narrow_cache_is_near),
        cmocka_unit_test(narrow_weights_in_pieces_too),
        cmocka_unit_test(a_batch_of_sessions_is_each_of_them_alone),
        cmocka_unit_test(rows_that_are_not_asked_for_are_remembered),
        cmocka_unit_test(a_session_cut_in_two_is_the_session),
        cmocka_unit_test(an_empty_batch_is_fine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
