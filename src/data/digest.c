#include "data/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGEST_BYTES = 32, BLOCK = 1 << 18 };

/* A context of libcrypto under a name of ours. */
static EVP_MD_CTX *context(struct digest *d)
{
    return (EVP_MD_CTX *)d;
}

struct digest *digest_begin(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();

    BUG_ON(!c || EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1);
    return (struct digest *)c;
}

void digest_add(struct digest *d, const void *bytes, size_t length)
{
    BUG_ON(length && EVP_DigestUpdate(context(d), bytes, length) != 1);
}

void digest_end(struct digest *d, char hex[65])
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    BUG_ON(EVP_DigestFinal_ex(context(d), raw, &n) != 1 || n != DIGEST_BYTES);
    EVP_MD_CTX_free(context(d));
    for (unsigned i = 0; i < DIGEST_BYTES; i++) snprintf(hex + 2 * (size_t)i, 3, "%02x", raw[i]);
}

void digest_bytes(char hex[65], const void *bytes, size_t length)
{
    struct digest *d = digest_begin();

    digest_add(d, bytes, length);
    digest_end(d, hex);
}

status digest_file(char hex[65], const char *path, struct err *e)
{
    FILE *f = fopen(path, "rbe");
    size_t n;

    hex[0] = 0;
    if (!f) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    char *block = malloc(BLOCK);
    BUG_ON(!block);
    struct digest *d = digest_begin();
    while ((n = fread(block, 1, BLOCK, f)) > 0) digest_add(d, block, n);
    status s = ferror(f) ? err_set(e, ERR_IO, "%s: cannot be read: %s", path, strerror(errno)) : OK;
    digest_end(d, hex);
    if (s) hex[0] = 0;
    free(block);
    fclose(f);
    return s;
}
