/* The part `exchange`: rows between ranks, by our exchange and by plain MPI. */
#include <stdlib.h>

#include "comm/exchange_bench.h"
#include "jobs/bench.h"

enum { LEAST_BYTES = 64, MOST_BYTES = 4 << 20 };

static struct bench_row row_of(const struct exchange_bench_row *x, const char *side, struct exchange_bench_figure f, int rounds)
{
    struct bench_row row = bench_row(PART_EXCHANGE, "there and back", side);

    snprintf(row.shape, sizeof(row.shape), "%zu bytes", x->bytes);
    snprintf(row.unit, sizeof(row.unit), "us");
    row.figure = (struct bench_figure){.median = f.median, .least = f.least, .most = f.most, .rounds = rounds};
    row.rows = x->rank;
    return row;
}

static void put(struct bench *b, const struct exchange_bench_row *x, int rounds)
{
    struct bench_row ours = row_of(x, "ours", x->ours, rounds), raw = row_of(x, "plain MPI", x->raw, rounds);

    ours.ratio = x->ratio;
    snprintf(ours.of, sizeof(ours.of), "plain MPI's speed");
    bench_put(b, &ours, NULL);
    bench_put(b, &raw, NULL);
    log_line(b->job->log, "  %4d %10zu %12.2f %12.2f %8.3f %10.2f", x->rank, x->bytes, x->ours.median, x->raw.median, x->ratio,
             x->ours.median > 0 ? 2 * (double)x->bytes / x->ours.median / 1e3 : 0);
}

status bench_exchange(struct bench *b, struct err *e)
{
    struct exchange_bench how = {.least = LEAST_BYTES, .most = MOST_BYTES, .rounds = (int)b->job->spec->bench.rounds | 1};
    int n = exchange_bench_rows(&how, b->place.ranks);

    if (b->place.ranks < 2) {
        log_line(b->job->log, "\nexchange: one rank has nobody to exchange with; start it with mpirun -n 2");
        return OK;
    }
    struct exchange_bench_row *row = calloc((size_t)n, sizeof(*row));
    BUG_ON(!row);
    status st = cluster_bench_exchange(b->job->cluster, how, row, e);
    if (!st) {
        log_line(b->job->log,
                 "\nexchange: bytes from rank 0 to another one and as many back, ours against plain MPI; rounds take turns");
        log_line(b->job->log, "  %4s %10s %12s %12s %8s %10s", "rank", "bytes", "ours us", "MPI us", "x MPI", "GB/s");
        for (int i = 0; i < n; i++) put(b, &row[i], how.rounds);
        log_line(b->job->log, "  after both had nothing to do for a while: %.1f us for %zu bytes (who waits long sleeps)",
                 row[0].idle_us, row[0].bytes);
    }
    free(row);
    return st;
}
