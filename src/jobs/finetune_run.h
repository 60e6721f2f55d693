/* A run of finetune, whatever the stage: text as windows, a trainer that learns from batch after batch, a checkpoint, a new router version.
 *
 * The text is cut into windows.  Some of them are set aside, and what the training changes is measured on those before and after; the others are visited in a
 * seeded order, pass after pass, until the budget of tokens is used.  OUTPUT/checkpoint holds the whole state of the run: a run that was stopped
 * goes on from it and ends with the same bits as one that was not.
 * A stage is a table of functions; its own state begins with the struct finetune_run that they all get.
 */
#ifndef JOBS_FINETUNE_RUN_H
#define JOBS_FINETUNE_RUN_H

#include "data/corpus.h"
#include "jobs/job.h"
#include "jobs/room.h"
#include "model/router_file.h"
#include "num/adamw.h"
#include "train/checkpoint.h"
#include "train/windows.h"

enum { THRESHOLD_TOKENS = 8192 }; /* of whose scores the thresholds of select: threshold are found */

struct finetune_stage;

struct finetune_run {
    struct job *job;
    const struct spec *spec;
    const struct finetune_stage *stage;
    struct shape shape;
    struct room room; /* the model's; may be larger than the training's, for sampling */
    struct model *model;
    struct tokenizer *tokenizer;
    struct corpus corpus;
    struct windows windows;
    struct router router; /* the one that is trained */
    char from[64];        /* the version it started from; empty: none */

    struct json_t *identity, *before; /* before: what measured() said at the start */
    char *checkpoint;
    int64_t steps, tokens;        /* in all; seen */
    double loss_first, loss_last; /* of a batch */
    double seconds_before, started;
    int64_t saved_step, saved_tokens, first_step, first_tokens;
    double saved_at;
};

struct finetune_stage {
    const char *name;      /* in router.json */
    const char *loss;      /* member of what tally() gives, and of the checkpoint: LOSS_first, LOSS_last */
    const char *per_layer; /* member of tally() that has one number per layer */
    int64_t probe_tokens;  /* most tokens that are set aside */
    int64_t batch_tokens;  /* of the largest batch that the stage itself asks for, beside finetune.batch_tokens */
    int arrays;            /* most arrays of a checkpoint */

    status (*check)(struct finetune_run *, struct err *e); /* what the spec says, before anything is opened; sets `from` */
    status (*open)(struct finetune_run *, struct err *e);  /* the router and its trainer */
    status (*identify)(const struct finetune_run *, struct json_t *identity, struct err *e); /* settings of its own */
    status (*begin)(struct finetune_run *,
                    struct err *e);        /* of a new run: sets `before`, and what is fitted before the first step */
    void (*resume)(struct finetune_run *); /* before a checkpoint is read; may be NULL */
    status (*settle)(struct finetune_run *, struct err *e); /* what is fitted behind the last step */
    void (*unsettle)(struct finetune_run *);                /* as it was before settle(), which was interrupted; may be NULL */

    status (*batch)(struct finetune_run *, bool learn, struct err *e);                 /* the windows' batch */
    status (*update)(struct finetune_run *, double rate, double *norm, struct err *e); /* norm: of the gradient */
    double (*loss_of)(const struct finetune_run *);                                    /* of the last batch */
    int64_t (*steps)(const struct finetune_run *);
    void (*set_steps)(struct finetune_run *, int64_t steps);
    int (*state)(struct finetune_run *, struct checkpoint_array *out); /* its arrays; how many */
    /* What of the state is on other ranks has a place in state() between gather(), with `fill` from them, and scatter(), with `use` to them; both may be NULL. */
    status (*gather)(struct finetune_run *, bool fill, struct err *e);
    status (*scatter)(struct finetune_run *, bool use, struct err *e);

    status (*write)(struct finetune_run *, const char *version, const struct json_t *about,
                    struct err *e); /* NULL: into the model */

    struct json_t *(*tally)(const struct finetune_run *);                       /* of the last batch */
    void (*step)(const struct finetune_run *, struct json_t *o, char line[64]); /* of the log: into o, and in short */
    void (*result)(struct finetune_run *, struct json_t *o, const struct json_t *after);
    void (*about)(const struct finetune_run *, struct json_t *o, struct json_t *metrics, const struct json_t *after);
    void (*print)(const struct finetune_run *, const struct json_t *after, const char *version);
};

/* Runs the whole; r: a stage's, zeroed.  What is open at the end stays open, for the stage to close before finetune_close(). */
status finetune_run(struct finetune_run *r, struct job *j, const struct finetune_stage *stage, struct err *e);
void finetune_close(struct finetune_run *r);

/* For the stages. */
bool finetune_alive(void *run); /* a trainer's `alive`: true once the job is to stop at once */
struct adamw_options finetune_adamw(const struct spec *s);
struct json_t *finetune_measured(struct finetune_run *r, struct err *e); /* tally() of the probe; NULL: error */
struct json_t *finetune_reals(const double *x, int n);
struct json_t *finetune_loads(const struct finetune_run *r, const uint64_t *load,
                              int64_t rows); /* [layers][experts], as shares of the rows */
struct json_t *finetune_before_and_after(const struct finetune_run *r, const struct json_t *after,
                                         const char *key); /* {before, after} */

#endif
