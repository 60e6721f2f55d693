/* The coordinator's side of the exchange. */
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

static struct lane *lane_of(const struct exchange *x, int slot, int rank)
{
    BUG_ON(!x->lanes || slot < 0 || slot >= EXCHANGE_SLOTS || rank < 0 || rank >= x->ranks);
    return &x->lanes[slot * x->ranks + rank];
}

static bool shares_memory(const struct exchange *x, int rank)
{
    return rank != x->asker && x->comm->by_mail[rank];
}

/* The region of the followers on this host, for payloads that do not fit behind a head. */
static void make_region(struct exchange *x)
{
    struct comm *c = x->comm;
    size_t share = exchange_share(NULL, NULL, x->limits), shares = 0;
    struct err why = {0};

    if (x->limits.request_bytes <= INLINE && x->limits.answer_bytes <= INLINE) return;
    for (int rank = 0; rank < x->ranks; rank++) shares += shares_memory(x, rank);
    if (shares == 0) return;
    if (c->no_region) err_set(&why, ERR_LIMIT, "no shared memory, as a test would have it");
    else region_create(&x->region, REGION_HEAD + shares * share, &why);
    if (why.code) snprintf(x->note, sizeof(x->note), "%.150s", why.text);
}

void exchange_open_lanes(struct exchange *x)
{
    struct comm *c = x->comm;
    size_t at = REGION_HEAD;

    make_region(x);
    for (int rank = 0; rank < x->ranks; rank++) {
        struct share share;

        if (!shares_memory(x, rank)) continue;
        for (int slot = 0; slot < EXCHANGE_SLOTS; slot++)
            lane_of(x, slot, rank)->mail = &office_box(c, x->limits.channel, rank)->slot[slot];
        if (!x->region.base) continue;
        x->offer[rank] = OFFER_OPEN;
        at += exchange_share(&share, x->region.base + at, x->limits);
        for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
            struct lane *l = lane_of(x, slot, rank);

            l->room = share.request[slot], l->buffer = share.answer[slot];
        }
    }
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
        for (int rank = 0; rank < x->ranks; rank++) {
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

static int receive_head(struct exchange *x, struct lane *l, int slot, int rank)
{
    int code = MPI_Irecv(l->answer, sizeof(*l->answer) + INLINE, MPI_BYTE, rank, exchange_tag(x, TAG_ANSWER + slot),
                         x->comm->world, &l->in[0]);

    l->n_in = code ? 0 : 1;
    l->state = HEAD;
    return code;
}

/* The next piece of an answer to an exchange that was closed without waiting for it: one after the other, since all go into one buffer.  A piece may be longer
 * than that: then MPI cuts it. */
static int receive_stale(struct exchange *x, struct lane *l, int slot, int rank)
{
    size_t piece = l->stale < x->comm->chunk ? (size_t)l->stale : x->comm->chunk;
    size_t room = piece < x->limits.answer_bytes ? piece : x->limits.answer_bytes;
    int code =
        MPI_Irecv(l->buffer, (int)room, MPI_BYTE, rank, exchange_tag(x, TAG_ANSWER_BODY + slot), x->comm->world, &l->in[0]);

    l->n_in = code ? 0 : 1;
    l->stale -= piece;
    l->state = STALE;
    return code;
}

/* What the follower says of the region. */
static void hear_of_region(struct exchange *x, int rank, int flags)
{
    if (x->offer[rank] != OFFER_OPEN) return;
    if (flags & HEAD_REACHES) x->offer[rank] = OFFER_TAKEN;
    if (!(flags & HEAD_CANNOT)) return;
    x->offer[rank] = OFFER_NONE;
    snprintf(x->note, sizeof(x->note), "rank %d cannot open the coordinator's", rank);
}

static int take_head(struct exchange *x, struct lane *l, int slot, int rank)
{
    const struct answer *a = &l->answer->a;
    bool current = a->sequence == l->request->r.sequence;
    int code = 0;

    BUG_ON(a->sequence > l->request->r.sequence || (current && a->bytes > x->limits.answer_bytes));
    l->n_in = 0;
    if (!current) {
        l->stale = a->bytes;
        return a->bytes <= INLINE ? receive_head(x, l, slot, rank) : receive_stale(x, l, slot, rank);
    }
    hear_of_region(x, rank, l->answer->flags);
    l->state = BODY;
    l->payload = l->mail ? l->mail->answered : (char *)(l->answer + 1);
    if (a->bytes <= INLINE) return 0;
    l->payload = l->buffer;
    if (l->answer->flags & HEAD_IN_REGION) return 0;
    l->n_in = exchange_move(x, FROM, rank, l->buffer, (size_t)a->bytes, exchange_tag(x, TAG_ANSWER_BODY + slot), l->in, 0, &code);
    return code;
}

/* Is what the lane waits for there? */
static int arrived(const struct lane *l, int *in)
{
    *in = 1;
    if (l->mail && l->state == HEAD) *in = mail_answered(l->mail, l->request->r.sequence, l->answer);
    else if (l->n_in > 0) return MPI_Testall(l->n_in, l->in, in, MPI_STATUSES_IGNORE);
    return 0;
}

/* Moves a lane as far as it goes now. */
static void advance(struct exchange *x, int slot, int rank)
{
    struct lane *l = lane_of(x, slot, rank);
    int in = 1, out = 1, code = 0;

    while (busy(l) && in && !code) {
        enum lane_state before = l->state;

        code = arrived(l, &in);
        if (before == STALE && code) code = 0, in = 1; /* it was cut */
        if (code || !in) break;
        l->heard = clock_now();
        if (before == HEAD) code = take_head(x, l, slot, rank);
        else if (before == STALE && l->stale > 0) code = receive_stale(x, l, slot, rank);
        else if (before == STALE) code = receive_head(x, l, slot, rank);
        else break;
    }
    if (!code && busy(l) && l->n_out > 0) code = MPI_Testall(l->n_out, l->out, &out, MPI_STATUSES_IGNORE);
    if (code) {
        say_broken(x, l, rank, code);
        return;
    }
    if (out) l->sent = true, l->n_out = 0;
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
        for (int rank = 0; rank < x->ranks && !x->over.code; rank++)
            if (busy(lane_of(x, slot, rank))) advance(x, slot, rank);
}

/* Whether a payload lies in the region when it is posted. */
static bool by_region(const struct exchange *x, const struct lane *l, int rank, size_t bytes)
{
    return l->mail && bytes > INLINE && x->offer[rank] == OFFER_TAKEN;
}

static char *room_of(struct lane *l, size_t bytes)
{
    if (bytes > INLINE) return l->room;
    return l->mail ? l->mail->asked : (char *)(l->request + 1);
}

void *exchange_room(struct exchange *x, int slot, int rank, size_t bytes)
{
    struct lane *l = lane_of(x, slot, rank);

    BUG_ON(rank == x->asker || busy(l) || bytes > x->limits.request_bytes);
    return room_of(l, bytes);
}

/* The head, and what is behind it. */
static int send_head(struct exchange *x, struct lane *l, int rank)
{
    size_t bytes = (size_t)l->request->r.bytes;
    int code;

    if (l->mail) {
        mail_request(l->mail, l->request);
        bell_ring(office_bell(x->comm, rank));
        return 0;
    }
    bytes = sizeof(*l->request) + (bytes <= INLINE ? bytes : 0);
    code = MPI_Isend(l->request, (int)bytes, MPI_BYTE, rank, exchange_tag(x, TAG_REQUEST), x->comm->world, &l->out[0]);
    l->n_out = code ? 0 : 1;
    return code;
}

static void fill_head(struct exchange *x, struct lane *l, int slot, int rank, const struct request *r, size_t bytes0,
                      size_t bytes)
{
    *l->request = (struct request_head){.r = *r, .bytes0 = bytes0, .slot = slot, .region_file = -1};
    l->request->r.sequence = ++x->comm->sequence[x->limits.channel];
    l->request->r.bytes = bytes;
    if (by_region(x, l, rank, bytes)) l->request->flags = HEAD_IN_REGION;
    if (x->offer[rank] != OFFER_OPEN) return;
    l->request->region_file = x->region.file;
    l->request->region_id = x->region.id;
    l->request->region_bytes = x->region.bytes;
    l->request->share_at = (uint64_t)(lane_of(x, 0, rank)->room - x->region.base);
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
    size_t bytes = bytes0 + bytes1;
    int code = 0, body = exchange_tag(x, TAG_REQUEST_BODY + slot);

    BUG_ON(rank == x->asker || busy(l) || r->kind < 0 || bytes > x->limits.request_bytes);
    if (x->over.code) return;
    new_round(x, slot);
    fill_head(x, l, slot, rank, r, bytes0, bytes);
    l->posted = l->heard = clock_now();
    speak(x, l->posted);
    l->n_out = l->n_in = 0;
    l->sent = false;
    l->state = HEAD;
    bool stays = bytes <= INLINE || by_region(x, l, rank, bytes);
    if (stays) {
        exchange_place(room_of(l, bytes), part0, bytes0);
        exchange_place(room_of(l, bytes) + bytes0, part1, bytes1);
    }
    if (!l->mail) code = receive_head(x, l, slot, rank);
    if (!code) code = send_head(x, l, rank);
    if (!stays) {
        l->n_out = exchange_move(x, TO, rank, (void *)part0, bytes0, body, l->out, l->n_out, &code);
        l->n_out = exchange_move(x, TO, rank, (void *)part1, bytes1, body, l->out, l->n_out, &code);
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
    for (int rank = 0; rank < x->ranks && !x->over.code; rank++) {
        if (rank == x->asker) continue;
        struct lane *l = lane_of(x, slot, rank);
        bool gone = (busy(l) || p->stop > 0) && comm_peer_gone(x->comm, rank);
        double deadline = l->request->r.deadline > 0 ? l->request->r.deadline : x->limits.deadline;

        if (gone) advance(x, slot, rank); /* its last answer may have come before it went */
        if (x->over.code || (!busy(l) && !(gone && p->stop > 0))) continue;
        if (gone && x->leaves) {
            give_up(x, STOPPED, "stopped by the coordinator, which has ended the job");
        } else if (gone && x->silent > 0 && p->now - x->silent < SILENT_SECONDS) {
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
    for (int rank = 0; rank < x->ranks; rank++)
        if (busy(lane_of(x, slot, rank))) return true;
    return false;
}

/* Until when a body may be expected to move, 0 if none does: the follower that works on something else does not take it. */
static double quick_until(const struct exchange *x, int slot)
{
    double until = 0;

    for (int rank = 0; rank < x->ranks; rank++) {
        const struct lane *l = lane_of(x, slot, rank);

        if (busy(l) && (l->state != HEAD || !l->sent) && l->heard + QUICK_SECONDS > until) until = l->heard + QUICK_SECONDS;
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

        if (busy(l) && (!l->mail || l->n_in > 0 || l->n_out > 0)) return false;
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
