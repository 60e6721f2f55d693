/* SHA-256 (FIPS 180-4) of files and bytes, to say which model and which text a result belongs to.  Through libcrypto, if that is the
 * well-kept library at hand, behind this door. */
#ifndef DATA_DIGEST_H
#define DATA_DIGEST_H

#include <stddef.h>

#include "base/err.h"

void digest_bytes(char hex[65], const void *bytes, size_t length);
status digest_file(char hex[65], const char *path, struct err *e);

/* In pieces, for what takes long: digest_end() frees. */
struct digest;
struct digest *digest_begin(void);
void digest_add(struct digest *d, const void *bytes, size_t length);
void digest_end(struct digest *d, char hex[65]);

#endif
