#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "comm/mailbox.h"

/* The coordinator that goes because another rank was lost has said so; mpirun's signal follows it within this time, and we need not. */
static const double GONE_SECONDS = 0.8;
/* The lowest follower speaks for all and ends the job, which may take MPI_Abort a second; the next waits as long before it thinks that nobody
 * will, and behind the third nobody waits longer. */
static const double TURN_SECONDS = 2;
enum { TURNS_MAX = 3 };
/* What the coordinator may take to end the job in order after a signal came to all: mpirun leaves 1 s. */
static const double STOP_SECONDS = 0.6;

struct wait {
    struct pause pause;
    double gone; /* since when the coordinator's process is gone, 0 not */
};

static status lost(struct exchange *x, const struct wait *w, const char *reason)
{
    const struct request *last = &x->last;
    struct str text = {0};

    str_addf(&text, "rank %d (%s, the coordinator) was lost: rank %d heard nothing for %.1f s", x->asker,
             x->comm->peers[x->asker].host, x->comm->rank, w->pause.now - w->pause.start);
    if (last->what[0]) str_addf(&text, " after '%.*s'", (int)sizeof(last->what), last->what);
    if (last->what[0] && last->layer >= 0) str_addf(&text, ", layer %d", last->layer);
    str_addf(&text, " (%s)", reason);
    err_set(&x->over, ERR_RANK, "%s", text.text);
    str_free(&text);
    return ERR_RANK;
}

/* How long this rank leaves the word to those before it; also if they are gone, because having spoken they are. */
static double turn_of(const struct exchange *x)
{
    int before = x->comm->rank - 1;

    return TURN_SECONDS * (before < TURNS_MAX ? before : TURNS_MAX);
}

static status look(struct exchange *x, struct wait *w)
{
    double now = w->pause.now;

    if (w->gone <= 0 && comm_peer_gone(x->comm, x->asker)) w->gone = now;
    if (w->gone > 0 && w->pause.stop > 0) return err_set(&x->over, STOPPED, "the coordinator ended the job");
    if (w->gone > 0 && now - w->gone > GONE_SECONDS && now - w->gone > GONE_SECONDS + turn_of(x))
        return lost(x, w, "its process is gone");
    if (w->pause.stop > 0 && now - w->pause.stop > STOP_SECONDS) return err_set(&x->over, STOPPED, "stopped by a signal");
    if (now - w->pause.start > x->limits.deadline && now - w->pause.start > x->limits.deadline + turn_of(x)) {
        char reason[64];

        snprintf(reason, sizeof(reason), "deadline %.1f s", x->limits.deadline);
        return lost(x, w, reason);
    }
    return OK;
}

/* Until all n requests are done, or the exchange is over. */
static status wait_all(struct exchange *x, MPI_Request *q, int n, bool receives, bool body)
{
    struct wait w = {.pause = pause_begin(x)};
    int done = 0, code;

    if (body) w.pause.quick = w.pause.now + QUICK_SECONDS;
    while (!(code = MPI_Testall(n, q, &done, MPI_STATUSES_IGNORE)) && !done) {
        if (x->beside) exchange_progress(x->beside); /* it may be what the other side waits for */
        if (!pause_step(&w.pause, false) || !look(x, &w)) continue;
        exchange_settle(x, q, n, receives);
        return x->over.code;
    }
    if (code) {
        char text[MPI_MAX_ERROR_STRING] = "";
        int length;

        MPI_Error_string(code, text, &length);
        return lost(x, &w, text);
    }
    return OK;
}

static status refused(struct exchange *x, const char *what)
{
    return err_set(&x->over, ERR_RANK, "rank %d (%s, the coordinator): MPI refuses to %s", x->asker,
                   x->comm->peers[x->asker].host, what);
}

/* Is there a head that is not a ping? */
static bool head_by_mpi(struct exchange *x)
{
    size_t most = sizeof(*x->request) + INLINE;
    int done = 1, code = 0;

    while (!code && done) {
        if (!x->listening)
            code = MPI_Irecv(x->request, (int)most, MPI_BYTE, x->asker, exchange_tag(x, TAG_REQUEST), x->comm->world, &x->in[0]);
        if (code) break;
        x->listening = true;
        code = MPI_Test(&x->in[0], &done, MPI_STATUS_IGNORE);
        if (code || !done) break;
        x->listening = false;
        if (x->request->r.kind != KIND_PING) return true;
        x->heard++;
    }
    if (code) refused(x, "receive");
    return false;
}

static bool head_is_there(struct exchange *x)
{
    if (x->over.code || x->asked) return false;
    return x->box ? mail_next(x->box, x->comm->sequence[x->limits.channel], x->request) : head_by_mpi(x);
}

static uint64_t pings(const struct exchange *x)
{
    return x->box ? __atomic_load_n(&x->box->pings, __ATOMIC_RELAXED) : x->heard;
}

/* Takes the offer of a region, once. */
static void take_offer(struct exchange *x)
{
    const struct request_head *head = x->request;
    struct err ignored;

    if (head->region_file < 0 || x->offered) return;
    x->offered = true;
    if (x->comm->no_attach) return;
    BUG_ON(head->share_at + exchange_share(NULL, NULL, x->limits) > head->region_bytes);
    if (region_attach(&x->region, x->comm->peers[x->asker].pid, head->region_file, (size_t)head->region_bytes, head->region_id,
                      &ignored))
        return; /* the coordinator says so */
    exchange_share(&x->share, x->region.base + head->share_at, x->limits);
}

/* Where the payload is, or arrives. */
static status payload_of(struct exchange *x, const void **payload)
{
    const struct request_head *head = x->request;
    size_t bytes0 = (size_t)head->bytes0, bytes1 = (size_t)(head->r.bytes - head->bytes0);
    int tag = exchange_tag(x, TAG_REQUEST_BODY + head->slot), n = 0, code = 0;

    *payload = x->box ? x->box->slot[head->slot].asked : (char *)(x->request + 1);
    if (head->r.bytes <= INLINE) return OK;
    *payload = head->flags & HEAD_IN_REGION ? x->share.request[head->slot] : x->buffer;
    if (head->flags & HEAD_IN_REGION) return OK;
    n = exchange_move(x, FROM, x->asker, x->buffer, bytes0, tag, x->in, n, &code);
    n = exchange_move(x, FROM, x->asker, x->buffer + bytes0, bytes1, tag, x->in, n, &code);
    return code ? refused(x, "receive") : wait_all(x, x->in, n, true, true);
}

/* The head is there. */
static status take(struct exchange *x, struct request *r, const void **payload)
{
    const struct request_head *head = x->request;
    uint64_t *last = &x->comm->sequence[x->limits.channel];

    BUG_ON(head->r.sequence <= *last || head->r.bytes > x->limits.request_bytes || head->bytes0 > head->r.bytes);
    *last = head->r.sequence;
    take_offer(x);
    BUG_ON(head->slot < 0 || head->slot >= EXCHANGE_SLOTS || (head->flags & HEAD_IN_REGION && !x->region.base));
    if (payload_of(x, payload)) return x->over.code;
    *r = x->last = head->r;
    x->asked = true;
    x->stats.messages++;
    x->stats.bytes_back += head->r.bytes;
    return OK;
}

bool exchange_take(struct exchange *x, struct request *r, const void **payload)
{
    return head_is_there(x) && take(x, r, payload) == OK;
}

status exchange_next_of(struct exchange *const *x, int n, int *which, struct request *r, const void **payload, struct err *e)
{
    struct wait w = {.pause = pause_begin(x[0])};
    uint64_t before = pings(x[0]), now;
    bool rings = true;

    for (int i = 0; i < n; i++) {
        BUG_ON(x[i]->lanes || x[i]->asked);
        rings = rings && x[i]->box;
    }
    for (;;) {
        for (int i = 0; i < n; i++) {
            if (exchange_take(x[i], r, payload)) {
                *which = i;
                return OK;
            }
            if (x[i]->over.code) {
                *e = x[i]->over;
                return e->code;
            }
        }
        bool look_now = pause_step(&w.pause, rings);

        now = pings(x[0]);
        if (now != before) w.gone = 0, w.pause.start = w.pause.now;
        before = now;
        if (look_now) look(x[0], &w);
    }
}

status exchange_next(struct exchange *x, struct request *r, const void **payload, struct err *e)
{
    int which;

    return exchange_next_of(&x, 1, &which, r, payload, e);
}

void *exchange_answer_room(struct exchange *x, size_t bytes)
{
    int slot = x->request->slot;

    BUG_ON(x->lanes || !x->asked || bytes > x->limits.answer_bytes);
    if (bytes > INLINE) return x->region.base ? x->share.answer[slot] : x->room;
    return x->box ? x->box->slot[slot].answered : (char *)(x->answer + 1);
}

/* The head, and what is behind it; returns requests of MPI. */
static int send_head(struct exchange *x, int slot, int *code)
{
    size_t bytes = (size_t)x->answer->a.bytes;

    if (x->box) {
        mail_answer(&x->box->slot[slot], x->answer);
        bell_ring(office_bell(x->comm, x->asker));
        return 0;
    }
    bytes = sizeof(*x->answer) + (bytes <= INLINE ? bytes : 0);
    *code = MPI_Isend(x->answer, (int)bytes, MPI_BYTE, x->asker, exchange_tag(x, TAG_ANSWER + slot), x->comm->world, &x->out[0]);
    return *code ? 0 : 1;
}

void exchange_answer(struct exchange *x, const struct request *r, status code, int rows, const void *payload, size_t bytes)
{
    int slot = x->request->slot, n = 0, failed = 0;
    bool stays = bytes <= INLINE || x->region.base;

    BUG_ON(x->lanes || !x->asked || r->sequence != x->last.sequence || bytes > x->limits.answer_bytes);
    if (stays && !x->over.code) exchange_place(exchange_answer_room(x, bytes), payload, bytes);
    x->asked = false;
    if (x->over.code) return;
    *x->answer = (struct answer_head){.a = {.code = code, .rows = rows, .sequence = r->sequence, .bytes = bytes}};
    if (x->offered) x->answer->flags = x->region.base ? HEAD_REACHES : HEAD_CANNOT;
    if (stays && bytes > INLINE) x->answer->flags |= HEAD_IN_REGION;
    n = send_head(x, slot, &failed);
    if (!stays)
        n = exchange_move(x, TO, x->asker, (void *)payload, bytes, exchange_tag(x, TAG_ANSWER_BODY + slot), x->out, n, &failed);
    x->stats.messages++;
    x->stats.bytes_out += bytes;
    /* The caller may change its payload after this; what goes wrong shows in the next exchange_next(). */
    if (failed) refused(x, "send");
    else if (n > 0) wait_all(x, x->out, n, false, true);
}
