/* What a training changes: norms in place; and memory for experts whose weights are trained (limits.adapt), beside the transposed weights, taken behind those because it
 * begins with what they are. */
#include <string.h>

#include "base/rng.h"
#include "model/model_internal.h"
#include "moe/adapted.h"
#include "moe/grouping.h"

static void take(struct model *m, struct arena_taker *t, struct expert *x, int layer, int expert, int neurons)
{
    struct adapted none, *a = arena_take(t, 1, sizeof(*a));

    adapted_take(a ? a : &none, t, neurons, m->shape.width, m->limits.lora);
    if (!a || t->failed) return;
    adapted_start(a, x, rng_hash(m->limits.lora_seed, (uint64_t)layer, (uint64_t)(expert + 1), 0));
    adapted_pack(a, x);
    x->adapted = a;
    adapted_use(a, x, true);
}

void trained_take(struct model *m, const struct placement *p, struct arena_taker *t)
{
    const struct shape *s = &m->shape;
    bool there = t->arena != NULL;

    for (int l = 0; l < s->layers && !t->failed; l++) {
        struct moe_layer *y = there ? &m->moe_layers[l] : NULL;

        if (m->coordinator && s->shared[l] > 0) take(m, t, there ? &y->shared : NULL, l, -1, s->shared[l]);
        for (int i = 0; i < s->experts && !t->failed; i++)
            if (placement_rank(p, l, i) == m->rank)
                take(m, t, there ? &y->expert[i] : NULL, l, i, group_size(s->neurons, s->shared[l], s->experts, i));
    }
}

static float *norm_of(const struct model *m, enum model_norm which, int layer)
{
    return which == MODEL_NORM_LAST        ? m->final_norm
           : which == MODEL_NORM_ATTENTION ? m->blocks[layer].attention_norm
                                           : m->blocks[layer].ffn_norm;
}

size_t model_norms(const struct model *m, enum model_norm which, float *out)
{
    int layers = which == MODEL_NORM_LAST ? 1 : m->shape.layers;
    size_t width = (size_t)m->shape.width;

    BUG_ON(!m->coordinator);
    for (int l = 0; l < layers && out; l++) memcpy(out + (size_t)l * width, norm_of(m, which, l), width * sizeof(*out));
    return (size_t)layers * width;
}

void model_set_norms(struct model *m, enum model_norm which, const float *from)
{
    int layers = which == MODEL_NORM_LAST ? 1 : m->shape.layers;
    size_t width = (size_t)m->shape.width;

    for (int l = 0; l < layers; l++) memcpy(norm_of(m, which, l), from + (size_t)l * width, width * sizeof(*from));
}
