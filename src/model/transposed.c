/* The weights once more, transposed: what a gradient of a product's output is multiplied with to be that of its input.  They are made of the weights as the kernels
 * read them, so that a gradient is the gradient of what runs, whatever the format. */
#include "model/model_internal.h"
#include "moe/grouping.h"

struct filling {
    struct packed *out;
    const struct packed *const *w; /* side by side */
    int n;
};

static void fill_task(void *ctx, int panel, int worker)
{
    const struct filling *f = ctx;

    (void)worker;
    for (int i = 0, at = 0; i < f->n; at += f->w[i]->rows, i++)
        pack_transposed((void *)f->out->lines, f->out->cols, at, f->w[i], panel, 1);
}

/* [outputs, inputs] of n matrices side by side. */
static void take(struct model *m, struct arena_taker *t, struct packed *out, int outputs, int inputs,
                 const struct packed *const *w, int n)
{
    void *lines = arena_take(t, packed_line_bytes(FORMAT_F32, outputs, inputs), 1);

    if (!lines) return;
    *out = (struct packed){.lines = lines, .format = FORMAT_F32, .rows = outputs, .cols = inputs};
    gemm_parallel(m->gemm, packed_panels(outputs), fill_task, &(struct filling){out, w, n});
}

/* While memory is only counted there is nothing yet: x, y NULL. */
static void take_expert(struct model *m, struct arena_taker *t, struct expert *x, int neurons)
{
    struct expert none = {0}, *of = x ? x : &none;
    int width = m->shape.width;

    take(m, t, &of->in_t, width, 2 * neurons, (const struct packed *[]){&of->gate, &of->up}, 2);
    if (m->limits.adapt) take(m, t, &of->down_t, neurons, width, (const struct packed *[]){&of->down}, 1);
}

static void take_attention(struct model *m, struct arena_taker *t, struct block *y)
{
    const struct shape *s = &m->shape;
    struct block none = {0}, *of = y ? y : &none;
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;

    take(m, t, &of->qkv_t, s->width, q + 2 * kv, (const struct packed *[]){&of->q, &of->k, &of->v}, 3);
    take(m, t, &of->o_t, q, s->width, (const struct packed *[]){&of->o}, 1);
}

void transposed_take(struct model *m, const struct placement *p, struct arena_taker *t)
{
    const struct shape *s = &m->shape;
    bool there = t->arena != NULL;

    for (int l = 0; l < s->layers && !t->failed; l++) {
        struct moe_layer *y = there ? &m->moe_layers[l] : NULL;
        int shared = s->experts ? s->shared[l] : s->neurons;

        if (m->coordinator) take_attention(m, t, there ? &m->blocks[l] : NULL);
        if (m->coordinator && shared > 0) take_expert(m, t, there ? &y->shared : NULL, shared);
        for (int i = 0; i < s->experts; i++)
            if (placement_rank(p, l, i) == m->rank)
                take_expert(m, t, there ? &y->expert[i] : NULL, group_size(s->neurons, s->shared[l], s->experts, i));
    }
    if (m->coordinator) take(m, t, &m->head_t, s->width, s->vocab, (const struct packed *[]){&m->head}, 1);
}
