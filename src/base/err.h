/* Errors: one convention for the whole program.
 *
 * A function that can fail returns `status` (OK is 0) and takes `struct err *e` last.  Where the cause is known it fills `e`
 * once with one complete line of text that names the file, the key or the tensor, what was expected and what was found;
 * callers pass it up unchanged and only src/cli prints it.  The status is the exit code of the program.
 * Our own mistakes are not statuses: BUG_ON stays in release builds and aborts the job.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

typedef enum status {
    OK = 0,
    ERR_SPEC = 2,   /* the job spec or the command line is wrong */
    ERR_IO = 3,     /* a file cannot be read or written */
    ERR_FORMAT = 4, /* a file is malformed */
    ERR_LIMIT = 5,  /* does not fit: memory, positions, a limit of the spec */
    ERR_RANK = 6,   /* a rank was lost or is silent */
    ERR_GATE = 7,   /* an evaluation gate (max_drop) was not passed */
    STOPPED = 75,   /* stopped early on purpose; run again to go on */
} status;

struct err {
    status code;
    char text[1024];
};

/* Fills `e` and returns `code`, so that `return err_set(...)` reads well.  Control characters in the text become '?', text
 * that does not fit is cut.  `e` must not be NULL. */
status err_set(struct err *e, status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Prints file, line and the condition to stderr and aborts.  For our own mistakes only. */
_Noreturn void bug(const char *file, int line, const char *condition);
#define BUG_ON(condition)                                                                                                        \
    do {                                                                                                                         \
        if (__builtin_expect(!!(condition), 0)) bug(__FILE__, __LINE__, #condition);                                             \
    } while (0)

#endif
