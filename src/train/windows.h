/* A text as the batches of a training run: windows of it in a seeded order, some of them set aside for measuring.
 *
 * The probe is never learned from, unless the text has fewer than eight windows: then some windows are both, and `held_out` is false.
 * The place in the run is two numbers (visit.pass, visit.at); windows_seek() goes there.
 */
#ifndef TRAIN_WINDOWS_H
#define TRAIN_WINDOWS_H

#include <stdbool.h>

#include "data/corpus.h"
#include "train/pace.h"

struct window {
    const int32_t *token; /* [n], BOS first */
    int n;
    const int32_t *target; /* [n] the token behind each */
};

struct windows {
    const struct corpus *corpus; /* borrowed */
    int sequence;
    int32_t bos;
    int *order; /* [n]: the probe's windows first */
    int n, probe;
    bool held_out;
    struct visit visit; /* of the windows that are learned from */

    /* the batch */
    struct window *batch;
    int n_batch;
    int64_t batch_tokens, room;
    int32_t *input, *target;
};

/* probe_tokens: how many to set aside if the text allows; room: tokens of the largest batch that will be asked for.
 * ERR_SPEC naming `source` if the text has no window; ERR_LIMIT. */
status windows_open(struct windows *w, const struct corpus *c, int sequence, int32_t bos, uint64_t seed, int64_t probe_tokens,
                    int64_t room, const char *source, struct err *e);
void windows_close(struct windows *w);

/* The next batch: whole windows, at least one, at most `most` tokens if it is more than one, and none more once `budget` tokens are reached.
 * Returns its tokens; batch, n_batch and batch_tokens describe it until the next call. */
int64_t windows_next(struct windows *w, int64_t most, int64_t budget);
void windows_take_probe(struct windows *w); /* the probe as the batch */
void windows_seek(struct windows *w, int64_t pass, int at);

/* How many batches a budget gives, from the start; seeks to the start. */
int64_t windows_steps(struct windows *w, int64_t most, int64_t budget);
int64_t windows_learned_tokens(const struct windows *w); /* of all windows that are learned from */

#endif
