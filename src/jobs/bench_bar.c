#include "jobs/bench_bar.h"

#include <stdlib.h>

#include "jobs/bench_product.h"

enum { MATRICES = 4 };

struct bench_bar {
    struct bench_operands operands[MATRICES];
    int times[MATRICES]; /* a layer has this matrix */
    int n;
    struct bench_product *product[RIVAL_KINDS][MATRICES];
};

static status add_library(struct bench_bar *r, enum rival_kind kind, int threads, struct err *e)
{
    status st = OK;

    for (int i = 0; i < MATRICES && !st; i++) {
        st = bench_product_rival(&r->product[r->n][i], kind, threads, &r->operands[i], e);
        if (!st) st = bench_product_check(r->product[r->n][i], e);
    }
    if (!st) {
        r->n++;
        return OK;
    }
    for (int i = 0; i < MATRICES; i++) {
        bench_product_close(r->product[r->n][i]);
        r->product[r->n][i] = NULL;
    }
    return st;
}

status bench_bar_open(struct bench_bar **out, struct bench *b, enum format format, int rows, struct err *e)
{
    const struct shape *s = &b->shape;
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const struct {
        int n, k, times;
    } matrix[MATRICES] = {{q, s->width, 2}, {kv, s->width, 2}, {s->neurons, s->width, 2}, {s->width, s->neurons, 1}};
    struct bench_bar *r = calloc(1, sizeof(*r));
    status st = OK;

    BUG_ON(!r);
    *out = NULL;
    for (int i = 0; i < MATRICES && !st; i++) {
        r->times[i] = matrix[i].times;
        st = bench_operands_open(&r->operands[i], rows, matrix[i].n, matrix[i].k, e);
    }
    for (int i = 0; i < bench_rivals[format].n && !st; i++) {
        enum rival_kind kind = bench_rivals[format].kind[i];
        struct err why;

        if (add_library(r, kind, b->place.threads, &why))
            log_line(b->job->log, "  no bar of %s for a prefill: %s", rival_name(kind), why.text);
        cluster_alive(b->job->cluster);
    }
    if (st || !r->n) bench_bar_close(r);
    else *out = r;
    return st;
}

void bench_bar_close(struct bench_bar *r)
{
    if (!r) return;
    for (int i = 0; i < MATRICES; i++) {
        for (int k = 0; k < RIVAL_KINDS; k++) bench_product_close(r->product[k][i]);
        bench_operands_close(&r->operands[i]);
    }
    free(r);
}

double bench_bar_rate(struct bench_bar *r, const char **name)
{
    const double least = 0.02;
    double best = 0;

    for (int k = 0; k < r->n; k++) {
        double operations = 0, seconds = 0;

        for (int i = 0; i < MATRICES; i++) {
            const struct bench_operands *o = &r->operands[i];
            double once = bench_product_time(r->product[k][i], least);

            if (once < 0) return 0;
            operations += r->times[i] * 2.0 * o->rows * o->n * o->k;
            seconds += r->times[i] * once;
        }
        if (operations / seconds <= best) continue;
        best = operations / seconds;
        *name = bench_product_name(r->product[k][0]);
    }
    return best;
}
