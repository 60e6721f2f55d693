/* The coordinator's side of the exchange: waiting for all ranks, and what becomes of one that does not answer.  A request and its answer are exchange_lane.c's. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/mailbox.h"

/* After a silence of its own the coordinator takes the end of a follower for the answer to it, for so long. */
static const double SILENT_SECONDS = 5;
/* For answers under way when a signal comes: mpirun leaves 1 s. */
static const double STOP_SECONDS = 0.3;

static const struct request_head PING = {.r = {.kind = KIND_PING, .layer = -1, .what = "ping"}};

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
        for (int rank = 0; rank < x->ranks; rank++) {
            struct lane *l = lane_of(x, slot, rank);

            if (!lane_busy(l)) continue;
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
    x->lost = rank + 1;
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

/* Moves a lane as far as it goes now. */
static void advance(struct exchange *x, int slot, int rank)
{
    int code = lane_advance(x, slot, rank);

    if (code) say_broken(x, lane_of(x, slot, rank), rank, code);
}

/* Moves all lanes.  Those of the other slot, too: a follower stands still until its answer there was taken. */
static void advance_all(struct exchange *x)
{
    for (int slot = 0; slot < EXCHANGE_SLOTS; slot++)
        for (int rank = 0; rank < x->ranks && !x->over.code; rank++)
            if (lane_busy(lane_of(x, slot, rank))) advance(x, slot, rank);
}

/* The answers of the last round are not answers to this one. */
static void new_round(struct exchange *x, int slot)
{
    for (int rank = 0; x->collected[slot] && rank < x->ranks; rank++) lane_of(x, slot, rank)->state = FREE;
    x->collected[slot] = false;
}

void exchange_post(struct exchange *x, int slot, int rank, const struct request *r, const void *part0, size_t bytes0,
                   const void *part1, size_t bytes1)
{
    struct lane *l = lane_of(x, slot, rank);
    double now = clock_now();

    BUG_ON(rank == x->asker || lane_busy(l) || r->kind < 0 || bytes0 + bytes1 > x->limits.request_bytes);
    if (x->over.code) return;
    new_round(x, slot);
    speak(x, now);
    int code = lane_post(x, slot, rank, r, part0, bytes0, part1, bytes1, now);
    if (code) say_broken(x, l, rank, code);
}

/* One look at the ranks that are waited for; whoever is lost ends the exchange.  The deadline of a rank counts from the post, but a
 * coordinator that comes late itself leaves at least half of it to hear what is waiting inside MPI. */
static void look_at(struct exchange *x, int slot, const struct pause *p)
{
    char reason[64];

    if (p->now - x->spoke > x->limits.deadline) x->silent = p->now;
    for (int rank = 0; rank < x->ranks && !x->over.code; rank++) {
        if (rank == x->asker) continue;
        struct lane *l = lane_of(x, slot, rank);
        bool gone = (lane_busy(l) || p->stop > 0) && comm_peer_gone(x->comm, rank);
        double deadline = l->request->r.deadline > 0 ? l->request->r.deadline : x->limits.deadline;

        if (gone) advance(x, slot, rank); /* its last answer may have come before it went */
        if (x->over.code || (!lane_busy(l) && !(gone && p->stop > 0))) continue;
        if (gone && x->leaves) {
            give_up(x, STOPPED, "stopped by the coordinator, which has ended the job");
        } else if (gone && x->silent > 0 && p->now - x->silent < SILENT_SECONDS) {
            give_up(x, STOPPED, "the coordinator was silent for too long, and the others have ended the job");
        } else if (gone) {
            if (!lane_busy(l))
                *l->request = (struct request_head){.r = {.layer = -1, .what = "end of the job"}}, l->posted = p->now;
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
    for (int rank = 0; rank < x->ranks; rank++)
        if (lane_busy(lane_of(x, slot, rank))) return true;
    return false;
}

/* Until when a body may be expected to move, 0 if none does: the follower that works on something else does not take it. */
static double quick_until(const struct exchange *x, int slot)
{
    double until = 0;

    for (int rank = 0; rank < x->ranks; rank++) {
        const struct lane *l = lane_of(x, slot, rank);

        if (lane_busy(l) && (l->state != HEAD || !l->sent) && l->heard + QUICK_SECONDS > until) until = l->heard + QUICK_SECONDS;
    }
    return until;
}

/* Does the bell ring for everything that is under way?  MPI rings none, and moves only while it is called. */
static bool all_ring(const struct exchange *x)
{
    for (int i = 0; i < x->n_others; i++)
        if (!x->others[i]->box) return false;
    for (int i = 0; i < EXCHANGE_SLOTS * x->ranks; i++) {
        const struct lane *l = &x->lanes[i];

        if (lane_busy(l) && (!l->mail || l->n_in > 0 || l->n_out > 0)) return false;
    }
    return true;
}

void exchange_keep_alive(struct exchange *x, struct exchange *first)
{
    x->first = first;
}

void exchange_move_along(struct exchange *x, struct exchange *aside)
{
    x->aside = aside;
}

void exchange_serve(struct exchange *x, struct exchange *const *others, int n, exchange_answering *answering, void *ctx)
{
    x->others = others;
    x->n_others = n;
    x->answering = answering;
    x->answering_ctx = ctx;
    for (int i = 0; i < n; i++) others[i]->beside = x;
}

/* Answers what others ask; true if there was something. */
static bool serve(struct exchange *x)
{
    bool any = false;

    for (int i = 0; i < x->n_others; i++) {
        const void *payload;
        struct request r;

        if (!exchange_take(x->others[i], &r, &payload)) continue;
        if (!x->answering(x->answering_ctx, i, &r, payload)) x->leaves = true;
        any = true;
    }
    return any;
}

static void collect(struct exchange *x, int slot)
{
    struct pause p = pause_begin(x);

    for (advance_all(x); any_busy(x, slot); advance_all(x)) {
        p.quick = quick_until(x, slot);
        if (serve(x)) {
            p.now = p.idle = clock_now();
            continue;
        }
        if (x->aside) advance_all(x->aside);
        if (!pause_step(&p, all_ring(x) && (!x->aside || all_ring(x->aside)))) continue;
        if (x->leaves && p.stop <= 0) p.stop = p.now;
        look_at(x, slot, &p);
        exchange_ping(x); /* to the others */
    }
    x->collected[slot] = true;
    x->stats.wait_seconds += clock_now() - p.start;
}

/* The status of the answers to a slot that was collected. */
static status answers(const struct exchange *x, int slot, struct err *e)
{
    for (int rank = 0; rank < x->ranks; rank++) {
        const struct lane *l = lane_of(x, slot, rank);
        const struct answer *a = l->state == DONE ? &l->answer->a : NULL;

        if (a && a->code != OK)
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
    if (!x->over.code && (x->leaves || stop_asked() == STOP_NOW)) {
        struct pause p = pause_begin(x);

        p.stop = p.now;
        look_at(x, slot, &p); /* a signal, and somebody is gone: it is not the user's */
        if (!x->over.code) st = err_set(e, STOPPED, x->leaves ? "stopped by the coordinator" : "stopped by a signal");
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

    if (x->first) exchange_ping(x->first);
    if (!x->lanes || x->limits.channel || x->over.code || now - x->pinged < x->limits.deadline / 8) return;
    x->pinged = now;
    speak(x, now);
    advance_all(x); /* a follower that cannot get rid of its answer hears no ping */
    for (int rank = 1; rank < x->ranks; rank++) {
        int done = 0;

        if (lane_of(x, 0, rank)->mail) {
            __atomic_fetch_add(&office_box(c, 0, rank)->pings, 1, __ATOMIC_RELAXED);
            bell_ring(office_bell(c, rank));
            continue;
        }
        /* An error of MPI shows at the next request to this rank. */
        if (MPI_Test(&c->ping[rank], &done, MPI_STATUS_IGNORE) || !done) continue;
        MPI_Isend(&PING, sizeof(PING), MPI_BYTE, rank, exchange_tag(x, TAG_REQUEST), c->world, &c->ping[rank]);
    }
}

/* What is still under way is waited for, as far as a rank lives and is in time: nothing of this exchange comes into the next. */
void exchange_close_lanes(struct exchange *x)
{
    collect_all(x);
}
