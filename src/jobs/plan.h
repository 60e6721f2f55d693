/* What a job would take and write, without MPI and without loading weights: only headers and config.json are read. */
#ifndef JOBS_PLAN_H
#define JOBS_PLAN_H

#include <stdio.h>

#include "base/err.h"
#include "data/spec.h"
#include "jobs/room.h"
#include "model/model.h"
#include "moe/placement.h"

/* Prints the plan of every step on `ranks` ranks, and refuses what a run would refuse, with the same status: files that are not there,
 * a model that does not fit the step, memory that does not suffice.  Memory is that of limits.memory_mib for each rank, or else
 * what this machine has for all of them. */
status plan_print(FILE *to, const struct spec *s, int ranks, struct err *e);

/* How many ranks but the coordinator a token needs in a layer in the mean, if its k active experts are any k with equal chance:
 * the sum over remote ranks with n_r of the N experts of 1 - C(N - n_r, k) / C(N, k).  Mean over layers.  Pure. */
double plan_remote_ranks(const struct placement *p, int k);

/* One step with what is known of its model before anything runs. */
struct plan_step {
    const struct spec *spec;
    struct shape shape;  /* of the model it works on */
    const char *made_by; /* name of the step that makes this model, or NULL: it is on disk */
    bool routed;         /* there is a router, or there will be */
    struct weights_plan weights;
    bool opens;                       /* it runs the model; else it only reads its files */
    const char *directory;            /* of the tokenizer: of the model, or of that which it will be made from */
    struct room room;                 /* as the job will ask for */
    struct shape other;               /* of compare_model */
    const struct plan_step *other_by; /* the step that will make it, or NULL: it is there */
    struct weights_plan other_weights;
    bool has_other;
    struct room other_room;
};

/* Fills step i of a pipeline (or the job itself, i = 0) from the files and from steps 0 .. i-1 before it, and checks files and sizes. */
status plan_step(struct plan_step *steps, const struct spec *s, int i, struct err *e);
/* The shape that a factorize job makes of a dense one. */
status plan_factorized(struct shape *out, const struct shape *dense, const struct spec *s, struct err *e);

#endif
