/* What a library of rivals.h consists of; for rivals*.c alone. */
#ifndef NUM_RIVALS_LIBRARY_H
#define NUM_RIVALS_LIBRARY_H

#include <stddef.h>

#include "num/rivals.h"

struct rival_library {
    size_t bytes;                                   /* of its own part of a rival, zeroed */
    status (*open)(struct rival *r, struct err *e); /* a close follows in any case */
    void (*close)(struct rival *r);
    status (*prepare)(struct rival *r, const float *w, struct err *e); /* for r->shape; what was there before is dropped */
    void (*input)(struct rival *r, const float *x);
    status (*run)(struct rival *r, struct err *e); /* with the copy r->turn */
    void (*output)(const struct rival *r, float *y);
};

extern const struct rival_library rival_openblas, rival_onednn;

struct rival {
    enum rival_kind kind;
    int threads;
    struct rival_shape shape; /* the shape in force only when copies > 0 */
    int turn;
    char about[320];
    const struct rival_library *library;
    void *own;
};

/* 64-aligned, not cleared; free() */
float *rival_floats(size_t n);
/* ERR_IO for a library that dlopen() has just refused. */
status rival_absent(const char *what, const char *package, struct err *e);

#endif
