#include <string.h>

#include "comm/comm_internal.h"

static void check_host(const struct doctor_view *v, int rank, int threads, struct str *to)
{
    const struct comm_peer *p = &v->peers[rank];
    int ranks = p->ranks_on_host, cores = v->host_cores[rank];

    if (ranks > cores) {
        str_addf(to, "%s: %d ranks share %d processor%s: they take turns and are not faster than %d rank%s\n", p->host, ranks,
                 cores, cores == 1 ? "" : "s", cores, cores == 1 ? "" : "s");
        if (!v->yields)
            str_addf(
                to,
                "%s: with more ranks than processors set OMPI_MCA_mpi_yield_when_idle=1, else waiting ranks hold the others up\n",
                p->host);
    } else if ((int64_t)ranks * threads > cores) {
        str_addf(to, "%s: %d rank%s x %d threads on %d processor%s: use cluster.threads: %d\n", p->host, ranks,
                 ranks == 1 ? "" : "s", threads, cores, cores == 1 ? "" : "s", cores / ranks);
    }
}

void doctor_lines(const struct doctor_view *v, int threads, struct str *warnings)
{
    for (int r = 0; r < v->size; r++)
        if (v->peers[r].host_rank == r) check_host(v, r, threads, warnings);
    /* A narrow mask while the host has room: mpirun binds each rank to one core by default when there are two of them or one. */
    for (int r = 0; r < v->size; r++) {
        const struct comm_peer *p = &v->peers[r];

        if (threads <= p->cores || p->cores >= v->host_cores[r] || (int64_t)p->ranks_on_host * threads > v->host_cores[r])
            continue;
        str_addf(warnings,
                 "rank %d (%s) has %d threads but is bound to %d processor%s: mpirun --bind-to none, or --map-by slot:PE=%d\n", r,
                 p->host, threads, p->cores, p->cores == 1 ? "" : "s", threads);
    }
    if (v->recovery && v->size > 1)
        str_addz(warnings, "mpirun --enable-recovery hides a lost rank: mpirun would return 0; start without it\n");
}
