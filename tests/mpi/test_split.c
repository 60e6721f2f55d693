/* Attention and the head over all ranks give the bits of one rank: every toy model, every format of weights and of the cache, prompts in pieces and sequences
 * side by side.  The part of every rank is checked as a plain function.
 * np: 1 2 3 5 */
#include "../check.h"
#include <stdlib.h>
#include <string.h>

#include "engine/cluster.h"
#include "model/split.h"

enum { ROWS = 12, SESSIONS = 3, POSITIONS = 80, PROMPT = 9, STEPS = 4 };

static struct {
    struct comm *comm;
    struct cluster *cluster;
} world;

static int32_t token_at(const struct shape *s, int session, int position)
{
    return (int32_t)((session * 7919 + position * 104729 + 13) % s->vocab);
}

/* Prompts of all sessions in passes that cut them, then steps in which all decode; states and logits of every row. */
static void run(const char *model, struct model_limits limits, float *out, int *n_out)
{
    const struct routing all = {.route = ROUTE_ALL};
    struct err e = {0};
    struct model *m;

    if (cluster_model(world.cluster, model, limits, &m, &e)) fail_msg("%s", e.text);
    const struct shape *s = model_shape(m);
    size_t D = (size_t)s->width, V = (size_t)s->vocab;
    int32_t token[ROWS], position[ROWS], session[ROWS], passed[SESSIONS] = {0};
    float *at = out;

    for (int step = 0; step < STEPS; step++) {
        struct batch b = {0, token, position, session, NULL, NULL, false};

        for (int i = 0; i < SESSIONS; i++)
            for (int k = 0; k < (step == 0 ? 2 + i : step == 1 ? PROMPT - 2 - 3 * i : 1) && b.rows < ROWS; k++, b.rows++) {
                token[b.rows] = token_at(s, i, passed[i]);
                position[b.rows] = 60 + passed[i]++; /* over the end of a block of the cache */
                session[b.rows] = SESSIONS - 1 - i;
            }
        if (cluster_forward(world.cluster, &b, &all, 2, at, &e)) fail_msg("%s", e.text);
        if (cluster_logits(world.cluster, at, b.rows, at + (size_t)b.rows * D, &e)) fail_msg("%s", e.text);
        at += (size_t)b.rows * (D + V);
    }
    *n_out = (int)(at - out);
}

static void same_bits(void **state)
{
    static const char *const models[] = {"tests/golden/toy-llama", "tests/golden/toy-mistral", "tests/golden/toy-qwen2",
                                         "tests/golden/toy-rope-linear"};
    static float one[STEPS * ROWS * 1024], split[STEPS * ROWS * 1024];
    int runs = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++)
        for (int format = 0; format <= FORMAT_COUNT; format++, runs++) {
            uint8_t f = (uint8_t)format;
            struct model_limits limits = {.rows = ROWS,
                                          .sessions = SESSIONS,
                                          .positions = POSITIONS,
                                          .kv = (enum kv_format)(runs % KV_COUNT),
                                          .precision = {.part = {f, f, f}}};
            int n, same;

            memset(one, 0, sizeof(one));
            memset(split, 1, sizeof(split));
            run(models[i], limits, one, &n);
            limits.split = true;
            run(models[i], limits, split, &same);
            assert_int_equal(n, same);
            assert_true(n > 0 && (size_t)n <= sizeof(one) / sizeof(*one));
            assert_memory_equal(one, split, (size_t)n * sizeof(*one));
        }
}

/* What plan says travels is what travels. */
static void traffic(void **state)
{
    const struct routing all = {.route = ROUTE_ALL};
    const struct model_limits limits = {.rows = 8, .sessions = 1, .positions = 8, .split = true};
    int32_t token[8] = {0}, position[8] = {0, 1, 2, 3, 4, 5, 6, 7}, session[8] = {0};
    struct batch b = {8, token, position, session, NULL, NULL, false};
    float *hidden = malloc(8 * 1024 * sizeof(float));
    int ranks = comm_size(world.comm);
    struct err e = {0};
    struct model *m;
    double out, back;

    (void)state;
    if (cluster_model(world.cluster, "tests/golden/toy-mistral", limits, &m, &e)) fail_msg("%s", e.text);
    struct exchange_stats before = *cluster_exchange(world.cluster);
    if (cluster_forward(world.cluster, &b, &all, 1, hidden, &e)) fail_msg("%s", e.text);
    struct exchange_stats after = *cluster_exchange(world.cluster);
    split_traffic(model_shape(m), limits, ranks, &out, &back);
    assert_true((double)(after.bytes_out - before.bytes_out) == 8 * model_shape(m)->layers * out);
    assert_true((double)(after.bytes_back - before.bytes_back) == 8 * model_shape(m)->layers * back);
    assert_true((out > 0) == (ranks > 1));
    free(hidden);
}

static void check_spans(const struct split_part *p, int ranks, int heads, int out, int words)
{
    for (int r = 0, h = 0, o = 0, w = 0; r < ranks; r++) {
        assert_true(p[r].heads.first == h && p[r].out.first == o && p[r].words.first == w);
        assert_true(p[r].heads.n >= 0 && p[r].out.n >= 0 && p[r].words.n >= 0);
        h += p[r].heads.n, o += p[r].out.n, w += p[r].words.n;
        if (r == ranks - 1) assert_true(h == heads && o == out && w == words);
    }
}

/* Nothing is left out or done twice, panels stay whole, and shares are as equal as panels allow. */
static void parts(void **state)
{
    (void)state;
    for (int heads = 1; heads <= 9; heads++)
        for (int head_dim = 4; head_dim <= 64; head_dim += 12)
            for (int ranks = 1; ranks <= 12; ranks++) {
                struct shape s = {.kv_heads = heads, .heads = 2 * heads, .head_dim = head_dim, .width = 200, .vocab = 1003};
                struct split_part p[12];

                for (int r = 0; r < ranks; r++) {
                    p[r] = split_part(&s, (struct model_limits){.split = true}, r, ranks);
                    assert_int_equal(p[r].heads.first * head_dim % PANEL_LANES, 0);
                    assert_true(p[r].out.first % PANEL_LANES == 0 && p[r].words.first % PANEL_LANES == 0);
                    assert_true(p[r].words.n <= 1003 / ranks + 2 * PANEL_LANES);
                    if (head_dim == 16) assert_in_range(p[r].heads.n, heads / ranks, heads / ranks + 1);
                }
                check_spans(p, ranks, heads, 200, 1003);
                p[0] = split_part(&s, (struct model_limits){0}, 0, ranks);
                check_spans(p, 1, heads, 200, 1003);
                p[1] = split_part(&s, (struct model_limits){0}, 1, ranks);
                assert_true(p[1].heads.n == 0 && p[1].out.n == 0 && p[1].words.n == 0);
            }
}

static int lead(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits), cmocka_unit_test(parts), cmocka_unit_test(traffic)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    cluster_release(world.cluster);
    cluster_stop(world.cluster, OK);
    return failed;
}

int main(int argc, char **argv)
{
    static const char yaml[] = "kind: infer\nmodel: m\noutput: unused\ninput: i\nresult: r\n";
    struct spec *spec;
    struct err e;
    int failed = 0;

    if (comm_open(&world.comm, &argc, &argv, &e) || spec_parse(&spec, yaml, strlen(yaml), "world", NULL, 0, &e) ||
        cluster_open(&world.cluster, world.comm, spec, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    if (comm_rank(world.comm) == 0) failed = lead();
    else failed = cluster_follow(world.cluster, &e) != OK;
    cluster_close(world.cluster);
    spec_free(spec);
    comm_close(world.comm, OK);
    return failed != 0;
}
