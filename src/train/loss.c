#include "train/loss.h"

#include <math.h>
#include <stddef.h>

#include "base/bits.h"

double loss_paper(float *dz, const float *z, const uint64_t *label, int rows, int n, const double *weight)
{
    double total = 0;

    for (int t = 0; t < rows; t++, z += n, dz += n, label += bits_words(n)) {
        int k = bits_count(label, n);
        /* softmax of k ones and n - k zeros has two values */
        double log_target = log(k * exp(1.0) + (n - k)), target[2] = {exp(-log_target), exp(1.0 - log_target)};
        double top = z[0], sum = 0, loss = 0;

        for (int i = 1; i < n; i++) top = z[i] > top ? z[i] : top;
        for (int i = 0; i < n; i++) sum += exp(z[i] - top);
        double log_sum = top + log(sum);
        for (int i = 0; i < n; i++) {
            int on = bits_has(label, i);
            double p = target[on], log_q = z[i] - log_sum;

            loss += p * ((on - log_target) - log_q);
            dz[i] = (float)(weight[t] * (exp(log_q) - p));
        }
        total += weight[t] * loss;
    }
    return total;
}

double loss_bce(float *dz, const float *z, const uint64_t *label, int rows, int n, const double *weight)
{
    double total = 0;

    for (int t = 0; t < rows; t++, z += n, dz += n, label += bits_words(n)) {
        double loss = 0;

        for (int i = 0; i < n; i++) {
            int on = bits_has(label, i);
            double small = exp(-fabs(z[i])); /* never overflows */
            double sigmoid = z[i] >= 0 ? 1 / (1 + small) : small / (1 + small);

            loss += log1p(small) + (z[i] > 0 ? z[i] : 0) - (on ? z[i] : 0);
            dz[i] = (float)(weight[t] * (sigmoid - on));
        }
        total += weight[t] * loss;
    }
    return total;
}

static double log_of_sum(const float *z, int n)
{
    double top = z[0], sum = 0;

    for (int i = 1; i < n; i++) top = z[i] > top ? z[i] : top;
    for (int i = 0; i < n; i++) sum += exp(z[i] - top);
    return top + log(sum);
}

double loss_listwise(float *dz, const float *z, const float *v, int rows, int n, const double *weight)
{
    double total = 0;

    for (int t = 0; t < rows; t++, z += n, dz += n, v += n) {
        double log_sum = log_of_sum(z, n), all = 0, loss = 0;

        for (int i = 0; i < n; i++) all += v[i];
        for (int i = 0; i < n; i++) {
            double p = all > 0 ? v[i] / all : 1.0 / n, log_q = z[i] - log_sum;

            if (p > 0) loss += p * (log(p) - log_q);
            dz[i] = (float)(weight[t] * (exp(log_q) - p));
        }
        total += weight[t] * loss;
    }
    return total;
}

void loss_targets(float *t, const float *v, int n)
{
    double most = 1e-30; /* rows of zeros have targets, too */

    for (int i = 0; i < n; i++) most = v[i] > most ? v[i] : most;
    for (int i = 0; i < n; i++) t[i] = (float)(0.5 * log(v[i] > 1e-4 * most ? v[i] : 1e-4 * most));
}

double loss_regression(float *dz, const float *z, const float *v, int rows, int n, const double *weight)
{
    double total = 0;

    for (int t = 0; t < rows; t++, z += n, dz += n, v += n) {
        double loss = 0;

        loss_targets(dz, v, n);
        for (int i = 0; i < n; i++) {
            double far = (double)z[i] - dz[i];

            loss += far * far / 2;
            dz[i] = (float)(weight[t] * far);
        }
        total += weight[t] * loss;
    }
    return total;
}

int64_t sets_common(const uint64_t *a, const uint64_t *b, int rows, int n)
{
    int64_t common = 0;

    for (size_t w = 0; w < (size_t)rows * (size_t)bits_words(n); w++) common += __builtin_popcountll(a[w] & b[w]);
    return common;
}
