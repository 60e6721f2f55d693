/* Windows of text through a model layer by layer: all rows of a layer before the next one, so that what is fitted to a layer's states is in use before
 * the next layer's states arise.
 *
 * Each window is a session of its own; a pass takes as many as the model has room for, and passes of a layer use the same slots of the cache one after the
 * other.  Memory: two states of every row, malloc'ed.  Coordinator.
 */
#ifndef TRAIN_WALK_H
#define TRAIN_WALK_H

#include "model/forward.h"
#include "train/windows.h"

struct walk {
    struct model *model;
    int64_t rows;
    float *x, *h; /* [rows][D]: the residual stream; what enters the FFN of the layer at hand */
    int32_t *token, *position, *session;
    int passes, *first; /* [passes + 1]: rows of pass p begin at first[p] */
};

/* most: rows of a pass, no window longer; sessions: windows of a pass.  Embeds.  ERR_LIMIT. */
status walk_open(struct walk *w, struct model *m, const struct window *windows, int n, int most, int sessions, struct err *e);
void walk_close(struct walk *w);                /* zeroed is fine */
void walk_attention(struct walk *w, int layer); /* x += attention, h */

#endif
