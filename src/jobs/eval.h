/* Private to the eval job: what is scored, how, and what is said about it. */
#ifndef JOBS_EVAL_H
#define JOBS_EVAL_H

#include "data/corpus.h"
#include "data/json.h"
#include "data/tokenizer.h"
#include "jobs/job.h"
#include "model/forward.h"

/* --- eval_items.c: JSONL files of items --- */

enum item_kind { ITEM_PAIR /* good, bad */, ITEM_CHOICE /* context, choices, answer */, ITEM_TARGET /* context, target */ };
enum { ITEM_CHOICES_MAX = 64, ITEM_LINE_MAX = 1 << 20, ITEM_SETS_MAX = 1024 };

struct item {
    enum item_kind kind;
    int set;            /* index in items.sets */
    char *id, *context; /* context: NULL for a pair */
    char *text[ITEM_CHOICES_MAX];
    int n, answer; /* texts; the right one (a pair: 0) */
    int line;
    const char *file;
    size_t first; /* of its n sequences, once they are made */
};

struct items {
    struct item *item;
    size_t n, room;
    struct {
        char *name;
        enum item_kind kind;
        size_t n;
    } sets[ITEM_SETS_MAX];
    int n_sets;
};

/* One line.  ERR_FORMAT "FILE:LINE: ..."; an item of a set that has `most` (0: any number) already is left out. */
status items_parse_line(struct items *to, const char *line, size_t length, const char *file, int number, bool pairs, int64_t most,
                        struct err *e);
/* A file of minimal pairs, or of questions.  `file` is borrowed. */
status items_read(struct items *to, const char *file, bool pairs, int64_t most, struct err *e);
/* Tokens of the longest text with its context, `cap` at most; 0 without items. */
status items_longest(int *longest, const struct items *all, const struct tokenizer *t, int cap, struct err *e);
void items_leave_out(struct items *from, struct item *i); /* frees it and counts it out of its set; its place is the caller's */
void items_free(struct items *i);

/* --- eval_score.c: log-probabilities of many sequences, batched --- */

/* A sequence: input is BOS, target[0] .. target[n-2]; positions from .. n-1 count. */
struct eval_sequence {
    const int32_t *target;
    int n, from;
};
struct eval_score { /* of the positions that count */
    double logp;
    int hits; /* the target is the argmax */
};

struct eval_scorer {
    struct job *job;
    struct model *model;
    int rows, sessions, micro_batches;
    int lockstep; /* sequences that are scored together, a token of each in a pass; 0: each as a prompt */
    int32_t bos;
    /* scratch for `rows` rows */
    int32_t *token, *position, *session, *sequence;
    uint64_t *key;
    float *hidden, *x, *logits;
    int logit_rows;
};

status eval_scorer_open(struct eval_scorer *s, struct job *j, struct model *m, struct err *e);
void eval_scorer_close(struct eval_scorer *s);
/* score[n].  stream keeps the keys of random routing of different texts apart. */
status eval_score(struct eval_scorer *s, struct eval_score *score, const struct eval_sequence *q, size_t n,
                  const struct routing *how, uint64_t stream, const char *what, struct err *e);
/* agreement[layers]: mean over the tokens of |A and O| / |O|, A by `how`, O the Gram set for the state that arrives. */
status eval_agreement(struct eval_scorer *s, double *agreement, const struct eval_sequence *q, size_t n,
                      const struct routing *how, struct err *e);

/* --- results --- */

struct eval_variant {
    bool done;
    double nats, seconds, active_share;
    int64_t hits;
    struct eval_score *windows, *pieces; /* per window of the text; per sequence of the items */
    double *load;                        /* [layers][experts] share of the tokens; NULL: not routed */
    double *agreement;                   /* [layers]; router only */
    int64_t agreement_tokens;
};

struct eval_side { /* a model, or a router version of it */
    const char *name;
    int layers, experts;
    struct eval_variant variant[VARIANTS];
};

struct eval_run {
    struct job *job;
    struct tokenizer *tokenizer;
    struct corpus corpus;
    int window, longest; /* tokens: of a window of text, of the longest item */
    struct eval_sequence *windows, *pieces;
    size_t n_windows, n_pieces;
    int32_t *piece_tokens; /* what pieces point into */
    struct items items;
    size_t left_out; /* items that do not fit */
    struct eval_side side[2];
    int n_sides;
    struct json_t *partial; /* eval_partial.c; NULL: nothing is kept */
};

/* --- eval_partial.c: the finished variants of a run that was stopped --- */

void eval_partial_open(struct eval_run *r);
bool eval_partial_take(struct eval_run *r, int side, int variant); /* it was measured before, and is filled */
status eval_partial_keep(struct eval_run *r, int side, int variant, struct err *e);
void eval_partial_close(struct eval_run *r, bool finished); /* finished: nothing is left on disk */

struct interval {
    double value, low, high; /* 95 % */
};
/* Of sum(difference) / sum(weight) over resamples of the n pairs; resamples 0: low and high are NaN.  `alive` is called now and then. */
void eval_bootstrap(struct interval *out, const double *difference, const double *weight, size_t n, int64_t resamples,
                    uint64_t seed, void (*alive)(void *ctx), void *ctx);

/* Right or not by the sums of its texts.  normalized: by the bytes of each choice. */
bool eval_item_right(const struct item *i, const struct eval_score *pieces, bool normalized);

void eval_fill_result(const struct eval_run *r);
status eval_write_items(const struct eval_run *r, struct err *e);
void eval_print(const struct eval_run *r);

#endif
