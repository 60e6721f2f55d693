/* Several coordinators: every rank asks every rank at the same time, in both slots, and whoever waits answers the others.  A rank that did not would stop all.
 * Rank 0 starts the others through a channel of its own (as it makes them run a forward pass), and asks like them meanwhile.  In the end it calls them out of that. */
#include "../check.h"
#include "../pattern.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "comm/exchange_internal.h"

enum { KIND_ASK = 1, KIND_GO, KIND_ON, KIND_LEAVE, KIND_END, LIMIT = 100000, ROUNDS = 60, RANKS_MAX = 16 };

static struct comm *world;
static int me, size, coordinators;
static struct arena *arena;
static struct exchange *mine, *work;      /* NULL: this rank does not ask */
static struct exchange *other[RANKS_MAX]; /* in which it answers, rank 0's first */
static int n_others;
static int answered;
static struct request kept; /* asks to leave, and is not answered yet */

static struct exchange *open_channel(int asker, int channel, int ranks, bool apart)
{
    struct exchange_limits limits = {.request_bytes = LIMIT,
                                     .answer_bytes = LIMIT,
                                     .deadline = 20,
                                     .apart = apart,
                                     .asker = asker,
                                     .channel = channel,
                                     .ranks = ranks};
    struct exchange *x;
    struct err e = {0};

    if (exchange_open(&x, world, limits, arena, &e)) fprintf(stderr, "%s\n", e.text), abort();
    return x;
}

static void open_all(bool apart)
{
    struct exchange_limits limits = {.request_bytes = LIMIT, .answer_bytes = LIMIT, .deadline = 1};
    struct err e = {0};

    mine = work = NULL;
    n_others = answered = 0;
    BUG_ON(arena_open(&arena, "exchanges", (size_t)(coordinators + 2) * exchange_cost(true, size + 1, limits), &e));
    for (int q = 0; q < coordinators; q++) {
        struct exchange *x = open_channel(q, q, 0, apart);

        if (q == me) mine = x;
        else other[n_others++] = x;
    }
    if (coordinators > 1 && me < coordinators) work = open_channel(0, coordinators, coordinators, apart);
}

static void close_all(void)
{
    exchange_close(mine);
    exchange_close(work);
    for (int i = 0; i < n_others; i++) exchange_close(other[i]);
    arena_close(arena);
}

/* number[0]: bytes of the answer; layer: seed of the payload.  In place every second time. */
static bool answer(void *ctx, int which, const struct request *r, const void *payload)
{
    struct exchange *x = other[which];
    size_t n = (size_t)r->number[0];

    (void)ctx;
    if (r->kind == KIND_LEAVE) {
        kept = *r;
        return false;
    }
    bool right = holds(payload, r->bytes, (uint64_t)r->layer);
    uint8_t *to = answered++ % 2 ? exchange_answer_room(x, n) : malloc(n + 1);

    fill(to, n, (uint64_t)(r->layer + 100 * me));
    exchange_answer(x, r, right ? OK : ERR_FORMAT, r->rows, right ? to : (const void *)"wrong", right ? n : 6);
    if (answered % 2) free(to);
    return true;
}

static const size_t sizes[] = {0, 1, 4096, INLINE, INLINE + 1, 40000, LIMIT};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

/* What every coordinator does: both slots to all ranks, answers checked.  Returns what was wrong. */
static const char *ask_everybody(void)
{
    static uint8_t payload[EXCHANGE_SLOTS][LIMIT];
    struct err e = {0};

    for (int round = 0; round < ROUNDS; round++) {
        size_t bytes[EXCHANGE_SLOTS], back[EXCHANGE_SLOTS];

        for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
            bytes[slot] = sizes[(round + slot * 3 + me) % SIZES], back[slot] = sizes[(round * 2 + slot + me) % SIZES];
            fill(payload[slot], bytes[slot], (uint64_t)(round + slot));
            for (int rank = 0; rank < size; rank++) {
                struct request r = {
                    .kind = KIND_ASK, .layer = round + slot, .rows = me, .number = {(double)back[slot]}, .what = "ask"};

                if (rank != me) exchange_post(mine, slot, rank, &r, payload[slot], bytes[slot], NULL, 0);
            }
        }
        for (int i = 0; i < EXCHANGE_SLOTS; i++) {
            int slot = (i + round) % EXCHANGE_SLOTS;

            if (round % 7 == me % 7) clock_sleep(1e-4);
            if (exchange_wait(mine, slot, &e)) return fprintf(stderr, "rank %d: %s\n", me, e.text), "a wait failed";
            for (int rank = 0; rank < size; rank++) {
                const void *got;

                if (rank == me) continue;
                const struct answer *a = exchange_answer_of(mine, slot, rank, &got);
                if (!a || a->rows != me || a->bytes != back[slot]) return "an answer is not the one that was asked for";
                if (!holds(got, back[slot], (uint64_t)(round + slot + 100 * rank))) return "bytes of an answer are wrong";
            }
        }
    }
    return NULL;
}

/* Asks on and on, until rank 0 wants this rank out of it. */
static const char *ask_until_called(void)
{
    static uint8_t payload[LIMIT];
    struct err e = {0};
    status st = OK;

    for (int round = 0; !st; round++) {
        for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
            for (int rank = 0; rank < size; rank++) {
                struct request r = {.kind = KIND_ASK, .layer = 1, .rows = me, .number = {(double)sizes[round % SIZES]}};

                fill(payload, sizes[round % SIZES], 1);
                if (rank != me) exchange_post(mine, slot, rank, &r, payload, sizes[round % SIZES], NULL, 0);
            }
        }
        st = exchange_wait(mine, 0, &e);
        if (!st) st = exchange_wait(mine, 1, &e);
    }
    if (st != STOPPED) return fprintf(stderr, "rank %d: %s\n", me, e.text), "a wait ended otherwise";
    return kept.kind == KIND_LEAVE ? NULL : "a wait was stopped by nobody";
}

static void follow(void)
{
    struct exchange *all[RANKS_MAX + 1];
    struct request r = {0};
    struct err e = {0};
    int n = 0, which;

    for (int i = 0; i < n_others; i++) all[n++] = other[i];
    if (work) all[n++] = work;
    if (mine) exchange_serve(mine, other, n_others, answer, NULL);
    while (r.kind != KIND_END) {
        const void *payload;

        if (exchange_next_of(all, n, &which, &r, &payload, &e)) fprintf(stderr, "rank %d: %s\n", me, e.text), abort();
        if (r.kind == KIND_ASK) {
            answer(NULL, which, &r, payload);
        } else if (r.kind == KIND_ON) {
            const char *wrong = ask_until_called();

            exchange_answer(all[which], &r, wrong ? ERR_FORMAT : OK, 0, wrong, wrong ? strlen(wrong) + 1 : 0);
            if (kept.kind == KIND_LEAVE) exchange_answer(other[0], &kept, OK, 0, NULL, 0);
            kept.kind = 0;
        } else if (r.kind == KIND_GO) {
            const char *wrong = ask_everybody();

            exchange_answer(all[which], &r, wrong ? ERR_FORMAT : OK, 0, wrong, wrong ? strlen(wrong) + 1 : 0);
        } else {
            exchange_answer(all[which], &r, OK, 0, NULL, 0);
        }
    }
}

static void tell(struct exchange *x, int ranks, int kind)
{
    struct request r = {.kind = kind, .layer = -1, .what = "test"};

    for (int rank = 1; rank < ranks; rank++) exchange_post(x, 0, rank, &r, NULL, 0, NULL, 0);
}

/* The others ask on and on; once each has begun, they are called out of it. */
static void call_out(void)
{
    bool begun[RANKS_MAX] = {false};
    struct err e = {0};

    tell(work, coordinators, KIND_ON);
    for (int n = 1; n < coordinators;) {
        for (int i = 0; i < n_others; i++) {
            struct request r;
            const void *payload;

            if (!exchange_take(other[i], &r, &payload)) continue;
            if (!begun[r.rows]) begun[r.rows] = true, n++;
            answer(NULL, i, &r, payload);
        }
        exchange_progress(work);
    }
    tell(mine, coordinators, KIND_LEAVE);
    assert_int_equal(exchange_wait(mine, 0, &e), OK);
    status st = exchange_wait(work, 0, &e);
    if (st) fprintf(stderr, "%s\n", e.text);
    assert_int_equal(st, OK);
}

static void lead(void)
{
    struct err e = {0};

    exchange_serve(mine, other, n_others, answer, NULL);
    if (work) exchange_serve(work, other, n_others, answer, NULL);
    for (int again = 0; again < 2; again++) {
        if (work) tell(work, coordinators, KIND_GO);
        const char *wrong = ask_everybody();
        if (wrong) fprintf(stderr, "rank 0: %s\n", wrong);
        assert_null(wrong);
        if (work) {
            status st = exchange_wait(work, 0, &e);

            if (st) fprintf(stderr, "%s\n", e.text);
            assert_int_equal(st, OK);
        }
    }
    assert_int_equal(answered, 2 * ROUNDS * EXCHANGE_SLOTS * (coordinators - 1));
    if (work) call_out();
    tell(mine, size, KIND_END);
    assert_int_equal(exchange_wait(mine, 0, &e), OK);
}

static void everybody_asks_everybody(void **state)
{
    struct err e = {0};

    (void)state;
    for (coordinators = 1; coordinators <= size; coordinators++) {
        assert_int_equal(comm_share(world, coordinators, &e), OK);
        for (int apart = 0; apart < 2; apart++) {
            open_all(apart);
            if (me == 0) lead();
            else follow();
            close_all();
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(everybody_asks_everybody)};
    struct err e = {0};

    if (comm_open(&world, &argc, &argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return e.code;
    }
    me = comm_rank(world), size = comm_size(world);
    int failed = 0;
    if (size == 1) printf("1..0 # nobody to ask\n");
    else failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_close(world, OK);
    return failed;
}
