/* Sampling against the plain computation: probabilities as a table, truncated step by step over a full sort. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "engine/sample.h"

enum { VOCAB_MAX = 512 };

/* p[]: what each token's probability ought to be. */
static void plain_distribution(double *p, const float *logits, int n, const struct sampling *s)
{
    int order[VOCAB_MAX];
    double sum = 0, largest = -INFINITY;
    int kept = n;

    for (int i = 0; i < n; i++) {
        order[i] = i;
        if (logits[i] > largest) largest = logits[i];
    }
    for (int i = 1; i < n; i++) /* insertion sort: stable, so ties stay in order of index */
        for (int j = i; j > 0 && logits[order[j]] > logits[order[j - 1]]; j--) {
            int t = order[j];

            order[j] = order[j - 1];
            order[j - 1] = t;
        }
    for (int i = 0; i < n; i++) p[i] = exp((logits[i] - largest) / s->temperature);
    if (s->top_k > 0 && s->top_k < kept) kept = s->top_k;
    for (int i = 0; i < kept; i++) sum += p[order[i]];
    if (s->top_p < 1) {
        double so_far = 0;

        for (int i = 0; i < kept; i++) {
            so_far += p[order[i]] / sum;
            if (so_far >= s->top_p) kept = i + 1;
        }
    }
    for (int i = 1; i < kept; i++)
        if (p[order[i]] / p[order[0]] < s->min_p) kept = i;
    sum = 0;
    for (int i = 0; i < kept; i++) sum += p[order[i]];
    for (int i = 0; i < n; i++) p[order[i]] = i < kept ? p[order[i]] / sum : 0;
}

static void check_distribution(const float *logits, int n, const struct sampling *s)
{
    enum { DRAWS = 20000 };
    static struct sample_candidate work[VOCAB_MAX];
    double p[VOCAB_MAX];
    int seen[VOCAB_MAX] = {0};

    plain_distribution(p, logits, n, s);
    for (int d = 0; d < DRAWS; d++) {
        int32_t id = sample_token(logits, n, s, (uint64_t)d, work);

        assert_in_range(id, 0, n - 1);
        seen[id]++;
    }
    for (int i = 0; i < n; i++) {
        double expected = p[i] * DRAWS, spread = sqrt(expected * (1 - p[i]));

        if (p[i] <= 0) assert_int_equal(seen[i], 0);
        assert_true(fabs(seen[i] - expected) <= 5 * spread + 1);
    }
}

static void frequencies_are_the_probabilities(void **state)
{
    static const struct sampling cases[] = {
        {.temperature = 1, .top_p = 1, .seed = 1},
        {.temperature = 0.5, .top_p = 1, .seed = 2},
        {.temperature = 2, .top_p = 1, .top_k = 3, .seed = 3},
        {.temperature = 1, .top_p = 0.7, .seed = 4},
        {.temperature = 1, .top_p = 0.7, .top_k = 5, .seed = 5},
        {.temperature = 1, .top_p = 1, .min_p = 0.2, .seed = 6},
        {.temperature = 1.5, .top_p = 0.9, .top_k = 10, .min_p = 0.3, .seed = 7},
        {.temperature = 1, .top_p = 1e-9, .seed = 8},
        {.temperature = 1, .top_p = 1, .min_p = 1, .seed = 9},
        {.temperature = 1, .top_p = 1, .top_k = 1000, .seed = 10},
    };
    float logits[40];
    struct rng r;

    (void)state;
    rng_seed(&r, 5, 5);
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
        for (int n = 1; n <= 40; n = n * 3 + 1) {
            for (int i = 0; i < n; i++) logits[i] = (float)(2 * rng_normal(&r));
            if (n > 5) logits[3] = logits[1]; /* a tie */
            check_distribution(logits, n, &cases[c]);
        }
}

static void the_cut_between_equals_takes_the_lower_index(void **state)
{
    static const float equal[8] = {0, 1, 1, 1, 1, 1, 1, 0};
    struct sample_candidate work[8];
    struct sampling s = {.temperature = 1, .top_p = 1, .top_k = 2};

    (void)state;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t id = sample_token(equal, 8, &s, i, work);

        assert_in_range(id, 1, 2);
    }
    s = (struct sampling){.temperature = 1, .top_p = 0.3, .top_k = 6}; /* 6 equals: two reach 1/3 */
    for (uint64_t i = 0; i < 200; i++) assert_in_range(sample_token(equal, 8, &s, i, work), 1, 2);
    s.temperature = 0;
    assert_int_equal(sample_token(equal, 8, &s, 0, NULL), 1);
}

static void odd_logits(void **state)
{
    struct sample_candidate work[4];
    const struct sampling s[] = {{.temperature = 1, .top_p = 1},
                                 {.temperature = 1, .top_p = 0.5},
                                 {.temperature = 1e-300, .top_p = 1},
                                 {.temperature = 1e300, .top_p = 1, .top_k = 3, .min_p = 0.1},
                                 {.temperature = 0, .top_p = 1}};
    const float nan_first[] = {NAN, -INFINITY, 3, -1000}, infinite[] = {1, INFINITY, INFINITY, 2};
    const float nothing[] = {-INFINITY, -INFINITY, -INFINITY}, nans[] = {NAN, NAN}, huge[] = {-3e38f, 3e38f};

    (void)state;
    for (size_t c = 0; c < sizeof(s) / sizeof(s[0]); c++)
        for (uint64_t i = 0; i < 50; i++) {
            int32_t id = sample_token(nan_first, 4, &s[c], i, work);

            assert_true(id == 2 || (c == 3 && id == 3)); /* at such a temperature all that is possible is equally so */
            assert_int_equal(sample_token(infinite, 4, &s[c], i, work), 1);
            assert_int_equal(sample_token(nothing, 3, &s[c], i, work), 0);
            assert_int_equal(sample_token(nans, 2, &s[c], i, work), 0);
            if (c != 3) assert_int_equal(sample_token(huge, 2, &s[c], i, work), 1);
        }
}

static void the_draw_depends_on_seed_and_index_alone(void **state)
{
    struct sample_candidate work[64];
    float logits[64], larger[64];
    struct sampling s = {.temperature = 1, .top_p = 1, .seed = 42}, other = s;
    int32_t first[100];
    int different_index = 0, different_seed = 0;

    (void)state;
    for (int i = 0; i < 64; i++) {
        logits[i] = (float)(i % 7);
        larger[i] = logits[i] + 64; /* exact in float, so the differences are the same */
    }
    other.seed = 43;
    for (int i = 0; i < 100; i++) first[i] = sample_token(logits, 64, &s, (uint64_t)i, work);
    for (int i = 99; i >= 0; i--) { /* in another order, other work in between */
        different_seed += sample_token(logits, 64, &other, (uint64_t)i, work) != first[i];
        assert_int_equal(sample_token(logits, 64, &s, (uint64_t)i, work), first[i]);
        assert_int_equal(sample_token(larger, 64, &s, (uint64_t)i, work), first[i]);
        if (i) different_index += first[i] != first[i - 1];
    }
    assert_true(different_seed > 50);
    assert_true(different_index > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_the_probabilities),
        cmocka_unit_test(the_cut_between_equals_takes_the_lower_index),
        cmocka_unit_test(odd_logits),
        cmocka_unit_test(the_draw_depends_on_seed_and_index_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
