#include "moe/budget.h"

#include <math.h>

#include "base/err.h"

/* The hull's fall of the loss for one expert more than k: steepest to any later point, from the vertex at or before k. */
static double fall(const struct budget_point *p, int points, int k)
{
    int at = 0, best;
    double most;

    for (;;) { /* from vertex to vertex */
        if (p[at].k >= p[points - 1].k) return 0;
        best = at + 1;
        most = (p[at].loss - p[best].loss) / (p[best].k - p[at].k);
        for (int i = at + 2; i < points; i++) {
            double f = (p[at].loss - p[i].loss) / (p[i].k - p[at].k);

            if (f >= most) most = f, best = i;
        }
        if (k < p[best].k) return most > 0 ? most : 0;
        at = best;
    }
}

void budget_allocate(int *k, const struct budget_point *point, int layers, int points, const double *cost, double total)
{
    double left = total;

    for (int l = 0; l < layers; l++) {
        k[l] = point[l * points].k;
        left -= cost[l] * k[l];
    }
    BUG_ON(points < 1 || left < -1e-6 * total);
    for (;;) {
        double most = 0;
        int best = -1;

        for (int l = 0; l < layers; l++) {
            const struct budget_point *p = point + l * points;

            if (k[l] >= p[points - 1].k || cost[l] > left + 1e-9 * total) continue;
            double gain = fall(p, points, k[l]) / cost[l];
            if (best < 0 || gain > most) most = gain, best = l;
        }
        if (best < 0) return;
        left -= cost[best];
        k[best]++;
    }
}

/* ---- ways ---- */

static double loss_at(const struct budget_way *w, int k)
{
    const struct budget_point *p = w->point, *end = p + w->points - 1;

    while (p < end && p[1].k <= k) p++;
    if (p == end || p->k >= k) return p->loss;
    return p->loss + (p[1].loss - p->loss) * (k - p->k) / (p[1].k - p->k);
}

static double neurons_at(const struct budget_way *w, int k)
{
    return w->fixed + w->cost * k;
}

/* Every layer's best at this price; returns the neurons of all. */
static double choose_at(double price, int *which, int *k, const struct budget_way *way, int layers, int ways)
{
    double sum = 0;

    for (int l = 0; l < layers; l++, way += ways) {
        double least = INFINITY;

        for (int q = 0; q < ways; q++)
            for (int i = way[q].point[0].k; i <= way[q].point[way[q].points - 1].k; i++) {
                double pays = loss_at(&way[q], i) + price * neurons_at(&way[q], i);

                if (pays < least) least = pays, which[l] = q, k[l] = i;
            }
        sum += neurons_at(&way[which[l]], k[l]);
    }
    return sum;
}

void budget_choose(int *which, int *k, const struct budget_way *way, int layers, int ways, double total)
{
    double low = 0, high = 1e-12;

    while (choose_at(high, which, k, way, layers, ways) > total) {
        high *= 4;
        BUG_ON(high > 1e30); /* the least of every layer does not fit */
    }
    for (int i = 0; i < 100; i++) {
        double middle = (low + high) / 2;

        if (choose_at(middle, which, k, way, layers, ways) > total) low = middle;
        else high = middle;
    }
    double left = total - choose_at(high, which, k, way, layers, ways);

    for (;;) {
        double most = 0;
        int best = -1;

        for (int l = 0; l < layers; l++) {
            const struct budget_way *w = &way[l * ways + which[l]];

            if (k[l] >= w->point[w->points - 1].k || w->cost > left + 1e-9 * total) continue;
            double gain = (loss_at(w, k[l]) - loss_at(w, k[l] + 1)) / w->cost;
            if (gain > most) most = gain, best = l;
        }
        if (best < 0) return;
        left -= way[best * ways + which[best]].cost;
        k[best]++;
    }
}
