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
#include "moe/budget.h"

enum { BUDGET_POINTS = 7 }; /* k in quarters of the one given: 1, 2, 3, 4, 6, 8, and all experts, where nothing is lost */

/* What a cut loses: of every layer points with k rising, and how many there are. */
struct budget_curves {
    struct budget_point point[MODEL_LAYERS_MAX][BUDGET_POINTS];
    int n[MODEL_LAYERS_MAX];
    int64_t tokens;
};

struct budget_work {
    struct job *job;
    struct model *m; /* the factorized model, open */
    const struct corpus *text;
    int window;
    double scale; /* of active experts */
};

/* Every layer alone, around c->active; c->router: the regressions.  ERR_LIMIT, ERR_RANK, STOPPED. */
status budget_measure(struct budget_curves *out, const struct cut *c, const struct budget_work *w, struct err *e);
/* KL of all layers at once, a token. */
status budget_whole(double *kl, const struct cut *c, const struct budget_work *w, const int *active, struct err *e);

/* c->active, which gives the total, becomes what was chosen.  `out` gets the member `budget`:
 * {tokens, k: [layers][], kl: [layers][], kl_uniform, kl_chosen, chosen, better}. */
status choose_budget(struct cut *c, const struct budget_work *w, struct json_t *out, struct err *e);
/* {tokens, k, kl, kl_uniform, kl_chosen, better} */
struct json_t *budget_json(const struct budget_curves *curves, int layers, double uniform, double chosen);

#endif
