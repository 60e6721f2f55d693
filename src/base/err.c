#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

status err_set(struct err *e, status code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(e->text, sizeof(e->text), format, args);
    va_end(args);
    /* File names and keys come from outside: an error stays one line and sends no terminal sequences. */
    for (char *c = e->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    e->code = code;
    return code;
}

_Noreturn void bug(const char *file, int line, const char *condition)
{
    fprintf(stderr, "factorllm: bug: %s:%d: %s\n", file, line, condition);
    abort();
}
