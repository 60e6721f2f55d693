#include "engine/sample.h"

#include <math.h>

#include "base/err.h"
#include "base/rng.h"
#include "num/ops.h"

/* Relative to the largest, so that nothing overflows. */
static double weight(float logit, float largest, double temperature)
{
    if (logit == largest) return 1;
    return exp(((double)logit - (double)largest) / temperature);
}

static bool before(const struct sample_candidate *a, const struct sample_candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(struct sample_candidate *heap, int n, int at)
{
    struct sample_candidate moving = heap[at];

    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Moves the first of the n in the heap behind the other n - 1, as heap sort does: the i-th largest ends at work[n - 1 - i]. */
static struct sample_candidate *pop(struct sample_candidate *heap, int n)
{
    struct sample_candidate first = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    sift_down(heap, n - 1, 0);
    return &heap[n - 1];
}

/* Truncates to a prefix in descending order, largest at work[n - 1]; returns how many are left and their sum. */
static int truncate_candidates(struct sample_candidate *work, int n, const struct sampling *s, float largest, double *sum)
{
    int k = s->top_k > 0 && s->top_k < n ? s->top_k : n, popped = 0, kept = 0;
    double total = 0;

    if (s->top_p < 1 && k == n)
        for (int i = 0; i < n; i++) total += weight(work[i].logit, largest, s->temperature);
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(work, n, i);
    if (s->top_p < 1 && k < n)
        for (; popped < k; popped++) total += weight(pop(work, n - popped)->logit, largest, s->temperature);

    *sum = 0;
    for (; kept < k; kept++) {
        if (s->top_p < 1 && kept > 0 && *sum >= s->top_p * total) break;
        if (kept == popped) {
            pop(work, n - popped);
            popped++;
        }
        struct sample_candidate *c = &work[n - 1 - kept];

        c->weight = weight(c->logit, largest, s->temperature);
        if (kept > 0 && c->weight < s->min_p) break;
        *sum += c->weight;
    }
    return kept;
}

int32_t sample_token(const float *logits, int vocab, const struct sampling *s, uint64_t index, struct sample_candidate *work)
{
    int32_t best = argmax(logits, vocab);
    float largest = logits[best];
    double sum = 0, at = 0, draw;
    int n = 0;

    BUG_ON(vocab < 1);
    if (s->temperature <= 0 || s->top_k == 1 || isnan(largest) || isinf(largest)) return best;
    for (int i = 0; i < vocab; i++)
        if (logits[i] > -INFINITY) work[n++] = (struct sample_candidate){.logit = logits[i], .id = i};

    draw = (double)(rng_hash(s->seed, index, 0, 0) >> 11) * 0x1p-53;
    if (s->top_p >= 1 && s->min_p <= 0 && (s->top_k <= 0 || s->top_k >= n)) { /* nothing to cut: no order is needed */
        for (int i = 0; i < n; i++) sum += work[i].weight = weight(work[i].logit, largest, s->temperature);
        for (int i = 0; i < n; i++)
            if ((at += work[i].weight) > draw * sum) return work[i].id;
        return best;
    }
    int kept = truncate_candidates(work, n, s, largest, &sum);

    for (int i = 0; i < kept; i++)
        if ((at += work[n - 1 - i].weight) > draw * sum) return work[n - 1 - i].id;
    return best;
}
