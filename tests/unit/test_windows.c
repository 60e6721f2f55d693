/* Batches of a run: every window that is learned from comes once per pass, the probe never, and a place in the run can be sought. */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "train/windows.h"

enum { BOS = 999 };

/* Token i of the text is i, so a window tells where it stands. */
static void text(struct corpus *c, int n)
{
    int32_t *ids = malloc((size_t)n * sizeof(*ids));

    for (int i = 0; i < n; i++) ids[i] = i;
    corpus_from_tokens(c, ids, (size_t)n, (size_t)n);
    free(ids);
}

/* Which window of `sequence` tokens this is, from its contents; checks that it is whole. */
static int which(const struct window *w, int sequence, int n_tokens)
{
    assert_int_equal(w->token[0], BOS);
    for (int p = 2; p < w->n; p++) assert_int_equal(w->token[p], w->token[p - 1] + 1);
    int i = w->n > 1 ? w->token[1] / sequence : n_tokens / sequence; /* a window of BOS alone is the last one */
    assert_int_equal(w->n, n_tokens - i * sequence < sequence ? n_tokens - i * sequence : sequence);
    return i;
}

static void passes(void **state)
{
    enum { SEQUENCE = 10, TOKENS = 401, WINDOWS = 41, PASSES = 3 };
    int count[WINDOWS] = {0}, probe[WINDOWS] = {0};
    struct windows w;
    struct corpus c;
    struct err e;

    (void)state;
    text(&c, TOKENS);
    assert_int_equal(windows_open(&w, &c, SEQUENCE, BOS, 5, 25, 35, "SPEC", &e), OK);
    assert_true(w.held_out);
    assert_int_equal(w.probe, 3); /* 25 tokens are 3 windows */
    windows_take_probe(&w);
    assert_int_equal(w.n_batch, 3);
    for (int i = 0; i < w.n_batch; i++) probe[which(w.batch + i, SEQUENCE, TOKENS)]++;

    int64_t budget = PASSES * windows_learned_tokens(&w), seen = 0, steps = windows_steps(&w, 35, budget), done = 0;
    for (; seen < budget; done++) {
        int64_t got = windows_next(&w, 35, budget - seen), sum = 0;

        assert_true(got > 0 && got <= 35);
        assert_int_equal(got, w.batch_tokens);
        for (int i = 0; i < w.n_batch; i++) {
            count[which(w.batch + i, SEQUENCE, TOKENS)]++;
            sum += w.batch[i].n;
        }
        assert_int_equal(sum, got);
        seen += got;
    }
    assert_int_equal(done, steps);
    assert_int_equal(seen, budget);
    for (int i = 0; i < WINDOWS; i++) assert_int_equal(count[i], probe[i] ? 0 : PASSES);
    windows_close(&w);
    corpus_free(&c);
}

/* Going on from a noted place gives the batches that came next. */
static void seeking(void **state)
{
    struct windows w;
    struct corpus c;
    struct err e;
    int32_t expected[20][8];
    int64_t pass[20];
    int at[20];

    (void)state;
    text(&c, 77);
    assert_int_equal(windows_open(&w, &c, 8, BOS, 6, 8, 8, "SPEC", &e), OK);
    for (int i = 0; i < 20; i++) {
        pass[i] = w.visit.pass;
        at[i] = w.visit.at;
        memset(expected[i], 0, sizeof(expected[i]));
        windows_next(&w, 8, 1 << 20);
        memcpy(expected[i], w.batch[0].token, (size_t)w.batch[0].n * sizeof(int32_t));
    }
    for (int i = 19; i >= 0; i -= 3) {
        windows_seek(&w, pass[i], at[i]);
        for (int j = i; j < 20; j++) {
            windows_next(&w, 8, 1 << 20);
            assert_memory_equal(expected[j], w.batch[0].token, (size_t)w.batch[0].n * sizeof(int32_t));
        }
    }
    windows_close(&w);
    corpus_free(&c);
}

static void little_text(void **state)
{
    struct windows w;
    struct corpus c;
    struct err e;

    (void)state;
    text(&c, 3); /* one window, shorter than the sequence: it is learned from and measured on */
    assert_int_equal(windows_open(&w, &c, 8, BOS, 1, 100, 4, "SPEC", &e), OK);
    assert_false(w.held_out);
    windows_take_probe(&w);
    assert_int_equal(w.batch_tokens, 3);
    assert_int_equal(windows_next(&w, 7, 100), 6); /* twice in a batch */
    assert_int_equal(w.n_batch, 2);
    assert_int_equal(windows_next(&w, 7, 1), 3);   /* at least one, whole */
    assert_int_equal(windows_next(&w, 2, 100), 3); /* also above `most` */
    assert_int_equal(windows_steps(&w, 7, 13), 3);
    windows_close(&w);
    corpus_free(&c);

    corpus_from_tokens(&c, NULL, 0, 0);
    assert_int_equal(windows_open(&w, &c, 8, BOS, 1, 100, 4, "SPEC", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "SPEC: text: 0 windows"));
    windows_close(&w);
    corpus_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(passes), cmocka_unit_test(seeking), cmocka_unit_test(little_text)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
