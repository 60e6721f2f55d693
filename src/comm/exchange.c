/* What both sides of the exchange need: waiting, pieces of MPI, memory.  exchange_lead.c and exchange_lane.c are the coordinator's, exchange_follow.c the follower's side. */
#include "comm/exchange.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/mailbox.h"

/* Waking a process takes about 30 us, and those who share a processor should not wait for each other's spinning. */
static const double SPIN_SECONDS = 2e-3, CROWDED_SECONDS = 50e-6;
static const double LOOK_SECONDS = 0.05, SLEEP_SECONDS = 1e-3, BELL_SECONDS = 20e-3, SETTLE_SECONDS = 0.1;
/* So long nobody else is let in while we look: one burst, because the other may be waiting for this processor. */
static const double RELAX_SECONDS = 0.2e-6;
/* A longer gap between two looks means that this process did not run (it was stopped, or waited for the disk): nobody else was silent then. */
static const double ABSENT_SECONDS = 1;

/* ---- waiting ---- */

struct pause pause_begin(const struct exchange *x)
{
    double now = clock_now();

    return (struct pause){.start = now,
                          .now = now,
                          .look = now,
                          .idle = now,
                          .crowded = x->crowded,
                          .yields = x->comm->yields,
                          .bell = x->bell,
                          .seen = x->bell ? bell_count(x->bell) : 0};
}

static void relax(const struct pause *p)
{
    for (int i = 0; i < 16 && (!p->bell || bell_count(p->bell) == p->seen); i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        __asm__ volatile("" ::: "memory");
#endif
    }
}

/* Between two looks. */
static void rest(const struct pause *p, bool rings)
{
    double waited = p->now - p->idle;
    bool spins = waited < (p->crowded ? CROWDED_SECONDS : SPIN_SECONDS) || p->now < p->quick;

    if (!p->crowded) {
        if (!rings && waited < CROWDED_SECONDS) return; /* to look is to call MPI, which takes its time */
        if (waited < RELAX_SECONDS) {
            relax(p);
            return;
        }
    }
    if (spins) {
        if (rings || !p->yields) sched_yield(); /* else the look itself yields */
        return;
    }
    if (rings && p->bell) bell_wait(p->bell, p->seen, BELL_SECONDS);
    else clock_sleep(waited / 8 < SLEEP_SECONDS ? waited / 8 : SLEEP_SECONDS);
}

bool pause_step(struct pause *p, bool rings)
{
    double before = p->now;

    rest(p, rings);
    if (p->bell) p->seen = bell_count(p->bell);
    p->now = clock_now();
    if (p->now - before > ABSENT_SECONDS) p->start += p->now - before;
    if (p->now - p->look < LOOK_SECONDS) return false;
    p->look = p->now;
    if (p->stop <= 0 && stop_asked() == STOP_NOW) p->stop = p->now;
    return true;
}

/* ---- pieces ---- */

int exchange_move(struct exchange *x, enum direction where, int rank, void *bytes, size_t n_bytes, int tag, MPI_Request *q, int n,
                  int *code)
{
    MPI_Comm world = x->comm->world;

    for (char *at = bytes; n_bytes > 0 && !*code;) {
        size_t piece = n_bytes < x->comm->chunk ? n_bytes : x->comm->chunk;

        if (where == TO) *code = MPI_Isend(at, (int)piece, MPI_BYTE, rank, tag, world, &q[n]);
        else *code = MPI_Irecv(at, (int)piece, MPI_BYTE, rank, tag, world, &q[n]);
        if (!*code) n++;
        at += piece;
        n_bytes -= piece;
    }
    return n;
}

void exchange_place(char *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from) memcpy(to, from, bytes);
}

void exchange_settle(struct exchange *x, MPI_Request *q, int n, bool receives)
{
    struct pause p = pause_begin(x);
    int done = 0;

    if (x->comm->dirty) return;
    for (int i = 0; receives && i < n; i++)
        if (q[i] != MPI_REQUEST_NULL) MPI_Cancel(&q[i]);
    while (MPI_Testall(n, q, &done, MPI_STATUSES_IGNORE) == MPI_SUCCESS && !done && p.now - p.start < SETTLE_SECONDS)
        pause_step(&p, false);
    if (!done) x->comm->dirty = true;
}

/* ---- memory ---- */

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

size_t exchange_share(struct share *share, char *begin, struct exchange_limits limits)
{
    size_t at = 0;

    for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
        if (share) share->request[slot] = begin + at;
        at += lines(limits.request_bytes);
        if (share) share->answer[slot] = begin + at;
        at += lines(limits.answer_bytes);
    }
    return at;
}

/* A head, and the pieces of one part or two. */
static MPI_Request *take_requests(struct arena_taker *t, size_t bytes, size_t chunk)
{
    return arena_take(t, bytes / chunk + 3, sizeof(MPI_Request));
}

/* Payloads have room here that is not touched when they get a place in the region: the pages then cost nothing. */
static void take_follower(struct arena_taker *t, struct exchange *x, size_t chunk)
{
    x->request = arena_take(t, 1, sizeof(*x->request) + INLINE);
    x->answer = arena_take(t, 1, sizeof(*x->answer) + INLINE);
    x->buffer = arena_take(t, x->limits.request_bytes, 1);
    x->room = arena_take(t, x->limits.answer_bytes, 1);
    x->in = take_requests(t, x->limits.request_bytes, chunk);
    x->out = take_requests(t, x->limits.answer_bytes, chunk);
}

static void take_lane(struct arena_taker *t, struct lane *l, struct exchange_limits limits, size_t chunk)
{
    *l = (struct lane){.state = FREE};
    l->request = arena_take(t, 1, sizeof(*l->request) + INLINE);
    l->answer = arena_take(t, 1, sizeof(*l->answer) + INLINE);
    l->room = arena_take(t, limits.request_bytes, 1);
    l->buffer = arena_take(t, limits.answer_bytes, 1);
    l->out = take_requests(t, limits.request_bytes, chunk);
    l->in = take_requests(t, limits.answer_bytes, chunk);
}

/* How many of the ranks answer. */
static int answerers(int size, struct exchange_limits limits)
{
    return limits.ranks > 0 && limits.ranks < size ? limits.ranks : size;
}

size_t exchange_cost(bool coordinator, int size, struct exchange_limits limits)
{
    int ranks = answerers(size, limits), lanes = ranks - (limits.asker < ranks);
    struct arena_taker t = {0};
    struct exchange x = {.limits = limits};
    struct lane lane;

    arena_take(&t, 1, sizeof(x));
    if (!coordinator) {
        take_follower(&t, &x, COMM_CHUNK);
        return t.bytes;
    }
    arena_take(&t, (size_t)EXCHANGE_SLOTS * (size_t)ranks, sizeof(lane));
    arena_take(&t, (size_t)ranks, sizeof(enum offer_state));
    size_t rest = t.bytes;
    take_lane(&t, &lane, limits, COMM_CHUNK);
    return rest + (t.bytes - rest) * EXCHANGE_SLOTS * (size_t)lanes;
}

size_t exchange_costs(int rank, int size, struct exchange_limits limits, int coordinators)
{
    size_t bytes = exchange_cost(rank == 0, size, limits);

    for (int q = 1; q < coordinators; q++) {
        limits.asker = q;
        bytes += exchange_cost(rank == q, size, limits);
    }
    limits.asker = 0, limits.ranks = coordinators;
    if (coordinators > 1 && rank < coordinators) bytes += exchange_cost(rank == 0, size, limits);
    return bytes;
}

static void take_coordinator(struct arena_taker *t, struct exchange *x)
{
    x->lanes = arena_take(t, (size_t)EXCHANGE_SLOTS * (size_t)x->ranks, sizeof(*x->lanes));
    x->offer = arena_take(t, (size_t)x->ranks, sizeof(*x->offer));
    for (int i = 0; x->lanes && i < EXCHANGE_SLOTS * x->ranks; i++) {
        x->lanes[i] = (struct lane){.state = FREE};
        if (i % x->ranks != x->asker) take_lane(t, &x->lanes[i], x->limits, x->comm->chunk); /* nobody posts to itself */
    }
}

status exchange_open(struct exchange **out, struct comm *c, struct exchange_limits limits, struct arena *a, struct err *e)
{
    const size_t most = (size_t)1 << 40;
    size_t asked = limits.request_bytes > limits.answer_bytes ? limits.request_bytes : limits.answer_bytes;
    struct arena_taker t = {.arena = a, .e = e};

    *out = NULL;
    BUG_ON(c->size < 2 || !(limits.deadline > 0) || limits.asker < 0 || limits.asker >= c->size);
    BUG_ON(limits.channel < 0 || limits.channel >= c->channels);
    if (asked > most) return err_set(e, ERR_LIMIT, "a message between ranks may have %zu bytes, not %zu", most, asked);
    struct exchange *x = arena_take(&t, 1, sizeof(*x));
    if (!x) return e->code;
    *x = (struct exchange){.comm = c,
                           .limits = limits,
                           .asker = limits.asker,
                           .ranks = answerers(c->size, limits),
                           .pinged = clock_now(),
                           .spoke = clock_now(),
                           .region = {.file = -1}};
    if (c->rank == x->asker) take_coordinator(&t, x);
    else take_follower(&t, x, c->chunk);
    if (t.failed) return e->code;

    int threads = limits.threads > 1 ? limits.threads : 1;
    x->crowded = (int64_t)c->peers[c->rank].ranks_on_host * threads > c->host_cores[c->rank];
    if (!limits.apart) snprintf(x->note, sizeof(x->note), "%s", c->apart);
    if (!limits.apart && c->by_mail[c->rank]) x->bell = office_bell(c, c->rank);
    if (x->bell && x->lanes) exchange_open_lanes(x);
    else if (x->bell && c->by_mail[x->asker]) x->box = office_box(c, limits.channel, c->rank);
    *out = x;
    return OK;
}

void exchange_close(struct exchange *x)
{
    if (!x) return;
    if (x->lanes) exchange_close_lanes(x);
    if (x->listening) exchange_settle(x, x->in, 1, true);
    if (!x->comm->dirty) region_close(&x->region);
}

void exchange_stats_add(struct exchange_stats *to, const struct exchange_stats *s)
{
    to->messages += s->messages;
    to->bytes_out += s->bytes_out;
    to->bytes_back += s->bytes_back;
    to->wait_seconds += s->wait_seconds;
}

const struct exchange_stats *exchange_stats(const struct exchange *x)
{
    return &x->stats;
}

int exchange_lost(const struct exchange *x)
{
    return x->lost - 1;
}

const char *exchange_note(const struct exchange *x)
{
    return x->note[0] ? x->note : NULL;
}
