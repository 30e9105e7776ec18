/* How many CPUs this process may use (its affinity mask, cut by every cgroup quota above it), staying
 * on one of them, sleeping on a word, whether another process is alive, and forks. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "crystalline/kernels.h"
#include "system.h"

void cry_sleep_on(const atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, 0, 0, 0);
}

void cry_wake_all(const atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
}

void cry_sleep_shared(const atomic_uint *word, unsigned value, int64_t nanoseconds)
{
    struct timespec most = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &most, 0, 0);
}

void cry_wake_shared(const atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

int64_t cry_nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

uint64_t cry_process_start(int64_t pid)
{
    char path[64], line[1024];
    if (pid <= 0) return 0;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *f = fopen(path, "r");
    size_t length = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f) fclose(f);
    if (!length) return kill((pid_t)pid, 0) == 0 || errno != ESRCH ? CRY_START_UNKNOWN : 0;
    line[length] = 0;
    /* pid (name) state ... : the name may hold anything, so the last parenthesis ends it; after the
     * state come 16 words, the number of threads, one word, the start. */
    char *at = strrchr(line, ')'), state = 0;
    unsigned long long start = 0;
    int threads = 0;
    if (!at || sscanf(at + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                              "%d %*s %llu", &state, &threads, &start) != 3)
        return 0;
    /* A main thread that has ended looks dead; others may run, if only until a kill gets to them. */
    return (state == 'Z' || state == 'X') && threads <= 1 ? 0 : start;
}

atomic_uint cry_fork_generation;
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;

static void in_child(void) { atomic_fetch_add(&cry_fork_generation, 1); }
static void watch_forks(void) { pthread_atfork(0, 0, in_child); }
void cry_watch_forks(void) { pthread_once(&watch_once, watch_forks); }

int cry_pin(int cpu)
{
    if (cpu < 0) return 0;
    cpu_set_t *set = CPU_ALLOC((size_t)cpu + 1);
    size_t size = CPU_ALLOC_SIZE((size_t)cpu + 1);
    if (!set) return 0;
    CPU_ZERO_S(size, set);
    CPU_SET_S((size_t)cpu, size, set);
    int done = sched_setaffinity(0, size, set) == 0;
    CPU_FREE(set);
    return done;
}

int cry_interleave(void *memory, int64_t bytes, const int32_t *nodes, int count)
{
    enum { WORDS = 16, BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[WORDS] = {0};
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page, end = (uintptr_t)memory + (uintptr_t)bytes;
    for (int i = 0; i < count; i++) {
        if (nodes[i] < 0 || nodes[i] >= WORDS * (int)BITS) return 0;
        mask[nodes[i] / (int)BITS] |= 1ul << nodes[i] % (int)BITS;
    }
    if (end <= begin) return 0;
    return syscall(SYS_mbind, begin, end - begin, MPOL_INTERLEAVE, mask, (unsigned long)WORDS * BITS, 0) == 0;
}

static int affinity_cpus(void)
{
    for (int most = 1024; most <= 1 << 20; most *= 4) { /* the mask must hold every CPU there is */
        cpu_set_t *set = CPU_ALLOC((size_t)most);
        size_t size = CPU_ALLOC_SIZE((size_t)most);
        if (!set) break;
        int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

/* Whole CPUs granted by one folder's quota, 0 where there is none.  A part of a CPU counts as one. */
static int folder_quota(const char *folder, int version)
{
    char path[4200];
    double quota = -1, period = 0;
    snprintf(path, sizeof path, version == 2 ? "%s/cpu.max" : "%s/cpu.cfs_quota_us", folder);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    int got = fscanf(f, "%lf %lf", &quota, &period); /* "max" reads as nothing: no quota */
    fclose(f);
    if (version == 1) {
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (!(f = fopen(path, "r"))) return 0;
        got += fscanf(f, "%lf", &period);
        fclose(f);
    }
    if (got != 2 || quota <= 0 || period <= 0) return 0;
    int cpus = (int)(quota / period + 0.999);
    return cpus > 0 ? cpus : 1;
}

/* The least quota on the way from the process's own cgroup up to the root of the mount. */
static int path_quota(const char *mount, const char *group, int version)
{
    char folder[4096];
    int least = 0;
    if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder) return 0;
    for (;;) {
        int cpus = folder_quota(folder, version);
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= strlen(mount) || !slash) return least;
        *slash = 0;
    }
}

/* `root` stands before /proc and /sys, for tests; normally it is empty. */
int cry_quota_cpus(const char *root)
{
    char path[4096], line[4096], mount[4096];
    int least = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : 0;
        if (!group) continue;
        *controllers++ = 0;
        *group++ = 0;
        int version = *controllers == 0 ? 2 : 1;
        if (version == 1) {
            char listed[4096]; /* the controller list holds the word cpu */
            snprintf(listed, sizeof listed, ",%s,", controllers);
            if (!strstr(listed, ",cpu,")) continue;
        }
        snprintf(mount, sizeof mount, "%.4000s/sys/fs/cgroup%s", root, version == 1 ? "/cpu" : "");
        int cpus = path_quota(mount, strcmp(group, "/") ? group : "", version);
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
    }
    fclose(f);
    return least;
}

int cry_usable_cpus(void)
{
    int mask = affinity_cpus(), quota = cry_quota_cpus("");
    return quota > 0 && quota < mask ? quota : mask;
}
