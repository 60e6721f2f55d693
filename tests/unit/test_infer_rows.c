/* Requests as strangers write them, answers as others read them, and the journal after interruptions. */
#include "../check.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/directory.h"
#include "base/file.h"
#include "jobs/infer_journal.h"
#include "jobs/infer_rows.h"

static const char *const default_stop[] = {"END"};
static const struct sampling defaults = {
    .temperature = 0.8, .top_p = 1, .seed = 7, .max_tokens = 128, .stop = default_stop, .n_stop = 1};

static status parse(struct infer_request *r, const char *line, struct err *e)
{
    return infer_parse(r, line, strlen(line), "in.jsonl line 7", 7, &defaults, false, e);
}

static void plain_lines_and_defaults(void **state)
{
    struct infer_request r;
    struct err e;

    (void)state;
    assert_int_equal(parse(&r, "{\"prompt\": \"Once\"}", &e), OK);
    assert_false(r.batch);
    assert_string_equal(r.key, "line-7");
    assert_string_equal(r.prompt, "Once");
    assert_true(r.how.temperature == 0.8 && r.how.top_p == 1 && r.how.max_tokens == 128);
    assert_int_equal(r.how.n_stop, 1);
    assert_string_equal(r.how.stop[0], "END");
    uint64_t seed = r.how.seed;
    infer_request_clear(&r);

    /* the seed comes from the id, not from the place */
    assert_int_equal(infer_parse(&r, "{\"prompt\": \"x\", \"id\": \"line-7\"}", 31, "s", 1000, &defaults, true, &e), OK);
    assert_true(r.how.seed == seed);
    assert_false(r.batch);
    infer_request_clear(&r);
    assert_int_equal(parse(&r, "{\"prompt\": \"Once\", \"id\": 8}", &e), OK);
    assert_string_equal(r.key, "8");
    assert_true(r.how.seed != seed);
    infer_request_clear(&r);

    assert_int_equal(
        parse(&r,
              "{\"prompt\":\"a\\u0000b\",\"max_tokens\":3,\"temperature\":0,\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.1,"
              "\"seed\":-1,\"stop\":[\"x\",\"\\n\\n\"],\"ignore_eos\":true,\"n\":1,\"echo\":false,\"logit_bias\":{},"
              "\"logprobs\":null,\"user\":\"u\",\"presence_penalty\":0.0}",
              &e),
        OK);
    assert_int_equal(r.prompt_length, 3);
    assert_memory_equal(r.prompt, "a\0b", 3);
    assert_true(r.how.max_tokens == 3 && r.how.temperature == 0 && r.how.top_p == 0.5 && r.how.top_k == 0 && r.how.min_p == 0.1);
    assert_true(r.how.seed == UINT64_MAX && r.how.ignore_eos);
    assert_int_equal(r.how.n_stop, 2);
    assert_string_equal(r.how.stop[1], "\n\n");
    infer_request_clear(&r);

    assert_int_equal(parse(&r, "{\"prompt\": \"\", \"stop\": []}", &e), OK); /* none, although there is a default */
    assert_int_equal(r.how.n_stop, 0);
    infer_request_clear(&r);
}

static void batch_lines(void **state)
{
    struct infer_request r;
    struct err e;

    (void)state;
    assert_int_equal(parse(&r,
                           "{\"custom_id\":\"q1\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"model\":\"m\","
                           "\"prompt\":\"Hi\",\"max_tokens\":2}}",
                           &e),
                     OK);
    assert_true(r.batch && !r.chat);
    assert_string_equal(r.key, "q1");
    assert_string_equal(r.prompt, "Hi");
    infer_request_clear(&r);
    assert_int_equal(parse(&r,
                           "{\"custom_id\":\"q2\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{\"role\":\"user\","
                           "\"content\":\"Hello\"}],\"max_completion_tokens\":5}}",
                           &e),
                     OK);
    assert_true(r.batch && r.chat && r.how.max_tokens == 5);
    assert_string_equal(r.prompt, "Hello");
    infer_request_clear(&r);
}

static void bad_lines_say_what_is_wrong(void **state)
{
    static const struct {
        const char *line, *key, *says;
    } cases[] = {
        {"", "line-7", "not valid JSON"},
        {"{\"prompt\": \"x\"", "line-7", "not valid JSON"},
        {"[1]", "line-7", "expected an object"},
        {"{}", "line-7", "prompt is missing"},
        {"{\"prompt\": 3}", "line-7", "prompt: expected one text"},
        {"{\"prompt\": [\"a\", \"b\"], \"id\": \"a\"}", "a", "prompt: expected one text"},
        {"{\"prompt\": \"x\", \"id\": \"a\", \"temprature\": 1}", "a", "did you mean temperature?"},
        {"{\"prompt\": \"x\", \"temperature\": -1}", "line-7", "temperature: expected 0 to 100"},
        {"{\"prompt\": \"x\", \"temperature\": \"hot\"}", "line-7", "temperature: expected a number"},
        {"{\"prompt\": \"x\", \"max_tokens\": 0}", "line-7", "max_tokens"},
        {"{\"prompt\": \"x\", \"max_tokens\": 1e3}", "line-7", "max_tokens: expected an integer"},
        {"{\"prompt\": \"x\", \"max_tokens\": 99999999999}", "line-7", "max_tokens"},
        {"{\"prompt\": \"x\", \"top_p\": 1.01}", "line-7", "top_p"},
        {"{\"prompt\": \"x\", \"seed\": 1.5}", "line-7", "seed"},
        {"{\"prompt\": \"x\", \"stop\": \"\"}", "line-7", "stop"},
        {"{\"prompt\": \"x\", \"stop\": [\"a\", 1]}", "line-7", "stop"},
        {"{\"prompt\": \"x\", \"stop\": \"a\\u0000\"}", "line-7", "stop"},
        {"{\"prompt\": \"x\", \"stop\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "line-7", "at most 16"},
        {"{\"prompt\": \"x\", \"n\": 2}", "line-7", "n: is not supported, expected 1"},
        {"{\"prompt\": \"x\", \"stream\": true}", "line-7", "stream: is not supported"},
        {"{\"prompt\": \"x\", \"logprobs\": 0}", "line-7", "logprobs: is not supported"},
        {"{\"prompt\": \"x\", \"logit_bias\": {\"5\": 1}}", "line-7", "logit_bias"},
        {"{\"prompt\": \"x\", \"id\": \"\"}", "line-7", "id: expected 1 to"},
        {"{\"prompt\": \"x\", \"id\": [1]}", "line-7", "id: expected a text or an integer"},
        {"{\"prompt\": \"x\", \"prompt\": \"y\"}", "line-7", "not valid JSON"},
        {"{\"prompt\": \"\xff\"}", "line-7", "not valid JSON"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/embeddings\", \"body\": {}}", "q", "url: expected /v1/completions"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/completions\"}", "q", "body is missing"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"x\", \"id\": 1}}", "q", "id: unknown"},
        {"{\"custom_id\": \"q\", \"method\": \"GET\", \"url\": \"/v1/completions\", \"body\": {}}", "q", "expected POST"},
        {"{\"custom_id\": 5, \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"x\"}}", "line-7",
         "custom_id: expected a text"},
        {"{\"url\": \"/v1/completions\", \"body\": {\"prompt\": \"x\"}}", "line-7", "custom_id is missing"},
        {"{\"custom_id\": \"q\", \"extra\": 1, \"url\": \"/v1/completions\", \"body\": {}}", "q", "extra"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/completions\", \"body\": {\"messages\": []}}", "q", "/v1/chat/completions"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/chat/completions\", \"body\": {\"prompt\": \"x\"}}", "q", "messages is missing"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\": []}}", "q",
         "exactly one user message"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\": [{\"role\": \"system\", "
         "\"content\": \"x\"}]}}",
         "q", "role system"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\": [{\"role\": \"user\", "
         "\"content\": [1]}]}}",
         "q", "content that is one text"},
        {"{\"custom_id\": \"q\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\": [7]}}", "q", "role"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct infer_request r;
        struct err e = {0};
        struct str row = {0};
        char *key;
        bool ok;

        if (parse(&r, cases[i].line, &e) == OK) fail_msg("accepted: %s", cases[i].line);
        if (!strstr(e.text, cases[i].says)) fail_msg("%s\ngives: %s", cases[i].line, e.text);
        assert_non_null(strstr(e.text, "in.jsonl line 7"));
        assert_string_equal(r.key, cases[i].key);

        /* its error row is one line that reads back */
        infer_add_error(&row, &r, e.text);
        assert_ptr_equal(strchr(row.text, '\n'), row.text + row.length - 1);
        assert_int_equal(infer_read_row(&key, &ok, row.text, row.length - 1, "row", &e), OK);
        assert_string_equal(key, cases[i].key);
        assert_false(ok);
        free(key);
        str_free(&row);
        infer_request_clear(&r);
    }
}

static void every_truncation_is_refused(void **state)
{
    static const char line[] =
        "{\"custom_id\":\"q1\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Gr\xc3\xbc\xc3\x9f\\u20ac\","
        "\"stop\":[\"a\",\"b\"],\"seed\":12,\"top_p\":0.25}}";

    (void)state;
    for (size_t n = 0; n < sizeof(line); n++) {
        struct infer_request r;
        struct err e;
        char *copy = malloc(n ? n : 1); /* on the heap, so that a read behind it is seen */

        memcpy(copy, line, n);
        status s = infer_parse(&r, copy, n, "L", 1, &defaults, true, &e);
        if (n == sizeof(line) - 1) assert_int_equal(s, OK);
        else assert_int_not_equal(s, OK);
        assert_non_null(r.key);
        assert_non_null(r.id);
        infer_request_clear(&r);
        free(copy);
    }
}

static void deep_nesting_is_refused(void **state)
{
    char line[4096];
    struct infer_request r;
    struct err e;

    (void)state;
    memset(line, '[', sizeof(line));
    assert_int_not_equal(infer_parse(&r, line, sizeof(line), "L", 1, &defaults, false, &e), OK);
    infer_request_clear(&r);
}

static const char *text_at(const struct json_t *v, const char *a, const char *b)
{
    return json_text(json_at(json_at(v, a), b));
}

static void answers_have_the_documented_form(void **state)
{
    const struct sequence s = {
        .finish = FINISH_STOP, .prompt_tokens = 4, .n_tokens = 6, .text = " there\n\xc3", .text_length = 8};
    struct infer_request r;
    struct str out = {0};
    struct json_t *row;
    struct err e;
    char *key;
    bool ok;

    (void)state;
    assert_int_equal(parse(&r, "{\"prompt\": \"Hi\", \"id\": 12}", &e), OK);
    infer_add_answer(&out, &r, &s, "toy");
    assert_string_equal(out.text,
                        "{\"id\": 12, \"prompt\": \"Hi\", \"text\": \" there\\n\xef\xbf\xbd\", \"finish_reason\": \"stop\", "
                        "\"usage\": {\"prompt_tokens\": 4, \"completion_tokens\": 6, \"total_tokens\": 10}}\n");
    assert_int_equal(infer_read_row(&key, &ok, out.text, out.length - 1, "row", &e), OK);
    assert_string_equal(key, "12");
    assert_true(ok);
    free(key);
    infer_request_clear(&r);

    str_clear(&out);
    assert_int_equal(parse(&r, "{\"custom_id\":\"q\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Hi\"}}", &e), OK);
    infer_add_answer(&out, &r, &s, "toy");
    assert_int_equal(json_parse(&row, out.text, out.length, "row", &e), OK);
    assert_string_equal(json_text(json_at(row, "custom_id")), "q");
    assert_true(json_at(row, "error") && json_is_null(json_at(row, "error")));
    const struct json_t *response = json_at(row, "response"), *body = json_at(response, "body");
    const struct json_t *choice = json_item(json_at(body, "choices"), 0);
    assert_int_equal(json_int(json_at(response, "status_code")), 200);
    assert_string_equal(json_text(json_at(body, "object")), "text_completion");
    assert_string_equal(json_text(json_at(body, "model")), "toy");
    assert_string_equal(json_text(json_at(choice, "text")), " there\n\xef\xbf\xbd");
    assert_string_equal(json_text(json_at(choice, "finish_reason")), "stop");
    assert_int_equal(json_int(json_at(json_at(body, "usage"), "total_tokens")), 10);
    json_free(row);

    str_clear(&out);
    infer_add_error(&out, &r, "too long");
    assert_int_equal(json_parse(&row, out.text, out.length, "row", &e), OK);
    assert_int_equal(json_int(json_at(json_at(row, "response"), "status_code")), 400);
    assert_string_equal(text_at(json_at(json_at(row, "response"), "body"), "error", "message"), "too long");
    assert_string_equal(text_at(row, "error", "message"), "too long");
    json_free(row);
    infer_request_clear(&r);
    str_free(&out);
}

static void shown_lines_fit_the_terminal(void **state)
{
    struct str out = {0};

    (void)state;
    infer_show(&out, "Hi", 2, " there\x1b[2J\n\xc2\x9b!", 14, 80);
    assert_string_equal(out.text, "Hi ->  there [2J  !");
    str_clear(&out);
    infer_show(&out, "0123456789abcdefghijklmnopqrstuvwxyz", 36, "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZ", 52, 40);
    assert_string_equal(out.text, "\u2026pqrstuvwxyz -> ABCDEFGHIJKLMNOPQRSTUVWX");
    str_clear(&out);
    infer_show(&out, "\xc3\xa4\xc3\xb6\xc3\xbc", 6, "", 0, 1);
    assert_string_equal(out.text, "\xc3\xa4\xc3\xb6\xc3\xbc -> ");
    str_clear(&out);
    infer_show(&out, "The quick brown fox jumps", 25, "over", 4, 40); /* at a word */
    assert_string_equal(out.text, "\u2026fox jumps -> over");
    str_free(&out);
}

/* --- the journal ----------------------------------------------------------------------------------------------------- */

struct answer_rows {
    char text[256]; /* "key:ok " */
};

static status note_row(void *context, const char *key, bool ok, const char *source, struct err *e)
{
    struct answer_rows *r = context;
    size_t n = strlen(r->text);

    if (strcmp(key, "refuse") == 0) return err_set(e, ERR_FORMAT, "%s: refused", source);
    snprintf(r->text + n, sizeof(r->text) - n, "%s:%d ", key, ok);
    return OK;
}

static struct json_t *meta_of(int seed)
{
    struct json_t *meta = json_object_new();

    json_put_text(meta, "input", "abc");
    json_put_int(meta, "seed", seed);
    json_put_real(meta, "temperature", 0.3);
    return meta;
}

static status open_with(struct journal **j, const char *path, int seed, struct answer_rows *rows, struct err *e)
{
    struct json_t *meta = meta_of(seed);

    rows->text[0] = 0;
    bool replaced;
    status s = journal_open(j, path, meta, note_row, rows, false, &replaced, e);
    json_free(meta);
    return s;
}

static void the_journal_survives_every_cut(void **state)
{
    static const char whole[] = "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":2,\"error\":{}}\n{\"custom_id\":\"c\",\"error\":null}\n";
    char directory[] = "/tmp/test_rows_XXXXXX", path[64], meta[64];
    struct journal *j, *second;
    struct answer_rows rows;
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/responses.jsonl", directory);
    snprintf(meta, sizeof(meta), "%s/responses.meta.json", directory);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), OK);
    str_addz(journal_buffer(j), whole);
    assert_int_equal(journal_sync(j, &e), OK);
    str_addz(journal_buffer(j), "{\"id\":\"lost\"}\n");
    assert_int_equal(open_with(&second, path, 1, &rows, &e), ERR_IO); /* one writer */
    assert_null(second);
    journal_close(j);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), OK);
    assert_string_equal(rows.text, "a:1 2:0 c:1 ");
    journal_close(j);

    for (size_t n = 1; n < sizeof(whole); n++) { /* a torn end is cut off, and the next row starts on its own line */
        char *text;
        size_t length, rows_whole = 0;

        for (size_t i = 0; i < n; i++)
            if (whole[i] == '\n') rows_whole = i + 1;
        assert_int_equal(file_write(path, whole, n, &e), OK);
        assert_int_equal(open_with(&j, path, 1, &rows, &e), OK);
        str_addz(journal_buffer(j), "{\"id\":\"n\"}\n");
        assert_int_equal(journal_sync(j, &e), OK);
        journal_close(j);
        assert_int_equal(file_read(&text, &length, path, 1000, &e), OK);
        assert_int_equal(length, rows_whole + 11);
        assert_memory_equal(text, whole, rows_whole);
        assert_string_equal(text + rows_whole, "{\"id\":\"n\"}\n");
        free(text);
    }

    /* zeros at the end are a torn end too (a file system after a power cut); damage in the middle is not */
    assert_int_equal(file_write(path, "{\"id\":1}\n\0\0\0\n", 13, &e), OK);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), OK);
    assert_string_equal(rows.text, "1:1 ");
    journal_close(j);
    assert_int_equal(file_write(path, "{\"id\":1}\n{\"i\n{\"id\":3}\n", 22, &e), OK);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "responses.jsonl line 2"));
    assert_int_equal(file_write(path, "{\"id\":\"refuse\"}\n", 16, &e), OK);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), ERR_FORMAT);

    /* another run's rows are refused and left alone */
    assert_int_equal(file_write(path, whole, sizeof(whole) - 1, &e), OK);
    assert_int_equal(open_with(&j, path, 2, &rows, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "what changed: seed (was 1, is 2); move it away"));
    struct json_t *other = meta_of(2);
    char old[80];
    bool replaced;
    snprintf(old, sizeof(old), "%s.old", path);
    assert_int_equal(journal_open(&j, path, other, note_row, &rows, true, &replaced, &e), OK); /* or moved away */
    assert_true(replaced && file_exists(old));
    journal_close(j);
    json_free(other);
    assert_int_equal(rename(old, path), 0);
    unlink(meta);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "responses.meta.json"));
    assert_int_equal(file_write(path, "", 0, &e), OK); /* no rows: nobody's */
    assert_int_equal(open_with(&j, path, 2, &rows, &e), OK);
    journal_close(j);
    unlink(path);
    unlink(meta);
    rmdir(directory);
    assert_int_equal(open_with(&j, path, 2, &rows, &e), ERR_IO);
}

/* Rows are of this run only if every setting is the same double, and the same ones are there. */
static void the_journal_compares_exactly(void **state)
{
    static const struct {
        const char *key;
        double value;
        const char *changed; /* NULL: nothing */
    } settings[] = {{"temperature", 0.3, NULL},
                    {"temperature", 0.1 + 0.2, "temperature (was 0.3, is 0.30000000000000004)"},
                    {"temperature", 0.3 - 1e-16, "temperature (was 0.3, is 0.29999999999999988)"},
                    {"batch_experts", 0.5, "batch_experts (was missing, is 0.5)"}};
    char directory[] = "/tmp/test_rows_XXXXXX", path[64];
    struct answer_rows rows;
    struct journal *j;
    bool replaced;
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/responses.jsonl", directory);
    assert_int_equal(open_with(&j, path, 1, &rows, &e), OK);
    str_addz(journal_buffer(j), "{\"id\":1}\n");
    assert_int_equal(journal_sync(j, &e), OK);
    journal_close(j);
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        struct json_t *meta = meta_of(1);

        rows.text[0] = 0;
        json_put_real(meta, settings[i].key, settings[i].value);
        status s = journal_open(&j, path, meta, note_row, &rows, false, &replaced, &e);
        assert_int_equal(s, settings[i].changed ? ERR_SPEC : OK);
        if (s) assert_non_null(strstr(e.text, settings[i].changed));
        else journal_close(j);
        json_free(meta);
    }
    struct json_t *less = json_object_new(); /* what is not set any more */
    json_put_text(less, "input", "abc");
    json_put_int(less, "seed", 1);
    assert_int_equal(journal_open(&j, path, less, note_row, &rows, false, &replaced, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "what changed: temperature (was 0.3, is missing)"));
    json_free(less);
    assert_int_equal(directory_remove(directory, &e), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_lines_and_defaults),     cmocka_unit_test(batch_lines),
        cmocka_unit_test(bad_lines_say_what_is_wrong),  cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(deep_nesting_is_refused),      cmocka_unit_test(answers_have_the_documented_form),
        cmocka_unit_test(shown_lines_fit_the_terminal), cmocka_unit_test(the_journal_survives_every_cut),
        cmocka_unit_test(the_journal_compares_exactly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
