#include "jobs/training.h"

#include <sys/stat.h>

#include "jobs/finetune_fit.h"
#include "jobs/finetune_run.h"
#include "model/router_file.h"
#include "train/fit.h"
#include "train/stage2.h"

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Tokens of a part of the text: no more of them than the text may have, and a token has a byte or more. */
static int64_t tokens_of(const struct spec *s, int64_t wanted)
{
    const struct spec_text *t = &s->finetune.text;
    struct stat file;

    if (!t->file) return t->sample_tokens > 0 ? least(wanted, t->sample_tokens) : wanted;
    if (t->bytes > 0) wanted = least(wanted, t->bytes);
    return !stat(t->file, &file) && S_ISREG(file.st_mode) ? least(wanted, file.st_size) : wanted;
}

static struct router_form form_of(const struct spec *s, const struct shape *y)
{
    bool late = s->stage2.stage == 2, trained = late && spec_trains(s, TRAIN_COMPENSATION);

    return (struct router_form){.kind = late ? 0 : (int32_t)s->finetune.router,
                                .rank = late || s->finetune.router == SPEC_ROUTER_LINEAR ? 0 : (int32_t)s->finetune.router_rank,
                                .means = late ? y->compensate : s->finetune.compensation == REFIT_UNSELECTED,
                                .scaled = late ? trained : s->finetune.refit_scale == REFIT_SCALE_FITTED,
                                .low_rank = (int32_t)s->finetune.compensation_rank,
                                .constant = (trained && !y->compensate) || s->finetune.compensation == REFIT_CONSTANT};
}

/* Of every number its value, and of those that gradients train three more. */
static size_t router_bytes(struct router *r, bool fitted_too)
{
    struct router_part part[ROUTER_PARTS];
    size_t bytes = 0;

    for (int i = router_parts(r, part); i-- > 0;) {
        float **is = part[i].where;
        bool trained = fitted_too || is == &r->weight || is == &r->bias || is == &r->factor;

        bytes += (size_t)r->layers * part[i].rows * part[i].cols * sizeof(float) * (trained ? 4 : 1);
    }
    return bytes;
}

/* These come one after the other: the largest is what there must be room for. */
static void keep_largest(struct training_cost *c)
{
    int most = TRAINING_FIT;

    for (int i = TRAINING_FIT; i <= TRAINING_CHECKPOINT; i++)
        if (c->bytes[i] > c->bytes[most]) most = i;
    for (int i = TRAINING_FIT; i <= TRAINING_CHECKPOINT; i++)
        if (i != most) c->bytes[i] = 0;
}

void training_cost(struct training_cost *c, const struct spec *s, const struct shape *y, int rows)
{
    bool late = s->stage2.stage == 2;
    double layers = y->layers, width = y->width, neurons = layers * y->neurons, state = 0;
    struct router_form form = form_of(s, y);
    struct router r;
    struct err e;

    *c = (struct training_cost){0};
    if (router_alloc_form(&r, y, &form, &e)) return;
    bool fits = !late && finetune_fits(&r);

    c->bytes[TRAINING_ROUTER] = router_bytes(&r, late && spec_trains(s, TRAIN_COMPENSATION));
    if (late) c->bytes[TRAINING_PASS] = stage2_cost(y, &r, &(struct stage2_options){.rows = rows});
    if (fits || (!late && s->finetune.start == START_RIDGE))
        c->bytes[TRAINING_FIT] = fit_cost(&r, tokens_of(s, s->finetune.fit_tokens), rows);
    if (s->finetune.select == SELECT_THRESHOLD && !fits)
        c->bytes[TRAINING_SCORES] = (size_t)(4 * layers * y->experts * (double)tokens_of(s, THRESHOLD_TOKENS));
    if (late && spec_trains(s, TRAIN_NORMS)) c->bytes[TRAINING_NORMS] = (size_t)(20 * (2 * layers + 1) * width);
    if (late && spec_trains(s, TRAIN_LORA))
        state = 36 * (double)s->stage2.lora_rank * (neurons + layers * (y->experts + 1) * width);
    else if (late && spec_trains(s, TRAIN_EXPERTS)) state = 36 * neurons * width;
    c->bytes[TRAINING_CHECKPOINT] = (size_t)state;
    keep_largest(c);
    router_free(&r);
}

size_t training_total(const struct training_cost *c)
{
    size_t total = 0;

    for (int i = 0; i < TRAINING_PARTS; i++) total += c->bytes[i];
    return total;
}

void training_say(struct str *out, const struct training_cost *c)
{
    static const char *const name[TRAINING_PARTS] = {"router",     "norms",      "a pass of batch_rows",
                                                     "fit_tokens", "thresholds", "while a checkpoint is written"};
    const char *comma = "";

    for (int i = 0; i < TRAINING_PARTS; i++) {
        if (!c->bytes[i]) continue;
        str_addf(out, "%s%s %.1f", comma, name[i], (double)c->bytes[i] / (1 << 20));
        comma = ", ";
    }
}

void training_keys(struct str *out, const struct training_cost *c, const struct spec *s)
{
    if (c->bytes[TRAINING_FIT]) str_addf(out, "fit_tokens (%lld), ", (long long)s->finetune.fit_tokens);
    if (c->bytes[TRAINING_CHECKPOINT] && spec_trains(s, TRAIN_LORA))
        str_addf(out, "lora_rank (%lld), ", (long long)s->stage2.lora_rank);
}
