/* Private to the bench job: what a measurement is, how figures are made of it, and where they go.
 *
 * A figure is the median over the rounds; a ratio is the ratio of two medians of one run, whose sides took turns.  Correctness comes first: a side whose
 * answers are wrong gets no figure, and the job ends with ERR_GATE.
 */
#ifndef JOBS_BENCH_H
#define JOBS_BENCH_H

#include <stdio.h>

#include "jobs/job.h"
#include "model/weights.h"
#include "num/probe.h"

enum { BENCH_ROUNDS_MAX = 1000, BENCH_TEXT = 64 };

/* --- bench_rows.c: figures, and rows of tables; pure --- */

struct bench_figure {
    double median, least, most;
    int rounds; /* 0: nothing was measured */
};
/* Of n > 0 samples; the median of an even number is the mean of the middle two.  Does not change x. */
struct bench_figure bench_figure(const double *x, int n);
/* a / b, or NaN where b is 0 or one of them was not measured. */
double bench_ratio(const struct bench_figure *a, const struct bench_figure *b);

struct bench_row {
    enum spec_part part;
    char what[BENCH_TEXT];   /* "product", "prefill", "decode", ... */
    char side[BENCH_TEXT];   /* what was measured: a directory's name, "ours", "oneDNN", ... */
    char format[BENCH_TEXT]; /* of the weights, or "" */
    char shape[BENCH_TEXT];  /* "2048x5632", or "" */
    int rows;                /* rows of a product, tokens of a prompt, sequences that decode; 0: does not apply */
    double share;            /* f: neurons active for a token; 1 dense; 0: does not apply */
    char unit[BENCH_TEXT];
    struct bench_figure figure;
    double ratio; /* to another side measured in the same run; NaN: none */
    char of[BENCH_TEXT];
    double bound; /* share of what the machine or the arithmetic allows; NaN: none */
    char bound_of[BENCH_TEXT];
};
struct bench_row bench_row(enum spec_part part, const char *what, const char *side); /* no ratio, no bound, nothing measured */

struct bench_place { /* where all rows of a run were measured */
    char date[32], commit[BENCH_TEXT], cpu[BENCH_TEXT], isa[BENCH_TEXT], binding[BENCH_TEXT];
    int ranks, threads;
};
/* "0-3,6": processors in a mask of sched_getaffinity(). */
void bench_binding(char out[BENCH_TEXT], const void *mask, int bits);

/* One line each, with its newline: the CSV's header, a row, a row as JSON (samples may be NULL). */
void bench_csv_header(struct str *out);
void bench_csv_row(struct str *out, const struct bench_place *p, const struct bench_row *r);
void bench_json_row(struct str *out, const struct bench_place *p, const struct bench_row *r, const double *sample);

/* --- bench_bounds.c: what the arithmetic allows; pure --- */

double bench_format_bytes(enum format f);              /* of a weight, its share of the scales included */
double bench_attention_weights(const struct shape *s); /* Q, K, V and output projections of all layers */
double bench_ffn_weights(const struct shape *s);
double bench_head_weights(const struct shape *s);
/* Share of N experts that some of `sequences` rows want, each k of them, if all sets are as likely and independent. */
double bench_touched(int experts, int active, int sequences);
/* Bytes of weights that a step of few rows reads, when the share `touched` of the FFNs is wanted by any of them.  Without the routers' and the cache's. */
double bench_step_bytes(const struct shape *s, const enum format format[WEIGHT_PARTS], double touched);
/* Multiplications and additions of a prompt of n tokens: products, the scores and mixtures of attention, the head once; in the last layer keys and values of all rows, and all else of one. */
double bench_prefill_flops(const struct shape *s, double f, int n);

/* --- bench.c: the run --- */

struct bench {
    struct job *job;
    struct shape shape; /* of `model` */
    struct bench_place place;
    FILE *csv, *jsonl;
    struct probe_memory *memory;
    int wrong; /* sides that were refused a figure */
    char first_wrong[256];
    struct bench_figure read, fma; /* of the machine, by the part that ran last; rounds 0: not measured */
};

/* Writes a row to bench.csv and bench.jsonl. */
void bench_put(struct bench *b, const struct bench_row *r, const double *sample);
/* Notes and says that a side is wrong: it gets no figure. */
void bench_refuse(struct bench *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
status bench_probe(struct bench *b, struct probe *out, struct err *e);
bool bench_stopped(const struct bench *b, struct err *e); /* STOPPED in *e */

status bench_kernels(struct bench *b, struct err *e);  /* bench_kernels.c */
status bench_exchange(struct bench *b, struct err *e); /* bench_exchange.c */
status bench_step(struct bench *b, struct err *e);     /* bench_step.c: the parts step and startup */

#endif
