/* Attention against its definition in plain loops (the same bits), against attention in double (near), and the same bits whatever way the rows come. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/rng.h"
#include "num/attention.h"
#include "num/lanes.h"
#include "num/ref.h"

enum { MOST_POSITIONS = 320 };

struct problem { /* one KV head with `heads` query heads, keys and values at `positions` positions */
    struct kv_head kv;
    int heads, positions;
    float *q, *k, *v; /* q: [positions][heads][d]; k, v: what the cache is read as, [positions][d] */
    void *scratch, *room;
};

static void *room_of(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);

    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

static void near(float x, float want, double room)
{
    if (!(fabs((double)x - (double)want) <= room)) fail_msg("%.9g, not %.9g", (double)x, (double)want);
}

static void fill(float *x, size_t n, struct rng *r, double spread)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(rng_normal(r) * spread);
}

static void problem_open(struct problem *p, enum kv_format format, int d, int heads, int positions)
{
    struct rng r;
    size_t n = (size_t)positions * (size_t)d;

    rng_seed(&r, (uint64_t)(d * 1000 + heads * 100 + positions), (uint64_t)format);
    *p = (struct problem){.heads = heads, .positions = positions};
    p->kv = (struct kv_head){room_of(kv_head_bytes(format, positions, d)), format, d};
    p->q = room_of(n * (size_t)heads * sizeof(float));
    p->k = room_of(n * sizeof(float));
    p->v = room_of(n * sizeof(float));
    p->scratch = room_of(kernel_scratch_bytes());
    p->room = room_of(ATTEND_ROOM_BYTES);
    fill(p->q, n * (size_t)heads, &r, 1.5);
    fill(p->k, n, &r, 1.0);
    fill(p->v, n, &r, 1.0);
    for (int j = 0; j < positions; j++) {
        kv_write(&p->kv, j, p->k + (size_t)j * (size_t)d, p->v + (size_t)j * (size_t)d);
        kv_read(&p->kv, j, p->k + (size_t)j * (size_t)d, p->v + (size_t)j * (size_t)d);
    }
}

static void problem_close(struct problem *p)
{
    free(p->kv.blocks);
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->scratch);
    free(p->room);
}

/* The header's text, one row of one head. */
static void definition(float *out, const float *q, const float *k, const float *v, int position, int d)
{
    float by = (float)(1.0 / sqrt((double)d)), m = -INFINITY, l[LANES] = {0}, s[KV_BLOCK], o[ATTEND_HEAD_DIM] = {0}, total;

    for (int begin = 0; begin <= position; begin += KV_BLOCK) {
        int n = position + 1 - begin < KV_BLOCK ? position + 1 - begin : KV_BLOCK;
        float most = m, c;

        for (int j = 0; j < n; j++) {
            s[j] = 0.0f;
            for (int i = 0; i < d; i++) s[j] = fmaf(q[i] * by, k[(size_t)(begin + j) * (size_t)d + (size_t)i], s[j]);
            most = s[j] > most ? s[j] : most;
        }
        c = exp_lane(m - most);
        for (int r = 0; r < LANES; r++) l[r] *= c;
        for (int j = 0; j < n; j++) l[j % LANES] += s[j] = exp_lane(s[j] - most);
        for (int i = 0; i < d; i++) {
            float mixed = 0.0f;

            for (int j = 0; j < n; j++) mixed = fmaf(s[j], v[(size_t)(begin + j) * (size_t)d + (size_t)i], mixed);
            o[i] = o[i] * c + mixed;
        }
        m = most;
    }
    total = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    for (int i = 0; i < d; i++) out[i] = o[i] * (1.0f / total);
}

/* Rows of q and out, dense, at these positions. */
static void run_at(const struct problem *p, const struct kernel *k, const float *q, const int32_t *position, int rows, float *out)
{
    size_t width = (size_t)p->heads * (size_t)p->kv.head_dim;

    attend(&(struct attend){.kernel = k,
                            .kv = &p->kv,
                            .q = q,
                            .out = out,
                            .ldq = width,
                            .ldo = width,
                            .position = position,
                            .rows = rows,
                            .heads = p->heads},
           p->scratch, p->room);
}

/* Rows first .. first + rows - 1, which are at the positions of their numbers. */
static void run(const struct problem *p, const struct kernel *k, int first, int rows, float *out)
{
    size_t width = (size_t)p->heads * (size_t)p->kv.head_dim;
    int32_t position[ATTEND_ROWS];

    for (int t = 0; t < rows; t++) position[t] = first + t;
    run_at(p, k, p->q + (size_t)first * width, position, rows, out + (size_t)first * width);
}

static void run_all(const struct problem *p, const struct kernel *k, int at_once, float *out)
{
    for (int first = 0; first < p->positions; first += at_once)
        run(p, k, first, p->positions - first < at_once ? p->positions - first : at_once, out);
}

/* Some rows only, as many as fit at once, far from each other: those of `want`. */
static void check_gaps(const struct problem *p, const float *want)
{
    size_t width = (size_t)p->heads * (size_t)p->kv.head_dim;
    int rows = 0, most = ATTEND_ROWS / p->heads;
    float *q = room_of((size_t)most * width * sizeof(float)), *out = room_of((size_t)most * width * sizeof(float));
    int32_t position[ATTEND_ROWS];

    for (int t = p->positions % 3; t < p->positions && rows < most; t += rows % 3 ? 1 : p->positions / most + 2) {
        memcpy(q + (size_t)rows * width, p->q + (size_t)t * width, width * sizeof(float));
        position[rows++] = t;
    }
    run_at(p, kernel_for(isa_best()), q, position, rows, out);
    for (int r = 0; r < rows; r++)
        assert_memory_equal(out + (size_t)r * width, want + (size_t)position[r] * width, width * sizeof(float));
    free(q);
    free(out);
}

static void check(enum kv_format format, int d, int heads, int positions)
{
    struct problem p;
    problem_open(&p, format, d, heads, positions);
    size_t width = (size_t)heads * (size_t)d, bytes = (size_t)positions * width * sizeof(float);
    float *out = room_of(bytes), *want = room_of(bytes), *exact = room_of(bytes);
    const int at_once[] = {1, 2, 5, ATTEND_ROWS / heads};

    for (int t = 0; t < positions; t++) {
        for (int h = 0; h < heads; h++)
            definition(want + (size_t)t * width + (size_t)(h * d), p.q + (size_t)t * width + (size_t)(h * d), p.k, p.v, t, d);
        ref_attend_row(exact + (size_t)t * width, p.q + (size_t)t * width, p.k, p.v, t + 1, heads, 1, d);
    }
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        if (!(fabs((double)want[i] - (double)exact[i]) <= 1e-5 * fabs((double)exact[i]) + 4e-6))
            fail_msg("%s, head_dim %d, %d heads, %d positions: element %zu is %.9g, not %.9g", kv_name(format), d, heads,
                     positions, i, (double)want[i], (double)exact[i]);
    for (size_t i = 0; i < sizeof(at_once) / sizeof(*at_once); i++) {
        if (at_once[i] * heads > ATTEND_ROWS || at_once[i] < 1) continue;
        memset(out, 0xff, bytes);
        run_all(&p, kernel_for(isa_best()), at_once[i], out);
        assert_memory_equal(out, want, bytes);
    }
    if (heads <= ATTEND_ROWS && positions % 3 < positions) check_gaps(&p, want);
    free(exact);
    free(want);
    free(out);
    problem_close(&p);
}

/* head_dim, query heads of the KV head, positions: blocks end at 64, panels at 16. */
static const int shapes[][3] = {{16, 1, 300}, {20, 3, 130}, {64, 8, 200}, {64, 1, 65},  {128, 4, 129}, {6, 2, 1},
                                {2, 5, 64},   {80, 1, 17},  {256, 2, 70}, {64, 32, 66}, {34, 7, 128}};

static void every_row_is_the_definition(void **state)
{
    int most = *(const int *)*state; /* positions: an emulated processor is slow */

    for (int f = 0; f < KV_COUNT; f++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
            if (shapes[i][2] <= most) check((enum kv_format)f, shapes[i][0], shapes[i][1], shapes[i][2]);
}

static void every_level_gives_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < KV_COUNT * ((int)isa_best() + 1); i++) {
        int level = i / KV_COUNT;
        struct problem p;
        static float one[80 * 4 * 64], other[80 * 4 * 64];

        problem_open(&p, (enum kv_format)(i % KV_COUNT), 64, 4, 80);
        run_all(&p, kernel_for(ISA_PLAIN), 8, one);
        run_all(&p, kernel_for((enum isa)level), 8, other);
        assert_memory_equal(one, other, sizeof(one));
        problem_close(&p);
    }
}

/* What a slot's former session left behind a row's position must not be seen, not even when it is no number. */
static void positions_to_come_are_not_seen(void **state)
{
    (void)state;
    for (int f = 0; f < KV_COUNT; f++) {
        struct problem p;
        static float one[100 * 2 * 16], other[100 * 2 * 16];
        float bad[16];

        problem_open(&p, (enum kv_format)f, 16, 2, 100);
        for (int i = 0; i < 16; i++) bad[i] = NAN;
        run_all(&p, kernel_for(isa_best()), 1, one);
        for (int t = 99; t >= 1; t--) {
            kv_write(&p.kv, t, bad, bad);
            run(&p, kernel_for(isa_best()), t - 1, 1, other);
        }
        assert_memory_equal(one, other, (size_t)99 * 2 * 16 * sizeof(float));
        run(&p, kernel_for(isa_best()), 50, 1, other); /* but what is there is: no number stays none */
        assert_true(isnan(other[50 * 2 * 16]));
        problem_close(&p);
    }
}

static void scores_far_apart_do_not_overflow(void **state)
{
    struct problem p;
    float k[16], v[16], out[3 * 16];

    (void)state;
    problem_open(&p, KV_F32, 16, 1, 3);
    for (int i = 0; i < 48; i++) p.q[i] = 200.0f;
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < 16; i++) k[i] = t == 1 ? 200.0f : -200.0f, v[i] = (float)(t * 10 + i);
        kv_write(&p.kv, t, k, v);
    }
    run(&p, kernel_for(isa_best()), 0, 3, out);
    for (int i = 0; i < 16; i++) {
        near(out[i], (float)i, 1e-5);
        near(out[16 + i], (float)(10 + i), 1e-5);
        near(out[32 + i], (float)(10 + i), 1e-5);
    }
    problem_close(&p);
}

static void formats(void **state)
{
    static const float x[] = {1.0f, -127.0f, 63.4f, 0.0f, 1.00390625f, -1e-3f};
    float k[6], v[6];

    (void)state;
    for (int f = 0; f < KV_COUNT; f++) {
        enum kv_format back;
        struct kv_head h = {room_of(kv_head_bytes((enum kv_format)f, 1, 6)), (enum kv_format)f, 6};

        assert_true(kv_parse(kv_name((enum kv_format)f), &back));
        assert_int_equal(back, f);
        kv_write(&h, 0, x, x);
        kv_read(&h, 0, k, v);
        assert_memory_equal(k, v, sizeof(k));
        for (int i = 0; i < 6; i++) {
            const float bf16[] = {1.0f, -127.0f, 63.5f, 0.0f, 1.0f, -1e-3f}, q8[] = {1.0f, -127.0f, 63.0f, 0.0f, 1.0f, 0.0f};

            if (f == KV_F32) assert_true(k[i] == x[i]);
            if (f == KV_BF16) near(k[i], bf16[i], 2e-6);
            if (f == KV_Q8) near(k[i], q8[i], 1e-6);
        }
        free(h.blocks);
    }
    assert_false(kv_parse("f16", &(enum kv_format){0}));
    /* 64 positions, keys of 20 and values in whole panels of 16 */
    assert_int_equal(kv_head_bytes(KV_F32, 65, 20), 2 * 64 * (20 + 32) * 4);
    assert_int_equal(kv_head_bytes(KV_BF16, 64, 20), 64 * (20 + 32) * 2);
    assert_int_equal(kv_head_bytes(KV_Q8, 1, 20), 64 * (20 + 32) + 64 * 8);
}

/* With a number: only shapes of at most so many positions. */
int main(int count, char **argument)
{
    int most = count > 1 ? atoi(argument[1]) : MOST_POSITIONS;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats),
        cmocka_unit_test_prestate(every_row_is_the_definition, &most),
        cmocka_unit_test(every_level_gives_the_same_bits),
        cmocka_unit_test(positions_to_come_are_not_seen),
        cmocka_unit_test(scores_far_apart_do_not_overflow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
