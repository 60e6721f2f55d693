/* The parts `step` and `startup`: whole models, dense and factorized, which take turns.
 *
 * A round opens every side in turn (its file is in the page cache), looks what the machine gives just now, lets a step pass that does not count, and
 * then measures: one prefill, and some steps of every batch of decoding sequences.  So the sides of a ratio are seconds apart, round after round.
 * Tokens are drawn by lot, also those of a decode, where what was sampled is thrown away: sequences that repeat each other would all want the same
 * experts.  Routers are random and untrained: they cost what trained ones do.  A decode begins behind `context` positions of zeros in the cache.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/sample.h"
#include "jobs/bench_bar.h"
#include "jobs/bench_step.h"
#include "jobs/room.h"
#include "model/router_file.h"

enum { WARM_STEPS = 1, SAMPLE_ROWS = 64 };

/* ---- sides ---- */

void *race_take(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    BUG_ON(!p);
    return p;
}

static void name_side(struct side *x)
{
    const char *end = x->directory + strlen(x->directory);

    while (end > x->directory && end[-1] == '/') end--;
    const char *begin = end;
    while (begin > x->directory && begin[-1] != '/') begin--;
    snprintf(x->name, sizeof(x->name), "%.*s", (int)(end - begin), begin);
}

static status check_shape(const struct race *r, const struct side *x, struct err *e)
{
    const struct shape *a = &r->bench->shape, *b = &x->shape;

    if (a->layers == b->layers && a->width == b->width && a->neurons == b->neurons && a->heads == b->heads &&
        a->kv_heads == b->kv_heads && a->vocab == b->vocab)
        return OK;
    return err_set(e, ERR_SPEC, "%s: compare: %s has another shape than %s", r->bench->job->spec->source, x->directory,
                   r->bench->job->spec->model);
}

static void add_variant(struct race *r, struct side *x, int active, double batch_experts)
{
    struct variant *v = &x->variant[x->variants++];
    double shared = x->shape.experts ? (double)x->shape.shared[0] / x->shape.neurons : 1;

    *v = (struct variant){.active = active,
                          .share = x->shape.experts ? shared + (1 - shared) * active / x->shape.experts : 1,
                          .how = {.route = active ? ROUTE_ROUTER : ROUTE_ALL,
                                  .router = active ? &x->router : NULL,
                                  .scale = x->shape.scale,
                                  .compensate = x->shape.compensate,
                                  .active = active,
                                  .batch_experts = batch_experts}};
    for (int i = 0; i < r->measures; i++) {
        v->seconds[i] = race_take((size_t)r->rounds, sizeof(double));
        v->wait[i] = race_take((size_t)r->rounds, sizeof(double));
    }
}

static status add_side(struct race *r, const char *directory, struct err *e)
{
    const struct spec *s = r->bench->job->spec;
    struct side *x = &r->side[r->n];
    const struct precision as_stored = {0};
    struct weights_plan plan;

    x->directory = directory;
    name_side(x);
    if (shape_read(&x->shape, directory, e) || check_shape(r, x, e) || weights_plan(&plan, directory, &x->shape, &as_stored, e))
        return e->code;
    memcpy(x->format, plan.format, sizeof(x->format));
    r->n++; /* from here on it is released with the race */
    if (!plan.packed && r->startup)
        log_warn(r->bench->job->log, "%s has no packed file: opening it packs its weights (kind: convert makes one)", directory);
    x->dense = x->coarse = -1;
    x->open = race_take((size_t)r->rounds, sizeof(double));
    x->first = race_take((size_t)r->rounds, sizeof(double));
    x->read = race_take((size_t)r->rounds, sizeof(double));
    x->fma = race_take((size_t)r->rounds, sizeof(double));
    if (!x->shape.experts) {
        x->logits = race_take((size_t)CHECK_TOKENS * (size_t)x->shape.vocab, sizeof(float));
        add_variant(r, x, 0, 0);
        return OK;
    }
    if (router_alloc(&x->router, &x->shape, e)) return e->code;
    router_random(&x->router, (uint64_t)s->seed);
    if (router_pack(&x->router, room_router(s), cluster_gemm(r->bench->job->cluster), e)) return e->code;
    for (int held = 0; held < (s->bench.batch_experts < 1 ? 2 : 1); held++) {
        double most = held ? s->bench.batch_experts : 0;

        if (!s->bench.shares.n) add_variant(r, x, x->shape.active, most);
        for (int i = 0; i < s->bench.shares.n; i++) {
            int k = (int)lround(strtod(s->bench.shares.items[i], NULL) * x->shape.experts);

            add_variant(r, x, k < 1 ? 1 : k, most);
        }
    }
    return OK;
}

/* Who is compared with whom. */
static void pair_sides(struct race *r)
{
    for (int i = 0; i < r->n; i++) {
        struct side *x = &r->side[i];

        if (!x->shape.experts) continue;
        for (int d = r->n - 1; d >= 0; d--)
            if (!r->side[d].shape.experts && same_formats(x, &r->side[d])) x->dense = d;
        for (int c = 0; c < r->n; c++) {
            const struct side *y = &r->side[c];
            int least = x->coarse < 0 ? x->shape.experts : r->side[x->coarse].shape.experts;

            if (y->shape.experts && y->shape.experts < least && same_formats(x, y)) x->coarse = c;
        }
    }
}

static void add_measures(struct race *r)
{
    const struct spec *s = r->bench->job->spec;

    if (!r->step) return;
    if (s->bench.prefill) r->measure[r->measures++] = (struct measure){0, (int)s->bench.prefill};
    for (int i = 0; s->bench.decode_tokens && i < s->bench.batches.n; i++) {
        int together = atoi(s->bench.batches.items[i]);

        r->measure[r->measures++] = (struct measure){together, together * (int)s->bench.decode_tokens};
    }
}

static void race_close(struct race *r)
{
    for (int i = 0; i < r->n; i++) {
        struct side *x = &r->side[i];

        for (int v = 0; v < x->variants; v++)
            for (int m = 0; m < r->measures; m++) {
                free(x->variant[v].seconds[m]);
                free(x->variant[v].wait[m]);
            }
        router_free(&x->router);
        free(x->logits);
        free(x->open);
        free(x->first);
        free(x->read);
        free(x->fma);
    }
    for (int f = 0; f < FORMAT_COUNT; f++) free(r->bar[f]);
    free(r->side);
    free(r->token);
    free(r->position);
    free(r->asked);
    free(r->session);
    free(r->hidden);
    free(r->logits);
}

static status race_open(struct race *r, struct err *e)
{
    const struct spec *s = r->bench->job->spec;
    const struct shape *shape = &r->bench->shape;

    if (room_bench(&r->room, s, shape, e)) return e->code;
    r->room.limits.verify = false;
    size_t rows = (size_t)r->room.limits.rows;
    r->token = race_take(rows, sizeof(*r->token));
    r->position = race_take(rows, sizeof(*r->position));
    r->asked = race_take(rows, sizeof(*r->asked));
    r->session = race_take(rows, sizeof(*r->session));
    r->hidden = race_take(rows * (size_t)shape->width, sizeof(*r->hidden));
    r->logits = race_take((size_t)SAMPLE_ROWS * (size_t)shape->vocab, sizeof(*r->logits));
    r->rounds = (int)s->bench.rounds;
    r->side = race_take((size_t)s->bench.compare.n + 1, sizeof(*r->side));
    add_measures(r);
    if (add_side(r, s->model, e)) return e->code;
    for (int i = 0; i < s->bench.compare.n; i++)
        if (add_side(r, s->bench.compare.items[i], e)) return e->code;
    pair_sides(r);
    return OK;
}

/* ---- steps ---- */

status race_model(struct race *r, const struct side *x, struct model **m, struct err *e)
{
    struct cluster *c = r->bench->job->cluster;

    if (room_open(c, x->directory, &r->room, m, e)) return e->code;
    return x->shape.experts ? cluster_router(c, &x->router, e) : OK;
}

static int32_t draw(const struct race *r, int sequence, int position)
{
    return (int32_t)(rng_hash((uint64_t)r->bench->job->spec->seed, (uint64_t)sequence, (uint64_t)position, 0) %
                     (uint64_t)r->bench->shape.vocab);
}

static status pass(struct race *r, const struct routing *how, int rows, bool decodes, const bool *asked, struct err *e)
{
    struct batch b = {
        .rows = rows, .token = r->token, .position = r->position, .session = r->session, .asked = asked, .decodes = decodes};

    return cluster_forward(r->bench->job->cluster, &b, how, (int)r->bench->job->spec->cluster.micro_batches, r->hidden, e);
}

static void fill_prompt(struct race *r, int first, int n)
{
    for (int t = 0; t < n; t++) {
        r->token[t] = draw(r, 0, first + t);
        r->position[t] = first + t;
        r->session[t] = 0;
    }
}

status race_prompt(struct race *r, const struct routing *how, int first, int n, struct err *e)
{
    fill_prompt(r, first, n);
    return pass(r, how, n, false, NULL, e);
}

status race_answer(struct race *r, const struct routing *how, int n, struct err *e)
{
    fill_prompt(r, 0, n);
    memset(r->asked, 0, (size_t)n * sizeof(*r->asked));
    r->asked[n - 1] = true;
    return pass(r, how, n, false, r->asked, e);
}

static void fill_decode(struct race *r, int sequences, int position, bool same)
{
    for (int i = 0; i < sequences; i++) {
        r->token[i] = draw(r, same ? 0 : i, position);
        r->position[i] = position;
        r->session[i] = i;
    }
}

static status sample(struct race *r, int rows, struct err *e)
{
    const struct sampling greedy = {.temperature = 0, .top_p = 1};
    int vocab = r->bench->shape.vocab;
    struct timing *t = cluster_timing_here(r->bench->job->cluster);

    for (int first = 0; first < rows; first += SAMPLE_ROWS) {
        int n = rows - first < SAMPLE_ROWS ? rows - first : SAMPLE_ROWS;

        const float *hidden = r->hidden + (size_t)first * (size_t)r->bench->shape.width;

        if (cluster_logits(r->bench->job->cluster, hidden, n, r->logits, e)) return e->code;
        enum timing_section was = timing_enter(t, TIME_SAMPLE);
        for (int i = 0; i < n; i++) sample_token(r->logits + (size_t)i * (size_t)vocab, vocab, &greedy, 0, NULL);
        timing_enter(t, was);
    }
    timing_step(t, 0, rows);
    return OK;
}

status race_decode(struct race *r, const struct routing *how, int sequences, int position, bool same, struct err *e)
{
    fill_decode(r, sequences, position, same);
    if (pass(r, how, sequences, true, NULL, e)) return e->code;
    return sample(r, sequences, e);
}

/* ---- measuring ---- */

/* What a quick first prefill would charge for memory that nobody has touched yet is paid before; in a slow one it is lost among the rest. */
static status warm_prefill(struct race *r, struct variant *v, int round, struct err *e)
{
    const double quick = 3;
    double *last = r->measures && !r->measure[0].sequences ? &v->seconds[0][round > 0 ? round - 1 : 0] : NULL;
    status st = OK;

    if (!last || *last > quick) return OK;
    double start = clock_now();
    for (int rows = 32; !st && clock_now() - start < quick / 8 && rows <= r->measure[0].rows; rows *= 2)
        st = race_prompt(r, &v->how, 0, rows, e);
    return st;
}

/* The rows of the embedding that a measurement will read are in memory: one that nobody has asked for yet would come from the file. */
static void touch_embedding(struct race *r, struct model *m, const struct measure *w, int first, int steps)
{
    struct batch b = {
        .rows = w->sequences ? w->sequences : w->rows, .token = r->token, .position = r->position, .session = r->session};

    for (int step = 0; step < (w->sequences ? steps : 1); step++) {
        if (w->sequences) fill_decode(r, w->sequences, first + step, false);
        else fill_prompt(r, 0, w->rows);
        forward_embed(m, &b, r->hidden);
    }
}

static status measure(struct race *r, struct model *m, struct variant *v, int i, int round, struct err *e)
{
    const struct measure *w = &r->measure[i];
    struct timing *t = cluster_timing_here(r->bench->job->cluster), before;
    int context = (int)r->bench->job->spec->bench.context, steps = w->sequences ? w->rows / w->sequences : 0;
    status st = OK;

    for (int warm = 0; warm < WARM_STEPS && !st && w->sequences; warm++)
        st = race_decode(r, &v->how, w->sequences, context + warm, false, e);
    if (st) return st;
    touch_embedding(r, m, w, context + WARM_STEPS, steps);
    timing_stop(t);
    before = *t;
    double start = clock_now();
    if (!w->sequences) {
        st = race_answer(r, &v->how, w->rows, e);
        memmove(r->hidden, r->hidden + (size_t)(w->rows - 1) * (size_t)r->bench->shape.width,
                (size_t)r->bench->shape.width * sizeof(float));
        if (!st) st = sample(r, 1, e);
    }
    for (int step = 0; step < steps && !st; step++)
        st = race_decode(r, &v->how, w->sequences, context + WARM_STEPS + step, false, e);
    v->seconds[i][round] = clock_now() - start;
    timing_stop(t);
    int64_t sum = 0;
    for (int s = 0; s < TIMING_SECTIONS; s++) {
        v->sections[i][s] += t->ns[s] - before.ns[s];
        sum += t->ns[s] - before.ns[s];
    }
    v->wait[i][round] = sum ? (double)(t->ns[TIME_WAIT] - before.ns[TIME_WAIT]) / (double)sum : 0;
    return st;
}

static status visit(struct race *r, struct side *x, int round, struct err *e)
{
    const struct routing all = {.route = ROUTE_ALL};
    struct probe machine;
    struct model *m;

    cluster_release(r->bench->job->cluster);
    if (bench_probe(r->bench, &machine, e)) return e->code;
    x->read[round] = machine.read;
    x->fma[round] = machine.fma;
    double start = clock_now();
    if (race_model(r, x, &m, e)) return e->code;
    x->open[round] = clock_now() - start;
    status st = race_decode(r, &all, 1, 0, false, e); /* touches all there is */
    x->first[round] = clock_now() - start;
    if (!st) st = warm_prefill(r, &x->variant[round % x->variants], round, e);
    for (int v = 0; v < x->variants && !st; v++)
        for (int i = 0; i < r->measures && !st; i++) {
            int at = (v + round) % x->variants; /* who begins changes */

            if (bench_stopped(r->bench, e)) return e->code;
            if (race_measures(&x->variant[at], &r->measure[i])) st = measure(r, m, &x->variant[at], i, round, e);
        }
    return st;
}

/* Bars for the prefills of the dense sides, one for each format. */
static status open_bars(struct race *r, struct bench_bar *bar[FORMAT_COUNT], struct err *e)
{
    const struct spec *s = r->bench->job->spec;

    for (int i = 0; i < r->n && s->bench.rivals && r->measures && !r->measure[0].sequences; i++) {
        const struct side *x = &r->side[i];
        enum format f = x->format[WEIGHTS_EXPERTS];

        if (x->wrong || x->shape.experts || r->bar[f]) continue;
        if (bench_bar_open(&bar[f], r->bench, f, r->measure[0].rows, e)) return e->code;
        r->bar[f] = race_take((size_t)r->rounds, sizeof(double));
    }
    return OK;
}

static status take_rounds(struct race *r, struct err *e)
{
    struct bench_bar *bar[FORMAT_COUNT] = {NULL};
    status st = open_bars(r, bar, e);

    for (int round = 0; round < r->rounds && !st; round++) {
        for (int i = 0; i < r->n && !st; i++) {
            struct side *x = &r->side[round % 2 ? r->n - 1 - i : i];

            if (bench_stopped(r->bench, e)) {
                st = e->code;
                break;
            }
            log_progress(r->bench->job->log, "step", round * r->n + i, r->rounds * r->n, "round %d of %d, %s", round + 1,
                         r->rounds, x->name);
            if (!x->wrong) st = visit(r, x, round, e);
        }
        for (int f = 0; f < FORMAT_COUNT; f++)
            if (bar[f]) r->bar[f][round] = bench_bar_rate(bar[f], &r->bar_of[f]);
    }
    for (int f = 0; f < FORMAT_COUNT; f++) bench_bar_close(bar[f]);
    log_progress_end(r->bench->job->log);
    return st;
}

status bench_step(struct bench *b, struct err *e)
{
    const struct spec *s = b->job->spec;
    struct race r = {.bench = b};

    for (int i = 0; i < s->bench.parts.n; i++) {
        r.step = r.step || !strcmp(s->bench.parts.items[i], spec_part_name(PART_STEP));
        r.startup = r.startup || !strcmp(s->bench.parts.items[i], spec_part_name(PART_STARTUP));
    }
    status st = race_open(&r, e);
    if (!st) log_line(b->job->log, "\nsteps: checking %d side%s first", r.n, r.n > 1 ? "s" : "");
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < r.n && !st; i++)
            if ((r.side[i].shape.experts > 0) == pass) st = race_check(&r, &r.side[i], e);
    if (!st) st = take_rounds(&r, e);
    if (st != ERR_RANK) cluster_release(b->job->cluster);
    if (!st) race_report(&r);
    race_close(&r);
    return st;
}
