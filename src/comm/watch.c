#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm_internal.h"

/* For the coordinator to see the loss (it looks every 50 ms while it waits), print its line and call MPI_Abort. */
enum { GRACE_SECONDS = 2 };

/* The exit code of a rank that ended out of order, after the others had time to say so themselves. */
static int lost(int rank, int how, const sigset_t *signals)
{
    struct timespec grace = {.tv_sec = GRACE_SECONDS};
    char host[64] = "unknown";
    int number;

    do number = sigtimedwait(signals, NULL, &grace);
    while (number == SIGCHLD || number == SIGUSR1 || number == SIGUSR2 || (number < 0 && errno == EINTR));
    if (number > 0) return ERR_RANK; /* mpirun cleans up: it was said */
    gethostname(host, sizeof(host) - 1);
    if (WIFSIGNALED(how))
        dprintf(STDERR_FILENO, "factorllm: rank %d (%s) was lost: killed by signal %d (%s)\n", rank, host, WTERMSIG(how),
                strsignal(WTERMSIG(how)));
    else dprintf(STDERR_FILENO, "factorllm: rank %d (%s) was lost: it ended in the middle of the job\n", rank, host);
    return ERR_RANK;
}

/* The life of the parent.  Batch systems and mpirun signal the whole process group, a person may signal this process only: it passes
 * signals on, and the rank takes a second one of the same kind for the same. */
static int watch(int rank, pid_t child, const volatile bool *closed, const sigset_t *signals)
{
    bool ending = false;

    for (;;) {
        int how, number = sigwaitinfo(signals, NULL);

        if (number < 0) continue;
        if (number != SIGCHLD) {
            ending = ending || number == SIGTERM || number == SIGINT || number == SIGHUP;
            kill(child, number);
            continue;
        }
        if (waitpid(child, &how, WNOHANG) != child) continue; /* it was stopped or continued */
        if (WIFEXITED(how) && (WEXITSTATUS(how) || *closed)) return WEXITSTATUS(how);
        if (ending) return WIFEXITED(how) ? STOPPED : 128 + WTERMSIG(how);
        return lost(rank, how, signals);
    }
}

bool *watch_fork(int rank)
{
    static const int numbers[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
    bool *closed = mmap(NULL, sizeof(*closed), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigset_t signals, before;
    pid_t parent = getpid();

    if (closed == MAP_FAILED) return NULL;

    sigemptyset(&signals);
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) sigaddset(&signals, numbers[i]);
    /* Blocked before the fork, so that none is lost in between; of ignored signals nothing is heard. */
    sigprocmask(SIG_BLOCK, &signals, &before);
    signal(SIGCHLD, SIG_DFL);
    pid_t child = fork();

    if (child > 0) {
        prctl(PR_SET_NAME, "factorllm-watch");
        _exit(watch(rank, child, closed, &signals));
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (child < 0) return closed; /* then without */
    /* mpirun kills what it started; the rank must not stay behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(ERR_RANK);
    return closed;
}
