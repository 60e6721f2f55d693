#include "moe/grouping.h"

#include <float.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/rng.h"

enum { ROUNDS_MAX = 12, SWAP_PASSES = 2 };

void group_contiguous(int *order, int neurons)
{
    for (int j = 0; j < neurons; j++) order[j] = j;
}

void group_random(int *order, int neurons, uint64_t seed, int layer)
{
    struct rng r;

    group_contiguous(order, neurons);
    rng_seed(&r, seed, (uint64_t)layer);
    rng_shuffle(&r, order, neurons);
}

int group_size(int neurons, int shared, int experts, int i)
{
    int routed = neurons - shared;

    return routed / experts + (i < routed % experts);
}

int group_begin(int neurons, int shared, int experts, int i)
{
    int routed = neurons - shared, more = routed % experts;

    return shared + i * (routed / experts) + (i < more ? i : more);
}

struct ranked {
    float importance;
    int neuron;
};

static int by_importance(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->importance != y->importance) return x->importance > y->importance ? -1 : 1;
    return (x->neuron > y->neuron) - (x->neuron < y->neuron);
}

void group_shared_first(int *order, int neurons, int shared, const float *importance)
{
    if (shared == 0) return;
    struct ranked *r = malloc((size_t)neurons * sizeof(*r));
    bool *chosen = calloc((size_t)neurons, sizeof(*chosen));
    int *old = malloc((size_t)neurons * sizeof(*old));

    BUG_ON(!r || !chosen || !old || shared > neurons);
    for (int j = 0; j < neurons; j++) r[j] = (struct ranked){importance[j], j};
    qsort(r, (size_t)neurons, sizeof(*r), by_importance);
    for (int i = 0; i < shared; i++) chosen[r[i].neuron] = true;
    memcpy(old, order, (size_t)neurons * sizeof(*old));
    for (int j = 0, first = 0, rest = shared; j < neurons; j++) order[chosen[old[j]] ? first++ : rest++] = old[j];
    free(r);
    free(chosen);
    free(old);
}

/* Balanced k-means on the bit rows of R routed neurons: centroid i is the mean row of expert i, the cost of neuron j there is
 * |b_j - c_i|^2, every expert has its fixed size, and the sum of costs goes down.  Costs are kept as their negative half,
 *   score[j][i] = b_j . c_i - |c_i|^2 / 2,
 * because |b_j|^2 is the same everywhere: the assignment maximizes the sum of scores. */
struct clustering {
    const uint64_t *strong; /* [F][words] */
    const int *neuron;      /* [R] original numbers */
    int routed, experts, tokens, words;
    const int *size;  /* [N] */
    int *of;          /* [R] the expert of a neuron */
    float *score;     /* [R][N] */
    float *centroid;  /* [tokens][N]: the experts of a token beside each other, so that a set bit adds one row */
    float *half_norm; /* [N] */
    const struct alive *alive;
};

static const uint64_t *bits_of(const struct clustering *c, int j)
{
    return c->strong + (size_t)c->neuron[j] * (size_t)c->words;
}

static void find_centroids(struct clustering *c)
{
    size_t n = (size_t)c->experts;

    memset(c->centroid, 0, (size_t)c->tokens * n * sizeof(*c->centroid));
    for (int j = 0; j < c->routed; j++) {
        const uint64_t *b = bits_of(c, j);

        alive_tick(c->alive);
        for (int t = bits_next(b, c->tokens, 0); t < c->tokens; t = bits_next(b, c->tokens, t + 1))
            c->centroid[(size_t)t * n + (size_t)c->of[j]] += 1;
    }
    memset(c->half_norm, 0, n * sizeof(*c->half_norm));
    for (int t = 0; t < c->tokens; t++)
        for (size_t i = 0; i < n; i++) {
            float *x = &c->centroid[(size_t)t * n + i];

            *x /= (float)c->size[i];
            c->half_norm[i] += *x * *x / 2;
        }
}

static void find_scores(struct clustering *c)
{
    size_t n = (size_t)c->experts;

    for (int j = 0; j < c->routed; j++) {
        const uint64_t *b = bits_of(c, j);
        float *score = c->score + (size_t)j * n;

        for (size_t i = 0; i < n; i++) score[i] = -c->half_norm[i];
        alive_tick(c->alive);
        for (int t = bits_next(b, c->tokens, 0); t < c->tokens; t = bits_next(b, c->tokens, t + 1)) {
            const float *x = c->centroid + (size_t)t * n;

            for (size_t i = 0; i < n; i++) score[i] += x[i];
        }
    }
}

/* What a neuron wants: its best expert with room, and how much it loses if it comes too late for that. */
struct wish {
    float regret;
    int neuron, expert;
};

static struct wish wish_of(const struct clustering *c, int j, const int *room)
{
    const float *s = c->score + (size_t)j * (size_t)c->experts;
    float second = -FLT_MAX;
    int best = -1;

    for (int i = 0; i < c->experts; i++) {
        if (!room[i]) continue;
        if (best < 0 || s[i] > s[best]) {
            if (best >= 0) second = s[best];
            best = i;
        } else if (s[i] > second) {
            second = s[i];
        }
    }
    return (struct wish){.regret = second == -FLT_MAX ? 0 : s[best] - second, .neuron = j, .expert = best};
}

static bool before(const struct wish *a, const struct wish *b)
{
    return a->regret != b->regret ? a->regret > b->regret : a->neuron < b->neuron;
}

static void sift_down(struct wish *heap, int n, int at)
{
    for (int child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &heap[at])) return;
        struct wish t = heap[at];

        heap[at] = heap[child];
        heap[child] = t;
    }
}

/* The largest regret chooses first; a wish for an expert that has become full is made anew. */
static void assign_greedily(struct clustering *c, struct wish *heap, int *room)
{
    int n = c->routed;

    memcpy(room, c->size, (size_t)c->experts * sizeof(*room));
    for (int j = 0; j < n; j++) heap[j] = wish_of(c, j, room);
    for (int at = n / 2; at-- > 0;) sift_down(heap, n, at);
    while (n > 0) {
        if (room[heap[0].expert]) {
            c->of[heap[0].neuron] = heap[0].expert;
            room[heap[0].expert]--;
            heap[0] = heap[--n];
        } else {
            heap[0] = wish_of(c, heap[0].neuron, room);
        }
        sift_down(heap, n, 0);
    }
}

/* Two neurons change places while the sum of scores gains by it: what greedy choice left on the table. */
static void swap_pairs(struct clustering *c)
{
    size_t n = (size_t)c->experts;

    for (int pass = 0, moved = 1; pass < SWAP_PASSES && moved; pass++) {
        moved = 0;
        for (int j = 0; j < c->routed; j++) {
            const float *sj = c->score + (size_t)j * n;
            float gain = 0;
            int with = -1;

            alive_tick(c->alive);
            for (int k = 0; k < c->routed; k++) {
                float step = sj[c->of[k]] - sj[c->of[j]];

                if (step <= 0) continue; /* nothing for j there; if k gains, its own turn finds it */
                const float *sk = c->score + (size_t)k * n;
                step += sk[c->of[j]] - sk[c->of[k]];
                if (step > gain) {
                    gain = step;
                    with = k;
                }
            }
            if (with < 0 || gain < 1e-4f) continue; /* rounding must not make it run in circles */
            int t = c->of[j];

            c->of[j] = c->of[with];
            c->of[with] = t;
            moved++;
        }
    }
}

/* Sum of scores of the present assignment under its own centroids: sum of |c_i|^2 / 2 over neurons, up to a constant. */
static double quality(const struct clustering *c)
{
    double sum = 0;

    for (int i = 0; i < c->experts; i++) sum += (double)c->size[i] * c->half_norm[i];
    return sum;
}

/* First centroids: neurons far from each other (k-means++), as rows of their own. */
static void seed_centroids(struct clustering *c, float *far, struct rng *r)
{
    size_t n = (size_t)c->experts;

    for (int j = 0; j < c->routed; j++) far[j] = FLT_MAX;
    memset(c->centroid, 0, (size_t)c->tokens * n * sizeof(*c->centroid));
    int chosen = (int)rng_below(r, (uint64_t)c->routed);
    for (int i = 0; i < c->experts; i++) {
        const uint64_t *b = bits_of(c, chosen);
        double sum = 0;

        alive_tick(c->alive);
        c->half_norm[i] = 0.5f * (float)bits_count(b, c->tokens);
        for (int t = bits_next(b, c->tokens, 0); t < c->tokens; t = bits_next(b, c->tokens, t + 1))
            c->centroid[(size_t)t * n + (size_t)i] = 1;
        for (int j = 0; j < c->routed; j++) {
            const uint64_t *other = bits_of(c, j);
            int differ = 0;

            for (int w = 0; w < c->words; w++) differ += __builtin_popcountll(b[w] ^ other[w]);
            if ((float)differ < far[j]) far[j] = (float)differ;
            sum += far[j];
        }
        /* all neurons equal to one that was chosen: any will do */
        double at = rng_unit(r) * sum;
        chosen = sum > 0 ? c->routed - 1 : (chosen + 1) % c->routed;
        for (int j = 0; sum > 0 && j < c->routed; j++) {
            at -= far[j];
            if (at < 0) {
                chosen = j;
                break;
            }
        }
    }
}

static void cluster_neurons(struct clustering *c, struct wish *heap, int *room, float *far, int *best, uint64_t seed)
{
    size_t bytes = (size_t)c->routed * sizeof(*best);
    double most = -1;
    struct rng r;

    rng_seed(&r, seed, 0x67726f7570);
    seed_centroids(c, far, &r);
    for (int round = 0; round < ROUNDS_MAX; round++) {
        find_scores(c);
        assign_greedily(c, heap, room);
        swap_pairs(c);
        find_centroids(c);
        double q = quality(c);

        if (q <= most) break; /* as good as it gets */
        most = q;
        memcpy(best, c->of, bytes);
    }
    memcpy(c->of, best, bytes);
}

status group_coactivation(int *order, const uint64_t *strong, int neurons, int tokens, int shared, int experts,
                          const float *importance, uint64_t seed, const struct alive *alive, struct err *e)
{
    int routed = neurons - shared;
    size_t f = (size_t)routed, n = (size_t)experts;
    status s = OK;

    BUG_ON(shared < 0 || experts < 1 || routed < experts || tokens < 1);
    group_contiguous(order, neurons);
    group_shared_first(order, neurons, shared, importance);
    struct clustering c = {
        .strong = strong, .neuron = order + shared, .routed = routed, .experts = experts, .tokens = tokens, .alive = alive};
    int *size = malloc(n * sizeof(*size)), *room = malloc(n * sizeof(*room)), *best = malloc(f * sizeof(*best));
    int *at = malloc(n * sizeof(*at)), *sorted = malloc(f * sizeof(*sorted));
    struct wish *heap = malloc(f * sizeof(*heap));
    float *far = malloc(f * sizeof(*far));

    c.words = bits_words(tokens);
    c.size = size;
    c.of = malloc(f * sizeof(*c.of));
    c.score = malloc(f * n * sizeof(*c.score));
    c.centroid = malloc((size_t)tokens * n * sizeof(*c.centroid));
    c.half_norm = malloc(n * sizeof(*c.half_norm));
    if (!size || !room || !best || !at || !sorted || !heap || !far || !c.of || !c.score || !c.centroid || !c.half_norm) {
        s = err_set(e, ERR_LIMIT, "no memory to group %d neurons into %d experts over %d tokens", routed, experts, tokens);
        goto done;
    }
    for (int i = 0; i < experts; i++) {
        size[i] = group_size(neurons, shared, experts, i);
        at[i] = group_begin(neurons, shared, experts, i) - shared;
    }
    cluster_neurons(&c, heap, room, far, best, seed);
    /* of equals the order of the model stays, which is kind to whoever reads the weights */
    for (int j = 0; j < routed; j++) sorted[at[c.of[j]]++] = c.neuron[j];
    memcpy(order + shared, sorted, f * sizeof(*sorted));

done:
    free(size);
    free(room);
    free(best);
    free(at);
    free(sorted);
    free(heap);
    free(far);
    free(c.of);
    free(c.score);
    free(c.centroid);
    free(c.half_norm);
    return s;
}
