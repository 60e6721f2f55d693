/* The bar for a prefill: the products of one layer of a dense model, of so many rows, by the best library that computes in that format. */
#ifndef JOBS_BENCH_BAR_H
#define JOBS_BENCH_BAR_H

#include "jobs/bench.h"

struct bench_bar;

/* NULL in *out: there is no library for it here; that is said once. */
status bench_bar_open(struct bench_bar **out, struct bench *b, enum format format, int rows, struct err *e);
void bench_bar_close(struct bench_bar *r); /* NULL is fine */
/* Operations/s of the best of the libraries over all the products of a layer, now; 0: it failed. */
double bench_bar_rate(struct bench_bar *r, const char **name);

#endif
