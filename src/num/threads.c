#include "num/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { SPINS = 2000, MOST_TASKS = (1 << 24) - 1 };

/* A loop as one word, so that a worker that comes late can take nothing of the next one by mistake: which loop, its tasks, and the first that nobody has taken. */
static uint64_t loop_word(unsigned loop, int n)
{
    return (uint64_t)(loop & 0xffff) << 48 | (uint64_t)n << 24;
}

struct threads {
    int count;
    pthread_t *worker;
    int workers;
    _Atomic uint64_t loop; /* loop_word() + tasks taken */
    atomic_int done;       /* tasks of this loop */
    /* Only whoever sleeps needs the lock. */
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    atomic_int sleepers;
    atomic_bool waits; /* threads_run() sleeps */
    atomic_bool leave;
    bool busy;
    unsigned loops;
    void (*task)(void *ctx, int i, int worker);
    void *ctx;
};

struct worker_start {
    struct threads *pool;
    int index;
};

/* Takes tasks until there are none; returns the word that says so. */
static uint64_t drain(struct threads *t, int worker)
{
    uint64_t word = atomic_load(&t->loop);

    while ((word & MOST_TASKS) < (word >> 24 & MOST_TASKS)) {
        if (!atomic_compare_exchange_weak(&t->loop, &word, word + 1)) continue;
        /* the loop cannot end before this task has: task and ctx are its own */
        t->task(t->ctx, (int)(word & MOST_TASKS), worker);
        if ((uint64_t)atomic_fetch_add(&t->done, 1) + 1 == (word >> 24 & MOST_TASKS) && atomic_load(&t->waits)) {
            pthread_mutex_lock(&t->lock);
            pthread_cond_signal(&t->idle);
            pthread_mutex_unlock(&t->lock);
        }
        word = atomic_load(&t->loop);
    }
    return word;
}

/* Until there is another loop than the one that `word` says is used up. */
static void rest(struct threads *t, uint64_t word)
{
    for (int spin = 0; spin < SPINS && atomic_load(&t->loop) == word && !atomic_load(&t->leave); spin++) sched_yield();
    if (atomic_load(&t->loop) != word || atomic_load(&t->leave)) return;
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->loop) == word && !atomic_load(&t->leave)) pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static void *worker_main(void *arg)
{
    struct worker_start start = *(struct worker_start *)arg;

    free(arg);
    while (!atomic_load(&start.pool->leave)) rest(start.pool, drain(start.pool, start.index));
    return NULL;
}

void threads_run(struct threads *t, int n, void (*task)(void *ctx, int i, int worker), void *ctx)
{
    BUG_ON(t->busy || n > MOST_TASKS);
    t->busy = true;
    if (!t->workers || n < 2) {
        for (int i = 0; i < n; i++) task(ctx, i, 0);
        t->busy = false;
        return;
    }
    t->task = task;
    t->ctx = ctx;
    atomic_store(&t->done, 0);
    atomic_store(&t->loop, loop_word(++t->loops, n));
    if (atomic_load(&t->sleepers)) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->lock);
    }

    drain(t, 0);
    for (int spin = 0; spin < SPINS && atomic_load(&t->done) < n; spin++) sched_yield();
    if (atomic_load(&t->done) < n) {
        pthread_mutex_lock(&t->lock);
        atomic_store(&t->waits, true);
        while (atomic_load(&t->done) < n) pthread_cond_wait(&t->idle, &t->lock);
        atomic_store(&t->waits, false);
        pthread_mutex_unlock(&t->lock);
    }
    t->busy = false;
}

status threads_open(struct threads **out, int count, struct err *e)
{
    BUG_ON(count < 1);
    struct threads *t = calloc(1, sizeof(*t));

    *out = NULL;
    if (!t) return err_set(e, ERR_LIMIT, "no memory for %d threads", count);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    pthread_cond_init(&t->idle, NULL);
    t->count = count;
    t->worker = calloc((size_t)count, sizeof(*t->worker));
    if (!t->worker) {
        threads_close(t);
        return err_set(e, ERR_LIMIT, "no memory for %d threads", count);
    }
    for (int i = 1; i < count; i++) {
        struct worker_start *start = malloc(sizeof(*start));
        int failed = 1;

        if (start) {
            *start = (struct worker_start){t, i};
            failed = pthread_create(&t->worker[t->workers], NULL, worker_main, start);
        }
        if (failed) {
            free(start);
            threads_close(t);
            return err_set(e, ERR_LIMIT, "the system refuses thread %d of %d", i + 1, count);
        }
        t->workers++;
    }
    *out = t;
    return OK;
}

void threads_close(struct threads *t)
{
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->leave, true);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->workers; i++) pthread_join(t->worker[i], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_cond_destroy(&t->idle);
    pthread_mutex_destroy(&t->lock);
    free(t->worker);
    free(t);
}

int threads_count(const struct threads *t)
{
    return t->count;
}
