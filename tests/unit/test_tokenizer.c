/* Tokenizers against tests/golden/tokenizers (made by make_tokenizers.py from the library and a plain definition), against ../shared where
 * it is there, and against hostile files. */
#include "../check.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "data/json.h"
#include "data/tokenizer.h"
#include "data/tokenizer_parts.h"
#include "data/utf8.h"

#define GOLDEN "tests/golden/tokenizers/"

static const char *const kinds[] = {"sp-bpe",    "sp-unigram",  "llama-json", "metaspace-json",
                                    "gpt2-json", "llama3-json", "qwen2-json"};
enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

static struct tokenizer *open_kind(const char *kind)
{
    struct tokenizer *t;
    struct err e;
    char path[256];

    snprintf(path, sizeof(path), GOLDEN "%s", kind);
    if (tokenizer_open(&t, path, &e)) fail_msg("%s", e.text);
    return t;
}

static struct json_t *read_json(const char *path)
{
    struct json_t *v;
    struct err e;

    if (json_read(&v, path, 1 << 26, &e)) fail_msg("%s", e.text);
    return v;
}

static char *unhex(const char *hex, size_t *n)
{
    *n = strlen(hex) / 2;
    char *out = malloc(*n + 1);
    for (size_t i = 0; i < *n; i++) {
        unsigned byte;

        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    out[*n] = 0;
    return out;
}

static int32_t *get_ids(const struct json_t *list, size_t *n)
{
    *n = json_length(list);
    int32_t *ids = malloc((*n + 1) * sizeof(*ids));
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)json_int(json_item(list, i));
    return ids;
}

static void check_encode(const struct tokenizer *t, const char *text, size_t length, const struct json_t *want, const char *where)
{
    int32_t *ids;
    size_t n;
    struct err e;

    assert_int_equal(tokenizer_encode(t, &ids, &n, text, length, &e), OK);
    bool equal = n == json_length(want);
    for (size_t i = 0; equal && i < n; i++) equal = ids[i] == json_int(json_item(want, i));
    if (!equal) {
        printf("%s: \"%.*s\" gives", where, (int)length, text);
        for (size_t i = 0; i < n; i++) printf(" %d", ids[i]);
        printf(", expected");
        for (size_t i = 0; i < json_length(want); i++) printf(" %d", (int)json_int(json_item(want, i)));
        printf("\n");
    }
    assert_true(equal);
    free(ids);
}

static void check_decode(const struct tokenizer *t, const struct json_t *list, const char *want, size_t length, const char *where)
{
    struct str got = {0};
    size_t n;
    int32_t *ids = get_ids(list, &n);

    tokenizer_decode(t, &got, ids, n);
    if (got.length != length || memcmp(got.text ? got.text : "", want, length))
        fail_msg("%s: decoded \"%s\", expected \"%s\"", where, got.text ? got.text : "", want);
    str_free(&got);
    free(ids);
}

static void test_golden(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        struct tokenizer *t = open_kind(kinds[k]);
        char path[256];

        snprintf(path, sizeof(path), GOLDEN "%s/cases.json", kinds[k]);
        struct json_t *root = read_json(path);
        const struct json_t *cases = json_at(root, "cases"), *decode = json_at(root, "decode");
        assert_string_equal(tokenizer_kind(t), json_text(json_at(root, "kind")));
        assert_int_equal(tokenizer_vocab(t), json_int(json_at(root, "vocab")));
        assert_true(json_length(cases) > 50);
        for (size_t i = 0; i < json_length(cases); i++) {
            const struct json_t *c = json_item(cases, i), *hex = json_at(c, "hex");
            size_t n, n_want;
            char *raw = hex ? unhex(json_text(hex), &n) : NULL, *want = unhex(json_text(json_at(c, "decoded")), &n_want);
            const char *text = raw ? raw : json_text(json_at(c, "text"));

            check_encode(t, text, raw ? n : json_text_length(json_at(c, "text")), json_at(c, "ids"), kinds[k]);
            check_decode(t, json_at(c, "ids"), want, n_want, kinds[k]);
            free(raw);
            free(want);
        }
        for (size_t i = 0; i < json_length(decode); i++) {
            size_t n_want;
            char *want = unhex(json_text(json_at(json_item(decode, i), "decoded")), &n_want);

            check_decode(t, json_at(json_item(decode, i), "ids"), want, n_want, kinds[k]);
            free(want);
        }
        json_free(root);
        tokenizer_close(t);
    }
}

/* The models of ../shared, numbers of their own libraries. */
static void test_shared(void **state)
{
    const char *shared = getenv("FACTORLLM_SHARED") ? getenv("FACTORLLM_SHARED") : "../shared";
    static const char *const models[] = {"tiny1m", "quillan-6m", "stories260K", "stories260K-sharded"};

    (void)state;
    for (int k = 0; k < 4; k++) {
        char golden[512], model[512], json[600];
        struct tokenizer *t;
        struct bpe *b = NULL;
        struct err e;

        snprintf(golden, sizeof(golden), "%s/golden/%s/golden.json", shared, models[k]);
        snprintf(model, sizeof(model), "%s/models/%s", shared, models[k]);
        snprintf(json, sizeof(json), "%s/tokenizer.json", model);
        if (!file_exists(golden) || !file_exists(model)) skip_because("%s is not there", golden);
        struct json_t *root = read_json(golden);
        const struct json_t *cases = json_at(root, "tokenizer"), *greedy = json_at(root, "greedy");
        assert_int_equal(tokenizer_open(&t, model, &e), OK);
        if (file_exists(json)) assert_int_equal(bpe_open(&b, json, &e), OK); /* tiny1m has both kinds */
        assert_true(json_length(cases) > 10);
        for (size_t i = 0; i < json_length(cases); i++) {
            const struct json_t *c = json_item(cases, i), *want = json_at(c, "ids");
            const char *text = json_text(json_at(c, "text"));
            size_t n = json_text_length(json_at(c, "text"));

            check_encode(t, text, n, want, models[k]);
            if (!b) continue;
            struct ids ids = {0};
            assert_int_equal(bpe_encode(b, &ids, text, n, &e), OK);
            assert_int_equal(ids.n, json_length(want));
            for (size_t j = 0; j < ids.n; j++) assert_int_equal(ids.id[j], json_int(json_item(want, j)));
            free(ids.id);
        }
        struct str text = {0}; /* the greedy continuation: ids of prompt and answer behind BOS give `text` */
        size_t n, n_prompt;
        int32_t *ids = get_ids(json_at(greedy, "ids"), &n), *prompt = get_ids(json_at(greedy, "prompt_ids"), &n_prompt);
        int32_t *all = malloc((n + n_prompt + 1) * sizeof(*all));
        memcpy(all, prompt, n_prompt * sizeof(*all));
        memcpy(all + n_prompt, ids, n * sizeof(*all));
        tokenizer_decode(t, &text, all, n + n_prompt);
        assert_string_equal(text.text, json_text(json_at(greedy, "text")));
        str_free(&text);
        free(all);
        free(ids);
        free(prompt);
        bpe_close(b);
        tokenizer_close(t);
        json_free(root);
    }
}

/* What comes out is what went in, for any valid text; exactly so where the kind keeps every character. */
static void test_round_trips(void **state)
{
    struct rng r;

    (void)state;
    rng_seed(&r, 7, 0);
    for (int k = 0; k < KINDS; k++) {
        struct tokenizer *t = open_kind(kinds[k]);
        bool exact = strcmp(kinds[k], "sp-unigram") && strcmp(kinds[k], "qwen2-json"); /* those normalize */
        bool metaspace = !strcmp(kinds[k], "metaspace-json");                          /* no second blank in front of a blank */

        for (int round = 0; round < 120; round++) {
            struct str text = {0}, back = {0};
            int32_t *ids;
            size_t n;
            struct err e;

            for (int i = (int)rng_below(&r, 40); i >= 0; i--) {
                static const uint32_t most[] = {0x7E, 0x7E, 0x7E, 0x24F, 0x1100, 0xD7FF, 0x1FFFF};
                char c[4];
                uint32_t code = rng_below(&r, 3) ? (uint32_t)(0x20 + rng_below(&r, most[rng_below(&r, 7)] - 0x20)) : ' ';

                if (code == 0x2581 || (code >= 0xD800 && code < 0xE000)) continue; /* U+2581 means a blank to some */
                if (metaspace && !text.length && code == ' ') continue;
                str_add(&text, c, utf8_put(c, code));
            }
            assert_int_equal(tokenizer_encode(t, &ids, &n, text.text ? text.text : "", text.length, &e), OK);
            tokenizer_decode(t, &back, ids, n);
            if (exact) assert_string_equal(back.text ? back.text : "", text.text ? text.text : "");
            assert_true(utf8_valid(back.text ? back.text : "", back.length));
            for (size_t i = 0; i < n; i++) assert_true(ids[i] >= 0 && ids[i] < tokenizer_vocab(t));
            free(ids);
            str_free(&text);
            str_free(&back);
        }
        tokenizer_close(t);
    }
}

static void test_pieces_add_up(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        static const char text[] = "The mill,\n and \xF0\x9F\x98\x80 its 12 wheels";
        struct tokenizer *t = open_kind(kinds[k]);
        struct str whole = {0}, parts = {0};
        int32_t *ids;
        size_t n;
        struct err e;

        assert_int_equal(tokenizer_encode(t, &ids, &n, text, strlen(text), &e), OK);
        tokenizer_decode(t, &whole, ids, n);
        for (size_t i = 0; i < n; i++) tokenizer_piece(t, &parts, ids[i]);
        const char *at = parts.text + (parts.length > whole.length ? parts.length - whole.length : 0);
        assert_string_equal(at, whole.text);
        assert_true(parts.length - whole.length <= 1);
        tokenizer_piece(t, &parts, -1);
        tokenizer_piece(t, &parts, tokenizer_vocab(t));
        assert_false(tokenizer_is_special(t, -1));
        assert_false(tokenizer_is_special(t, INT32_MAX));
        free(ids);
        str_free(&whole);
        str_free(&parts);
        tokenizer_close(t);
    }
}

/* Two megabytes without a pre-tokenizer: what a quadratic merge would take minutes for. */
static void test_long_text(void **state)
{
    static const char *const some[] = {"llama-json", "sp-bpe", "gpt2-json"};

    (void)state;
    for (int k = 0; k < 3; k++) {
        struct tokenizer *t = open_kind(some[k]);
        struct str text = {0};
        int32_t *ids;
        size_t n;
        struct err e;

        while (text.length < (k ? 300000 : 2000000)) str_addz(&text, "the water and the mill, thethe  ");
        clock_t before = clock(); /* of this process: a busy machine changes nothing; in quadratic time it would be an hour */
        assert_int_equal(tokenizer_encode(t, &ids, &n, text.text, text.length, &e), OK);
        assert_true(clock() - before < 60 * CLOCKS_PER_SEC);
        assert_true(n > text.length / 10 && n < text.length);
        free(ids);
        str_free(&text);
        tokenizer_close(t);
    }
}

/* --- hostile files --- */

static status try_json(const char *text, size_t length, struct err *e)
{
    struct bpe *b;
    struct ids ids = {0};

    if (bpe_parse(&b, text, length, "tokenizer.json", e)) {
        assert_null(b);
        assert_true(strlen(e->text) > 10);
        return e->code;
    }
    status s = bpe_encode(b, &ids, "the water\n 12's \xC3\xA9", 17, e);
    struct str out = {0};
    for (size_t i = 0; i < ids.n; i++) assert_true(ids.id[i] >= 0 && ids.id[i] < bpe_vocab(b));
    for (int32_t i = 0; i < bpe_vocab(b) && i < 1000; i++) bpe_piece(b, &out, i);
    str_free(&out);
    free(ids.id);
    bpe_close(b);
    return s;
}

static void test_json_truncated_and_mutated(void **state)
{
    static const char *const files[] = {GOLDEN "llama-json/tokenizer.json", GOLDEN "llama3-json/tokenizer.json"};
    struct rng r;
    struct err e;

    (void)state;
    rng_seed(&r, 11, 0);
    for (int f = 0; f < 2; f++) {
        char *text;
        size_t n;
        int refused = 0;

        assert_int_equal(file_read(&text, &n, files[f], 1 << 20, &e), OK);
        for (size_t cut = 0; cut + 2 < n; cut += cut < 300 ? 1 : 29) assert_int_equal(try_json(text, cut, &e), ERR_FORMAT);
        for (int round = 0; round < 150; round++) {
            char *copy = malloc(n);

            memcpy(copy, text, n);
            for (uint64_t i = rng_below(&r, 3) + 1; i; i--)
                copy[rng_below(&r, n)] = (char)(rng_below(&r, 2) ? 32 + rng_below(&r, 95) : rng_u64(&r));
            refused += try_json(copy, n, &e) != OK;
            free(copy);
        }
        assert_true(refused > 10);
        free(text);
    }
}

static void refused(const char *text, const char *says)
{
    struct err e;
    status s = try_json(text, strlen(text), &e);

    if (s != ERR_FORMAT || !strstr(e.text, says))
        fail_msg("%s\ngave %d \"%s\", expected ERR_FORMAT naming %s", text, s, s ? e.text : "", says);
}

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void test_json_refuses_by_name(void **state)
{
    struct err e;

    (void)state;
    assert_int_equal(try_json("{" MODEL "}", strlen("{" MODEL "}"), &e), OK);
    refused("[]", "object");
    refused("{}", "model");
    refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":{},\"merges\":[]}}", "Unigram");
    refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "WordPiece");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "empty");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "\"a\"");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":9000000000},\"merges\":[]}}", "\"a\"");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "\"a\"");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", "both have id 1");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a c\"]}}", "model.merges[0]");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a a\"]}}", "aa");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a\"]}}", "not a pair");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[[\"a\",1]]}}", "not a pair");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"unk_token\":\"u\"}}", "unk_token");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"dropout\":0.5}}", "dropout");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", "</w>");
    refused("{\"normalizer\":{\"type\":\"Lowercase\"}," MODEL "}", "Lowercase");
    refused("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Precompiled\"}]}," MODEL "}", "Precompiled");
    refused("{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}," MODEL "}", "Replace");
    refused("{\"normalizer\":7," MODEL "}", "normalizer");
    refused("{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}," MODEL "}", "BertPreTokenizer");
    refused("{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[7]}," MODEL "}", "type");
    refused("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}," MODEL "}",
            "Split");
    refused("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}," MODEL "}",
            "&&");
    refused("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Contiguous\"}," MODEL "}",
            "Contiguous");
    refused("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}," MODEL "}", "last");
}

/* Texts cannot spell a special token, also where merges or ignore_merges would lead there. */
static void test_special_tokens_stay_out_of_reach(void **state)
{
    static const char text[] =
        "{\"added_tokens\":[{\"id\":2,\"content\":\"ab\",\"special\":true}],\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,"
        "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";
    struct bpe *b;
    struct ids ids = {0};
    struct err e;

    (void)state;
    assert_int_equal(bpe_parse(&b, text, strlen(text), "t", &e), OK);
    assert_int_equal(bpe_encode(b, &ids, "ab", 2, &e), OK);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.id[0], 0);
    assert_int_equal(ids.id[1], 1);
    free(ids.id);
    bpe_close(b);
}

/* A pattern that backtracks without end gives a status, not a hang; Removed drops what matches. */
static void test_split_patterns(void **state)
{
    static const char bad[] =
        "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"},\"behavior\":\"Isolated\"}," MODEL "}";
    static const char removed[] =
        "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\".\"},\"behavior\":\"Removed\"}," MODEL "}";
    static const char inverted[] =
        "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\",\"invert\":true}," MODEL
        "}";
    struct bpe *b;
    struct ids ids = {0};
    struct err e;
    char many[64];

    (void)state;
    memset(many, 'a', sizeof(many));
    many[63] = 'b';
    assert_int_equal(bpe_parse(&b, bad, strlen(bad), "t", &e), OK);
    assert_int_equal(bpe_encode(b, &ids, many, sizeof(many), &e), ERR_LIMIT);
    bpe_close(b);
    assert_int_equal(bpe_parse(&b, removed, strlen(removed), "t", &e), OK);
    assert_int_equal(bpe_encode(b, &ids, "a.bab..", 7, &e), OK);
    assert_int_equal(ids.n, 3); /* a b ab: the points are gone, and nothing is joined over one */
    assert_int_equal(ids.id[2], 2);
    bpe_close(b);
    ids.n = 0;
    assert_int_equal(bpe_parse(&b, inverted, strlen(inverted), "t", &e), OK);
    assert_int_equal(bpe_encode(b, &ids, "abba", 4, &e), OK);
    assert_int_equal(ids.n, 2);
    bpe_close(b);
    free(ids.id);
}

static status try_model(const char *directory, const void *bytes, size_t length, struct err *e)
{
    char path[256];
    struct tokenizer *t;

    snprintf(path, sizeof(path), "%s/tokenizer.model", directory);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, length, f), length);
    fclose(f);
    if (tokenizer_open(&t, directory, e)) return e->code;

    static const char text[] = "the water \xEF\xBC\xA1\xE2\x80\xA6 e\xCC\x81 \xC2\xBD\t\xF0\x9F\x98\x80 12";
    int32_t *ids;
    size_t n;
    struct str out = {0};
    status s = tokenizer_encode(t, &ids, &n, text, strlen(text), e);
    if (!s) tokenizer_decode(t, &out, ids, n);
    str_free(&out);
    free(ids);
    tokenizer_close(t);
    return s;
}

static void test_model_truncated_and_mutated(void **state)
{
    static const char *const files[] = {GOLDEN "sp-bpe/tokenizer.model", GOLDEN "sp-unigram/tokenizer.model"};
    char directory[] = "/tmp/factorllm-test-XXXXXX", path[256];
    struct rng r;
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(directory));
    rng_seed(&r, 13, 0);
    for (int f = 0; f < 2; f++) {
        char *bytes;
        size_t n;
        int bad = 0;

        assert_int_equal(file_read(&bytes, &n, files[f], 1 << 20, &e), OK);
        assert_int_equal(try_model(directory, bytes, n, &e), OK);
        /* A cut between two parts leaves a shorter message that may be well-formed: an error or a working tokenizer. */
        for (size_t cut = 0; cut < n; cut += 1 + rng_below(&r, 80)) bad += try_model(directory, bytes, cut, &e) != OK;
        assert_true(bad > 30);
        for (int round = 0; round < 120; round++) {
            char *copy = malloc(n);

            memcpy(copy, bytes, n);
            for (uint64_t i = rng_below(&r, 3) + 1; i; i--) copy[rng_below(&r, n)] = (char)rng_u64(&r);
            try_model(directory, copy, n, &e);
            free(copy);
        }
        free(bytes);
    }
    snprintf(path, sizeof(path), "%s/tokenizer.model", directory);
    unlink(path);
    assert_int_equal(rmdir(directory), 0);
}

/* The character map's trie is walked by the library without bounds: one that leads outside is refused. */
static void test_model_map_is_checked(void **state)
{
    char *bytes;
    size_t n;
    struct err e;
    struct sentencepiece_facts facts;
    unsigned char *map = NULL;

    (void)state;
    assert_int_equal(file_read(&bytes, &n, GOLDEN "sp-unigram/tokenizer.model", 1 << 20, &e), OK);
    assert_int_equal(sentencepiece_check(&facts, bytes, n, "m", &e), OK);
    assert_true(facts.pieces > 100 && facts.model_type == 1 && facts.squeeze);
    for (size_t i = 0; i + 8 < n && !map; i++) /* its size is 1024 or 2048 units or so: u32 before the trie */
        if (bytes[i] == 0 && (unsigned char)bytes[i + 1] % 4 == 0 && bytes[i + 1] && !bytes[i + 2] && !bytes[i + 3] && i > 1000)
            map = (unsigned char *)bytes + i + 4;
    assert_non_null(map);
    memset(map, 0x7F, 4); /* the root's offset */
    assert_int_equal(sentencepiece_check(&facts, bytes, n, "m", &e), ERR_FORMAT);
    free(bytes);
}

static void test_missing(void **state)
{
    struct tokenizer *t;
    struct err e;

    (void)state;
    assert_int_equal(tokenizer_open(&t, "tests/golden", &e), ERR_IO);
    assert_non_null(strstr(e.text, "tokenizer.json"));
    assert_null(t);
}

static void test_utf8(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {{"", ""},
                 {"a\xC3\xA9z", "a\xC3\xA9z"},
                 {"\xE2\x82", "\xEF\xBF\xBD"},
                 {"\xF0\x9F\x98\xC3\xA9", "\xEF\xBF\xBD\xC3\xA9"},
                 {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
                 {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},
                 {"\xF4\x90", "\xEF\xBF\xBD\xEF\xBF\xBD"}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct str out = {0};

        utf8_clean(&out, cases[i].in, strlen(cases[i].in));
        assert_string_equal(out.text ? out.text : "", cases[i].out);
        str_free(&out);
    }
    assert_int_equal(utf8_whole("a\xE2\x82\xAC", 4), 4);
    assert_int_equal(utf8_whole("a\xE2\x82\xAC", 3), 1);
    assert_int_equal(utf8_whole("a\xE2\x82\xAC", 2), 1);
    assert_int_equal(utf8_whole("a\xE2\x82\xAC", 1), 1);
    assert_int_equal(utf8_whole("a\x80\x80", 3), 3); /* wrong anyway: nothing to keep whole */
    for (uint32_t code = 1; code < 0x110000; code += 97) {
        char c[4];
        size_t n = utf8_put(c, code);

        if (code >= 0xD800 && code < 0xE000) continue;
        assert_true(utf8_valid(c, n));
        assert_int_equal(utf8_code(c, n), code);
        assert_int_equal(utf8_whole(c, n - 1), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_pieces_add_up),
        cmocka_unit_test(test_long_text),
        cmocka_unit_test(test_json_truncated_and_mutated),
        cmocka_unit_test(test_json_refuses_by_name),
        cmocka_unit_test(test_special_tokens_stay_out_of_reach),
        cmocka_unit_test(test_split_patterns),
        cmocka_unit_test(test_model_truncated_and_mutated),
        cmocka_unit_test(test_model_map_is_checked),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
