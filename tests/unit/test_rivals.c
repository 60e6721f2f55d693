/* What we are measured against computes what it should, and OpenBLAS takes the right kernels.  What is absent is skipped. */
#include "../check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mat.h"
#include "base/rng.h"
#include "num/ref.h"
#include "num/rivals.h"

static float *normals(size_t n, uint64_t seed)
{
    float *x = malloc(n * sizeof(*x));
    struct rng r;

    assert_non_null(x);
    rng_seed(&r, seed, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(&r);
    return x;
}

/* Skips the test where the library is absent. */
static struct rival *open_rival(enum rival_kind kind, int threads)
{
    struct rival *r;
    struct err e = {.code = OK};
    status s = rival_open(&r, kind, threads, &e);

    if (!s) return r;
    assert_null(r);
    assert_int_equal(s, ERR_IO);
    assert_non_null(strstr(e.text, kind == RIVAL_OPENBLAS ? "OpenBLAS" : "oneDNN"));
    skip_because("%s", e.text);
    return NULL;
}

/* Runs once more than there are copies, to see each of them and the turn back to the first.  False, with the reason, if this
 * processor cannot. */
static bool check_shape(struct rival *r, enum rival_kind kind, struct rival_shape s, struct err *e)
{
    float *w = normals((size_t)s.n * s.k, 1), *x = normals((size_t)s.rows * s.k, 2);
    float *y = malloc((size_t)s.rows * s.n * sizeof(*y)), *want = malloc((size_t)s.rows * s.n * sizeof(*want));
    struct mat m = {w, DT_F32, s.n, s.k, (size_t)s.k};
    float most = 0.0f;
    bool can;

    assert_true(y && want);
    ref_xwt(want, (size_t)s.n, x, (size_t)s.k, s.rows, &m, NULL);
    for (int i = 0; i < s.rows * s.n; i++) most = fmaxf(most, fabsf(want[i]));
    can = !rival_prepare(r, w, s, e);
    if (can) {
        rival_input(r, x);
        for (int run = 0; run <= s.copies; run++) {
            for (int i = 0; i < s.rows * s.n; i++) y[i] = NAN;
            assert_int_equal(rival_run(r, e), OK);
            rival_output(r, y);
            for (int i = 0; i < s.rows * s.n; i++)
                if (!(fabsf(y[i] - want[i]) <= rival_tolerance(kind) * most))
                    fail_msg("%s, run %d: element %d of %d x %d x %d is %g, not %g", rival_describe(r), run, i, s.rows, s.n, s.k,
                             (double)y[i], (double)want[i]);
        }
    }
    free(w);
    free(x);
    free(y);
    free(want);
    assert_true(can || kind == RIVAL_ONEDNN_BF16); /* the others work on every processor */
    return can;
}

static void products_are_right(void **state)
{
    static const struct rival_shape shape[] = {{1, 48, 64, 1}, {1, 100, 33, 3},   {2, 7, 130, 2},
                                               {5, 1, 40, 1},  {33, 129, 257, 2}, {64, 256, 128, 1}};

    enum rival_kind kind = *(const enum rival_kind *)*state;

    for (int threads = 1; threads <= 2; threads++) {
        struct rival *r = open_rival(kind, threads);
        struct err e = {.code = OK};
        bool can = true;

        for (size_t i = 0; can && i < sizeof(shape) / sizeof(*shape); i++) can = check_shape(r, kind, shape[i], &e);
        if (can) {
            assert_non_null(strstr(rival_describe(r), threads == 1 ? "1 thread" : "2 threads"));
            print_message("%s\n", rival_describe(r));
        }
        rival_close(r);
        if (!can) skip_because("%s", e.text);
    }
    rival_close(NULL);
}

/* An input of the largest magnitude everywhere, where sums in 16 bits would overflow */
static void u8s8_does_not_overflow(void **state)
{
    enum { K = 256, N = 16 };
    struct rival *r = open_rival(RIVAL_ONEDNN_U8S8, 1);
    struct err e;
    float w[N * K], x[K], y[N];

    (void)state;
    for (int i = 0; i < N * K; i++) w[i] = i / K % 2 ? -1.0f : 1.0f;
    for (int i = 0; i < K; i++) x[i] = 1.0f;
    assert_int_equal(rival_prepare(r, w, (struct rival_shape){1, N, K, 1}, &e), OK);
    rival_input(r, x);
    assert_int_equal(rival_run(r, &e), OK);
    rival_output(r, y);
    for (int i = 0; i < N; i++) assert_true(fabsf(y[i] - (i % 2 ? -K : K)) < 1e-3f);
    for (int i = 0; i < K; i++) x[i] = 0.0f; /* no scale can be taken from zeros */
    rival_input(r, x);
    assert_int_equal(rival_run(r, &e), OK);
    rival_output(r, y);
    for (int i = 0; i < N; i++) assert_true(y[i] == 0.0f);
    rival_close(r);
}

static void core_types_for_made_up_processors(void **state)
{
    static const struct rival_processor sse = {false, false, false, false}, avx = {false, true, false, false},
                                        haswell = {false, true, true, false}, zen = {true, true, true, false},
                                        sapphire = {false, true, true, true}, zen4 = {true, true, true, true};
    static const struct {
        const struct rival_processor *p;
        const char *picked, *want;
    } row[] = {
        {&sapphire, "Prescott", "SkylakeX"}, /* what 0.3.21 does on Intel's newer cores */
        {&sapphire, "Haswell", "SkylakeX"},
        {&sapphire, "SkylakeX", NULL},
        {&sapphire, "Cooperlake", NULL},
        {&sapphire, "sapphirerapids", NULL},
        {&sapphire, "Granite42", NULL}, /* a name that a later version has: it knows better */
        {&zen4, "Zen", "SkylakeX"},
        {&zen4, "Barcelona", "SkylakeX"},
        {&zen, "Zen", NULL},
        {&zen, "Haswell", NULL},
        {&zen, "Barcelona", "Zen"},
        {&zen, "Prescott", "Zen"},
        {&zen, "SkylakeX", NULL}, /* more than it has: not ours to take away */
        {&haswell, "Nehalem", "Haswell"},
        {&haswell, "Sandybridge", "Haswell"},
        {&haswell, "Zen", NULL},
        {&avx, "Prescott", "Sandybridge"},
        {&avx, "Sandybridge", NULL},
        {&sse, "Prescott", NULL},
        {&sse, "", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(row) / sizeof(*row); i++) {
        const char *got = rival_core_type(*row[i].p, row[i].picked);

        if (!got != !row[i].want || (got && strcmp(got, row[i].want)))
            fail_msg("row %zu, picked %s: %s, not %s", i, row[i].picked, got ? got : "nothing",
                     row[i].want ? row[i].want : "nothing");
    }
}

/* The user's variable rules; without it no kernels are in use that waste the processor, on the library loaded anew. */
static void the_choice_is_looked_at_on_loading(void **state)
{
    struct rival_processor p = rival_this_processor();
    struct rival *r;
    char core[32];

    (void)state;
    setenv("OPENBLAS_CORETYPE", "Prescott", 1);
    setenv("OPENBLAS_NUM_THREADS", "7", 1);
    r = open_rival(RIVAL_OPENBLAS, 1);
    assert_string_equal(getenv("OPENBLAS_CORETYPE"), "Prescott");
    assert_string_equal(getenv("OPENBLAS_NUM_THREADS"), "7");
    assert_non_null(strstr(rival_describe(r), " Prescott kernels ("));
    assert_non_null(strstr(rival_describe(r), "OPENBLAS_CORETYPE"));
    if (p.avx2) assert_non_null(strstr(rival_describe(r), p.avx512 ? "SkylakeX" : p.amd ? "Zen" : "Haswell"));
    rival_close(r);

    unsetenv("OPENBLAS_CORETYPE");
    unsetenv("OPENBLAS_NUM_THREADS");
    r = open_rival(RIVAL_OPENBLAS, 1);
    assert_non_null(r);
    assert_null(getenv("OPENBLAS_CORETYPE"));
    assert_null(getenv("OPENBLAS_NUM_THREADS"));
    assert_int_equal(sscanf(strchr(rival_describe(r), ','), ", %31s kernels", core), 1);
    assert_null(rival_core_type(p, core));
    rival_close(r);
}

int main(void)
{
    enum rival_kind kind[RIVAL_KINDS];
    struct CMUnitTest products[RIVAL_KINDS];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(u8s8_does_not_overflow),
        cmocka_unit_test(core_types_for_made_up_processors),
        cmocka_unit_test(the_choice_is_looked_at_on_loading),
    };

    for (int i = 0; i < RIVAL_KINDS; i++) {
        kind[i] = (enum rival_kind)i;
        products[i] = (struct CMUnitTest){rival_name(kind[i]), products_are_right, NULL, NULL, &kind[i]};
    }
    return cmocka_run_group_tests(products, NULL, NULL) + cmocka_run_group_tests(tests, NULL, NULL);
}
