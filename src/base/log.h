/* What a person sees while a job runs: lines on stderr and one progress bar.
 *
 * Only the coordinator rank is given a log; a NULL log swallows everything, so no caller asks for its rank.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdio.h>

struct log;

struct log *log_open(FILE *to, int quiet); /* never NULL */
void log_close(struct log *l);

void log_line(struct log *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_warn(struct log *l, const char *format, ...) __attribute__((format(printf, 2, 3))); /* "warning: ..." */

/* A progress bar that is redrawn in place on a terminal (at most ten times a second); elsewhere a line now and then (every 10 s).
 * `what` names the work, done <= total in any unit, the rest is free text behind the bar.  log_progress_end() takes it away. */
void log_progress(struct log *l, const char *what, double done, double total, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void log_progress_end(struct log *l);

#endif
