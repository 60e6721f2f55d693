/* All neurons that a rank holds of a layer, side by side: limits.train.
 *
 * A training computes every neuron of every row: the teacher is the sum of all experts, and each gate has a gradient.  Expert by expert that are many small products, and
 * experts do not end where panels do: 11 neurons take the 16 lanes of one.  Joined it is a product over all of them, and as an output of a product depends on its own row
 * and weights alone, it has the same bits.  The shared expert comes first, on the coordinator, then those held, in order.
 * With limits.adapt weights change, and those that forward passes use do: joined are those of the last backward pass, and forward passes do without.
 */
#include <string.h>

#include "base/bits.h"
#include "moe/moe_internal.h"
#include "num/ops.h"
#include "num/packed_joined.h"

enum { TILE_ROWS = 96, TILE_PANELS = 8 };
_Static_assert(2 * TILE_ROWS * TILE_PANELS * PANEL_LANES * sizeof(float) <= GEMM_ROOM_BYTES, "gate and up of a task");

/* ---- memory ---- */

static struct packed room(struct arena_taker *t, int neurons, int width)
{
    return (struct packed){.lines = arena_take(t, packed_line_bytes(FORMAT_F32, neurons, width), 1)};
}

/* As many neurons as a rank may hold; of any format, as f32 takes the most. */
void moe_take_joined(struct moe *m, struct arena_taker *t, int neurons)
{
    m->joined = arena_take(t, (size_t)m->n_layers, sizeof(*m->joined));
    m->part = arena_take(t, (size_t)m->most_held, sizeof(*m->part));
    for (int l = 0; l < m->n_layers; l++) {
        struct moe_joined j = {room(t, neurons, m->width), room(t, neurons, m->width), room(t, neurons, m->width)};

        if (m->joined) m->joined[l] = j;
    }
}

/* ---- packing ---- */

static const struct packed *gate_of(const struct expert *x)
{
    return &x->gate;
}

static const struct packed *up_of(const struct expert *x)
{
    return &x->up;
}

/* The parts of a layer one after another: *next begins at -1.  NULL behind the last. */
static const struct expert *part_of(const struct moe *m, int layer, int *next)
{
    const struct moe_layer *y = &m->layers[layer];
    int i = *next;

    if (i < 0) {
        *next = 0;
        if (m->coordinator && y->shared.down.lines) return &y->shared;
    }
    if (!y->experts || *next >= y->experts) return NULL;
    i = bits_next(moe_held(m, layer, m->rank), y->experts, *next);
    *next = i + 1;
    return i < y->experts ? &y->expert[i] : NULL;
}

/* The products of bf16 weights are those of the same numbers as f32, which take less time. */
static enum format wide(const struct moe *m, enum format f)
{
    return f == FORMAT_BF16 && !gemm_half(m->gemm) ? FORMAT_F32 : f;
}

static void join(struct moe *m, int layer, struct packed *out, const struct packed *(*matrix)(const struct expert *))
{
    int next = -1;
    const struct expert *x = part_of(m, layer, &next);
    char *lines = (char *)out->lines;

    *out = (struct packed){
        .lines = lines, .format = x ? wide(m, matrix(x)->format) : FORMAT_F32, .rows = m->need[layer], .cols = m->width};
    for (next = -1; (x = part_of(m, layer, &next));)
        if (wide(m, matrix(x)->format) != out->format) out->format = FORMAT_F32;
    if (format_has_scales(out->format)) out->scale = (void *)(lines + packed_line_bytes(out->format, out->rows, out->cols));
    pack_nothing(out);
    next = -1;
    for (int at = 0; (x = part_of(m, layer, &next)); at += matrix(x)->rows) pack_outputs(out, at, matrix(x));
}

void moe_join(struct moe *m, int layer)
{
    struct moe_joined *j = &m->joined[layer];
    const struct expert *x;
    int next = -1;

    join(m, layer, &j->gate, gate_of);
    join(m, layer, &j->up, up_of);
    j->down_t = (struct packed){.lines = j->down_t.lines, .format = FORMAT_F32, .rows = m->need[layer], .cols = m->width};
    pack_nothing(&j->down_t);
    for (int at = 0; (x = part_of(m, layer, &next)); at += x->gate.rows) pack_inputs(&j->down_t, at, &x->down);
}

/* ---- a job's rows of them ---- */

int moe_parts(const struct moe_work *w)
{
    struct moe *m = w->m;
    const struct expert *x;
    int n = 0, s = 0, held = 0, next = -1;

    for (int column = 0; (x = part_of(m, w->job->layer, &next)); column += x->gate.rows, n++) {
        bool has = s < w->shares && w->share[s].x == x, shared = x == &m->layers[w->job->layer].shared;

        m->part[n] = (struct moe_part){.column = column, .neurons = x->gate.rows, .place = -1};
        if (!shared) m->part[n].place = w->packed ? held++ : next - 1;
        if (has) m->part[n].share = &w->share[s++];
    }
    BUG_ON(s != w->shares);
    return n;
}

int moe_share_row(const struct moe_share *s, int row)
{
    int low = 0, high = s->z.n;

    while (low < high) {
        int middle = (low + high) / 2;

        if (s->row[middle] < row) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* ---- the first loop of moe_work.c ---- */

struct loop {
    struct moe_work *w;
    int parts, tiles;
};

/* Columns first .. of a tile of rows into the places of those experts' active rows. */
static void keep(const struct loop *a, const float *tile, size_t ld, int row, int rows, int first, int columns)
{
    const struct moe_part *p = a->w->m->part;

    for (int i = 0; i < a->parts && p[i].column < first + columns; i++) {
        int from = p[i].column > first ? p[i].column : first, to = p[i].column + p[i].neurons;

        to = to < first + columns ? to : first + columns;
        if (!p[i].share || to <= from) continue;
        const struct rows *z = &p[i].share->z;

        for (int at = moe_share_row(p[i].share, row); at < z->n && p[i].share->row[at] < row + rows; at++)
            memcpy((float *)z->x + (size_t)at * z->ld + (size_t)(from - p[i].column),
                   tile + (size_t)(p[i].share->row[at] - row) * ld + (size_t)(from - first), (size_t)(to - from) * sizeof(*tile));
    }
}

static void neurons_task(void *ctx, int item, int worker)
{
    const struct loop *a = ctx;
    const struct moe_work *w = a->w;
    const struct moe_joined *j = &w->m->joined[w->job->layer];
    int part = item % a->tiles, row = w->first + (int)((long)w->rows * part / a->tiles);
    int rows = w->first + (int)((long)w->rows * (part + 1) / a->tiles) - row, first = item / a->tiles * TILE_PANELS;
    int panels = packed_panels(j->gate.rows) - first;
    float *gate = gemm_room(w->m->gemm, worker), *up = gate + TILE_ROWS * TILE_PANELS * PANEL_LANES;
    void *scratch = gemm_scratch(w->m->gemm, worker);

    panels = panels < TILE_PANELS ? panels : TILE_PANELS;
    size_t ld = (size_t)panels * PANEL_LANES;
    int from = first * PANEL_LANES, columns = j->gate.rows - from < (int)ld ? j->gate.rows - from : (int)ld;

    w->kernel->product(gate, ld, w->job->h, w->m->all + row, rows, &j->gate, first, panels, scratch);
    w->kernel->product(up, ld, w->job->h, w->m->all + row, rows, &j->up, first, panels, scratch);
    silu_mul(gate, up, (size_t)rows * ld);
    keep(a, gate, ld, row, rows, from, columns);
    moe_work_progress(w, worker);
}

/* If it is less work than the experts of w one by one. */
static bool pays(const struct moe_work *w)
{
    double each = 0, joined = (double)w->rows * packed_panels(w->m->need[w->job->layer]);

    if (!w->m->limits.train || w->m->limits.adapt || w->job->fixed || w->job->threshold) return false;
    for (int s = 0; s < w->shares; s++) {
        if (rows_wait(&w->share[s].z)) return false;
        each += (double)w->share[s].z.n * packed_panels(w->share[s].z.cols);
    }
    return each >= joined;
}

bool moe_joined_in(struct moe_work *w)
{
    struct loop a = {.w = w, .tiles = (w->rows + TILE_ROWS - 1) / TILE_ROWS};
    int panels = packed_panels(w->m->need[w->job->layer]);

    if (!pays(w)) return false;
    a.parts = moe_parts(w);
    moe_work_loop(w, (panels + TILE_PANELS - 1) / TILE_PANELS * a.tiles, neurons_task, &a);
    return true;
}
