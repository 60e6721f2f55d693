/* A tokenizer.model from anybody: refused by our check or by the library, or a tokenizer that works. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/sentencepiece.h"
#include "data/tokenizer_parts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] =
        "The mill's  water\n\n turns 1234 \xC3\xA9 e\xCC\x81 \xC2\xA0 \xC2\xBD \xEF\xAC\x81 \xF0\x9F\x98\x80 <s>";
    struct sentencepiece_facts facts;
    struct sentencepiece_model *s;
    struct err e = {0};
    char why[256];
    int32_t *ids;
    size_t n, length;

    if (sentencepiece_check(&facts, data, size, "fuzz", &e)) {
        BUG_ON(!e.code || !*e.text);
        return 0;
    }
    if (sentencepiece_open(&s, data, size, why, sizeof(why))) return 0;
    if (sentencepiece_encode(s, &ids, &n, text, strlen(text), why, sizeof(why)) == 0) {
        for (size_t i = 0; i < n; i++) {
            BUG_ON(ids[i] < 0 || ids[i] >= sentencepiece_vocab(s));
            BUG_ON(!sentencepiece_piece(s, ids[i], &length));
        }
        free(ids);
    }
    sentencepiece_close(s);
    return 0;
}
