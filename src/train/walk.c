#include "train/walk.h"

#include <stdlib.h>

static struct batch batch_of(const struct walk *w, int pass)
{
    int at = w->first[pass];

    return (struct batch){
        .rows = w->first[pass + 1] - at, .token = w->token + at, .position = w->position + at, .session = w->session + at};
}

/* Where passes begin, and which slot each window has. */
static void cut(struct walk *w, const struct window *windows, int n, int most, int sessions)
{
    int at = 0, in_pass = 0;

    for (int i = 0; i < n; i++, in_pass++) {
        BUG_ON(windows[i].n > most);
        if (in_pass == sessions || at + windows[i].n - w->first[w->passes] > most) w->first[++w->passes] = at, in_pass = 0;
        for (int p = 0; p < windows[i].n; p++, at++) {
            w->token[at] = windows[i].token[p];
            w->position[at] = p;
            w->session[at] = in_pass;
        }
    }
    w->first[++w->passes] = at;
}

status walk_open(struct walk *w, struct model *m, const struct window *windows, int n, int most, int sessions, struct err *e)
{
    size_t width = (size_t)model_shape(m)->width, rows = 0;

    for (int i = 0; i < n; i++) rows += (size_t)windows[i].n;
    BUG_ON(rows == 0 || rows > INT32_MAX);
    *w = (struct walk){.model = m, .rows = (int64_t)rows};
    w->x = malloc(rows * width * sizeof(float));
    w->h = malloc(rows * width * sizeof(float));
    w->token = malloc(3 * rows * sizeof(int32_t));
    w->first = calloc((size_t)n + 1, sizeof(*w->first));
    if (!w->x || !w->h || !w->token || !w->first) {
        walk_close(w);
        return err_set(e, ERR_LIMIT, "no memory for the states of %zu tokens (fit_tokens): %zu MiB", rows,
                       2 * rows * width * sizeof(float) >> 20);
    }
    w->position = w->token + rows;
    w->session = w->position + rows;
    cut(w, windows, n, most, sessions);
    for (int p = 0; p < w->passes; p++) {
        struct batch b = batch_of(w, p);

        forward_embed(m, &b, w->x + (size_t)w->first[p] * width);
    }
    return OK;
}

void walk_close(struct walk *w)
{
    free(w->x);
    free(w->h);
    free(w->token);
    free(w->first);
    *w = (struct walk){0};
}

void walk_attention(struct walk *w, int layer)
{
    size_t width = (size_t)model_shape(w->model)->width;

    for (int p = 0; p < w->passes; p++) {
        struct batch b = batch_of(w, p);
        size_t at = (size_t)w->first[p] * width;

        forward_attention(w->model, layer, &b, 0, b.rows, w->x + at, w->h + at);
    }
}
