/* The team at work: random regions under random arrangements; each task runs exactly once.
 *
 *     team_soak THREADS REGIONS SEED [pin]
 *
 * Tasks write plain memory that the caller reads after the region, and each thread number writes
 * memory of its own: a region that ends too early, a task run twice, or two threads with one number
 * are wrong counts, and data races to the thread sanitizer.  With `pin` all workers share CPU 0.
 * Prints one line of JSON; exit code 1 when anything is wrong. */
#define _POSIX_C_SOURCE 200809L
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

enum { MOST_TASKS = 3000, MOST_THREADS = 64 };

typedef struct region {
    int limit;
    int ran[MOST_TASKS];
    int64_t by_thread[MOST_THREADS];
    int64_t wrong[MOST_THREADS]; /* numbers beyond the limit, as each thread saw them */
} region;

static uint64_t state;
static int64_t least, most; /* tasks of a sphere in all regions */
static int32_t begin[CRY_PARTS + 1], owner[CRY_PARTS];

static int64_t below(int64_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int64_t)(state % (uint64_t)n);
}

static void one_task(void *context, int64_t task, int thread)
{
    region *r = context;
    r->ran[task]++;
    r->by_thread[thread]++;
    if (thread >= r->limit) r->wrong[thread]++;
    volatile int64_t spun = 0; /* so that tasks are uneven */
    for (int64_t i = task % 7 * task % 300; i > 0; i--) spun = spun + i;
}

static void shuffle(int32_t *x, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = (int)below(i + 1);
        int32_t swap = x[i];
        x[i] = x[j];
        x[j] = swap;
    }
}

/* Random leaves, owners and orders; returns how many leaves.  `few` owners leave others to steal. */
static int random_leaves(int32_t *order, int threads)
{
    int leaves = 0, chance = (int)below(40) + 1, few = (int)below(threads) + 1;
    for (int part = 0; part < CRY_PARTS; part++) {
        if (part % (CRY_PARTS / CRY_GROUPS) && below(40) >= chance) continue;
        owner[leaves] = (int32_t)below(few);
        begin[leaves++] = part;
    }
    begin[leaves] = CRY_PARTS;
    for (int t = 0; t < threads; t++) {
        int32_t *row = order + t * leaves;
        int own = 0, at = 0;
        for (int l = 0; l < leaves; l++)
            if (owner[l] == t) row[own++] = l;
        at = own;
        for (int l = 0; l < leaves; l++)
            if (owner[l] != t) row[at++] = l;
        shuffle(row, own);
        shuffle(row + own, leaves - own);
    }
    return leaves;
}

static int64_t check_region(const region *r, int64_t tasks)
{
    int64_t wrong = 0, done = 0;
    for (int64_t t = 0; t < MOST_TASKS; t++) wrong += r->ran[t] != (t < tasks);
    for (int t = 0; t < MOST_THREADS; t++) {
        done += r->by_thread[t];
        wrong += r->wrong[t];
    }
    least += tasks / CRY_GROUPS;
    most += (tasks + CRY_GROUPS - 1) / CRY_GROUPS;
    return wrong + (done != tasks);
}

/* The counters tell of all tasks, by sphere and by thread. */
static int64_t check_counters(const cry_pool *pool, int threads, int64_t tasks, int64_t *stolen)
{
    static cry_counts of_threads[MOST_THREADS];
    static int64_t leaf_busy[CRY_PARTS];
    cry_statistics s = {.threads = of_threads, .leaf_busy = leaf_busy};
    int64_t wrong = 0, total = 0, robbed = 0;
    cry_pool_statistics(pool, &s);
    for (int g = 0; g < CRY_GROUPS; g++) {
        wrong += s.spheres[g].tasks < least || s.spheres[g].tasks > most;
        robbed += s.spheres[g].stolen;
    }
    for (int t = 0; t < threads; t++) {
        total += of_threads[t].tasks;
        robbed -= of_threads[t].stolen;
        *stolen += of_threads[t].stolen;
        wrong += of_threads[t].busy > s.inside;
    }
    return wrong + (total != tasks) + (robbed != 0);
}

/* The numbers of regions come round while the workers are new; each has to come to every region. */
static int64_t check_wrap(int threads, region *r)
{
    cry_team team = {.threads = threads, .pool = cry_pool_new(threads, 0)};
    if (!team.pool) return 1;
    team.pool->steal = 0;
    team.pool->number = REGION_MASK;
    atomic_store(&team.pool->region, UINT_MAX - 1);
    int64_t wrong = 0;
    for (int n = 0; n < 4; n++) {
        memset(r, 0, sizeof *r);
        r->limit = threads;
        cry_run(&team, 100, one_task, r);
        for (int t = 0; t < MOST_TASKS; t++) wrong += r->ran[t] != (t < 100);
    }
    cry_pool_free(team.pool);
    return wrong;
}

int main(int argc, char **argv)
{
    int threads = argc > 3 ? atoi(argv[1]) : 0;
    int64_t regions = argc > 3 ? atoll(argv[2]) : 0, wrong = 0, total = 0, stolen = 0;
    int cpus[MOST_THREADS] = {0};
    if (threads < 1 || threads > MOST_THREADS || regions < 1) {
        fprintf(stderr, "usage: team_soak THREADS REGIONS SEED [pin]\n");
        return 2;
    }
    state = strtoull(argv[3], 0, 10) * UINT64_C(0x9e3779b97f4a7c15) + 1;
    cry_team team = {.threads = threads, .pool = cry_pool_new(threads, argc > 4 ? cpus : 0)};
    int32_t *order = malloc(sizeof *order * CRY_PARTS * (size_t)threads);
    region *r = malloc(sizeof *r);
    if (!team.pool || !order || !r) return 2;
    wrong += check_wrap(threads, r);
    for (int64_t n = 0; n < regions; n++) {
        if (below(4) == 0) {
            cry_arrangement a = {random_leaves(order, threads), begin, owner, order, below(2) == 0};
            wrong += cry_pool_arrange(team.pool, &a) != CRY_OK;
        }
        int64_t tasks = below(10) ? below(below(3) ? 60 : MOST_TASKS) : below(3);
        memset(r, 0, sizeof *r);
        r->limit = team.threads = below(3) ? threads : (int)below(threads) + 1;
        cry_run(&team, tasks, one_task, r);
        wrong += check_region(r, tasks);
        total += tasks;
    }
    wrong += check_counters(team.pool, threads, total, &stolen);
    printf("{\"threads\": %d, \"regions\": %lld, \"tasks\": %lld, \"stolen\": %lld, \"wrong\": %lld}\n",
           threads, (long long)regions, (long long)total, (long long)stolen, (long long)wrong);
    cry_pool_free(team.pool);
    free(order);
    free(r);
    return wrong ? 1 : 0;
}
