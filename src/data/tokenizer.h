/* Tokenizers: SentencePiece's tokenizer.model through its library, Hugging Face's tokenizer.json (BPE) through ours.
 *
 * Ids never include BOS; whoever builds a sequence puts it in front.  Special tokens are not looked for in the text: "<s>" in a
 * text is three characters, because texts come from strangers.
 * Invalid UTF-8: every maximal invalid part (data/utf8.h) becomes U+FFFD before tokenizing, so encode never fails on bytes.
 * Threads: one at a time.
 */
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct tokenizer;

/* tokenizer.model if the directory has one, else tokenizer.json.  ERR_IO, ERR_FORMAT (also: a kind we do not know, by name). */
status tokenizer_open(struct tokenizer **out, const char *directory, struct err *e);
void tokenizer_close(struct tokenizer *t);

int tokenizer_vocab(const struct tokenizer *t);        /* ids are 0 .. vocab-1, added tokens included */
const char *tokenizer_kind(const struct tokenizer *t); /* "SentencePiece BPE", "SentencePiece unigram", "byte-level BPE", ... */

/* *ids is malloc'ed (NULL when *n is 0).  ERR_LIMIT for more than INT32_MAX / 4 bytes. */
status tokenizer_encode(const struct tokenizer *t, int32_t **ids, size_t *n, const char *text, size_t length, struct err *e);
/* Appends the text of the ids; ids outside the vocabulary and special tokens give nothing.  The dummy prefix of SentencePiece-like
 * tokenizers is removed at the start, bytes are joined, invalid UTF-8 becomes U+FFFD. */
void tokenizer_decode(const struct tokenizer *t, struct str *out, const int32_t *ids, size_t n);

/* The raw bytes of one token, for tooling and streaming: no prefix removal, no replacement.  May be empty. */
void tokenizer_piece(const struct tokenizer *t, struct str *out, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

#endif
