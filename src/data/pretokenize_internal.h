/* The steps of a pre-tokenizer, as its two halves see them: pretokenize.c reads them, pretokenize_run.c takes them. */
#ifndef DATA_PRETOKENIZE_INTERNAL_H
#define DATA_PRETOKENIZE_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "data/tokenizer_parts.h"

enum { PRETOK_STEPS = 32 };

enum step_kind {
    STEP_PREPEND,   /* a in front of a text that is not empty */
    STEP_REPLACE,   /* every a becomes b */
    STEP_UNICODE,   /* NFC and relatives */
    STEP_METASPACE, /* blanks become a; a in front by the scheme; perhaps cut before every a */
    STEP_PREFIX,    /* a blank in front of each piece that does not begin with one */
    STEP_SPLIT      /* cut at the matches of a pattern */
};

enum scheme { SCHEME_ALWAYS, SCHEME_FIRST, SCHEME_NEVER };

struct step {
    enum step_kind kind;
    char *a, *b;
    utf8proc_option_t options;
    enum scheme scheme;
    bool split; /* STEP_METASPACE */
    pcre2_code *pattern;
    bool keep_matches, keep_rest; /* STEP_SPLIT: which parts become pieces; the others are dropped */
};

struct pretok {
    struct step steps[PRETOK_STEPS];
    int n;
    bool byte_level, prefix;
    char blank[8];
    const char *source;
};

#endif
