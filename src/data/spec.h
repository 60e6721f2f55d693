/* Job specs: YAML in, one validated struct out.
 *
 * Every key is one row of the table in spec_table.c: name, kinds of job it belongs to, type, default, least, most, choices, help.  From it
 * come parsing, validation, "did you mean", --set, the resolved spec.yaml, the message that is broadcast, and `factorllm help KIND`.
 * Errors are ERR_SPEC: "FILE:LINE: KEY: expected ..., found ..."; an unknown key names the nearest known one.
 */
#ifndef DATA_SPEC_H
#define DATA_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"

struct json_t;

enum job_kind { JOB_FACTORIZE, JOB_FINETUNE, JOB_CONVERT, JOB_EVAL, JOB_INFER, JOB_BENCH, JOB_REPORT, JOB_PIPELINE, JOB_KINDS };

/* Enumerations: the order of names in spec_table.c is the order here. */
enum spec_placement { PLACE_BLOCK, PLACE_ROUND_ROBIN, PLACE_FILE, PLACE_BALANCE };
enum spec_shared_memory { SHARED_AUTO, SHARED_NEVER };
enum spec_exchange_rows { ROWS_F32, ROWS_BF16 };
enum spec_exchange_answers { ANSWERS_EXACT, ANSWERS_F32, ANSWERS_BF16 };
enum spec_precision { PRECISION_STORED, PRECISION_F32, PRECISION_BF16, PRECISION_Q8, PRECISION_Q4 };
enum spec_kv { KV_AS_F32, KV_AS_BF16, KV_AS_Q8 };
enum spec_method { METHOD_DEFAULT, METHOD_FACTORLLM };
enum spec_grouping {
    GROUP_CONTIGUOUS,
    GROUP_RANDOM,
    GROUP_COACTIVATION,
    GROUP_KMEANS,
    GROUP_IMPORTANCE,
    GROUP_PREDICTED,
    GROUPINGS
};
enum spec_budget { BUDGET_UNIFORM, BUDGET_KL, BUDGET_KL_SHARED };
enum spec_scale { SCALE_ONE, SCALE_PAPER /* N/k */ };
enum spec_compensation { COMPENSATE_NONE, COMPENSATE_MEAN };
enum spec_labels { LABELS_PAPER, LABELS_GRAM, LABELS_ENERGY, LABELS_NORM };
enum spec_token_weights { TOKENS_EVEN, TOKENS_LENGTH, TOKENS_SQUARE };
enum spec_loss { LOSS_PAPER /* KL(softmax(0/1 label) || router) */, LOSS_BCE, LOSS_LISTWISE, LOSS_REGRESSION };
enum spec_router { SPEC_ROUTER_LINEAR, SPEC_ROUTER_BOTTLENECK, SPEC_ROUTER_GATE, SPEC_ROUTER_LOW_RANK }; /* as enum router_kind */
enum spec_start { START_RANDOM, START_RIDGE, START_CURRENT };
enum spec_refit { REFIT_MODEL /* what the model has */, REFIT_UNSELECTED, REFIT_CONSTANT };
enum spec_refit_scale { REFIT_SCALE_MODEL, REFIT_SCALE_FITTED };
enum spec_train { TRAIN_ROUTER, TRAIN_COMPENSATION, TRAIN_NORMS, TRAIN_EXPERTS, TRAIN_LORA };
enum spec_balance { BALANCE_EXPERTS, BALANCE_RANKS };
enum spec_select { SELECT_TOP_K, SELECT_THRESHOLD };
enum spec_part { PART_KERNELS, PART_EXCHANGE, PART_STEP, PART_STARTUP, PARTS };
enum spec_variant {
    VARIANT_DENSE,
    VARIANT_STATIC,
    VARIANT_RANDOM,
    VARIANT_ROUTER,
    VARIANT_ORACLE,
    VARIANTS_INFER, /* a prompt can be answered by those above: the others need more than the token at hand, or are no way to run */
    VARIANT_ORACLE_VARIABLE = VARIANTS_INFER,
    VARIANT_NEURONS,
    VARIANTS
};

enum { EVAL_VARIANTS_MAX = 64 /* VARIANTS, router versions, controls with an F of their own */, EVAL_DOMAINS_MAX = 64 };

enum { BENCH_SHARES = 4, BENCH_BATCHES = 8, REPORT_SHARES = 4 }; /* most entries of these lists */

struct spec_list {
    char **items;
    int n;
};

/* Where text comes from: a file, or (file NULL) `sample_tokens` tokens sampled from the dense model itself at temperature 1. */
struct spec_text {
    char *file;
    int64_t bytes;         /* of the file, 0 = all */
    int64_t sample_tokens; /* 0 = none */
    int64_t sample_seed;
};

struct spec {
    enum job_kind kind;
    char *source; /* path of the YAML file, for messages */
    char *name;   /* of a pipeline's step: unique in it, default the kind; result.json is keyed by it */
    char *output; /* directory; a step's default is OUTPUT/NAME */
    char *
        model; /* directory, NULL in a report; a pipeline's steps work on the pipeline's model until a factorize step made one, then on that */
    int64_t seed;
    bool verify_weights; /* look for NaN and infinity while loading */

    struct {
        int64_t placement;
        char *placement_file;
        double coordinator_share; /* of the experts, with placement: balance; 0: estimated */
        bool coordinator_experts; /* the coordinator rank holds experts too (always so with one rank) */
        double deadline_seconds;  /* silence of a rank for longer is its loss */
        int64_t threads;          /* per rank */
        int64_t kernels;          /* 0: the best there are; else 1 + enum isa of num, in the same order */
        int64_t micro_batches;    /* 1 or 2: attention of one overlaps the experts of the other */
        int64_t coordinators;     /* ranks with attention, each for its own sessions; infer and bench only, 0 in others */
        bool tensor_parallel;     /* attention by heads and the head by words over all ranks; eval, infer and bench only */
        int64_t shared_memory;    /* enum spec_shared_memory: between ranks of one host */
        /* enum spec_exchange_rows, spec_exchange_answers: what travels; anything but the defaults makes the bits depend on the placement */
        int64_t exchange_rows, exchange_answers;
    } cluster;
    struct {
        int64_t memory_mib;    /* per rank; 0: what the machine has */
        int64_t batch_rows;    /* most token rows in one step */
        int64_t prefill_chunk; /* most rows of prompts in a step in which a sequence decodes; 0: what is left */
        int64_t sessions;      /* most sequences in flight */
        int64_t positions;     /* most positions of one sequence; 0: what the job needs, at most the model's */
    } limits;

    struct { /* enum spec_precision: formats of the weights of a model that is opened, or written */
        int64_t experts, attention, head, router;
        int64_t activations; /* 1: bfloat16 into products with bf16 weights */
        int64_t kv;          /* enum spec_kv: keys and values of what a session has seen */
    } precision;

    struct {
        int64_t method, experts, grouping, scale, compensation, budget;
        int64_t budget_tokens;   /* of the calibration text, for budget: kl */
        struct spec_list active; /* integers: k of every layer, or one for all */
        struct spec_list shared; /* share of a layer's neurons that is always active, 0 .. 1; of every layer, or one for all */
        struct spec_text calibration;
        int64_t profile_tokens,
            profile_mib; /* the sample of neurons' values: at most so many tokens, and so much memory of all ranks together */
        int64_t shard_mib;
    } factorize;
    struct {
        int64_t method, labels, loss, select;
        int64_t router, router_rank;       /* enum spec_router; of the bottleneck and the gate */
        int64_t token_weights;             /* enum spec_token_weights */
        int64_t start;                     /* enum spec_start */
        double ridge;                      /* of start: ridge, and of compensation_rank */
        int64_t compensation, refit_scale; /* enum spec_refit, enum spec_refit_scale */
        int64_t compensation_rank;         /* 0: none */
        int64_t fit_tokens;                /* of the text, for start: ridge and for what is fitted after training */
        struct spec_text text;
        int64_t tokens;       /* budget, counted over all passes */
        int64_t sequence;     /* tokens of one window; 0: 2048 or the model's positions */
        int64_t batch_tokens; /* per optimizer step */
        double learning_rate, final_learning_rate_ratio, weight_decay, beta1, beta2, clip;
        double warmup; /* share of the steps */
        int64_t checkpoint_tokens;
        double checkpoint_seconds;
        char *version; /* name of the router version; default v1, v2, ... the next free */
    } finetune;
    struct { /* finetune, stage 2 */
        int64_t stage;
        char *from;             /* router version to start from; NULL: the current one */
        struct spec_list train; /* names of enum spec_train */
        double lm_loss, budget, load_balance;
        int64_t balance_over;                                  /* enum spec_balance */
        double gate_temperature, final_gate_temperature_ratio; /* of the gates' gradients, in standard deviations of the scores */
        double compensation_rate;                              /* learning rate of the means over that of the router */
        double expert_rate;                                    /* of the experts over that of the router */
        int64_t lora_rank;
    } stage2;
    struct {
        int64_t shard_mib;
    } convert;
    struct {
        struct spec_text text;
        int64_t window;                 /* 0: 2048 or the model's positions */
        struct spec_list variants;      /* names of enum spec_variant, router@VERSION, static@F, neurons@F */
        char *baseline;                 /* one of them: every other one is held against it, too */
        struct spec_list minimal_pairs; /* JSONL files */
        struct spec_list multiple_choice;
        struct spec_list last_word;
        struct spec_list domains; /* "NAME=FILE": texts for the knowledge map */
        int64_t domain_tokens;    /* first tokens of each */
        int64_t items;            /* first items of each set; 0: all */
        char *compare_model;      /* another directory: side by side with `model` */
        char *compare_router;     /* or another router version of the same one */
        int64_t bootstrap;        /* resamples */
        int64_t decode_batch;     /* sequences that are scored in lockstep, a token of each in a pass; 0: prompts as they come */
        double batch_experts;     /* of variant router, as in infer */
        int64_t agreement_tokens; /* whole windows of text, or items, up to so many; 0: no agreement */
        double
            min_agreement; /* gate: least share of the oracle's experts that `router` chooses, mean over layers; < 0: no gate */
        double max_drop;   /* gate: largest relative loss of next-token accuracy of `router` against `dense`; < 0: no gate */
    } eval;
    struct {
        char *input;  /* JSONL */
        char *result; /* JSONL, default OUTPUT/responses.jsonl */
        int64_t max_tokens;
        double temperature, top_p, min_p;
        int64_t top_k;
        struct spec_list stop;
        int64_t variant; /* enum spec_variant: how to route, default router */
        bool ignore_eos;
        double batch_experts; /* share of a layer's experts that a decoding batch touches; 1: any */
    } infer;
    struct {
        struct spec_list parts;   /* names of enum spec_part */
        struct spec_list compare; /* directories that are measured beside `model` */
        struct spec_list shares;  /* numbers: k / N of factorized models, 0 < share <= 1; none: the model's own */
        double
            batch_experts; /* decoding batches of factorized models once more with this share of the experts (infer.batch_experts); 1: not */
        struct spec_list formats; /* names of formats, for kernels */
        struct spec_list rows;    /* numbers, for kernels */
        struct spec_list batches; /* numbers: sequences that decode together */
        int64_t prefill;          /* tokens; 0: not measured */
        int64_t decode_tokens;    /* of each sequence and round; 0: not measured */
        int64_t context;          /* positions that stand before those of a decode */
        int64_t rounds;           /* in which the sides take turns */
        double seconds;           /* least time of one measurement of a kernel */
        bool rivals;              /* other libraries' products beside ours, where they are installed */
    } bench;

    struct {
        struct spec_list inputs; /* output directories; a step's default is those of the steps before it */
        struct spec_list rows;   /* "LABEL=DIRECTORY" or "LABEL=DIRECTORY#VARIANT", those of a row together */
        struct spec_list shares; /* numbers: f of the columns of the ladder */
        char *title, *about;
    } report;

    struct spec *steps; /* pipeline only: fully resolved, in order */
    int n_steps;
};

/* Reads and validates; overrides are "key=value" in the order given (for a pipeline "NAME.key=value" reaches a step).  Relative
 * paths stay relative to the working directory.  The caller frees with spec_free(). */
status spec_load(struct spec **out, const char *path, const char *const *overrides, int n_overrides, struct err *e);
status spec_parse(struct spec **out, const char *text, size_t length, const char *source, const char *const *overrides,
                  int n_overrides, struct err *e);
void spec_free(struct spec *s);

/* The resolved spec as YAML that spec_load() reads back to the same spec. */
void spec_dump(struct str *out, const struct spec *s);

/* The settings that shape what the job makes, by key, as a flat object of JSON (lists are arrays): every row of the table that counts in
 * this job, whatever its value, but those of the whole launch (cluster.*, limits.memory_mib) and those with KEY_ASIDE.  What a job made says
 * with it how it was made; a new key stands in it by itself.  The caller frees with json_free(). */
struct json_t *spec_settings(const struct spec *s);
/* The same of a job that ran: run, a flat object, tells it from others.  Numbers that stand there under the name of a key are what the job made of
 * it (0: what it needs), and so are keys without a value (from: the current router); everything else is as the spec has it.  What is no key
 * (digests) goes to rest. */
struct json_t *spec_settings_of_run(const struct spec *s, const struct json_t *run, struct json_t *rest);

/* The protobuf message of proto/job.proto: what the coordinator broadcasts. *bytes is malloc'ed. */
void spec_pack(uint8_t **bytes, size_t *n, const struct spec *s);
status spec_unpack(struct spec **out, const uint8_t *bytes, size_t n, struct err *e);

/* A factorize job: the key that cannot do without a text to calibrate on, or NULL. */
const char *spec_needs_text(const struct spec *s);
const char *spec_grouping_name(enum spec_grouping g);
/* Of a key that takes a number, or one for every layer. */
double spec_number(const struct spec_list *l, int layer);
double spec_mean(const struct spec_list *l);
double spec_largest(const struct spec_list *l);

const char *spec_kind_name(enum job_kind k);
int spec_kind_find(const char *name); /* -1 */
const char *spec_variant_name(enum spec_variant v);
/* An item of eval.variants.  What is not there is NULL. */
struct spec_variant_item {
    enum spec_variant kind;
    const char *version; /* of router@VERSION */
    const char *share;   /* of static@F, neurons@F: a number above 0, at most 1 */
};
struct spec_variant_item spec_variant_of(const char *item);
const char *spec_part_name(enum spec_part p);
bool spec_trains(const struct spec *s, enum spec_train what);
bool spec_trains_experts(const struct spec *s); /* whole or by updates of low rank */
/* finetune, stage 2, of weights of the model itself. */
bool spec_adapts(const struct spec *s);
/* The job writes a model, OUTPUT/model: factorize, convert, and a finetune that adapts. */
bool spec_makes_model(const struct spec *s);
const char *spec_train_name(enum spec_train what);
const char *spec_word(const struct spec *s, const char *name); /* the value of an enumeration's key of this job, as in YAML */
void spec_help(FILE *to, enum job_kind k); /* the keys of a kind, with defaults and help, as an aligned table */

#endif
