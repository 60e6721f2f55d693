/* The table at the end of a pipeline: what was made, what it kept, what it costs, in words a newcomer understands. */
#ifndef JOBS_SUMMARY_H
#define JOBS_SUMMARY_H

#include "base/log.h"
#include "data/json.h"
#include "data/spec.h"

/* result: the pipeline's result.json; steps that are not in it leave their lines out.  processors: of the host that all
 * ranks are on; 0: there are several hosts. */
void summary_print(struct log *l, const struct spec *s, const struct json_t *result, int processors);

#endif
