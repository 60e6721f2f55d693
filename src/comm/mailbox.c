#include "comm/mailbox.h"

#include <linux/futex.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the office ---- */

static bool within_reach(const struct comm *c, int rank)
{
    const struct process *a = &c->processes[rank], *b = &c->processes[0];

    return process_same_host(a, b) && a->pid_namespace && a->pid_namespace == b->pid_namespace;
}

struct offer {
    uint64_t bytes, id;
    int64_t file;
};

static struct offer make_office(struct comm *c)
{
    size_t bytes = REGION_HEAD + (size_t)c->size * (sizeof(struct bell) + (size_t)c->channels * sizeof(struct mailbox));
    struct err e = {0};
    bool any = false;

    for (int rank = 1; rank < c->size; rank++) any = any || within_reach(c, rank);
    if (!any) return (struct offer){0};
    if (region_create(&c->region, bytes, &e)) {
        snprintf(c->apart, sizeof(c->apart), "%.150s", e.text);
        return (struct offer){0};
    }
    return (struct offer){bytes, c->region.id, c->region.file};
}

status office_open(struct comm *c, struct err *e)
{
    struct offer offer = {0};
    struct err why = {0};
    int mine = 0, code;

    if (c->size == 1) return OK;
    c->apart[0] = 0;
    if (c->rank == 0) offer = make_office(c);
    code = MPI_Bcast(&offer, sizeof(offer), MPI_BYTE, 0, c->world);
    if (c->rank == 0) mine = offer.bytes > 0;
    else if (!code && offer.bytes && within_reach(c, c->rank))
        mine = region_attach(&c->region, c->peers[0].pid, (int)offer.file, offer.bytes, offer.id, &why) == OK;
    if (!code) code = MPI_Allgather(&mine, 1, MPI_INT, c->by_mail, 1, MPI_INT, c->world);
    if (code) return err_set(e, ERR_RANK, "MPI: the ranks do not come together");
    for (int rank = 1; rank < c->size && offer.bytes && !c->apart[0]; rank++)
        if (within_reach(c, rank) && !c->by_mail[rank])
            snprintf(c->apart, sizeof(c->apart), "rank %d does not reach the coordinator's", rank);
    return OK;
}

void office_close(struct comm *c)
{
    region_close(&c->region);
}

status comm_share(struct comm *c, int coordinators, struct err *e)
{
    if (coordinators > c->size) coordinators = c->size;
    int channels = coordinators > 1 ? coordinators + 1 : 1;

    BUG_ON(channels > COMM_CHANNELS);
    if (channels == c->channels) return OK;
    office_close(c);
    c->channels = channels;
    /* Who asked in a channel may be another from now on, and begins anew. */
    memset(c->sequence + 1, 0, sizeof(c->sequence) - sizeof(c->sequence[0]));
    return office_open(c, e);
}

struct bell *office_bell(const struct comm *c, int rank)
{
    return (struct bell *)(c->region.base + REGION_HEAD) + rank;
}

struct mailbox *office_box(const struct comm *c, int channel, int rank)
{
    return (struct mailbox *)office_bell(c, c->size) + channel * c->size + rank;
}

/* ---- heads ---- */

/* All of the head but its sequence number, then that. */
static void publish(void *to, const void *from, size_t bytes, size_t at)
{
    size_t behind = at + sizeof(uint64_t);
    uint64_t sequence;

    memcpy(to, from, at);
    memcpy((char *)to + behind, (const char *)from + behind, bytes - behind);
    memcpy(&sequence, (const char *)from + at, sizeof(sequence));
    __atomic_store_n((uint64_t *)((char *)to + at), sequence, __ATOMIC_RELEASE);
}

void mail_request(struct mail *m, const struct request_head *head)
{
    publish(&m->request, head, sizeof(*head), offsetof(struct request_head, r.sequence));
}

void mail_answer(struct mail *m, const struct answer_head *head)
{
    publish(&m->answer, head, sizeof(*head), offsetof(struct answer_head, a.sequence));
}

bool mail_next(const struct mailbox *b, uint64_t last, struct request_head *to)
{
    const struct mail *next = NULL;
    uint64_t least = 0;

    /* The second look is for a request that was posted before the one found, but after we had looked at its slot. */
    for (int look = 0; look == 0 || (look == 1 && next); look++)
        for (int slot = 0; slot < EXCHANGE_SLOTS; slot++) {
            uint64_t sequence = __atomic_load_n(&b->slot[slot].request.r.sequence, __ATOMIC_ACQUIRE);

            if (sequence > last && (!next || sequence < least)) next = &b->slot[slot], least = sequence;
        }
    if (next) *to = next->request;
    return next != NULL;
}

bool mail_answered(const struct mail *m, uint64_t sequence, struct answer_head *to)
{
    if (__atomic_load_n(&m->answer.a.sequence, __ATOMIC_ACQUIRE) != sequence) return false;
    *to = m->answer;
    return true;
}

/* ---- bells ---- */

void bell_ring(struct bell *b)
{
    __atomic_fetch_add(&b->rung, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&b->waiting, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &b->rung, FUTEX_WAKE, 1, NULL, NULL, 0);
}

uint32_t bell_count(const struct bell *b)
{
    return __atomic_load_n(&b->rung, __ATOMIC_ACQUIRE);
}

void bell_wait(struct bell *b, uint32_t seen, double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};

    __atomic_store_n(&b->waiting, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &b->rung, FUTEX_WAIT, seen, &t, NULL,
            0); /* returns at once if it has rung; why it returns does not matter */
    __atomic_store_n(&b->waiting, 0, __ATOMIC_RELAXED);
}
