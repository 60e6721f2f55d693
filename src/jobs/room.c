#include "jobs/room.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/json.h"

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int room_positions(const struct spec *s, const struct shape *shape)
{
    return (int)least(s->limits.positions ? s->limits.positions : shape->positions, shape->positions);
}

static enum moe_answers answers_of(const struct spec *s)
{
    if (s->cluster.exchange_answers == ANSWERS_F32) return MOE_ANSWERS_F32;
    return s->cluster.exchange_answers == ANSWERS_BF16 ? MOE_ANSWERS_BF16 : MOE_ANSWERS_EXACT;
}

struct precision room_precision(const struct spec *s)
{
    return (struct precision){.part = {[WEIGHTS_EXPERTS] = (uint8_t)s->precision.experts,
                                       [WEIGHTS_ATTENTION] = (uint8_t)s->precision.attention,
                                       [WEIGHTS_HEAD] = (uint8_t)s->precision.head},
                              .router = (uint8_t)s->precision.router};
}

bool room_packs(const struct spec *s)
{
    return s->precision.experts || s->precision.attention || s->precision.head;
}

struct json_t *room_precision_json(const struct spec *s)
{
    static const char *const names[] = {"stored", "f32", "bf16", "q8", "q4"}; /* enum spec_precision */
    char text[128];

    int n = snprintf(text, sizeof(text), "experts %s, attention %s, head %s, router %s, kv %s%s", names[s->precision.experts],
                     names[s->precision.attention], names[s->precision.head], names[s->precision.router],
                     kv_name((enum kv_format)s->precision.kv), s->precision.activations ? ", activations bf16" : "");
    return json_text_new(text, (size_t)n);
}

enum format room_router(const struct spec *s)
{
    return s->precision.router ? (enum format)(s->precision.router - 1) : FORMAT_F32;
}

struct precision room_opening(const struct spec *s)
{
    return s->kind == JOB_FACTORIZE || s->kind == JOB_CONVERT ? (struct precision){.original = 1} : room_precision(s);
}

static struct model_limits limits_of(const struct spec *s, int64_t rows, int64_t sessions, int64_t positions)
{
    return (struct model_limits){
        .rows = (int)rows,
        .sessions = (int)most(least(sessions, rows), 1),
        .positions = (int)positions,
        .verify = s->verify_weights,
        .precision = room_opening(s),
        .half = s->precision.activations != 0,
        .kv = (enum kv_format)s->precision.kv, /* the same order of names */
        .wire = {.rows = s->cluster.exchange_rows == ROWS_BF16 ? MOE_ROWS_BF16 : MOE_ROWS_F32, .answers = answers_of(s)}};
}

/* Sessions for sequences that do not fill a window: limits.sessions of them, but where sessions are long no more of them than take the
 * memory of limits.sessions short ones. */
static int64_t short_sessions(const struct spec *s, int64_t positions)
{
    return least(s->limits.sessions, s->limits.sessions * ROOM_SAMPLE_WINDOW / positions);
}

static bool measures(const struct spec *s, enum spec_variant v)
{
    for (int i = 0; i < s->eval.variants.n; i++)
        if (spec_variant_of(s->eval.variants.items[i]).kind == v) return true;
    return false;
}

int room_sample(const struct spec *s, const struct shape *shape)
{
    const struct spec_text *text = &s->factorize.calibration;
    int64_t token = 2 * (int64_t)shape->layers * (shape->neurons + shape->width), tokens = s->factorize.profile_tokens;

    if (s->factorize.grouping != GROUP_COACTIVATION && s->factorize.grouping != GROUP_PREDICTED &&
        s->factorize.budget == BUDGET_UNIFORM)
        return 0;
    tokens = least(tokens, (s->factorize.profile_mib << 20) / token);
    if (text->sample_tokens > 0) tokens = least(tokens, text->sample_tokens);
    else if (text->bytes > 0) tokens = least(tokens, text->bytes); /* a token has a byte or more */
    return (int)most(tokens, 1);
}

status room_factorize(struct room *r, const struct spec *s, const struct shape *shape, struct err *e)
{
    int64_t positions = least(room_positions(s, shape), ROOM_CALIBRATION_WINDOW), sessions = s->limits.batch_rows / positions;

    (void)e;
    if (s->factorize.calibration.sample_tokens > 0) sessions = most(sessions, short_sessions(s, positions));
    *r = (struct room){.limits = limits_of(s, s->limits.batch_rows, sessions, positions), .window = (int)positions};
    r->limits.slices = true;
    r->limits.notes = true;
    r->limits.sample = room_sample(s, shape);
    return OK;
}

status room_finetune(struct room *r, const struct spec *s, const struct shape *shape, struct err *e)
{
    bool late = s->stage2.stage == 2;
    int64_t cap = room_positions(s, shape),
            window = s->finetune.sequence ? s->finetune.sequence : least(cap, late ? ROOM_END_TO_END_WINDOW : ROOM_WINDOW);

    if (window > shape->positions)
        return err_set(e, ERR_SPEC, "%s: sequence: %lld tokens, the model has %d positions", s->source, (long long)window,
                       shape->positions);
    int64_t rows = most(s->limits.batch_rows, window); /* a window passes whole: its gradient is one sum */
    int64_t positions = window, sessions = rows / window;
    if (s->finetune.text.sample_tokens > 0) {
        positions = most(positions, least(cap, ROOM_SAMPLE_WINDOW));
        sessions = most(sessions, short_sessions(s, positions));
    }
    *r = (struct room){.limits = limits_of(s, rows, sessions, positions), .window = (int)window};
    r->limits.oracle = !late;
    r->limits.train = late;
    r->limits.adapt = late && spec_trains_experts(s);
    r->limits.lora = late && spec_trains(s, TRAIN_LORA) ? (int)s->stage2.lora_rank : 0;
    r->limits.lora_seed = (uint64_t)s->seed;
    training_cost(&r->training, s, shape, (int)rows);
    r->spec = s;
    r->limits.beside = training_total(&r->training);
    return OK;
}

static void share_attention(struct room *r, const struct spec *s)
{
    r->limits.coordinators = (int)s->cluster.coordinators;
    r->limits.split = s->cluster.tensor_parallel;
}

status room_eval(struct room *r, const struct spec *s, const struct shape *shape, int longest, struct err *e)
{
    int64_t cap = room_positions(s, shape), rows = s->limits.batch_rows;
    bool text = s->eval.text.file || s->eval.text.sample_tokens > 0, sampled = s->eval.text.sample_tokens > 0;
    int64_t window = s->eval.window ? s->eval.window : least(cap, ROOM_WINDOW);

    if (window > cap)
        return err_set(e, ERR_SPEC, "%s: window: %lld tokens, the model takes %lld positions", s->source, (long long)window,
                       (long long)cap);
    int64_t positions = most(text || s->eval.domains.n ? window : 1, longest);
    if (sampled) positions = most(positions, least(cap, ROOM_SAMPLE_WINDOW));
    int64_t sessions = (rows + positions - 1) / positions; /* a sequence may be cut by the end of a pass */
    if (sampled || longest) sessions = most(sessions, short_sessions(s, positions));
    if (s->eval.decode_batch > rows)
        return err_set(e, ERR_SPEC, "%s: decode_batch: %lld sequences, but limits.batch_rows is %lld", s->source,
                       (long long)s->eval.decode_batch, (long long)rows);
    sessions = most(sessions, s->eval.decode_batch);
    *r = (struct room){.limits = limits_of(s, rows, sessions, positions), .window = (int)window};
    share_attention(r, s);
    r->limits.oracle = shape->experts && (measures(s, VARIANT_ORACLE) || measures(s, VARIANT_ROUTER) ||
                                          measures(s, VARIANT_ORACLE_VARIABLE) || measures(s, VARIANT_NEURONS));
    r->limits.calibration = shape->experts && shape->calibrated && measures(s, VARIANT_STATIC);
    return OK;
}

status room_infer(struct room *r, const struct spec *s, const struct shape *shape, int64_t requests, int64_t longest,
                  struct err *e)
{
    int64_t cap = s->limits.positions ? s->limits.positions : shape->positions;

    if (cap < 2 || cap > shape->positions)
        return err_set(e, ERR_LIMIT, "%s: limits.positions: expected 2 to the model's %d, found %lld", s->source,
                       shape->positions, (long long)cap);
    *r = (struct room){.limits =
                           limits_of(s, s->limits.batch_rows, least(s->limits.sessions, requests), least(cap, most(longest, 2))),
                       .window = 0};
    share_attention(r, s);
    r->limits.oracle = shape->experts && s->infer.variant == VARIANT_ORACLE;
    r->limits.calibration = shape->experts && s->infer.variant == VARIANT_STATIC;
    return OK;
}

status room_bench(struct room *r, const struct spec *s, const struct shape *shape, struct err *e)
{
    enum { CHECK_TOKENS = 16, WARM_TOKENS = 2 };
    int64_t together = 1, positions = CHECK_TOKENS;

    for (int i = 0; i < s->bench.batches.n; i++) together = most(together, strtoll(s->bench.batches.items[i], NULL, 10));
    positions = most(positions, s->bench.prefill);
    if (s->bench.decode_tokens) positions = most(positions, s->bench.context + s->bench.decode_tokens + WARM_TOKENS);
    if (positions > shape->positions)
        return err_set(e, ERR_SPEC, "%s: prefill, context + decode_tokens: %lld positions, the model has %d", s->source,
                       (long long)positions, shape->positions);
    int64_t rows = most(most(s->bench.prefill, together), CHECK_TOKENS);
    *r = (struct room){.limits = limits_of(s, rows, together, positions), .window = 0};
    share_attention(r, s);
    return OK;
}

status room_hint(const struct room *r, struct err *e)
{
    const struct model_limits *limits = &r->limits;
    struct str of_it = {0}, keys = {0};
    size_t n = strlen(e->text);

    if (e->code != ERR_LIMIT) return e->code;
    if (limits->beside) {
        str_addf(&of_it, "; training takes %.1f MiB of rank 0's (", (double)limits->beside / (1 << 20));
        training_say(&of_it, &r->training);
        str_addz(&of_it, ")");
        training_keys(&keys, &r->training, r->spec);
    }
    snprintf(e->text + n, sizeof(e->text) - n,
             "%s; lower %slimits.batch_rows (%d rows now), limits.sessions (%d) or limits.positions (%d)",
             of_it.text ? of_it.text : "", keys.text ? keys.text : "", limits->rows, limits->sessions, limits->positions);
    str_free(&of_it);
    str_free(&keys);
    return e->code;
}

status room_open(struct cluster *c, const char *directory, const struct room *r, struct model **m, struct err *e)
{
    return cluster_model(c, directory, r->limits, m, e) ? room_hint(r, e) : OK;
}
