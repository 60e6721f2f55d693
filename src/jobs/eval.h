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
enum item_file { ITEMS_PAIRS, ITEMS_QUESTIONS /* choices, or targets */, ITEMS_LAST_WORDS /* targets only */ };
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
status items_parse_line(struct items *to, const char *line, size_t length, const char *file, int number, enum item_file as,
                        int64_t most, struct err *e);
/* A file of them.  `file` is borrowed. */
status items_read(struct items *to, const char *file, enum item_file as, int64_t most, struct err *e);
/* All files of an eval spec. */
status items_read_spec(struct items *to, const struct spec *s, struct err *e);
/* Tokens of the longest text with its context, `cap` at most; 0 without items. */
status items_longest(int *longest, const struct items *all, const struct tokenizer *t, int cap, struct err *e);
void items_leave_out(struct items *from, struct item *i); /* frees it and counts it out of its set; its place is the caller's */
void items_free(struct items *i);

/* --- eval_score.c: log-probabilities of many sequences, batched --- */

enum { EVAL_BLOCK = 128 }; /* tokens of a window of text that a bootstrap draws together */

/* A sequence: input is BOS, target[0] .. target[n-2]; positions from .. n-1 count. */
struct eval_sequence {
    const int32_t *target;
    int n, from;
    size_t first_score; /* position p counts in score first_score + p / block */
    int block;          /* 0: one score for all of it */
};
struct eval_score { /* of the positions that count in it */
    double logp;
    double kl; /* sum of KL(dense || variant) of the distributions, nats; 0 without a reference */
    int hits;  /* the target is the argmax */
};

/* What the dense model's last layer gave for the first tokens of a text, so that its distributions can be had again. */
struct eval_reference {
    const int32_t *tokens; /* of the text: row i belongs to the target tokens + i */
    float *hidden;         /* [rows][D]; NULL: there is none */
    size_t rows;           /* tokens, or fewer where they would take more than EVAL_REFERENCE_BYTES */
    bool filled;
};
enum { EVAL_REFERENCE_BYTES = 256 << 20 };

struct eval_scorer {
    struct job *job;
    struct model *model;
    int rows, sessions, micro_batches;
    int lockstep; /* sequences that are scored together, a token of each in a pass; 0: each as a prompt */
    int32_t bos;
    /* scratch for `rows` rows */
    int32_t *token, *position, *session, *sequence;
    uint64_t *key;
    float *hidden, *x, *logits, *other; /* other: logits of the reference, when there is one */
    struct eval_score *row;             /* [logit_rows] */
    bool *known;                        /* [logit_rows] by the reference */
    int logit_rows;
};

status eval_scorer_open(struct eval_scorer *s, struct job *j, struct model *m, struct err *e);
void eval_scorer_close(struct eval_scorer *s);

struct eval_pass {
    const struct eval_sequence *q; /* [n] */
    size_t n;
    const struct routing *how;
    uint64_t stream;  /* keeps the keys of random routing of different texts apart */
    const char *what; /* for the progress */
    struct eval_score *score;
    size_t n_scores;
    struct eval_reference *reference; /* not filled: this pass fills it; filled: it gives kl; NULL: neither */
};
status eval_score(struct eval_scorer *s, const struct eval_pass *p, struct err *e);
/* agreement[layers]: mean over the tokens of |A and O| / |O|, A by `how`, O the Gram set for the state that arrives. */
status eval_agreement(struct eval_scorer *s, double *agreement, const struct eval_sequence *q, size_t n,
                      const struct routing *how, struct err *e);
/* The same as eval_score(), layer by layer: what goes into every FFN and which experts were active for it ([rows][bits_words(N)]) is shown to visit(). */
status eval_visit(struct eval_scorer *s, const struct eval_pass *p,
                  void (*visit)(void *ctx, int layer, int rows, const float *h, const uint64_t *active), void *ctx,
                  struct err *e);
/* gain[layers]: thresholds for ROUTE_GRAM_VARIABLE at which the layer's k experts are active in the mean over the first tokens of q, front to back:
 * what arrives at a layer has gone through the choices of those before it.  Takes 64 MiB at most. */
status eval_gains(struct eval_scorer *s, double *gain, const struct eval_sequence *q, size_t n, const struct routing *how,
                  struct err *e);
status eval_look_around(struct eval_scorer *s, struct err *e); /* STOPPED; and the ranks hear that we live */

/* --- results --- */

/* Multiply-adds of a token, mean over the layers, over those of a dense FFN (3 D F). */
struct eval_overhead {
    double router;       /* scores */
    double compensation; /* means that are added or taken away (an addition counts as one), and a term of low rank */
};

struct eval_variant {
    char name[80];
    enum spec_variant kind;
    const char *version; /* router@VERSION: that; else NULL */
    double share;        /* static@F, neurons@F: F; else 0 */
    bool done;
    double nats, seconds;
    double active_share, items_share; /* f as measured: on the text, if there is one, else on the items; on the items */
    struct eval_overhead overhead;
    int64_t hits;
    struct eval_score *blocks, *pieces; /* of the text; per sequence of the items */
    double *load;                       /* [layers][experts] share of the tokens; NULL: not routed */
    double *agreement;                  /* [layers]; routers only */
    int64_t agreement_tokens;
    size_t kl_tokens; /* of the text, of which kl speaks; 0: it was not measured */
};

struct eval_side { /* a model, or a router version of it */
    const char *name;
    int layers, experts;
    bool adapted; /* weights were trained: it has no variant dense */
    struct eval_variant variant[EVAL_VARIANTS_MAX];
    int n;
};

struct eval_run {
    struct job *job;
    struct tokenizer *tokenizer;
    struct corpus corpus;
    int window, longest; /* tokens: of a window of text, of the longest item */
    struct eval_sequence *windows, *pieces;
    size_t n_windows, n_blocks, n_pieces;
    double *block_tokens;  /* [n_blocks] */
    int32_t *piece_tokens; /* what pieces point into */
    struct items items;
    size_t left_out; /* items that do not fit */
    struct eval_side side[2];
    int n_sides;
    struct eval_reference reference; /* of the model that is open */
    struct json_t *partial;          /* eval_partial.c; NULL: nothing is kept */
};

bool eval_is_routed(enum spec_variant kind);     /* by experts: it has a load */
void eval_variant_clear(struct eval_variant *x); /* of what was measured */
/* The first variant of a kind that was measured (none with an @), or NULL; by its name. */
const struct eval_variant *eval_find(const struct eval_side *side, enum spec_variant kind);
/* The dense model that a side is held against: its own, or of adapted weights the other side's (compare_model); or NULL. */
const struct eval_variant *eval_dense(const struct eval_run *r, const struct eval_side *side);
const struct eval_variant *eval_find_name(const struct eval_side *side, const char *name);

/* --- eval_gate.c --- */

/* The gates that the spec asks for, all of them into result.json; then ERR_GATE for the first that was not passed. */
status eval_gate(const struct eval_run *r, struct err *e);

/* --- eval.c --- */

struct routing eval_route(enum spec_variant v, const struct shape *shape, const struct router *router, const struct spec *s);
/* Has it a current router? */
status eval_has_router(bool *has, const char *directory, struct err *e);
/* Reads, packs, and tells the ranks of the open model.  version NULL: the current one. */
status eval_open_router(struct router *router, const struct eval_run *r, struct model *model, const char *directory,
                        const char *version, struct err *e);

/* --- eval_inputs.c --- */

/* The windows of a text, whose scores are of EVAL_BLOCK tokens: malloc'ed. */
struct eval_sequence *eval_windows(size_t *n_windows, size_t *n_scores, const struct corpus *c, int window);
void eval_make_windows(struct eval_run *r);
status eval_make_pieces(struct eval_run *r, int positions, struct err *e);
status eval_check_ids(const struct eval_run *r, const struct shape *shape, const char *directory, struct err *e);
status eval_check_same_tokens(const struct eval_run *r, const char *directory, struct err *e);

/* --- eval_partial.c: the finished variants of a run that was stopped --- */

void eval_partial_open(struct eval_run *r);
bool eval_partial_take(struct eval_run *r, int side, int variant); /* it was measured before, and is filled */
status eval_partial_keep(struct eval_run *r, int side, int variant, struct err *e);
void eval_partial_close(struct eval_run *r, bool finished); /* finished: nothing is left on disk */

/* --- eval_figures.c: from sums to figures --- */

struct interval {
    double value, low, high; /* 95 % */
};
/* Of sum(difference) / sum(weight) over resamples of the n pairs; resamples 0: low and high are NaN.  A resample whose weights do not add up to more
 * than 0 counts as infinite.  `alive` is called now and then. */
void eval_bootstrap(struct interval *out, const double *difference, const double *weight, size_t n, int64_t resamples,
                    uint64_t seed, void (*alive)(void *ctx), void *ctx);

/* Right or not by the sums of its texts.  normalized: by the bytes of each choice. */
bool eval_item_right(const struct item *i, const struct eval_score *pieces, bool normalized);
/* Right for the main figure of its set: of a target, every token is the argmax. */
bool eval_right(const struct eval_run *r, const struct item *i, const struct eval_variant *v);

/* What is measured of a variant, as a mean over units: blocks of text for the first three, items for the others. */
enum eval_metric {
    METRIC_NATS,     /* per token */
    METRIC_ACCURACY, /* of the next token */
    METRIC_KL,       /* per token */
    METRIC_PAIRS,    /* share of right items */
    METRIC_CHOICES,
    METRIC_WORDS,
    METRIC_PAIRS_CHANGED, /* share of items that are answered otherwise than by the dense model ("flips": Dutta et al., arXiv 2407.09141) */
    METRIC_CHOICES_CHANGED,
    METRIC_WORD_NATS, /* per target */
    METRICS
};
const char *eval_metric_name(enum eval_metric m);
bool eval_has(const struct eval_run *r, enum eval_metric m, const struct eval_variant *v);

enum eval_ratio {
    RATIO_PLAIN,     /* the figure of v */
    RATIO_LESS,      /* the figure of v less that of a */
    RATIO_OVER,      /* the figure of v over that of a: what is kept */
    RATIO_CORRECTED, /* (v - chance) / (a - chance), chance: of a blind choice of each item */
    RATIO_GAP,       /* (v - a) / (b - a): the share of the gap from a to b that v closes */
};
/* With its interval; a and b as the ratio needs them. */
struct interval eval_figure(const struct eval_run *r, enum eval_metric m, enum eval_ratio how, const struct eval_variant *v,
                            const struct eval_variant *a, const struct eval_variant *b);
double eval_chance(const struct eval_run *r, enum eval_metric m); /* mean over the items; 0 of text */
double eval_value(const struct eval_run *r, enum eval_metric m, const struct eval_variant *v);

/* --- eval_report.c, eval_print.c --- */

void eval_fill_result(const struct eval_run *r);
status eval_write_items(const struct eval_run *r, struct err *e);
void eval_print(const struct eval_run *r);

#endif
