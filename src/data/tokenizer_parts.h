/* Private to the tokenizers: the two kinds behind tokenizer.h, and the steps before BPE. */
#ifndef DATA_TOKENIZER_PARTS_H
#define DATA_TOKENIZER_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct json_t;

/* Ids that a text gives; grows as needed. */
struct ids {
    int32_t *id;
    size_t n, room;
};
void ids_add(struct ids *to, int32_t id);

/* --- bpe.c: tokenizer.json --- */
struct bpe;
status bpe_open(struct bpe **out, const char *path, struct err *e);
status bpe_parse(struct bpe **out, const char *text, size_t length, const char *source, struct err *e);
void bpe_close(struct bpe *b);
int bpe_vocab(const struct bpe *b);
const char *bpe_kind(const struct bpe *b);
/* text: valid UTF-8 */
status bpe_encode(const struct bpe *b, struct ids *out, const char *text, size_t length, struct err *e);
void bpe_piece(const struct bpe *b, struct str *out, int32_t id);
bool bpe_is_special(const struct bpe *b, int32_t id);
bool bpe_has_prefix(const struct bpe *b); /* a blank is put in front of every text, and taken away after decoding */

/* --- pretokenize.c: normalizer and pre-tokenizer of tokenizer.json --- */
struct pretok;

/* A text cut into pieces: piece i is text[end of i-1 .. end[i]).  Pieces are never empty. */
struct pieces {
    struct str text;
    size_t *end;
    size_t n, room;
    bool from_start; /* the first piece begins where the text begins: nothing was removed before it */
};
void pieces_free(struct pieces *p);

/* root: the whole tokenizer.json.  ERR_FORMAT naming a type or an option that we do not know. */
status pretok_open(struct pretok **out, const struct json_t *root, const char *source, struct err *e);
void pretok_close(struct pretok *p);
status pretok_run(const struct pretok *p, struct pieces *out, const char *text, size_t length, struct err *e);
bool pretok_byte_level(const struct pretok *p);
bool pretok_has_prefix(const struct pretok *p);
const char *pretok_blank(const struct pretok *p); /* what a blank becomes (U+2581), "" if it stays */

/* --- sentencepiece_check.c: what can be said about a tokenizer.model without the library --- */
struct sentencepiece_facts {
    int model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    size_t pieces;
    bool dummy_prefix, squeeze;
};
/* The library trusts a model file: a hostile one makes it read out of bounds.  ERR_FORMAT for what no trainer writes. */
status sentencepiece_check(struct sentencepiece_facts *f, const void *bytes, size_t length, const char *source, struct err *e);

#endif
