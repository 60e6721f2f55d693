/* What a side must show before it gets a figure.
 *
 * Bits: a token's hidden state is the same in a short prompt, alone, in every session of a decode, and in a prompt of the size that is timed.
 * A batch that is held to fewer experts is another computation: of it the number of experts is looked at.
 * Numbers: logits of a short prompt, with all experts, are near those of the dense side in the same formats, or, if there is none, of the first dense
 * side.  That one is held against nothing but its own bits here (the tests hold the model against references), and q4 may be far off: weights of random
 * models show no more than that nothing is exchanged or left out.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/bench_step.h"
#include "moe/route.h"

/* Root of the mean square of a - b over that of b. */
static double distance(const float *a, const float *b, size_t n)
{
    double difference = 0, whole = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];

        difference += d * d;
        whole += (double)b[i] * (double)b[i];
    }
    return whole > 0 ? sqrt(difference / whole) : INFINITY;
}

/* What a format may change in the logits of a model, and what the cut into experts may change in a format: a cut inside a block of a quantized
 * matrix gives the parts scales of their own. */
static double tolerance(const struct side *x, const struct side *y, bool half)
{
    static const double alone[FORMAT_COUNT] = {[FORMAT_F32] = 1e-3, [FORMAT_BF16] = 0.02, [FORMAT_Q8] = 0.1, [FORMAT_Q4] = 0.7};
    static const double cut[FORMAT_COUNT] = {[FORMAT_F32] = 1e-3, [FORMAT_BF16] = 1e-3, [FORMAT_Q8] = 0.06, [FORMAT_Q4] = 0.5};
    double most = 0;

    for (int p = 0; p < WEIGHT_PARTS; p++) {
        const double *table =
            same_formats(x, y) && !half ? cut : alone; /* rounded activations: sums in another order round otherwise */

        most = fmax(most, fmax(table[x->format[p]], table[y->format[p]]));
    }
    return most;
}

/* The prompt of the size that is timed: its first rows are those of the short one, `whole`, and its last is that of its token alone behind the others. */
static status check_prefill(struct race *r, struct side *x, const struct routing *how, const float *whole, struct err *e)
{
    int n = r->measures && !r->measure[0].sequences ? r->measure[0].rows : 0, same = n < CHECK_TOKENS ? n : CHECK_TOKENS;
    size_t width = (size_t)x->shape.width, bytes = width * sizeof(float);
    float *last = race_take(width, sizeof(float));
    status st = n ? race_prompt(r, how, 0, n, e) : OK;

    if (n && !st) {
        bool first = !memcmp(r->hidden, whole, (size_t)same * bytes);

        memcpy(last, r->hidden + (size_t)(n - 1) * width, bytes);
        st = race_answer(r, how, n, e); /* what will be timed */
        if (!st && memcmp(r->hidden + (size_t)(n - 1) * width, last, bytes) != 0) {
            x->wrong = true;
            bench_refuse(r->bench, "%s: the last token of a prompt of %d tokens is not what it is when all are asked for",
                         x->name, n);
        }
        if (!st) st = race_prompt(r, how, n - 1, 1, e);
        if (!st && (!first || memcmp(r->hidden, last, bytes) != 0)) {
            x->wrong = true;
            bench_refuse(r->bench, "%s: the %s of a prompt of %d tokens %s", x->name, first ? "last token" : "first tokens", n,
                         first ? "is not what it is alone" : "are not what they are in a short one");
        }
    }
    free(last);
    return st;
}

/* Hidden states of a prompt that passes at once, token by token, and in every session beside others: the same bits. */
static status check_rows(struct race *r, struct side *x, const struct routing *how, struct err *e)
{
    size_t width = (size_t)x->shape.width, bytes = width * sizeof(float);
    float *whole = race_take(CHECK_TOKENS * width, sizeof(float));
    int together = r->room.limits.sessions;
    status st = race_prompt(r, how, 0, CHECK_TOKENS, e);

    memcpy(whole, r->hidden, CHECK_TOKENS * bytes);
    for (int t = 0; t < CHECK_TOKENS && !st; t++) {
        if ((st = race_prompt(r, how, t, 1, e))) break;
        if (memcmp(r->hidden, whole + (size_t)t * width, bytes) != 0 && !x->wrong) {
            x->wrong = true;
            bench_refuse(r->bench, "%s: token %d alone is not what it is in a prompt", x->name, t);
        }
    }
    if (!st) st = race_decode(r, how, together, 0, true, e);
    for (int i = 0; i < together && !st && !x->wrong; i++)
        if (memcmp(r->hidden + (size_t)i * width, whole, bytes) != 0) {
            x->wrong = true;
            bench_refuse(r->bench, "%s: sequence %d of %d is not what it is alone", x->name, i, together);
        }
    if (!st && !x->wrong) st = check_prefill(r, x, how, whole, e);
    free(whole);
    return st;
}

/* With all experts the factorized model is the dense one; a format is near the model in the format of `model`. */
static status check_logits(struct race *r, struct side *x, struct err *e)
{
    const struct routing all = {.route = ROUTE_ALL};
    struct side *of = x->dense >= 0 ? &r->side[x->dense] : &r->side[0]; /* dense sides come first */
    size_t n = (size_t)CHECK_TOKENS * (size_t)x->shape.vocab;

    if (race_prompt(r, &all, 0, CHECK_TOKENS, e)) return e->code;
    float *logits = x->logits ? x->logits : r->logits;
    if (cluster_logits(r->bench->job->cluster, r->hidden, CHECK_TOKENS, logits, e)) return e->code;
    if (of == x) return OK;
    if (!of->logits || of->wrong) {
        x->wrong = true;
        bench_refuse(r->bench, "%s: there is no dense side to hold its answers against", x->name);
        return OK;
    }
    double off = distance(logits, of->logits, n), allowed = tolerance(x, of, r->bench->job->spec->precision.activations != 0);
    log_line(r->bench->job->log, "  %s: logits are %.2g of their size from those of %s", x->name, off, of->name);
    if (off <= allowed) return OK;
    x->wrong = true;
    bench_refuse(r->bench, "%s: logits are %.2g of their size from those of %s, at most %.2g allowed", x->name, off, of->name,
                 allowed);
    return OK;
}

/* Share of the routed experts, over the layers, that a step wanted. */
static double touched(struct model *m)
{
    const struct shape *s = model_shape(m);
    const struct moe_stats *stats = moe_stats(model_moe(m));
    size_t n = (size_t)s->layers * (size_t)s->experts, hit = 0;

    for (size_t i = 0; i < n; i++) hit += stats->load[i] > 0;
    return n ? (double)hit / (double)n : 1;
}

/* A batch that is held to fewer experts touches no more; of a few sequences each may keep one. */
static void check_held(struct race *r, struct side *x, const struct variant *v, int i)
{
    int experts = x->shape.experts, most = route_most(v->how.batch_experts, experts), sequences = r->measure[i].sequences;

    if (most < sequences) most = sequences;
    if (x->wrong || v->touched[i] * experts < most + 0.5) return;
    x->wrong = true;
    bench_refuse(r->bench, "%s: %d sequences touch %.2f of the experts, held to %.2f", x->name, sequences, v->touched[i],
                 v->how.batch_experts);
}

static status look_at_touched(struct race *r, struct model *m, struct side *x, struct variant *v, struct err *e)
{
    bool several = r->room.limits.coordinators > 1 && r->bench->place.ranks > 1;

    for (int i = 0; i < r->measures; i++) {
        const struct measure *w = &r->measure[i];
        status st;

        moe_stats_clear(model_moe(m));
        if (w->sequences) st = race_decode(r, &v->how, w->sequences, (int)r->bench->job->spec->bench.context, false, e);
        else continue; /* a prompt wants all */
        if (st) return st;
        v->touched[i] = v->active ? touched(m) : 1;
        if (v->how.batch_experts > 0) check_held(r, x, v, i);
        /* Rank 0 has counted its own sequences alone: then what is expected of random routers. */
        if (v->active && several) v->touched[i] = 1 - pow(1 - (double)v->active / x->shape.experts, w->sequences);
    }
    return OK;
}

status race_check(struct race *r, struct side *x, struct err *e)
{
    struct model *m;

    if (race_model(r, x, &m, e)) return e->code;
    status st = check_logits(r, x, e);
    for (int v = 0; v < x->variants && !st && !x->wrong; v++) {
        /* a row does depend on the others when a batch is held to fewer experts */
        if (x->variant[v].how.batch_experts == 0.0) st = check_rows(r, x, &x->variant[v].how, e);
        if (!st) st = look_at_touched(r, m, x, &x->variant[v], e);
    }
    return st;
}
