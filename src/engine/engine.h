/* Generation with continuous batching: sequences join and leave the batch between steps.
 *
 * States of a sequence: QUEUED -> PREFILL -> DECODE -> done.  engine_submit() queues; engine_step() lets the scheduler (schedule.h, pure)
 * choose the rows of one forward pass, runs it, samples (sample.h, pure), and reports what ended.
 * Text: the bytes of the generated tokens one after another, so the continuation of "a" may begin with a blank; after a prompt
 *     of special tokens alone it begins as a text does.  Stop strings are looked for in these bytes, across tokens.
 * Determinism: a sequence's tokens depend on its prompt, parameters and seed alone, not on what else is in the batch.
 * Memory: taken at open; a step allocates nothing but the text of sequences.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "data/tokenizer.h"
#include "engine/cluster.h"
#include "engine/sample.h"
#include "model/forward.h"

enum finish { FINISH_NONE, FINISH_STOP /* EOS or a stop string */, FINISH_LENGTH /* max_tokens or the context is full */ };

struct sequence { /* as reported when it is done; pointers are valid until the next engine_step() */
    uint64_t tag; /* the caller's */
    enum finish finish;
    int prompt_tokens;
    const int32_t *tokens; /* generated, the EOS not included */
    int n_tokens;
    const char
        *text; /* continuation, cut before a stop string; bytes: its last character may be incomplete after FINISH_LENGTH */
    size_t text_length;
};

struct engine_limits {
    int rows;      /* per step */
    int sessions;  /* in flight */
    int positions; /* prompt and answer together; the last token never passes, so the cache needs one less */
    int chunk;     /* of prompts beside decoding: schedule.h; 0: no limit of its own */
};

struct engine_stats {
    uint64_t steps, prefill_rows, decode_rows; /* of all steps */
    uint64_t tokens;                           /* generated, of unfinished sequences too */
};

struct engine;

/* t may be NULL: then sequences have no text and stop strings are refused.  m and t are borrowed, `how` is copied.
 * ERR_LIMIT if the limits are above those the model was opened with. */
status engine_open(struct engine **out, struct model *m, const struct tokenizer *t, const struct routing *how, int micro_batches,
                   struct engine_limits limits, struct err *e);
void engine_close(struct engine *g);

/* Steps go through all coordinators of the cluster's model, which is m.  Borrowed. */
status engine_spread(struct engine *g, struct cluster *c, struct err *e);
bool engine_has_room(const struct engine *g); /* fewer than `sessions` are queued or running */
/* prompt: ids with BOS, copied.  ERR_LIMIT if it is empty or does not leave room for one token; ERR_FORMAT for ids the model does
 * not have; ERR_SPEC for stop strings that are empty or without a tokenizer. */
status engine_submit(struct engine *g, uint64_t tag, const int32_t *prompt, int n, const struct sampling *s, struct err *e);
/* One step.  *done: sequences that ended in it.  OK with *n_done = 0 and engine_busy() false when there is nothing to do.
 * After an error (ERR_RANK, STOPPED from the exchange) the engine can only be closed. */
status engine_step(struct engine *g, const struct sequence **done, int *n_done, struct err *e);
bool engine_busy(const struct engine *g);
const struct engine_stats *engine_stats(const struct engine *g);

#endif
