/* The exchange: what is posted is what arrives, of every size, in both slots, and nothing from before.
 * The coordinator's tests drive followers that answer by what the request says: number[0] is the size of the answer, number[1] how long they take. */
#include "../check.h"
#include "../pattern.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/mailbox.h"

enum { KIND_ECHO = 1, KIND_FAIL, KIND_REOPEN, KIND_STALE, KIND_PLACE, KIND_STOP };
enum { LIMIT = 100000, SMALL = 2000 };

/* All is done in each of these ways. */
static const struct way {
    const char *name;
    bool apart, no_region, no_attach;
    size_t chunk;
} ways[] = {
    {.name = "through shared memory", .chunk = COMM_CHUNK},
    {.name = "through MPI", .apart = true, .chunk = COMM_CHUNK},
    {.name = "through MPI, with pieces so small that all is cut", .apart = true, .chunk = 7000},
    {.name = "heads shared, no memory for payloads", .no_region = true, .chunk = COMM_CHUNK},
    {.name = "heads shared, payloads refused by the followers, cut", .no_attach = true, .chunk = 7000},
};
static const struct way *way;

static struct comm *world;
static struct exchange *x;
static struct arena *arena;
static struct exchange_limits limits = {.request_bytes = LIMIT, .answer_bytes = LIMIT, .deadline = 20};

static void open_exchange(size_t bytes)
{
    struct err e = {0};

    limits.request_bytes = limits.answer_bytes = bytes;
    limits.apart = way->apart;
    size_t cost = exchange_cost(comm_rank(world) == 0, comm_size(world), limits);
    BUG_ON(arena_open(&arena, "exchange", world->chunk < COMM_CHUNK ? 2 * cost + 65536 : cost, &e));
    BUG_ON(exchange_open(&x, world, limits, arena, &e));
    arena_freeze(arena); /* nothing is taken later */
}

static void close_exchange(void)
{
    exchange_close(x);
    arena_close(arena);
}

/* ---- followers ---- */

/* An answer as an exchange long closed would have sent it, in front of the right one. */
static void send_stale(const struct request *r)
{
    struct answer_head head = {.a = {.code = ERR_IO, .rows = 666, .sequence = r->sequence - 1, .bytes = (uint64_t)r->flags}};
    uint8_t *body = calloc(1, (size_t)r->flags + sizeof(head));

    memcpy(body, &head, sizeof(head));
    int slot = x->request->slot, inlined = r->flags <= INLINE ? r->flags : 0;
    if (x->box) {
        memset(x->box->slot[slot].answered, 0, INLINE);
        mail_answer(&x->box->slot[slot], &head);
        free(body);
        return;
    }
    MPI_Send(body, (int)sizeof(head) + inlined, MPI_BYTE, 0, TAG_ANSWER + slot, world->world);
    for (int at = 0; !inlined && at < r->flags; at += (int)world->chunk) {
        int piece = r->flags - at < (int)world->chunk ? r->flags - at : (int)world->chunk;

        MPI_Send(body, piece, MPI_BYTE, 0, TAG_ANSWER_BODY + slot, world->world);
    }
    free(body);
}

/* Written where it is read. */
static void answer_in_place(const struct request *r, const void *payload, size_t n)
{
    uint8_t *room = exchange_answer_room(x, n);
    bool right = holds(payload, r->bytes, (uint64_t)r->layer);

    BUG_ON((uintptr_t)room % 64 != 0);
    fill(room, n, (uint64_t)(r->layer + comm_rank(world)));
    exchange_answer(x, r, right ? OK : ERR_FORMAT, r->rows, right ? room : (const void *)"wrong", right ? n : 6);
}

static int follow(void)
{
    uint8_t *answer = malloc(LIMIT);
    const void *payload;
    struct request r;
    struct err e = {0};

    for (;;) {
        if (exchange_next(x, &r, &payload, &e)) {
            fprintf(stderr, "follower %d: %s\n", comm_rank(world), e.text);
            abort();
        }
        if (r.number[1] > 0) clock_sleep(r.number[1]);
        /* The request says by its layer what its payload must be. */
        bool right = r.layer < 0 || holds(payload, r.bytes, (uint64_t)r.layer);
        size_t n = (size_t)r.number[0];

        if (r.kind == KIND_PLACE) {
            answer_in_place(&r, payload, n);
            continue;
        }
        fill(answer, n, (uint64_t)(r.layer + comm_rank(world)));
        if (r.kind == KIND_STALE) send_stale(&r);
        if (r.kind == KIND_FAIL && r.flags == comm_rank(world)) exchange_answer(x, &r, ERR_LIMIT, 0, "too much", 9);
        else exchange_answer(x, &r, right ? OK : ERR_FORMAT, r.rows, right ? answer : (const void *)"wrong", right ? n : 6);
        memset(answer, 0, n); /* it is ours again */
        if (r.kind == KIND_STOP) break;
        if (r.kind == KIND_REOPEN) {
            close_exchange();
            open_exchange((size_t)r.flags);
        }
    }
    free(answer);
    return 0;
}

/* ---- the coordinator ---- */

static uint8_t *payloads[EXCHANGE_SLOTS];

/* Posts n bytes, the first `cut` of them as the first part, and asks for `back` bytes. */
static void post(int slot, int rank, int kind, size_t n, size_t cut, size_t back, int layer)
{
    struct request r = {.kind = kind, .layer = layer, .rows = layer + 1, .number = {(double)back}, .what = "test"};

    exchange_post(x, slot, rank, &r, payloads[slot], cut, payloads[slot] + cut, n - cut);
}

static void expect(int slot, int rank, size_t back, int layer)
{
    const void *payload = NULL;
    const struct answer *a = exchange_answer_of(x, slot, rank, &payload);

    assert_non_null(a);
    assert_int_equal(a->code, OK);
    assert_int_equal(a->rows, layer + 1);
    assert_int_equal(a->bytes, back);
    assert_int_equal((uintptr_t)payload % 64, 0);
    assert_true(holds(payload, back, (uint64_t)(layer + rank)));
}

/* Sizes around every border: none, inline, just over, in several pieces, the limit. */
static const size_t sizes[] = {0, 1, 63, 4096, INLINE - 1, INLINE, INLINE + 1, 40000, LIMIT - 1, LIMIT};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

static void every_size(void **state)
{
    struct err e = {0};

    (void)state;
    for (int i = 0; i < SIZES; i++) {
        size_t n = sizes[i], back = sizes[SIZES - 1 - i], cuts[] = {0, n / 3, n};

        fill(payloads[0], n, 5);
        for (int c = 0; c < 3; c++) {
            for (int rank = 1; rank < comm_size(world); rank++) post(0, rank, KIND_ECHO, n, cuts[c], back, 5);
            assert_int_equal(exchange_wait(x, 0, &e), OK);
            for (int rank = 1; rank < comm_size(world); rank++) expect(0, rank, back, 5);
        }
    }
}

/* After trouble: the exchange goes on. */
static void still_works(void)
{
    struct err e = {0};

    fill(payloads[0], LIMIT, 7);
    for (int rank = 1; rank < comm_size(world); rank++) post(0, rank, KIND_ECHO, LIMIT, 5, LIMIT, 7);
    assert_int_equal(exchange_wait(x, 0, &e), OK);
    for (int rank = 1; rank < comm_size(world); rank++) expect(0, rank, LIMIT, 7);
}

static void two_slots(void **state)
{
    struct err e = {0};
    int last = comm_size(world) - 1;

    (void)state;
    fill(payloads[0], LIMIT, 10);
    fill(payloads[1], LIMIT, 11);
    for (int round = 0; round < 20; round++) {
        size_t a = sizes[round % SIZES], b = sizes[(round * 7 + 3) % SIZES];

        for (int rank = 1; rank <= last; rank++) post(0, rank, KIND_ECHO, a, a / 2, b, 10);
        for (int rank = 1; rank <= last; rank++) post(1, rank, KIND_ECHO, b, 0, a, 11);
        exchange_progress(x);
        int first = round % 2;
        assert_int_equal(exchange_wait(x, first, &e), OK);
        assert_int_equal(exchange_wait(x, !first, &e), OK);
        for (int rank = 1; rank <= last; rank++) {
            expect(0, rank, b, 10);
            expect(1, rank, a, 11);
        }
    }
}

static void written_in_place(void **state)
{
    struct err e = {0};

    (void)state;
    for (int round = 0; round < 2 * SIZES; round++) {
        size_t n = sizes[round % SIZES], back = sizes[(round * 3 + 1) % SIZES], cut = n / 3;
        int slot = round % 2, layer = round % 7;

        for (int rank = 1; rank < comm_size(world); rank++) {
            struct request r = {.kind = KIND_PLACE, .layer = layer, .rows = layer + 1, .number = {(double)back}, .what = "place"};
            char *room = exchange_room(x, slot, rank, n);

            assert_int_equal((uintptr_t)room % 64, 0);
            fill((uint8_t *)room, n, (uint64_t)layer);
            /* in one part, in two parts where they lie, and with a part from elsewhere */
            memcpy(payloads[slot], room, n);
            if (round % 3 == 0) exchange_post(x, slot, rank, &r, room, n, NULL, 0);
            else if (round % 3 == 1) exchange_post(x, slot, rank, &r, room, cut, room + cut, n - cut);
            else exchange_post(x, slot, rank, &r, room, cut, payloads[slot] + cut, n - cut);
        }
        assert_int_equal(exchange_wait(x, slot, &e), OK);
        for (int rank = 1; rank < comm_size(world); rank++) expect(slot, rank, back, layer);
    }
}

/* Every way is the one it says it is. */
static void the_way_it_says(void **state)
{
    bool region = !way->apart && !way->no_region && !way->no_attach;

    (void)state;
    still_works();
    for (int rank = 1; rank < comm_size(world); rank++) {
        const void *payload;

        exchange_answer_of(x, 0, rank, &payload);
        assert_int_equal(world->by_mail[rank], true); /* the tests run on one host */
        assert_int_equal(x->lanes[rank].mail != NULL, !way->apart);
        assert_int_equal(x->offer[rank], region ? OFFER_TAKEN : OFFER_NONE);
        bool inside =
            x->region.base && (const char *)payload > x->region.base && (const char *)payload < x->region.base + x->region.bytes;
        assert_int_equal(inside, !way->apart && !way->no_region);
    }
    if (region || way->apart) assert_null(exchange_note(x));
    else assert_non_null(exchange_note(x));
}

static void only_who_was_asked(void **state)
{
    struct err e = {0};

    (void)state;
    fill(payloads[0], 100, 3);
    for (int asked = 1; asked < comm_size(world); asked++) {
        post(0, asked, KIND_ECHO, 100, 0, 10, 3);
        assert_null(exchange_answer_of(x, 0, asked, NULL));
        assert_int_equal(exchange_wait(x, 0, &e), OK);
        for (int rank = 1; rank < comm_size(world); rank++) {
            if (rank == asked) expect(0, rank, 10, 3);
            else assert_null(exchange_answer_of(x, 0, rank, NULL));
        }
    }
    assert_int_equal(exchange_wait(x, 1, &e), OK); /* nothing was posted there */
}

/* A failed answer does not cost the others, and the exchange goes on. */
static void failed_answer(void **state)
{
    struct err e = {0};
    char expected[256];

    (void)state;
    for (int bad = 1; bad < comm_size(world); bad++) {
        struct request r = {.kind = KIND_FAIL, .layer = -1, .flags = bad};

        for (int rank = 1; rank < comm_size(world); rank++) exchange_post(x, 1, rank, &r, NULL, 0, NULL, 0);
        assert_int_equal(exchange_wait(x, 1, &e), ERR_LIMIT);
        snprintf(expected, sizeof(expected), "rank %d (%s): too much", bad, comm_peer(world, bad)->host);
        assert_string_equal(e.text, expected);
        assert_int_equal(e.code, ERR_LIMIT);
    }
    still_works();
}

/* An error in one slot leaves nothing in flight in the other: the caller goes on with another request there. */
static void failed_while_the_other_slot_is_in_flight(void **state)
{
    struct request r = {.kind = KIND_FAIL, .layer = -1, .flags = 1};
    struct err e = {0};

    (void)state;
    fill(payloads[1], LIMIT, 6);
    exchange_post(x, 0, 1, &r, NULL, 0, NULL, 0);
    for (int rank = 1; rank < comm_size(world); rank++) post(1, rank, KIND_ECHO, LIMIT, 9, LIMIT, 6);
    assert_int_equal(exchange_wait(x, 0, &e), ERR_LIMIT);
    for (int rank = 1; rank < comm_size(world); rank++) post(1, rank, KIND_ECHO, 10, 9, 20, 6);
    assert_int_equal(exchange_wait(x, 1, &e), OK);
    for (int rank = 1; rank < comm_size(world); rank++) expect(1, rank, 20, 6);
}

static void reopen(size_t bytes)
{
    struct request r = {.kind = KIND_REOPEN, .layer = -1, .flags = (int32_t)bytes};
    struct err e = {0};

    for (int rank = 1; rank < comm_size(world); rank++) exchange_post(x, 0, rank, &r, NULL, 0, NULL, 0);
    assert_int_equal(exchange_wait(x, 0, &e), OK);
    close_exchange();
    open_exchange(bytes);
}

/* The coordinator is first to post in the new exchange, while followers still close the old one; and answers that nobody
 * waited for do not turn up in it. */
static void closed_and_opened_again(void **state)
{
    struct err e = {0};

    (void)state;
    fill(payloads[0], LIMIT, 8);
    fill(payloads[1], LIMIT, 9);
    for (int round = 0; round < 6; round++) {
        size_t now = round % 2 ? LIMIT : SMALL;

        for (int rank = 1; rank < comm_size(world); rank++) post(1, rank, KIND_ECHO, SMALL, 0, x->limits.answer_bytes, 9);
        reopen(now); /* slot 1 was never waited for */
        for (int rank = 1; rank < comm_size(world); rank++) post(0, rank, KIND_ECHO, now, 1, now, 8);
        for (int rank = 1; rank < comm_size(world); rank++) post(1, rank, KIND_ECHO, now, 1, 77, 9);
        assert_int_equal(exchange_wait(x, 0, &e), OK);
        assert_int_equal(exchange_wait(x, 1, &e), OK);
        for (int rank = 1; rank < comm_size(world); rank++) {
            expect(0, rank, now, 8);
            expect(1, rank, 77, 9);
        }
    }
}

/* A forged answer with an older sequence number, without and with a body, also one that is longer than any of this exchange. */
static void stale_answers_are_dropped(void **state)
{
    static const int bodies[] = {0, 100, INLINE, INLINE + 1, LIMIT};
    struct err e = {0};

    (void)state;
    for (int small = 0; small < 2; small++) {
        for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
            struct request r = {.kind = KIND_STALE, .layer = 4, .rows = 5, .flags = bodies[i], .number = {1500}};

            fill(payloads[0], 1500, 4);
            for (int rank = 1; rank < comm_size(world); rank++) exchange_post(x, 0, rank, &r, payloads[0], 1500, NULL, 0);
            assert_int_equal(exchange_wait(x, 0, &e), OK);
            for (int rank = 1; rank < comm_size(world); rank++) expect(0, rank, 1500, 4);
        }
        reopen(small ? LIMIT : SMALL);
    }
}

/* Slow is not lost, and an idle rank beside a slow one is kept alive by pings: the deadline is shorter than the sum of it. */
static void slow_ranks_and_pings(void **state)
{
    struct err e = {0};
    double deadline = x->limits.deadline;

    (void)state;
    x->limits.deadline = 1.2; /* of the coordinator only: pings every 0.15 s */
    for (int round = 0; round < 3; round++) {
        struct request r = {.kind = KIND_ECHO, .layer = -1, .number = {0, 0.25}};

        exchange_post(x, 0, 1, &r, NULL, 0, NULL, 0);
        assert_int_equal(exchange_wait(x, 0, &e), OK);
    }
    for (double start = clock_now(); clock_now() - start < 0.3;) exchange_ping(x);
    x->limits.deadline = deadline;
    still_works(); /* the pings were swallowed */
}

/* A request may take longer than others: its own deadline counts, longer or shorter. */
static void deadline_of_its_own(void **state)
{
    struct request r = {.kind = KIND_ECHO, .layer = -1, .number = {0, 0.9}, .deadline = 10};
    double deadline = x->limits.deadline;
    struct err e = {0};

    (void)state;
    x->limits.deadline = 0.3;
    for (int rank = 1; rank < comm_size(world); rank++) exchange_post(x, 0, rank, &r, NULL, 0, NULL, 0);
    assert_int_equal(exchange_wait(x, 0, &e), OK);
    x->limits.deadline = deadline;
    still_works();
}

/* A coordinator that was away for longer than the deadline still takes the answer that lies there. */
static void late_coordinator(void **state)
{
    struct err e = {0};
    double deadline = x->limits.deadline;

    (void)state;
    fill(payloads[0], LIMIT, 2);
    x->limits.deadline = 1;
    for (int rank = 1; rank < comm_size(world); rank++) post(0, rank, KIND_ECHO, LIMIT, 0, LIMIT, 2);
    clock_sleep(1.1);
    assert_int_equal(exchange_wait(x, 0, &e), OK);
    for (int rank = 1; rank < comm_size(world); rank++) expect(0, rank, LIMIT, 2);
    x->limits.deadline = deadline;
}

static void statistics(void **state)
{
    struct exchange_stats before = *exchange_stats(x), after;
    struct err e = {0};
    int followers = comm_size(world) - 1;

    (void)state;
    fill(payloads[0], 100, 1);
    for (int rank = 1; rank <= followers; rank++) post(0, rank, KIND_ECHO, 100, 0, 20, 1);
    assert_int_equal(exchange_wait(x, 0, &e), OK);
    after = *exchange_stats(x);
    assert_int_equal(after.messages - before.messages, 2 * followers);
    assert_int_equal(after.bytes_out - before.bytes_out, 100 * followers);
    assert_int_equal(after.bytes_back - before.bytes_back, 20 * followers);
    assert_true(after.wait_seconds > before.wait_seconds);
}

static void limits_refuse(void **state)
{
    struct exchange *none;
    struct arena *small;
    struct err e = {0};
    size_t cost = exchange_cost(true, comm_size(world), limits);

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct exchange_limits l = {.request_bytes = (size_t)1 << (i == 0 ? 50 : 20), .answer_bytes = 10, .deadline = 1};

        if (i == 1) l.answer_bytes = SIZE_MAX / 4;
        assert_int_equal(arena_open(&small, "small", i == 2 ? cost / 2 : cost, &e), OK);
        if (i == 2) l = limits;
        assert_int_equal(exchange_open(&none, world, l, small, &e), ERR_LIMIT);
        assert_null(none);
        assert_true(e.text[0]);
        arena_close(small);
    }
}

/* SIGTERM: a wait ends with STOPPED though the answers came, and the followers can still be told to end. */
static void stopped(void **state)
{
    struct err e = {0};

    (void)state;
    stop_install();
    raise(SIGUSR1);
    fill(payloads[0], 100, 1);
    post(0, 1, KIND_ECHO, 100, 0, 20, 1);
    assert_int_equal(exchange_wait(x, 0, &e), OK); /* this one only asks to finish the step */
    raise(SIGTERM);
    post(0, 1, KIND_ECHO, 100, 0, 20, 1);
    assert_int_equal(exchange_wait(x, 0, &e), STOPPED);
    post(0, 1, KIND_ECHO, 100, 0, 20, 1);
    assert_int_equal(exchange_wait(x, 0, &e), STOPPED);
    stop_reset();
    still_works();
}

static int lead(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size),
        cmocka_unit_test(the_way_it_says),
        cmocka_unit_test(two_slots),
        cmocka_unit_test(written_in_place),
        cmocka_unit_test(only_who_was_asked),
        cmocka_unit_test(failed_answer),
        cmocka_unit_test(statistics),
        cmocka_unit_test(limits_refuse),
        cmocka_unit_test(closed_and_opened_again),
        cmocka_unit_test(stale_answers_are_dropped),
        cmocka_unit_test(stopped),
        cmocka_unit_test(failed_while_the_other_slot_is_in_flight),
    };
    const struct CMUnitTest waits[] = {
        cmocka_unit_test(late_coordinator),
        cmocka_unit_test(slow_ranks_and_pings),
        cmocka_unit_test(deadline_of_its_own),
    };
    struct request r = {.kind = KIND_STOP, .layer = -1};
    struct err e = {0};
    int failed = 0;

    for (int s = 0; s < EXCHANGE_SLOTS; s++) payloads[s] = malloc(LIMIT);
    if (way - ways < 2)
        failed += cmocka_run_group_tests(waits, NULL, NULL); /* it is the same in the other ways, and takes its time */
    failed += cmocka_run_group_tests(tests, NULL, NULL);
    for (int rank = 1; rank < comm_size(world); rank++) exchange_post(x, 0, rank, &r, NULL, 0, NULL, 0);
    if (exchange_wait(x, 0, &e)) failed++;
    for (int s = 0; s < EXCHANGE_SLOTS; s++) free(payloads[s]);
    return failed;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    int failed = 0;

    if (comm_open(&world, &argc, &argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return e.code;
    }
    if (comm_size(world) == 1) printf("1..0 # nobody to talk to\n");
    for (way = ways; way < ways + sizeof(ways) / sizeof(ways[0]) && comm_size(world) > 1; way++) {
        if (comm_rank(world) == 0) printf("# %s\n", way->name);
        world->chunk = way->chunk;
        world->no_region = way->no_region;
        world->no_attach = way->no_attach;
        open_exchange(LIMIT);
        failed += comm_rank(world) == 0 ? lead() : follow();
        close_exchange();
    }
    comm_close(world, OK);
    return failed;
}
