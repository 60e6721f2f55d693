#include "engine/schedule.h"

#include <stdlib.h>

#include "base/err.h"

static int longest_wait_first(const void *a, const void *b, void *context)
{
    const struct schedule_entry *entry = context;
    int i = ((const struct schedule_piece *)a)->entry, j = ((const struct schedule_piece *)b)->entry;

    if (entry[i].last_step != entry[j].last_step) return entry[i].last_step < entry[j].last_step ? -1 : 1;
    return i < j ? -1 : i > j;
}

static int take_prompts(struct schedule_piece *piece, int pieces, const struct schedule_entry *entry, int n,
                        enum schedule_state state, int *rows, int *sessions)
{
    for (int i = 0; i<n && * rows> 0; i++) {
        if (entry[i].state != state) continue;
        if (state == SCHEDULE_QUEUED && (*sessions)-- <= 0) break;
        int take = entry[i].pending < *rows ? entry[i].pending : *rows;

        piece[pieces++] = (struct schedule_piece){.entry = i, .rows = take};
        *rows -= take;
    }
    return pieces;
}

int schedule_step(struct schedule_piece *piece, const struct schedule_entry *entry, int n, struct schedule_limits limits)
{
    int pieces = 0, rows = limits.rows, sessions = limits.sessions;

    BUG_ON(limits.rows < 1 || limits.sessions < 1 || limits.chunk < 0);
    for (int i = 0; i < n; i++) {
        BUG_ON(entry[i].pending < 1);
        if (entry[i].state != SCHEDULE_QUEUED) sessions--;
        if (entry[i].state != SCHEDULE_DECODE) continue;
        BUG_ON(entry[i].pending != 1);
        piece[pieces++] = (struct schedule_piece){.entry = i, .rows = 1};
    }
    BUG_ON(sessions < 0);
    if (pieces > rows) {
        /* the entries are not changed by the sort; qsort_r only has no const for its context */
        union {
            const struct schedule_entry *in;
            void *out;
        } context = {.in = entry};

        qsort_r(piece, (size_t)pieces, sizeof(*piece), longest_wait_first, context.out);
        pieces = rows;
    }
    rows -= pieces;
    if (limits.chunk && pieces && rows > limits.chunk) rows = limits.chunk;
    pieces = take_prompts(piece, pieces, entry, n, SCHEDULE_PREFILL, &rows, &sessions);
    return take_prompts(piece, pieces, entry, n, SCHEDULE_QUEUED, &rows, &sessions);
}
