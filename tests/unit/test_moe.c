/* The factorized FFNs on one rank, against plain loops in double; and that bits depend on nothing but the row.
 * (tests/mpi/test_moe.c: the same bits over ranks.) */
#include "../check.h"
#include "../moe_world.h"
#include "moe/labels.h"
#include "moe/moe_internal.h"
#include "moe/route.h"
#include "num/ops.h"

enum { ROWS = 37, WIDTH_MAX = 33, WORDS_MAX = 2 };

static const struct shape {
    int experts, active, width, neurons, shared;
} shapes[] = {
    {1, 1, 3, 5, 0},                       /* one expert */
    {70, 9, 7, 151, 11},                   /* two words of sets, unequal sizes */
    {4, 2, 33, 30, 0},                     /* 30 / 4: 8, 8, 7, 7 */
    {4, 1, 16, 64, 16},  {3, 3, 1, 10, 1}, /* width 1; k = N */
    {0, 0, 5, 9, 9},                       /* dense: all of it is the shared expert */
    {65, 0, 4, 65, 0},                     /* one neuron each, and k = 0 */
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]), LAYERS = 2 };

/* A moe on one rank with everything it needs. */
struct bench {
    struct moe_world *w;
    struct placement p;
    struct arena *arena;
    struct gemm *g;
    struct moe *m;
    struct router router;
    struct moe_limits limits;
    size_t cost;
};

static void bench_open(struct bench *b, const struct shape *s, int rows, bool oracle, int threads)
{
    struct moe_limits limits = {.rows = rows, .oracle = oracle};
    struct err e = {0};
    struct rng r;

    *b = (struct bench){.w = moe_world_new(LAYERS, s->experts, s->active, s->width, s->neurons, s->shared, 11)};
    assert_int_equal(placement_make(&b->p, PLACEMENT_BLOCK, LAYERS, s->experts, 1, false, &e), OK);
    size_t cost = moe_cost(&b->p, 0, LAYERS, s->experts, s->width, s->neurons, limits);

    assert_int_equal(gemm_open(&b->g, threads, isa_best(), &e), OK);
    assert_int_equal(arena_open(&b->arena, "moe", cost, &e), OK);
    assert_int_equal(moe_open(&b->m, b->w->layer, LAYERS, s->width, s->neurons, &b->p, 0, limits, b->g, NULL, b->arena, &e), OK);
    assert_int_equal(arena_used(b->arena), cost);
    arena_freeze(b->arena);
    b->limits = limits, b->cost = cost;

    size_t n = (size_t)(LAYERS * s->experts);
    b->router = (struct router){LAYERS, s->experts, s->width, .weight = world_alloc(n * (size_t)s->width, sizeof(float))};
    b->router.bias = world_alloc(n, sizeof(float)), b->router.threshold = world_alloc(LAYERS, sizeof(float));
    rng_seed(&r, 3, 3);
    for (size_t i = 0; i < n * (size_t)s->width; i++) b->router.weight[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < n; i++) b->router.bias[i] = (float)rng_normal(&r);
}

/* After a change of the world's weights: a moe looks at them when it is opened. */
static void bench_repack(struct bench *b)
{
    struct moe_limits limits = b->limits;
    struct err e = {0};

    for (int l = 0; l < LAYERS; l++) moe_world_pack(b->w, l);
    arena_close(b->arena);
    assert_int_equal(arena_open(&b->arena, "moe", b->cost, &e), OK);
    assert_int_equal(moe_open(&b->m, b->w->layer, LAYERS, b->w->width, b->w->neurons, &b->p, 0, limits, b->g, NULL, b->arena, &e),
                     OK);
}

static void bench_close(struct bench *b)
{
    free(b->router.weight), free(b->router.bias), free(b->router.threshold);
    moe_close(b->m);
    arena_close(b->arena);
    gemm_close(b->g);
    placement_free(&b->p);
    moe_world_free(b->w);
}

static void step(struct bench *b, int slot, int layer, const float *h, int rows, const struct routing *how, float *x,
                 uint64_t *active)
{
    struct err e = {0};

    assert_int_equal(moe_begin(b->m, slot, layer, h, NULL, rows, how, &e), OK);
    assert_int_equal(moe_end(b->m, slot, x, active, &e), OK);
}

/* x (which began as 1) against 1 + yhat; relative to the largest output. */
static void check_rows(const struct bench *b, int layer, const float *h, const uint64_t *set, double scale, bool compensate,
                       int kept, const float *x, int rows)
{
    double want[WIDTH_MAX], largest = 1;
    int width = b->w->width, words = bits_words(b->w->experts);

    for (int pass = 0; pass < 2; pass++) {
        for (int t = 0; t < rows; t++) {
            plain_layer(want, b->w, layer, h + t * width, set + t * words, scale, compensate, kept);
            for (int d = 0; d < width; d++) {
                if (pass == 0 && fabs(want[d]) > largest) largest = fabs(want[d]);
                if (pass == 1) assert_true(fabs((double)x[t * width + d] - 1 - want[d]) < 1e-5 * largest);
            }
        }
    }
}

static void fill(float *x, int n, float value)
{
    for (int i = 0; i < n; i++) x[i] = value;
}

static void test_against_plain(void **state)
{
    (void)state;
    for (int c = 0; c < SHAPES; c++) {
        const struct shape *s = &shapes[c];
        float h[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
        uint64_t set[ROWS * WORDS_MAX];
        struct bench b;

        bench_open(&b, s, ROWS, true, 1);
        world_rows(h, ROWS, s->width, 5);
        for (int variant = 0; variant < 12; variant++) {
            static const enum route routes[] = {ROUTE_ALL, ROUTE_ROUTER, ROUTE_RANDOM, ROUTE_PAPER, ROUTE_GRAM, ROUTE_STATIC};
            struct routing how = {
                .route = routes[variant % 6], .router = &b.router, .scale = 1.75f, .compensate = variant & 1, .seed = 2};
            bool plain = how.route == ROUTE_ALL || how.route == ROUTE_STATIC;
            int layer = variant & 1, neurons[LAYERS] = {s->neurons / 3, s->neurons - 1};
            int kept = how.route != ROUTE_STATIC ? ALL_NEURONS
                       : variant < 6             ? (int)b.w->layer[layer].neurons_active
                                                 : neurons[layer];

            if (variant >= 6) how.neurons = neurons;
            fill(x, ROWS * s->width, 1);
            step(&b, variant % 2, layer, h, ROWS, &how, x, set);
            for (int t = 0; t < ROWS; t++) {
                assert_int_equal(bits_count(set + t * bits_words(s->experts), s->experts), plain ? s->experts : s->active);
            }
            check_rows(&b, layer, h, set, plain ? 1 : 1.75, !plain && how.compensate, kept, x, ROWS);
        }
        bench_close(&b);
    }
}

/* The router's sets are those of plain scores; a threshold gives sets of any size, empty ones too. */
static void test_router(void **state)
{
    const struct shape *s = &shapes[1];
    float h[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
    uint64_t set[ROWS * WORDS_MAX];
    struct bench b;
    int empty = 0, most = 0;

    (void)state;
    bench_open(&b, s, ROWS, false, 1);
    world_rows(h, ROWS, s->width, 6);
    for (int d = 0; d < s->width; d++) h[d] = 0; /* row 0: scores are the biases */
    for (int i = 0; i < s->experts; i++) b.router.bias[s->experts + i] = -1;
    b.router.by_threshold = true, b.router.threshold[1] = 4;
    fill(x, ROWS * s->width, 1);
    step(&b, 0, 1, h, ROWS, &(struct routing){.route = ROUTE_ROUTER, .router = &b.router, .scale = 1, .compensate = true}, x,
         set);
    for (int t = 0; t < ROWS; t++) {
        int n = bits_count(set + t * 2, s->experts);

        for (int i = 0; i < s->experts; i++) {
            const float *w = b.router.weight + (s->experts + i) * s->width;
            double z = -1;

            for (int d = 0; d < s->width; d++) z += (double)w[d] * (double)h[t * s->width + d];
            if (fabs(z - 4) > 1e-4) assert_int_equal(bits_has(set + t * 2, i), z > 4);
        }
        empty += n == 0;
        most = n > most ? n : most;
    }
    assert_true(empty > 0 && most > 5);
    check_rows(&b, 1, h, set, 1, true, ALL_NEURONS, x, ROWS);
    const struct moe_stats *st = moe_stats(b.m);
    uint64_t load = 0, sets = 0, neurons = 0;

    for (int i = 0; i < s->experts; i++) {
        assert_int_equal(st->load[i], 0); /* layer 0 was not run */
        load += st->load[s->experts + i];
        neurons += st->load[s->experts + i] * (uint64_t)group_size(s->neurons, s->shared, s->experts, i);
    }
    for (int t = 0; t < ROWS; t++) sets += (uint64_t)bits_count(set + t * 2, s->experts);
    assert_int_equal(load, sets);
    assert_int_equal(st->tokens, ROWS);
    assert_int_equal(st->rows_out, 0);
    assert_int_equal(st->neurons, neurons + ROWS * (uint64_t)s->shared);
    moe_stats_clear(b.m);
    assert_int_equal(st->tokens + st->neurons + st->load[s->experts], 0);
    bench_close(&b);
}

/* Nothing but the row decides a row's bits: not its neighbours, the slot, the number of threads or the room. */
static void test_row_invariance(void **state)
{
    (void)state;
    for (int c = 1; c < 5; c++) {
        const struct shape *s = &shapes[c];
        float h[ROWS * WIDTH_MAX], whole[ROWS * WIDTH_MAX], parts[ROWS * WIDTH_MAX];
        int n = ROWS * s->width;
        struct bench a, b;
        struct err e = {0};

        bench_open(&a, s, ROWS, false, 1);
        bench_open(&b, s, 640, false, 3); /* more room than MOE_BLOCK_ROWS, and threads */
        struct routing how = {.route = ROUTE_ROUTER, .router = &a.router, .scale = 1.3f, .compensate = true};

        world_rows(h, ROWS, s->width, 7);
        fill(whole, n, 0.5f);
        step(&a, 0, 0, h, ROWS, &how, whole, NULL);
        for (int t = 0; t < ROWS; t++) { /* row by row, from the back */
            int at = (ROWS - 1 - t) * s->width;

            fill(parts + at, s->width, 0.5f);
            step(&a, 1, 0, h + at, 1, &how, parts + at, NULL);
        }
        assert_memory_equal(parts, whole, (size_t)n * sizeof(float));
        fill(parts, n, 0.5f); /* two micro-batches in flight */
        assert_int_equal(moe_begin(b.m, 0, 0, h, NULL, 5, &how, &e), OK);
        assert_int_equal(moe_begin(b.m, 1, 0, h + 5 * s->width, NULL, ROWS - 5, &how, &e), OK);
        assert_int_equal(moe_end(b.m, 0, parts, NULL, &e), OK);
        assert_int_equal(moe_end(b.m, 1, parts + 5 * s->width, NULL, &e), OK);
        assert_memory_equal(parts, whole, (size_t)n * sizeof(float));

        float *many = world_alloc(640 * (size_t)s->width, sizeof(float)), *x = world_alloc(640 * (size_t)s->width, sizeof(float));
        world_rows(many, 640, s->width, 8);
        memcpy(many + (640 - ROWS) * s->width, h, (size_t)n * sizeof(float)); /* behind the first block */
        fill(x, 640 * s->width, 0.5f);
        step(&b, 0, 0, many, 640, &how, x, NULL);
        assert_memory_equal(x + (640 - ROWS) * s->width, whole, (size_t)n * sizeof(float));
        free(many), free(x);
        bench_close(&a);
        bench_close(&b);
    }
}

static void test_all_active_is_dense(void **state)
{
    (void)state;
    for (int c = 0; c < 5; c++) {
        struct shape s = shapes[c], dense = {0, 0, s.width, s.neurons, s.neurons};
        float h[ROWS * WIDTH_MAX], y[ROWS * WIDTH_MAX], all[ROWS * WIDTH_MAX], teacher[ROWS * WIDTH_MAX], want[ROWS * WIDTH_MAX];
        int n = ROWS * s.width;
        double largest = 0;
        struct bench b, d;
        struct err e = {0};

        s.active = s.experts;
        bench_open(&b, &s, ROWS, true, 1);
        bench_open(&d, &dense, ROWS, false, 1); /* the same seed draws the same weights */
        world_rows(h, ROWS, s.width, 9);
        memset(y, 0, sizeof(y)), memset(all, 0, sizeof(all)), memset(want, 0, sizeof(want));
        step(&b, 0, 1, h, ROWS, &(struct routing){.route = ROUTE_ALL}, all, NULL);
        step(&d, 0, 1, h, ROWS, &(struct routing){.route = ROUTE_ALL}, want, NULL);
        for (int i = 0; i < n; i++) largest = fmax(largest, fabs((double)want[i]));
        for (int i = 0; i < n; i++) assert_true(fabs((double)(all[i] - want[i])) <= 1e-5 * largest);
        assert_int_equal(moe_dense(b.m, 1, h, ROWS, teacher, &e), OK);
        for (int i = 0; i < n; i++) assert_true(teacher[i] == all[i]);
        for (int compensate = 0; compensate < 2; compensate++) {
            struct routing how = {.route = ROUTE_ROUTER, .router = &b.router, .scale = 1, .compensate = compensate};

            memset(y, 0, sizeof(y));
            step(&b, 0, 1, h, ROWS, &how, y, NULL);
            assert_memory_equal(y, all, (size_t)n * sizeof(float)); /* mu - mu is exactly nothing */
        }
        bench_close(&b);
        bench_close(&d);
    }
}

/* The oracles' sets are those that the labels' definitions give on plainly computed expert outputs. */
static void test_oracles(void **state)
{
    (void)state;
    for (int c = 1; c < 4; c++) {
        const struct shape *s = &shapes[c];
        int n = s->experts, words = bits_words(n), k = s->active;
        float h[ROWS * WIDTH_MAX], y[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
        float *score = world_alloc((size_t)(ROWS * n), sizeof(float));
        double *e = world_alloc((size_t)(n * s->width), sizeof(double)), *g = world_alloc((size_t)(n * n), sizeof(double));
        uint64_t set[ROWS * WORDS_MAX], active[ROWS * WORDS_MAX];
        struct bench b;
        struct err err = {0};

        bench_open(&b, s, ROWS, true, 1);
        world_rows(h, ROWS, s->width, 10);
        assert_int_equal(moe_dense(b.m, 0, h, ROWS, y, &err), OK);
        assert_int_equal(moe_paper_scores(b.m, 0, h, y, ROWS, k, score, &err), OK);
        for (int compensate = 0; compensate < 2; compensate++) {
            assert_int_equal(moe_gram_sets(b.m, 0, h, ROWS, k, compensate, set, &err), OK);
            memset(x, 0, sizeof(x));
            step(&b, 1, 0, h, ROWS, &(struct routing){.route = ROUTE_GRAM, .scale = 1, .compensate = compensate}, x, active);
            assert_memory_equal(active, set, (size_t)(ROWS * words) * sizeof(*set));
            for (int t = 0; t < ROWS; t++) {
                double spread = 0;

                memset(e, 0, (size_t)(n * s->width) * sizeof(*e));
                for (int i = 0; i < n; i++) {
                    double miss = 0;

                    plain_expert(e + i * s->width, &b.w->layer[0].expert[i], h + t * s->width, ALL_NEURONS, 1);
                    for (int d = 0; d < s->width; d++) {
                        double m = e[i * s->width + d] - (double)y[t * s->width + d] * k / n;

                        miss += m * m / s->width;
                        if (compensate) e[i * s->width + d] -= (double)b.w->mu[0][i * s->width + d];
                        spread += e[i * s->width + d] * e[i * s->width + d];
                    }
                    assert_true(fabs((double)score[t * n + i] + miss) < 1e-4 * (1 + miss));
                }
                for (int i = 0; i < n * n; i++) {
                    g[i] = 0;
                    for (int d = 0; d < s->width; d++) g[i] += e[i / n * s->width + d] * e[i % n * s->width + d];
                }
                uint64_t want[WORDS_MAX];
                double least = gram_best(want, g, n, k), found = gram_error(g, n, set + t * words);

                if (n <= 10)
                    assert_true(found <= least + 1e-4 * (1 + spread)); /* exact search: equal up to rounding of near ties */
                assert_int_equal(bits_count(set + t * words, n), k);
            }
        }
        step(&b, 0, 0, h, ROWS, &(struct routing){.route = ROUTE_PAPER, .scale = 1}, x, active);
        route_select(set, score, ROWS, n, k, &(struct router){.experts = n}, 0);
        assert_memory_equal(active, set, (size_t)(ROWS * words) * sizeof(*set));
        bench_close(&b);
        free(score), free(e), free(g);
    }
}

/* Terms on the grid: any order, any bracketing, the same bits; and rounding is below an ulp of f32. */
static void test_grid_is_exact(void **state)
{
    enum { N = 500 };
    double term[N], first = 0;
    int order[N];
    struct rng r;

    (void)state;
    rng_seed(&r, 6, 6);
    for (int i = 0; i < N; i++) {
        float x = (float)(rng_normal(&r) * pow(10, rng_unit(&r) * 12 - 10)); /* from 1e-10 to 1e2 */

        term[i] = grid(x);
        order[i] = i;
        assert_true(fabs(term[i] - (double)x) <= EXACT_UNIT / 2);
        assert_true(fmod(term[i], EXACT_UNIT) == 0);
        first += term[i];
    }
    for (int n = 0; n < 200; n++) {
        int cut = (int)rng_below(&r, N);
        double a = 0, b = 0;

        rng_shuffle(&r, order, N);
        for (int i = 0; i < cut; i++) a += term[order[i]];
        for (int i = cut; i < N; i++) b += term[order[i]];
        assert_true(a + b == first);
    }
    assert_true(grid(0x1p15f - 0.00390625f) == 0x1p15 - 0.00390625 && grid(-0x1p-36f) == 0 && grid(0x1p-35f) == 0x1p-35);
    assert_true(isnan(grid(0x1p15f)) && isnan(grid(-0x1p15f)) && isnan(grid(NAN)) && isnan(grid(INFINITY)));
}

/* ---- fine experts ---- */

/* sum[D] += exact(scale * e(h)), with the definition of products. */
static void defined_expert(int64_t *sum, const struct expert *x, const struct rows *h, int t, float scale)
{
    const struct kernel *plain = kernel_for(ISA_PLAIN);
    int neurons = x->gate.rows, wide = packed_panels(neurons) * PANEL_LANES, out = packed_panels(x->down.rows) * PANEL_LANES;
    float *gate = world_alloc((size_t)wide, sizeof(float)), *up = world_alloc((size_t)wide, sizeof(float));
    float *y = world_alloc((size_t)out, sizeof(float));
    void *room = aligned_alloc(64, rows_bytes(1, neurons) + 64), *scratch = aligned_alloc(64, kernel_scratch_bytes());
    struct rows z = {.x = gate, .ld = (size_t)wide, .n = 1, .cols = neurons};

    plain->product(gate, (size_t)wide, h, &t, 1, &x->gate, 0, packed_panels(neurons), scratch);
    plain->product(up, (size_t)wide, h, &t, 1, &x->up, 0, packed_panels(neurons), scratch);
    silu_mul(gate, up, (size_t)neurons);
    if (format_has_scales(x->down.format)) {
        rows_room(&z, room, ISA_PLAIN);
        rows_quantize(&z, 0, 1);
    }
    plain->product(y, (size_t)out, &z, NULL, 1, &x->down, 0, packed_panels(x->down.rows), scratch);
    for (int d = 0; d < x->down.rows; d++) sum[d] += exact_of(scale * y[d]);
    free(gate), free(up), free(y), free(room), free(scratch);
}

/* x += the layer, in bits, for any format. */
static void defined_layer(float *x, const struct bench *b, const float *h, int rows, const uint64_t *set, float scale,
                          bool compensate)
{
    const struct moe_layer *y = &b->w->layer[0];
    int width = b->w->width, n = b->w->experts, words = bits_words(n);
    struct rows in = {.x = h, .ld = (size_t)width, .n = rows, .cols = width};
    void *room = aligned_alloc(64, rows_bytes(rows, width));
    int64_t *sum = world_alloc((size_t)width, sizeof(*sum));

    rows_room(&in, room, ISA_PLAIN);
    rows_quantize(&in, 0, rows);
    for (int t = 0; t < rows; t++) {
        for (int d = 0; d < width; d++) sum[d] = compensate ? (int64_t)(y->mu_total[d] / EXACT_UNIT) : 0;
        if (b->w->shared) defined_expert(sum, &y->shared, &in, t, 1);
        for (int i = 0; i < n; i++) {
            if (!bits_has(set + t * words, i)) continue;
            defined_expert(sum, &y->expert[i], &in, t, scale);
            for (int d = 0; compensate && d < width; d++) sum[d] -= exact_of(y->mu[i * width + d]);
        }
        for (int d = 0; d < width; d++) x[t * width + d] += (float)exact_value(sum[d]);
    }
    free(room), free(sum);
}

/* Experts of 16, 11 and 1 neurons and of uneven sizes, of every format, for one row, few and many, on one thread and three, top-k and thresholds
 * that leave tokens with no expert and with all: the bits of the definition. */
static void test_fine_experts(void **state)
{
    static const struct shape fine[] = {
        {40, 17, 300, 640, 0}, {30, 13, 65, 330, 0}, {66, 20, 33, 66, 0}, {9, 4, 80, 250, 37},
        {2, 1, 48, 620, 0},    {90, 70, 130, 540, 0} /* enough multiplications for three threads with few rows */};
    static const int row_counts[] = {1, 3, 9, 70, 107};
    enum { MOST = 130, WIDTH = 300 };
    float *h = world_alloc(MOST * WIDTH, sizeof(float)), *x = world_alloc(MOST * WIDTH, sizeof(float)),
          *want = world_alloc(MOST * WIDTH, sizeof(float));
    uint64_t set[MOST * WORDS_MAX];

    (void)state;
    for (size_t c = 0; c < sizeof(fine) / sizeof(*fine); c++) {
        for (int f = 0; f < FORMAT_COUNT; f++) {
            const struct shape *s = &fine[c];
            struct bench b;

            bench_open(&b, s, MOST, false, f % 2 ? 3 : 1);
            b.w->format = (enum format)f;
            bench_repack(&b);
            world_rows(h, MOST, s->width, 31 + c);
            for (int i = 0; i < MOST * s->width; i++) h[i] *= 0.2f;
            b.router.threshold[0] = 0.5f;
            for (int i = 0; i < s->experts; i++) b.router.bias[i] = 0;
            for (size_t v = 0; v < sizeof(row_counts) / sizeof(*row_counts); v++) {
                struct routing how = {
                    .route = ROUTE_ROUTER, .router = &b.router, .scale = v % 2 ? 1.0f : 1.5f, .compensate = v % 2};
                int rows = row_counts[v];

                b.router.by_threshold = v > 1;
                memset(h + s->width, 0, (size_t)s->width * sizeof(float)); /* scores 0: no expert */
                if (v == 4) b.router.threshold[0] = -1e30f;                /* all */
                fill(x, rows * s->width, 0.25f);
                fill(want, rows * s->width, 0.25f);
                step(&b, 0, 0, h, rows, &how, x, set);
                if (v == 2) assert_int_equal(bits_count(set + bits_words(s->experts), s->experts), 0);
                if (v == 4) assert_int_equal(bits_count(set, s->experts), s->experts);
                if (v == 4 && c != 1) continue; /* the definition is slow */
                defined_layer(want, &b, h, rows, set, how.scale, how.compensate);
                assert_memory_equal(x, want, (size_t)(rows * s->width) * sizeof(float));
            }
            bench_close(&b);
        }
    }
    free(h), free(x), free(want);
}

/* One row through many small experts, whose sums threads make parts of: the bits that one thread gives, whoever took which expert. */
static void test_merged_sums(void **state)
{
    static const struct shape s = {90, 70, 130, 540, 0};
    enum { MOST_STEPS = 100000 };
    float h[130], x[130], want[130];
    struct bench one, three;
    bool fast = kernel_for(isa_best())->isa == ISA_AVX2; /* the level that has the products of this way */
    uint64_t merged;

    (void)state;
    for (int f = FORMAT_F32; f <= FORMAT_BF16; f++) {
        struct routing how = {.route = ROUTE_ROUTER, .scale = 1.5f, .compensate = true};

        bench_open(&one, &s, 1, false, 1), bench_open(&three, &s, 1, false, 3);
        one.w->format = three.w->format = (enum format)f;
        bench_repack(&one), bench_repack(&three);
        world_rows(h, 1, s.width, 8);
        fill(want, s.width, 0.25f);
        how.router = &one.router;
        step(&one, 0, 0, h, 1, &how, want, NULL);
        assert_int_equal(moe_stats(one.m)->merged, 0);
        /* one thread may take all tasks while the others sleep: again, until there is something to merge */
        merged = 0;
        for (int i = 0; merged == 0 && i < (fast ? MOST_STEPS : 10); i++) {
            fill(x, s.width, 0.25f);
            step(&three, 0, 0, h, 1, &how, x, NULL);
            assert_memory_equal(x, want, sizeof(x));
            merged = moe_stats(three.m)->merged;
        }
        assert_true(merged > 0 || !fast);
        bench_close(&one), bench_close(&three);
    }
}

/* Rows that are not numbers stay alone with it; empty batches are nothing. */
static void test_not_finite_and_empty(void **state)
{
    const struct shape *s = &shapes[2];
    float h[ROWS * WIDTH_MAX], clean[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
    static const enum route routes[] = {ROUTE_ALL, ROUTE_ROUTER, ROUTE_RANDOM, ROUTE_PAPER, ROUTE_GRAM, ROUTE_STATIC};
    struct bench b;
    struct err e = {0};

    (void)state;
    bench_open(&b, s, ROWS, true, 1);
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        struct routing how = {.route = routes[i], .router = &b.router, .scale = 2, .compensate = true};

        world_rows(h, ROWS, s->width, 12);
        memset(clean, 0, sizeof(clean)), memset(x, 0, sizeof(x));
        step(&b, 0, 0, h, ROWS, &how, clean, NULL);
        h[3 * s->width] = NAN, h[8 * s->width + 1] = INFINITY, h[9 * s->width + 2] = 3e38f;
        status st = moe_begin(b.m, 0, 0, h, NULL, ROWS, &how, &e); /* the oracles see it already here */
        assert_int_equal(st ? st : moe_end(b.m, 0, x, NULL, &e), ERR_LIMIT);
        for (int d = 0; d < ROWS * s->width; d++) assert_true(x[d] == 0);
        world_rows(h, ROWS, s->width, 12);
        step(&b, 0, 0, h, ROWS, &how, x, NULL);
        assert_memory_equal(x, clean, sizeof(x));
        step(&b, 1, 0, h, 0, &how, x, NULL);
        assert_memory_equal(x, clean, sizeof(x));
    }
    bench_close(&b);
}

/* What moe_cost() says is what it takes: a byte less is refused cleanly, on every rank's share. */
static void test_memory(void **state)
{
    (void)state;
    for (int c = 0; c < SHAPES; c++) {
        for (int rank = 0; rank < 3; rank++) {
            const struct shape *s = &shapes[c];
            struct moe_limits limits = {.rows = 20, .oracle = c & 1};
            struct moe_world *w = moe_world_new(LAYERS, s->experts, s->active, s->width, s->neurons, s->shared, 1);
            struct exchange *nobody = (struct exchange *)w; /* only stored */
            struct placement p;
            struct arena *a;
            struct gemm *g;
            struct moe *m;
            struct err e = {0};

            assert_int_equal(gemm_open(&g, 1, isa_best(), &e), OK);
            assert_int_equal(placement_make(&p, PLACEMENT_ROUND_ROBIN, LAYERS, s->experts, 3, c & 1, &e), OK);
            moe_world_hide(w, &p, rank);
            size_t cost = moe_cost(&p, rank, LAYERS, s->experts, s->width, s->neurons, limits), page = 4096;

            assert_int_equal(arena_open(&a, "moe", cost, &e), OK);
            assert_int_equal(moe_open(&m, w->layer, LAYERS, s->width, s->neurons, &p, rank, limits, g, nobody, a, &e), OK);
            assert_int_equal(arena_used(a), cost);
            arena_close(a);
            if (cost > page) { /* arenas are whole pages: take what is too much away in front */
                assert_int_equal(arena_open(&a, "small", cost, &e), OK);
                assert_non_null(arena_alloc(a, 1, (cost + page - 1) / page * page - cost + 64, &e));
                assert_int_equal(moe_open(&m, w->layer, LAYERS, s->width, s->neurons, &p, rank, limits, g, nobody, a, &e),
                                 ERR_LIMIT);
                assert_non_null(strstr(e.text, "small"));
                arena_close(a);
            }
            placement_free(&p);
            gemm_close(g);
            moe_world_free(w);
        }
    }
}

/* Up to the edge sums are exact; beyond it, and if they are no numbers, it is an error, which the next sums know nothing of. */
static void test_limit_of_sums(void **state)
{
    struct routing how = {.route = ROUTE_RANDOM, .scale = 1};
    float h[3], first[3] = {0}, x[3] = {0}, most = 0;
    struct bench b;
    struct err e = {0};

    (void)state;
    bench_open(&b, &shapes[0], 1, false, 1); /* one expert: the sum is its output */
    b.w->layer[0].active = 1;
    world_rows(h, 1, 3, 17);
    step(&b, 0, 0, h, 1, &how, first, NULL);
    for (int d = 0; d < 3; d++) most = fmaxf(most, fabsf(first[d]));
    assert_true(most > 0);
    how.scale = (float)SUM_LIMIT / most * 0.9999f;
    step(&b, 0, 0, h, 1, &how, x, NULL);
    const float beyond[] = {(float)SUM_LIMIT / most * 1.0001f, INFINITY, NAN, -1e30f};
    for (int i = 0; i < 4; i++) {
        how.scale = beyond[i];
        assert_int_equal(moe_begin(b.m, 0, 0, h, NULL, 1, &how, &e), OK);
        assert_int_equal(moe_end(b.m, 0, x, NULL, &e), ERR_LIMIT);
        assert_non_null(strstr(e.text, "layer 0: outputs of experts add up to "));
    }
    how.scale = 1;
    memset(x, 0, sizeof(x));
    step(&b, 0, 0, h, 1, &how, x, NULL);
    assert_memory_equal(x, first, sizeof(x));
    bench_close(&b);
}

static double plain_z(const struct expert *x, const float *h, int j)
{
    double gate = 0, up = 0;

    for (int d = 0; d < x->gate.cols; d++) {
        gate += (double)packed_at(&x->gate, j, d) * (double)h[d];
        up += (double)packed_at(&x->up, j, d) * (double)h[d];
    }
    return gate / (1 + exp(-gate)) * up;
}

struct neuron {
    double z, score;
    const struct expert *x;
    int j;
};

static int by_score(const void *a, const void *b)
{
    double x = ((const struct neuron *)a)->score, y = ((const struct neuron *)b)->score;

    return (x < y) - (x > y);
}

/* The neuron-level ceiling against its definition: sort all neurons of the layer by |z_j| |w_down_j|, add up the first A. */
static void test_neurons(void **state)
{
    struct neuron n[256];

    (void)state;
    for (int i = 0; i < 2 * SHAPES; i++) {
        struct bench b;
        float h[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX] = {0};
        int given[LAYERS] = {0};

        bench_open(&b, &shapes[i % SHAPES], ROWS, true, 2);
        struct moe_layer *y = &b.w->layer[1];
        given[1] = i < SHAPES ? (int)y->neurons_active : b.w->neurons / 3;
        world_rows(h, ROWS, b.w->width, 7);
        moe_stats_clear(b.m);
        step(&b, 0, 1, h, ROWS,
             &(struct routing){.route = ROUTE_NEURONS, .neurons = i < SHAPES ? NULL : given, .scale = 3, .compensate = true}, x,
             NULL);
        assert_int_equal(moe_stats(b.m)->neurons, ROWS * given[1]);
        for (int t = 0; t < ROWS; t++) {
            double want[WIDTH_MAX] = {0};
            int count = 0;

            for (int e = -1; e < b.w->experts; e++) {
                const struct expert *of = e < 0 ? &y->shared : &y->expert[e];

                for (int j = 0; of->down.lines && j < of->gate.rows; j++) {
                    double norm = 0, z = plain_z(of, h + t * b.w->width, j);

                    for (int d = 0; d < b.w->width; d++) norm += pow((double)packed_at(&of->down, d, j), 2);
                    n[count++] = (struct neuron){z, fabs(z) * sqrt(norm), of, j};
                }
            }
            assert_int_equal(count, b.w->neurons);
            qsort(n, (size_t)count, sizeof(*n), by_score);
            for (int a = 0; a < given[1]; a++)
                for (int d = 0; d < b.w->width; d++) want[d] += n[a].z * (double)packed_at(&n[a].x->down, d, n[a].j);
            for (int d = 0; d < b.w->width; d++)
                if (fabs((double)x[t * b.w->width + d] - want[d]) > 1e-3 * (1 + fabs(want[d])))
                    fail_msg("shape %d row %d: %g, expected %g", i, t, (double)x[t * b.w->width + d], want[d]);
        }
        bench_close(&b);
    }
}

/* Quantized neurons are kept as floats, too, for all who read them: memory that holds no numbers before changes nothing. */
static void test_floats_of_quantized(void **state)
{
    static const enum route routes[] = {ROUTE_NEURONS, ROUTE_GRAM, ROUTE_PAPER, ROUTE_GRAM_VARIABLE};
    enum { LONE = 2 /* shape without shared neurons */, MOST = 256 };
    const double gain[LAYERS] = {0};
    float h[ROWS * WIDTH_MAX], x[2][ROWS * WIDTH_MAX];
    int32_t place[ROWS];
    struct err e = {0};

    (void)state;
    for (int f = FORMAT_Q8; f <= FORMAT_Q4; f++) {
        struct shape s = shapes[LONE];
        struct bench b;
        double sum[2][MOST], square[2][MOST];
        uint16_t sample[2][ROWS * MOST];

        s.shared = 0;
        bench_open(&b, &s, ROWS, true, 1);
        b.w->format = (enum format)f;
        b.limits.notes = true, b.limits.sample = ROWS;
        b.cost = moe_cost(&b.p, 0, LAYERS, s.experts, s.width, s.neurons, b.limits);
        bench_repack(&b);
        world_rows(h, ROWS, s.width, 12);
        for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
            struct routing how = {.route = routes[i], .scale = 1, .gain = gain};

            for (int bad = 0; bad < 2; bad++) {
                memset(b.m->z, bad ? 0xff : 0, b.m->z_bytes);
                fill(x[bad], ROWS * s.width, 0.25f);
                step(&b, 0, 1, h, ROWS, &how, x[bad], NULL);
            }
            for (int j = 0; j < ROWS * s.width; j++) assert_true(isfinite(x[1][j]));
            assert_memory_equal(x[0], x[1], (size_t)(ROWS * s.width) * sizeof(float));
        }
        for (int t = 0; t < ROWS; t++) place[t] = t;
        for (int bad = 0; bad < 2; bad++) {
            bench_repack(&b); /* with no sums yet */
            memset(b.m->z, bad ? 0xff : 0, b.m->z_bytes);
            assert_int_equal(moe_note(b.m, 0, h, place, ROWS, x[bad], &e), OK);
            assert_int_equal(moe_notes(b.m, 0, 1, sum[bad], square[bad], sample[bad], &e), OK);
        }
        for (int j = 0; j < b.w->layer[0].expert[1].gate.rows; j++)
            assert_true(square[0][j] > 0 && sum[0][j] == sum[1][j] && square[0][j] == square[1][j]);
        bench_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain),        cmocka_unit_test(test_router),      cmocka_unit_test(test_row_invariance),
        cmocka_unit_test(test_all_active_is_dense),  cmocka_unit_test(test_oracles),     cmocka_unit_test(test_grid_is_exact),
        cmocka_unit_test(test_not_finite_and_empty), cmocka_unit_test(test_memory),      cmocka_unit_test(test_limit_of_sums),
        cmocka_unit_test(test_fine_experts),         cmocka_unit_test(test_merged_sums), cmocka_unit_test(test_neurons),
        cmocka_unit_test(test_floats_of_quantized),
    };

    return cmocka_run_group_tests_name("moe", tests, NULL, NULL);
}
