/* How many experts of every layer, when all layers together may have so many neurons.  Pure. */
#ifndef MOE_BUDGET_H
#define MOE_BUDGET_H

/* What a layer loses with k active experts. */
struct budget_point {
    int k;
    double loss;
};

/* k[layers]: from the first point of every layer, the next expert always goes where it lowers the loss most for its neurons, along the lower convex hull of the layer's
 * points (between them straight), while it fits the total: the best sum of such losses up to one expert.  point: [layers][points], k rising, the last ones may be equal; cost[layers]: neurons
 * of one expert; total: neurons of all layers' active experts.  Of equals the lower layer. */
void budget_allocate(int *k, const struct budget_point *point, int layers, int points, const double *cost, double total);

/* One way to build a layer: so many neurons always, experts of `cost` neurons, and what it loses with k of them. */
struct budget_way {
    double fixed, cost;
    const struct budget_point *point; /* [points], k rising; between them straight */
    int points;
};
/* which[layers], k[layers]: of way[layers][ways] and every k between its first and its last point those with the least sum of losses whose neurons fit the total, as nearly as one
 * price for a neuron in all layers finds them (Lagrange; found by halving), and then expert by expert what still fits.  The least of every layer has to fit. */
void budget_choose(int *which, int *k, const struct budget_way *way, int layers, int ways, double total);

#endif
