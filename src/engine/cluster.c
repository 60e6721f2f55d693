/* The coordinator's side and the followers'.  What a model takes is in cluster_memory.c. */
#include <stdlib.h>
#include <string.h>

#include "engine/cluster_internal.h"
#include "engine/place.h"
#include "model/split.h"

/* Requests that are not the moe's.  While no model is open the ranks talk through a small exchange; an open model brings one of its own,
 * sized for its rows.  Both sides change over at the same message: OPEN is answered in the small one, CLOSE in the model's. */
enum {
    KIND_OPEN = 1,
    KIND_CLOSE,
    KIND_STOP,
    KIND_TIMING /* payload: clear, int32; answer: struct timing */,
    KIND_BENCH /* payload: struct exchange_bench */
};

/* To open a part of a model is to read it, perhaps from a disk that others use, too. */
static const double OPEN_SECONDS = 600;

struct cluster {
    struct comm *comm;
    const struct spec *spec;
    struct gemm *gemm;
    struct exchange *exchange; /* the small one or the model's; NULL with one rank */
    struct arena *control, *arena;
    struct placement placement;
    struct model *model;
    struct spread spread;                /* of a model with several coordinators, else closed */
    bool asked;                          /* the followers were asked to open this model */
    struct exchange_stats before, total; /* of exchanges closed; and with the open one, as last asked for */
    struct timing timing, said;          /* of this rank; what it answered last, which must stay while it travels */
    struct log *log;                     /* or NULL */
    bool warned, warned_apart;           /* of ranks without experts, of ranks that do not share memory */
};

static bool alone(const struct cluster *c)
{
    return comm_size(c->comm) == 1;
}

static bool is_coordinator(const struct cluster *c)
{
    return comm_rank(c->comm) == 0;
}

/* Limits of every exchange, for payloads of the cluster's own requests. */
static struct exchange_limits own_limits(const struct cluster *c)
{
    return (struct exchange_limits){.request_bytes = sizeof(struct open_request),
                                    .answer_bytes = ANSWER_BYTES,
                                    .deadline = c->spec->cluster.deadline_seconds,
                                    .threads = (int)c->spec->cluster.threads,
                                    .apart = c->spec->cluster.shared_memory == SHARED_NEVER};
}

static status open_control(struct cluster *c, struct err *e)
{
    struct exchange_limits limits = own_limits(c);

    if (alone(c)) return OK;
    size_t cost = exchange_cost(is_coordinator(c), comm_size(c->comm), limits);
    if (arena_open(&c->control, "control", cost + 4096, e)) return e->code;
    return exchange_open(&c->exchange, c->comm, limits, c->control, e);
}

static void close_exchange(struct cluster *c)
{
    if (c->exchange) exchange_stats_add(&c->before, exchange_stats(c->exchange));
    exchange_close(c->exchange);
    c->exchange = NULL;
    arena_close(c->control);
    c->control = NULL;
}

/* The exchange of an open model lives in the model's arena: it goes first. */
static void close_model(struct cluster *c)
{
    model_close(c->model);
    c->model = NULL;
    spread_traffic(&c->spread, &c->before);
    spread_close(&c->spread);
    if (!c->control) close_exchange(c);
    placement_free(&c->placement);
    c->placement = (struct placement){0};
    arena_close(c->arena);
    c->arena = NULL;
}

static status highest_level(const struct spec *s, enum isa *most, struct err *e)
{
    enum isa best = isa_best();

    *most = s->cluster.kernels ? (enum isa)(s->cluster.kernels - 1) : best;
    if (*most <= best) return OK;
    return err_set(e, ERR_SPEC, "cluster.kernels: expected auto or a level up to %s, which this processor has, found %s",
                   isa_name(best), isa_name(*most));
}

status cluster_open(struct cluster **out, struct comm *comm, const struct spec *s, struct err *e)
{
    struct cluster *c = calloc(1, sizeof(*c));

    enum isa most;

    *out = NULL;
    BUG_ON(!c);
    *c = (struct cluster){.comm = comm, .spec = s};
    timing_start(&c->timing, comm_rank(comm));
    if (highest_level(s, &most, e) || gemm_open(&c->gemm, (int)s->cluster.threads, most, e) || open_control(c, e)) {
        cluster_close(c);
        return e->code;
    }
    *out = c;
    return OK;
}

void cluster_close(struct cluster *c)
{
    if (!c) return;
    close_model(c);
    close_exchange(c);
    gemm_close(c->gemm);
    free(c);
}

static void warn_of_idle_ranks(struct cluster *c, const struct shape *s)
{
    if (!s->experts || c->warned) return;
    for (int r = 1; r < comm_size(c->comm); r++) {
        if (placement_count(&c->placement, -1, r) > 0) continue;
        log_warn(c->log, "rank %d (%s) holds no experts: %d experts a layer, %d ranks", r, comm_peer(c->comm, r)->host,
                 s->experts, comm_size(c->comm));
        c->warned = true;
    }
}

static void warn_of_ranks_apart(struct cluster *c)
{
    const char *why = c->exchange ? exchange_note(c->exchange) : NULL;

    if (!why || c->warned_apart) return;
    log_warn(c->log, "ranks of one host do not share memory, their rows go through MPI: %s", why);
    c->warned_apart = true;
}

/* Products with bfloat16 activations have other bits on other levels: then all ranks need the same one. */
static status choose_kernels(struct cluster *c, struct open_request *q, struct err *e)
{
    gemm_use_half(c->gemm, q->limits.half, c->log);
    enum isa mine = gemm_kernel(c->gemm)->isa;

    if (is_coordinator(c)) q->level = (int32_t)mine;
    if (!q->limits.half || (int32_t)mine == q->level) return OK;
    return err_set(
        e, ERR_SPEC,
        "kernels of level %s, rank 0 has %s: with precision.activations: bf16 all ranks need one level: cluster.kernels: %s",
        isa_name(mine), isa_name((enum isa)q->level), isa_name((int32_t)mine < q->level ? mine : (enum isa)q->level));
}

static status read_shape(struct shape *s, const struct open_request *q, struct err *e)
{
    if (shape_read(s, q->directory, e)) return e->code;
    if (q->limits.slices) shape_slice(s);
    return OK;
}

/* Local on every rank.  The exchange of the model is opened by the caller, after both sides have come this far. */
static status open_part(struct cluster *c, const struct open_request *q, struct exchange_limits *limits, struct err *e)
{
    struct shape *s = malloc(sizeof(*s));
    struct weights_plan weights;
    struct model_cost cost;
    status st;

    BUG_ON(!s);
    *limits = own_limits(c);
    st = read_shape(s, q, e);
    if (!st) st = place_experts(&c->placement, c->spec, s, q->limits.split, comm_size(c->comm), e);
    if (!st) st = weights_plan(&weights, q->directory, s, &q->limits.precision, e);
    if (!st && is_coordinator(c)) {
        warn_of_idle_ranks(c, s);
        st = cluster_memory(c->comm, c->spec, s, &c->placement, &weights, q->limits, e);
    }
    if (!st) {
        *limits = cluster_talk(*limits, s, comm_size(c->comm), q->limits);
        cluster_cost(&cost, s, &c->placement, comm_rank(c->comm), comm_size(c->comm), &weights, q->limits);
        st = arena_open(&c->arena, "model", cost.kv + cost.work + cost.exchange + ((size_t)1 << 20), e);
    }
    free(s);
    return st;
}

/* `x` is the model's exchange; the small one is closed by then. */
static status open_model(struct cluster *c, const struct open_request *q, struct exchange *x, struct err *e)
{
    struct shape s;

    if (read_shape(&s, q, e)) return e->code;
    if (c->spread.coordinators) x = spread_own(&c->spread);
    status st = model_open(&c->model, q->directory, &s, &c->placement, comm_rank(c->comm), q->limits, c->gemm, x, c->arena, e);
    if (st == OK) model_time(c->model, &c->timing);
    if (st == OK && c->spread.coordinators) spread_begin(&c->spread, c->model);
    return st;
}

static status switch_exchange(struct cluster *c, const struct open_request *q, struct exchange_limits limits, struct err *e)
{
    int coordinators = q->limits.coordinators;
    struct shape s;

    if (alone(c)) return OK;
    close_exchange(c);
    if (exchange_open(&c->exchange, c->comm, limits, c->arena, e)) return e->code;
    if (coordinators < 2) return OK;
    if (shape_read(&s, q->directory, e)) return e->code;
    return spread_open(&c->spread, c->comm, coordinators, limits, c->exchange, q->limits.rows, s.width, c->gemm, c->arena, e);
}

/* The same small request to every follower; first failed answer, or ERR_RANK. */
static status ask_all(struct cluster *c, int kind, const char *what, const void *payload, size_t bytes, struct err *e)
{
    struct request r = {.kind = kind, .layer = -1};

    if (alone(c)) return OK;
    strncpy(r.what, what, sizeof(r.what) - 1);
    if (kind == KIND_OPEN && c->spec->cluster.deadline_seconds < OPEN_SECONDS) r.deadline = OPEN_SECONDS;
    for (int rank = 1; rank < comm_size(c->comm); rank++) exchange_post(c->exchange, 0, rank, &r, payload, bytes, NULL, 0);
    return exchange_wait(c->exchange, 0, e);
}

status cluster_model(struct cluster *c, const char *directory, struct model_limits limits, struct model **out, struct err *e)
{
    struct open_request *q = calloc(1, sizeof(*q));
    struct exchange_limits talk;
    status st;

    *out = NULL;
    BUG_ON(!q);
    enum timing_section was = timing_enter(&c->timing, TIME_OPEN);
    cluster_release(c);
    if (strlen(directory) >= sizeof(q->directory)) {
        timing_enter(&c->timing, was);
        free(q);
        return err_set(e, ERR_SPEC, "%s: path is longer than %zu bytes", directory, sizeof(q->directory) - 1);
    }
    strcpy(q->directory, directory);
    q->limits = limits;
    if (limits.coordinators > comm_size(c->comm)) {
        log_warn(c->log, "cluster.coordinators: %d, but there %s %d rank%s", limits.coordinators, alone(c) ? "is" : "are",
                 comm_size(c->comm), alone(c) ? "" : "s");
        q->limits.coordinators = comm_size(c->comm);
    }

    /* What is wrong with the files shows on the coordinator first, and only then are the others asked. */
    st = choose_kernels(c, q, e);
    if (!st) st = open_part(c, q, &talk, e);
    if (!st) {
        c->asked = !alone(c);
        st = ask_all(c, KIND_OPEN, "open model", q, sizeof(*q), e);
    }
    if (!st) st = switch_exchange(c, q, talk, e);
    if (!st) st = open_model(c, q, c->exchange, e);
    if (!st) st = ask_all(c, KIND_OPEN, "load experts", NULL, 0, e);
    warn_of_ranks_apart(c);
    if (st == OK) *out = c->model;
    else if (st != ERR_RANK) cluster_release(c);
    timing_enter(&c->timing, was);
    free(q);
    return st;
}

status cluster_router(struct cluster *c, const struct router *r, struct err *e)
{
    if (r && moe_select(model_moe(c->model), r, e)) return e->code;
    return c->spread.coordinators ? spread_router(&c->spread, r, e) : OK;
}

status cluster_forward(struct cluster *c, const struct batch *b, const struct routing *how, int micro_batches, float *hidden,
                       struct err *e)
{
    if (c->spread.coordinators) return spread_forward(&c->spread, b, how, micro_batches, hidden, e);
    return forward(c->model, b, how, micro_batches, hidden, e);
}

status cluster_logits(struct cluster *c, const float *hidden, int n, float *logits, struct err *e)
{
    if (c->spread.coordinators) return spread_logits(&c->spread, hidden, n, logits, e);
    return forward_words(c->model, hidden, n, logits, e);
}

void cluster_release(struct cluster *c)
{
    struct err ignored = {0};

    /* A rank that does not answer shows at the next request. */
    if (c->asked) ask_all(c, KIND_CLOSE, "close model", NULL, 0, &ignored);
    close_model(c);
    if (c->asked && !c->exchange) open_control(c, &ignored);
    c->asked = false;
}

static void answer(struct cluster *c, const struct request *r, status st, const struct err *e)
{
    exchange_answer(c->exchange, r, st, 0, e->text, st ? strlen(e->text) + 1 : 0);
}

/* The bench has an exchange of its own, in place of the small one. */
status cluster_bench_exchange(struct cluster *c, struct exchange_bench how, struct exchange_bench_row *row, struct err *e)
{
    struct exchange_limits own = own_limits(c);

    if (alone(c)) return OK;
    cluster_release(c);
    how.deadline = own.deadline, how.threads = own.threads, how.apart = own.apart;
    if (ask_all(c, KIND_BENCH, "bench exchange", &how, sizeof(how), e)) return e->code;
    close_exchange(c);
    if (exchange_bench_lead(c->comm, &how, row, e) == ERR_RANK) return ERR_RANK;
    struct err mine = {0};
    status st = open_control(c, &mine);
    if (!e->code && st) *e = mine;
    return e->code;
}

static status bench_here(struct cluster *c, const struct request *r, const void *payload, struct err *e)
{
    struct exchange_bench how;
    struct err none = {0};

    BUG_ON(r->bytes != sizeof(how));
    memcpy(&how, payload, sizeof(how));
    answer(c, r, OK, &none);
    close_exchange(c);
    if (exchange_bench_follow(c->comm, &how, e)) return e->code;
    return open_control(c, e);
}

void cluster_alive(struct cluster *c)
{
    if (c->exchange) exchange_ping(c->exchange);
}

void cluster_tick(void *cluster)
{
    cluster_alive(cluster);
}

void cluster_stop(struct cluster *c, status verdict)
{
    struct err ignored = {0};
    int32_t code = verdict;

    ask_all(c, KIND_STOP, "stop", &code, sizeof(code), &ignored);
}

status cluster_timing(struct cluster *c, struct timing *out, bool clear, struct err *e)
{
    int32_t flag = clear;
    status st = ask_all(c, KIND_TIMING, "timing", &flag, sizeof(flag), e);

    if (st) return st;
    timing_stop(&c->timing);
    out[0] = c->timing;
    if (clear) timing_start(&c->timing, 0);
    for (int rank = 1; rank < comm_size(c->comm); rank++) {
        const void *payload = NULL;
        const struct answer *a = exchange_answer_of(c->exchange, 0, rank, &payload);

        BUG_ON(!a || a->bytes != sizeof(*out));
        memcpy(&out[rank], payload, sizeof(*out));
    }
    return OK;
}

struct timing *cluster_timing_here(struct cluster *c)
{
    return &c->timing;
}

static void answer_timing(struct cluster *c, const struct request *r, const void *payload)
{
    int32_t clear = 0;

    if (r->bytes == sizeof(clear)) memcpy(&clear, payload, sizeof(clear));
    timing_stop(&c->timing);
    c->said = c->timing;
    exchange_answer(c->exchange, r, OK, 0, &c->said, sizeof(c->said));
    if (clear) timing_start(&c->timing, comm_rank(c->comm));
}

/* The next request: one that ended a pass of this rank, or one that is waited for.  `from`: what this rank listens to. */
static status next_request(struct cluster *c, struct exchange *const **from, int *which, struct request *r, const void **payload,
                           struct err *e)
{
    bool several = c->spread.coordinators > 0;

    *from = several ? c->spread.all : &c->exchange;
    *which = 0;
    if (spread_kept(&c->spread, r, payload)) return OK;
    return exchange_next_of(*from, several ? c->spread.n_all : 1, which, r, payload, e);
}

status cluster_follow(struct cluster *c, struct err *e)
{
    struct open_request *q = calloc(1, sizeof(*q));
    struct exchange_limits talk = {0};
    const void *payload;
    struct request r = {0};
    status verdict = OK;
    bool control = true; /* which exchange is in use */
    int which;

    BUG_ON(!q);
    for (;;) {
        struct exchange *const *from;
        struct err mine = {0};
        timing_enter(&c->timing, TIME_WAIT);
        status st = next_request(c, &from, &which, &r, &payload, e);
        timing_enter(&c->timing, r.kind == KIND_OPEN ? TIME_OPEN : TIME_OTHER);

        if (st) {
            verdict = st;
            break;
        }
        if (r.kind == KIND_STOP) {
            int32_t code = 0;

            if (r.bytes == sizeof(code)) memcpy(&code, payload, sizeof(code));
            answer(c, &r, OK, &mine);
            verdict = (status)code;
            break;
        }
        if (r.kind == KIND_TIMING) {
            answer_timing(c, &r, payload);
        } else if (r.kind == KIND_OPEN && control) {
            BUG_ON(r.bytes != sizeof(*q));
            memcpy(q, payload, sizeof(*q));
            st = choose_kernels(c, q, &mine);
            if (!st) st = open_part(c, q, &talk, &mine);
            answer(c, &r, st, &mine);
            if (st) continue; /* the coordinator closes */
            if ((verdict = switch_exchange(c, q, talk, e))) break;
            control = false;
        } else if (r.kind == KIND_OPEN) {
            st = open_model(c, q, c->exchange, &mine);
            answer(c, &r, st, &mine);
        } else if (r.kind == KIND_BENCH && control) {
            if ((verdict = bench_here(c, &r, payload, e))) break;
        } else if (r.kind == KIND_CLOSE) {
            answer(c, &r, OK, &mine);
            close_model(c);
            /* still open where the model's was never opened */
            if (!c->exchange && (verdict = open_control(c, e))) break;
            control = true;
        } else if (r.kind >= SPREAD_KIND_FIRST && r.kind <= SPREAD_KIND_LAST && c->spread.coordinators) {
            if ((verdict = spread_answer(&c->spread, &r, payload, e))) break;
        } else if (r.kind >= SPLIT_KIND_FIRST && r.kind <= SPLIT_KIND_LAST && c->model) {
            split_answer(c->model, c->exchange, &r, payload);
        } else {
            BUG_ON(r.kind < MOE_KIND_FIRST || r.kind > MOE_KIND_LAST || !c->model);
            moe_answer(model_moe(c->model), from[which], &r, payload);
        }
    }
    free(q);
    return verdict;
}

struct comm *cluster_comm(struct cluster *c)
{
    return c->comm;
}

struct gemm *cluster_gemm(struct cluster *c)
{
    return c->gemm;
}

const struct exchange_stats *cluster_exchange(struct cluster *c)
{
    c->total = c->before;
    if (c->exchange) exchange_stats_add(&c->total, exchange_stats(c->exchange));
    spread_traffic(&c->spread, &c->total);
    return &c->total;
}

void cluster_log(struct cluster *c, struct log *l)
{
    c->log = l;
}
