#include "jobs/infer_rows.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* What a body may say beside the prompt.  NEUTRAL_ANY changes nothing for us; the others must have the one value that means
 * "not used". */
enum neutral { PARAMETER, NEUTRAL_ANY, NEUTRAL_FALSE, NEUTRAL_ZERO, NEUTRAL_ONE, NEUTRAL_EMPTY };

static const struct {
    const char *key;
    enum neutral neutral;
} keys[] = {
    {"prompt", PARAMETER},
    {"messages", PARAMETER},
    {"max_tokens", PARAMETER},
    {"max_completion_tokens", PARAMETER},
    {"temperature", PARAMETER},
    {"top_p", PARAMETER},
    {"top_k", PARAMETER},
    {"min_p", PARAMETER},
    {"seed", PARAMETER},
    {"stop", PARAMETER},
    {"ignore_eos", PARAMETER},
    {"model", NEUTRAL_ANY},
    {"user", NEUTRAL_ANY},
    {"metadata", NEUTRAL_ANY},
    {"store", NEUTRAL_ANY},
    {"service_tier", NEUTRAL_ANY},
    {"n", NEUTRAL_ONE},
    {"best_of", NEUTRAL_ONE},
    {"repetition_penalty", NEUTRAL_ONE},
    {"stream", NEUTRAL_FALSE},
    {"echo", NEUTRAL_FALSE},
    {"logprobs", NEUTRAL_FALSE},
    {"top_logprobs", NEUTRAL_ZERO},
    {"presence_penalty", NEUTRAL_ZERO},
    {"frequency_penalty", NEUTRAL_ZERO},
    {"logit_bias", NEUTRAL_EMPTY},
    {"suffix", NEUTRAL_EMPTY},
    {"tools", NEUTRAL_EMPTY},
};
enum { N_KEYS = sizeof(keys) / sizeof(keys[0]) };

static char *copy_text(const char *text, size_t length)
{
    char *copy = malloc(length + 1);

    BUG_ON(!copy);
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

static uint64_t hash_text(const char *text) /* FNV-1a */
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

static bool is_neutral(const struct json_t *v, enum neutral how)
{
    switch (how) {
    case NEUTRAL_FALSE:
        return !json_is_int(v) && !json_is_real(v) && !json_is_text(v) && !json_is_array(v) && !json_is_object(v) &&
               !json_bool(v);
    case NEUTRAL_ZERO:
        return json_is_real(v) && json_number(v) == 0;
    case NEUTRAL_ONE:
        return json_is_real(v) && json_number(v) == 1;
    case NEUTRAL_EMPTY:
        return json_is_text(v) ? json_text_length(v) == 0 : (json_is_array(v) || json_is_object(v)) && json_length(v) == 0;
    case PARAMETER:
    case NEUTRAL_ANY:
        break;
    }
    return true;
}

static status check_keys(const struct json_t *body, bool plain, const char *source, struct err *e)
{
    static const char *const neutral_value[] = {
        [NEUTRAL_FALSE] = "false", [NEUTRAL_ZERO] = "0", [NEUTRAL_ONE] = "1", [NEUTRAL_EMPTY] = "nothing"};
    const char *names[N_KEYS];

    for (int i = 0; i < N_KEYS; i++) names[i] = keys[i].key;
    for (void *m = json_first(body); m; m = json_next(body, m)) {
        const char *key = json_key(m);
        int i = 0;

        while (i < N_KEYS && strcmp(key, keys[i].key) != 0) i++;
        if (i == N_KEYS) {
            if (plain && strcmp(key, "id") == 0) continue;
            const char *near = str_nearest(key, names, N_KEYS);

            return err_set(e, ERR_FORMAT, "%s: %.64s: unknown parameter%s%s%s", source, key, near ? ", did you mean " : "",
                           near ? near : "", near ? "?" : "");
        }
        if (!json_is_null(json_member(m)) && !is_neutral(json_member(m), keys[i].neutral))
            return err_set(e, ERR_FORMAT, "%s: %s: is not supported, expected %s or to be left out", source, key,
                           neutral_value[keys[i].neutral]);
    }
    return OK;
}

static status read_stop(struct infer_request *r, const struct json_t *body, const char *source, struct err *e)
{
    const struct json_t *v = json_at(body, "stop");
    size_t n;

    if (json_is_null(v)) return OK;
    if (!json_is_text(v) && !json_is_array(v))
        return err_set(e, ERR_FORMAT, "%s: stop: expected a text or a list of texts", source);
    n = json_is_text(v) ? 1 : json_length(v);
    if (n > INFER_STOPS_MAX)
        return err_set(e, ERR_FORMAT, "%s: stop: expected at most %d texts, found %zu", source, INFER_STOPS_MAX, n);
    for (size_t i = 0; i < n; i++) {
        const struct json_t *item = json_is_text(v) ? v : json_item(v, i);
        size_t length = json_is_text(item) ? json_text_length(item) : 0;

        if (length < 1 || length > INFER_STOP_BYTES_MAX || strlen(json_text(item)) != length)
            return err_set(e, ERR_FORMAT, "%s: stop: expected texts of 1 to %d bytes without NUL", source, INFER_STOP_BYTES_MAX);
        r->stop[i] = copy_text(json_text(item), length);
    }
    r->how.stop = (const char *const *)r->stop;
    r->how.n_stop = (int)n;
    return OK;
}

static status read_parameters(struct infer_request *r, const struct json_t *body, const char *source, struct err *e)
{
    int64_t max_tokens = r->how.max_tokens, top_k = r->how.top_k, seed = 0;
    double top_p = r->how.top_p;

    if (json_get_int(&max_tokens, body, "max_tokens", 1, INT_MAX, JSON_OPTIONAL, source, e)) return e->code;
    if (json_get_int(&max_tokens, body, "max_completion_tokens", 1, INT_MAX, JSON_OPTIONAL, source, e)) return e->code;
    if (json_get_int(&top_k, body, "top_k", -1, INT_MAX, JSON_OPTIONAL, source, e)) return e->code; /* -1: all, as in vLLM */
    if (json_get_real(&r->how.temperature, body, "temperature", 0, 100, JSON_OPTIONAL, source, e)) return e->code;
    if (json_get_real(&top_p, body, "top_p", 0, 1, JSON_OPTIONAL, source, e)) return e->code;
    if (json_get_real(&r->how.min_p, body, "min_p", 0, 1, JSON_OPTIONAL, source, e)) return e->code;
    if (json_get_bool(&r->how.ignore_eos, body, "ignore_eos", JSON_OPTIONAL, source, e)) return e->code;
    r->how.max_tokens = (int)max_tokens;
    r->how.top_k = top_k < 0 ? 0 : (int)top_k;
    r->how.top_p = top_p;
    r->how.seed = rng_hash(r->how.seed, hash_text(r->key), 0, 0);
    if (!json_is_null(json_at(body, "seed"))) {
        if (json_get_int(&seed, body, "seed", INT64_MIN, INT64_MAX, JSON_OPTIONAL, source, e)) return e->code;
        r->how.seed = (uint64_t)seed;
    }
    return read_stop(r, body, source, e);
}

static status read_prompt(struct infer_request *r, const struct json_t *body, const char *source, struct err *e)
{
    const struct json_t *v = json_at(body, "prompt");

    if (r->chat) {
        const struct json_t *messages, *first;
        const char *role;

        if (json_get_array(&messages, body, "messages", JSON_REQUIRED, source, e)) return e->code;
        if (!json_is_null(v)) return err_set(e, ERR_FORMAT, "%s: a chat has messages and no prompt", source);
        first = json_item(messages, 0);
        if (json_length(messages) != 1)
            return err_set(
                e, ERR_FORMAT,
                "%s: messages: expected exactly one user message, found %zu: there is no chat template to join them with; "
                "send the text the model expects to /v1/completions",
                source, json_length(messages));
        if (json_get_text(&role, first, "role", JSON_REQUIRED, source, e)) return e->code;
        if (strcmp(role, "user") != 0)
            return err_set(e, ERR_FORMAT, "%s: messages: expected a message of role user, found role %.32s", source, role);
        v = json_at(first, "content");
        if (!json_is_text(v)) return err_set(e, ERR_FORMAT, "%s: messages: expected a content that is one text", source);
    } else {
        if (!json_is_null(json_at(body, "messages")))
            return err_set(e, ERR_FORMAT, "%s: messages belong to /v1/chat/completions, expected a prompt", source);
        if (json_is_null(v)) return err_set(e, ERR_FORMAT, "%s: prompt is missing", source);
        if (!json_is_text(v)) return err_set(e, ERR_FORMAT, "%s: prompt: expected one text", source);
    }
    r->prompt_length = json_text_length(v);
    r->prompt = copy_text(json_text(v), r->prompt_length);
    return OK;
}

/* The default id: the line's number, spelled so that it is not taken for somebody's own number. */
static void set_line_id(struct infer_request *r, int64_t number)
{
    struct str s = {0};

    str_addf(&s, "line-%lld", (long long)number);
    r->key = s.text;
    r->id = json_text_new(s.text, s.length);
}

static status read_id(struct infer_request *r, const struct json_t *row, const char *name, const char *source, int64_t number,
                      struct err *e)
{
    const struct json_t *v = json_at(row, name);
    struct str key = {0};

    set_line_id(r, number);
    if (json_is_null(v)) return r->batch ? err_set(e, ERR_FORMAT, "%s: %s is missing", source, name) : OK;
    if (json_is_int(v) && !r->batch) {
        str_addf(&key, "%lld", (long long)json_int(v));
    } else {
        if (!json_is_text(v))
            return err_set(e, ERR_FORMAT, "%s: %s: expected a text%s", source, name, r->batch ? "" : " or an integer");
        size_t length = json_text_length(v);

        if (length < 1 || length > INFER_ID_BYTES_MAX || strlen(json_text(v)) != length)
            return err_set(e, ERR_FORMAT, "%s: %s: expected 1 to %d bytes without NUL, found %zu", source, name,
                           INFER_ID_BYTES_MAX, length);
        str_add(&key, json_text(v), length);
    }
    free(r->key);
    json_free(r->id);
    r->key = key.text;
    r->id = json_clone(v);
    return OK;
}

static status read_batch(struct infer_request *r, const struct json_t *row, const struct json_t **body, const char *source,
                         struct err *e)
{
    static const char *const known[] = {"custom_id", "method", "url", "body"};
    const char *method = "POST", *url;

    for (void *m = json_first(row); m; m = json_next(row, m)) {
        int i = 0;

        while (i < 4 && strcmp(json_key(m), known[i]) != 0) i++;
        if (i == 4)
            return err_set(e, ERR_FORMAT, "%s: %.64s: expected custom_id, method, url and body only", source, json_key(m));
    }
    if (json_get_text(&url, row, "url", JSON_REQUIRED, source, e)) return e->code;
    r->chat = strcmp(url, "/v1/chat/completions") == 0;
    if (!r->chat && strcmp(url, "/v1/completions") != 0)
        return err_set(e, ERR_FORMAT, "%s: url: expected /v1/completions or /v1/chat/completions, found %.64s", source, url);
    if (json_get_text(&method, row, "method", JSON_OPTIONAL, source, e)) return e->code;
    if (strcmp(method, "POST") != 0) return err_set(e, ERR_FORMAT, "%s: method: expected POST, found %.32s", source, method);
    return json_get_object(body, row, "body", JSON_REQUIRED, source, e);
}

static status read_row(struct infer_request *r, const struct json_t *row, const char *source, int64_t number, struct err *e)
{
    const struct json_t *body = row;

    r->batch = json_at(row, "custom_id") || json_at(row, "url") || json_at(row, "body");
    if (read_id(r, row, r->batch ? "custom_id" : "id", source, number, e)) return e->code;
    if (r->batch && read_batch(r, row, &body, source, e)) return e->code;
    if (check_keys(body, !r->batch, source, e)) return e->code;
    if (read_prompt(r, body, source, e)) return e->code;
    return read_parameters(r, body, source, e);
}

status infer_parse(struct infer_request *out, const char *line, size_t length, const char *source, int64_t number,
                   const struct sampling *defaults, bool broken_batch, struct err *e)
{
    struct json_t *row = NULL;
    status s;

    *out = (struct infer_request){.how = *defaults, .batch = broken_batch};
    s = json_parse(&row, line, length, source, e);
    if (!s && !json_is_object(row)) s = err_set(e, ERR_FORMAT, "%s: expected an object", source);
    if (s) set_line_id(out, number);
    else s = read_row(out, row, source, number, e);
    json_free(row);
    return s;
}

void infer_request_clear(struct infer_request *r)
{
    json_free(r->id);
    free(r->key);
    free(r->prompt);
    for (int i = 0; i < INFER_STOPS_MAX; i++) free(r->stop[i]);
    *r = (struct infer_request){0};
}

static struct json_t *usage_of(const struct sequence *s)
{
    struct json_t *usage = json_object_new();

    json_put_int(usage, "prompt_tokens", s->prompt_tokens);
    json_put_int(usage, "completion_tokens", s->n_tokens);
    json_put_int(usage, "total_tokens", (int64_t)s->prompt_tokens + s->n_tokens);
    return usage;
}

static void add_row(struct str *out, struct json_t *row)
{
    json_dump(out, row, false);
    str_addz(out, "\n");
    json_free(row);
}

static struct json_t *batch_row(const struct infer_request *r, int code, struct json_t *body)
{
    struct json_t *row = json_object_new(), *response = json_object_new();
    struct str id = {0};

    str_addf(&id, "batch_req_%016llx", (unsigned long long)hash_text(r->key));
    json_put_text(row, "id", id.text);
    str_free(&id);
    json_put(row, "custom_id", json_clone(r->id));
    json_put_int(response, "status_code", code);
    json_put(response, "body", body);
    json_put(row, "response", response);
    return row;
}

void infer_add_answer(struct str *out, const struct infer_request *r, const struct sequence *s, const char *model)
{
    const char *finish = s->finish == FINISH_STOP ? "stop" : "length";
    struct json_t *text = json_text_new(s->text, s->text_length);

    if (!r->batch) {
        struct json_t *row = json_object_new();

        json_put(row, "id", json_clone(r->id));
        json_put(row, "prompt", json_text_new(r->prompt, r->prompt_length));
        json_put(row, "text", text);
        json_put_text(row, "finish_reason", finish);
        json_put(row, "usage", usage_of(s));
        add_row(out, row);
        return;
    }
    struct json_t *body = json_object_new(), *choices = json_array_new(), *choice = json_object_new();
    struct str id = {0};

    json_put_int(choice, "index", 0);
    if (r->chat) {
        struct json_t *message = json_object_new();

        json_put_text(message, "role", "assistant");
        json_put(message, "content", text);
        json_put(choice, "message", message);
    } else {
        json_put(choice, "text", text);
    }
    json_put_text(choice, "finish_reason", finish);
    json_append(choices, choice);
    str_addf(&id, "%s-%016llx", r->chat ? "chatcmpl" : "cmpl", (unsigned long long)hash_text(r->key));
    json_put_text(body, "id", id.text);
    str_free(&id);
    json_put_text(body, "object", r->chat ? "chat.completion" : "text_completion");
    json_put_text(body, "model", model);
    json_put(body, "choices", choices);
    json_put(body, "usage", usage_of(s));
    struct json_t *row = batch_row(r, 200, body);
    json_put_text(row, "error", NULL);
    add_row(out, row);
}

static struct json_t *error_of(const char *message)
{
    struct json_t *error = json_object_new();

    json_put(error, "message", json_text_new(message, strlen(message)));
    json_put_text(error, "type", "invalid_request_error");
    json_put_text(error, "code", "invalid_request");
    return error;
}

void infer_add_error(struct str *out, const struct infer_request *r, const char *message)
{
    struct json_t *row;

    if (r->batch) {
        struct json_t *body = json_object_new();

        json_put(body, "error", error_of(message));
        row = batch_row(r, 400, body);
    } else {
        row = json_object_new();
        json_put(row, "id", json_clone(r->id));
    }
    json_put(row, "error", error_of(message));
    add_row(out, row);
}

status infer_read_row(char **key, bool *ok, const char *line, size_t length, const char *source, struct err *e)
{
    const struct json_t *id;
    struct json_t *row;
    struct str text = {0};

    *key = NULL;
    *ok = false;
    if (json_parse(&row, line, length, source, e)) return e->code;
    id = json_at(row, "custom_id");
    if (!id) id = json_at(row, "id");
    if (json_is_int(id)) str_addf(&text, "%lld", (long long)json_int(id));
    else if (json_is_text(id)) str_add(&text, json_text(id), json_text_length(id));
    *key = text.text;
    *ok = json_is_null(json_at(row, "error"));
    json_free(row);
    if (!*key) return err_set(e, ERR_FORMAT, "%s: expected a row with an id", source);
    return OK;
}

/* Appends up to `columns` characters, from the end (from a word's beginning, behind an ellipsis) or from the beginning; invalid UTF-8 counts
 * bytes and shows '?'.  Returns how many. */
static int show_piece(struct str *out, const char *text, size_t length, int columns, bool keep_end)
{
    struct str clean = {0};
    struct json_t *v = json_text_new(text, length); /* makes it valid */
    const char *s = json_text(v);
    size_t n = json_text_length(v), from = 0, to = 0;
    int characters = 0, skip, at = 0, shown = 0;

    for (size_t i = 0; i < n; i++) characters += ((unsigned char)s[i] & 0xc0) != 0x80;
    bool cut = keep_end && characters > columns;
    skip = cut ? characters - columns + 1 : 0;
    for (size_t i = 0; i < n; i++) {
        if (((unsigned char)s[i] & 0xc0) != 0x80 && at++ == skip) from = i;
        if (at > skip + columns) break;
        to = i + 1;
    }
    if (cut) {
        size_t word = from;

        while (word < to && s[word] != ' ') word++;
        if (word + 1 < to) from = word + 1;
        str_addz(out, "\u2026");
        shown = 1;
    }
    for (size_t i = from; i < to; i++) shown += ((unsigned char)s[i] & 0xc0) != 0x80;
    for (size_t i = from; i < to; i++) {
        /* C0, DEL and C1 (c2 80 .. c2 9f) move cursors and ring bells */
        bool c1 = (unsigned char)s[i] == 0xc2 && i + 1 < to && (unsigned char)s[i + 1] < 0xa0;

        if (c1) i++;
        str_add(&clean, c1 || (unsigned char)s[i] < 0x20 || s[i] == 0x7f ? " " : s + i, 1);
    }
    if (clean.length) str_add(out, clean.text, clean.length);
    str_free(&clean);
    json_free(v);
    return shown;
}

void infer_show(struct str *out, const char *prompt, size_t prompt_length, const char *text, size_t text_length, int columns)
{
    int room = columns > 24 ? columns - 4 : 20; /* " -> " */
    int shown = show_piece(out, prompt, prompt_length, room / 3, true);

    str_addz(out, " -> ");
    show_piece(out, text, text_length, room - shown, false);
}
