/* What every job gets and gives.  Jobs run on the coordinator; one file per kind. */
#ifndef JOBS_JOB_H
#define JOBS_JOB_H

#include <stdio.h>

#include "base/log.h"
#include "data/json.h"
#include "data/spec.h"
#include "engine/cluster.h"

struct job {
    const struct spec *spec; /* of this job or step */
    const char *version;     /* of the program */
    struct cluster *cluster;
    struct log *log;
    bool in_pipeline;      /* what an earlier launch left is in its way only if it can be used */
    char answers[65];      /* digest of the resolved spec and of all that it reads; empty: not known */
    FILE *events;          /* OUTPUT/log.jsonl */
    struct json_t *result; /* an object that the job fills; becomes OUTPUT/result.json */
};

status job_factorize(struct job *j, struct err *e);
status job_finetune(struct job *j, struct err *e);
status job_finetune_stage2(struct job *j, struct err *e); /* with stage: 2 */
status job_convert(struct job *j, struct err *e);
status job_eval(struct job *j, struct err *e);
status job_infer(struct job *j, struct err *e);
status job_bench(struct job *j, struct err *e);
status job_report(struct job *j, struct err *e);

/* Runs a spec, whatever its kind: makes OUTPUT, writes spec.yaml, log.jsonl and result.json, calls the job, or the steps of a pipeline in order.
 * A pipeline's result.json has one member per step, keyed by the step's name.  version: of the program.  Coordinator. */
status job_run(const struct spec *s, const char *version, struct cluster *c, struct log *l, struct err *e);

/* One line of log.jsonl: {"time": ..., "event": event, ...members of `o`}.  Takes o (may be NULL). */
void job_event(struct job *j, const char *event, struct json_t *o);

/* Text for calibration, fine-tuning or evaluation as tokens: read from the file, or sampled from the dense model (all experts active; cached as
 * OUTPUT/NAME.tokens.json).  `m` is the open model, used for sampling only. */
struct corpus;
struct tokenizer;
status job_text(struct job *j, const struct spec_text *t, const char *name, struct model *m, const struct tokenizer *k,
                struct corpus *out, struct err *e);

#endif
