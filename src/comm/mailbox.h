/* Heads between ranks of one host, through memory that they share: a head is there when its sequence number is.  Made when the ranks come together, and
 * used by one exchange after the other.  Only ranks on the host of rank 0 have it; others go through MPI.
 *
 * A mailbox belongs to one channel and one follower in it.  Per slot it has one request and one answer, with room for INLINE bytes of payload behind each: the
 * coordinator posts the next request only after it has the answer, and reads that until then.  Sequence numbers grow, so nothing is ever cleared.
 * Nobody waits for a head in the kernel for long: the bell is a hint that there is something to look at, and a ring that is lost costs time, no more.
 */
#ifndef COMM_MAILBOX_H
#define COMM_MAILBOX_H

#include "comm/exchange_internal.h"

struct bell { /* of one process, in its own line of the cache */
    uint32_t rung, waiting;
    char pad[56];
};

struct mail {
    struct request_head request;
    char asked[INLINE];
    struct answer_head answer;
    char answered[INLINE];
};

struct mailbox {
    uint64_t pings;
    char pad[56];
    struct mail slot[EXCHANGE_SLOTS];
};

/* Collective, of comm_open().  Finds out which followers share memory with the coordinator; that none does is no error. */
status office_open(struct comm *c, struct err *e);
void office_close(struct comm *c);
/* Of ranks that have by_mail. */
struct bell *office_bell(const struct comm *c, int rank);
struct mailbox *office_box(const struct comm *c, int channel, int rank);

/* The head becomes visible as a whole.  Rings no bell. */
void mail_request(struct mail *m, const struct request_head *head);
void mail_answer(struct mail *m, const struct answer_head *head);
/* Takes the next request behind `last`, in the order in which they were posted; false if there is none. */
bool mail_next(const struct mailbox *b, uint64_t last, struct request_head *to);
/* Takes the answer to request `sequence`; false if it is not there yet. */
bool mail_answered(const struct mail *m, uint64_t sequence, struct answer_head *to);

void bell_ring(struct bell *b);
uint32_t bell_count(const struct bell *b);
/* Sleeps until the bell has rung since it was at `seen`, for at most so long. */
void bell_wait(struct bell *b, uint32_t seen, double seconds);

#endif
