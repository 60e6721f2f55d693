/* Any bytes as a safetensors file, and as the header of one whose length and data are right, so that the fuzzer gets past them.  What is
 * accepted is read to its last byte. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "data/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try(int fd)
{
    struct safetensors *f;
    struct mat m;
    struct err e;
    const void *raw;
    unsigned sum = 0;
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (safetensors_open(&f, path, &e)) {
        if (f) abort();
        return;
    }
    for (size_t i = 0; i < safetensors_count(f); i++) {
        const struct tensor_info *t = safetensors_info(f, i);
        int64_t rows = t->dims == 2 ? t->shape[0] : 1, cols = t->dims == 1 || t->dims == 2 ? t->shape[t->dims - 1] : 1;

        if (safetensors_find(f, t->name) != t) abort();
        if (t->dims <= 4 && !safetensors_raw(&raw, f, t->name, t->dtype, t->dims, t->shape, 1, &e))
            for (size_t b = 0; b < t->bytes; b++) sum += ((const volatile uint8_t *)raw)[b];
        if (rows > INT32_MAX || cols > INT32_MAX) continue;
        if (safetensors_mat(&m, f, t->name, (int)rows, (int)cols, &e)) continue;
        if (t->bytes) mat_check_finite(&m, t->name, NULL, &e);
        if (rows > 1 && safetensors_rows(&m, f, t->name, (int)rows, (int)cols, (int)rows - 1, 1, &e)) abort();
    }
    (void)sum;
    (void)safetensors_metadata_text(f, "format");
    safetensors_close(f);
}

static void put(int fd, const void *bytes, size_t n)
{
    if (write(fd, bytes, n) != (ssize_t)n) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char zero[64];
    uint64_t length = size;
    int fd = memfd_create("fuzz", 0);

    if (fd < 0) abort();
    put(fd, data, size);
    try(fd);
    if (ftruncate(fd, 0) || lseek(fd, 0, SEEK_SET)) abort();
    put(fd, &length, sizeof(length));
    put(fd, data, size);
    put(fd, zero, sizeof(zero)); /* 64 bytes of data */
    try(fd);
    close(fd);
    return 0;
}
