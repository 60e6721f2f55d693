/* A line of a request file; what is accepted must make sense, and its rows must read back. */
#include <stdlib.h>
#include <string.h>

#include "jobs/infer_rows.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_row(const struct str *row, const char *key, bool wanted)
{
    struct err e;
    char *read;
    bool ok;

    BUG_ON(memchr(row->text, '\n', row->length) != row->text + row->length - 1);
    BUG_ON(infer_read_row(&read, &ok, row->text, row->length - 1, "ROW", &e));
    BUG_ON(strcmp(read, key) != 0 || ok != wanted);
    free(read);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct sampling defaults = {.temperature = 1, .top_p = 1, .max_tokens = 1};
    const struct sequence s = {.finish = FINISH_LENGTH, .text = (const char *)data, .text_length = size};
    struct infer_request r;
    struct str row = {0};
    struct err e = {0};

    if (infer_parse(&r, (const char *)data, size, "FUZZ line 1", 1, &defaults, size % 2, &e)) {
        BUG_ON(!e.text[0] || strncmp(e.text, "FUZZ line 1", 11) != 0);
        infer_add_error(&row, &r, e.text);
        check_row(&row, r.key, false);
    } else {
        BUG_ON(!r.prompt || r.how.max_tokens < 1 || r.how.temperature < 0 || r.how.top_k < 0 || r.how.n_stop > INFER_STOPS_MAX);
        infer_add_answer(&row, &r, &s, "model");
        check_row(&row, r.key, true);
        str_clear(&row);
        infer_show(&row, r.prompt, r.prompt_length, s.text, s.text_length, (int)(size % 100));
        for (size_t i = 0; i < row.length; i++) BUG_ON((unsigned char)row.text[i] < 0x20 || row.text[i] == 0x7f);
    }
    infer_request_clear(&r);
    str_free(&row);
    return 0;
}
