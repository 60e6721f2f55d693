#include "base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void reserve(struct str *s, size_t more)
{
    size_t room = s->room ? s->room : 64;

    if (s->room - s->length > more) return;
    while (room - s->length <= more) room *= 2;
    s->text = realloc(s->text, room);
    BUG_ON(!s->text);
    s->room = room;
}

void str_add(struct str *s, const char *text, size_t length)
{
    reserve(s, length);
    memcpy(s->text + s->length, text, length);
    s->length += length;
    s->text[s->length] = 0;
}

void str_addz(struct str *s, const char *text)
{
    str_add(s, text, strlen(text));
}

void str_addf(struct str *s, const char *format, ...)
{
    va_list args;

    char probe[1];

    va_start(args, format);
    int n = vsnprintf(probe, sizeof(probe), format, args);
    va_end(args);
    BUG_ON(n < 0);
    reserve(s, (size_t)n);
    va_start(args, format);
    vsnprintf(s->text + s->length, (size_t)n + 1, format, args);
    va_end(args);
    s->length += (size_t)n;
}

void str_clear(struct str *s)
{
    s->length = 0;
    if (s->text) s->text[0] = 0;
}

void str_free(struct str *s)
{
    free(s->text);
    *s = (struct str){0};
}

static int distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    int n = (int)strlen(a), m = (int)strlen(b), row[MAX + 1];

    if (n > MAX || m > MAX) return MAX;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int corner = row[0];

        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = corner + (a[i - 1] != b[j - 1]);

            corner = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

const char *str_nearest(const char *word, const char *const *names, int n)
{
    const char *best = NULL;
    int near = 1 + (int)strlen(word) / 3, found = near + 1;

    for (int i = 0; i < n; i++) {
        int d = distance(word, names[i]);

        if (d < found) {
            found = d;
            best = names[i];
        }
    }
    return best;
}

char *str_dup(const char *text)
{
    if (!text) return NULL;
    char *copy = strdup(text);
    BUG_ON(!copy);
    return copy;
}

char *str_join(const char *directory, const char *name)
{
    struct str s = {0};

    if (name[0] == '/' || !directory || !directory[0]) return str_dup(name);
    str_addf(&s, "%s%s%s", directory, directory[strlen(directory) - 1] == '/' ? "" : "/", name);
    return s.text;
}
