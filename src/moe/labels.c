#include "moe/labels.h"

#include <math.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"

enum { EXPERTS_MAX = 4096, LANES = 8 };

/* Sums over a row run in LANES interleaved partial sums, folded in a fixed order: the same bits for equal rows on every rank, and the
 * compiler may use vectors without being allowed to reorder. */
static double fold(const double *s)
{
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

float paper_score(const float *e, const float *y, float share, int width)
{
    double s[LANES] = {0};
    int d = 0;

    for (; d + LANES <= width; d += LANES) {
        for (int l = 0; l < LANES; l++) {
            double miss = (double)e[d + l] - (double)y[d + l] * (double)share;

            s[l] += miss * miss;
        }
    }
    for (int l = 0; d < width; d++, l++) {
        double miss = (double)e[d] - (double)y[d] * (double)share;

        s[l] += miss * miss;
    }
    return (float)(-fold(s) / width);
}

static double dot(const float *a, const float *b, int width)
{
    double s[LANES] = {0};
    int d = 0;

    for (; d + LANES <= width; d += LANES) {
        for (int l = 0; l < LANES; l++) s[l] += (double)a[d + l] * (double)b[d + l];
    }
    for (int l = 0; d < width; d++, l++) s[l] += (double)a[d] * (double)b[d];
    return fold(s);
}

void gram_matrix(double *g, const float *c, int n, int width)
{
    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
            double x = dot(c + (size_t)i * (size_t)width, c + (size_t)j * (size_t)width, width);

            g[(size_t)i * (size_t)n + (size_t)j] = g[(size_t)j * (size_t)n + (size_t)i] = x;
        }
    }
}

double gram_error(const double *g, int n, const uint64_t *set)
{
    double error = 0;

    for (int i = 0; i < n; i++) {
        if (bits_has(set, i)) continue;
        for (int j = 0; j < n; j++) {
            if (!bits_has(set, j)) error += g[(size_t)i * (size_t)n + (size_t)j];
        }
    }
    return error;
}

/* C(n, k), or GRAM_SETS_MAX + 1 if it is more than GRAM_SETS_MAX. */
static int count_sets(int n, int k)
{
    int64_t count = 1;

    if (k > n - k) k = n - k;
    for (int i = 1; i <= k; i++) {
        count = count * (n - k + i) / i;
        if (count > GRAM_SETS_MAX) return GRAM_SETS_MAX + 1;
    }
    return (int)count;
}

struct search {
    const double *g;
    int n, k;
    double out[EXPERTS_MAX]; /* out[i] = sum of G_ij over all j outside the set */
};

static const double *gram_row(const struct search *s, int i)
{
    return s->g + (size_t)i * (size_t)s->n;
}

static double search_start(struct search *s)
{
    double total = 0;

    for (int i = 0; i < s->n; i++) {
        s->out[i] = 0;
        for (int j = 0; j < s->n; j++) s->out[i] += gram_row(s, i)[j];
        total += s->out[i];
    }
    return total;
}

/* All sets in lexicographic order: a set's error from that of its first members, one expert at a time, so that a set costs O(k). */
static void search_all(const struct search *s, uint64_t *best)
{
    /* More members than half only with few outside (else there are too many sets), but then k may still be near EXPERTS_MAX. */
    int member[EXPERTS_MAX], depth = 0, k = s->k;
    double error[EXPERTS_MAX + 1], least = INFINITY;

    error[0] = 0;
    for (int i = 0; i < s->n; i++) error[0] += s->out[i];
    for (int i = 0; i < k; i++) bits_set(best, i); /* what remains when every error is NaN or infinite */
    if (k == 0) return;
    member[0] = 0;
    while (depth >= 0) {
        int i = member[depth];

        if (i > s->n - (k - depth)) { /* too few are left for the deeper places */
            if (--depth >= 0) member[depth]++;
            continue;
        }
        double add = gram_row(s, i)[i] - 2 * s->out[i];

        for (int d = 0; d < depth; d++) add += 2 * gram_row(s, i)[member[d]];
        error[depth + 1] = error[depth] + add;
        if (depth + 1 < k) {
            member[++depth] = i + 1;
            continue;
        }
        if (error[k] < least) {
            least = error[k];
            memset(best, 0, (size_t)bits_words(s->n) * sizeof(*best));
            for (int d = 0; d < k; d++) bits_set(best, member[d]);
        }
        member[depth]++;
    }
}

static void move(struct search *s, int i, double sign)
{
    for (int j = 0; j < s->n; j++) s->out[j] += sign * gram_row(s, i)[j];
}

static void search_greedy(struct search *s, uint64_t *set)
{
    for (int step = 0; step < s->k; step++) {
        int best = -1;
        double gain = -INFINITY;

        for (int i = 0; i < s->n; i++) {
            double lowered = 2 * s->out[i] - gram_row(s, i)[i];

            if (bits_has(set, i)) continue;
            if (best < 0 || lowered > gain) best = i, gain = lowered;
        }
        bits_set(set, best);
        move(s, best, -1);
    }
    for (int swaps = 0; swaps < s->n; swaps++) {
        int leave = -1, enter = -1;
        double change = 0;

        for (int a = bits_next(set, s->n, 0); a < s->n; a = bits_next(set, s->n, a + 1)) {
            const double *row = gram_row(s, a);
            double raise = 2 * s->out[a] + row[a];

            for (int b = 0; b < s->n; b++) {
                double c = raise - 2 * s->out[b] + gram_row(s, b)[b] - 2 * row[b];

                if (c < change && !bits_has(set, b)) change = c, leave = a, enter = b;
            }
        }
        if (leave < 0) break;
        set[leave / 64] &= ~(UINT64_C(1) << (leave % 64));
        bits_set(set, enter);
        move(s, leave, 1);
        move(s, enter, -1);
    }
}

double gram_best(uint64_t *set, const double *g, int n, int k)
{
    struct search s = {.g = g, .n = n, .k = k};

    BUG_ON(n < 0 || n > EXPERTS_MAX || k < 0 || k > n);
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    search_start(&s);
    if (count_sets(n, k) <= GRAM_SETS_MAX) search_all(&s, set);
    else search_greedy(&s, set);
    return gram_error(g, n, set);
}

void gram_gains(double *gain, const double *g, int n)
{
    struct search s = {.g = g, .n = n};
    uint64_t set[EXPERTS_MAX / 64] = {0};

    BUG_ON(n < 0 || n > EXPERTS_MAX);
    double error = search_start(&s), length = error > 0 ? sqrt(error) : 1;
    for (int step = 0; step < n; step++) {
        int best = -1;
        double most = -INFINITY;

        for (int i = 0; i < n; i++) {
            double lowered = 2 * s.out[i] - gram_row(&s, i)[i];

            if (bits_has(set, i)) continue;
            if (best < 0 || lowered > most) best = i, most = lowered;
        }
        bits_set(set, best);
        move(&s, best, -1);
        most /= length;
        gain[step] = step && !(most < gain[step - 1]) ? gain[step - 1] : most;
    }
}

int gram_variable(uint64_t *set, double *gain, const double *g, int n, double least)
{
    int k = 0;

    gram_gains(gain, g, n);
    while (k < n && gain[k] > least) k++;
    gram_best(set, g, n, k);
    return k;
}
