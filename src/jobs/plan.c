#include "jobs/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/machine.h"
#include "base/str.h"
#include "engine/place.h"
#include "model/split.h"

double plan_remote_ranks(const struct placement *p, int k)
{
    double sum = 0;

    for (int l = 0; l < p->layers; l++)
        for (int r = 1; r < p->ranks; r++) {
            int here = placement_count(p, l, r);
            double none = 1; /* C(N - n, k) / C(N, k), factor by factor */

            for (int i = 0; i < k; i++) {
                double left = p->experts - here - i;
                none *= left > 0 ? left / (p->experts - i) : 0;
            }
            sum += 1 - none;
        }
    return p->layers ? sum / p->layers : 0;
}

static double mib(size_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_weights(FILE *to, const struct weights_plan *w, bool opens)
{
    fputs("  weights     ", to);
    for (int i = 0; i < WEIGHT_PARTS; i++)
        fprintf(to, "%s%s %s", i ? ", " : "", weight_part_name((enum weight_part)i), format_name(w->format[i]));
    fputs(!opens      ? "\n"
          : w->packed ? "; used in place, from the packed file\n"
                      : "; packed into memory when the model is opened\n",
          to);
}

static void print_shape(FILE *to, const struct plan_step *p)
{
    const struct shape *s = &p->shape;
    int64_t all = shape_parameters(s), ffn = shape_ffn_parameters(s);

    fprintf(to, "  model       %s%s%s\n", p->spec->model, p->made_by ? ", which will be made by step " : "",
            p->made_by ? p->made_by : "");
    fprintf(to, "  shape       %d layers, width %d, %d neurons, %d heads (%d of keys and values), vocabulary %d, %d positions\n",
            s->layers, s->width, s->neurons, s->heads, s->kv_heads, s->vocab, s->positions);
    fprintf(to, "  parameters  %.2f M, of which FFNs %.2f M\n", (double)all / 1e6, (double)ffn / 1e6);
    print_weights(to, &p->weights, p->opens);
    if (s->experts)
        fprintf(to, "  experts     %d per layer of %d neurons, %d active, %d neurons shared: f = %.1f %%\n", s->experts,
                shape_expert_neurons(s, 0, 0), s->active, s->shared[0], 100 * shape_active_share(s));
    else fputs("  experts     none: the model is dense, the coordinator computes it alone\n", to);
}

static void print_makes(FILE *to, const struct plan_step *p)
{
    struct shape made;
    struct err e;

    if (p->spec->kind != JOB_FACTORIZE || plan_factorized(&made, &p->shape, p->spec, &e)) return;
    fprintf(to, "  makes       %d experts per layer of %d neurons, %d active, %d neurons shared: f = %.1f %%\n", made.experts,
            shape_expert_neurons(&made, 0, 0), made.active, made.shared[0], 100 * shape_active_share(&made));
}

/* "3" or "2-3": experts of a rank in a layer. */
static void experts_of(char out[32], const struct placement *p, int rank)
{
    int least = p->experts, most = 0;

    for (int l = 0; l < p->layers; l++) {
        int n = placement_count(p, l, rank);

        if (n < least) least = n;
        if (n > most) most = n;
    }
    if (least == most) snprintf(out, 32, "%d", most);
    else snprintf(out, 32, "%d-%d", least, most);
}

static status print_memory(FILE *to, const struct plan_step *p, const struct placement *where, int ranks, struct err *e)
{
    size_t allowed = (size_t)p->spec->limits.memory_mib << 20, here = (size_t)machine_memory();
    const struct model_limits *room = &p->room.limits;
    struct host_cost host = {0};
    struct model_cost cost;

    fprintf(to, "  room        %d rows a step, %d session%s of %d positions\n", room->rows, room->sessions,
            room->sessions == 1 ? "" : "s", room->positions);
    fprintf(to, "  %5s  %-11s  %17s  %11s  %9s  %9s  %9s%s  %9s\n", "rank", "role", "experts per layer", "weights MiB",
            "KV cache", "work", "exchange", room->beside ? "   training" : "", "total");
    for (int r = 0; r < ranks; r++) {
        char experts[32];

        cluster_cost(&cost, &p->shape, where, r, ranks, &p->weights, *room);
        experts_of(experts, where, r);
        bool coordinator = r == 0 || r < room->coordinators;
        fprintf(to, "  %5d  %-11s  %17s  %11.1f  %9.1f  %9.1f  %9.1f", r, coordinator ? "coordinator" : "follower", experts,
                mib(cost.mapped + cost.weights), mib(cost.kv), mib(cost.work), mib(cost.exchange));
        if (room->beside) fprintf(to, "  %9.1f", mib(cost.beside));
        fprintf(to, "  %9.1f\n", mib(model_cost_total(&cost)));
        host_cost_add(&host, &cost);
        if (allowed && model_cost_total(&cost) > allowed) {
            err_set(e, ERR_LIMIT, "step %s: rank %d needs %zu MiB, limits.memory_mib allows %zu", p->spec->name, r,
                    model_cost_total(&cost) >> 20, allowed >> 20);
            return room_hint(&p->room, e);
        }
    }
    size_t sum = host_cost_total(&host);
    if (allowed || !here || sum <= here) return OK;
    err_set(e, ERR_LIMIT, "step %s: %d rank%s need%s %zu MiB%s, this machine has %zu; limits.memory_mib plans for another one",
            p->spec->name, ranks, ranks == 1 ? "" : "s", ranks == 1 ? "s" : "", sum >> 20, ranks == 1 ? "" : " together",
            here >> 20);
    return room_hint(&p->room, e);
}

static void print_split_traffic(FILE *to, const struct plan_step *p, int ranks)
{
    double out, back;

    split_traffic(&p->shape, p->room.limits, ranks, &out, &back);
    fprintf(to, "  traffic     of attention, a token and layer: %.0f bytes out, %.0f bytes back; through %d layers %.1f KiB\n",
            out, back, p->shape.layers, p->shape.layers * (out + back) / 1024);
}

static void print_traffic(FILE *to, const struct plan_step *p, const struct placement *where, int ranks)
{
    const struct shape *s = &p->shape;

    if (ranks > 1 && p->room.limits.split) print_split_traffic(to, p, ranks);
    if (ranks == 1 || !s->experts) {
        if (ranks > 1 && p->room.limits.split) return;
        fputs("  traffic     none between ranks\n", to);
        return;
    }
    double remote = plan_remote_ranks(where, s->active);
    double out = (double)s->width * 4 + bits_words(s->experts) * 8.0, back = (double)s->width * 8;
    fprintf(to,
            "  traffic     a token and layer: %.2f remote ranks of %d, %.0f bytes out, %.0f bytes back (rows of %.0f and %.0f)\n",
            remote, ranks - 1, remote * out, remote * back, out, back);
    fprintf(to, "              a token through %d layers: %.1f KiB, if every expert is as likely\n", s->layers,
            s->layers * remote * (out + back) / 1024);
}

static const char *sampled(const struct spec_text *t, const char *file)
{
    return t->sample_tokens > 0 && !t->file ? file : "";
}

static size_t packed_bytes(const struct plan_step *p)
{
    const struct precision wanted = room_precision(p->spec);
    struct weights_plan made = p->weights;
    struct placement alone;
    struct model_cost cost;
    struct err e;

    made.packed = true;
    for (int i = 0; i < WEIGHT_PARTS; i++)
        if (wanted.part[i]) made.format[i] = (enum format)(wanted.part[i] - 1);
    BUG_ON(placement_make(&alone, PLACEMENT_BLOCK, p->shape.layers, p->shape.experts, 1, true, &e));
    model_cost(&cost, &p->shape, &alone, 0, 1, &made, p->room.limits);
    placement_free(&alone);
    return cost.mapped;
}

static void print_writes(FILE *to, const struct plan_step *p)
{
    const struct spec *s = p->spec;
    bool adapted = spec_adapts(s);
    size_t n;

    fprintf(to, "  writes      %s/: spec.yaml, log.jsonl, result.json", s->output);
    switch (s->kind) {
    case JOB_FACTORIZE:
        fprintf(to, "%s, model/ (%.1f MiB%s)", sampled(&s->factorize.calibration, ", calibration.tokens.json"),
                mib((size_t)shape_parameters(&p->shape) * dtype_bytes(p->weights.embedding)),
                room_packs(s) ? ", and packed" : "");
        break;
    case JOB_CONVERT:
        fprintf(to, ", model/ (%.1f MiB)", mib(packed_bytes(p)));
        break;
    case JOB_FINETUNE:
        fprintf(to, "%s, checkpoint while it runs\n              %s%s/routers/%s/, routers/current",
                sampled(&s->finetune.text, ", finetune.tokens.json"), adapted ? s->output : s->model,
                adapted ? "/model/, model" : "", s->finetune.version ? s->finetune.version : "vN");
        break;
    case JOB_EVAL:
        fprintf(to, "%s%s", sampled(&s->eval.text, ", eval.tokens.json"),
                s->eval.minimal_pairs.n + s->eval.multiple_choice.n + s->eval.last_word.n > 0 ? ", items.json" : "");
        if (s->eval.domains.n > 0) fputs(", knowledge.json", to);
        fputs(", partial.json while it runs", to);
        break;
    case JOB_INFER:
        n = strlen(s->infer.result);
        if (n > 6 && !strcmp(s->infer.result + n - 6, ".jsonl")) n -= 6;
        fprintf(to, "\n              %s, %.*s.meta.json", s->infer.result, (int)n, s->infer.result);
        break;
    case JOB_REPORT:
        fprintf(to, ", report.html%s",
                s->report.rows.n > 0     ? ", ladder.md"
                : s->report.inputs.n > 1 ? ", and of two evals or more ladder.md"
                                         : "");
        break;
    case JOB_BENCH:
        fputs(", bench.csv, bench.jsonl", to);
        break;
    default:
        break;
    }
    fputc('\n', to);
}

/* The model that eval opens after its own. */
static status print_other(FILE *to, const struct plan_step *p, int ranks, struct err *e)
{
    struct plan_step other = *p;
    struct placement where = {0};

    if (!p->has_other) return OK;
    other.shape = p->other;
    other.weights = p->other_weights;
    other.room = p->other_room;
    fprintf(to, "  then        %s\n", p->spec->eval.compare_model);
    if (place_experts(&where, other.spec, &other.shape, other.room.limits.split, ranks, e)) return e->code;
    status st = print_memory(to, &other, &where, ranks, e);
    placement_free(&where);
    return st;
}

/* The dense model in slices over the ranks, and what else the coordinator takes (jobs/calibrate.h, jobs/factorize_group.h). */
static status print_calibration(FILE *to, const struct plan_step *p, int ranks, struct err *e)
{
    struct plan_step sliced = *p;
    struct placement where = {0};
    const struct shape *s = &p->shape;
    double sample = p->room.limits.sample, neurons = (double)s->layers * s->neurons, experts = (double)p->spec->factorize.experts;

    shape_slice(&sliced.shape);
    if (place_experts(&where, p->spec, &sliced.shape, p->room.limits.split, ranks, e)) return e->code;
    fprintf(to, "  calibrates  the dense model in %d slices a layer, a sample of %.0f tokens at most\n", sliced.shape.experts,
            sample);
    status st = print_memory(to, &sliced, &where, ranks, e);
    fprintf(to, "              and on the coordinator %.1f MiB, with %.1f more for the layer that is grouped\n",
            mib((size_t)(20 * neurons + 2 * sample * s->layers * s->width)),
            mib((size_t)(4 * sample * (2.0 * s->neurons + s->width + 3 * experts) + 4.0 * s->neurons * (1024 + 2 * experts) +
                         (sample > 0 ? 24.0 * s->width * s->width : 0))));
    if (!st) print_traffic(to, &sliced, &where, ranks);
    placement_free(&where);
    return st;
}

/* What of the coordinator's total it is. */
static void print_training(FILE *to, const struct plan_step *p)
{
    const struct training_cost *c = &p->room.training;
    struct str parts = {0};

    if (!training_total(c)) return;
    training_say(&parts, c);
    fprintf(to, "  trains      on the coordinator, %sabout %.1f MiB: %s\n", p->spec->stage2.stage == 2 ? "at least " : "",
            mib(training_total(c)), parts.text ? parts.text : "");
    str_free(&parts);
}

static void print_reads(FILE *to, const struct spec *s)
{
    for (int i = 0; i < s->report.inputs.n; i++) fprintf(to, "  %-11s %s\n", i ? "" : "reads", s->report.inputs.items[i]);
    for (int i = 0; i < s->report.rows.n; i++) fprintf(to, "  %-11s %s\n", i ? "" : "rows", s->report.rows.items[i]);
}

static status print_step(FILE *to, const struct plan_step *p, int ranks, struct err *e)
{
    struct placement where = {0};

    fprintf(to, "\n%s: %s\n", p->spec->name, spec_kind_name(p->spec->kind));
    if (p->spec->kind == JOB_REPORT) {
        print_reads(to, p->spec);
        print_writes(to, p);
        return OK;
    }
    print_shape(to, p);
    print_makes(to, p);
    if (place_experts(&where, p->spec, &p->shape, p->room.limits.split, ranks, e)) return e->code;
    status st = OK;
    if (p->opens && p->room.limits.slices) st = print_calibration(to, p, ranks, e);
    else if (p->opens) st = print_memory(to, p, &where, ranks, e);
    else fputs("  memory      the model is not run: its files are read piece by piece\n", to);
    if (st == OK && p->spec->kind == JOB_FINETUNE) print_training(to, p);
    if (st == OK) st = print_other(to, p, ranks, e);
    if (st == OK) {
        if (!p->room.limits.slices) print_traffic(to, p, &where, ranks);
        print_writes(to, p);
    }
    placement_free(&where);
    return st;
}

status plan_print(FILE *to, const struct spec *s, int ranks, struct err *e)
{
    int n = s->kind == JOB_PIPELINE ? s->n_steps : 1;
    struct plan_step *steps = calloc((size_t)n, sizeof(*steps));
    status st = OK;

    BUG_ON(!steps || ranks < 1);
    fprintf(to, "%s: %s, %d step%s on %d rank%s with %" PRId64 " thread%s each\n", s->source, spec_kind_name(s->kind), n,
            n == 1 ? "" : "s", ranks, ranks == 1 ? "" : "s", s->cluster.threads, s->cluster.threads == 1 ? "" : "s");
    for (int i = 0; i < n && st == OK; i++) {
        st = plan_step(steps, s, i, e);
        if (st == OK) st = print_step(to, &steps[i], ranks, e);
    }
    if (st == OK && s->kind == JOB_PIPELINE) fprintf(to, "\nand %s/: spec.yaml, result.json\n", s->output);
    free(steps);
    return st;
}
