#include "data/utf8.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD"

size_t utf8_next(bool *valid, const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char low = 0x80, high = 0xBF; /* of the second byte: no overlong forms, no surrogates, nothing above U+10FFFF */
    size_t need;

    *valid = true;
    if (u[0] < 0x80) return 1;
    *valid = false;
    if (u[0] < 0xC2 || u[0] > 0xF4) return 1;
    need = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    if (u[0] == 0xE0) low = 0xA0;
    if (u[0] == 0xED) high = 0x9F;
    if (u[0] == 0xF0) low = 0x90;
    if (u[0] == 0xF4) high = 0x8F;
    for (size_t i = 1; i < need; i++) {
        if (i == n || u[i] < low || u[i] > high) return i;
        low = 0x80;
        high = 0xBF;
    }
    *valid = true;
    return need;
}

bool utf8_valid(const char *s, size_t n)
{
    bool valid = true;

    for (size_t at = 0; at < n && valid;) at += utf8_next(&valid, s + at, n - at);
    return valid;
}

void utf8_clean(struct str *out, const char *s, size_t n)
{
    size_t begin = 0; /* of the valid run that was not yet copied */

    for (size_t at = 0; at < n;) {
        bool valid;
        size_t step = utf8_next(&valid, s + at, n - at);

        if (!valid) {
            str_add(out, s + begin, at - begin);
            str_addz(out, REPLACEMENT);
            begin = at + step;
        }
        at += step;
    }
    if (n > begin) str_add(out, s + begin, n - begin);
}

size_t utf8_whole(const char *s, size_t n)
{
    /* Only an unfinished character at the very end is cut; whatever else is wrong stays. */
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        bool valid;
        unsigned char c = (unsigned char)s[n - back];

        if (c < 0x80) break;
        if (c < 0xC0) continue;
        size_t step = utf8_next(&valid, s + n - back, back);
        size_t need = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
        if (!valid && step == back && c >= 0xC2 && c <= 0xF4 && back < need) return n - back;
        break;
    }
    return n;
}

uint32_t utf8_code(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    uint32_t code = n == 1 ? u[0] : u[0] & (0xFFu >> (n + 1));

    for (size_t i = 1; i < n; i++) code = code << 6 | (u[i] & 0x3F);
    return code;
}

size_t utf8_put(char out[4], uint32_t code)
{
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;

    if (n == 1) {
        out[0] = (char)code;
        return 1;
    }
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00 >> n & 0xFF) | code);
    return n;
}
