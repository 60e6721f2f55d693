/* Job specs as messages, and the one door to protobuf-c.  What arrives is checked by the same rows as what is read from YAML. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/spec_table.h"
#include "job.pb-c.h"

enum { MESSAGE_MAX = 16 << 20 };

static void *room(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    BUG_ON(!p);
    return p;
}

/* ---- out ---- */

static Factorllm__Setting *setting_of(const struct spec *s, const struct key *k)
{
    Factorllm__Setting *m = room(1, sizeof(*m));

    factorllm__setting__init(m);
    m->key = (char *)k->name; /* the message only borrows */
    switch (k->type) {
    case KEY_BOOL:
        m->value_case = FACTORLLM__SETTING__VALUE_FLAG;
        m->flag = *key_bool(s, k);
        break;
    case KEY_INT:
        m->value_case = FACTORLLM__SETTING__VALUE_INTEGER;
        m->integer = *key_int(s, k);
        break;
    case KEY_REAL:
        m->value_case = FACTORLLM__SETTING__VALUE_REAL;
        m->real = *key_real(s, k);
        break;
    case KEY_TEXT:
        m->value_case = FACTORLLM__SETTING__VALUE_TEXT;
        m->text = *key_text(s, k);
        break;
    case KEY_ENUM:
        m->value_case = FACTORLLM__SETTING__VALUE_TEXT;
        m->text = (char *)k->set[*key_int(s, k)];
        break;
    case KEY_LIST:
    case KEY_NUMBERS:
        m->value_case = FACTORLLM__SETTING__VALUE_LIST;
        m->list = room(1, sizeof(*m->list));
        factorllm__text_list__init(m->list);
        m->list->items = key_list(s, k)->items;
        m->list->n_items = (size_t)key_list(s, k)->n;
        break;
    }
    return m;
}

static Factorllm__Setting **settings_of(size_t *n, const struct spec *s, bool step)
{
    Factorllm__Setting **settings = room((size_t)key_count(), sizeof(Factorllm__Setting *));

    for (int i = 0; i < key_count(); i++) {
        const struct key *k = key_row(i);

        if (k->kinds >> s->kind & 1 && key_has_value(s, k) && !(step && k->flags & KEY_TOP)) settings[(*n)++] = setting_of(s, k);
    }
    return settings;
}

static void free_settings(Factorllm__Setting **settings, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (settings[i]->value_case == FACTORLLM__SETTING__VALUE_LIST) free(settings[i]->list);
        free(settings[i]);
    }
    free(settings);
}

void spec_pack(uint8_t **bytes, size_t *n, const struct spec *s)
{
    Factorllm__Job m;
    Factorllm__Step *step = room((size_t)s->n_steps, sizeof(*step)), **steps = room((size_t)s->n_steps, sizeof(*steps));

    factorllm__job__init(&m);
    m.kind = (char *)spec_kind_name(s->kind);
    m.source = s->source;
    m.settings = settings_of(&m.n_settings, s, false);
    m.steps = steps;
    m.n_steps = (size_t)s->n_steps;
    for (int i = 0; i < s->n_steps; i++) {
        factorllm__step__init(&step[i]);
        step[i].kind = (char *)spec_kind_name(s->steps[i].kind);
        step[i].settings = settings_of(&step[i].n_settings, &s->steps[i], true);
        steps[i] = &step[i];
    }
    *n = factorllm__job__get_packed_size(&m);
    *bytes = room(*n, 1);
    factorllm__job__pack(&m, *bytes);
    for (int i = 0; i < s->n_steps; i++) free_settings(step[i].settings, step[i].n_settings);
    free_settings(m.settings, m.n_settings);
    free(step);
    free(steps);
}

/* ---- in ---- */

static const char *const where = "message from the coordinator";

static status put_setting(struct draft *d, const Factorllm__Setting *m, struct err *e)
{
    int row = key_find(m->key, d->s->kind);
    char number[40];
    struct scalar one = {.text = number, .plain = true}, *items;

    if (row < 0 || (d->step && key_row(row)->flags & KEY_TOP))
        return err_set(e, ERR_SPEC, "%s: %.80s: expected a key of %s jobs, found an unknown one", where, m->key,
                       spec_kind_name(d->s->kind));
    if (d->line[row] != FROM_DEFAULT) return err_set(e, ERR_SPEC, "%s: %s: expected once, found again", where, m->key);
    d->line[row] = FROM_MESSAGE;
    switch (m->value_case) {
    case FACTORLLM__SETTING__VALUE_FLAG:
        one.text = m->flag ? "true" : "false";
        break;
    case FACTORLLM__SETTING__VALUE_INTEGER:
        snprintf(number, sizeof(number), "%" PRId64, m->integer);
        break;
    case FACTORLLM__SETTING__VALUE_REAL:
        snprintf(number, sizeof(number), "%.17g", m->real);
        break;
    case FACTORLLM__SETTING__VALUE_TEXT:
        one = (struct scalar){.text = m->text, .plain = false};
        break;
    case FACTORLLM__SETTING__VALUE_LIST: {
        items = room(m->list->n_items, sizeof(*items));
        for (size_t i = 0; i < m->list->n_items; i++)
            items[i] = (struct scalar){.text = m->list->items[i], .length = strlen(m->list->items[i]), .plain = false};
        int n = m->list->n_items > LIST_MAX ? LIST_MAX + 1 : (int)m->list->n_items;
        status st = key_put(d->s, key_row(row), items, n, true, where, d->prefix, e);
        free(items);
        return st;
    }
    default:
        return err_set(e, ERR_SPEC, "%s: %s: expected a value, found none", where, m->key);
    }
    one.length = strlen(one.text);
    return key_put(d->s, key_row(row), &one, 1, false, where, d->prefix, e);
}

static status put_job(struct draft *d, const char *kind_name, const char *source, Factorllm__Setting *const *settings, size_t n,
                      struct err *e)
{
    int kind = spec_kind_find(kind_name);

    if (kind < 0 || (d->step && kind == JOB_PIPELINE))
        return err_set(e, ERR_SPEC, "%s: kind: expected a job%s, found '%.60s'", where, d->step ? "" : " or a pipeline",
                       kind_name);
    d->s->kind = (enum job_kind)kind;
    d->s->source = str_dup(source);
    d->source = d->s->source;
    d->first_line = FROM_MESSAGE;
    for (size_t i = 0; i < n; i++)
        if (put_setting(d, settings[i], e)) return e->code;
    return OK;
}

static status put_steps(struct draft *top, const Factorllm__Job *m, struct err *e)
{
    struct spec *s = top->s;
    int n = (int)m->n_steps;
    struct draft *drafts = room((size_t)n, sizeof(*drafts));
    status st = OK;

    s->steps = room((size_t)n, sizeof(*s->steps));
    s->n_steps = n;
    for (int i = 0; i < n && st == OK; i++) {
        const Factorllm__Step *step = m->steps[i];

        drafts[i] = (struct draft){.s = &s->steps[i], .step = true};
        st = put_job(&drafts[i], step->kind, m->source, step->settings, step->n_settings, e);
    }
    if (st == OK) st = pipeline_finish(top, drafts, n, e);
    free(drafts);
    return st;
}

status spec_unpack(struct spec **out, const uint8_t *bytes, size_t n, struct err *e)
{
    Factorllm__Job *m = n <= MESSAGE_MAX ? factorllm__job__unpack(NULL, n, bytes) : NULL;
    struct spec *s = room(1, sizeof(*s));
    struct draft d = {.s = s};
    status st;

    *out = NULL;
    if (!m) {
        spec_free(s);
        return err_set(e, ERR_SPEC, "%s: expected a job, found %zu bytes that are none", where, n);
    }
    st = put_job(&d, m->kind, m->source, m->settings, m->n_settings, e);
    if (st == OK && ((s->kind == JOB_PIPELINE) != (m->n_steps > 0) || m->n_steps > STEPS_MAX))
        st = err_set(e, ERR_SPEC, "%s: steps: expected 1 to %d in a pipeline and none in a job, found %zu", where, STEPS_MAX,
                     m->n_steps);
    if (st == OK) st = s->kind == JOB_PIPELINE ? put_steps(&d, m, e) : job_finish(&d, e);
    factorllm__job__free_unpacked(m, NULL);
    if (st) {
        spec_free(s);
        return st;
    }
    *out = s;
    return OK;
}
