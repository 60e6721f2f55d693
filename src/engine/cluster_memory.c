/* What an open model takes on every rank, and whether it fits. */
#include "engine/cluster_internal.h"

struct exchange_limits cluster_talk(struct exchange_limits own, const struct shape *s, int ranks, struct model_limits limits)
{
    exchange_raise(&own, sizeof(struct open_request), ANSWER_BYTES);
    model_exchange_limits(&own, s, ranks, limits);
    if (limits.coordinators > 1) spread_limits(&own, limits.rows, s->width, s->vocab);
    return own;
}

void cluster_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks,
                  const struct weights_plan *plan, struct model_limits limits)
{
    if (limits.coordinators > ranks) limits.coordinators = ranks;
    struct exchange_limits talk = cluster_talk((struct exchange_limits){0}, s, ranks, limits);

    model_cost(c, s, p, rank, ranks, plan, limits);
    if (rank == 0) c->beside = limits.beside;
    if (ranks == 1) return;
    c->exchange = exchange_costs(rank, ranks, talk, limits.coordinators);
    if (limits.coordinators > 1) c->exchange += spread_cost(rank, limits.rows, s->width);
}

/* What the ranks on the host of `rank` need together, and `rank` itself. */
static size_t host_need(struct comm *c, int rank, const struct shape *s, const struct placement *p,
                        const struct weights_plan *weights, struct model_limits limits, size_t *own)
{
    struct host_cost host = {0};

    for (int q = 0; q < comm_size(c); q++) {
        struct model_cost cost;

        if (comm_peer(c, q)->host_rank != comm_peer(c, rank)->host_rank) continue;
        cluster_cost(&cost, s, p, q, comm_size(c), weights, limits);
        host_cost_add(&host, &cost);
        if (q == rank) *own = model_cost_total(&cost);
    }
    return host_cost_total(&host);
}

status cluster_memory(struct comm *c, const struct spec *spec, const struct shape *s, const struct placement *p,
                      const struct weights_plan *weights, struct model_limits limits, struct err *e)
{
    size_t allowed = (size_t)spec->limits.memory_mib << 20;

    for (int r = 0; r < comm_size(c); r++) {
        const struct comm_peer *peer = comm_peer(c, r);
        size_t need = 0, host = host_need(c, r, s, p, weights, limits, &need);

        if (allowed && need > allowed)
            return err_set(e, ERR_LIMIT, "rank %d (%s) needs %zu MiB, limits.memory_mib allows %zu", r, peer->host, need >> 20,
                           allowed >> 20);
        if (!allowed && peer->memory_bytes > 0 && host > (size_t)peer->memory_bytes)
            return err_set(e, ERR_LIMIT, "the ranks on %s need %zu MiB together, %lld MiB are available (rank %d: %zu MiB)",
                           peer->host, host >> 20, (long long)(peer->memory_bytes >> 20), r, need >> 20);
    }
    return OK;
}
