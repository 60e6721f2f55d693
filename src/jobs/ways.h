/* factorize, budget: kl_shared: the shared neurons and the k of every layer together, from output KL under one total.
 *
 * The layers are grouped in several ways, which differ in how many neurons are shared; the way that the spec gives is the first, and its neurons are the total.  Each way is written as a
 * model of its own beside the result, and measured like budget: kl (jobs/budget.h); then every layer takes the way and the k with which the sum of losses is least
 * (budget_choose()), its groups with it.  At the end the model that has all of this is measured against the way that the spec gives, which stays if that is better.
 * Cost: that of budget: kl and of grouping for every way.  Memory: orders and regressions of every way, layers * (F + N D) numbers each.
 */
#ifndef JOBS_WAYS_H
#define JOBS_WAYS_H

#include "jobs/budget.h"

enum { WAYS = 4 };

struct ways {
    int n;
    struct cut cut[WAYS];
    struct budget_curves curves[WAYS];
    double uniform; /* KL of the first with its own k */
};

/* first: as the spec gives it, grouped; the others are grouped here.  m: as of group_layers().  first's arrays belong to *w from now on. */
status ways_group(struct ways *w, const struct cut *first, struct job *j, struct model *m, struct safetensors *weights,
                  struct err *e);
/* out: all of it, with arrays of its own. */
status ways_compose(struct cut *out, const struct ways *w, struct err *e);
/* budget_json() of the first, {chosen, chosen_shared: [layers], other_ways: [] of the others}. */
struct json_t *ways_json(const struct ways *w, const struct cut *chosen, double kl);
void ways_free(struct ways *w); /* zeroed is fine; not what cut[0].calibration has */

/* order, captured and regressions of a cut. */
void cut_free(struct cut *c);

#endif
