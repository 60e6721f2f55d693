#include "train/pace.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

double pace_factor(int64_t step, int64_t steps, double warmup, double ratio)
{
    int64_t rising = llround(warmup * (double)steps);

    BUG_ON(step < 0 || step >= steps);
    if (step < rising) return (double)(step + 1) / (double)rising;
    if (step == steps - 1) return ratio;
    double along = (double)(step - rising) / (double)(steps - 1 - rising);
    return ratio + (1 - ratio) * 0.5 * (1 + cos(3.141592653589793 * along));
}

status visit_init(struct visit *v, uint64_t seed, int windows, struct err *e)
{
    BUG_ON(windows < 1);
    *v = (struct visit){.seed = seed, .windows = windows, .order = malloc((size_t)windows * sizeof(int))};
    if (!v->order) return err_set(e, ERR_LIMIT, "out of memory for the order of %d windows", windows);
    visit_seek(v, 0, 0);
    return OK;
}

void visit_clear(struct visit *v)
{
    free(v->order);
    *v = (struct visit){0};
}

void visit_seek(struct visit *v, int64_t pass, int at)
{
    struct rng r;

    BUG_ON(at < 0 || at >= v->windows || pass < 0);
    v->pass = pass;
    v->at = at;
    for (int i = 0; i < v->windows; i++) v->order[i] = i;
    rng_seed(&r, v->seed, (uint64_t)pass);
    rng_shuffle(&r, v->order, v->windows);
}

int visit_peek(const struct visit *v)
{
    return v->order[v->at];
}

void visit_next(struct visit *v)
{
    if (v->at + 1 < v->windows) v->at++;
    else visit_seek(v, v->pass + 1, 0);
}
