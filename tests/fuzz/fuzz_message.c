/* The broadcast spec: any bytes give an error or a valid spec. */
#include <stdint.h>

#include "data/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spec *s, *again;
    struct str text = {0};
    struct err e = {0};

    if (spec_unpack(&s, data, size, &e)) {
        BUG_ON(s || e.code != ERR_SPEC || !*e.text);
        return 0;
    }
    spec_dump(&text, s);
    BUG_ON(spec_parse(&again, text.text, text.length, "dump", NULL, 0, &e));
    spec_free(s);
    spec_free(again);
    str_free(&text);
    return 0;
}
