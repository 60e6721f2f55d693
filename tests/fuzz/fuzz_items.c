/* Lines of evaluation items from anybody, as pairs and as questions. */
#include <stdint.h>
#include <string.h>

#include "jobs/eval.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int as = ITEMS_PAIRS; as <= ITEMS_LAST_WORDS; as++) {
        struct items items = {0};
        const char *at = (const char *)data, *end = at + size;
        int line = 0;

        while (at < end) {
            const char *stop = memchr(at, '\n', (size_t)(end - at));
            size_t n = (size_t)((stop ? stop : end) - at), before = items.n;
            struct err e = {0};
            status s = items_parse_line(&items, at, n, "fuzz", ++line, (enum item_file)as, 3, &e);

            BUG_ON(s && (strncmp(e.text, "fuzz:", 5) != 0 || items.n != before));
            at += n + 1;
        }
        for (size_t i = 0; i < items.n; i++) {
            const struct item *item = &items.item[i];

            BUG_ON(item->n < 1 || item->n > ITEM_CHOICES_MAX || item->answer < 0 || item->answer >= item->n);
            BUG_ON(item->set < 0 || item->set >= items.n_sets || (item->kind != ITEM_PAIR) != (item->context != NULL));
        }
        items_free(&items);
    }
    return 0;
}
