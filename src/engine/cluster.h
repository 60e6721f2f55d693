/* The ranks at work: the coordinator opens a model on all of them and drives it, the followers answer until they are told to stop.
 *
 * Jobs live on the coordinator alone; a follower knows four things: open this model, answer for its experts, close, stop.
 */
#ifndef ENGINE_CLUSTER_H
#define ENGINE_CLUSTER_H

#include "base/log.h"
#include "base/timing.h"
#include "comm/comm.h"
#include "comm/exchange_bench.h"
#include "data/spec.h"
#include "model/forward.h"

struct cluster;

/* Local.  Threads, deadline, placement and limits come from the spec. */
status cluster_open(struct cluster **out, struct comm *c, const struct spec *s, struct err *e);
void cluster_close(struct cluster *c);

/* Coordinator.  Opens the model on every rank with the placement of the spec, in place of the one that was open; an error of any rank comes back as
 * "rank R (HOST): ...".  The model belongs to the cluster. */
status cluster_model(struct cluster *c, const char *directory, struct model_limits limits, struct model **out, struct err *e);
/* What a rank takes for a model: model_cost() with all exchanges as the cluster opens them, and what several coordinators need beside them. */
void cluster_cost(struct model_cost *c, const struct shape *s, const struct placement *p, int rank, int ranks,
                  const struct weights_plan *plan, struct model_limits limits);
/* Coordinator.  forward() on the open model, by all its coordinators (model_limits.coordinators) if there are several: those have to be told the router of ROUTE_ROUTER
 * first, once; so have the ranks that hold experts, if it brings means of its own (moe_select()).  It is borrowed while it is in use. */
status cluster_forward(struct cluster *c, const struct batch *b, const struct routing *how, int micro_batches, float *hidden,
                       struct err *e);
status cluster_router(struct cluster *c, const struct router *r, struct err *e);
/* Coordinator.  Logits [n, V] of n rows of hidden: the rows are shared out to all coordinators, or the words to all ranks of a split model. */
status cluster_logits(struct cluster *c, const float *hidden, int n, float *logits, struct err *e);
void cluster_release(struct cluster *c); /* closes the model on every rank */
/* Now and then during long local work, so that the followers know that the coordinator lives. */
void cluster_alive(struct cluster *c);
void cluster_tick(void *cluster); /* the same, for a struct alive */
/* Tells the followers to end; their cluster_follow() returns `verdict`. */
void cluster_stop(struct cluster *c, status verdict);

/* Follower: serves until it is told to stop (OK or the verdict) or the coordinator is lost (ERR_RANK). */
status cluster_follow(struct cluster *c, struct err *e);

/* Where to say what a person should know when a model is opened (ranks without experts, once). */
void cluster_log(struct cluster *c, struct log *l);

/* Coordinator.  out[ranks]: where the time of every rank went since it was cleared last, up to now; with `clear` they begin anew.  The times of a rank
 * that answers requests are its sections, and TIME_WAIT between them.  ERR_RANK. */
status cluster_timing(struct cluster *c, struct timing *out, bool clear, struct err *e);
struct timing *cluster_timing_here(struct cluster *c); /* this rank's own, to be counted in */

/* Coordinator, with no model open afterwards: the exchange against plain MPI on every rank (comm/exchange_bench.h); deadline, threads and shared memory as
 * the spec says.  row: [exchange_bench_rows()]. */
status cluster_bench_exchange(struct cluster *c, struct exchange_bench how, struct exchange_bench_row *row, struct err *e);

struct comm *cluster_comm(struct cluster *c);
struct gemm *cluster_gemm(struct cluster *c);
const struct exchange_stats *cluster_exchange(struct cluster *c); /* all traffic since cluster_open() */

#endif
