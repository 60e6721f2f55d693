/* Balanced assignment: every item to one group, every group its fixed number of items, so that the sum of scores is near the largest there is.  Pure.
 *
 * An auction (Bertsekas 1988; with groups in place of single objects: Bertsekas and Castanon 1989).  A group asks a price, at first none; an item without
 * a group bids for the one that is worth most to it, score - price, as much as makes the next best as good, plus a step; the place of the lowest bid is
 * taken.  When all have a group, the sum is less than items * step below the best.  The step falls over several rounds that keep the prices, and
 * the last one is ASSIGN_STEP of the scores' spread (mean over items of their best less their mean score).
 */
#ifndef MOE_ASSIGN_H
#define MOE_ASSIGN_H

#include <stdint.h>

#include "base/alive.h"
#include "base/err.h"

#define ASSIGN_STEP 5e-4

/* of[items] = group; score: [items][groups]; size[groups] add up to items.  An exact solver takes time cubic in items, this one some tens of bids an
 * item, of `groups` operations each.  Of equals the lower number.  ERR_LIMIT: no memory. */
status assign_balanced(int *of, const float *score, int items, int groups, const int *size, const struct alive *alive,
                       struct err *e);

#endif
