#include "jobs/finetune_fit.h"

#include <string.h>

#include "jobs/ready.h"

static status copy_current(struct router *r, const struct spec *s, const struct shape *shape, struct err *e)
{
    struct router_part to[ROUTER_PARTS], from[ROUTER_PARTS];
    struct router now;

    if (router_read(&now, s->model, NULL, shape, e)) return e->code;
    if (now.kind != r->kind || now.rank != r->rank) {
        err_set(e, ERR_SPEC, "%s: start: current: expected router: %s and router_rank: %d, as the model's router has it",
                s->source, router_kind_name(now.kind), now.rank);
        router_free(&now);
        return e->code;
    }
    int n = router_parts(r, to), m = router_parts(&now, from);

    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            if (!strcmp(to[i].name, from[j].name) && to[i].rows * to[i].cols == from[j].rows * from[j].cols)
                memcpy(*to[i].where, *from[j].where, (size_t)r->layers * to[i].rows * to[i].cols * sizeof(float));
    router_free(&now);
    return OK;
}

status finetune_router(struct router *r, const struct spec *s, const struct shape *shape, struct err *e)
{
    bool linear = s->finetune.router == SPEC_ROUTER_LINEAR;
    struct router_form form = {.kind = (int32_t)s->finetune.router,
                               .rank = linear ? 0 : (int32_t)s->finetune.router_rank,
                               .means = s->finetune.compensation == REFIT_UNSELECTED,
                               .scaled = s->finetune.refit_scale == REFIT_SCALE_FITTED,
                               .low_rank = (int32_t)s->finetune.compensation_rank,
                               .constant = s->finetune.compensation == REFIT_CONSTANT};

    _Static_assert((int)SPEC_ROUTER_LOW_RANK == (int)ROUTER_LOW_RANK && (int)SPEC_ROUTER_GATE == (int)ROUTER_GATE &&
                       (int)SPEC_ROUTER_BOTTLENECK == (int)ROUTER_BOTTLENECK,
                   "one order");
    if (ready_ranks(s, shape, e)) return e->code;
    if (router_alloc_form(r, shape, &form, e)) return e->code;
    router_random(r, (uint64_t)s->seed);
    return s->finetune.start == START_CURRENT ? copy_current(r, s, shape, e) : OK;
}

bool finetune_fits(const struct router *r)
{
    return router_compensates(r) || r->scale;
}

static struct json_t *scales_of(const struct router *r)
{
    struct json_t *list = json_array_new();

    for (int l = 0; l < r->layers; l++) json_append(list, json_real_new((double)r->scale[l]));
    return list;
}

struct json_t *finetune_router_json(const struct router *r, const struct shape *shape)
{
    struct json_t *o = json_object_new();

    json_put_text(o, "kind", router_kind_name(r->kind));
    json_put_int(o, "rank", r->rank);
    json_put_bool(o, "means", r->mu != NULL);
    json_put_bool(o, "constant", r->offset && !r->low_rank);
    json_put_int(o, "compensation_rank", r->low_rank);
    if (r->scale) json_put(o, "scale", scales_of(r));
    else json_put_text(o, "scale", NULL);
    json_put(o, "cost", router_cost_json(r, shape));
    return o;
}

void finetune_identity(struct json_t *o, const struct spec *s)
{
    json_put_text(o, "router", router_kind_name((enum router_kind)s->finetune.router));
    if (s->finetune.router != SPEC_ROUTER_LINEAR) json_put_int(o, "router_rank", s->finetune.router_rank);
    json_put_text(o, "start", spec_word(s, "start"));
    if (s->finetune.start == START_RIDGE) {
        json_put_real(o, "ridge", s->finetune.ridge);
        json_put_int(o, "fit_tokens", s->finetune.fit_tokens);
    }
}
