/* A tokenizer.json from anybody: an error, or a tokenizer whose ids are in range and whose text comes back as valid UTF-8. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer_parts.h"
#include "data/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "The mill's  water\n\n turns 1234 \xC3\xA9 e\xCC\x81 \xF0\x9F\x98\x80 <s>";
    struct bpe *b;
    struct ids ids = {0};
    struct str out = {0};
    struct err e = {0};

    if (bpe_parse(&b, (const char *)data, size, "fuzz", &e)) {
        BUG_ON(b || !e.code || !*e.text);
        return 0;
    }
    status s = bpe_encode(b, &ids, text, strlen(text), &e);
    BUG_ON(s && s != ERR_LIMIT);
    for (size_t i = 0; i < ids.n && !s; i++) {
        BUG_ON(ids.id[i] < 0 || ids.id[i] >= bpe_vocab(b) || bpe_is_special(b, ids.id[i]) > 1);
        bpe_piece(b, &out, ids.id[i]);
    }
    for (int32_t i = 0; i < bpe_vocab(b) && i < 500; i++) bpe_piece(b, &out, i);
    free(ids.id);
    str_free(&out);
    bpe_close(b);
    return 0;
}
