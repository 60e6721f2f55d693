/* Several packed matrices as one, whose outputs are theirs one after another, at any lane of its panels. */
#ifndef NUM_PACKED_JOINED_H
#define NUM_PACKED_JOINED_H

#include "num/packed.h"

/* out: a matrix whose arrays are written; its format is that of all that is joined, or f32.  All of it gets the value zero. */
void pack_nothing(const struct packed *out);
/* The outputs of w become those at .. at + w->rows - 1 of out.  Any thread: different outputs are independent. */
void pack_outputs(const struct packed *out, int at, const struct packed *w);
/* The same with w', whose outputs are the inputs of w; out is f32. */
void pack_inputs(const struct packed *out, int at, const struct packed *w);

#endif
