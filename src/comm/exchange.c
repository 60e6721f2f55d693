#include "comm/exchange.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/exchange_internal.h"

static const double LOOK_SECONDS = 0.05, SPIN_SECONDS = 50e-6, SLEEP_SECONDS = 1e-3, SETTLE_SECONDS = 0.1;
/* A longer gap between two looks means that this process did not run (it was stopped, or waited for the disk): nobody else was silent then. */
static const double ABSENT_SECONDS = 1;
/* After a silence of its own the coordinator takes the end of a follower for the answer to it, for so long. */
static const double SILENT_SECONDS = 5;
/* For answers under way when a signal comes: mpirun leaves 1 s. */
static const double STOP_SECONDS = 0.3;

static const struct request_head PING = {.r = {.kind = KIND_PING, .layer = -1, .what = "ping"}};

/* ---- both sides ---- */

struct pause pause_begin(void)
{
    double now = clock_now();

    return (struct pause){.start = now, .now = now, .look = now};
}

bool pause_step(struct pause *p)
{
    double waited = p->now - p->start, before = p->now;

    if (waited < SPIN_SECONDS || p->now < p->quick) sched_yield();
    else clock_sleep(waited / 8 < SLEEP_SECONDS ? waited / 8 : SLEEP_SECONDS);
    p->now = clock_now();
    if (p->now - before > ABSENT_SECONDS) p->start += p->now - before;
    if (p->now - p->look < LOOK_SECONDS) return false;
    p->look = p->now;
    if (p->stop <= 0 && stop_asked() == STOP_NOW) p->stop = p->now;
    return true;
}

int exchange_send(struct exchange *x, MPI_Request *q, int n, const void *from, size_t bytes, int to, int tag, int *code)
{
    const char *at = from;

    while (bytes > 0 && !*code) {
        size_t piece = bytes < x->comm->chunk ? bytes : x->comm->chunk;

        *code = MPI_Isend(at, (int)piece, MPI_BYTE, to, tag, x->comm->world, &q[n]);
        if (!*code) n++;
        at += piece;
        bytes -= piece;
    }
    return n;
}

int exchange_receive(struct exchange *x, MPI_Request *q, int n, void *to, size_t bytes, int from, int tag, int *code)
{
    char *at = to;

    while (bytes > 0 && !*code) {
        size_t piece = bytes < x->comm->chunk ? bytes : x->comm->chunk;

        *code = MPI_Irecv(at, (int)piece, MPI_BYTE, from, tag, x->comm->world, &q[n]);
        if (!*code) n++;
        at += piece;
        bytes -= piece;
    }
    return n;
}

void exchange_settle(struct exchange *x, MPI_Request *q, int n, bool receives)
{
    struct pause p = pause_begin();
    int done = 0;

    if (x->comm->dirty) return;
    for (int i = 0; receives && i < n; i++)
        if (q[i] != MPI_REQUEST_NULL) MPI_Cancel(&q[i]);
    while (MPI_Testall(n, q, &done, MPI_STATUSES_IGNORE) == MPI_SUCCESS && !done && p.now - p.start < SETTLE_SECONDS)
        pause_step(&p);
    if (!done) x->comm->dirty = true;
}

/* ---- memory ---- */

/* A head, and the pieces of one part or two. */
static MPI_Request *take_requests(struct arena_taker *t, size_t bytes, size_t chunk)
{
    return arena_take(t, bytes / chunk + 3, sizeof(MPI_Request));
}

static void take_follower(struct arena_taker *t, struct exchange *x, size_t chunk)
{
    x->request = arena_take(t, 1, sizeof(*x->request) + INLINE);
    x->answer = arena_take(t, 1, sizeof(*x->answer) + INLINE);
    x->buffer = arena_take(t, x->limits.request_bytes, 1);
    x->in = take_requests(t, x->limits.request_bytes, chunk);
    x->out = take_requests(t, x->limits.answer_bytes, chunk);
}

static void take_lane(struct arena_taker *t, struct lane *l, struct exchange_limits limits, size_t chunk)
{
    *l = (struct lane){.state = FREE};
    l->request = arena_take(t, 1, sizeof(*l->request) + INLINE);
    l->answer = arena_take(t, 1, sizeof(*l->answer) + INLINE);
    l->buffer = arena_take(t, limits.answer_bytes, 1);
    l->out = take_requests(t, limits.request_bytes, chunk);
    l->in = take_requests(t, limits.answer_bytes, chunk);
}

size_t exchange_cost(bool coordinator, int size, struct exchange_limits limits)
{
    struct arena_taker t = {0};
    struct exchange x = {.limits = limits};
    struct lane lane;

    arena_take(&t, 1, sizeof(x));
    if (!coordinator) {
        take_follower(&t, &x, COMM_CHUNK);
        return t.bytes;
    }
    arena_take(&t, (size_t)EXCHANGE_SLOTS * (size_t)size, sizeof(lane));
    size_t rest = t.bytes;
    take_lane(&t, &lane, limits, COMM_CHUNK);
    return rest + (t.bytes - rest) * EXCHANGE_SLOTS * (size_t)(size - 1);
}

status exchange_open(struct exchange **out, struct comm *c, struct exchange_limits limits, struct arena *a, struct err *e)
{
    const size_t most = (size_t)1 << 40;
    size_t asked = limits.request_bytes > limits.answer_bytes ? limits.request_bytes : limits.answer_bytes;
    struct arena_taker t = {.arena = a, .e = e};

    *out = NULL;
    BUG_ON(c->size < 2 || !(limits.deadline > 0));
    if (asked > most) return err_set(e, ERR_LIMIT, "a message between ranks may have %zu bytes, not %zu", most, asked);
    struct exchange *x = arena_take(&t, 1, sizeof(*x));
    if (x) *x = (struct exchange){.comm = c, .limits = limits, .pinged = clock_now(), .spoke = clock_now()};
    if (x && c->rank != 0) take_follower(&t, x, c->chunk);
    if (x && c->rank == 0) {
        x->lanes = arena_take(&t, (size_t)EXCHANGE_SLOTS * (size_t)c->size, sizeof(*x->lanes));
        for (int i = 0; x->lanes && i < EXCHANGE_SLOTS * c->size; i++) {
            x->lanes[i] = (struct lane){.state = FREE};
            if (i % c->size != 0) take_lane(&t, &x->lanes[i], limits, c->chunk); /* nobody posts to itself */
        }
    }
    if (t.failed) return e->code;
    *out = x;
    return OK;
}

const struct exchange_stats *exchange_stats(const struct exchange *x)
{
    return &x->stats;
}

/* ---- the coordinator's lanes ---- */

static struct lane *lane_of(const struct exchange *x, int slot, int rank)
{
    BUG_ON(!x->lanes || slot < 0 || slot >= EXCHANGE_SLOTS || rank < 1 || rank >= x->comm->size);
    return &x->lanes[slot * x->comm->size + rank];
}

static bool busy(const struct lane *l)
{
    return l->state != FREE && l->state != DONE;
}

/* Something is sent now.  After a silence that was too long the followers are ending the job, and that they go is not their fault. */
static void speak(struct exchange *x, double now)
{
    if (now - x->spoke > x->limits.deadline) x->silent = now;
    x->spoke = now;
}

/* The exchange is over: `why` is what every later wait returns, and no request is left behind. */
static void give_up(struct exchange *x, status code, const char *why)
{
    err_set(&x->over, code, "%s", why);
    for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
        for (int rank = 1; rank < x->comm->size; rank++) {
            struct lane *l = lane_of(x, slot, rank);

            if (!busy(l)) continue;
            exchange_settle(x, l->in, l->n_in, true);
            exchange_settle(x, l->out, l->n_out, false);
            l->state = FREE;
        }
    }
}

static void say_lost(struct exchange *x, const struct lane *l, int rank, double now, const char *reason)
{
    const struct request *r = &l->request->r;
    struct str text = {0};

    str_addf(&text, "rank %d (%s) was lost: no answer for %.1f s to '%.*s'", rank, x->comm->peers[rank].host, now - l->posted,
             (int)sizeof(r->what), r->what);
    if (r->layer >= 0) str_addf(&text, ", layer %d", r->layer);
    str_addf(&text, " (%s)", reason);
    give_up(x, ERR_RANK, text.text);
    str_free(&text);
}

static void say_broken(struct exchange *x, const struct lane *l, int rank, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;

    MPI_Error_string(code, text, &n);
    say_lost(x, l, rank, clock_now(), text);
}

static int receive_head(struct exchange *x, struct lane *l, int slot, int rank)
{
    int code = MPI_Irecv(l->answer, sizeof(*l->answer) + INLINE, MPI_BYTE, rank, TAG_ANSWER + slot, x->comm->world, &l->in[0]);

    l->n_in = code ? 0 : 1;
    l->state = HEAD;
    return code;
}

/* An answer to an exchange that was closed without waiting for it.  Its body may be longer than our buffer: then MPI cuts it. */
static int receive_stale(struct exchange *x, struct lane *l, int slot, int rank)
{
    size_t most = x->limits.answer_bytes / x->comm->chunk + 3; /* as many requests were taken */
    int code = 0;

    l->state = STALE;
    for (size_t left = (size_t)l->answer->a.bytes; left > 0 && !code;) {
        size_t piece = left < x->comm->chunk ? left : x->comm->chunk;
        size_t room = piece < x->limits.answer_bytes ? piece : x->limits.answer_bytes;

        if ((size_t)l->n_in == most) return MPI_ERR_TRUNCATE;
        code = MPI_Irecv(l->buffer, (int)room, MPI_BYTE, rank, TAG_ANSWER_BODY + slot, x->comm->world, &l->in[l->n_in]);
        if (!code) l->n_in++;
        left -= piece;
    }
    return code;
}

static int take_head(struct exchange *x, struct lane *l, int slot, int rank)
{
    const struct answer *a = &l->answer->a;
    bool current = a->sequence == l->request->r.sequence;
    int code = 0;

    BUG_ON(a->sequence > l->request->r.sequence || (current && a->bytes > x->limits.answer_bytes));
    l->n_in = 0;
    if (!current) return a->bytes <= INLINE ? receive_head(x, l, slot, rank) : receive_stale(x, l, slot, rank);
    l->state = BODY;
    l->payload = l->answer + 1;
    if (a->bytes <= INLINE) return 0;
    l->payload = l->buffer;
    l->n_in = exchange_receive(x, l->in, 0, l->buffer, (size_t)a->bytes, rank, TAG_ANSWER_BODY + slot, &code);
    return code;
}

/* Moves a lane as far as it goes now. */
static void advance(struct exchange *x, int slot, int rank)
{
    struct lane *l = lane_of(x, slot, rank);
    int in = 1, out = 0, code = 0;

    while (busy(l) && in && !code) {
        enum lane_state before = l->state;

        code = MPI_Testall(l->n_in, l->in, &in, MPI_STATUSES_IGNORE);
        if (before == STALE && code) code = 0, in = 1; /* it was cut */
        if (code || !in) break;
        l->heard = clock_now();
        if (before == HEAD) code = take_head(x, l, slot, rank);
        else if (before == STALE) code = receive_head(x, l, slot, rank);
        else break;
    }
    if (!code && busy(l)) code = MPI_Testall(l->n_out, l->out, &out, MPI_STATUSES_IGNORE);
    if (code) {
        say_broken(x, l, rank, code);
        return;
    }
    l->sent = out;
    if (l->state == BODY && in && out) {
        l->state = DONE;
        x->stats.messages++;
        x->stats.bytes_back += l->answer->a.bytes;
    }
}

/* Moves all lanes.  Those of the other slot, too: a follower stands still until its answer there was taken. */
static void advance_all(struct exchange *x)
{
    for (int slot = 0; slot < EXCHANGE_SLOTS; slot++)
        for (int rank = 1; rank < x->comm->size && !x->over.code; rank++)
            if (busy(lane_of(x, slot, rank))) advance(x, slot, rank);
}

void exchange_post(struct exchange *x, int slot, int rank, const struct request *r, const void *part0, size_t bytes0,
                   const void *part1, size_t bytes1)
{
    struct lane *l = lane_of(x, slot, rank);
    size_t bytes = bytes0 + bytes1, head = sizeof(*l->request);
    int code;

    BUG_ON(busy(l) || r->kind < 0 || bytes > x->limits.request_bytes);
    if (x->over.code) return;
    if (x->collected[slot]) { /* a new round: the answers of the last one are not answers to it */
        for (int other = 1; other < x->comm->size; other++) lane_of(x, slot, other)->state = FREE;
        x->collected[slot] = false;
    }
    *l->request = (struct request_head){.r = *r, .bytes0 = bytes0, .slot = slot};
    l->request->r.sequence = ++x->comm->sequence;
    l->request->r.bytes = bytes;
    l->posted = l->heard = clock_now();
    speak(x, l->posted);
    l->n_out = 0;
    l->sent = false;
    code = receive_head(x, l, slot, rank);
    if (bytes <= INLINE) {
        if (bytes0) memcpy(l->request + 1, part0, bytes0);
        if (bytes1) memcpy((char *)(l->request + 1) + bytes0, part1, bytes1);
        head += bytes;
    }
    if (!code) code = MPI_Isend(l->request, (int)head, MPI_BYTE, rank, TAG_REQUEST, x->comm->world, &l->out[0]);
    if (!code) l->n_out = 1;
    if (bytes > INLINE) {
        l->n_out = exchange_send(x, l->out, l->n_out, part0, bytes0, rank, TAG_REQUEST_BODY + slot, &code);
        l->n_out = exchange_send(x, l->out, l->n_out, part1, bytes1, rank, TAG_REQUEST_BODY + slot, &code);
    }
    x->stats.messages++;
    x->stats.bytes_out += bytes;
    if (code) say_broken(x, l, rank, code);
}

/* One look at the ranks that are waited for; whoever is lost ends the exchange.  The deadline of a rank counts from the post, but a
 * coordinator that comes late itself leaves at least half of it to hear what is waiting inside MPI. */
static void look_at(struct exchange *x, int slot, const struct pause *p)
{
    char reason[64];

    if (p->now - x->spoke > x->limits.deadline) x->silent = p->now;
    for (int rank = 1; rank < x->comm->size && !x->over.code; rank++) {
        struct lane *l = lane_of(x, slot, rank);
        bool gone = (busy(l) || p->stop > 0) && comm_peer_gone(x->comm, rank);
        double deadline = l->request->r.deadline > 0 ? l->request->r.deadline : x->limits.deadline;

        if (gone) advance(x, slot, rank); /* its last answer may have come before it went */
        if (x->over.code || (!busy(l) && !(gone && p->stop > 0))) continue;
        if (gone && x->silent > 0 && p->now - x->silent < SILENT_SECONDS) {
            give_up(x, STOPPED, "the coordinator was silent for too long, and the others have ended the job");
        } else if (gone) {
            if (!busy(l)) *l->request = (struct request_head){.r = {.layer = -1, .what = "end of the job"}}, l->posted = p->now;
            say_lost(x, l, rank, p->now, "its process is gone");
        } else if (p->now - l->heard > deadline && p->now - p->start > deadline / 2) {
            snprintf(reason, sizeof(reason), "deadline %.1f s", deadline);
            say_lost(x, l, rank, p->now, reason);
        }
    }
    if (!x->over.code && p->stop > 0 && p->now - p->stop > STOP_SECONDS) give_up(x, STOPPED, "stopped by a signal");
}

static bool any_busy(const struct exchange *x, int slot)
{
    for (int rank = 1; rank < x->comm->size; rank++)
        if (busy(lane_of(x, slot, rank))) return true;
    return false;
}

/* Until when a body may be expected to move, 0 if none does: the follower that works on something else does not take it. */
static double quick_until(const struct exchange *x, int slot)
{
    double until = 0;

    for (int rank = 1; rank < x->comm->size; rank++) {
        const struct lane *l = lane_of(x, slot, rank);

        if (busy(l) && (l->state != HEAD || !l->sent) && l->heard + QUICK_SECONDS > until) until = l->heard + QUICK_SECONDS;
    }
    return until;
}

static void collect(struct exchange *x, int slot)
{
    struct pause p = pause_begin();

    for (advance_all(x); any_busy(x, slot); advance_all(x)) {
        p.quick = quick_until(x, slot);
        if (!pause_step(&p)) continue;
        look_at(x, slot, &p);
        exchange_ping(x); /* to the others */
    }
    x->collected[slot] = true;
    x->stats.wait_seconds += clock_now() - p.start;
}

/* The status of the answers to a slot that was collected. */
static status answers(const struct exchange *x, int slot, struct err *e)
{
    for (int rank = 1; rank < x->comm->size; rank++) {
        const struct lane *l = lane_of(x, slot, rank);
        const struct answer *a = &l->answer->a;

        if (l->state == DONE && a->code != OK)
            return err_set(e, (status)a->code, "rank %d (%s): %.*s", rank, x->comm->peers[rank].host, (int)a->bytes,
                           (const char *)l->payload);
    }
    return OK;
}

static void collect_all(struct exchange *x)
{
    for (int slot = 0; slot < EXCHANGE_SLOTS; slot++)
        if (!x->over.code) collect(x, slot);
}

status exchange_wait(struct exchange *x, int slot, struct err *e)
{
    status st = OK;

    if (!x->over.code) collect(x, slot);
    if (!x->over.code && stop_asked() == STOP_NOW) {
        struct pause p = pause_begin();

        p.stop = p.now;
        look_at(x, slot, &p); /* a signal, and somebody is gone: it is not the user's */
        if (!x->over.code) st = err_set(e, STOPPED, "stopped by a signal");
    }
    if (!x->over.code && !st) st = answers(x, slot, e);
    if (st) collect_all(x); /* the caller leaves now, and will not wait for the other slot */
    if (x->over.code) {
        *e = x->over;
        st = e->code;
    }
    return st;
}

const struct answer *exchange_answer_of(const struct exchange *x, int slot, int rank, const void **payload)
{
    const struct lane *l = lane_of(x, slot, rank);

    if (l->state != DONE) return NULL;
    if (payload) *payload = l->payload;
    return &l->answer->a;
}

void exchange_progress(struct exchange *x)
{
    if (!x->lanes) return;
    advance_all(x);
    exchange_ping(x);
}

void exchange_ping(struct exchange *x)
{
    struct comm *c = x->comm;
    double now = clock_now();

    if (!x->lanes || x->over.code || now - x->pinged < x->limits.deadline / 8) return;
    x->pinged = now;
    speak(x, now);
    advance_all(x); /* a follower that cannot get rid of its answer hears no ping */
    for (int rank = 1; rank < c->size; rank++) {
        int done = 0;

        /* An error of MPI shows at the next request to this rank. */
        if (MPI_Test(&c->ping[rank], &done, MPI_STATUS_IGNORE) || !done) continue;
        MPI_Isend(&PING, sizeof(PING), MPI_BYTE, rank, TAG_REQUEST, c->world, &c->ping[rank]);
    }
}

/* What is still under way is waited for, as far as a rank lives and is in time: nothing of this exchange comes into the next. */
void exchange_close(struct exchange *x)
{
    if (x && x->lanes) collect_all(x);
}
