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

#endif
