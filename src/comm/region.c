#include "comm/region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"

static bool map(struct region *r, int file, size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

    if (base == MAP_FAILED) return false;
    r->base = base;
    r->bytes = bytes;
    return true;
}

status region_create(struct region *r, size_t bytes, struct err *e)
{
    int file = memfd_create("factorllm", MFD_CLOEXEC);
    int64_t now = (int64_t)(clock_now() * 1e9);

    *r = (struct region){.file = -1};
    /* Pages are asked for now: a page that is missing later is SIGBUS. */
    if (file < 0 || ftruncate(file, (off_t)bytes) || fallocate(file, 0, 0, (off_t)bytes) || !map(r, file, bytes)) {
        err_set(e, ERR_LIMIT, "%zu bytes of shared memory: %s", bytes, strerror(errno));
        if (file >= 0) close(file);
        return e->code;
    }
    r->file = file;
    r->id = (uint64_t)now << 20 ^ (uint64_t)getpid();
    memcpy(r->base, &r->id, sizeof(r->id));
    return OK;
}

status region_attach(struct region *r, long pid, int file, size_t bytes, uint64_t id, struct err *e)
{
    char path[64];
    struct stat s;

    *r = (struct region){.file = -1};
    snprintf(path, sizeof(path), "/proc/%ld/fd/%d", pid, file);
    errno = 0;
    int opened = open(path, O_RDWR | O_CLOEXEC);
    if (opened < 0 || fstat(opened, &s) || (size_t)s.st_size != bytes || !map(r, opened, bytes)) {
        err_set(e, ERR_IO, "%s: %s", path, errno ? strerror(errno) : "not the shared memory that was expected");
        if (opened >= 0) close(opened);
        return e->code;
    }
    close(opened);
    memcpy(&r->id, r->base, sizeof(r->id));
    if (r->id == id) return OK;
    region_close(r);
    return err_set(e, ERR_IO, "%s: not the shared memory that was expected", path);
}

void region_close(struct region *r)
{
    if (!r->base) return;
    munmap(r->base, r->bytes);
    if (r->file >= 0) close(r->file);
    *r = (struct region){.file = -1};
}
