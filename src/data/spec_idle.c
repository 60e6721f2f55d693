/* Keys of finetune that would do nothing: refused, with what they are for.  By their values, since a message and a resolved spec have every key: what has its default was
 * not asked for. */
#include <stdlib.h>
#include <string.h>

#include "data/spec_table.h"

static bool stage_1(const struct spec *s)
{
    return s->stage2.stage == 1;
}

static bool stage_2(const struct spec *s)
{
    return s->stage2.stage == 2;
}

static bool directions(const struct spec *s)
{
    return s->finetune.router != SPEC_ROUTER_LINEAR;
}

static bool refits(const struct spec *s)
{
    return stage_1(s) || s->finetune.compensation != REFIT_UNSELECTED;
}

static bool shares_count(const struct spec *s)
{
    return s->finetune.select == SELECT_THRESHOLD;
}

static bool loads_count(const struct spec *s)
{
    return s->stage2.load_balance > 0;
}

static bool trains_compensation(const struct spec *s)
{
    return spec_trains(s, TRAIN_COMPENSATION);
}

static bool trains_experts(const struct spec *s)
{
    return spec_trains(s, TRAIN_EXPERTS) || spec_trains(s, TRAIN_LORA);
}

static bool trains_lora(const struct spec *s)
{
    return spec_trains(s, TRAIN_LORA);
}

#define FIRST  "stage: 1: stage 2 keeps what the router that it starts from has"
#define LABELS "stage: 1: stage 2 learns from the dense model's logits"
#define SECOND "stage: 2, which trains end to end"

/* The first line of a key whose condition does not hold is what the message says. */
static const struct idle {
    const char *key, *with;
    bool (*works)(const struct spec *s);
} keys[] = {
    {"labels", LABELS, stage_1},
    {"loss", LABELS, stage_1},
    {"token_weights", LABELS, stage_1},
    {"router", FIRST, stage_1},
    {"router_rank", FIRST, stage_1},
    {"start", FIRST, stage_1},
    {"compensation", FIRST, refits},
    {"scale", FIRST, stage_1},
    {"ridge", "stage: 1, which fits by least squares", stage_1},
    {"fit_tokens", "stage: 1, which fits by least squares", stage_1},
    {"router_rank", "router: low_rank, bottleneck or gate", directions},
    {"from", SECOND, stage_2},
    {"train", SECOND, stage_2},
    {"lm_loss", SECOND, stage_2},
    {"budget", SECOND, stage_2},
    {"load_balance", SECOND, stage_2},
    {"balance_over", SECOND, stage_2},
    {"gate_temperature", SECOND, stage_2},
    {"final_gate_temperature_ratio", SECOND, stage_2},
    {"compensation_rate", SECOND, stage_2},
    {"expert_rate", SECOND, stage_2},
    {"lora_rank", SECOND, stage_2},
    {"budget", "select: threshold", shares_count},
    {"balance_over", "load_balance above 0", loads_count},
    {"compensation_rate", "compensation in train", trains_compensation},
    {"expert_rate", "experts or lora in train", trains_experts},
    {"lora_rank", "lora in train", trains_lora},
};

/* *value: as it is written in YAML. */
static bool asked(struct str *value, const struct spec *s, const struct key *k)
{
    struct spec fresh = {.kind = s->kind};
    struct str usual = {0};

    str_clear(value);
    if (!key_has_value(s, k)) return false;
    key_put_default(&fresh, k, key_default(s, k));
    key_value(value, s, k);
    if (key_has_value(&fresh, k)) key_value(&usual, &fresh, k);
    bool differs = !usual.text || strcmp(usual.text, value->text) != 0;

    key_clear(&fresh, k);
    str_free(&usual);
    return differs;
}

status draft_idle_keys(const struct draft *d, struct err *e)
{
    struct str found = {0};
    status code = OK;

    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys) && !code; i++) {
        const struct key *k = key_row(key_find(keys[i].key, d->s->kind));

        if (!keys[i].works(d->s) && asked(&found, d->s, k))
            code = draft_fail(d, keys[i].key, e, "expected only with %s; found %s", keys[i].with, found.text);
    }
    str_free(&found);
    return code;
}

bool key_is_idle(const struct spec *s, const struct key *k)
{
    bool idle = false;

    for (size_t i = 0; s->kind == JOB_FINETUNE && i < sizeof(keys) / sizeof(*keys); i++)
        idle |= !strcmp(keys[i].key, k->name) && !keys[i].works(s);
    return idle;
}
