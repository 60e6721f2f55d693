/* The normalizer and the pre-tokenizer of a Hugging Face tokenizer.json, as one list of steps over pieces of text.
 *
 * Each step reads the pieces and writes new ones; the text begins as one piece.  Types and options that we do not know are refused by name:
 * a text that is cut differently gives other tokens, silently.
 */
#include <stdlib.h>
#include <string.h>

#include "data/json.h"
#include "data/pretokenize_internal.h"

/* How GPT-2 cuts a text into words; what ByteLevel with use_regex means. */
#define GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum { PATTERN_BYTES_MAX = 1 << 16 };

static struct step *add_step(struct pretok *p, enum step_kind kind, struct err *e)
{
    if (p->n == PRETOK_STEPS) {
        err_set(e, ERR_LIMIT, "%s: more than %d steps before the model", p->source, PRETOK_STEPS);
        return NULL;
    }
    struct step *s = &p->steps[p->n++];
    *s = (struct step){.kind = kind};
    return s;
}

/* PCRE2's \s also takes U+180E, which is no white space since Unicode 6.3 and not for the tools that trained the vocabulary. */
static status plain_blanks(struct str *out, const char *pattern, size_t length, const char *source, struct err *e)
{
#define BLANKS "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
    bool class = false;

    for (size_t i = 0; i < length; i++) {
        char c = pattern[i], next = i + 1 < length ? pattern[i + 1] : 0;

        if (c == '\\' && next == 's') str_addz(out, class ? BLANKS : "[" BLANKS "]");
        else if (c == '\\' && next == 'S' && !class) str_addz(out, "[^" BLANKS "]");
        else if (c == '\\' && next) str_add(out, pattern + i, 2);
        else str_add(out, &c, 1);
        if (c == '\\') i++;
        else if (c == '[' && !class) class = true;
        else if (c == ']') class = false;
        else if (class && c == '&' && next == '&') /* two plain characters for PCRE2: another language, silently */
            return err_set(e, ERR_FORMAT, "%s: a Split pattern with && in a class is not known", source);
    }
    return OK;
#undef BLANKS
}

static status add_split(struct pretok *p, const char *pattern, size_t length, bool literal, bool keep_matches, bool keep_rest,
                        struct err *e)
{
    struct step *s = add_step(p, STEP_SPLIT, e);
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY);
    struct str text = {0};
    PCRE2_SIZE where;
    int error;

    if (!s) return e->code;
    if (length == 0 || length > PATTERN_BYTES_MAX)
        return err_set(e, ERR_FORMAT, "%s: a Split pattern of %zu bytes, expected 1 to %d", p->source, length, PATTERN_BYTES_MAX);
    s->keep_matches = keep_matches;
    s->keep_rest = keep_rest;
    if (literal) str_add(&text, pattern, length);
    else if (plain_blanks(&text, pattern, length, p->source, e)) goto done;
    s->pattern = pcre2_compile((PCRE2_SPTR)text.text, text.length, options, &error, &where, NULL);
    if (s->pattern) {
        pcre2_jit_compile(s->pattern, PCRE2_JIT_COMPLETE); /* only speed: without it matching is interpreted */
    } else {
        char why[128] = "";

        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof(why));
        err_set(e, ERR_FORMAT, "%s: the Split pattern \"%.200s\" cannot be used: %s at byte %zu", p->source, text.text, why,
                where);
    }
done:
    str_free(&text);
    return s->pattern ? OK : e->code;
}

/* pattern: {"String": ...} or {"Regex": ...} */
static status get_pattern(const char **text, bool *literal, const struct json_t *o, const char *source, struct err *e)
{
    const struct json_t *pattern;

    *text = NULL;
    if (json_get_object(&pattern, o, "pattern", JSON_REQUIRED, source, e) ||
        json_get_text(text, pattern, "String", JSON_OPTIONAL, source, e))
        return e->code;
    *literal = *text != NULL;
    if (*literal) return OK;
    return json_get_text(text, pattern, "Regex", JSON_REQUIRED, source, e);
}

static status read_replace(struct pretok *p, const struct json_t *o, struct err *e)
{
    const char *text, *content;
    bool literal;

    if (get_pattern(&text, &literal, o, p->source, e) || json_get_text(&content, o, "content", JSON_REQUIRED, p->source, e))
        return e->code;
    if (!literal || !*text)
        return err_set(e, ERR_FORMAT, "%s: normalizer Replace is known with a String pattern only", p->source);
    struct step *s = add_step(p, STEP_REPLACE, e);
    if (!s) return e->code;
    s->a = str_dup(text);
    s->b = str_dup(content);
    if (strcmp(text, " ") == 0 && strlen(content) < sizeof(p->blank)) strcpy(p->blank, content);
    return OK;
}

static status read_normalizer(struct pretok *p, const struct json_t *o, int depth, struct err *e)
{
    static const struct {
        const char *name;
        int options;
    } forms[] = {{"NFC", UTF8PROC_COMPOSE},
                 {"NFD", UTF8PROC_DECOMPOSE},
                 {"NFKC", UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                 {"NFKD", UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};
    const char *type, *text;
    const struct json_t *list;
    struct step *s;

    if (json_get_text(&type, o, "type", JSON_REQUIRED, p->source, e)) return e->code;
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        if (json_get_array(&list, o, "normalizers", JSON_REQUIRED, p->source, e)) return e->code;
        for (size_t i = 0; i < json_length(list); i++)
            if (read_normalizer(p, json_item(list, i), depth + 1, e)) return e->code;
        return OK;
    }
    if (strcmp(type, "Prepend") == 0) {
        if (json_get_text(&text, o, "prepend", JSON_REQUIRED, p->source, e) || !(s = add_step(p, STEP_PREPEND, e)))
            return e->code;
        s->a = str_dup(text);
        p->prefix = true;
        return OK;
    }
    if (strcmp(type, "Replace") == 0) return read_replace(p, o, e);
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
        if (strcmp(type, forms[i].name)) continue;
        if (!(s = add_step(p, STEP_UNICODE, e))) return e->code;
        s->options = (utf8proc_option_t)(UTF8PROC_STABLE | forms[i].options);
        return OK;
    }
    return err_set(e, ERR_FORMAT, "%s: normalizer \"%.100s\" is not known; known: Sequence Prepend Replace NFC NFD NFKC NFKD",
                   p->source, type);
}

static status read_metaspace(struct pretok *p, const struct json_t *o, struct err *e)
{
    const char *replacement = "\xE2\x96\x81", *scheme = "always";
    bool prefix = true, split = true;

    if (json_get_text(&replacement, o, "replacement", JSON_OPTIONAL, p->source, e) ||
        json_get_text(&scheme, o, "prepend_scheme", JSON_OPTIONAL, p->source, e) ||
        json_get_bool(&prefix, o, "add_prefix_space", JSON_OPTIONAL, p->source, e) || /* the older spelling */
        json_get_bool(&split, o, "split", JSON_OPTIONAL, p->source, e))
        return e->code;
    struct step *s = add_step(p, STEP_METASPACE, e);
    if (!s) return e->code;
    if (!*replacement || strlen(replacement) >= sizeof(p->blank))
        return err_set(e, ERR_FORMAT, "%s: Metaspace replacement \"%.20s\", expected one character", p->source, replacement);
    s->a = str_dup(replacement);
    strcpy(p->blank, replacement);
    s->split = split;
    if (!prefix || strcmp(scheme, "never") == 0) s->scheme = SCHEME_NEVER;
    else if (strcmp(scheme, "first") == 0) s->scheme = SCHEME_FIRST;
    else if (strcmp(scheme, "always") == 0) s->scheme = SCHEME_ALWAYS;
    else
        return err_set(e, ERR_FORMAT, "%s: Metaspace prepend_scheme \"%.20s\", expected always, first or never", p->source,
                       scheme);
    p->prefix |= s->scheme != SCHEME_NEVER;
    return OK;
}

static status read_byte_level(struct pretok *p, const struct json_t *o, struct err *e)
{
    bool prefix = true, regex = true;

    if (json_get_bool(&prefix, o, "add_prefix_space", JSON_OPTIONAL, p->source, e) ||
        json_get_bool(&regex, o, "use_regex", JSON_OPTIONAL, p->source, e))
        return e->code;
    p->byte_level = true;
    if (prefix && !add_step(p, STEP_PREFIX, e)) return e->code;
    return regex ? add_split(p, GPT2_WORDS, strlen(GPT2_WORDS), false, true, true, e) : OK;
}

static status read_split(struct pretok *p, const struct json_t *o, struct err *e)
{
    const char *text, *behavior;
    bool literal, invert = false;

    if (get_pattern(&text, &literal, o, p->source, e) || json_get_text(&behavior, o, "behavior", JSON_REQUIRED, p->source, e) ||
        json_get_bool(&invert, o, "invert", JSON_OPTIONAL, p->source, e))
        return e->code;
    bool removed = strcmp(behavior, "Removed") == 0;
    if (!removed && strcmp(behavior, "Isolated"))
        return err_set(e, ERR_FORMAT, "%s: Split behavior \"%.40s\" is not known; known: Isolated Removed", p->source, behavior);
    return add_split(p, text, strlen(text), literal, !removed || invert, !removed || !invert, e);
}

static status read_pre_tokenizer(struct pretok *p, const struct json_t *o, int depth, struct err *e)
{
    const char *type;
    const struct json_t *list;
    bool single = false;

    if (json_get_text(&type, o, "type", JSON_REQUIRED, p->source, e)) return e->code;
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        if (json_get_array(&list, o, "pretokenizers", JSON_REQUIRED, p->source, e)) return e->code;
        for (size_t i = 0; i < json_length(list); i++)
            if (read_pre_tokenizer(p, json_item(list, i), depth + 1, e)) return e->code;
        return OK;
    }
    if (p->byte_level) /* its bytes are spelled as other characters, which a later step would see */
        return err_set(e, ERR_FORMAT, "%s: pre-tokenizer \"%.100s\" after ByteLevel is not known", p->source, type);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(p, o, e);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(p, o, e);
    if (strcmp(type, "Split") == 0) return read_split(p, o, e);
    if (strcmp(type, "Digits") == 0) {
        if (json_get_bool(&single, o, "individual_digits", JSON_OPTIONAL, p->source, e)) return e->code;
        return single ? add_split(p, "\\p{N}", 5, false, true, true, e) : add_split(p, "\\p{N}+", 6, false, true, true, e);
    }
    return err_set(e, ERR_FORMAT, "%s: pre-tokenizer \"%.100s\" is not known; known: Sequence Metaspace ByteLevel Split Digits",
                   p->source, type);
}

status pretok_open(struct pretok **out, const struct json_t *root, const char *source, struct err *e)
{
    struct pretok *p = calloc(1, sizeof(*p));
    const struct json_t *normalizer = NULL, *pre = NULL;
    status s = OK;

    BUG_ON(!p);
    *out = NULL;
    p->source = source;
    if ((s = json_get_object(&normalizer, root, "normalizer", JSON_OPTIONAL, source, e)) ||
        (s = json_get_object(&pre, root, "pre_tokenizer", JSON_OPTIONAL, source, e)))
        goto fail;
    if (normalizer && (s = read_normalizer(p, normalizer, 0, e))) goto fail;
    if (pre && (s = read_pre_tokenizer(p, pre, 0, e))) goto fail;
    p->source = NULL;
    *out = p;
    return OK;

fail:
    pretok_close(p);
    return s;
}

void pretok_close(struct pretok *p)
{
    if (!p) return;
    for (int i = 0; i < p->n; i++) {
        free(p->steps[i].a);
        free(p->steps[i].b);
        pcre2_code_free(p->steps[i].pattern);
    }
    free(p);
}

bool pretok_byte_level(const struct pretok *p)
{
    return p->byte_level;
}

bool pretok_has_prefix(const struct pretok *p)
{
    return p->prefix;
}

const char *pretok_blank(const struct pretok *p)
{
    return p->blank;
}
