#include "moe/predict.h"

#include <stdlib.h>
#include <string.h>

#include "num/cholesky.h"

/* Set PREDICT_FOLDS is all rows. */
enum { SETS = PREDICT_FOLDS + 1 };

struct predictor {
    float *h; /* [rows][width] centred by the mean of all rows */
    int rows, width;
    struct gemm *gemm;
    const struct alive *alive;
    float *mean;          /* [width] of h */
    float *part[SETS];    /* [width] mean of the centred rows of a set's training rows */
    float *inverse[SETS]; /* [width][width] (H'H + lambda I)^-1 over those rows */
};

static int fold_begin(const struct predictor *p, int fold)
{
    return (int)((int64_t)p->rows * fold / PREDICT_FOLDS);
}

static int rows_without(const struct predictor *p, int set)
{
    return set == PREDICT_FOLDS ? p->rows : p->rows - (fold_begin(p, set + 1) - fold_begin(p, set));
}

static void centre(struct predictor *p, const float *h)
{
    size_t width = (size_t)p->width;
    double *sum = calloc(width, sizeof(*sum));

    BUG_ON(!sum);
    for (int t = 0; t < p->rows; t++)
        for (size_t d = 0; d < width; d++) sum[d] += (double)h[(size_t)t * width + d];
    for (size_t d = 0; d < width; d++) p->mean[d] = (float)(sum[d] / p->rows);
    for (int t = 0; t < p->rows; t++)
        for (size_t d = 0; d < width; d++) p->h[(size_t)t * width + d] = h[(size_t)t * width + d] - p->mean[d];
    for (int s = 0; s < SETS; s++) {
        memset(sum, 0, width * sizeof(*sum));
        for (int t = 0; t < p->rows; t++) {
            if (s < PREDICT_FOLDS && t >= fold_begin(p, s) && t < fold_begin(p, s + 1)) continue;
            for (size_t d = 0; d < width; d++) sum[d] += (double)p->h[(size_t)t * width + d];
        }
        for (size_t d = 0; d < width; d++) p->part[s][d] = (float)(sum[d] / rows_without(p, s));
    }
    free(sum);
}

/* ---- the inverse ---- */

/* gram: H'H of the set's rows, centred at zero; they have a mean of their own, which is taken out. */
static status invert_set(struct predictor *p, int set, const float *gram, double *a, struct err *e)
{
    size_t n = (size_t)p->width;
    int rows = rows_without(p, set);
    double trace = 0;

    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++)
            a[i * n + j] = (double)gram[i * n + j] - (double)rows * (double)p->part[set][i] * (double)p->part[set][j];
    for (size_t i = 0; i < n; i++) trace += a[i * n + i];
    double lambda = PREDICT_RIDGE * trace / (double)n;
    if (!(lambda > 0)) lambda = 1; /* all rows are equal */
    for (size_t i = 0; i < n; i++) a[i * n + i] += lambda;
    if (!cholesky_factor(a, p->width, p->gemm, p->alive))
        return err_set(e, ERR_FORMAT, "hidden states of the calibration text are no numbers, or too large");
    return cholesky_invert(a, p->inverse[set], p->width, p->gemm, p->alive, e);
}

static status invert_all(struct predictor *p, struct err *e)
{
    size_t n = (size_t)p->width, all = n * n;
    float *gram = malloc(all * sizeof(*gram)), *whole = calloc(all, sizeof(*whole));
    double *a = malloc(all * sizeof(*a));
    status s = OK;

    if (!gram || !whole || !a) {
        s = err_set(e, ERR_LIMIT, "no memory for the ridge regression on %d rows of %d", p->rows, p->width);
        goto done;
    }
    for (int fold = 0; fold < PREDICT_FOLDS; fold++) { /* of the fold, kept for a moment where its inverse will be */
        int first = fold_begin(p, fold);
        const float *h = p->h + (size_t)first * n;

        alive_tick(p->alive);
        memset(p->inverse[fold], 0, all * sizeof(float));
        gemm_atb(p->gemm, p->inverse[fold], h, p->width, h, p->width, fold_begin(p, fold + 1) - first);
        for (size_t i = 0; i < all; i++) whole[i] += p->inverse[fold][i];
    }
    for (int set = 0; !s && set < SETS; set++) {
        for (size_t i = 0; i < all; i++) gram[i] = set < PREDICT_FOLDS ? whole[i] - p->inverse[set][i] : whole[i];
        alive_tick(p->alive);
        s = invert_set(p, set, gram, a, e);
    }

done:
    free(gram);
    free(whole);
    free(a);
    return s;
}

/* ---- opening ---- */

void predictor_close(struct predictor *p)
{
    if (!p) return;
    for (int s = 0; s < SETS; s++) {
        free(p->part[s]);
        free(p->inverse[s]);
    }
    free(p->mean);
    free(p->h);
    free(p);
}

status predictor_open(struct predictor **out, const float *h, int rows, int width, struct gemm *g, const struct alive *alive,
                      struct err *e)
{
    struct predictor *p = calloc(1, sizeof(*p));
    size_t n = (size_t)width;
    bool got;

    BUG_ON(!p || rows < PREDICT_FOLDS || width < 1);
    *out = NULL;
    *p = (struct predictor){.rows = rows, .width = width, .gemm = g, .alive = alive};
    p->h = malloc((size_t)rows * n * sizeof(*p->h));
    p->mean = malloc(n * sizeof(*p->mean));
    got = p->h && p->mean;
    for (int s = 0; s < SETS; s++) {
        p->part[s] = malloc(n * sizeof(float));
        p->inverse[s] = malloc(n * n * sizeof(float));
        got = got && p->part[s] && p->inverse[s];
    }
    if (got) centre(p, h);
    if (got ? invert_all(p, e) : err_set(e, ERR_LIMIT, "no memory for the ridge regression on %d rows of %d", rows, width)) {
        predictor_close(p);
        return e->code;
    }
    *out = p;
    return OK;
}

/* ---- fitting ---- */

/* weight[n][width] and the offset[n] of rows centred by p->mean, from the rows that the set has. */
static status fit(struct predictor *p, int set, float *weight, float *offset, const float *y, int n, struct err *e)
{
    size_t width = (size_t)p->width, m = (size_t)n;
    float *cross = calloc(m * width, sizeof(*cross)), *yc = malloc((size_t)p->rows * m * sizeof(*yc));
    double *mean = calloc(m, sizeof(*mean));
    int a = set < PREDICT_FOLDS ? fold_begin(p, set) : p->rows, b = set < PREDICT_FOLDS ? fold_begin(p, set + 1) : p->rows;
    status s = OK;

    if (!cross || !yc || !mean) {
        s = err_set(e, ERR_LIMIT, "no memory to fit %d scores on %d rows of %d", n, p->rows, p->width);
        goto done;
    }
    for (int t = 0; t < p->rows; t++)
        for (size_t i = 0; (t < a || t >= b) && i < m; i++) mean[i] += (double)y[(size_t)t * m + i];
    for (size_t i = 0; i < m; i++) mean[i] /= rows_without(p, set);
    for (int t = 0; t < p->rows; t++)
        for (size_t i = 0; i < m; i++) yc[(size_t)t * m + i] = (float)((double)y[(size_t)t * m + i] - mean[i]);
    /* y is centred over the rows, so h need not be; the two sides of the hole one after the other */
    gemm_atb(p->gemm, cross, yc, n, p->h, p->width, a);
    gemm_atb(p->gemm, cross, yc + (size_t)b * m, n, p->h + (size_t)b * width, p->width, p->rows - b);
    struct mat inverse = {.data = p->inverse[set], .dtype = DT_F32, .rows = p->width, .cols = p->width, .stride = width};

    gemm_xwt(p->gemm, weight, width, cross, width, n, &inverse, NULL); /* symmetric */
    for (size_t i = 0; i < m; i++) {
        double at = mean[i];

        for (size_t d = 0; d < width; d++) at -= (double)weight[i * width + d] * (double)p->part[set][d];
        offset[i] = (float)at;
    }

done:
    free(cross);
    free(yc);
    free(mean);
    return s;
}

status predictor_cross(struct predictor *p, float *z, const float *y, int n, struct err *e)
{
    size_t width = (size_t)p->width, m = (size_t)n;
    float *weight = malloc(m * width * sizeof(*weight)), *offset = malloc(m * sizeof(*offset));
    struct mat w = {.data = weight, .dtype = DT_F32, .rows = n, .cols = p->width, .stride = width};
    status s = OK;

    if (!weight || !offset) s = err_set(e, ERR_LIMIT, "no memory to predict %d scores", n);
    for (int fold = 0; !s && fold < PREDICT_FOLDS; fold++) {
        int first = fold_begin(p, fold), rows = fold_begin(p, fold + 1) - first;

        alive_tick(p->alive);
        s = fit(p, fold, weight, offset, y, n, e);
        if (!s) gemm_xwt(p->gemm, z + (size_t)first * m, m, p->h + (size_t)first * width, width, rows, &w, offset);
    }
    free(weight);
    free(offset);
    return s;
}

status predictor_fit(struct predictor *p, float *weight, float *bias, const float *y, int n, struct err *e)
{
    size_t width = (size_t)p->width;

    if (fit(p, PREDICT_FOLDS, weight, bias, y, n, e)) return e->code;
    for (int i = 0; i < n; i++) {
        double at = (double)bias[i];

        for (size_t d = 0; d < width; d++) at -= (double)weight[(size_t)i * width + d] * (double)p->mean[d];
        bias[i] = (float)at;
    }
    return OK;
}
