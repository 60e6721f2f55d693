/* Active experts of every layer from the KL divergence of the model's output, under one total.
 *
 * For every layer alone, all others dense, and for several k, the mean over tokens of KL(dense || that); the router is the ridge regression of the experts' log energies on h
 * (moe/predict.h), which a calibration has anyway.  Then budget_allocate(), as if the losses of layers added up; whether they do is measured last, with all layers
 * at once, and if the choice is not better than the same k everywhere, that stays.
 * Cost: for every layer and k the layers from there on and the head, over budget_tokens tokens: about layers * BUDGET_POINTS / 2 passes.  Memory, besides the open model: on the
 * coordinator rows * (layers + 4) * D and 2 * rows * vocabulary floats, and the routers, layers * experts * D floats.
 */
#ifndef JOBS_BUDGET_H
#define JOBS_BUDGET_H

#include "data/corpus.h"
#include "jobs/factorize_write.h"
#include "model/model.h"

enum { BUDGET_POINTS = 7 }; /* k in quarters of the one given: 1, 2, 3, 4, 6, 8, and all experts, where nothing is lost */

/* m: the factorized model, open.  c->active, which gives the total, becomes what was chosen; c->router: the regressions; scale: of active experts.  `out` gets the member `budget`:
 * {tokens, k: [layers][], kl: [layers][], kl_uniform, kl_chosen, active}.  ERR_LIMIT, ERR_RANK, STOPPED. */
status choose_budget(struct cut *c, struct job *j, struct model *m, const struct corpus *text, int window, double scale,
                     struct json_t *out, struct err *e);

#endif
