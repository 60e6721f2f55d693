#include "moe/clustering.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "moe/assign.h"

enum { ROUNDS_MAX = 12, CANDIDATES = 8 };

struct means {
    const float *x; /* [rows][dim] */
    int rows, dim, groups;
    const int *size;
    struct gemm *gemm;
    const struct alive *alive;
    float *mean, *half; /* [groups + CANDIDATES][dim], [groups + CANDIDATES]: -|mean|^2 / 2 */
    float *score;       /* [rows][groups or CANDIDATES] x . mean - |mean|^2 / 2: half the distance, less what all groups share */
    float *far, *norm;  /* [rows] squared distance to the nearest first mean; |x|^2 */
    int candidate[CANDIDATES];
    int *best; /* [rows] */
};

static const float *row_of(const struct means *m, int row)
{
    return m->x + (size_t)row * (size_t)m->dim;
}

static void find_half(struct means *m, int group)
{
    const float *c = m->mean + (size_t)group * (size_t)m->dim;
    double sum = 0;

    for (int d = 0; d < m->dim; d++) sum += (double)c[d] * (double)c[d];
    m->half[group] = (float)(-sum / 2);
}

/* score[rows][groups] against `groups` rows of means. */
static void find_scores(struct means *m, const float *mean, const float *half, int groups)
{
    struct mat w = {.data = mean, .dtype = DT_F32, .rows = groups, .cols = m->dim, .stride = (size_t)m->dim};

    gemm_xwt(m->gemm, m->score, (size_t)groups, m->x, (size_t)m->dim, m->rows, &w, half);
}

/* A row that is a random way through the sum of distances. */
static int draw_far(const struct means *m, double sum, struct rng *r, int last)
{
    double at = rng_unit(r) * sum;

    if (!(sum > 0)) return (last + 1) % m->rows; /* all rows equal one that was chosen: any will do */
    for (int j = 0; j < m->rows; j++) {
        at -= (double)m->far[j];
        if (at < 0) return j;
    }
    return m->rows - 1;
}

/* What the distance of row j becomes with candidate c of n. */
static float with_candidate(const struct means *m, int j, int c, int n)
{
    float away = m->norm[j] - 2 * m->score[(size_t)j * (size_t)n + (size_t)c];

    away = away > 0 ? away : 0;
    return away < m->far[j] ? away : m->far[j];
}

/* The best of n candidates, which stand at means i .. i + n - 1, becomes mean i. */
static double choose_candidate(struct means *m, int i, int n, int *row)
{
    double least = -1;
    int best = 0;
    size_t dim = (size_t)m->dim;

    find_scores(m, m->mean + (size_t)i * dim, m->half + i, n);
    for (int c = 0; c < n; c++) {
        double sum = 0;

        for (int j = 0; j < m->rows; j++) sum += (double)with_candidate(m, j, c, n);
        if (least < 0 || sum < least) {
            least = sum;
            best = c;
        }
    }
    for (int j = 0; j < m->rows; j++) m->far[j] = with_candidate(m, j, best, n);
    memmove(m->mean + (size_t)i * dim, m->mean + (size_t)(i + best) * dim, dim * sizeof(*m->mean));
    m->half[i] = m->half[i + best];
    *row = m->candidate[best];
    return least;
}

/* k-means++ (Arthur and Vassilvitskii 2007) with several candidates for each mean: two means in what is one group, and none in another, are hard to undo when
 * sizes are fixed. */
static void first_means(struct means *m, uint64_t seed)
{
    struct rng r;
    double sum = 0;
    int row = 0;

    rng_seed(&r, seed, 0x6d65616e73);
    for (int j = 0; j < m->rows; j++) {
        const float *x = row_of(m, j);
        double norm = 0;

        for (int d = 0; d < m->dim; d++) norm += (double)x[d] * (double)x[d];
        m->norm[j] = (float)norm;
        m->far[j] = FLT_MAX;
    }
    for (int i = 0; i < m->groups; i++) {
        int n = i ? CANDIDATES : 1;

        alive_tick(m->alive);
        for (int c = 0; c < n; c++) {
            row = i ? draw_far(m, sum, &r, row) : (int)rng_below(&r, (uint64_t)m->rows);
            m->candidate[c] = row;
            memcpy(m->mean + (size_t)(i + c) * (size_t)m->dim, row_of(m, row), (size_t)m->dim * sizeof(*m->mean));
            find_half(m, i + c);
        }
        sum = choose_candidate(m, i, n, &row);
    }
}

static void find_means(struct means *m, const int *of)
{
    size_t dim = (size_t)m->dim;

    memset(m->mean, 0, (size_t)m->groups * dim * sizeof(*m->mean));
    for (int j = 0; j < m->rows; j++) {
        float *c = m->mean + (size_t)of[j] * dim;
        const float *x = row_of(m, j);

        for (size_t d = 0; d < dim; d++) c[d] += x[d];
    }
    for (int i = 0; i < m->groups; i++) {
        float *c = m->mean + (size_t)i * dim;

        for (size_t d = 0; d < dim; d++) c[d] /= (float)m->size[i];
        find_half(m, i);
    }
}

/* Sum over rows of |their mean|^2, which is what the squared distances have lost against those to zero. */
static double quality(const struct means *m)
{
    double sum = 0;

    for (int i = 0; i < m->groups; i++) sum -= 2.0 * m->size[i] * (double)m->half[i];
    return sum;
}

static status run(struct means *m, int *of, uint64_t seed, struct err *e)
{
    double most = -1;

    first_means(m, seed);
    for (int round = 0; round < ROUNDS_MAX; round++) {
        alive_tick(m->alive);
        find_scores(m, m->mean, m->half, m->groups);
        if (assign_balanced(of, m->score, m->rows, m->groups, m->size, m->alive, e)) return e->code;
        find_means(m, of);
        double q = quality(m);

        if (round > 0 && q <= most * (1 + 1e-6)) {
            if (q <= most) memcpy(of, m->best, (size_t)m->rows * sizeof(*of));
            return OK;
        }
        most = q;
        memcpy(m->best, of, (size_t)m->rows * sizeof(*of));
    }
    return OK;
}

status cluster_rows(int *of, const float *x, int rows, int dim, int groups, const int *size, uint64_t seed, struct gemm *g,
                    const struct alive *alive, struct err *e)
{
    size_t n = (size_t)rows, k = (size_t)groups;
    struct means m = {.x = x, .rows = rows, .dim = dim, .groups = groups, .size = size, .gemm = g, .alive = alive};
    status s;

    BUG_ON(rows < groups || groups < 1 || dim < 1);
    m.mean = malloc((k + CANDIDATES) * (size_t)dim * sizeof(*m.mean));
    m.half = malloc((k + CANDIDATES) * sizeof(*m.half));
    m.score = malloc(n * (k > CANDIDATES ? k : CANDIDATES) * sizeof(*m.score));
    m.far = malloc(n * sizeof(*m.far));
    m.norm = malloc(n * sizeof(*m.norm));
    m.best = malloc(n * sizeof(*m.best));
    if (!m.mean || !m.half || !m.score || !m.far || !m.norm || !m.best)
        s = err_set(e, ERR_LIMIT, "no memory to cluster %d neurons into %d experts", rows, groups);
    else s = run(&m, of, seed, e);
    free(m.mean);
    free(m.half);
    free(m.score);
    free(m.far);
    free(m.norm);
    free(m.best);
    return s;
}
