/* A lane: one request of the coordinator to one rank, and the answer to it, from state to state (exchange_internal.h). */
#include <stdio.h>

#include "base/clock.h"
#include "comm/mailbox.h"

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

/* ---- the answer ---- */

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

int lane_advance(struct exchange *x, int slot, int rank)
{
    struct lane *l = lane_of(x, slot, rank);
    int in = 1, out = 1, code = 0;

    while (lane_busy(l) && in && !code) {
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
    if (!code && lane_busy(l) && l->n_out > 0) code = MPI_Testall(l->n_out, l->out, &out, MPI_STATUSES_IGNORE);
    if (code) return code;
    if (out) l->sent = true, l->n_out = 0;
    if (l->state == BODY && in && out) {
        l->state = DONE;
        x->stats.messages++;
        x->stats.bytes_back += l->answer->a.bytes;
    }
    return 0;
}

/* ---- the request ---- */

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

    BUG_ON(rank == x->asker || lane_busy(l) || bytes > x->limits.request_bytes);
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

int lane_post(struct exchange *x, int slot, int rank, const struct request *r, const void *part0, size_t bytes0,
              const void *part1, size_t bytes1, double now)
{
    struct lane *l = lane_of(x, slot, rank);
    size_t bytes = bytes0 + bytes1;
    int code = 0, body = exchange_tag(x, TAG_REQUEST_BODY + slot);

    fill_head(x, l, slot, rank, r, bytes0, bytes);
    l->posted = l->heard = now;
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
    return code;
}
