#include "moe/budget.h"

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
