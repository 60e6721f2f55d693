#include "data/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/sentencepiece.h"
#include "data/tokenizer_parts.h"
#include "data/utf8.h"

#define BLANK "\xE2\x96\x81" /* U+2581, a blank in SentencePiece's pieces */

enum { MODEL_BYTES_MAX = 256 << 20 };

struct tokenizer {
    struct sentencepiece_model *sentencepiece; /* one of the two */
    struct bpe *bpe;
    struct sentencepiece_facts facts;
};

void ids_add(struct ids *to, int32_t id)
{
    if (to->n == to->room) {
        to->room = to->room ? 2 * to->room : 64;
        to->id = realloc(to->id, to->room * sizeof(*to->id));
        BUG_ON(!to->id);
    }
    to->id[to->n++] = id;
}

static status open_sentencepiece(struct tokenizer *t, const char *path, struct err *e)
{
    char *bytes = NULL, why[256];
    size_t length;

    if (file_read(&bytes, &length, path, MODEL_BYTES_MAX, e)) return e->code;
    if (!sentencepiece_check(&t->facts, bytes, length, path, e) &&
        sentencepiece_open(&t->sentencepiece, bytes, length, why, sizeof(why)))
        err_set(e, ERR_FORMAT, "%s: %s", path, why);
    free(bytes);
    return t->sentencepiece ? OK : e->code;
}

status tokenizer_open(struct tokenizer **out, const char *directory, struct err *e)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    char *model = str_join(directory, "tokenizer.model"), *json = str_join(directory, "tokenizer.json");
    status s;

    BUG_ON(!t);
    *out = NULL;
    if (file_exists(model)) s = open_sentencepiece(t, model, e);
    else if (file_exists(json)) s = bpe_open(&t->bpe, json, e);
    else s = err_set(e, ERR_IO, "%s: has neither tokenizer.model nor tokenizer.json", directory);
    free(model);
    free(json);
    if (s) tokenizer_close(t);
    else *out = t;
    return s;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    sentencepiece_close(t->sentencepiece);
    bpe_close(t->bpe);
    free(t);
}

int tokenizer_vocab(const struct tokenizer *t)
{
    return t->bpe ? bpe_vocab(t->bpe) : sentencepiece_vocab(t->sentencepiece);
}

const char *tokenizer_kind(const struct tokenizer *t)
{
    static const char *const kinds[] = {"", "SentencePiece unigram", "SentencePiece BPE", "SentencePiece word",
                                        "SentencePiece characters"};

    return t->bpe ? bpe_kind(t->bpe) : kinds[t->facts.model_type];
}

status tokenizer_encode(const struct tokenizer *t, int32_t **ids, size_t *n, const char *text, size_t length, struct err *e)
{
    struct str clean = {0};
    struct ids got = {0};
    char why[256];
    status s = OK;

    *ids = NULL;
    *n = 0;
    if (length > INT32_MAX / 4)
        return err_set(e, ERR_LIMIT, "a text of %zu bytes, at most %d are tokenized at once", length, INT32_MAX / 4);
    if (!utf8_valid(text, length)) {
        utf8_clean(&clean, text, length);
        text = clean.text;
        length = clean.length;
    }
    if (t->bpe) {
        s = bpe_encode(t->bpe, &got, text, length, e);
    } else if (sentencepiece_encode(t->sentencepiece, &got.id, &got.n, text, length, why, sizeof(why))) {
        s = err_set(e, ERR_LIMIT, "a text of %zu bytes cannot be tokenized: %s", length, why);
    }
    str_free(&clean);
    if (s || !got.n) {
        free(got.id);
        return s;
    }
    *ids = got.id;
    *n = got.n;
    return OK;
}

/* Appends `piece` with every U+2581 as a blank. */
static void add_blanks(struct str *out, const char *piece, size_t length)
{
    while (length) {
        const char *blank = memmem(piece, length, BLANK, 3);
        size_t before = blank ? (size_t)(blank - piece) : length;

        str_add(out, piece, before);
        if (!blank) return;
        str_add(out, " ", 1);
        piece += before + 3;
        length -= before + 3;
    }
}

void tokenizer_piece(const struct tokenizer *t, struct str *out, int32_t id)
{
    size_t length;
    unsigned byte;

    if (id < 0 || id >= tokenizer_vocab(t) || tokenizer_is_special(t, id)) return;
    if (t->bpe) {
        bpe_piece(t->bpe, out, id);
        return;
    }
    const char *piece = sentencepiece_piece(t->sentencepiece, id, &length);
    if (sentencepiece_type(t->sentencepiece, id) == PIECE_BYTE && sscanf(piece, "<0x%2X>", &byte) == 1) {
        str_add(out, &(char){(char)byte}, 1);
        return;
    }
    add_blanks(out, piece, length);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || id >= tokenizer_vocab(t)) return false;
    return t->bpe ? bpe_is_special(t->bpe, id) : sentencepiece_type(t->sentencepiece, id) == PIECE_SPECIAL;
}

void tokenizer_decode(const struct tokenizer *t, struct str *out, const int32_t *ids, size_t n)
{
    bool prefix = t->bpe ? bpe_has_prefix(t->bpe) : t->facts.dummy_prefix || t->facts.squeeze;
    bool all = !t->bpe && t->facts.squeeze; /* a tokenizer that squeezes blanks has none at the start */
    struct str raw = {0};
    size_t from = 0;

    for (size_t i = 0; i < n; i++) tokenizer_piece(t, &raw, ids[i]);
    while (prefix && from < raw.length && raw.text[from] == ' ' && (all || from == 0)) from++;
    if (raw.length > from) utf8_clean(out, raw.text + from, raw.length - from);
    str_free(&raw);
}
