#include "moe/grouping_dense.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "moe/assign.h"
#include "moe/clustering.h"
#include "num/ops.h"

static int routed_of(const struct group_cut *c)
{
    return c->neurons - c->shared;
}

static status no_memory(const struct group_cut *c, struct err *e)
{
    return err_set(e, ERR_LIMIT, "no memory to group %d neurons into %d experts", c->neurons, c->experts);
}

static void begin(int *order, int *size, const struct group_cut *c)
{
    BUG_ON(c->shared < 0 || c->experts < 1 || routed_of(c) < c->experts);
    group_contiguous(order, c->neurons);
    group_shared_first(order, c->neurons, c->shared, c->importance);
    for (int i = 0; i < c->experts; i++) size[i] = group_size(c->neurons, c->shared, c->experts, i);
}

/* ---- rows of weights ---- */

static void scale_rows(float *out, const float *x, const int *row, int rows, int dim)
{
    for (int j = 0; j < rows; j++, out += dim) {
        const float *from = x + (size_t)row[j] * (size_t)dim;
        double norm = 0;

        for (int d = 0; d < dim; d++) norm += (double)from[d] * (double)from[d];
        norm = norm > 0 ? 1 / sqrt(norm) : 0;
        for (int d = 0; d < dim; d++) out[d] = (float)((double)from[d] * norm);
    }
}

status group_kmeans(int *order, const struct group_cut *c, const float *x, int dim, struct err *e)
{
    size_t rows = (size_t)routed_of(c);
    float *unit = malloc(rows * (size_t)dim * sizeof(*unit));
    int *of = malloc(rows * sizeof(*of)), *size = malloc((size_t)c->experts * sizeof(*size));
    status s;

    if (!unit || !of || !size) {
        s = no_memory(c, e);
    } else {
        begin(order, size, c);
        scale_rows(unit, x, order + c->shared, (int)rows, dim);
        s = cluster_rows(of, unit, (int)rows, dim, c->experts, size, c->seed, c->gemm, c->alive, e);
        if (!s) group_put(order, c->neurons, c->shared, c->experts, of);
    }
    free(unit);
    free(of);
    free(size);
    return s;
}

/* ---- strong on the same tokens ---- */

status group_coactivation(int *order, const struct group_cut *c, const uint64_t *strong, int tokens, struct err *e)
{
    size_t rows = (size_t)routed_of(c), words = (size_t)bits_words(tokens);
    float *x = calloc(rows * (size_t)tokens, sizeof(*x));
    int *of = malloc(rows * sizeof(*of)), *size = malloc((size_t)c->experts * sizeof(*size));
    status s;

    BUG_ON(tokens < 1);
    if (!x || !of || !size) {
        s = no_memory(c, e);
    } else {
        begin(order, size, c);
        for (size_t j = 0; j < rows; j++) {
            const uint64_t *bits = strong + (size_t)order[(size_t)c->shared + j] * words;

            for (int t = bits_next(bits, tokens, 0); t < tokens; t = bits_next(bits, tokens, t + 1))
                x[j * (size_t)tokens + (size_t)t] = 1;
        }
        s = cluster_rows(of, x, (int)rows, tokens, c->experts, size, c->seed, c->gemm, c->alive, e);
        if (!s) group_put(order, c->neurons, c->shared, c->experts, of);
    }
    free(x);
    free(of);
    free(size);
    return s;
}

/* ---- predicted sets ---- */

struct turns {
    const struct group_cut *c;
    const struct group_sample *s;
    struct predictor *p;
    int active, routed;
    const int *neuron; /* [routed] */
    float *energy;     /* [tokens][routed] */
    float *held;       /* [tokens][experts] energy of the experts */
    float *log;        /* [tokens][experts] its log, then what is predicted, then the sets as 0 and 1 */
    float *predicted;  /* [tokens][experts] */
    float *gain;       /* [routed][experts] */
    double total;      /* of all neurons, the shared ones too */
    double shared;     /* of those */
};

/* Sums of the energies of groups; of[routed]. */
static void hold(struct turns *u, const int *of)
{
    size_t n = (size_t)u->c->experts, r = (size_t)u->routed;

    memset(u->held, 0, (size_t)u->s->tokens * n * sizeof(*u->held));
    for (int t = 0; t < u->s->tokens; t++) {
        const float *e = u->energy + (size_t)t * r;
        float *held = u->held + (size_t)t * n;

        for (size_t j = 0; j < r; j++) held[of[j]] += e[j];
    }
}

static void take_log(float *y, const float *held, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) sum += (double)held[i];
    double least = sum > 0 ? 1e-6 * sum / (double)n : 1;
    for (size_t i = 0; i < n; i++) y[i] = (float)log((double)held[i] + least);
}

/* The share of the energy that predicted sets hold; leaves the sets in u->log. */
static status look(struct turns *u, const int *of, double *captured, struct err *e)
{
    size_t n = (size_t)u->c->experts;
    uint64_t *set = malloc((size_t)bits_words((int)n) * sizeof(*set));
    double sum = u->shared;
    status s;

    BUG_ON(!set);
    hold(u, of);
    take_log(u->log, u->held, (size_t)u->s->tokens * n);
    s = predictor_cross(u->p, u->predicted, u->log, (int)n, e);
    for (int t = 0; !s && t < u->s->tokens; t++) {
        float *mask = u->log + (size_t)t * n;

        top_k(set, u->predicted + (size_t)t * n, (int)n, u->active);
        for (size_t i = 0; i < n; i++) {
            mask[i] = bits_has(set, (int)i) ? 1.0f : 0.0f;
            if (bits_has(set, (int)i)) sum += (double)u->held[(size_t)t * n + i];
        }
    }
    *captured = u->total > 0 ? sum / u->total : 1;
    free(set);
    return s;
}

/* Where a neuron's energy would be held most. */
static status assign(struct turns *u, int *of, const int *size, struct err *e)
{
    memset(u->gain, 0, (size_t)u->routed * (size_t)u->c->experts * sizeof(*u->gain));
    gemm_atb(u->c->gemm, u->gain, u->energy, u->routed, u->log, u->c->experts, u->s->tokens);
    return assign_balanced(of, u->gain, u->routed, u->c->experts, size, u->c->alive, e);
}

static void take_energy(struct turns *u)
{
    size_t f = (size_t)u->c->neurons, r = (size_t)u->routed;

    for (int t = 0; t < u->s->tokens; t++) {
        const float *from = u->s->energy + (size_t)t * f;
        float *to = u->energy + (size_t)t * r;

        for (size_t j = 0; j < f; j++) u->total += (double)from[j];
        for (size_t j = 0; j < r; j++) to[j] = from[u->neuron[j]];
    }
    u->shared = u->total;
    for (size_t i = 0; i < (size_t)u->s->tokens * r; i++) u->shared -= (double)u->energy[i];
    if (u->shared < 0) u->shared = 0;
}

static status turns_open(struct turns *u, const struct group_cut *c, const struct group_sample *s, struct predictor *p,
                         const int *order, int active, struct err *e)
{
    size_t n = (size_t)c->experts, r = (size_t)routed_of(c), t = (size_t)s->tokens;

    *u = (struct turns){.c = c, .s = s, .p = p, .active = active, .routed = (int)r, .neuron = order + c->shared};
    u->energy = malloc(t * r * sizeof(*u->energy));
    u->held = malloc(t * n * sizeof(*u->held));
    u->log = malloc(t * n * sizeof(*u->log));
    u->predicted = malloc(t * n * sizeof(*u->predicted));
    u->gain = malloc(r * n * sizeof(*u->gain));
    if (!u->energy || !u->held || !u->log || !u->predicted || !u->gain) return no_memory(c, e);
    take_energy(u);
    return OK;
}

static void turns_close(struct turns *u)
{
    free(u->energy);
    free(u->held);
    free(u->log);
    free(u->predicted);
    free(u->gain);
}

/* Neurons that are strong on the same tokens. */
static status first_groups(struct turns *u, int *of, const int *size, struct err *e)
{
    int tokens = u->s->tokens < PROFILE_TOKENS ? u->s->tokens : PROFILE_TOKENS, rows = u->routed;
    float *profile = malloc((size_t)rows * (size_t)tokens * sizeof(*profile));
    int *all = malloc((size_t)rows * sizeof(*all));
    status s;

    if (!profile || !all) {
        s = no_memory(u->c, e);
    } else {
        for (int j = 0; j < rows; j++) {
            all[j] = j;
            for (int i = 0; i < tokens; i++) {
                size_t t = (size_t)((int64_t)i * u->s->tokens / tokens);

                profile[(size_t)j * (size_t)tokens + (size_t)i] = sqrtf(u->energy[t * (size_t)rows + (size_t)j]);
            }
        }
        scale_rows(profile, profile, all, rows, tokens);
        s = cluster_rows(of, profile, rows, tokens, u->c->experts, size, u->c->seed, u->c->gemm, u->c->alive, e);
    }
    free(profile);
    free(all);
    return s;
}

static status take_turns(struct turns *u, int *of, int *best, const int *size, double *captured, struct err *e)
{
    size_t bytes = (size_t)u->routed * sizeof(*of);
    double most = -1;

    if (first_groups(u, of, size, e)) return e->code;
    for (int turn = 0, since = 0; turn < TURNS_MAX && since <= PATIENCE; turn++, since++) {
        double found;

        alive_tick(u->c->alive);
        if (turn > 0 && assign(u, of, size, e)) return e->code;
        if (look(u, of, &found, e)) return e->code;
        if (found > most + 1e-5) {
            most = found;
            since = 0;
            memcpy(best, of, bytes);
        }
    }
    if (captured) *captured = most;
    return OK;
}

status group_predicted(int *order, const struct group_cut *c, const struct group_sample *s, struct predictor *p, int active,
                       double *captured, struct err *e)
{
    size_t r = (size_t)routed_of(c);
    int *of = malloc(r * sizeof(*of)), *best = malloc(r * sizeof(*best)), *size = malloc((size_t)c->experts * sizeof(*size));
    struct turns u = {0};
    status st;

    BUG_ON(active < 1 || active > c->experts);
    if (!of || !best || !size) {
        st = no_memory(c, e);
    } else {
        begin(order, size, c);
        st = turns_open(&u, c, s, p, order, active, e);
        if (!st) st = take_turns(&u, of, best, size, captured, e);
        if (!st) group_put(order, c->neurons, c->shared, c->experts, best);
    }
    turns_close(&u);
    free(of);
    free(best);
    free(size);
    return st;
}

static void groups_of(int *of, const struct group_cut *c)
{
    for (int i = 0, j = 0; i < c->experts; i++)
        for (int k = group_size(c->neurons, c->shared, c->experts, i); k > 0; k--) of[j++] = i;
}

status group_captured(double *captured, const int *order, const struct group_cut *c, const struct group_sample *s,
                      struct predictor *p, int active, struct err *e)
{
    int *of = malloc((size_t)routed_of(c) * sizeof(*of));
    struct turns u;

    BUG_ON(!of);
    status st = turns_open(&u, c, s, p, order, active, e);
    groups_of(of, c);
    if (!st) st = look(&u, of, captured, e);
    turns_close(&u);
    free(of);
    return st;
}

void group_log_energy(float *y, const int *order, const struct group_cut *c, const struct group_sample *s)
{
    size_t n = (size_t)c->experts, f = (size_t)c->neurons;
    int *of = malloc((size_t)routed_of(c) * sizeof(*of));

    BUG_ON(!of);
    groups_of(of, c);
    memset(y, 0, (size_t)s->tokens * n * sizeof(*y));
    for (int t = 0; t < s->tokens; t++)
        for (int j = 0; j < routed_of(c); j++)
            y[(size_t)t * n + (size_t)of[j]] += s->energy[(size_t)t * f + (size_t)order[c->shared + j]];
    take_log(y, y, (size_t)s->tokens * n);
    free(of);
}
