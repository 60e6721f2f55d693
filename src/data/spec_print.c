/* Job specs on their way out: as YAML, and as a table of keys for a person. */
#include <stdlib.h>
#include <string.h>

#include "data/spec_table.h"
#include "data/utf8.h"

static void dump_text(struct str *out, const char *text)
{
    size_t length = strlen(text);

    if (length > 0 && strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz/", text[0]) && strcasecmp(text, "null") != 0 &&
        !text[strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-")]) {
        str_addz(out, text);
        return;
    }
    str_addz(out, "\"");
    for (size_t at = 0, n; at < length; at += n) {
        bool valid;

        n = utf8_next(&valid, text + at, length - at);
        BUG_ON(!valid); /* key_put() let only UTF-8 in */
        uint32_t code = utf8_code(text + at, n);
        if (code == '"' || code == '\\') str_addf(out, "\\%c", (int)code);
        else if (code == '\n') str_addz(out, "\\n");
        else if (code < 0x20 || (code >= 0x7f && code < 0xa0)) str_addf(out, "\\x%02X", (unsigned)code);
        else if (code == 0x2028 || code == 0x2029 || code == 0xfeff || (code >= 0xfff0 && code <= 0xffff))
            str_addf(out, "\\u%04X", (unsigned)code); /* breaks lines or is refused by YAML as it stands */
        else str_add(out, text + at, n);
    }
    str_addz(out, "\"");
}

/* lists: a name has all texts that stand together. */
static void dump_pairs(struct str *out, const struct spec_list *list, bool lists)
{
    struct str name = {0};

    str_addz(out, "{");
    for (int i = 0; i < list->n; i++) {
        const char *equal = strchr(list->items[i], '=');
        size_t n = (size_t)(equal - list->items[i]) + 1;
        bool again = lists && i > 0 && !strncmp(list->items[i - 1], list->items[i], n);

        if (i > 0) str_addz(out, again ? ", " : lists ? "], " : ", ");
        if (!again) {
            str_clear(&name);
            str_add(&name, list->items[i], n - 1);
            dump_text(out, name.text);
            str_addz(out, lists ? ": [" : ": ");
        }
        dump_text(out, equal + 1);
    }
    str_addz(out, lists && list->n ? "]}" : "}");
    str_free(&name);
}

void key_value(struct str *out, const struct spec *s, const struct key *k)
{
    struct str number = {0};

    switch (k->type) {
    case KEY_BOOL:
        str_addz(out, *key_bool(s, k) ? "true" : "false");
        break;
    case KEY_INT:
        str_addf(out, "%lld", (long long)*key_int(s, k));
        break;
    case KEY_REAL:
        str_addf(&number, "%.15g", *key_real(s, k)); /* 17 digits read back for certain, 15 look better where they do too */
        if (strtod(number.text, NULL) != *key_real(s, k)) {
            str_clear(&number);
            str_addf(&number, "%.17g", *key_real(s, k));
        }
        str_addz(out, number.text);
        str_free(&number);
        break;
    case KEY_TEXT:
        dump_text(out, *key_text(s, k));
        break;
    case KEY_ENUM:
        str_addz(out, k->set[*key_int(s, k)]);
        break;
    case KEY_LIST:
        if (k->flags & KEY_MAP) {
            dump_pairs(out, key_list(s, k), k->flags & KEY_LISTS);
            break;
        }
        str_addz(out, "[");
        for (int i = 0; i < key_list(s, k)->n; i++) {
            if (i > 0) str_addz(out, ", ");
            dump_text(out, key_list(s, k)->items[i]);
        }
        str_addz(out, "]");
        break;
    case KEY_NUMBERS:
        if (key_list(s, k)->n != 1) str_addz(out, "[");
        for (int i = 0; i < key_list(s, k)->n; i++) str_addf(out, "%s%s", i > 0 ? ", " : "", key_list(s, k)->items[i]);
        if (key_list(s, k)->n != 1) str_addz(out, "]");
        break;
    }
}

/* Rows of one section stand together in the table. */
static void dump_job(struct str *out, const struct spec *s, bool step)
{
    const char *margin = step ? "    " : "", *open = "";

    str_addf(out, "%skind: %s\n", step ? "  - " : "", spec_kind_name(s->kind));
    for (int i = 0; i < key_count(); i++) {
        const struct key *k = key_row(i);
        const char *dot = strchr(k->name, '.');
        int section = dot ? (int)(dot - k->name) : 0;

        if (!(k->kinds >> s->kind & 1) || !key_has_value(s, k) || (step && k->flags & KEY_TOP)) continue;
        if (section && ((int)strlen(open) < section || strncmp(open, k->name, (size_t)section + 1) != 0))
            str_addf(out, "%s%.*s:\n", margin, section, k->name);
        open = section ? k->name : "";
        str_addf(out, "%s%s%s: ", margin, section ? "  " : "", dot ? dot + 1 : k->name);
        key_value(out, s, k);
        str_addz(out, "\n");
    }
    if (s->kind != JOB_PIPELINE) return;
    str_addz(out, "steps:\n");
    for (int i = 0; i < s->n_steps; i++) dump_job(out, &s->steps[i], true);
}

void spec_dump(struct str *out, const struct spec *s)
{
    dump_job(out, s, false);
}

static void add_default(struct str *out, const struct key *k)
{
    char *end;
    double x = k->plain ? strtod(k->plain, &end) : 0;

    if (k->flags & KEY_REQUIRED) {
        str_addz(out, "required");
    } else if (!k->plain || ((k->type == KEY_INT || k->type == KEY_REAL) && (x < k->least || x > k->most))) {
        str_addz(out, "-");
    } else if (k->type == KEY_LIST) {
        int all = 0, plain = 1;

        while (k->set && k->set[all]) all++;
        for (const char *at = k->plain; *at; at++) plain += *at == ',';
        if (all > plain) str_addz(out, k->plain);
        else str_addz(out, "all");
    } else {
        str_addz(out, k->plain);
        if (k->paper) str_addf(out, " (factorllm%s: %s)", k->flags & KEY_STAGE1 ? ", stage 2" : "", k->paper);
    }
}

void spec_help(FILE *to, enum job_kind kind)
{
    int name_width = 0, default_width = 0;
    struct str text = {0};

    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < key_count(); i++) {
            const struct key *k = key_row(i);

            if (!(k->kinds >> kind & 1) || !strcmp(k->name, "name")) continue;
            str_clear(&text);
            add_default(&text, k);
            if (pass == 0) {
                if ((int)strlen(k->name) > name_width) name_width = (int)strlen(k->name);
                if ((int)text.length > default_width && k->type != KEY_LIST)
                    default_width = (int)text.length; /* lists may stick out */
                continue;
            }
            fprintf(to, "  %-*s  %-*s  %s", name_width, k->name, default_width, text.text, k->help);
            if (k->type != KEY_TEXT && !(k->type == KEY_LIST && !k->set)) {
                str_clear(&text);
                key_expected(&text, k);
                fprintf(to, " [%s]", text.text);
            }
            fputc('\n', to);
        }
    str_free(&text);
}
