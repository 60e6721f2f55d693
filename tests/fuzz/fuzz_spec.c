/* Job specs from anybody: an error or a spec that survives printing and packing. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spec *s, *again, *arrived;
    struct str first = {0}, second = {0};
    struct err e = {0};
    uint8_t *bytes;
    size_t n;

    if (spec_parse(&s, (const char *)data, size, "fuzz", NULL, 0, &e)) {
        BUG_ON(s || e.code != ERR_SPEC || !*e.text);
        return 0;
    }
    spec_dump(&first, s);
    BUG_ON(spec_parse(&again, first.text, first.length, "dump", NULL, 0, &e));
    spec_dump(&second, again);
    BUG_ON(strcmp(first.text, second.text) != 0);
    spec_pack(&bytes, &n, s);
    BUG_ON(spec_unpack(&arrived, bytes, n, &e));
    str_clear(&second);
    spec_dump(&second, arrived);
    BUG_ON(strcmp(first.text, second.text) != 0);
    free(bytes);
    spec_free(s);
    spec_free(again);
    spec_free(arrived);
    str_free(&first);
    str_free(&second);
    return 0;
}
