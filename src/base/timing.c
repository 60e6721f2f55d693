#include "base/timing.h"

#include <stdbool.h>
#include <sys/resource.h>

#include "base/err.h"

static const char *const names[] = {
    [TIME_OTHER] = "other",     [TIME_OPEN] = "open", [TIME_EMBED] = "embed",   [TIME_ATTENTION] = "attention",
    [TIME_ROUTE] = "route",     [TIME_PACK] = "pack", [TIME_WAIT] = "wait",     [TIME_EXPERT] = "expert",
    [TIME_COMBINE] = "combine", [TIME_HEAD] = "head", [TIME_SAMPLE] = "sample", [TIME_TRAIN] = "train",
};
_Static_assert(sizeof(names) / sizeof(names[0]) == TIMING_SECTIONS, "a name per section");

void timing_start(struct timing *t, int rank)
{
    if (!t) return;
    int32_t now = t->since ? t->now : TIME_OTHER;

    *t = (struct timing){.now = now, .rank = rank, .since = timing_clock()};
}

void timing_stop(struct timing *t)
{
    struct rusage u;

    if (!t) return;
    timing_enter(t, (enum timing_section)t->now);
    if (!getrusage(RUSAGE_SELF, &u)) t->memory_bytes = (int64_t)u.ru_maxrss * 1024;
}

const char *timing_name(enum timing_section s)
{
    BUG_ON((int)s < 0 || s >= TIMING_SECTIONS);
    return names[s];
}

double timing_seconds(const struct timing *t, enum timing_section s)
{
    return 1e-9 * (double)t->ns[s];
}

double timing_total(const struct timing *t)
{
    int64_t sum = 0;

    for (int s = 0; s < TIMING_SECTIONS; s++) sum += t->ns[s];
    return 1e-9 * (double)sum;
}
