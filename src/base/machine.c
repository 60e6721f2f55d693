#include "base/machine.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The number in the first line of a small file of the kernel; false if there is none ("max"). */
static bool read_number(const char *path, long long *n)
{
    FILE *f = fopen(path, "re");
    bool found = f && fscanf(f, "%lld", n) == 1;

    if (f) fclose(f);
    return found;
}

int64_t machine_memory(void)
{
    static const char *const limits[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
    };
    FILE *f = fopen("/proc/meminfo", "re");
    long long kib, bytes = 0;
    char line[256];

    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) bytes = kib * 1024;
    if (f) fclose(f);
    for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        long long most, used;

        if (!read_number(limits[i][0], &most)) continue;
        if (!read_number(limits[i][1], &used)) used = 0;
        if (most > used && most - used < bytes) bytes = most - used;
    }
    return bytes;
}

void machine_processor_name(char *out, int room)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];

    out[0] = 0;
    while (f && !out[0] && fgets(line, sizeof(line), f)) {
        char *name = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;

        if (!name) continue;
        name += 1 + strspn(name + 1, " \t");
        name[strcspn(name, "\n")] = 0;
        snprintf(out, (size_t)room, "%s", name);
    }
    if (f) fclose(f);
}

int machine_processors(void)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    return online > 0 ? (int)online : 1;
}
