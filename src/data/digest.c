#include "data/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGEST_BYTES = 32, BLOCK = 1 << 18 };

static EVP_MD_CTX *begin(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();

    BUG_ON(!c || EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1);
    return c;
}

static void end(char hex[65], EVP_MD_CTX *c)
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    BUG_ON(EVP_DigestFinal_ex(c, raw, &n) != 1 || n != DIGEST_BYTES);
    EVP_MD_CTX_free(c);
    for (unsigned i = 0; i < DIGEST_BYTES; i++) snprintf(hex + 2 * (size_t)i, 3, "%02x", raw[i]);
}

void digest_bytes(char hex[65], const void *bytes, size_t length)
{
    EVP_MD_CTX *c = begin();

    BUG_ON(length && EVP_DigestUpdate(c, bytes, length) != 1);
    end(hex, c);
}

status digest_file(char hex[65], const char *path, struct err *e)
{
    FILE *f = fopen(path, "rbe");
    size_t n;

    hex[0] = 0;
    if (!f) return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    char *block = malloc(BLOCK);
    BUG_ON(!block);
    EVP_MD_CTX *c = begin();
    while ((n = fread(block, 1, BLOCK, f)) > 0) BUG_ON(EVP_DigestUpdate(c, block, n) != 1);
    status s = ferror(f) ? err_set(e, ERR_IO, "%s: cannot be read: %s", path, strerror(errno)) : OK;
    end(hex, c);
    if (s) hex[0] = 0;
    free(block);
    fclose(f);
    return s;
}

status digest_files(char hex[65], const char *const *paths, int n, struct err *e)
{
    EVP_MD_CTX *c;
    char one[65];

    hex[0] = 0;
    if (n == 1) return digest_file(hex, paths[0], e);
    c = begin();
    for (int i = 0; i < n; i++) {
        if (digest_file(one, paths[i], e)) {
            EVP_MD_CTX_free(c);
            return e->code;
        }
        BUG_ON(EVP_DigestUpdate(c, one, 64) != 1);
    }
    end(hex, c);
    return OK;
}
