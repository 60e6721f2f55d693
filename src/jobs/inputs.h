/* What a step read and what it made: a pipeline does a step again unless both are as they were when it ended well. */
#ifndef JOBS_INPUTS_H
#define JOBS_INPUTS_H

#include <stdbool.h>

#include "data/json.h"
#include "data/spec.h"
#include "engine/cluster.h"

/* SHA-256 over the weights (fingerprint.h), the router in use where the job uses one, and every file that the spec names. */
status inputs_digest(char hex[65], const struct spec *s, struct cluster *c, struct err *e);

/* Is what the step made still where it put it?  `mine` is the step's object in its result.json. */
bool inputs_product_exists(const struct spec *s, const struct json_t *mine);

#endif
