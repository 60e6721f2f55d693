/* UTF-8 as it comes from strangers.
 *
 * The rule for invalid bytes is Unicode's ("maximal subparts", as in Python's errors="replace"): the longest beginning of a character that
 * could still have become valid, or else one byte, is replaced by one U+FFFD.
 */
#ifndef DATA_UTF8_H
#define DATA_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

/* Length of the character, or of the maximal invalid part, at the start of s (n > 0). */
size_t utf8_next(bool *valid, const char *s, size_t n);
bool utf8_valid(const char *s, size_t n);
/* Appends s with every invalid part replaced. */
void utf8_clean(struct str *out, const char *s, size_t n);
/* The largest m <= n so that the first m bytes of s do not end inside a character. */
size_t utf8_whole(const char *s, size_t n);

uint32_t utf8_code(const char *s, size_t n); /* of one valid character of n bytes */
size_t utf8_put(char out[4], uint32_t code); /* its length */

#endif
