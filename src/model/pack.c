/* Packing of whole matrices on the threads of a rank, into memory and into files. */
#include <stdlib.h>
#include <string.h>

#include "model/weights.h"
#include "num/widen.h"

enum { PANELS_AT_ONCE = 8 };
static const size_t PIECE_BYTES = (size_t)4 << 20; /* of lines; signs of life come between pieces */

struct packing {
    char *lines;
    uint16_t *scale;
    enum format format;
    const struct mat *from;
    int first, panels;          /* of this piece */
    struct packed_error *error; /* [tasks] or NULL */
};

static void pack_task(void *ctx, int i, int worker)
{
    const struct packing *p = ctx;
    int first = p->first + i * PANELS_AT_ONCE, left = p->first + p->panels - first;

    (void)worker;
    pack_panels(p->lines, p->scale, p->format, p->from, first, left < PANELS_AT_ONCE ? left : PANELS_AT_ONCE);
}

static int pieces_of(int panels)
{
    return (panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
}

/* Panels of a piece: a multiple of what a task takes. */
static int panels_at_once(enum format f, int cols)
{
    size_t panel = (size_t)packed_steps(f, cols) * LINE_BYTES, n = panel ? PIECE_BYTES / panel : 1;

    if (n > 1 << 16) n = 1 << 16;
    return n < PANELS_AT_ONCE ? PANELS_AT_ONCE : (int)n / PANELS_AT_ONCE * PANELS_AT_ONCE;
}

void pack_matrix(void *lines, uint16_t *scale, enum format f, const struct mat *m, struct gemm *g, const struct alive *alive)
{
    struct packing p = {.lines = lines, .scale = scale, .format = f, .from = m};
    int panels = packed_panels(m->rows), most = panels_at_once(f, m->cols);

    for (; p.first < panels; p.first += most) {
        p.panels = panels - p.first < most ? panels - p.first : most;
        gemm_parallel(g, pieces_of(p.panels), pack_task, &p);
        alive_tick(alive);
    }
}

/* ---- into a file ---- */

/* What packing changed in the panels of a task, whose rows are those of the piece. */
static void error_task(void *ctx, int i, int worker)
{
    const struct packing *p = ctx;
    struct packed whole = {
        .lines = p->lines, .scale = p->scale, .format = p->format, .rows = p->from->rows, .cols = p->from->cols};
    int first = i * PANELS_AT_ONCE * PANEL_LANES, end = first + PANELS_AT_ONCE * PANEL_LANES;
    struct packed_error sum = {0};
    float *row = malloc((size_t)whole.cols * sizeof(*row));

    (void)worker;
    BUG_ON(!row && whole.cols);
    for (int r = first; r < end && r < whole.rows; r++) {
        widen_rows(row, p->from, r, 1);
        for (int c = 0; c < whole.cols; c++) {
            double d = (double)packed_at(&whole, r, c) - (double)row[c];

            sum.difference += d * d;
            sum.whole += (double)row[c] * (double)row[c];
        }
    }
    p->error[i] = sum;
    free(row);
}

/* Rows of m from panel `first` on, as a matrix of their own: panels do not know of each other. */
static struct mat rows_of(const struct mat *m, int first, int panels)
{
    struct mat part = *m;
    int row = first * PANEL_LANES, left = m->rows - row;

    part.data = (const char *)m->data + (size_t)row * m->stride * dtype_bytes(m->dtype);
    part.rows = left < panels * PANEL_LANES ? left : panels * PANEL_LANES;
    return part;
}

status packed_write(struct safetensors_writer *w, enum format f, const struct mat *m, struct gemm *g, const struct alive *alive,
                    struct packed_error *error, struct err *e)
{
    int panels = packed_panels(m->rows), most = panels_at_once(f, m->cols);
    bool exact = f == FORMAT_F32 || (f == FORMAT_BF16 && m->dtype == DT_BF16);
    size_t scale_bytes = packed_scale_bytes(f, m->rows, m->cols);
    char *lines =
        aligned_alloc(LINE_BYTES, packed_line_bytes(f, (panels < most ? panels : most) * PANEL_LANES, m->cols) + LINE_BYTES);
    uint16_t *scale = format_has_scales(f) ? malloc(scale_bytes + 1) : NULL;
    struct packed_error *sums = calloc((size_t)pieces_of(most), sizeof(*sums));
    status s = OK;

    if (!lines || (format_has_scales(f) && !scale) || !sums)
        s = err_set(e, ERR_LIMIT, "no memory to pack %d rows of %d", m->rows, m->cols);
    for (int first = 0; !s && first < panels; first += most) {
        int n = panels - first < most ? panels - first : most;
        struct mat part = rows_of(m, first, n);
        uint16_t *part_scale = scale ? scale + (size_t)first * (size_t)packed_blocks(m->cols) * PANEL_LANES : NULL;
        struct packing p = {.lines = lines, .scale = part_scale, .format = f, .from = &part, .panels = n, .error = sums};

        gemm_parallel(g, pieces_of(n), pack_task, &p);
        if (!exact) gemm_parallel(g, pieces_of(n), error_task, &p);
        for (int i = 0; !exact && i < pieces_of(n); i++) {
            error->difference += sums[i].difference;
            error->whole += sums[i].whole;
        }
        alive_tick(alive);
        s = safetensors_write(w, lines, packed_line_bytes(f, part.rows, m->cols), e);
    }
    if (!s && scale) s = safetensors_write(w, scale, scale_bytes, e);
    free(lines);
    free(scale);
    free(sums);
    return s;
}
