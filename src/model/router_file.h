/* Routers on disk: DIRECTORY/routers/VERSION/router.safetensors and router.json; DIRECTORY/routers/current names the one in use
 * (model/router_versions.h). */
#ifndef MODEL_ROUTER_FILE_H
#define MODEL_ROUTER_FILE_H

#include "data/json.h"
#include "model/shape.h"
#include "moe/moe.h"

status router_alloc(struct router *r, const struct shape *s, struct err *e); /* malloc'ed, zeroed */
void router_free(struct router *r);
/* For inference: its matrices in the layout of the kernels, instead of packing them in every step.  What r->weight is changed to later does not count. */
status router_pack(struct router *r, enum format f, struct gemm *g, struct err *e);
/* Small random weights from the seed, bias 0: what an untrained router is. */
void router_random(struct router *r, uint64_t seed);

/* version NULL: the current one.  ERR_IO if there is none; shapes are checked against the model. */
status router_read(struct router *r, const char *directory, const char *version, const struct shape *s, struct err *e);
/* Writes the version's directory (atomically: under a temporary name, renamed) and, with `promote`, makes it current.  `about` (borrowed): parent, spec,
 * data digest, metrics. */
status router_write(const struct router *r, const char *directory, const char *version, const struct json_t *about, bool promote,
                    struct err *e);
status router_current(char version[64], const char *directory, struct err *e);      /* "" if there is none */
status router_next_version(char version[64], const char *directory, struct err *e); /* v1, v2, ... the first free one */

#endif
