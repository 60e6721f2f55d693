/* The timing block at the end of every run: where the time of the ranks went, and what was got out of the machine. */
#ifndef JOBS_TIMING_REPORT_H
#define JOBS_TIMING_REPORT_H

#include "base/log.h"
#include "base/timing.h"
#include "data/json.h"
#include "num/probe.h"

struct timing_spread { /* of one section over the ranks; seconds */
    double least, mean, most, share /* of the time of all ranks */;
};
void timing_spread(struct timing_spread *out, const struct timing *t, int ranks, enum timing_section s);

/* Seconds of a coordinator in passes through a model and what belongs to them, waiting included; 0: there was none. */
double timing_passes(const struct timing *t);

/* {"sections": {NAME: {"min", "avg", "max", "share"}}, "tokens", "tokens_per_second", ..., "memory_bytes": [per rank]} of ranks t[0 .. ranks-1].
 * machine: measured on the coordinator alone; zeros: not measured. */
struct json_t *timing_json(const struct timing *t, int ranks, const struct probe *machine);
/* Nothing is said of a run without passes. */
void timing_print(struct log *l, const struct timing *t, int ranks, const struct probe *machine);

#endif
