/* Where a rank's time goes: every moment belongs to exactly one section.
 *
 * Who begins a section says so and goes back to the one before when it is done, so that sections may stand inside others and no time counts twice:
 *
 *     enum timing_section was = timing_enter(t, TIME_EXPERT);
 *     ...
 *     timing_enter(t, was);
 *
 * One per rank, owned by the cluster and handed down; NULL is fine everywhere and counts nothing.  A change of section costs one look at the clock
 * (some 25 ns).  Threads: the rank's own one only.
 */
#ifndef BASE_TIMING_H
#define BASE_TIMING_H

#include <stdint.h>
#include <time.h>

enum timing_section {
    TIME_OTHER,     /* nobody said anything: files, text, the job's own work */
    TIME_OPEN,      /* opening a model */
    TIME_EMBED,     /* rows of the embedding */
    TIME_ATTENTION, /* norms, Q, K, V, RoPE, the cache, attention, output projection */
    TIME_ROUTE,     /* the router and the choice of experts */
    TIME_PACK,      /* rows gathered for other ranks, and posted */
    TIME_WAIT,      /* coordinator: for answers; follower: for requests */
    TIME_EXPERT,    /* experts, the shared one too */
    TIME_COMBINE,   /* answers of other ranks and the layer's sum added */
    TIME_HEAD,      /* final norm and logits */
    TIME_SAMPLE,    /* from logits to tokens */
    TIME_TRAIN,     /* losses, gradients and the optimizer of a router */
    TIMING_SECTIONS
};

struct timing {  /* plain bytes: travels between ranks as it is */
    int32_t now; /* enum timing_section */
    int32_t rank;
    int64_t since; /* ns, when `now` began; 0: not started */
    int64_t ns[TIMING_SECTIONS];
    double bytes[TIMING_SECTIONS],
        flops[TIMING_SECTIONS];   /* weights (and cache) read, operations done: as counted by who did them */
    uint64_t steps, rows, tokens; /* forward passes, their rows, tokens sampled */
    int64_t memory_bytes;         /* high-water mark of the process, filled by timing_stop() */
};

static inline int64_t timing_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline enum timing_section timing_enter(struct timing *t, enum timing_section section)
{
    if (!t) return TIME_OTHER;
    enum timing_section was = (enum timing_section)t->now;
    int64_t now = timing_clock();

    t->ns[was] += now - t->since;
    t->since = now;
    t->now = section;
    return was;
}

/* `bytes` of weights were read and `flops` done, in the section that is on. */
static inline void timing_work(struct timing *t, double bytes, double flops)
{
    if (!t) return;
    t->bytes[t->now] += bytes;
    t->flops[t->now] += flops;
}

/* One product of `rows` rows with a matrix of rows_out x cols_in weights that take `bytes` in all. */
static inline void timing_product(struct timing *t, double bytes, int rows, int rows_out, int cols_in)
{
    timing_work(t, bytes, 2.0 * rows * rows_out * cols_in);
}

static inline void timing_step(struct timing *t, int rows, int tokens)
{
    if (!t) return;
    t->steps += rows > 0;
    t->rows += (uint64_t)rows;
    t->tokens += (uint64_t)tokens;
}

void timing_start(struct timing *t, int rank); /* all zero, in TIME_OTHER; a section that is on goes on */
void timing_stop(struct timing *t);            /* brings the sums up to now, and fills memory_bytes; it goes on counting */
const char *timing_name(enum timing_section s);
double timing_seconds(const struct timing *t, enum timing_section s);
double timing_total(const struct timing *t); /* of all sections */

#endif
