/* Gradients of the small operations, and through the experts, against central differences of the same functions in plain loops in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "../moe_world.h"
#include "num/backward.h"
#include "num/ops.h"
#include "num/ref.h"

static void numbers(float *x, size_t n, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed, 7);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(&r);
}

/* d f / d x[i] of a function of doubles. */
struct function {
    double (*f)(const double *x, void *ctx);
    void *ctx;
    size_t n;
};

static double slope(const struct function *f, const float *x, size_t i)
{
    const double step = 1e-5;
    double *at = malloc(f->n * sizeof(*at)), up, down;

    assert_non_null(at);
    for (size_t k = 0; k < f->n; k++) at[k] = (double)x[k];
    at[i] += step, up = f->f(at, f->ctx);
    at[i] -= 2 * step, down = f->f(at, f->ctx);
    free(at);
    return (up - down) / (2 * step);
}

static void near(double found, double wanted, double scale, const char *what, size_t i)
{
    if (!(fabs(found - wanted) <= 2e-5 * (scale + fabs(wanted))))
        fail_msg("%s, element %zu: expected %.8g, found %.8g", what, i, wanted, found);
}

/* ---- norm ---- */

enum { WIDTH = 21 };
static float weight[WIDTH], dy[WIDTH];

static double normed(const double *x, void *ctx)
{
    double squares = 0, loss = 0;

    (void)ctx;
    for (int i = 0; i < WIDTH; i++) squares += x[i] * x[i];
    for (int i = 0; i < WIDTH; i++) loss += (double)dy[i] * x[i] * (double)weight[i] / sqrt(squares / WIDTH + 1e-5);
    return loss;
}

static void test_norm(void **state)
{
    float x[WIDTH], dx[WIDTH];
    struct function f = {normed, NULL, WIDTH};

    (void)state;
    numbers(x, WIDTH, 1), numbers(weight, WIDTH, 2), numbers(dy, WIDTH, 3);
    for (int i = 0; i < WIDTH; i++) dx[i] = 1.0f; /* is added to */
    rms_norm_backward(dx, dy, x, weight, 1, WIDTH, 1e-5f);
    for (size_t i = 0; i < WIDTH; i++) near((double)dx[i] - 1.0, slope(&f, x, i), 0.1, "norm", i);
}

/* ---- rotation: orthogonal, so that what goes back is what undoes it ---- */

static void test_rotation(void **state)
{
    enum { HEADS = 3, DIM = 10, ROWS = 4 };
    const struct rope how = {.kind = ROPE_PLAIN, .theta = 10000};
    const int32_t position[ROWS] = {0, 1, 5, 7};
    float table[8 * DIM], x[ROWS * HEADS * DIM], y[ROWS * HEADS * DIM];

    (void)state;
    rope_table(table, 8, DIM, &how);
    numbers(x, ROWS * HEADS * DIM, 4);
    memcpy(y, x, sizeof(x));
    rope_apply(y, position, ROWS, HEADS, DIM, table);
    assert_true(fabsf(y[HEADS * DIM] - x[HEADS * DIM]) > 1e-3f);
    rope_backward(y, position, ROWS, HEADS, DIM, table);
    for (int i = 0; i < ROWS * HEADS * DIM; i++) assert_true(fabsf(x[i] - y[i]) < 1e-5f);
}

/* ---- losses ---- */

struct losses {
    const float *teacher;
    int n, target;
    double lm, kl, nll;
};

static double both(const double *s, void *ctx)
{
    struct losses *l = ctx;
    double zs = 0, zt = 0;

    for (int i = 0; i < l->n; i++) zs += exp(s[i]), zt += exp((double)l->teacher[i]);
    l->kl = 0, l->nll = log(zs) - s[l->target];
    for (int i = 0; i < l->n; i++) {
        double p = exp((double)l->teacher[i]) / zt;

        l->kl += p * (((double)l->teacher[i] - log(zt)) - (s[i] - log(zs)));
    }
    return l->kl + l->lm * l->nll;
}

static void test_distillation(void **state)
{
    static const int sizes[] = {1, 7, 8, 67, 1031};

    (void)state;
    for (size_t c = 0; c < sizeof(sizes) / sizeof(*sizes); c++) {
        float s[1031], t[1031], s0[1031], t0[1031];
        struct losses l = {t0, sizes[c], sizes[c] / 2, 0.3, 0, 0};
        struct function f = {both, &l, (size_t)sizes[c]};
        double kl = 1, nll = 2;

        numbers(s, 1031, 5), numbers(t, 1031, 6);
        for (int i = 0; i < 1031; i++) s0[i] = s[i] *= 3, t0[i] = t[i] *= 3;
        distill_backward(s, t, sizes[c], sizes[c] / 2, 0.3, &kl, &nll);
        for (size_t i = 0; i<f.n; i += f.n> 100 ? 37 : 1) near((double)s[i], slope(&f, s0, i), 0.05, "logits", i);
        slope(&f, s0, 0);
        near(kl - 1, l.kl, 0.5, "kl", c), near(nll - 2, l.nll, 0.5, "nll", c);
    }
}

/* ---- attention ---- */

enum { MOST_ROWS = 135, HEADS = 2, DIM = 6 };
struct window {
    int rows;
    const float *dout;
};

/* x: q [rows][HEADS][DIM], k [rows][DIM], v [rows][DIM] */
static double attended(const double *x, void *ctx)
{
    const struct window *w = ctx;
    const double *q = x, *k = q + w->rows * HEADS * DIM, *v = k + w->rows * DIM;
    double loss = 0, p[MOST_ROWS];

    for (int t = 0; t < w->rows; t++)
        for (int h = 0; h < HEADS; h++) {
            double sum = 0;

            for (int j = 0; j <= t; j++) {
                double s = 0;

                for (int d = 0; d < DIM; d++) s += q[(t * HEADS + h) * DIM + d] * k[j * DIM + d];
                sum += p[j] = exp(s / sqrt((double)DIM));
            }
            for (int j = 0; j <= t; j++)
                for (int d = 0; d < DIM; d++) loss += p[j] / sum * v[j * DIM + d] * (double)w->dout[(t * HEADS + h) * DIM + d];
        }
    return loss;
}

static void test_attention(void **state)
{
    static const int lengths[] = {1, 9, 64, 135};

    (void)state;
    for (size_t c = 0; c < sizeof(lengths) / sizeof(*lengths); c++) {
        int rows = lengths[c];
        size_t q = (size_t)rows * HEADS * DIM, kv = (size_t)rows * DIM, n = q + 2 * kv;
        float x[MOST_ROWS * (HEADS + 2) * DIM], dx[MOST_ROWS * (HEADS + 2) * DIM], dout[MOST_ROWS * HEADS * DIM];
        struct window w = {rows, dout};
        struct function f = {attended, &w, n};
        void *room = aligned_alloc(64, (attend_backward_bytes(rows, DIM) + 63) / 64 * 64);
        void *scratch = aligned_alloc(64, (kernel_scratch_bytes() + 63) / 64 * 64);

        assert_true(room && scratch);
        numbers(x, n, 8 + c), numbers(dout, q, 9 + c);
        memset(dx, 0xff, sizeof(dx));
        attend_backward(&(struct attend_backward){.kernel = kernel_for(isa_best()),
                                                  .rows = rows,
                                                  .heads = HEADS,
                                                  .head_dim = DIM,
                                                  .q = x,
                                                  .k = x + q,
                                                  .v = x + q + kv,
                                                  .dout = dout,
                                                  .ldq = HEADS * DIM,
                                                  .ldk = DIM,
                                                  .ldout = HEADS * DIM,
                                                  .dq = dx,
                                                  .dk = dx + q,
                                                  .dv = dx + q + kv,
                                                  .lddq = HEADS * DIM,
                                                  .lddk = DIM},
                        scratch, room);
        for (size_t i = 0; i<n; i += rows> 10 ? 41 : 1) near((double)dx[i], slope(&f, x, i), 0.3, "attention", i);
        free(room);
        free(scratch);
    }
}

/* ---- experts ---- */

enum { LAYER_WIDTH = 19, ROWS = 5, EXPERTS = 5 };
struct ffn {
    const struct moe_world *w;
    const uint64_t *set;
    const float *dy;
    double scale;
};

static double ffn_loss(const double *x, void *ctx)
{
    const struct ffn *f = ctx;
    const struct moe_layer *y = &f->w->layer[0];
    double loss = 0;

    for (int t = 0; t < ROWS; t++)
        for (int i = -1; i < EXPERTS; i++) {
            const struct expert *e = i < 0 ? &y->shared : &y->expert[i];

            if (i >= 0 && !bits_has(f->set + t, i)) continue;
            for (int j = 0; j < e->gate.rows; j++) {
                double a = 0, b = 0, back = 0;

                for (int d = 0; d < LAYER_WIDTH; d++) {
                    a += (double)packed_at(&e->gate, j, d) * x[t * LAYER_WIDTH + d];
                    b += (double)packed_at(&e->up, j, d) * x[t * LAYER_WIDTH + d];
                    back += (double)packed_at(&e->down, d, j) * (double)f->dy[t * LAYER_WIDTH + d];
                }
                loss += (i < 0 ? 1.0 : f->scale) * a / (1 + exp(-a)) * b * back;
            }
        }
    return loss;
}

static struct packed transposed(int n, const struct packed *const *w)
{
    struct packed out = {.format = FORMAT_F32, .rows = w[0]->cols};

    for (int i = 0; i < n; i++) out.cols += w[i]->rows;
    void *lines = aligned_alloc(64, packed_line_bytes(FORMAT_F32, out.rows, out.cols));
    assert_non_null(lines);
    for (int i = 0, at = 0; i < n; at += w[i]->rows, i++) pack_transposed(lines, out.cols, at, w[i], 0, packed_panels(out.rows));
    out.lines = lines;
    for (int i = 0, at = 0; i < n; at += w[i]->rows, i++)
        for (int r = 0; r < w[i]->rows; r++)
            for (int c = 0; c < w[i]->cols; c++) assert_true(packed_at(&out, c, at + r) == packed_at(w[i], r, c));
    return out;
}

static void transpose(struct expert *x)
{
    x->in_t = transposed(2, (const struct packed *[]){&x->gate, &x->up});
}

static void test_experts(void **state)
{
    struct moe_world *w = moe_world_new(1, EXPERTS, 2, LAYER_WIDTH, 24, 4, 11);
    struct moe_layer *y = w->layer;
    uint64_t set[ROWS] = {0x1f, 0, 0x12, 0x5, 0x8};
    float h[ROWS * LAYER_WIDTH], back[ROWS * LAYER_WIDTH], dh[ROWS * LAYER_WIDTH], dgate[ROWS * EXPERTS];
    struct moe_limits limits = {.rows = ROWS, .train = true};
    struct ffn ffn = {w, set, back, 1.5};
    struct function f = {ffn_loss, &ffn, ROWS * LAYER_WIDTH};
    struct placement p;
    struct arena *arena;
    struct gemm *gemm;
    struct moe *m;
    struct err e;

    (void)state;
    for (int i = 0; i < EXPERTS; i++) transpose(&y->expert[i]);
    transpose(&y->shared);
    assert_int_equal(placement_make(&p, PLACEMENT_BLOCK, 1, EXPERTS, 1, true, &e), OK);
    assert_int_equal(arena_open(&arena, "test", moe_cost(&p, 0, 1, EXPERTS, LAYER_WIDTH, 24, limits), &e), OK);
    assert_int_equal(gemm_open(&gemm, 2, isa_best(), &e), OK);
    if (moe_open(&m, y, 1, LAYER_WIDTH, 24, &p, 0, limits, gemm, NULL, arena, &e)) fail_msg("%s", e.text);
    world_rows(h, ROWS, LAYER_WIDTH, 1), world_rows(back, ROWS, LAYER_WIDTH, 2);
    for (int i = 0; i < ROWS * LAYER_WIDTH; i++) h[i] *= 0.3f, dh[i] = 1.0f;
    if (moe_backward(m, 0, h, set, back, ROWS, 1.5f, dh, dgate, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < f.n; i++) near((double)dh[i] - 1.0, slope(&f, h, i), 0.5, "experts", i);
    /* A gate's gradient is what the loss gains when the expert joins. */
    double *x = malloc(f.n * sizeof(*x));
    assert_non_null(x);
    for (size_t i = 0; i < f.n; i++) x[i] = (double)h[i];
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < EXPERTS; i++) {
            uint64_t was = set[t], bit = UINT64_C(1) << i;
            double with, without;

            set[t] = was | bit, with = ffn_loss(x, &ffn);
            set[t] = was & ~bit, without = ffn_loss(x, &ffn);
            set[t] = was;
            near((double)dgate[t * EXPERTS + i], with - without, 0.5, "gates", (size_t)(t * EXPERTS + i));
        }
    float again[ROWS * EXPERTS]; /* without what goes back */
    assert_int_equal(moe_backward(m, 0, h, set, back, ROWS, 1.5f, NULL, again, &e), OK);
    assert_memory_equal(again, dgate, sizeof(again));
    free(x);
    for (int i = 0; i <= EXPERTS; i++) {
        struct expert *of = i < EXPERTS ? &y->expert[i] : &y->shared;

        free((void *)of->in_t.lines);
    }
    moe_close(m);
    gemm_close(gemm);
    arena_close(arena);
    placement_free(&p);
    moe_world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_rotation),
                                       cmocka_unit_test(test_distillation), cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_experts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
