#include "num/adamw.h"

#include <math.h>

void adamw_step(struct adamw *a, float *p, const float *g, double gscale, double lr, const struct adamw_options *o)
{
    a->steps++;
    double correct1 = 1 - pow(o->beta1, (double)a->steps), correct2 = 1 - pow(o->beta2, (double)a->steps);

    for (size_t i = 0; i < a->n; i++) {
        double grad = gscale * g[i];
        double m = o->beta1 * a->m[i] + (1 - o->beta1) * grad, v = o->beta2 * a->v[i] + (1 - o->beta2) * grad * grad;
        double step = (m / correct1) / (sqrt(v / correct2) + o->epsilon);

        a->m[i] = (float)m;
        a->v[i] = (float)v;
        p[i] = (float)(p[i] - lr * (step + o->weight_decay * p[i]));
    }
}

double sum_of_squares(const float *x, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

double clip_scale(double norm, double limit)
{
    return limit > 0 && norm > limit ? limit / norm : 1;
}
