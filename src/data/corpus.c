#include "data/corpus.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/digest.h"
#include "data/utf8.h"

status corpus_read(struct corpus *c, const char *path, size_t bytes, const struct tokenizer *t, struct err *e)
{
    char *text;
    size_t length;

    *c = (struct corpus){0};
    if (file_read(&text, &length, path, INT32_MAX / 4, e)) return e->code;
    if (bytes && bytes < length) length = utf8_whole(text, bytes);
    c->bytes = length;
    digest_bytes(c->digest, text, length);
    status s = tokenizer_encode(t, &c->tokens, &c->n_tokens, text, length, e);
    free(text);
    if (!s && !c->n_tokens) s = err_set(e, ERR_FORMAT, "%s: gives no tokens", path);
    if (s) corpus_free(c);
    return s;
}

void corpus_from_tokens(struct corpus *c, const int32_t *tokens, size_t n_tokens, size_t bytes)
{
    *c = (struct corpus){.n_tokens = n_tokens, .bytes = bytes};
    if (n_tokens) {
        c->tokens = malloc(n_tokens * sizeof(*tokens));
        BUG_ON(!c->tokens);
        memcpy(c->tokens, tokens, n_tokens * sizeof(*tokens));
    }
    digest_bytes(c->digest, tokens, n_tokens * sizeof(*tokens));
}

void corpus_free(struct corpus *c)
{
    free(c->tokens);
    *c = (struct corpus){0};
}

size_t corpus_windows(const struct corpus *c, int window)
{
    BUG_ON(window < 1);
    return (c->n_tokens + (size_t)window - 1) / (size_t)window;
}

int corpus_window(const struct corpus *c, int window, size_t i, int32_t bos, int32_t *input, int32_t *target)
{
    BUG_ON(i >= corpus_windows(c, window));
    size_t begin = i * (size_t)window, n = c->n_tokens - begin;

    if (n > (size_t)window) n = (size_t)window;
    memcpy(target, c->tokens + begin, n * sizeof(*target));
    input[0] = bos;
    memcpy(input + 1, c->tokens + begin, (n - 1) * sizeof(*input));
    return (int)n;
}
