/* finetune: the router that is trained, where it starts, and what is fitted for it afterwards, as the spec says. */
#ifndef JOBS_FINETUNE_FIT_H
#define JOBS_FINETUNE_FIT_H

#include "data/spec.h"
#include "model/router_file.h"
#include "train/fit.h"

/* Room for all that the spec asks for; random weights, or with start: current those of the model's router, which has to be of the same kind and rank (ERR_SPEC). */
status finetune_router(struct router *r, const struct spec *s, const struct shape *shape, struct err *e);
/* Anything to be fitted after training? */
bool finetune_fits(const struct router *r);
/* {kind, rank, means, constant, compensation_rank, scale: [of a layer, ...] or null, cost: {...}} */
struct json_t *finetune_router_json(const struct router *r, const struct shape *shape);
/* Into a checkpoint's identity. */
void finetune_identity(struct json_t *o, const struct spec *s);

#endif
