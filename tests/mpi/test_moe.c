/* Property: the bits of a layer's output, of scores and of labels are those of one rank that holds everything, for every placement and
 * number of ranks, also when ranks hold nothing, with two micro-batches in flight, and while an oracle asks in between.
 * np: 1 2 3 5 */
#include "../check.h"
#include "../moe_world.h"
#include "comm/comm.h"
#include "comm/exchange.h"

enum { ROWS = 23, WIDTH_MAX = 17, EXPERTS_MAX = 70, WORDS_MAX = 2, LAYERS = 2, KIND_STOP = 1 };

static const struct {
    int experts, active, width, neurons, shared;
    bool cancel;
} shapes[] = {
    {4, 2, 16, 30, 6, false}, {70, 9, 7, 151, 0, false}, /* an odd width: doubles and sets behind rows of 28 bytes */
    {3, 1, 17, 10, 1, false},                            /* fewer experts than ranks */
    {0, 0, 5, 9, 9, false},                              /* dense: nobody is ever asked */
    {6, 2, 16, 36, 0, true},
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]), PLACEMENTS = 7 };

/* One rank's part of a distributed moe; with x == NULL all of it. */
struct part {
    struct moe_world *w;
    struct placement p;
    struct arena *arena;
    struct gemm *g;
    struct exchange *x;
    struct moe *m;
};

/* Experts 3, 4, 5 become minus experts 0, 1, 2, whose sizes lie 14 and 12 powers of two apart: summed in plain double, what is left
 * depends on the order; on the grid it is nothing. */
static void cancel(struct moe_world *w)
{
    int half = w->neurons / 2, third = half / 3;
    size_t cells = (size_t)(half * w->width);

    for (int l = 0; l < LAYERS; l++) {
        memcpy(w->gate[l] + cells, w->gate[l], cells * sizeof(uint16_t));
        memcpy(w->up[l] + cells, w->up[l], cells * sizeof(uint16_t));
        for (int d = 0; d < w->width; d++) {
            uint16_t *row = w->down[l] + d * w->neurons;

            for (int j = 0; j < half; j++) {
                row[j] = narrow_bf16(ldexpf(widen_bf16(row[j]), j < third ? 6 : j < 2 * third ? -8 : -20));
                row[j + half] = row[j] ^ 0x8000;
            }
        }
        moe_world_pack(w, l);
    }
}

static void place(struct placement *p, int variant, int experts, int ranks)
{
    int table[LAYERS * EXPERTS_MAX];
    struct err e = {0};
    struct rng r;

    rng_seed(&r, 21, (uint64_t)variant);
    if (variant < 4) {
        enum placement_kind kind = variant & 1 ? PLACEMENT_ROUND_ROBIN : PLACEMENT_BLOCK;

        assert_int_equal(placement_make(p, kind, LAYERS, experts, ranks, variant & 2, &e), OK);
        return;
    }
    for (int i = 0; i < LAYERS * experts; i++) {
        if (variant == 4) table[i] = ranks - 1;
        else if (variant == 5) table[i] = 0;
        else table[i] = (int)rng_below(&r, (uint64_t)ranks);
    }
    assert_int_equal(placement_set(p, table, LAYERS, experts, ranks, "test", &e), OK);
}

static void part_open(struct part *u, struct comm *c, int shape, int variant)
{
    int experts = shapes[shape].experts, width = shapes[shape].width, neurons = shapes[shape].neurons;
    int rank = c ? comm_rank(c) : 0, ranks = c ? comm_size(c) : 1;
    struct moe_limits limits = {.rows = ROWS, .oracle = true};
    struct exchange_limits wire = {.request_bytes = 16, .answer_bytes = 16, .deadline = 20};
    struct err e = {0};
    size_t cost;

    *u = (struct part){.w = moe_world_new(LAYERS, experts, shapes[shape].active, width, neurons, shapes[shape].shared, 31)};
    if (shapes[shape].cancel) cancel(u->w);
    place(&u->p, variant, experts, ranks);
    moe_world_hide(u->w, &u->p, rank);
    moe_exchange_limits(&wire, LAYERS, experts, width, neurons, limits);
    cost = moe_cost(&u->p, rank, LAYERS, experts, width, neurons, limits);
    if (ranks > 1) cost += exchange_cost(rank == 0, ranks, wire);
    assert_int_equal(gemm_open(&u->g, 1, isa_best(), &e), OK);
    assert_int_equal(arena_open(&u->arena, "part", cost, &e), OK);
    if (ranks > 1) assert_int_equal(exchange_open(&u->x, c, wire, u->arena, &e), OK);
    assert_int_equal(moe_open(&u->m, u->w->layer, LAYERS, width, neurons, &u->p, rank, limits, u->g, u->x, u->arena, &e), OK);
    assert_int_equal(arena_used(u->arena), cost);
    arena_freeze(u->arena);
}

static void part_close(struct part *u)
{
    moe_close(u->m);
    if (u->x) exchange_close(u->x);
    arena_close(u->arena);
    gemm_close(u->g);
    placement_free(&u->p);
    moe_world_free(u->w);
}

static void follow(struct part *u)
{
    struct request r;
    const void *payload;
    struct err e = {0};

    for (;;) {
        status s = exchange_next(u->x, &r, &payload, &e);

        if (s) print_error("%s\n", e.text);
        assert_int_equal(s, OK);
        if (r.kind == KIND_STOP) break;
        assert_in_range(r.kind, MOE_KIND_FIRST, MOE_KIND_LAST);
        moe_answer(u->m, u->x, &r, payload);
    }
    exchange_answer(u->x, &r, OK, 0, NULL, 0);
}

static void stop_followers(struct part *u, int ranks)
{
    struct request r = {.kind = KIND_STOP, .layer = -1, .what = "stop"};
    struct err e = {0};

    for (int rank = 1; rank < ranks; rank++) exchange_post(u->x, 0, rank, &r, NULL, 0, NULL, 0);
    assert_int_equal(exchange_wait(u->x, 0, &e), OK);
}

static void ok(status s, const struct err *e)
{
    if (s) print_error("%s\n", e->text);
    assert_int_equal(s, OK);
}

/* x += layer, in one piece or as two micro-batches in flight. */
static void run(struct part *u, int layer, const float *h, const struct routing *how, int cut, bool backwards, float *x,
                uint64_t *set)
{
    int width = u->w->width, words = bits_words(u->w->experts);
    uint64_t key[ROWS];
    struct err e = {0};

    for (int t = 0; t < ROWS; t++) key[t] = 40 + (uint64_t)t * 3;
    if (cut < 0) {
        ok(moe_begin(u->m, 0, layer, h, key, ROWS, how, &e), &e);
        ok(moe_end(u->m, 0, x, set, &e), &e);
        return;
    }
    ok(moe_begin(u->m, 1, layer, h, key, cut, how, &e), &e);
    ok(moe_begin(u->m, 0, layer, h + cut * width, key + cut, ROWS - cut, how, &e), &e);
    if (!backwards) ok(moe_end(u->m, 1, x, set, &e), &e);
    ok(moe_end(u->m, 0, x + cut * width, set + cut * words, &e), &e);
    if (backwards) ok(moe_end(u->m, 1, x, set, &e), &e);
}

static void compare(struct part *whole, struct part *spread, const struct routing *how, int layer, const int *cuts, int n_cuts)
{
    int width = whole->w->width, n = ROWS * width, sets = ROWS * bits_words(whole->w->experts);
    float h[ROWS * WIDTH_MAX], want[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
    uint64_t want_set[ROWS * WORDS_MAX], set[ROWS * WORDS_MAX];

    world_rows(h, ROWS, width, (uint64_t)how->route);
    world_rows(want, ROWS, width, 50);
    run(whole, layer, h, how, -1, false, want, want_set);
    for (int c = 0; c < n_cuts; c++) {
        world_rows(x, ROWS, width, 50);
        run(spread, layer, h, how, cuts[c], c & 1, x, set);
        assert_memory_equal(x, want, (size_t)n * sizeof(float));
        assert_memory_equal(set, want_set, (size_t)sets * sizeof(*set));
    }
}

static void compare_all(struct part *whole, struct part *spread, struct router *router)
{
    static const enum route routes[] = {ROUTE_ALL,  ROUTE_ROUTER, ROUTE_RANDOM,  ROUTE_PAPER,
                                        ROUTE_GRAM, ROUTE_STATIC, ROUTE_NEURONS, ROUTE_GRAM_VARIABLE};
    static const double gain[LAYERS] = {1, 40};
    static const int cuts[] = {9, -1, 0, ROWS};
    const int neurons[LAYERS] = {whole->w->neurons / 4, whole->w->neurons * 2 / 3};

    router->by_threshold = false;
    for (int v = 0; v < 16; v++) {
        struct routing how = {
            .route = routes[v % 8], .router = router, .gain = gain, .scale = 1.4f, .compensate = v >= 8, .seed = 4};

        if (v >= 8) how.neurons = neurons;
        compare(whole, spread, &how, (v / 8 + v) & 1, cuts, v == 9 ? 4 : 1 + (v >= 8));
    }
    router->by_threshold = true; /* the number of active experts varies, and is 0 for some rows */
    compare(whole, spread, &(struct routing){.route = ROUTE_ROUTER, .router = router, .scale = 1, .compensate = true}, 1, cuts,
            3);
}

static float *drawn(struct rng *r, size_t n)
{
    float *x = world_alloc(n + 1, sizeof(float));

    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(r);
    return x;
}

/* A router with means of its own: on any ranks the same bits; with the model's means the bits of the model's; and the model's are still there for the others. */
static void compare_versions(struct part *whole, struct part *spread, const struct router *linear)
{
    static const int cuts[] = {-1, 9};
    int width = whole->w->width, experts = whole->w->experts, c = width < 3 ? width : 3;
    size_t n = (size_t)(LAYERS * experts), d = (size_t)width;
    struct router r = *linear;
    struct routing how = {.route = ROUTE_ROUTER, .router = &r, .scale = 1.3f, .compensate = true};
    float h[ROWS * WIDTH_MAX], x[2][ROWS * WIDTH_MAX];
    uint64_t set[ROWS * WORDS_MAX];
    struct err e = {0};
    struct rng g;

    if (experts == 0) return;
    rng_seed(&g, 3, 4);
    r.by_threshold = false;
    r.mu = drawn(&g, n * d);
    for (int i = 0; i < 2; i++) { /* the model's own */
        world_rows(h, ROWS, width, 71);
        memset(x[i], 0, sizeof(x[i]));
        for (int l = 0; l < LAYERS; l++)
            memcpy(r.mu + (size_t)(l * experts) * d, whole->w->mu[l], (size_t)experts * d * sizeof(float));
        float *own = r.mu;

        if (i) ok(moe_select(spread->m, &r, &e), &e);
        else r.mu = NULL;
        run(spread, 1, h, &(struct routing){.route = ROUTE_ROUTER, .router = &r, .scale = 1, .compensate = true}, 9, false, x[i],
            set);
        r.mu = own;
    }
    assert_memory_equal(x[0], x[1], sizeof(x[0]));
    for (size_t i = 0; i < n * d; i++) r.mu[i] = (float)rng_normal(&g);
    r.kind = ROUTER_BOTTLENECK, r.rank = c;
    r.factor = drawn(&g, (size_t)(2 * LAYERS * c) * d);
    r.scale = drawn(&g, LAYERS);
    r.low_rank = c;
    r.inward = drawn(&g, (size_t)(LAYERS * c) * d), r.outward = drawn(&g, (size_t)(LAYERS * c) * d);
    r.offset = drawn(&g, LAYERS * d);
    for (int kind = ROUTER_BOTTLENECK; kind < ROUTER_KINDS; kind++) {
        r.kind = (enum router_kind)kind;
        ok(moe_select(whole->m, &r, &e), &e);
        ok(moe_select(spread->m, &r, &e), &e);
        for (int l = 0; l < LAYERS; l++) compare(whole, spread, &how, l, cuts, 2);
        compare(whole, spread, &(struct routing){.route = ROUTE_RANDOM, .scale = 1, .compensate = true}, 0, cuts, 1);
    }
    free(r.mu), free(r.factor), free(r.scale), free(r.inward), free(r.outward), free(r.offset);
}

/* Values of experts and means of what is left out, against plain loops over the experts' outputs, and the same bits everywhere. */
static void compare_rest(struct part *whole, struct part *spread)
{
    struct part *parts[2] = {whole, spread};
    int width = whole->w->width, experts = whole->w->experts, words = bits_words(experts);
    size_t cells = (size_t)(ROWS * experts), means = (size_t)(experts * width);
    float h[ROWS * WIDTH_MAX];
    uint64_t set[ROWS * WORDS_MAX] = {0};
    struct err e = {0};

    if (experts == 0) return;
    float *value[2] = {world_alloc(cells, sizeof(float)), world_alloc(cells, sizeof(float))};
    float *mu[2] = {world_alloc(means, sizeof(float)), world_alloc(means, sizeof(float))};
    world_rows(h, ROWS, width, 61);
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < experts; i++)
            if (i == 0 || (t + i) % 3 == 0) bits_set(set + t * words, i); /* expert 0 is always there */
    for (int what = MOE_ENERGY; what <= MOE_NORM; what++) {
        for (int i = 0; i < 2; i++) ok(moe_values(parts[i]->m, (enum moe_value)what, 1, h, ROWS, value[i], &e), &e);
        assert_memory_equal(value[0], value[1], cells * sizeof(float));
        for (int t = 0; t < ROWS; t += 5)
            for (int i = 0; i < experts; i++) {
                double want = what == MOE_ENERGY ? plain_energy(&whole->w->layer[1].expert[i], h + t * width) : 0,
                       y[WIDTH_MAX] = {0};

                if (what == MOE_NORM) {
                    plain_expert(y, &whole->w->layer[1].expert[i], h + t * width, ALL_NEURONS, 1);
                    for (int d = 0; d < width; d++) want += y[d] * y[d];
                }
                assert_true(fabs((double)value[0][t * experts + i] - want) < 1e-4 * (1e-6 + want));
            }
    }
    for (int i = 0; i < 2; i++) {
        ok(moe_rest_add(parts[i]->m, 1, h, set, 10, true, &e), &e); /* forgotten */
        ok(moe_rest_add(parts[i]->m, 1, h, set, 9, true, &e), &e);
        ok(moe_rest_add(parts[i]->m, 1, h + 9 * width, set + 9 * words, ROWS - 9, false, &e), &e);
        ok(moe_rest_means(parts[i]->m, 1, mu[i], &e), &e);
    }
    assert_memory_equal(mu[0], mu[1], means * sizeof(float));
    for (int i = 0; i < experts; i++) {
        double y[WIDTH_MAX] = {0};
        int n = 0;

        for (int t = 0; t < ROWS; t++) {
            if (bits_has(set + t * words, i)) continue;
            plain_expert(y, &whole->w->layer[1].expert[i], h + t * width, ALL_NEURONS, 1);
            n++;
        }
        for (int d = 0; d < width; d++)
            assert_true(fabs((double)mu[0][i * width + d] - (n ? y[d] / n : 0)) < 1e-4 * (1e-3 + fabs(n ? y[d] / n : 0)));
    }
    for (int i = 0; i < 2; i++) free(value[i]), free(mu[i]);
}

static void check_cancels(struct part *u)
{
    float h[ROWS * WIDTH_MAX], y[ROWS * WIDTH_MAX];
    struct err e = {0};

    world_rows(h, ROWS, u->w->width, 80);
    ok(moe_dense(u->m, 0, h, ROWS, y, &e), &e);
    for (int i = 0; i < ROWS * u->w->width; i++) assert_true(y[i] == 0);
}

/* Sums too large to be exact, wherever they arise, are an error, and the next ones are as if nothing had been. */
static void check_excess(struct part *u, const struct router *router)
{
    struct routing how = {.route = ROUTE_RANDOM, .router = router, .scale = 1e9f};
    float h[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX] = {0};
    struct err e = {0};

    if (u->w->experts == 0 || u->w->active == 0 || u->w->width == 1) return;
    world_rows(h, ROWS, u->w->width, 90);
    ok(moe_begin(u->m, 0, 1, h, NULL, ROWS, &how, &e), &e);
    assert_int_equal(moe_end(u->m, 0, x, NULL, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "layer 1: outputs of experts add up to "));
}

static void compare_teacher(struct part *whole, struct part *spread)
{
    struct part *parts[2] = {whole, spread};
    int width = whole->w->width, experts = whole->w->experts, words = bits_words(experts), k = whole->w->active;
    float h[ROWS * WIDTH_MAX], y[2][ROWS * WIDTH_MAX];
    float *score[2] = {world_alloc((size_t)(ROWS * experts), sizeof(float)),
                       world_alloc((size_t)(ROWS * experts), sizeof(float))};
    uint64_t set[2][ROWS * WORDS_MAX];
    struct err e = {0};

    world_rows(h, ROWS, width, 60);
    for (int compensate = 0; compensate < 2; compensate++) {
        for (int i = 0; i < 2; i++) {
            ok(moe_dense(parts[i]->m, 1, h, ROWS, y[i], &e), &e);
            ok(moe_paper_scores(parts[i]->m, 1, h, y[i], ROWS, k, score[i], &e), &e);
            ok(moe_gram_sets(parts[i]->m, 1, h, ROWS, k, compensate, set[i], &e), &e);
        }
        assert_memory_equal(y[0], y[1], (size_t)(ROWS * width) * sizeof(float));
        assert_memory_equal(score[0], score[1], (size_t)(ROWS * experts) * sizeof(float));
        assert_memory_equal(set[0], set[1], (size_t)(ROWS * words) * sizeof(uint64_t));
    }
    for (int i = 0; i < 2; i++) ok(moe_gram_gains(parts[i]->m, 1, h, ROWS, true, score[i], &e), &e);
    assert_memory_equal(score[0], score[1], (size_t)(ROWS * experts) * sizeof(float));
    free(score[0]), free(score[1]);
}

/* A row goes once to each other rank that holds an active expert of it, however many it holds. */
static void check_traffic(struct part *u, const struct router *router)
{
    int experts = u->w->experts, words = bits_words(experts);
    float h[ROWS * WIDTH_MAX], x[ROWS * WIDTH_MAX];
    uint64_t set[ROWS * WORDS_MAX], want = 0;

    world_rows(h, ROWS, u->w->width, 70);
    memset(x, 0, sizeof(x));
    moe_stats_clear(u->m);
    run(u, 0, h, &(struct routing){.route = ROUTE_ROUTER, .router = router, .scale = 1}, -1, false, x, set);
    for (int t = 0; t < ROWS; t++) {
        for (int rank = 1; rank < u->p.ranks; rank++) {
            bool here = false;

            for (int i = 0; i < experts; i++)
                here = here || (bits_has(set + t * words, i) && placement_rank(&u->p, 0, i) == rank);
            want += here;
        }
    }
    assert_int_equal(moe_stats(u->m)->rows_out, want);
    assert_int_equal(moe_stats(u->m)->tokens, ROWS);
}

static void coordinate(struct part *spread, int shape, int ranks)
{
    int experts = shapes[shape].experts, width = shapes[shape].width;
    size_t n = (size_t)(LAYERS * experts);
    float threshold[LAYERS] = {2, 3};
    struct router router = {LAYERS,
                            experts,
                            width,
                            world_alloc(n * (size_t)width, sizeof(float)),
                            world_alloc(n, sizeof(float)),
                            .threshold = threshold};
    struct part whole;
    struct rng r;

    rng_seed(&r, 3, 3);
    for (size_t i = 0; i < n * (size_t)width; i++) router.weight[i] = (float)rng_normal(&r);
    part_open(&whole, NULL, shape, 0);
    check_excess(spread, &router);
    compare_all(&whole, spread, &router);
    if (experts) check_traffic(spread, &router);
    compare_teacher(&whole, spread);
    compare_versions(&whole, spread, &router);
    compare_rest(&whole, spread);
    if (shapes[shape].cancel) check_cancels(&whole), check_cancels(spread);
    if (ranks > 1) stop_followers(spread, ranks);
    part_close(&whole);
    free(router.weight), free(router.bias);
}

static void test_same_bits(void **state)
{
    struct comm *c = *state;

    for (int shape = 0; shape < SHAPES; shape++) {
        for (int variant = 0; variant < PLACEMENTS; variant++) {
            struct part u;

            if (variant > 0 && shapes[shape].experts == 0) continue; /* nothing to place */
            if (shape > 0 && variant % 3) continue;                  /* all placements for one shape, three for the others */
            part_open(&u, c, shape, variant);
            if (comm_rank(c) == 0) coordinate(&u, shape, comm_size(c));
            else follow(&u);
            part_close(&u);
        }
    }
}

int main(int argc, char **argv)
{
    struct comm *c;
    struct err e = {0};

    if (comm_open(&c, &argc, &argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return e.code;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_same_bits, c)};
    int failed = cmocka_run_group_tests_name("moe over ranks", tests, NULL, NULL);

    if (failed) comm_abort(c, 1); /* the others may be waiting for this rank */
    comm_close(c, OK);
    return 0;
}
