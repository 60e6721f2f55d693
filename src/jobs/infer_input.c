#include "jobs/infer_input.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"

static const size_t input_bytes_max = (size_t)4 << 30;
enum { LINE_BYTES_MAX = 64 << 20 };

void infer_input_source(struct str *out, const struct infer_input *in, int64_t number)
{
    str_clear(out);
    str_addf(out, "%s line %lld", in->path, (long long)number);
}

void infer_input_init(struct infer_input *in, const struct spec *s)
{
    *in = (struct infer_input){.path = s->infer.input};
    in->defaults = (struct sampling){.temperature = s->infer.temperature,
                                     .top_k = (int)s->infer.top_k,
                                     .top_p = s->infer.top_p,
                                     .min_p = s->infer.min_p,
                                     .seed = (uint64_t)s->seed,
                                     .max_tokens = (int)s->infer.max_tokens,
                                     .stop = (const char *const *)s->infer.stop.items,
                                     .n_stop = s->infer.stop.n,
                                     .ignore_eos = s->infer.ignore_eos};
}

static bool is_blank(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!strchr(" \t\r", text[i]) || !text[i]) return false;
    return true;
}

static void add_line(struct infer_input *in, size_t at, size_t length, int64_t number)
{
    if (in->n == in->room) {
        in->room = in->room ? 2 * in->room : 256;
        in->line = realloc(in->line, in->room * sizeof(*in->line));
        BUG_ON(!in->line);
    }
    in->line[in->n++] = (struct infer_line){.at = at, .length = length, .number = number};
}

static status split_input(struct infer_input *in, struct err *e)
{
    size_t at = in->length >= 3 && memcmp(in->text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0; /* a byte order mark */

    for (int64_t number = 1; at < in->length; number++) {
        const char *end = memchr(in->text + at, '\n', in->length - at);
        size_t length = end ? (size_t)(end - in->text) - at : in->length - at;

        if (length > LINE_BYTES_MAX)
            return err_set(e, ERR_LIMIT, "%s line %lld: is %zu bytes long, at most %d are read", in->path, (long long)number,
                           length, LINE_BYTES_MAX);
        if (!is_blank(in->text + at, length)) add_line(in, at, length, number);
        at += length + 1;
    }
    if (!in->n) return err_set(e, ERR_FORMAT, "%s: expected at least one request, found none", in->path);
    return OK;
}

static int by_key(const void *a, const void *b)
{
    const struct infer_line *l = *(struct infer_line *const *)a, *m = *(struct infer_line *const *)b;
    int order = strcmp(l->key, m->key);

    if (order) return order;
    return l->number < m->number ? -1 : l->number > m->number;
}

/* Ids of all lines; the first line with a form decides how lines without one are answered. */
static status read_ids(struct infer_input *in, struct err *e)
{
    struct str source = {0};
    bool form_known = false;
    status s = OK;

    for (size_t i = 0; i < in->n; i++) {
        struct infer_line *l = &in->line[i];
        struct infer_request r;
        struct err ignored; /* it comes again when the line is submitted */

        infer_input_source(&source, in, l->number);
        bool good = !infer_parse(&r, in->text + l->at, l->length, source.text, l->number, &in->defaults, in->batch, &ignored);

        l->key = str_dup(r.key);
        if (good && !form_known) in->batch = r.batch;
        form_known |= good;
        infer_request_clear(&r);
        if (i % 1024 == 0 && in->alive) in->alive(in->alive_ctx);
    }
    str_free(&source);

    in->by_key = malloc(in->n * sizeof(struct infer_line *));
    if (!in->by_key) return err_set(e, ERR_LIMIT, "out of memory for %zu requests", in->n);
    for (size_t i = 0; i < in->n; i++) in->by_key[i] = &in->line[i];
    qsort(in->by_key, in->n, sizeof(*in->by_key), by_key);
    for (size_t i = 1; i < in->n && !s; i++)
        if (strcmp(in->by_key[i - 1]->key, in->by_key[i]->key) == 0)
            s = err_set(e, ERR_FORMAT, "%s: lines %lld and %lld have the same id %.200s", in->path,
                        (long long)in->by_key[i - 1]->number, (long long)in->by_key[i]->number, in->by_key[i]->key);
    return s;
}

status infer_input_read(struct infer_input *in, struct err *e)
{
    if (file_read(&in->text, &in->length, in->path, input_bytes_max, e)) return e->code;
    if (split_input(in, e)) return e->code;
    return read_ids(in, e);
}

struct infer_line *infer_input_find(const struct infer_input *in, const char *key)
{
    size_t low = 0, high = in->n;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (strcmp(in->by_key[middle]->key, key) < 0) low = middle + 1;
        else high = middle;
    }
    return low < in->n && !strcmp(in->by_key[low]->key, key) ? in->by_key[low] : NULL;
}

int64_t infer_input_longest(const struct infer_input *in, const struct tokenizer *t)
{
    struct str source = {0};
    int64_t longest = 0;

    for (size_t i = 0; i < in->n; i++) {
        const struct infer_line *l = &in->line[i];
        struct infer_request r;
        struct err ignored;
        int32_t *ids = NULL;
        size_t n;

        infer_input_source(&source, in, l->number);
        if (!infer_parse(&r, in->text + l->at, l->length, source.text, l->number, &in->defaults, in->batch, &ignored) &&
            !tokenizer_encode(t, &ids, &n, r.prompt, r.prompt_length, &ignored)) {
            int64_t all = (int64_t)n + 1 + r.how.max_tokens; /* 1: the BOS */

            if (all > longest) longest = all;
        }
        free(ids);
        infer_request_clear(&r);
        if (i % 256 == 0 && in->alive) in->alive(in->alive_ctx);
    }
    str_free(&source);
    return longest;
}

void infer_input_free(struct infer_input *in)
{
    for (size_t i = 0; i < in->n; i++) {
        if (in->line[i].request) infer_request_clear(in->line[i].request);
        free(in->line[i].request);
        free(in->line[i].key);
    }
    free(in->line);
    free(in->by_key);
    free(in->text);
    *in = (struct infer_input){0};
}
