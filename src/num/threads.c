#include "num/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 2000 };

struct threads {
    int count;
    pthread_t *worker;
    int workers;
    /* One loop at a time; `generation` counts them. */
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    atomic_uint generation;
    atomic_int next, running;
    bool busy, leave;
    int n;
    void (*task)(void *ctx, int i, int worker);
    void *ctx;
};

struct worker_start {
    struct threads *pool;
    int index;
};

static void drain(struct threads *t, int worker)
{
    for (int i; (i = atomic_fetch_add(&t->next, 1)) < t->n;) t->task(t->ctx, i, worker);
}

static void *worker_main(void *arg)
{
    struct worker_start start = *(struct worker_start *)arg;
    struct threads *t = start.pool;
    unsigned seen = 0;

    free(arg);
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&t->generation) == seen; spin++) sched_yield();
        pthread_mutex_lock(&t->lock);
        while (atomic_load(&t->generation) == seen) pthread_cond_wait(&t->wake, &t->lock);
        seen = atomic_load(&t->generation);
        bool leave = t->leave;
        pthread_mutex_unlock(&t->lock);
        if (leave) return NULL;

        drain(t, start.index);
        if (atomic_fetch_sub(&t->running, 1) == 1) {
            pthread_mutex_lock(&t->lock);
            pthread_cond_signal(&t->idle);
            pthread_mutex_unlock(&t->lock);
        }
    }
}

void threads_run(struct threads *t, int n, void (*task)(void *ctx, int i, int worker), void *ctx)
{
    BUG_ON(t->busy);
    t->busy = true;
    if (!t->workers || n < 2) {
        for (int i = 0; i < n; i++) task(ctx, i, 0);
        t->busy = false;
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->n = n;
    t->task = task;
    t->ctx = ctx;
    atomic_store(&t->next, 0);
    atomic_store(&t->running, t->workers);
    atomic_fetch_add(&t->generation, 1);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);

    drain(t, 0);
    for (int spin = 0; spin < SPINS && atomic_load(&t->running); spin++) sched_yield();
    pthread_mutex_lock(&t->lock);
    while (atomic_load(&t->running)) pthread_cond_wait(&t->idle, &t->lock);
    pthread_mutex_unlock(&t->lock);
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
    t->leave = true;
    atomic_fetch_add(&t->generation, 1);
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
