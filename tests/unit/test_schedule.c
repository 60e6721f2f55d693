/* The scheduler as a simulation: random arrivals from a seed, the rule of schedule.h checked after each step without using its code. */
#include "../check.h"
#include "base/rng.h"
#include "engine/schedule.h"

enum { ENTRIES_MAX = 64 };

struct simulated {
    struct schedule_entry entry;
    int prompt, answer; /* what is left to come */
};

struct world {
    struct simulated s[ENTRIES_MAX];
    int n;
    uint64_t step;
};

static int decodes_that_waited;

static int count_state(const struct world *w, enum schedule_state state)
{
    int count = 0;

    for (int i = 0; i < w->n; i++) count += w->s[i].entry.state == state;
    return count;
}

static void check_plan(const struct world *w, const struct schedule_piece *piece, int pieces, struct schedule_limits l)
{
    int rows_of[ENTRIES_MAX] = {0}, total = 0, decoding = count_state(w, SCHEDULE_DECODE), decoded = 0;
    int running = w->n - count_state(w, SCHEDULE_QUEUED), admitted = 0;
    int most = l.rows; /* rows of this step */

    if (decoding && l.chunk && decoding + l.chunk < l.rows) most = decoding + l.chunk;

    assert_in_range(pieces, w->n > 0, w->n);
    for (int p = 0; p < pieces; p++) {
        const struct schedule_entry *e = &w->s[piece[p].entry].entry;

        assert_in_range(piece[p].entry, 0, w->n - 1);
        assert_in_range(piece[p].rows, 1, e->pending);
        assert_int_equal(rows_of[piece[p].entry], 0); /* one piece per entry */
        rows_of[piece[p].entry] = piece[p].rows;
        total += piece[p].rows;
        decoded += e->state == SCHEDULE_DECODE;
        admitted += e->state == SCHEDULE_QUEUED;
    }
    assert_true(total <= most);
    assert_true(running + admitted <= l.sessions);
    assert_int_equal(decoded, decoding < l.rows ? decoding : l.rows); /* decode first */
    for (int i = 0; i < w->n; i++) {
        const struct schedule_entry *e = &w->s[i].entry;

        for (int j = 0; j < w->n; j++) {
            const struct schedule_entry *f = &w->s[j].entry;

            /* a waiting decode never waited longer than one that was served, nor as long and came first */
            if (e->state == SCHEDULE_DECODE && f->state == SCHEDULE_DECODE && rows_of[i] && !rows_of[j]) {
                assert_true(e->last_step < f->last_step || (e->last_step == f->last_step && i < j));
                decodes_that_waited++;
            }
            /* nobody is overtaken: a prompt gets rows only when those before it got all they could use */
            if (e->state == f->state && e->state != SCHEDULE_DECODE && j < i && rows_of[i])
                assert_int_equal(rows_of[j], f->pending);
        }
        if (e->state == SCHEDULE_PREFILL && rows_of[i] < e->pending) assert_int_equal(total, most); /* no row is wasted */
        if (e->state == SCHEDULE_QUEUED && rows_of[i] < e->pending)
            assert_true(total == most || running + admitted == l.sessions);
    }
}

static void apply_plan(struct world *w, const struct schedule_piece *piece, int pieces)
{
    int kept = 0;

    w->step++;
    for (int p = 0; p < pieces; p++) {
        struct simulated *s = &w->s[piece[p].entry];

        s->entry.last_step = w->step;
        s->entry.pending -= piece[p].rows;
        if (s->entry.state != SCHEDULE_DECODE) s->entry.state = SCHEDULE_PREFILL;
        if (s->entry.pending == 0) { /* a token was sampled */
            s->entry.state = SCHEDULE_DECODE;
            s->entry.pending = 1;
            s->answer--;
        }
    }
    for (int i = 0; i < w->n; i++)
        if (w->s[i].answer > 0) w->s[kept++] = w->s[i];
    w->n = kept;
}

static void simulate(uint64_t seed)
{
    struct world w = {.step = 0};
    struct schedule_piece piece[ENTRIES_MAX];
    struct rng r;
    int arrivals = 0, work = 0;

    rng_seed(&r, seed, 0);
    struct schedule_limits l = {
        .rows = 1 + (int)rng_below(&r, 40), .sessions = 1 + (int)rng_below(&r, 30), .chunk = (int)rng_below(&r, 12)};
    /* as many decode as had rows once: they wait only where steps become smaller */
    int rows = l.rows, least = seed % 2 ? (rows + 2) / 3 : rows;
    int room = l.sessions + (int)rng_below(&r, (uint64_t)(ENTRIES_MAX - l.sessions)), longest = 1 + (int)rng_below(&r, 100);

    while (arrivals < 60 || w.n) {
        while (arrivals < 60 && w.n < room && rng_below(&r, 3)) {
            int prompt = 1 + (int)rng_below(&r, (uint64_t)longest), answer = 1 + (int)rng_below(&r, 20);

            w.s[w.n++] = (struct simulated){.entry = {SCHEDULE_QUEUED, prompt, 0}, .answer = answer};
            work += prompt + answer;
            arrivals++;
        }
        l.rows = rng_below(&r, 3) ? least : rows;
        int pieces = schedule_step(piece, (struct schedule_entry *)NULL, 0, l);
        struct schedule_entry entry[ENTRIES_MAX];

        assert_int_equal(pieces, 0);
        for (int i = 0; i < w.n; i++) entry[i] = w.s[i].entry;
        pieces = schedule_step(piece, entry, w.n, l);
        check_plan(&w, piece, pieces, l);
        for (int i = 0; i < w.n; i++) { /* nobody who decodes waits longer than one round of all sessions */
            if (entry[i].state == SCHEDULE_DECODE)
                assert_true(w.step - entry[i].last_step <= (uint64_t)(l.sessions + least - 1) / (uint64_t)least);
        }
        apply_plan(&w, piece, pieces);
        assert_true(w.step <= (uint64_t)work + 1000); /* every step with work does some: it ends */
    }
}

static void invariants_hold(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) simulate(seed);
    assert_true(decodes_that_waited > 1000);
}

static void a_long_prompt_passes_in_chunks(void **state)
{
    struct schedule_entry e[] = {
        {SCHEDULE_DECODE, 1, 5}, {SCHEDULE_PREFILL, 100, 5}, {SCHEDULE_DECODE, 1, 5}, {SCHEDULE_QUEUED, 3, 0}};
    struct schedule_piece p[4];

    (void)state;
    assert_int_equal(schedule_step(p, e, 4, (struct schedule_limits){.rows = 16, .sessions = 8}), 3);
    assert_int_equal(p[0].entry, 0);
    assert_int_equal(p[1].entry, 2);
    assert_int_equal(p[2].entry, 1);
    assert_int_equal(p[2].rows, 14);
    e[1].pending = 10;
    assert_int_equal(schedule_step(p, e, 4, (struct schedule_limits){.rows = 16, .sessions = 8}), 4);
    assert_int_equal(p[3].entry, 3);
    assert_int_equal(p[3].rows, 3);
    assert_int_equal(schedule_step(p, e, 4, (struct schedule_limits){.rows = 16, .sessions = 3}), 3); /* no session is free */
    /* beside decoding sequences only a chunk of the prompt passes, alone all that fits */
    assert_int_equal(schedule_step(p, e, 4, (struct schedule_limits){.rows = 64, .sessions = 8, .chunk = 7}), 3);
    assert_int_equal(p[2].entry, 1);
    assert_int_equal(p[2].rows, 7);
    assert_int_equal(schedule_step(p, e + 1, 1, (struct schedule_limits){.rows = 64, .sessions = 8, .chunk = 7}), 1);
    assert_int_equal(p[0].rows, 10);
    e[2].last_step = 4;
    assert_int_equal(schedule_step(p, e, 4, (struct schedule_limits){.rows = 1, .sessions = 3}), 1);
    assert_int_equal(p[0].entry, 2); /* it waited longer */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariants_hold),
        cmocka_unit_test(a_long_prompt_passes_in_chunks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
