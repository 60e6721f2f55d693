#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"

struct log {
    FILE *to;
    bool quiet, terminal, bar; /* bar: one is on the screen now */
    double last;               /* when progress was last shown */
};

struct log *log_open(FILE *to, int quiet)
{
    struct log *l = calloc(1, sizeof(*l));

    BUG_ON(!l);
    *l = (struct log){.to = to, .quiet = quiet, .terminal = isatty(fileno(to))};
    l->last = clock_now();
    return l;
}

void log_close(struct log *l)
{
    if (!l) return;
    log_progress_end(l);
    free(l);
}

static void print(struct log *l, const char *prefix, const char *format, va_list args)
{
    log_progress_end(l);
    fputs(prefix, l->to);
    vfprintf(l->to, format, args);
    fputc('\n', l->to);
    fflush(l->to);
}

void log_line(struct log *l, const char *format, ...)
{
    va_list args;

    if (!l || l->quiet) return;
    va_start(args, format);
    print(l, "", format, args);
    va_end(args);
}

void log_warn(struct log *l, const char *format, ...)
{
    va_list args;

    if (!l) return;
    va_start(args, format);
    print(l, "warning: ", format, args);
    va_end(args);
}

void log_progress(struct log *l, const char *what, double done, double total, const char *format, ...)
{
    enum { WIDTH = 24 };
    va_list args;

    if (!l || l->quiet) return;
    double now = clock_now(), share = total > 0 ? done / total : 0;
    if (now - l->last < (l->terminal ? 0.1 : 10.0)) return;
    l->last = now;
    if (share > 1) share = 1;
    if (l->terminal) fputs("\r\033[K", l->to);
    fprintf(l->to, "%-12s ", what);
    if (l->terminal) {
        int full = (int)(share * WIDTH);

        fputc('[', l->to);
        for (int i = 0; i < WIDTH; i++) fputc(i < full ? '#' : '.', l->to);
        fputs("] ", l->to);
    }
    fprintf(l->to, "%3.0f %%  ", 100 * share);
    va_start(args, format);
    vfprintf(l->to, format, args);
    va_end(args);
    if (!l->terminal) fputc('\n', l->to);
    l->bar = l->terminal;
    fflush(l->to);
}

void log_progress_end(struct log *l)
{
    if (!l || !l->bar) return;
    fputs("\r\033[K", l->to);
    fflush(l->to);
    l->bar = false;
}
