/* Generation on small models: against golden text, alone and in company, with stops wherever they fall. */
#include "../open_model.h"
#include "base/rng.h"
#include "engine/engine.h"

enum { SESSIONS = 21, POSITIONS = 128 };

struct outcome {
    enum finish finish;
    int32_t tokens[POSITIONS];
    int n;
    char text[2048];
    size_t text_length;
};

static const struct routing all = {.route = ROUTE_ALL};
static const struct sampling greedy = {.temperature = 0, .top_p = 1, .max_tokens = 32};

static struct engine *open_engine(struct opened *o, const struct tokenizer *t, int rows, int sessions, int positions, int micro)
{
    struct engine *g;
    struct err e;

    if (engine_open(&g, o->model, t, &all, micro, (struct engine_limits){rows, sessions, positions, rows % 5}, &e))
        fail_msg("%s", e.text);
    return g;
}

static void submit(struct engine *g, uint64_t tag, const int32_t *prompt, int n, const struct sampling *how)
{
    struct err e;

    assert_true(engine_has_room(g));
    if (engine_submit(g, tag, prompt, n, how, &e)) fail_msg("%s", e.text);
}

static int step(struct engine *g, struct outcome *out)
{
    const struct sequence *done;
    struct err e;
    int n;

    if (engine_step(g, &done, &n, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < n; i++) {
        struct outcome *o = &out[done[i].tag];

        assert_int_equal(o->finish, FINISH_NONE); /* nothing ends twice */
        assert_true(done[i].text_length < sizeof(o->text));
        o->finish = done[i].finish;
        o->n = done[i].n_tokens;
        memcpy(o->tokens, done[i].tokens, (size_t)o->n * sizeof(int32_t));
        memcpy(o->text, done[i].text, done[i].text_length);
        o->text[done[i].text_length] = 0;
        o->text_length = done[i].text_length;
    }
    return n;
}

static void run_alone(struct engine *g, const int32_t *prompt, int n, const struct sampling *how, struct outcome *out)
{
    *out = (struct outcome){0};
    submit(g, 0, prompt, n, how);
    while (engine_busy(g)) step(g, out);
    assert_int_not_equal(out->finish, FINISH_NONE);
}

static void open_toy(struct opened *o)
{
    opened_open(o, "tests/golden/toy-llama", (struct model_limits){.rows = 64, .sessions = SESSIONS, .positions = POSITIONS}, 3);
}

static void golden_greedy(const char *directory, const char *golden, bool whole_text)
{
    struct opened o;
    struct tokenizer *t;
    struct json_t *g;
    struct err e;
    int32_t prompt[POSITIONS], want[POSITIONS];
    static struct outcome got;

    if (json_read(&g, golden, 64 << 20, &e)) fail_msg("%s", e.text);
    const struct json_t *greedy_golden = json_at(g, "greedy");
    int n = json_ints(prompt, json_at(greedy_golden, "prompt_ids"), POSITIONS),
        n_want = json_ints(want, json_at(greedy_golden, "ids"), POSITIONS);
    struct sampling how = greedy;

    how.max_tokens = n_want;
    how.ignore_eos = true;
    opened_open(&o, directory, (struct model_limits){.rows = 64, .sessions = 2, .positions = POSITIONS}, 1);
    assert_int_equal(tokenizer_open(&t, directory, &e), OK);
    for (int rows = 1; rows <= 64; rows = rows * 3 + 1) { /* the prompt in chunks */
        struct engine *engine = open_engine(&o, t, rows, 2, POSITIONS, 1);

        run_alone(engine, prompt, n, &how, &got);
        assert_int_equal(got.finish, FINISH_LENGTH);
        assert_int_equal(got.n, n_want);
        assert_memory_equal(got.tokens, want, (size_t)n_want * sizeof(int32_t));
        if (whole_text) { /* prompt and continuation together are the text */
            char joined[4096];

            snprintf(joined, sizeof(joined), "%s%s", json_text(json_at(greedy_golden, "prompt")), got.text);
            assert_string_equal(joined, json_text(json_at(greedy_golden, "text")));
        }
        engine_close(engine);
    }
    json_free(g);
    tokenizer_close(t);
    opened_close(&o);
}

static void greedy_equals_golden(void **state)
{
    (void)state;
    golden_greedy("tests/golden/toy-llama", "tests/golden/toy-llama/golden.json", false);
}

static void greedy_equals_golden_of_a_trained_model(void **state)
{
    char directory[512], golden[512];

    (void)state;
    if (!*shared_path(directory, "models/tiny1m") || !*shared_path(golden, "golden/tiny1m/golden.json"))
        skip_because("models/tiny1m is not there");
    golden_greedy(directory, golden, true);
}

static void make_prompts(int32_t prompt[SESSIONS][40], int n[SESSIONS], struct sampling how[SESSIONS])
{
    struct rng r;

    rng_seed(&r, 11, 0);
    for (int i = 0; i < SESSIONS; i++) {
        n[i] = 1 + (int)rng_below(&r, 40);
        prompt[i][0] = 1;
        for (int p = 1; p < n[i]; p++) prompt[i][p] = 3 + (int32_t)rng_below(&r, 380);
        how[i] = (struct sampling){.temperature = i % 3 ? 0.9 : 0,
                                   .top_p = i % 2 ? 0.95 : 1,
                                   .top_k = i % 5 ? 0 : 20,
                                   .seed = (uint64_t)i,
                                   .max_tokens = 1 + (int)rng_below(&r, 30)};
    }
}

/* The same tokens alone, in company, in chunks, whoever came first and in whichever place of the cache. */
static void company_changes_nothing(void **state)
{
    static int32_t prompt[SESSIONS][40];
    static struct outcome alone[SESSIONS], together[SESSIONS];
    struct sampling how[SESSIONS];
    int n[SESSIONS], rows[] = {64, 17, 1};
    struct opened o;
    struct tokenizer *t;
    struct err e;

    (void)state;
    make_prompts(prompt, n, how);
    open_toy(&o);
    assert_int_equal(tokenizer_open(&t, "tests/golden/toy-llama", &e), OK);
    struct engine *g = open_engine(&o, t, 64, 1, POSITIONS, 1);
    for (int i = 0; i < SESSIONS; i++) run_alone(g, prompt[i], n[i], &how[i], &alone[i]);
    engine_close(g);
    for (int variant = 0; variant < 3; variant++) {
        int waiting = SESSIONS, sessions = variant == 1 ? 5 : SESSIONS;

        memset(together, 0, sizeof(together));
        g = open_engine(&o, t, rows[variant], sessions, POSITIONS, 1 + variant % 2);
        while (waiting || engine_busy(g)) {
            while (waiting && engine_has_room(g)) { /* in the other order than above; in variant 1 they trickle in */
                waiting--;
                submit(g, (uint64_t)waiting, prompt[waiting], n[waiting], &how[waiting]);
                if (variant == 1) break;
            }
            step(g, together);
        }
        for (int i = 0; i < SESSIONS; i++) {
            assert_int_equal(together[i].finish, alone[i].finish);
            assert_int_equal(together[i].n, alone[i].n);
            assert_memory_equal(together[i].tokens, alone[i].tokens, (size_t)alone[i].n * sizeof(int32_t));
            assert_string_equal(together[i].text, alone[i].text);
        }
        engine_close(g);
    }
    tokenizer_close(t);
    opened_close(&o);
}

/* Every part of a text is a stop string in turn; what comes back is the text before its first occurrence. */
static void stop_strings_across_tokens(void **state)
{
    static struct outcome whole, cut;
    static const int32_t prompt[] = {1, 295, 143, 156};
    struct opened o;
    struct tokenizer *t;
    struct err e;
    struct sampling how = greedy;

    (void)state;
    how.ignore_eos = true;
    open_toy(&o);
    assert_int_equal(tokenizer_open(&t, "tests/golden/toy-llama", &e), OK);
    struct engine *g = open_engine(&o, t, 64, 2, POSITIONS, 1);
    run_alone(g, prompt, 4, &how, &whole);
    assert_true(whole.text_length > 20);
    for (size_t at = 0; at + 1 < whole.text_length; at += 3)
        for (size_t length = 1; length <= 12 && at + length <= whole.text_length; length += 3) {
            char stop[16] = {0};
            const char *const stops[] = {"never in the text", stop};

            memcpy(stop, whole.text + at, length);
            if (strlen(stop) != length) continue;
            how.stop = stops;
            how.n_stop = 2;
            run_alone(g, prompt, 4, &how, &cut);
            size_t first = (size_t)((char *)memmem(whole.text, whole.text_length, stop, length) - whole.text);

            assert_int_equal(cut.finish, FINISH_STOP);
            assert_int_equal(cut.text_length, first);
            assert_memory_equal(cut.text, whole.text, first);
            assert_true(cut.n <= whole.n);
            assert_memory_equal(cut.tokens, whole.tokens, (size_t)cut.n * sizeof(int32_t));
        }
    how.stop = (const char *const[]){"never in the text"};
    how.n_stop = 1;
    run_alone(g, prompt, 4, &how, &cut);
    assert_int_equal(cut.finish, FINISH_LENGTH);
    assert_int_equal(cut.text_length, whole.text_length);
    engine_close(g);
    tokenizer_close(t);
    opened_close(&o);
}

static void ends_at_eos_at_max_tokens_and_at_the_context(void **state)
{
    static struct outcome got, longer;
    int32_t prompt[POSITIONS];
    struct opened o;
    struct sampling how = greedy;
    struct err e;
    bool eos_seen = false;

    (void)state;
    for (int i = 0; i < POSITIONS; i++) prompt[i] = i ? 3 + i : 1;
    open_toy(&o);
    struct engine *g = open_engine(&o, NULL, 16, 3, 20, 1);

    how.ignore_eos = true;
    for (int n = 1; n < 20; n++) { /* prompt and answer fill the 20 positions exactly */
        run_alone(g, prompt, n, &how, &got);
        assert_int_equal(got.finish, FINISH_LENGTH);
        assert_int_equal(got.n, 20 - n);
        assert_int_equal(got.text_length, 0); /* no tokenizer, no text */
    }
    how.max_tokens = 3;
    run_alone(g, prompt, 4, &how, &got);
    assert_int_equal(got.n, 3);
    assert_int_equal(engine_submit(g, 0, prompt, 20, &how, &e), ERR_LIMIT);
    assert_int_equal(engine_submit(g, 0, prompt, 0, &how, &e), ERR_LIMIT);
    prompt[2] = 384;
    assert_int_equal(engine_submit(g, 0, prompt, 4, &how, &e), ERR_FORMAT);
    prompt[2] = -1;
    assert_int_equal(engine_submit(g, 0, prompt, 4, &how, &e), ERR_FORMAT);
    how.stop = (const char *const[]){"x"};
    how.n_stop = 1;
    assert_int_equal(engine_submit(g, 0, prompt, 1, &how, &e), ERR_SPEC);
    assert_true(engine_has_room(g) && !engine_busy(g)); /* refusals leave nothing behind */
    engine_close(g);

    /* at a high temperature some sequence meets the EOS; it is the same one up to there when the EOS is ignored */
    g = open_engine(&o, NULL, 64, 3, POSITIONS, 1);
    for (uint64_t seed = 0; seed < 15; seed++) {
        how = (struct sampling){.temperature = 30, .top_p = 1, .seed = seed, .max_tokens = 100};
        run_alone(g, prompt, 1, &how, &got);
        how.ignore_eos = true;
        run_alone(g, prompt, 1, &how, &longer);
        assert_int_equal(longer.n, 100);
        assert_memory_equal(got.tokens, longer.tokens, (size_t)got.n * sizeof(int32_t));
        if (got.finish == FINISH_STOP) assert_int_equal(longer.tokens[got.n], 2);
        eos_seen |= got.finish == FINISH_STOP;
        for (int i = 0; i < got.n; i++) assert_int_not_equal(got.tokens[i], 2);
    }
    assert_true(eos_seen);
    engine_close(g);

    assert_int_equal(engine_open(&g, o.model, NULL, &all, 1, (struct engine_limits){65, 1, 8, 0}, &e), ERR_LIMIT);
    assert_int_equal(engine_open(&g, o.model, NULL, &all, 1, (struct engine_limits){1, SESSIONS + 1, 8, 0}, &e), ERR_LIMIT);
    assert_int_equal(engine_open(&g, o.model, NULL, &all, 1, (struct engine_limits){1, 1, POSITIONS + 2, 0}, &e), ERR_LIMIT);
    opened_close(&o);
}

static void a_finished_sequence_outlives_its_session(void **state)
{
    static struct outcome wanted, other;
    static const int32_t prompt[] = {1, 295, 143, 156};
    const struct sequence *done;
    struct opened o;
    struct err e;
    int n;

    (void)state;
    open_toy(&o);
    struct engine *g = open_engine(&o, NULL, 8, 1, POSITIONS, 1);
    run_alone(g, prompt, 4, &greedy, &wanted);
    submit(g, 0, prompt, 4, &greedy);
    do assert_int_equal(engine_step(g, &done, &n, &e), OK);
    while (!n);
    submit(g, 0, prompt, 2, &greedy); /* the same place, before the result was read */
    assert_int_equal(done[0].n_tokens, wanted.n);
    assert_memory_equal(done[0].tokens, wanted.tokens, (size_t)wanted.n * sizeof(int32_t));
    while (engine_busy(g)) step(g, &other);
    const struct engine_stats *stats = engine_stats(g);
    assert_int_equal(stats->prefill_rows, 10);
    assert_int_equal(stats->decode_rows, stats->tokens - 3);
    engine_close(g);
    opened_close(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_equals_golden),
        cmocka_unit_test(greedy_equals_golden_of_a_trained_model),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(stop_strings_across_tokens),
        cmocka_unit_test(ends_at_eos_at_max_tokens_and_at_the_context),
        cmocka_unit_test(a_finished_sequence_outlives_its_session),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
