#include "train/windows.h"

#include <stdlib.h>

#include "base/rng.h"

enum { STREAM = 0x77696e, HELD_OUT_PART = 8, SHARED_PROBE = 4 };

static int length_of(const struct windows *w, int i)
{
    size_t left = w->corpus->n_tokens - (size_t)i * (size_t)w->sequence;

    return left < (size_t)w->sequence ? (int)left : w->sequence;
}

status windows_open(struct windows *w, const struct corpus *c, int sequence, int32_t bos, uint64_t seed, int64_t probe_tokens,
                    int64_t room, const char *source, struct err *e)
{
    size_t count = corpus_windows(c, sequence);
    struct rng rng;

    *w = (struct windows){.corpus = c, .sequence = sequence, .bos = bos};
    if (count < 1 || count > INT32_MAX)
        return err_set(e, ERR_SPEC, "%s: text: %zu windows of %d tokens, expected 1 .. %d", source, count, sequence, INT32_MAX);
    w->n = (int)count;
    int64_t probe = (probe_tokens + sequence - 1) / sequence;

    if (probe > w->n / HELD_OUT_PART) probe = w->n / HELD_OUT_PART;
    w->held_out = probe > 0;
    w->probe = w->held_out ? (int)probe : w->n < SHARED_PROBE ? w->n : SHARED_PROBE;
    if (room < (int64_t)w->probe * sequence) room = (int64_t)w->probe * sequence;
    w->room = room < sequence ? sequence : room;

    /* a window has at least one token, so a batch has at most `room` of them */
    w->order = malloc((size_t)w->n * sizeof(int));
    w->batch = malloc((size_t)w->room * sizeof(*w->batch));
    w->input = malloc((size_t)w->room * sizeof(int32_t));
    w->target = malloc((size_t)w->room * sizeof(int32_t));
    if (!w->order || !w->batch || !w->input || !w->target)
        return err_set(e, ERR_LIMIT, "out of memory for %d windows in batches of %lld tokens", w->n, (long long)w->room);
    for (int i = 0; i < w->n; i++) w->order[i] = i;
    rng_seed(&rng, seed, STREAM);
    rng_shuffle(&rng, w->order, w->n);
    return visit_init(&w->visit, seed, w->n - (w->held_out ? w->probe : 0), e);
}

void windows_close(struct windows *w)
{
    visit_clear(&w->visit);
    free(w->order);
    free(w->batch);
    free(w->input);
    free(w->target);
    *w = (struct windows){0};
}

static void add(struct windows *w, int i)
{
    int32_t *at = w->input + w->batch_tokens;

    BUG_ON(w->batch_tokens + length_of(w, i) > w->room);
    int32_t *target = w->target + w->batch_tokens;
    int n = corpus_window(w->corpus, w->sequence, (size_t)i, w->bos, at, target);

    w->batch[w->n_batch++] = (struct window){.token = at, .n = n, .target = target};
    w->batch_tokens += n;
}

static int64_t next(struct windows *w, int64_t most, int64_t budget, bool fill)
{
    int64_t tokens = 0;

    if (fill) w->n_batch = 0, w->batch_tokens = 0;
    while (tokens < budget) {
        int i = w->order[(w->held_out ? w->probe : 0) + visit_peek(&w->visit)], n = length_of(w, i);

        if (tokens && tokens + n > most) break;
        if (fill) add(w, i);
        tokens += n;
        visit_next(&w->visit);
    }
    return tokens;
}

int64_t windows_next(struct windows *w, int64_t most, int64_t budget)
{
    return next(w, most, budget, true);
}

void windows_take_probe(struct windows *w)
{
    w->n_batch = 0;
    w->batch_tokens = 0;
    for (int i = 0; i < w->probe; i++) add(w, w->order[i]);
}

void windows_seek(struct windows *w, int64_t pass, int at)
{
    visit_seek(&w->visit, pass, at);
}

int64_t windows_steps(struct windows *w, int64_t most, int64_t budget)
{
    int64_t steps = 0;

    windows_seek(w, 0, 0);
    for (int64_t tokens = 0; tokens < budget; steps++) tokens += next(w, most, budget - tokens, false);
    windows_seek(w, 0, 0);
    return steps;
}

int64_t windows_learned_tokens(const struct windows *w)
{
    int64_t tokens = 0;

    for (int i = w->held_out ? w->probe : 0; i < w->n; i++) tokens += length_of(w, w->order[i]);
    return tokens;
}
