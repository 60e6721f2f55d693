#include "jobs/bench.h"

status bench_step(struct bench *b, struct err *e)
{
    (void)b;
    (void)e;
    return OK;
}
