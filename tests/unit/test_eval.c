/* The eval job's pure parts: hostile item files, what counts as right, intervals; and corpora as windows. */
#include "../check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "base/str.h"
#include "jobs/eval.h"

static status parse(struct items *to, const char *line, bool pairs, int64_t most, struct err *e)
{
    return items_parse_line(to, line, strlen(line), "f.jsonl", 7, pairs ? ITEMS_PAIRS : ITEMS_QUESTIONS, most, e);
}

static void refused(const char *line, bool pairs, const char *says)
{
    struct items items = {0};
    struct err e;
    status s = parse(&items, line, pairs, 0, &e);

    if (s != ERR_FORMAT || strncmp(e.text, "f.jsonl:7: ", 11) || !strstr(e.text, says))
        fail_msg("%s\ngave %d \"%s\", expected f.jsonl:7 and %s", line, s, s ? e.text : "", says);
    assert_int_equal(items.n, 0);
    items_free(&items);
}

static void test_hostile_lines(void **state)
{
    (void)state;
    refused("", true, "");
    refused("{", true, "");
    refused("[]", true, "object");
    refused("7", false, "object");
    refused("{\"good\":\"a\"}", true, "bad");
    refused("{\"good\":\"a\",\"bad\":7}", true, "bad");
    refused("{\"good\":\"\",\"bad\":\"b\"}", true, "good");
    refused("{\"good\":\"a\",\"bad\":\"b\",\"id\":3}", true, "id");
    refused("{\"good\":\"a\",\"bad\":\"b\",\"set\":[]}", true, "set");
    refused("{\"good\":\"a\",\"bad\":\"b\"} x", true, "");
    refused("{\"good\":\"a\xFF\",\"bad\":\"b\"}", true, "");
    refused("{\"context\":\"a\"}", false, "target");
    refused("{\"target\":\"a\"}", false, "context");
    refused("{\"context\":\"a\",\"target\":{}}", false, "target");
    refused("{\"context\":\"a\",\"choices\":\"b\",\"answer\":0}", false, "choices");
    refused("{\"context\":\"a\",\"choices\":[\"b\"],\"answer\":0}", false, "choices");
    refused("{\"context\":\"a\",\"choices\":[\"b\",1],\"answer\":0}", false, "choices[1]");
    refused("{\"context\":\"a\",\"choices\":[\"b\",\"\"],\"answer\":0}", false, "choices[1]");
    refused("{\"context\":\"a\",\"choices\":[\"b\",\"c\"]}", false, "answer");
    refused("{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":2}", false, "answer");
    refused("{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":-1}", false, "answer");
    refused("{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":\"0\"}", false, "answer");
}

static void test_limits_of_lines(void **state)
{
    struct items items = {0};
    struct err e;
    struct str line = {0};

    (void)state;
    str_addz(&line, "{\"context\":\"c\",\"choices\":[\"x\"");
    for (int i = 1; i <= ITEM_CHOICES_MAX; i++) str_addz(&line, ",\"x\"");
    str_addz(&line, "],\"answer\":0}");
    assert_int_equal(parse(&items, line.text, false, 0, &e), ERR_FORMAT);
    str_clear(&line);
    while (line.length <= ITEM_LINE_MAX) str_addz(&line, "                                                                ");
    assert_int_equal(parse(&items, line.text, false, 0, &e), ERR_LIMIT);
    str_free(&line);
    items_free(&items);
}

static void test_sets(void **state)
{
    struct items items = {0};
    struct err e;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(parse(&items, "{\"set\":\"s\",\"good\":\"a\",\"bad\":\"b\"}", true, 2, &e), OK);
        assert_int_equal(parse(&items, "{\"set\":\"t\",\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":1}", false, 2, &e),
                         OK);
        assert_int_equal(parse(&items, "{\"context\":\"a\",\"target\":\"b\"}", false, 2, &e), OK);
    }
    assert_int_equal(items.n, 6); /* the first two of each set */
    assert_int_equal(items.n_sets, 3);
    assert_string_equal(items.sets[2].name, "lambada");
    assert_int_equal(items.item[1].answer, 1);
    assert_int_equal(items.item[1].n, 2);
    assert_null(items.item[0].context);
    /* one name, two forms: their figures could not be told apart */
    assert_int_equal(parse(&items, "{\"set\":\"s\",\"context\":\"a\",\"target\":\"b\"}", false, 2, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "\"s\""));
    items_free(&items);
}

static void test_files(void **state)
{
    char directory[] = "/tmp/factorllm-test-XXXXXX", path[128];
    struct items items = {0};
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/i.jsonl", directory);
    FILE *f = fopen(path, "wb");
    fputs("{\"good\":\"a\",\"bad\":\"b\"}\r\n\n   \n{\"good\":\"c\",\"bad\":\"d\"}", f);
    fclose(f);
    assert_int_equal(items_read(&items, path, ITEMS_PAIRS, 0, &e), OK);
    assert_int_equal(items.n, 2);
    assert_int_equal(items.item[1].line, 4);
    f = fopen(path, "wb");
    fputs("{\"good\":\"a\",\"bad\":\"b\"}\n{\"good\":\"c\"}\n", f);
    fclose(f);
    assert_int_equal(items_read(&items, path, ITEMS_PAIRS, 0, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "i.jsonl:2: "));
    f = fopen(path, "wb");
    fputs("\n\n", f);
    fclose(f);
    assert_int_equal(items_read(&items, path, ITEMS_PAIRS, 0, &e), ERR_FORMAT);
    unlink(path);
    assert_int_equal(items_read(&items, path, ITEMS_PAIRS, 0, &e), ERR_IO);
    items_free(&items);
    rmdir(directory);
}

static void test_right(void **state)
{
    struct item pair = {.kind = ITEM_PAIR, .n = 2}, choice = {.kind = ITEM_CHOICE, .n = 3, .answer = 1, .first = 1};
    struct eval_score p[] = {{.logp = -3}, {.logp = -3}, {.logp = -4}, {.logp = -3}};

    (void)state;
    choice.text[0] = "ab";
    choice.text[1] = "abcd";
    choice.text[2] = "a";
    assert_false(eval_item_right(&pair, p, false)); /* equal is not better */
    p[0].logp = -2.5;
    assert_true(eval_item_right(&pair, p, false));
    assert_false(eval_item_right(&choice, p, false)); /* sums -3 -4 -3: the first of equals */
    assert_true(eval_item_right(&choice, p, true));   /* per byte -1.5 -1 -3 */
    choice.answer = 0;
    assert_true(eval_item_right(&choice, p, false));
}

/* The interval of a mean of n(0, 1) is about +-1.96 / sqrt(n); of something constant it is a point. */
static void test_bootstrap(void **state)
{
    enum { N = 400 };
    double x[N], one[N], many[N];
    struct interval i, again, weighted;
    struct rng r;
    int covered = 0;

    (void)state;
    rng_seed(&r, 3, 0);
    for (int t = 0; t < 50; t++) {
        for (int k = 0; k < N; k++) {
            x[k] = 2 + rng_normal(&r);
            one[k] = 1;
            many[k] = 5;
        }
        eval_bootstrap(&i, x, one, N, 400, (uint64_t)t, NULL, NULL);
        assert_true(i.low < i.value && i.value < i.high);
        assert_true(fabs((i.high - i.low) * sqrt(N) / (2 * 1.96) - 1) < 0.25);
        covered += i.low < 2 && 2 < i.high;
    }
    assert_true(covered >= 42); /* 47.5 are expected; fewer than 42 has a chance of about 1 % */
    eval_bootstrap(&again, x, one, N, 400, 49, NULL, NULL);
    assert_memory_equal(&i, &again, sizeof(i));
    eval_bootstrap(&weighted, x, many, N, 400, 49, NULL, NULL);
    assert_true(fabs(weighted.value - i.value / 5) < 1e-12 && fabs(weighted.high - i.high / 5) < 1e-12);
    for (int k = 0; k < N; k++) x[k] = 0.25;
    eval_bootstrap(&i, x, one, N, 100, 1, NULL, NULL);
    assert_true(i.value == 0.25 && i.low == 0.25 && i.high == 0.25);
    eval_bootstrap(&i, x, one, 1, 100, 1, NULL, NULL);
    assert_true(i.value == 0.25 && isnan(i.low));
    eval_bootstrap(&i, x, one, N, 0, 1, NULL, NULL);
    assert_true(i.value == 0.25 && isnan(i.low));
    eval_bootstrap(&i, x, one, 0, 100, 1, NULL, NULL);
    assert_true(isnan(i.value));
}

/* Every token is a target exactly once, in order; inputs are the targets moved on by one behind BOS. */
static void test_windows(void **state)
{
    int32_t tokens[23], input[9], target[9];

    (void)state;
    for (int i = 0; i < 23; i++) tokens[i] = 100 + i;
    for (int n = 1; n <= 23; n++)
        for (int window = 1; window <= 9; window++) {
            struct corpus c;
            int seen = 0;

            corpus_from_tokens(&c, tokens, (size_t)n, 99);
            assert_int_equal(corpus_windows(&c, window), (n + window - 1) / window);
            for (size_t w = 0; w < corpus_windows(&c, window); w++) {
                int got = corpus_window(&c, window, w, 1, input, target);

                assert_true(got >= 1 && got <= window && input[0] == 1);
                for (int i = 0; i < got; i++) {
                    assert_int_equal(target[i], 100 + seen++);
                    if (i) assert_int_equal(input[i], target[i - 1]);
                }
            }
            assert_int_equal(seen, n);
            corpus_free(&c);
        }
}

static void test_corpus_file(void **state)
{
    char directory[] = "/tmp/factorllm-test-XXXXXX", path[128];
    struct tokenizer *t;
    struct corpus all, part;
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/t.txt", directory);
    FILE *f = fopen(path, "wb");
    fputs("ab\xE2\x82\xAC", f); /* the character ends at byte 5 */
    fclose(f);
    assert_int_equal(tokenizer_open(&t, "tests/golden/tokenizers/sp-bpe", &e), OK);
    assert_int_equal(corpus_read(&all, path, 0, t, &e), OK);
    assert_int_equal(all.bytes, 5);
    for (size_t bytes = 2; bytes < 5; bytes++) { /* cut back to a whole character */
        assert_int_equal(corpus_read(&part, path, bytes, t, &e), OK);
        assert_int_equal(part.bytes, 2);
        assert_true(part.n_tokens < all.n_tokens);
        assert_string_not_equal(part.digest, all.digest);
        corpus_free(&part);
    }
    assert_int_equal(corpus_read(&part, path, 1 << 20, t, &e), OK);
    assert_string_equal(part.digest, all.digest);
    corpus_free(&part);
    corpus_free(&all);
    f = fopen(path, "wb");
    fclose(f);
    assert_int_equal(corpus_read(&part, path, 0, t, &e), ERR_FORMAT); /* nothing to predict */
    unlink(path);
    assert_int_equal(corpus_read(&part, path, 0, t, &e), ERR_IO);
    tokenizer_close(t);
    rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_lines), cmocka_unit_test(test_limits_of_lines), cmocka_unit_test(test_sets),
        cmocka_unit_test(test_files),         cmocka_unit_test(test_right),           cmocka_unit_test(test_bootstrap),
        cmocka_unit_test(test_windows),       cmocka_unit_test(test_corpus_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
