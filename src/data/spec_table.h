/* The keys of job specs as rows of one table.  Inside src/data only: everybody else sees spec.h.
 *
 * To add a setting: a field in struct spec (spec.h), a row in spec_table.c, a check in spec_check.c if it cannot stand beside
 * another one, a line in an example under configs/.
 */
#ifndef DATA_SPEC_TABLE_H
#define DATA_SPEC_TABLE_H

#include "data/spec.h"

#define LARGE 1e15 /* as the most of a number: no limit worth naming */
enum { KEYS_MAX = 192, TEXT_MAX = 4096, LIST_MAX = 1024, STEPS_MAX = 32 };

/* KEY_NUMBERS: one number, or a list of them with one per layer; names of `set` may stand in place of the one. */
enum key_type { KEY_BOOL, KEY_INT, KEY_REAL, KEY_TEXT, KEY_ENUM, KEY_LIST, KEY_NUMBERS };

enum {
    KEY_REQUIRED = 1,
    KEY_TOP = 2,       /* of the whole launch: in a pipeline at the top only */
    KEY_FREE = 4,      /* text that may hold control characters: stop strings */
    KEY_WHOLE = 8,     /* KEY_NUMBERS: integers */
    KEY_VARIANTS = 16, /* KEY_LIST with names: router@VERSION, static@F and neurons@F, too */
    KEY_MAP = 32,      /* KEY_LIST: a map NAME: TEXT in YAML, items "NAME=TEXT" everywhere else */
    KEY_LISTS = 64, /* KEY_MAP: NAME: [TEXT, ...] too, any name without =; items "NAME=TEXT" for each, those of a name together */
    KEY_STAGE1 =
        128, /* of a router's beginning: with stage: 2 the default is the one below of `method: factorllm`, which changes nothing */
    KEY_ASIDE =
        256, /* says where, under which name or how safely, and nothing of what comes out: spec_settings() leaves it away */
};

struct key {
    const char *name; /* as in the YAML file; maps inside maps are joined by dots */
    unsigned kinds;   /* bit set of enum job_kind */
    enum key_type type;
    size_t offset;          /* in struct spec: bool, int64_t (also enumerations), double, char *, struct spec_list */
    const char *plain;      /* default, as it would be written in YAML; NULL: none (numbers: 0) */
    const char *paper;      /* default under `method: factorllm`, or NULL: the same */
    double least, most;     /* of numbers.  A default outside means "not set", and is not written out again */
    const char *const *set; /* names of an enumeration or of list items, ended by NULL */
    unsigned flags;
    const char *help;
};

/* One value as it came in. */
struct scalar {
    const char *text; /* terminated at length */
    size_t length;
    bool plain; /* may be a number or a word of YAML; quoted text may not */
};

int key_count(void);
const struct key *key_row(int i);
int key_find(const char *name, enum job_kind kind); /* row, or -1 */
/* Is it a key, or the beginning of keys ("cluster"), of this kind? */
bool key_is_section(const char *name, enum job_kind kind);
/* "; did you mean ...", "; it is a key of eval jobs", or "": appended to `out`. */
void key_suggest(struct str *out, const char *name, enum job_kind kind);

/* Checks type, range and names, and stores.  `where` is the place for messages ("FILE:LINE", "--set"), `prefix` stands before the
 * key in them ("" or "STEP.").  list: the items of a list, otherwise one value. */
status key_put(struct spec *s, const struct key *k, const struct scalar *items, int n, bool list, const char *where,
               const char *prefix, struct err *e);
/* From text as the command line and the defaults have it: lists as [a, b] or a,b. */
status key_put_word(struct spec *s, const struct key *k, const char *word, const char *where, const char *prefix, struct err *e);
void key_copy(struct spec *to, const struct spec *from, const struct key *k);
void key_clear(struct spec *s, const struct key *k);
bool key_has_value(const struct spec *s, const struct key *k);              /* false: not set, nothing to write */
void key_expected(struct str *out, const struct key *k);                    /* "an integer from 1 to 64" */
void key_value(struct str *out, const struct spec *s, const struct key *k); /* as YAML; a key that has a value */
const char *key_default(const struct spec *s, const struct key *k); /* in a job of this kind, method and stage; NULL: none */
void key_put_default(struct spec *s, const struct key *k, const char *text); /* NULL: leaves it as it is */
bool key_method_is_paper(const struct spec *s);                              /* of a factorize or finetune job */

static inline bool *key_bool(const struct spec *s, const struct key *k)
{
    return (bool *)((char *)s + k->offset);
}
static inline int64_t *key_int(const struct spec *s, const struct key *k)
{
    return (int64_t *)((char *)s + k->offset);
}
static inline double *key_real(const struct spec *s, const struct key *k)
{
    return (double *)((char *)s + k->offset);
}
static inline char **key_text(const struct spec *s, const struct key *k)
{
    return (char **)((char *)s + k->offset);
}
static inline struct spec_list *key_list(const struct spec *s, const struct key *k)
{
    return (struct spec_list *)((char *)s + k->offset);
}

/* A job on its way in: which keys were given, and where. */
enum { FROM_DEFAULT = 0, FROM_COMMAND_LINE = -1, FROM_MESSAGE = -2, FROM_PARENT = -3 };
struct draft {
    struct spec *s;
    const char *source;
    char prefix[80];    /* "" or "STEP." */
    bool step;          /* of a pipeline */
    int first_line;     /* of the job */
    int line[KEYS_MAX]; /* per row: line in the file, or FROM_... */
};

bool draft_given(const struct draft *d, const char *key);
/* Defaults for all that was not given, in a step the parent's values; then what must be there. */
status draft_finish(struct draft *d, const struct spec *parent, struct err *e);
/* Combinations that cannot be, by name. */
status draft_check(const struct draft *d, struct err *e);
/* Keys of a finetune job that would do nothing. */
status draft_idle_keys(const struct draft *d, struct err *e);
bool key_is_idle(const struct spec *s, const struct key *k); /* in this job, whatever its value */
/* ERR_SPEC "FILE:LINE: KEY: TEXT". */
status draft_fail(const struct draft *d, const char *key, struct err *e, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void draft_where(const struct draft *d, int row, struct str *out);

/* All of the above in order, once every key that was given has been put. */
status job_finish(struct draft *d, struct err *e);
status pipeline_finish(struct draft *top, struct draft *drafts, int n, struct err *e);

/* Pipelines: names, model and output of the steps.  drafts[i].s is &parent->steps[i]. */
status steps_name(struct draft *drafts, int n, struct err *e);
status steps_resolve(struct spec *parent, struct draft *drafts, int n, struct err *e);
/* A job's own defaults that are made of other keys: OUTPUT/responses.jsonl. */
void job_resolve(struct spec *s);

#endif
