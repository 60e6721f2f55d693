/* A text through the steps of a pre-tokenizer: pieces in, pieces out. */
#include "data/pretokenize_internal.h"

#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"

enum { MATCH_LIMIT = 10000000, MATCH_HEAP_KIB = 256 << 10 };

void pieces_free(struct pieces *p)
{
    str_free(&p->text);
    free(p->end);
    *p = (struct pieces){0};
}

static void end_piece(struct pieces *p)
{
    if (p->text.length == (p->n ? p->end[p->n - 1] : 0)) return;
    if (p->n == p->room) {
        p->room = p->room ? 2 * p->room : 64;
        p->end = realloc(p->end, p->room * sizeof(*p->end));
        BUG_ON(!p->end);
    }
    p->end[p->n++] = p->text.length;
}

static void put_piece(struct pieces *p, const char *text, size_t length)
{
    str_add(&p->text, text, length);
    end_piece(p);
}

static void add_replaced(struct str *out, const char *text, size_t length, const char *from, const char *to)
{
    size_t n = strlen(from);

    while (length) {
        const char *hit = memmem(text, length, from, n);
        size_t before = hit ? (size_t)(hit - text) : length;

        str_add(out, text, before);
        if (!hit) return;
        str_addz(out, to);
        text += before + n;
        length -= before + n;
    }
}

static bool starts_with(const char *text, size_t length, const char *with)
{
    size_t n = strlen(with);

    return length >= n && memcmp(text, with, n) == 0;
}

static void run_metaspace(const struct step *s, struct pieces *out, const char *text, size_t length, bool first)
{
    struct str t = {0};
    size_t n = strlen(s->a), begin = 0;

    add_replaced(&t, text, length, " ", s->a);
    if (!starts_with(t.text, t.length, s->a) && (s->scheme == SCHEME_ALWAYS || (s->scheme == SCHEME_FIRST && first)))
        str_addz(&out->text, s->a);
    if (s->split) { /* a piece begins at every blank; one in front that was just added belongs to the first */
        for (size_t at = 0; at < t.length;) {
            bool blank = starts_with(t.text + at, t.length - at, s->a);

            if (blank && at > begin) {
                put_piece(out, t.text + begin, at - begin);
                begin = at;
            }
            at += blank ? n : 1;
        }
    }
    put_piece(out, t.text + begin, t.length - begin);
    str_free(&t);
}

static status run_unicode(const struct step *s, struct pieces *out, const char *text, size_t length, struct err *e)
{
    utf8proc_uint8_t *got = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &got, s->options);

    if (n < 0) return err_set(e, ERR_LIMIT, "a text of %zu bytes cannot be normalized: %s", length, utf8proc_errmsg(n));
    put_piece(out, (const char *)got, (size_t)n);
    free(got);
    return OK;
}

/* The next match at or behind `from`: found with its borders, or not. */
static status next_match(bool *found, size_t *begin, size_t *end, const struct step *s, pcre2_match_data *data,
                         pcre2_match_context *context, const char *text, size_t length, size_t from, struct err *e)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int got = pcre2_match(s->pattern, subject, length, from, PCRE2_NO_UTF_CHECK, data, context);

    if (got == PCRE2_ERROR_JIT_STACKLIMIT)
        got = pcre2_match(s->pattern, subject, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    *found = got > 0;
    if (got == PCRE2_ERROR_NOMATCH) return OK;
    if (got <= 0) {
        char why[128] = "";

        pcre2_get_error_message(got, (PCRE2_UCHAR *)why, sizeof(why));
        return err_set(e, ERR_LIMIT, "the tokenizer's Split pattern fails on a text of %zu bytes: %s", length, why);
    }
    *begin = pcre2_get_ovector_pointer(data)[0];
    *end = pcre2_get_ovector_pointer(data)[1];
    if (*end < *begin) *begin = *end; /* \K in a lookahead */
    return OK;
}

static status run_split(const struct step *s, struct pieces *out, pcre2_match_data *data, pcre2_match_context *context,
                        const char *text, size_t length, struct err *e)
{
    size_t done = 0, from = 0;

    while (from < length) {
        bool found;
        size_t begin = length, end = length;

        if (next_match(&found, &begin, &end, s, data, context, text, length, from, e)) return e->code;
        if (!found) break;
        if (begin < done) begin = done; /* \K or lookbehind tricks */
        if (end <= begin) {             /* an empty match cuts nothing: look on behind the next character */
            bool valid;

            from = (end > from ? end : from);
            if (from < length) from += utf8_next(&valid, text + from, length - from);
            continue;
        }
        if (s->keep_rest && begin > done) put_piece(out, text + done, begin - done);
        if (s->keep_matches) put_piece(out, text + begin, end - begin);
        done = from = end;
    }
    if (s->keep_rest && length > done) put_piece(out, text + done, length - done);
    return OK;
}

static status run_step(const struct step *s, struct pieces *out, const struct pieces *in, struct err *e)
{
    pcre2_match_data *data = NULL;
    pcre2_match_context *context = NULL;
    status error = OK;

    if (s->kind == STEP_SPLIT) {
        data = pcre2_match_data_create(1, NULL);
        context = pcre2_match_context_create(NULL);
        BUG_ON(!data || !context);
        pcre2_set_match_limit(context, MATCH_LIMIT);
        pcre2_set_heap_limit(context, MATCH_HEAP_KIB);
    }
    for (size_t i = 0; i < in->n && !error; i++) {
        size_t begin = i ? in->end[i - 1] : 0, length = in->end[i] - begin;
        const char *text = in->text.text + begin;

        switch (s->kind) {
        case STEP_PREPEND:
            str_addz(&out->text, s->a);
            put_piece(out, text, length);
            break;
        case STEP_REPLACE:
            add_replaced(&out->text, text, length, s->a, s->b);
            end_piece(out);
            break;
        case STEP_UNICODE:
            error = run_unicode(s, out, text, length, e);
            break;
        case STEP_METASPACE:
            run_metaspace(s, out, text, length, i == 0 && in->from_start);
            break;
        case STEP_PREFIX:
            if (text[0] != ' ') str_add(&out->text, " ", 1);
            put_piece(out, text, length);
            break;
        case STEP_SPLIT:
            error = run_split(s, out, data, context, text, length, e);
            break;
        }
        if (out->text.length > INT32_MAX)
            error = err_set(e, ERR_LIMIT, "a text grows over %d bytes before it is tokenized", INT32_MAX);
    }
    /* With something removed it is no longer known whether the first piece is the text's start. */
    out->from_start = in->from_start && (s->kind != STEP_SPLIT || (s->keep_matches && s->keep_rest));
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    return error;
}

status pretok_run(const struct pretok *p, struct pieces *out, const char *text, size_t length, struct err *e)
{
    struct pieces now = {.from_start = true}, next = {0};

    *out = (struct pieces){0};
    put_piece(&now, text, length);
    for (int i = 0; i < p->n; i++) {
        str_clear(&next.text);
        next.n = 0;
        if (run_step(&p->steps[i], &next, &now, e)) {
            pieces_free(&now);
            pieces_free(&next);
            return e->code;
        }
        struct pieces swap = now;
        now = next;
        next = swap;
    }
    pieces_free(&next);
    *out = now;
    return OK;
}
