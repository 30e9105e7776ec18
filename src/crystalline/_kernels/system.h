/* All that the C side asks of the operating system, beside plain POSIX threads. */
#ifndef CRY_SYSTEM_H
#define CRY_SYSTEM_H

#include <stdatomic.h>
#include <stdint.h>

/* Sleeps while *word is `value`; may also return for no reason.  Between threads of one process. */
void cry_sleep_on(const atomic_uint *word, unsigned value);
void cry_wake_all(const atomic_uint *word);

/* The same for a word that may lie in memory shared between processes; sleeps for at most
 * `nanoseconds`. */
void cry_sleep_shared(const atomic_uint *word, unsigned value, int64_t nanoseconds);
void cry_wake_shared(const atomic_uint *word);

/* Of the clock that never goes back. */
int64_t cry_nanoseconds(void);

/* The cgroup quota in whole CPUs, 0 for none; `root` stands before /proc and /sys. */
int cry_quota_cpus(const char *root);

/* When process `pid` was started, in clock ticks since boot: with the number it names a process for
 * ever.  0 when there is none, or when all of it has ended and waits for its parent; CRY_START_UNKNOWN
 * when there is one that /proc does not show, or no file could be opened to see. */
#define CRY_START_UNKNOWN UINT64_MAX
uint64_t cry_process_start(int64_t pid);

/* Counts the forks between the first cry_watch_forks of any ancestor and this process. */
extern atomic_uint cry_fork_generation;
void cry_watch_forks(void);

/* Keeps the calling thread on one CPU; 0 when the system refuses. */
int cry_pin(int cpu);

/* Lets the pages of fresh memory come from the NUMA nodes in turn; 0 when the system refuses. */
int cry_interleave(void *memory, int64_t bytes, const int32_t *nodes, int count);

#endif
