/* Placement files. */
#include <stdint.h>
#include <stdlib.h>

#include "data/placement_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = {0};
    int *table;

    if (placement_file_parse(&table, (const char *)data, size, "fuzz", 2, 3, 2, &e)) {
        BUG_ON(table || !*e.text);
        return 0;
    }
    for (int i = 0; i < 6; i++) BUG_ON(table[i] < 0 || table[i] > 1);
    free(table);
    return 0;
}
