/* Private to the parts `step` and `startup`: the sides, what is measured of each, and what is said about it. */
#ifndef JOBS_BENCH_STEP_H
#define JOBS_BENCH_STEP_H

#include "base/timing.h"
#include "jobs/bench.h"
#include "jobs/room.h"
#include "model/forward.h"

enum { VARIANTS_MAX = 2 * BENCH_SHARES, MEASURES_MAX = 1 + BENCH_BATCHES, NUMBER_TEXT = 16, CHECK_TOKENS = 12 };

struct measure {   /* of a variant */
    int sequences; /* that decode together; 0: a prefill */
    int rows;      /* tokens that pass in a round */
};

struct variant {  /* a side at one share of active experts; a dense side has one */
    int active;   /* experts; 0: dense */
    double share; /* f by design */
    struct routing how;
    double *seconds[MEASURES_MAX]; /* [rounds] of all rows */
    double *wait[MEASURES_MAX];    /* [rounds] share of the coordinator's time in which it waited for answers */
    double touched[MEASURES_MAX];  /* share of the experts that some row of a step wanted; seen in one step of each */
    int64_t sections[MEASURES_MAX][TIMING_SECTIONS]; /* ns of the coordinator, over all rounds */
};

struct side { /* a model directory */
    const char *directory;
    char name[BENCH_TEXT];
    struct shape shape;
    enum format format[WEIGHT_PARTS];
    struct router router;
    struct variant variant[VARIANTS_MAX];
    int variants;
    int dense;  /* index of the dense side in the same format, -1: none */
    int coarse; /* of the factorized side in the same format with the fewest experts, -1: it is the one, or dense */
    bool wrong;
    float *logits;        /* dense: of the check's tokens */
    double *open, *first; /* [rounds] seconds; until the model is open, until the first token has passed */
    double *read, *fma;   /* [rounds] of the machine, looked at just before */
};

struct race {
    struct bench *bench;
    struct side *side;
    int n, rounds;
    struct measure measure[MEASURES_MAX];
    int measures;
    struct room room;
    bool step, startup;        /* which parts were asked for */
    double *bar[FORMAT_COUNT]; /* [rounds] operations/s of the best library for the products of a dense prefill; NULL: none */
    const char *bar_of[FORMAT_COUNT];

    /* one step */
    int32_t *token, *position, *session;
    bool *asked; /* none but the row that race_answer() asks for */
    float *hidden, *logits;
};

/* Held to fewer experts only decoding batches change. */
static inline bool race_measures(const struct variant *v, const struct measure *w)
{
    return v->how.batch_experts == 0.0 || w->sequences > 1;
}

void *race_take(size_t n, size_t size); /* zeros, to be freed */
/* Opens a side, on all ranks. */
status race_model(struct race *r, const struct side *x, struct model **m, struct err *e);
/* `n` tokens of one sequence, positions first .. first + n - 1; r->hidden gets their states. */
status race_prompt(struct race *r, const struct routing *how, int first, int n, struct err *e);
/* A prompt of n tokens of which only the last one's hidden state is asked for, as in front of an answer. */
status race_answer(struct race *r, const struct routing *how, int n, struct err *e);
/* One token of each of `sequences` sequences, at `position`, and a sample of each; `same`: all of the first one's. */
status race_decode(struct race *r, const struct routing *how, int sequences, int position, bool same, struct err *e);

/* bench_check.c: opens a side, says what is wrong with it (side.wrong; no error), and sees what share of the experts its steps want. */
status race_check(struct race *r, struct side *x, struct err *e);
void race_report(struct race *r); /* bench_step_report.c */

/* Whether the formats of all parts are the same. */
static inline bool same_formats(const struct side *a, const struct side *b)
{
    for (int p = 0; p < WEIGHT_PARTS; p++)
        if (a->format[p] != b->format[p]) return false;
    return true;
}

#endif
