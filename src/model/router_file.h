/* Routers on disk: DIRECTORY/routers/VERSION/router.safetensors and router.json; DIRECTORY/routers/current names the one in use
 * (model/router_versions.h). */
#ifndef MODEL_ROUTER_FILE_H
#define MODEL_ROUTER_FILE_H

#include "data/json.h"
#include "model/shape.h"
#include "moe/moe.h"

/* What a router consists of; {0} is the linear one. */
struct router_form {
    int32_t kind, rank;                        /* enum router_kind */
    int32_t means, scaled, low_rank, constant; /* constant: d without a term of low rank */
};
struct router_form router_form_of(const struct router *r);
/* malloc'ed, zeroed (a scale: 1).  ERR_LIMIT; ERR_SPEC: a rank that is not 1 .. D. */
status router_alloc(struct router *r, const struct shape *s, struct err *e);
status router_alloc_form(struct router *r, const struct shape *s, const struct router_form *form, struct err *e);
void router_free(struct router *r);
/* Of everything that decides what it answers: how it selects, what it consists of, and every number. */
void router_digest(char hex[65], const struct router *r);
/* For inference: its matrices in the layout of the kernels, instead of packing them in every step.  What r->weight is changed to later does not count. */
status router_pack(struct router *r, enum format f, struct gemm *g, struct err *e);
/* router_cost() of this model's layers, in the mean. */
struct router_cost router_cost_of(const struct router *r, const struct shape *s);
/* It, and all of it as a share of the dense FFN's multiply-adds: an object. */
struct json_t *router_cost_json(const struct router *r, const struct shape *s);
/* Small random weights from the seed, bias 0: what an untrained router is. */
void router_random(struct router *r, uint64_t seed);

/* version NULL: the current one.  ERR_IO if there is none; shapes are checked against the model. */
status router_read(struct router *r, const char *directory, const char *version, const struct shape *s, struct err *e);
/* Writes the version's directory (atomically: under a temporary name, renamed) and, with `promote`, makes it current.  `about` (borrowed): parent, spec,
 * data digest, metrics.  With SHA256SUMS of both files. */
status router_write(const struct router *r, const char *directory, const char *version, const struct json_t *about, bool promote,
                    struct err *e);
status router_current(char version[64], const char *directory, struct err *e);      /* "" if there is none */
status router_next_version(char version[64], const char *directory, struct err *e); /* v1, v2, ... the first free one */

#endif
