/* Memory that ranks of one host share.  It has no name in any file system: it goes when the last of them ends, however that comes, and it does not
 * count against a small /dev/shm.  Others open it through /proc/PID/fd, which needs one PID namespace and one user. */
#ifndef COMM_REGION_H
#define COMM_REGION_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { REGION_HEAD = 64 }; /* bytes at its beginning that are not the user's */

struct region {
    char *base; /* NULL: there is none */
    size_t bytes;
    uint64_t id; /* so that nobody takes another file for it */
    int file;    /* of the one who made it, -1 for the others */
};

/* All pages are there when it returns OK, zeroed; ERR_LIMIT with the reason. */
status region_create(struct region *r, size_t bytes, struct err *e);
/* What process `pid` created as its descriptor `file`.  ERR_IO. */
status region_attach(struct region *r, long pid, int file, size_t bytes, uint64_t id, struct err *e);
void region_close(struct region *r); /* one that is empty is fine */

#endif
