/* Byte-pair encoding (Gage 1994; Sennrich et al., arXiv 1508.07909) as Hugging Face's tokenizer.json describes it: what that file says, and ids
 * to text.  Text to ids: bpe_encode.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/bpe_internal.h"
#include "data/json.h"
#include "data/utf8.h"

enum { JSON_BYTES_MAX = 256 << 20, IDS_MAX = 1 << 21, MERGES_MAX = 1 << 22 };

/* --- tables --- */

static uint64_t hash_text(const char *text, size_t length)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (size_t i = 0; i < length; i++) h = (h ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    return h ^ h >> 29;
}

static uint64_t hash_pair(uint64_t x)
{
    x = (x ^ x >> 31) * UINT64_C(0x7fb5d329728ea185);
    x = (x ^ x >> 27) * UINT64_C(0x81dadef4bc2dd44d);
    return x ^ x >> 33;
}

static size_t table_size(size_t n)
{
    size_t size = 16;

    while (size < 2 * n) size *= 2;
    return size;
}

int32_t *bpe_find_text(const struct bpe *b, const char *text, size_t length)
{
    for (size_t i = hash_text(text, length) & b->by_text_mask;; i = (i + 1) & b->by_text_mask) {
        int32_t id = b->by_text[i];

        if (id < 0 || (b->tokens[id].length == length && memcmp(bpe_text(b, id), text, length) == 0)) return &b->by_text[i];
    }
}

const struct merge *bpe_find_merge(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;

    for (size_t i = hash_pair(pair) & b->merges_mask;; i = (i + 1) & b->merges_mask) {
        if (b->merges[i].pair == pair) return &b->merges[i];
        if (b->merges[i].pair == UINT64_MAX) return NULL;
    }
}

static void add_merge(struct bpe *b, int32_t left, int32_t right, int32_t rank, int32_t result)
{
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    size_t i = hash_pair(pair) & b->merges_mask;

    while (b->merges[i].pair != UINT64_MAX && b->merges[i].pair != pair) i = (i + 1) & b->merges_mask;
    b->merges[i] = (struct merge){.pair = pair, .rank = rank, .result = result}; /* of a pair listed twice the later counts */
}

/* The letters that stand for bytes: printable ones for themselves, the others 256, 257, ... (GPT-2's convention). */
static void fill_letters(struct bpe *b)
{
    uint32_t next = 256;

    for (int i = 0; i < BYTE_LETTERS; i++) b->letter_byte[i] = -1;
    for (int i = 0; i < 256; i++) {
        bool itself = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;

        b->byte_letter[i] = itself ? (uint32_t)i : next++;
        b->letter_byte[b->byte_letter[i]] = i;
    }
}

/* --- reading tokenizer.json --- */

static status put_token(struct bpe *b, const char *text, int64_t id, const char *source, struct err *e)
{
    struct token *t = &b->tokens[id];

    if (t->used)
        return err_set(e, ERR_FORMAT, "%s: model.vocab: \"%.60s\" and \"%.60s\" both have id %lld", source,
                       bpe_text(b, (int32_t)id), text, (long long)id);
    *t = (struct token){.begin = b->texts.length, .length = (uint32_t)strlen(text), .used = true};
    str_add(&b->texts, text, t->length + 1);
    return OK;
}

static status read_id(int64_t *id, const struct json_t *v, const char *where, const char *text, const char *source, struct err *e)
{
    *id = json_int(v);
    if (!json_is_int(v) || *id < 0 || *id >= IDS_MAX)
        return err_set(e, ERR_FORMAT, "%s: %s: the id of \"%.60s\" is not an integer from 0 to %d", source, where, text,
                       IDS_MAX - 1);
    return OK;
}

static status read_vocabulary(struct bpe *b, const struct json_t *vocab, const struct json_t *added, const char *source,
                              struct err *e)
{
    const char *text;
    int64_t id, most = -1;

    for (int pass = 0; pass < 2; pass++) { /* the largest id first: it sizes the table */
        for (void *i = json_first(vocab); i; i = json_next(vocab, i)) {
            if (read_id(&id, json_member(i), "model.vocab", json_key(i), source, e)) return e->code;
            if (id > most) most = id;
            if (pass && put_token(b, json_key(i), id, source, e)) return e->code;
        }
        for (size_t i = 0; i < json_length(added); i++) {
            const struct json_t *o = json_item(added, i);
            bool special = false;

            if (json_get_text(&text, o, "content", JSON_REQUIRED, source, e) ||
                json_get_int(&id, o, "id", 0, IDS_MAX - 1, JSON_REQUIRED, source, e) ||
                json_get_bool(&special, o, "special", JSON_OPTIONAL, source, e))
                return e->code;
            if (id > most) most = id;
            if (!pass) continue;
            struct token *t = &b->tokens[id];
            if (t->used && strcmp(bpe_text(b, (int32_t)id), text) == 0) { /* known from the vocabulary */
                t->special |= special;
                continue;
            }
            t->used = false; /* an added token takes its id over */
            if (put_token(b, text, id, source, e)) return e->code;
            t->special = special;
            t->literal = true;
        }
        if (most < 0) return err_set(e, ERR_FORMAT, "%s: model.vocab is empty", source);
        if (pass) break;
        b->n_tokens = (int)most + 1;
        b->tokens = calloc((size_t)b->n_tokens, sizeof(*b->tokens));
        BUG_ON(!b->tokens);
    }
    size_t size = table_size((size_t)b->n_tokens);
    b->by_text = malloc(size * sizeof(*b->by_text));
    BUG_ON(!b->by_text);
    memset(b->by_text, -1, size * sizeof(*b->by_text));
    b->by_text_mask = size - 1;
    for (int32_t t = 0; t < b->n_tokens; t++)
        if (b->tokens[t].used && !b->tokens[t].literal) *bpe_find_text(b, bpe_text(b, t), b->tokens[t].length) = t;
    return OK;
}

/* "left right" or ["left", "right"] */
static status read_merge(struct bpe *b, const struct json_t *v, size_t rank, struct str *joined, const char *source,
                         struct err *e)
{
    const char *left = NULL, *right = NULL;
    size_t n_left = 0, n_right = 0;

    if (json_is_text(v)) {
        const char *text = json_text(v), *blank = strchr(text, ' ');

        if (blank && !strchr(blank + 1, ' ')) {
            left = text;
            n_left = (size_t)(blank - text);
            right = blank + 1;
            n_right = strlen(right);
        }
    } else if (json_is_array(v) && json_length(v) == 2 && json_is_text(json_item(v, 0)) && json_is_text(json_item(v, 1))) {
        left = json_text(json_item(v, 0));
        right = json_text(json_item(v, 1));
        n_left = strlen(left);
        n_right = strlen(right);
    }
    if (!n_left || !n_right) return err_set(e, ERR_FORMAT, "%s: model.merges[%zu] is not a pair of tokens", source, rank);
    str_clear(joined);
    str_add(joined, left, n_left);
    str_add(joined, right, n_right);
    int32_t l = *bpe_find_text(b, left, n_left), r = *bpe_find_text(b, right, n_right);
    int32_t result = *bpe_find_text(b, joined->text, joined->length);
    if (l < 0 || r < 0 || result < 0)
        return err_set(e, ERR_FORMAT, "%s: model.merges[%zu]: \"%.60s\" is not in model.vocab", source, rank,
                       l < 0   ? left
                       : r < 0 ? right
                               : joined->text);
    /* Texts come from strangers: none of them may spell a special token. */
    if (!b->tokens[result].special) add_merge(b, l, r, (int32_t)rank, result);
    return OK;
}

static status read_merges(struct bpe *b, const struct json_t *list, const char *source, struct err *e)
{
    size_t n = json_length(list), size = table_size(n);
    struct str joined = {0};
    status s = OK;

    if (n > MERGES_MAX) return err_set(e, ERR_LIMIT, "%s: %zu merges, at most %d are read", source, n, MERGES_MAX);
    b->merges = malloc(size * sizeof(*b->merges));
    BUG_ON(!b->merges);
    b->merges_mask = size - 1;
    for (size_t i = 0; i < size; i++) b->merges[i].pair = UINT64_MAX;
    for (size_t i = 0; i < n && !s; i++) s = read_merge(b, json_item(list, i), i, &joined, source, e);
    str_free(&joined);
    return s;
}

static void find_bytes(struct bpe *b)
{
    for (int i = 0; i < 256; i++) {
        char name[8];
        size_t n = b->byte_level ? utf8_put(name, b->byte_letter[i]) : (size_t)snprintf(name, sizeof(name), "<0x%02X>", i);

        b->byte_id[i] = *bpe_find_text(b, name, n);
    }
}

static status refuse_texts(const struct json_t *model, const char *source, struct err *e)
{
    static const char *const keys[] = {"continuing_subword_prefix", "end_of_word_suffix"};

    for (size_t i = 0; i < 2; i++) {
        const char *text = "";

        if (json_get_text(&text, model, keys[i], JSON_OPTIONAL, source, e)) return e->code;
        if (*text) return err_set(e, ERR_FORMAT, "%s: model.%s \"%.40s\" is not known, expected none", source, keys[i], text);
    }
    return OK;
}

static status read_model(struct bpe *b, const struct json_t *root, const char *source, struct err *e)
{
    const struct json_t *model, *vocab, *merges, *added = NULL;
    const char *type = NULL, *unknown = NULL;
    double dropout = 0;

    if (json_get_object(&model, root, "model", JSON_REQUIRED, source, e) ||
        json_get_text(&type, model, "type", JSON_OPTIONAL, source, e) ||
        json_get_object(&vocab, model, "vocab", JSON_REQUIRED, source, e))
        return e->code;
    if (type && strcmp(type, "BPE"))
        return err_set(e, ERR_FORMAT, "%s: model type \"%.60s\" is not known, expected BPE", source, type);
    if (json_get_array(&merges, model, "merges", JSON_REQUIRED, source, e) ||
        json_get_array(&added, root, "added_tokens", JSON_OPTIONAL, source, e) ||
        json_get_bool(&b->byte_fallback, model, "byte_fallback", JSON_OPTIONAL, source, e) ||
        json_get_bool(&b->fuse_unknown, model, "fuse_unk", JSON_OPTIONAL, source, e) ||
        json_get_bool(&b->ignore_merges, model, "ignore_merges", JSON_OPTIONAL, source, e) ||
        json_get_text(&unknown, model, "unk_token", JSON_OPTIONAL, source, e) ||
        json_get_real(&dropout, model, "dropout", 0, 1, JSON_OPTIONAL, source, e) || refuse_texts(model, source, e) ||
        read_vocabulary(b, vocab, added, source, e) || read_merges(b, merges, source, e))
        return e->code;
    if (dropout > 0) return err_set(e, ERR_FORMAT, "%s: model.dropout is %g, expected none", source, dropout);
    b->unknown = unknown ? *bpe_find_text(b, unknown, strlen(unknown)) : -1;
    if (unknown && b->unknown < 0)
        return err_set(e, ERR_FORMAT, "%s: model.unk_token \"%.60s\" is not in model.vocab", source, unknown);
    find_bytes(b);
    return OK;
}

static status make(struct bpe **out, const struct json_t *root, const char *source, struct err *e)
{
    struct bpe *b = calloc(1, sizeof(*b));

    BUG_ON(!b);
    *out = NULL;
    if (!json_is_object(root)) {
        err_set(e, ERR_FORMAT, "%s: expected a JSON object", source);
        goto fail;
    }
    fill_letters(b);
    if (pretok_open(&b->pretok, root, source, e)) goto fail;
    b->byte_level = pretok_byte_level(b->pretok);
    if (read_model(b, root, source, e)) goto fail;
    *out = b;
    return OK;

fail:
    bpe_close(b);
    return e->code;
}

status bpe_parse(struct bpe **out, const char *text, size_t length, const char *source, struct err *e)
{
    struct json_t *root;

    *out = NULL;
    if (json_parse(&root, text, length, source, e)) return e->code;
    status s = make(out, root, source, e);
    json_free(root);
    return s;
}

status bpe_open(struct bpe **out, const char *path, struct err *e)
{
    struct json_t *root;

    *out = NULL;
    if (json_read(&root, path, JSON_BYTES_MAX, e)) return e->code;
    status s = make(out, root, path, e);
    json_free(root);
    return s;
}

void bpe_close(struct bpe *b)
{
    if (!b) return;
    pretok_close(b->pretok);
    str_free(&b->texts);
    free(b->tokens);
    free(b->by_text);
    free(b->merges);
    free(b);
}

int bpe_vocab(const struct bpe *b)
{
    return b->n_tokens;
}

const char *bpe_kind(const struct bpe *b)
{
    return b->byte_level ? "byte-level BPE" : b->byte_fallback ? "BPE with byte fallback" : "BPE";
}

bool bpe_is_special(const struct bpe *b, int32_t id)
{
    return b->tokens[id].special;
}

bool bpe_has_prefix(const struct bpe *b)
{
    return !b->byte_level && pretok_has_prefix(b->pretok);
}

/* --- ids to text --- */

static bool add_letters(const struct bpe *b, struct str *out, const char *text, size_t length)
{
    size_t before = out->length;

    for (size_t at = 0, step; at < length; at += step) {
        bool valid;

        step = utf8_next(&valid, text + at, length - at);
        uint32_t code = utf8_code(text + at, step);
        if (!valid || code >= BYTE_LETTERS || b->letter_byte[code] < 0) {
            out->length = before; /* not spelled in byte letters: stands for itself */
            return false;
        }
        str_add(out, &(char){(char)b->letter_byte[code]}, 1);
    }
    return true;
}

void bpe_piece(const struct bpe *b, struct str *out, int32_t id)
{
    const struct token *t = &b->tokens[id];
    const char *text, *blank = pretok_blank(b->pretok);
    unsigned byte;
    int read = 0;

    if (!t->used || t->special) return;
    text = bpe_text(b, id);
    if (t->literal) {
        str_add(out, text, t->length);
    } else if (b->byte_level) {
        if (!add_letters(b, out, text, t->length)) str_add(out, text, t->length);
    } else if (b->byte_fallback && t->length == 6 && sscanf(text, "<0x%2X>%n", &byte, &read) == 1 && read == 6) {
        str_add(out, &(char){(char)byte}, 1);
    } else {
        for (size_t at = 0; at < t->length;) {
            size_t n = strlen(blank);
            bool is_blank = n && t->length - at >= n && memcmp(text + at, blank, n) == 0;

            str_add(out, is_blank ? " " : text + at, 1);
            at += is_blank ? n : 1;
        }
    }
}
