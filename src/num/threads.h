/* The one owner of threads in a rank: workers that share loops. */
#ifndef NUM_THREADS_H
#define NUM_THREADS_H

#include "base/err.h"

struct threads;

/* Starts `count` - 1 workers (count >= 1); the caller is the first thread.  ERR_LIMIT. */
status threads_open(struct threads **out, int count, struct err *e);
void threads_close(struct threads *t); /* NULL is fine */
int threads_count(const struct threads *t);

/* Runs task(ctx, i, worker) for i = 0 .. n-1 and returns when all are done; which thread runs which is not fixed, so results must not
 * depend on it.  `worker` is 0 .. count-1, for scratch.  Not from inside a task. */
void threads_run(struct threads *t, int n, void (*task)(void *ctx, int i, int worker), void *ctx);

#endif
