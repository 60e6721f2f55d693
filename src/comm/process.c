#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/machine.h"
#include "comm/comm_internal.h"

/* The first line of a small file of the kernel; empty if there is none. */
static void read_line(const char *path, char *to, size_t room)
{
    FILE *f = fopen(path, "r");

    if (!f || !fgets(to, (int)room, f)) to[0] = 0;
    if (f) fclose(f);
    to[strcspn(to, "\n")] = 0;
}

/* State letter and start time of a process; false if there is no such process to be seen. */
static bool read_stat(long pid, char *state, uint64_t *started)
{
    char path[64], line[1024];
    unsigned long long ticks;

    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    read_line(path, line, sizeof(line));
    /* The name in parentheses may hold anything, also parentheses. */
    const char *after = strrchr(line, ')');
    if (!after) return false;
    int n = sscanf(after + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", state, &ticks);
    *started = n == 2 ? ticks : 0;
    return n == 2;
}

void process_describe(struct process *p, struct comm_peer *peer)
{
    cpu_set_t *set = CPU_ALLOC(sizeof(p->processors) * 8);
    size_t bytes = CPU_ALLOC_SIZE(sizeof(p->processors) * 8);
    struct stat s;
    char state;

    BUG_ON(!set || bytes > sizeof(p->processors));
    memset(p, 0, sizeof(*p));
    read_line("/proc/sys/kernel/random/boot_id", p->boot, sizeof(p->boot));
    if (stat("/proc/self/ns/pid", &s) == 0) p->pid_namespace = s.st_ino;
    read_stat(getpid(), &state, &p->started);
    CPU_ZERO_S(bytes, set);
    if (sched_getaffinity(0, bytes, set) == 0) {
        memcpy(p->processors, set, bytes);
        peer->cores = CPU_COUNT_S(bytes, set);
    } else {
        long online = sysconf(_SC_NPROCESSORS_ONLN);

        peer->cores = online > 0 ? (int)online : 1;
    }
    CPU_FREE(set);
    peer->pid = getpid();
    peer->memory_bytes = machine_memory();
    if (gethostname(peer->host, sizeof(peer->host) - 1)) strcpy(peer->host, "unknown");
    peer->host[sizeof(peer->host) - 1] = 0;
}

bool process_same_host(const struct process *a, const struct process *b)
{
    return a->boot[0] && strcmp(a->boot, b->boot) == 0;
}

bool process_gone(const struct process *p, const struct process *mine, long pid)
{
    uint64_t started;
    char state;

    if (!process_same_host(p, mine) || !p->pid_namespace || p->pid_namespace != mine->pid_namespace || !p->started) return false;
    if (kill((pid_t)pid, 0) && errno == ESRCH) return true;
    /* A zombie answers kill(); /proc may be closed to us (hidepid), which tells nothing. */
    if (!read_stat(pid, &state, &started)) return false;
    return state == 'Z' || state == 'X' || started != p->started;
}

int process_host_cores(const struct process *all, int n, const struct process *p)
{
    uint64_t any[sizeof(p->processors) / sizeof(p->processors[0])] = {0};
    int count = 0;

    for (int i = 0; i < n; i++)
        for (size_t w = 0; w < sizeof(any) / sizeof(any[0]); w++)
            if (&all[i] == p || process_same_host(&all[i], p)) any[w] |= all[i].processors[w];
    for (size_t w = 0; w < sizeof(any) / sizeof(any[0]); w++) count += __builtin_popcountll(any[w]);
    return count;
}
