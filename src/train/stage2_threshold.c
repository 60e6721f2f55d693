/* Thresholds, and their common shift. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/route.h"
#include "train/stage2_internal.h"

status stage2_thresholds(struct stage2 *s, const struct window *w, int n, struct err *e)
{
    size_t layers = (size_t)s->shape->layers, experts = (size_t)s->shape->experts, rows = 0;

    BUG_ON(s->router->by_threshold);
    for (int i = 0; i < n; i++) rows += (size_t)w[i].n;
    s->scores = malloc(layers * rows * experts * sizeof(float));
    if (!s->scores) return err_set(e, ERR_LIMIT, "out of memory for the scores of %zu tokens", rows);
    s->score_rows = rows;
    status code = stage2_batch(s, STAGE2_SHARES, w, n, e);

    for (size_t l = 0; l < layers && !code; l++)
        s->router->threshold[l] =
            route_threshold(s->scores + l * rows * experts, (int64_t)rows, s->shape->experts, s->shape->active_of[l]);
    s->router->by_threshold = !code;
    free(s->scores);
    s->scores = NULL;
    return code;
}

/* over: share - target */
static status share_at(struct stage2 *s, const struct window *w, int n, double shift, double *over, struct err *e)
{
    for (int l = 0; l < s->shape->layers; l++) s->router->threshold[l] = (float)((double)s->threshold[l] + shift);
    if (stage2_batch(s, STAGE2_SHARES, w, n, e)) return e->code;
    *over = s->tally.share - s->o.target;
    return OK;
}

/* The share falls while thresholds rise, though later layers see other states then.  First steps that grow until they have gone too far, then cuts of what is between by a
 * straight line, which halves the weight of an end that stays (the Illinois rule). */
status stage2_shift(struct stage2 *s, const struct window *w, int n, double *shift, struct err *e)
{
    enum { STEPS = 10, CUTS = 10 };
    const double enough = 2e-4;
    double at = 0, over = 0, before = 0, was = 0, step = 0; /* over: share - target; before, was: at the other end */
    status code;

    BUG_ON(!s->router->by_threshold);
    memcpy(s->threshold, s->router->threshold, (size_t)s->shape->layers * sizeof(float));
    if ((code = share_at(s, w, n, 0, &over, e))) goto out;
    for (int l = 0; l < s->shape->layers; l++) step = fmax(step, 0.02 * s->spread[l]);
    step = over > 0 ? step : -step;
    for (int i = 0; i < STEPS && fabs(over) > enough && (i == 0 || over * before > 0); i++, step *= 2) {
        before = over, was = at;
        at += step;
        if ((code = share_at(s, w, n, at, &over, e))) goto out;
    }
    for (int i = 0; i < CUTS && fabs(over) > enough && over * before < 0; i++) {
        double middle = at - over * (at - was) / (over - before), found = 0;

        if ((code = share_at(s, w, n, middle, &found, e))) goto out;
        if (found * over < 0) was = at, before = over;
        else before /= 2;
        at = middle, over = found;
    }
    *shift = at;
out:
    if (code) memcpy(s->router->threshold, s->threshold, (size_t)s->shape->layers * sizeof(float));
    return code;
}
