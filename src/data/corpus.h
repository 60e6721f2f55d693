/* Text as windows of tokens, by one convention (the usual one; see the perplexity definition in src/README.md):
 * the text (or its first `bytes` bytes, cut back to a whole character) is tokenized once, without BOS: t_0 .. t_{M-1}; it is cut into
 * windows of N tokens, the last may be shorter.  Window c has input [BOS, c_0 .. c_{n-2}] and targets [c_0 .. c_{n-1}]. */
#ifndef DATA_CORPUS_H
#define DATA_CORPUS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "data/tokenizer.h"

struct corpus {
    int32_t *tokens; /* without BOS */
    size_t n_tokens, bytes;
    char digest[65]; /* SHA-256 of the bytes, hex */
};

status corpus_read(struct corpus *c, const char *path, size_t bytes /* 0: all */, const struct tokenizer *t, struct err *e);
/* The same from tokens made elsewhere (copied); the digest is of the token ids. */
void corpus_from_tokens(struct corpus *c, const int32_t *tokens, size_t n_tokens, size_t bytes);
void corpus_free(struct corpus *c);

size_t corpus_windows(const struct corpus *c, int window);
/* Fills input and target (each room for `window`) and returns the number of positions n of window i. */
int corpus_window(const struct corpus *c, int window, size_t i, int32_t bos, int32_t *input, int32_t *target);

#endif
