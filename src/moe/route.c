#include "moe/route.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/bits.h"
#include "base/rng.h"
#include "num/ops.h"

enum { MOST_KEYS = 4096, KEY_NONE = INT32_MIN }; /* experts of a layer; the key of NaN */

/* Floats as integers in the same order; numbers that are none come before all others, and -0 is 0. */
static void sort_keys(int32_t *key, const float *z, int n)
{
    for (int i = 0; i < n; i++) {
        float x = z[i] + 0.0f;
        int32_t bits, lower;

        memcpy(&bits, &x, sizeof(bits));
        lower = bits >> 31;
        bits = bits ^ (lower & 0x7fffffff);
        key[i] = x == x ? bits : KEY_NONE;
    }
}

static int at_least(const int32_t *key, int n, int32_t least)
{
    int count = 0;

    for (int i = 0; i < n; i++) count += key[i] >= least;
    return count;
}

/* The k largest, of equals the lower index.  The least key among them is found bit by bit, from counts of keys that are as large: 32 passes at most over
 * numbers that stay in the cache, whatever k is. */
static void select_top(uint64_t *set, const float *z, int n, int k)
{
    int32_t key[MOST_KEYS];
    int64_t least = INT32_MIN; /* at least k keys are as large */
    int ties;

    BUG_ON(n > MOST_KEYS);
    memset(set, 0, (size_t)bits_words(n) * sizeof(*set));
    if (k == 0) return;
    sort_keys(key, z, n);
    for (int64_t step = INT64_C(1) << 31; step > 0; step >>= 1) {
        int count = least + step > INT32_MAX ? 0 : at_least(key, n, (int32_t)(least + step));

        if (count < k) continue;
        least += step;
        if (count == k) break;
    }
    ties = k;
    for (int i = 0; i < n; i++) {
        bool above = key[i] > least;

        set[i / 64] |= (uint64_t)above << (i % 64);
        ties -= above;
    }
    for (int i = 0; i < n && ties > 0; i++) {
        if (key[i] != least) continue;
        bits_set(set, i);
        ties--;
    }
}

void route_select(uint64_t *set, const float *z, int rows, int experts, int k, const struct router *r, int layer)
{
    size_t words = (size_t)bits_words(experts);

    BUG_ON(k < 0 || k > experts);
    for (int t = 0; t < rows; t++, set += words, z += experts) {
        if (r->by_threshold) above(set, z, experts, r->threshold[layer]);
        else select_top(set, z, experts, k);
    }
}

/* common = what the q best experts of every row's set are between them; how many that is. */
static int unite(uint64_t *common, const uint64_t *set, const float *z, int rows, int experts, int q)
{
    int words = bits_words(experts);
    uint64_t best[MOST_KEYS / 64];

    memset(common, 0, (size_t)words * sizeof(*common));
    for (int t = 0; t < rows; t++) {
        int own = bits_count(set + (size_t)t * (size_t)words, experts);

        select_top(best, z + (size_t)t * (size_t)experts, experts, own < q ? own : q);
        for (int w = 0; w < words; w++) common[w] |= best[w];
    }
    return bits_count(common, experts);
}

int route_most(double share, int experts)
{
    int most = (int)floor(share * experts + 1e-9); /* 0.3 of 10 are 3 */

    return most < 1 ? 1 : most;
}

void route_together(uint64_t *set, float *z, int rows, int experts, int most)
{
    int words = bits_words(experts), longest = 0, sure = 1;
    uint64_t common[MOST_KEYS / 64];

    BUG_ON(experts > MOST_KEYS || most < 1);
    for (int t = 0; t < rows; t++) {
        int own = bits_count(set + (size_t)t * (size_t)words, experts);

        longest = own > longest ? own : longest;
    }
    if (unite(common, set, z, rows, experts, longest) <= most) return;
    for (int too_many = longest; too_many - sure > 1;) {
        int q = sure + (too_many - sure) / 2;

        if (unite(common, set, z, rows, experts, q) <= most) sure = q;
        else too_many = q;
    }
    int have = unite(common, set, z, rows, experts, sure);

    for (int t = 0; t < rows; t++, set += words, z += experts) {
        int own = bits_count(set, experts);

        /* the row's own best are among them, and above the others */
        for (int i = 0; i < experts; i++)
            if (!bits_has(common, i)) z[i] = NAN;
        select_top(set, z, experts, own < have ? own : have);
    }
}

void route_random(uint64_t *set, const uint64_t *key, int rows, int experts, int k, uint64_t seed, int layer)
{
    size_t words = (size_t)bits_words(experts);

    BUG_ON(k < 0 || k > experts);
    for (int t = 0; t < rows; t++, set += words) {
        memset(set, 0, words * sizeof(*set));
        /* Floyd's sampling: every k-subset equally likely, from k numbers (Bentley and Floyd 1987). */
        for (int j = experts - k; j < experts; j++) {
            uint64_t u = rng_hash(seed, (uint64_t)layer, key[t], (uint64_t)j);
            int i = (int)((unsigned __int128)u * (unsigned)(j + 1) >> 64);

            bits_set(set, bits_has(set, i) ? j : i);
        }
    }
}

static void swap(float *z, int64_t a, int64_t b)
{
    float t = z[a];

    z[a] = z[b];
    z[b] = t;
}

static float middle(float a, float b, float c)
{
    if (a > b) return b > c ? b : a > c ? c : a;
    return a > c ? a : b > c ? c : b;
}

/* The element that stands at `rank` (0: the largest) when z is in falling order.  Cuts in three, so equal scores cost nothing. */
static float nth_largest(float *z, int64_t n, int64_t rank)
{
    int64_t from = 0, to = n;

    while (to - from > 1) {
        float pivot = middle(z[from], z[from + (to - from) / 2], z[to - 1]);
        int64_t larger = from, i = from, smaller = to; /* z[from..larger) > pivot, z[larger..i) equal, z[smaller..to) < pivot */

        while (i < smaller) {
            if (z[i] > pivot) swap(z, larger++, i++);
            else if (z[i] < pivot) swap(z, i, --smaller);
            else i++;
        }
        if (rank < larger) to = larger;
        else if (rank < smaller) return pivot;
        else from = smaller;
    }
    return z[from];
}

float route_threshold(float *z, int64_t rows, int experts, double mean)
{
    int64_t n = rows * experts, wanted;

    BUG_ON(rows < 0 || experts < 0 || !(mean >= 0));
    /* NaN is never above a threshold: it counts as the smallest. */
    for (int64_t i = 0; i < n; i++) {
        if (isnan(z[i])) z[i] = -INFINITY;
    }
    if (mean * (double)rows >= (double)n) return -FLT_MAX; /* below every score, and finite: it goes into a file */
    wanted = (int64_t)llround(mean * (double)rows);
    return wanted < n ? nth_largest(z, n, wanted) : -FLT_MAX;
}
