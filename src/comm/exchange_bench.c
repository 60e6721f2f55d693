#include "comm/exchange_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "comm/comm_internal.h"

enum { KIND_CHECK = 50, KIND_ECHO, KIND_RAW, KIND_END };
enum { TAG_RAW = 30000, ROUNDS_MAX = 999, IDLE_ROUNDS = 9 };

static const double ROUND_SECONDS = 2e-3, IDLE_SECONDS = 0.05;

struct bench {
    struct comm *comm;
    const struct exchange_bench *how;
    struct exchange *x;
    struct arena *arena;
    uint8_t *out, *in;      /* ours to send from, and for plain MPI to receive into */
    double *ours, *raw;     /* [rounds] */
    volatile uint64_t read; /* so that reading is not left out */
};

static void fill(uint8_t *to, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) to[i] = (uint8_t)((seed * 2654435761u + i * 40503u) >> 7);
}

static bool holds(const uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != (uint8_t)((seed * 2654435761u + i * 40503u) >> 7)) return false;
    return true;
}

static void read_lines(struct bench *b, const void *p, size_t n)
{
    const uint8_t *at = p;
    uint64_t sum = 0;

    for (size_t i = 0; i < n; i += 64) sum += at[i];
    b->read += sum;
}

static status open_bench(struct bench *b, struct comm *c, const struct exchange_bench *how, struct err *e)
{
    struct exchange_limits limits = {.request_bytes = how->most,
                                     .answer_bytes = how->most > sizeof(struct err) ? how->most : sizeof(struct err),
                                     .deadline = how->deadline,
                                     .threads = how->threads,
                                     .apart = how->apart};
    size_t rounds = (size_t)how->rounds;

    BUG_ON(how->least < 1 || how->most < how->least || how->rounds < 1 || how->rounds > ROUNDS_MAX);
    *b = (struct bench){.comm = c, .how = how};
    size_t cost =
        exchange_cost(c->rank == 0, c->size, limits) + 2 * arena_cost(how->most, 1) + 2 * arena_cost(rounds, sizeof(double));
    if (arena_open(&b->arena, "exchange bench", cost, e)) return e->code;
    struct arena_taker t = {.arena = b->arena, .e = e};
    b->out = arena_take(&t, how->most, 1);
    b->in = arena_take(&t, how->most, 1);
    b->ours = arena_take(&t, rounds, sizeof(double));
    b->raw = arena_take(&t, rounds, sizeof(double));
    if (!t.failed && !exchange_open(&b->x, c, limits, b->arena, e)) {
        fill(b->out, how->most, (uint64_t)c->rank);
        memset(b->in, 0, how->most);
        return OK;
    }
    arena_close(b->arena);
    return e->code;
}

static void close_bench(struct bench *b)
{
    exchange_close(b->x);
    if (!b->comm->dirty) arena_close(b->arena);
}

static status mpi_failed(const struct bench *b, int rank, struct err *e)
{
    return err_set(e, ERR_RANK, "rank %d (%s): plain MPI fails", rank, b->comm->peers[rank].host);
}

/* ---- plain MPI ---- */

static int raw_ask(struct bench *b, int rank, size_t n)
{
    MPI_Request q[2];
    int code = MPI_Irecv(b->in, (int)n, MPI_BYTE, rank, TAG_RAW, b->comm->world, &q[0]);

    if (!code) code = MPI_Isend(b->out, (int)n, MPI_BYTE, rank, TAG_RAW, b->comm->world, &q[1]);
    if (!code) code = MPI_Waitall(2, q, MPI_STATUSES_IGNORE);
    read_lines(b, b->in, n);
    return code;
}

static int raw_answer(struct bench *b, size_t n)
{
    MPI_Request q;
    int code = MPI_Irecv(b->in, (int)n, MPI_BYTE, 0, TAG_RAW, b->comm->world, &q);

    if (!code) code = MPI_Wait(&q, MPI_STATUS_IGNORE);
    read_lines(b, b->in, n);
    if (!code) code = MPI_Isend(b->out, (int)n, MPI_BYTE, 0, TAG_RAW, b->comm->world, &q);
    return code ? code : MPI_Wait(&q, MPI_STATUS_IGNORE);
}

/* ---- the coordinator ---- */

/* One request with n bytes and its answer. */
static status ask(struct bench *b, int rank, int kind, size_t n, int times, struct err *e)
{
    struct request r = {.kind = kind, .layer = -1, .rows = times, .what = "bench"};
    const void *payload = NULL;

    r.number[0] = (double)n;
    exchange_post(b->x, 0, rank, &r, b->out, kind == KIND_ECHO || kind == KIND_CHECK ? n : 0, NULL, 0);
    if (exchange_wait(b->x, 0, e)) return e->code;
    if (kind != KIND_ECHO && kind != KIND_CHECK) return OK;
    const struct answer *a = exchange_answer_of(b->x, 0, rank, &payload);
    if (kind == KIND_CHECK && (a->bytes != n || !holds(payload, n, (uint64_t)rank)))
        return err_set(e, ERR_FORMAT, "rank %d (%s): %zu bytes come back wrong", rank, b->comm->peers[rank].host, n);
    read_lines(b, payload, n);
    return OK;
}

static status time_ours(struct bench *b, int rank, size_t n, int times, double *mean, struct err *e)
{
    double start = clock_now();

    for (int i = 0; i < times; i++)
        if (ask(b, rank, KIND_ECHO, n, 1, e)) return e->code;
    *mean = (clock_now() - start) / times;
    return OK;
}

static status time_raw(struct bench *b, int rank, size_t n, int times, double *mean, struct err *e)
{
    if (ask(b, rank, KIND_RAW, n, times + 1, e)) return e->code;
    if (raw_ask(b, rank, n)) return mpi_failed(b, rank, e); /* now both are at it */
    double start = clock_now();
    for (int i = 0; i < times; i++)
        if (raw_ask(b, rank, n)) return mpi_failed(b, rank, e);
    *mean = (clock_now() - start) / times;
    return OK;
}

static status check(struct bench *b, int rank, size_t n, struct err *e)
{
    double ignored;

    if (ask(b, rank, KIND_CHECK, n, 1, e)) return e->code;
    memset(b->in, 0, n);
    if (time_raw(b, rank, n, 1, &ignored, e)) return e->code;
    if (!holds(b->in, n, (uint64_t)rank))
        return err_set(e, ERR_FORMAT, "rank %d (%s): %zu bytes come back wrong through plain MPI", rank,
                       b->comm->peers[rank].host, n);
    return OK;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* In us of n > 0 samples in seconds, which are sorted. */
static struct exchange_bench_figure figure_of(double *x, int n)
{
    qsort(x, (size_t)n, sizeof(*x), compare);
    return (struct exchange_bench_figure){
        .median = 1e6 * (n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2), .least = 1e6 * x[0], .most = 1e6 * x[n - 1]};
}

static status time_size(struct bench *b, int rank, size_t n, struct exchange_bench_row *row, struct err *e)
{
    double once = 0;
    status st = check(b, rank, n, e);

    for (int i = 0; i < 3 && !st; i++) st = time_ours(b, rank, n, 3, &once, e);
    if (st) return st;
    int times = once > 0 && ROUND_SECONDS / once < 1000 ? (int)(ROUND_SECONDS / once) + 1 : 1000;
    for (int i = 0; i < b->how->rounds && !st; i++) {
        if (i % 2) st = time_raw(b, rank, n, times, &b->raw[i], e);
        if (!st) st = time_ours(b, rank, n, times, &b->ours[i], e);
        if (!st && i % 2 == 0) st = time_raw(b, rank, n, times, &b->raw[i], e);
    }
    if (st) return st;
    *row = (struct exchange_bench_row){
        .rank = rank, .bytes = n, .ours = figure_of(b->ours, b->how->rounds), .raw = figure_of(b->raw, b->how->rounds)};
    row->ratio = row->raw.median / row->ours.median;
    return OK;
}

static status time_idle(struct bench *b, int rank, struct exchange_bench_row *row, struct err *e)
{
    double seconds[IDLE_ROUNDS];

    for (int i = 0; i < IDLE_ROUNDS; i++) {
        clock_sleep(IDLE_SECONDS);
        if (time_ours(b, rank, row->bytes, 1, &seconds[i], e)) return e->code;
    }
    row->idle_us = figure_of(seconds, IDLE_ROUNDS).median;
    return OK;
}

int exchange_bench_rows(const struct exchange_bench *b, int ranks)
{
    int sizes = 0;

    for (size_t n = b->least; n <= b->most; n *= 2) sizes++;
    return sizes * (ranks - 1);
}

status exchange_bench_lead(struct comm *c, const struct exchange_bench *how, struct exchange_bench_row *row, struct err *e)
{
    struct err ignored = {0};
    struct bench b;
    status st = OK;

    if (c->size == 1) return OK;
    if (open_bench(&b, c, how, e)) return e->code;
    for (int rank = 1; rank < c->size && !st; rank++)
        for (size_t n = how->least; n <= how->most && !st; n *= 2, row++) {
            st = time_size(&b, rank, n, row, e);
            if (!st && n == how->least) st = time_idle(&b, rank, row, e);
        }
    for (int rank = 1; rank < c->size && st != ERR_RANK; rank++) {
        if (ask(&b, rank, KIND_END, 0, 0, &ignored) != ERR_RANK) continue;
        *e = ignored;
        st = ERR_RANK;
    }
    close_bench(&b);
    return st;
}

/* ---- a follower ---- */

/* Answers one request; returns MPI's code. */
static int answer(struct bench *b, const struct request *r, const void *payload)
{
    static const char wrong[] = "bytes arrive wrong";
    size_t n = (size_t)r->number[0];
    bool right = true;
    int code = 0;

    if (r->kind == KIND_CHECK) right = r->bytes == n && holds(payload, n, 0);
    if (r->kind == KIND_ECHO) read_lines(b, payload, n);
    if (!right) exchange_answer(b->x, r, ERR_FORMAT, 0, wrong, sizeof(wrong));
    else exchange_answer(b->x, r, OK, 0, b->out, r->kind == KIND_ECHO || r->kind == KIND_CHECK ? n : 0);
    for (int i = 0; i < r->rows && r->kind == KIND_RAW && !code; i++) code = raw_answer(b, n);
    return code;
}

status exchange_bench_follow(struct comm *c, const struct exchange_bench *how, struct err *e)
{
    const void *payload;
    struct request r = {0};
    struct bench b;
    status st = OK;

    if (open_bench(&b, c, how, e)) return e->code;
    while (!st && r.kind != KIND_END) {
        st = exchange_next(b.x, &r, &payload, e);
        if (!st && (r.kind < KIND_CHECK || r.kind > KIND_END)) {
            /* The coordinator was stopped in the middle, and ends the job. */
            exchange_answer(b.x, &r, OK, 0, NULL, 0);
            st = err_set(e, STOPPED, "stopped by a signal");
        } else if (!st && answer(&b, &r, payload)) {
            st = mpi_failed(&b, 0, e);
        }
    }
    close_bench(&b);
    return st;
}
