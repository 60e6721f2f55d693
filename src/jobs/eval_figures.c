/* From sums to figures: every figure is a mean over units (blocks of text, items), a difference of two or a ratio, and its interval comes from drawing
 * units again.  Two variants are always compared on the same draws. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "jobs/eval.h"

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

void eval_bootstrap(struct interval *out, const double *difference, const double *weight, size_t n, int64_t resamples,
                    uint64_t seed, void (*alive)(void *ctx), void *ctx)
{
    double sum = 0, of = 0, *got;
    struct rng r;

    for (size_t i = 0; i < n; i++) {
        sum += difference[i];
        of += weight[i];
    }
    *out = (struct interval){of > 0 ? sum / of : NAN, NAN, NAN};
    if (resamples < 1 || n < 2 || of <= 0) return; /* one observation says nothing about its spread */
    got = malloc((size_t)resamples * sizeof(*got));
    BUG_ON(!got);
    rng_seed(&r, seed, n);
    for (int64_t b = 0; b < resamples; b++) {
        sum = of = 0;
        for (size_t i = 0; i < n; i++) {
            size_t pick = rng_below(&r, n);

            sum += difference[pick];
            of += weight[pick];
        }
        got[b] = of > 0 ? sum / of : sum < 0 ? -INFINITY : INFINITY;
        if (b % 1000 == 0 && alive) alive(ctx);
    }
    qsort(got, (size_t)resamples, sizeof(*got), by_value);
    out->low = got[(int64_t)(0.025 * (double)(resamples - 1) + 0.5)];
    out->high = got[(int64_t)(0.975 * (double)(resamples - 1) + 0.5)];
    free(got);
}

/* The most likely text of an item: the first of equals, of a pair the bad one. */
static int answer_of(const struct item *i, const struct eval_score *pieces, bool normalized)
{
    const struct eval_score *p = pieces + i->first;
    int best = 0;
    double most = 0;

    if (i->kind == ITEM_PAIR) return !(p[0].logp > p[1].logp);
    for (int c = 0; c < i->n; c++) {
        double x = normalized ? p[c].logp / (double)strlen(i->text[c]) : p[c].logp;

        if (c == 0 || x > most) {
            most = x;
            best = c;
        }
    }
    return best;
}

bool eval_item_right(const struct item *i, const struct eval_score *pieces, bool normalized)
{
    return answer_of(i, pieces, normalized) == (i->kind == ITEM_PAIR ? 0 : i->answer);
}

bool eval_right(const struct eval_run *r, const struct item *i, const struct eval_variant *v)
{
    if (i->kind == ITEM_TARGET) return v->pieces[i->first].hits == r->pieces[i->first].n - r->pieces[i->first].from;
    return eval_item_right(i, v->pieces, false);
}

/* --- metrics --- */

static const struct metric {
    const char *name;
    bool text;
    enum item_kind kind;
} metrics[METRICS] = {
    [METRIC_NATS] = {"nats", true, 0},
    [METRIC_ACCURACY] = {"accuracy", true, 0},
    [METRIC_KL] = {"kl", true, 0},
    [METRIC_PAIRS] = {"minimal_pairs", false, ITEM_PAIR},
    [METRIC_CHOICES] = {"multiple_choice", false, ITEM_CHOICE},
    [METRIC_WORDS] = {"last_word", false, ITEM_TARGET},
    [METRIC_PAIRS_CHANGED] = {"minimal_pairs_changed", false, ITEM_PAIR},
    [METRIC_CHOICES_CHANGED] = {"multiple_choice_changed", false, ITEM_CHOICE},
    [METRIC_WORD_NATS] = {"last_word_nats", false, ITEM_TARGET},
};

const char *eval_metric_name(enum eval_metric m)
{
    return metrics[m].name;
}

static bool is_changed(enum eval_metric m)
{
    return m == METRIC_PAIRS_CHANGED || m == METRIC_CHOICES_CHANGED;
}

/* Whose answers may have changed to those of v.  A router version's side (compare_router) has no variant but that: its model is the first side's. */
static const struct eval_variant *before(const struct eval_run *r, const struct eval_variant *v)
{
    const struct eval_side *side = &r->side[0];

    if (r->n_sides == 2 && v >= r->side[1].variant && v < r->side[1].variant + r->side[1].n && !r->job->spec->eval.compare_router)
        side = &r->side[1];
    return eval_dense(r, side);
}

bool eval_has(const struct eval_run *r, enum eval_metric m, const struct eval_variant *v)
{
    if (!v || !v->done) return false;
    if (is_changed(m) && (v->kind == VARIANT_DENSE || !before(r, v))) return false;
    if (metrics[m].text) return r->n_windows > 0 && (m != METRIC_KL || v->kl_tokens > 0);
    for (size_t i = 0; i < r->items.n; i++)
        if (r->items.item[i].kind == metrics[m].kind) return true;
    return false;
}

static double item_value(const struct eval_run *r, const struct item *i, const struct eval_variant *v, enum eval_metric m)
{
    if (m == METRIC_WORD_NATS) return -v->pieces[i->first].logp;
    if (is_changed(m)) return answer_of(i, v->pieces, false) != answer_of(i, before(r, v)->pieces, false);
    return eval_right(r, i, v);
}

static double block_value(const struct eval_score *s, enum eval_metric m)
{
    return m == METRIC_NATS ? -s->logp : m == METRIC_KL ? s->kl : (double)s->hits;
}

/* Values of the units of a metric; weight (or NULL): tokens of a block, 1 for an item; chance (or NULL): of a blind choice, as the values are summed.
 * Returns how many. */
static size_t series(const struct eval_run *r, enum eval_metric m, const struct eval_variant *v, double *value, double *weight,
                     double *chance)
{
    size_t n = 0, tokens = 0;

    for (size_t i = 0; metrics[m].text && i < r->n_blocks; i++, n++) {
        tokens += (size_t)r->block_tokens[i];
        if (m == METRIC_KL && tokens > v->kl_tokens) return n; /* blocks that the reference knows whole */
        value[n] = block_value(&v->blocks[i], m);
        if (weight) weight[n] = r->block_tokens[i];
        if (chance) chance[n] = 0;
    }
    for (size_t i = 0; !metrics[m].text && i < r->items.n; i++) {
        const struct item *item = &r->items.item[i];

        if (item->kind != metrics[m].kind) continue;
        value[n] = item_value(r, item, v, m);
        if (weight) weight[n] = 1;
        if (chance) chance[n] = item->kind == ITEM_TARGET ? 0 : 1.0 / item->n;
        n++;
    }
    return n;
}

static double *room_for(const struct eval_run *r)
{
    size_t n = r->n_blocks > r->items.n ? r->n_blocks : r->items.n;
    double *x = malloc((n + 1) * sizeof(*x));

    BUG_ON(!x);
    return x;
}

static void alive(void *ctx)
{
    cluster_alive(((const struct eval_run *)ctx)->job->cluster);
}

struct interval eval_figure(const struct eval_run *r, enum eval_metric m, enum eval_ratio how, const struct eval_variant *v,
                            const struct eval_variant *a, const struct eval_variant *b)
{
    double *x = room_for(r), *y = room_for(r), *chance = room_for(r), *weight = room_for(r), *z = room_for(r);
    const struct spec *s = r->job->spec;
    struct interval out;
    size_t n = series(r, m, v, x, weight, chance);

    if (how != RATIO_PLAIN) series(r, m, a, y, NULL, NULL);
    if (how == RATIO_GAP) series(r, m, b, z, NULL, NULL);
    double sign = 1;

    for (size_t i = 0; i < n; i++) {
        if (how == RATIO_LESS) x[i] -= y[i];
        else if (how == RATIO_OVER) weight[i] = y[i];
        else if (how == RATIO_CORRECTED) x[i] -= chance[i], weight[i] = y[i] - chance[i];
        else if (how == RATIO_GAP) x[i] -= y[i], weight[i] = z[i] - y[i];
    }
    if (how == RATIO_GAP && m != METRIC_ACCURACY) sign = -1; /* less is better: both differences are negative */
    for (size_t i = 0; i < n && sign < 0; i++) x[i] = -x[i], weight[i] = -weight[i];
    eval_bootstrap(&out, x, weight, n, s->eval.bootstrap, (uint64_t)s->seed, alive, (void *)r);
    free(x), free(y), free(z), free(chance), free(weight);
    return out;
}

double eval_chance(const struct eval_run *r, enum eval_metric m)
{
    double sum = 0, n = 0;

    for (size_t i = 0; !metrics[m].text && i < r->items.n; i++) {
        const struct item *item = &r->items.item[i];

        if (item->kind != metrics[m].kind) continue;
        sum += item->kind == ITEM_TARGET ? 0 : 1.0 / item->n;
        n++;
    }
    return n > 0 ? sum / n : 0;
}

double eval_value(const struct eval_run *r, enum eval_metric m, const struct eval_variant *v)
{
    double *x = room_for(r), *weight = room_for(r), sum = 0, of = 0;
    size_t n = series(r, m, v, x, weight, NULL);

    for (size_t i = 0; i < n; i++) {
        sum += x[i];
        of += weight[i];
    }
    free(x), free(weight);
    return of > 0 ? sum / of : NAN;
}
