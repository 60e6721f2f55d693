/* eval: max_drop and min_agreement, which a variant router has to pass. */
#include "jobs/eval.h"

static double mean_agreement(const struct eval_side *side, const struct eval_variant *x)
{
    double sum = 0;

    for (int l = 0; l < side->layers; l++) sum += x->agreement[l];
    return sum / side->layers;
}

status eval_gate(const struct eval_run *r, struct err *e)
{
    const struct spec *s = r->job->spec;
    const struct eval_variant *dense = eval_dense(r, &r->side[0]), *router = eval_find(&r->side[0], VARIANT_ROUTER);
    bool drops = s->eval.max_drop >= 0, agrees = s->eval.min_agreement >= 0;

    if (!drops && !agrees) return OK;
    if (drops && (!dense || !router || !r->n_windows))
        return err_set(e, ERR_SPEC,
                       "%s: max_drop: the gate needs text and the variants dense and router, and one could not be measured",
                       s->source);
    if (agrees && (!router || !router->agreement))
        return err_set(e, ERR_SPEC, "%s: min_agreement: the gate needs the variant router, and it could not be measured",
                       s->source);
    double drop = drops && dense->hits ? 1 - (double)router->hits / (double)dense->hits : 0, n = (double)r->corpus.n_tokens;
    double agreement = agrees ? mean_agreement(&r->side[0], router) : 1;
    bool dropped = drops && drop > s->eval.max_drop, strays = agrees && agreement < s->eval.min_agreement;
    struct json_t *o = json_object_new();

    if (drops) {
        json_put_real(o, "drop", drop);
        json_put_real(o, "max_drop", s->eval.max_drop);
    }
    if (agrees) {
        json_put_real(o, "agreement", agreement);
        json_put_real(o, "min_agreement", s->eval.min_agreement);
    }
    json_put_bool(o, "passed", !dropped && !strays);
    json_put(r->job->result, "gate", o);
    if (dropped)
        return err_set(e, ERR_GATE,
                       "%s: max_drop: the router's next-token accuracy %.4f is %.2f %% below the dense model's %.4f, at most "
                       "%.2f %% allowed",
                       s->source, (double)router->hits / n, 100 * drop, (double)dense->hits / n, 100 * s->eval.max_drop);
    if (strays)
        return err_set(e, ERR_GATE,
                       "%s: min_agreement: the router chooses %.2f %% of the oracle's experts, at least %.2f %% wanted",
                       s->source, 100 * agreement, 100 * s->eval.min_agreement);
    return OK;
}
