/* The team's threads.  They carry tasks out; what the tasks are never depends on how many threads
 * there are, or on which of them runs what.
 *
 * The tasks of a region lie in a row, and the leaves of the 12 spheres divide it between them.  A
 * thread takes the tasks of its own leaves and then, when stealing, what is left of others', nearest
 * first.  Tasks are taken one by one off their leaf's counter, whoever takes them.
 *
 * A region opens a gate, workers that come in time pass it and take tasks, and so does the caller.
 * When no task is left the caller shuts the gate and waits for those inside only: a worker that the
 * system did not let run costs nothing.  Without stealing every worker has to come.  Who waits spins
 * for some microseconds and then sleeps.  (OpenMP's team was tried first: it waits for every thread,
 * and spins for milliseconds, which on a machine shared with others made a step 17 times slower.)
 *
 * Denormals are flushed in workers, and in the caller inside a region; its mode comes back.  The
 * caller is never pinned here.  Workers take no signals. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "pool.h"

enum { SPIN_NANOSECONDS = 50000 };

/* gate: the low half counts workers inside, OPEN tells that more may enter. */
#define OPEN 0x80000000u

typedef struct worker_start {
    cry_pool *pool;
    int thread;
} worker_start;

/* The mode of all our arithmetic from here on; returns the one to be restored. */
static unsigned enter_mode(void)
{
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    /* Flush to zero, denormals are zero, round to nearest, no exceptions: the same in every thread,
     * whatever the caller had set. */
    _mm_setcsr(0x9fc0u);
    return before;
#else
    return 0;
#endif
}

static void leave_mode(unsigned before)
{
#if defined(__SSE__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

static void pause_briefly(void)
{
#if defined(__SSE__)
    for (int i = 0; i < 8; i++) _mm_pause();
#endif
}

static void add(atomic_llong *to, int64_t n) { atomic_fetch_add_explicit(to, n, memory_order_relaxed); }

/* Waits until *word is no longer `value`; `asleep` tells the other side to wake us. */
static void wait_while(const atomic_uint *word, unsigned value, atomic_int *asleep, int64_t spin)
{
    int64_t until = spin ? cry_nanoseconds() + spin : 0;
    while (spin && cry_nanoseconds() < until) {
        if (atomic_load_explicit(word, memory_order_acquire) != value) return;
        pause_briefly();
    }
    /* Announced before looking once more: whoever changes the word after that look sees us. */
    atomic_fetch_add(asleep, 1);
    while (atomic_load(word) == value) cry_sleep_on(word, value);
    atomic_fetch_sub(asleep, 1);
}

/* The next of a leaf's `count` tasks nobody has taken, or -1. */
static int64_t take(leaf *from, uint64_t region, int64_t count)
{
    unsigned long long seen = atomic_load_explicit(&from->counter, memory_order_relaxed);
    for (;;) {
        uint64_t taken = seen >> TAKEN_BITS == region ? seen & TAKEN_MASK : 0;
        if ((int64_t)taken >= count) return -1;
        if (atomic_compare_exchange_weak_explicit(&from->counter, &seen,
                                                  (region << TAKEN_BITS) + taken + 1,
                                                  memory_order_relaxed, memory_order_relaxed))
            return (int64_t)taken;
    }
}

/* A leaf's tasks are first .. first + count of its sphere's; returns count. */
static int64_t tasks_of(const cry_pool *pool, const leaf *from, int64_t tasks, int64_t *first)
{
    int64_t of_sphere = tasks / CRY_GROUPS + (pool->turn[from->sphere] < tasks % CRY_GROUPS);
    *first = of_sphere * from->begin / SPHERE_PARTS;
    return of_sphere * from->end / SPHERE_PARTS - *first;
}

/* The t-th task of a sphere.  Every one has `each` in a row; of the rest, at the end, some have one
 * more. */
static int64_t number_of(const cry_pool *pool, int sphere, int64_t tasks, int64_t t)
{
    int64_t each = tasks / CRY_GROUPS;
    return t < each ? sphere * each + t : CRY_GROUPS * each + pool->turn[sphere];
}

void cry_side_by_side(const cry_team *team, int64_t tasks, int32_t *place)
{
    const cry_pool *pool = team->pool;
    int32_t next = 0;
    for (int64_t t = 0; !pool && t < tasks; t++) place[t] = next++;
    for (int thread = 0; pool && thread < pool->threads; thread++) {
        const int32_t *order = pool->order + (int64_t)thread * pool->leaf_count;
        for (int i = 0; i < pool->leaf_count; i++) {
            const leaf *from = pool->leaves + order[i];
            if (from->owner != thread) break; /* own leaves come first */
            int64_t first, count = tasks_of(pool, from, tasks, &first);
            for (int64_t t = first; t < first + count; t++)
                place[number_of(pool, from->sphere, tasks, t)] = next++;
        }
    }
}

static void take_tasks(cry_pool *pool, int thread, int everything)
{
    const int32_t *order = pool->order + (int64_t)thread * pool->leaf_count;
    int64_t before = cry_nanoseconds();
    for (int i = 0; i < pool->leaf_count; i++) {
        leaf *from = pool->leaves + order[i];
        int own = from->owner == thread;
        if (!own && !everything) return; /* own leaves come first */
        int64_t first, count = tasks_of(pool, from, pool->tasks, &first), done = 0;
        for (int64_t t; count && (t = take(from, pool->number, count)) >= 0; done++)
            pool->task(pool->context, number_of(pool, from->sphere, pool->tasks, first + t), thread);
        if (!done) continue;
        int64_t now = cry_nanoseconds();
        counts *to[2] = {pool->by_thread + thread,
                         pool->spheres + from->sphere};
        for (int k = 0; k < 2; k++) {
            add(&to[k]->tasks, done);
            add(&to[k]->busy, now - before);
            if (!own) add(&to[k]->stolen, done);
        }
        add(&from->busy, now - before);
        before = now;
    }
}

/* One more inside, if the gate is open. */
static int enter(cry_pool *pool)
{
    unsigned gate = atomic_load(&pool->gate);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) return 1;
    return 0;
}

static void *work(void *argument)
{
    worker_start start = *(worker_start *)argument;
    cry_pool *pool = start.pool;
    free(argument);
    enter_mode();
    /* A CPU that was taken away meanwhile is no reason not to work. */
    if (pool->cpus) (void)cry_pin(pool->cpus[start.thread]);
    unsigned seen = 0;
    uint64_t served = 0; /* the last region taken part in */
    while (!atomic_load(&pool->stop)) {
        wait_while(&pool->region, seen, &pool->sleepers, pool->spin);
        seen = atomic_load(&pool->region);
        if (!enter(pool)) continue;
        /* The gate opens before `region` is counted up: who came in between comes once more, and
         * may not arrive for another. */
        int again = pool->number == served;
        served = pool->number;
        if (!again && start.thread < pool->limit) take_tasks(pool, start.thread, pool->stealing);
        if (!again && !pool->stealing) {
            atomic_fetch_add(&pool->arrived, 1);
            if (atomic_load(&pool->waiting)) cry_wake_all(&pool->arrived);
        }
        /* The last one out after the gate was shut wakes the caller. */
        if (atomic_fetch_sub(&pool->gate, 1) == 1 && atomic_load(&pool->waiting))
            cry_wake_all(&pool->gate);
    }
    return 0;
}

/* Kernels keep blocks of up to 200 KiB on the stack, and some systems give threads less. */
enum { STACK = 2 << 20 };

static void start_workers(cry_pool *pool)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool->workers = 0;
    for (int t = 1; t < pool->threads; t++) {
        worker_start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (worker_start){pool, t};
        if (pthread_create(pool->handles + t - 1, &attributes, work, start) != 0) {
            free(start);
            break;
        }
        pool->workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pool->generation = atomic_load(&cry_fork_generation);
}

/* After a fork the child has the pool's memory, as it happened to be, and none of its threads. */
static void restart_in_child(cry_pool *pool)
{
    atomic_store(&pool->region, 0);
    atomic_store(&pool->gate, 0);
    atomic_store(&pool->sleepers, 0);
    atomic_store(&pool->waiting, 0);
    start_workers(pool);
}

cry_pool *cry_pool_new(int threads, const int *cpus)
{
    if (threads < 1) return 0;
    cry_watch_forks();
    cry_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool) return 0;
    memset(pool, 0, sizeof *pool);
    size_t n = (size_t)threads;
    pool->threads = threads;
    pool->handles = calloc(n, sizeof *pool->handles);
    pool->by_thread = aligned_alloc(64, n * sizeof *pool->by_thread);
    pool->cpus = cpus ? malloc(n * sizeof *cpus) : 0;
    if (!pool->handles || !pool->by_thread || (cpus && !pool->cpus) || !cry_arrange_simply(pool)) {
        cry_pool_free(pool);
        return 0;
    }
    memset(pool->by_thread, 0, n * sizeof *pool->by_thread);
    if (cpus) memcpy(pool->cpus, cpus, n * sizeof *cpus);
    /* With more threads than CPUs, who spins keeps another from working. */
    pool->spin = threads <= cry_usable_cpus() ? SPIN_NANOSECONDS : 0;
    start_workers(pool);
    return pool;
}

void cry_pool_free(cry_pool *pool)
{
    if (!pool) return;
    if (pool->workers && pool->generation == atomic_load(&cry_fork_generation)) {
        atomic_store(&pool->stop, 1);
        atomic_fetch_add(&pool->region, 1);
        cry_wake_all(&pool->region);
        for (int i = 0; i < pool->workers; i++) pthread_join(pool->handles[i], 0);
    }
    free(pool->handles);
    free(pool->cpus);
    free(pool->by_thread);
    free(pool->leaves);
    free(pool->order);
    free(pool);
}

static void wait_for_workers(cry_pool *pool)
{
    unsigned arrived;
    while (!pool->stealing && (arrived = atomic_load(&pool->arrived)) < (unsigned)pool->workers)
        wait_while(&pool->arrived, arrived, &pool->waiting, pool->spin);
    unsigned inside = atomic_fetch_and(&pool->gate, ~OPEN) & ~OPEN;
    while (inside) {
        wait_while(&pool->gate, inside, &pool->waiting, pool->spin);
        inside = atomic_load(&pool->gate);
    }
}

static void run_region(cry_pool *pool, int limit, int64_t tasks, cry_task *task, void *context)
{
    int64_t begun = cry_nanoseconds();
    pool->task = task;
    pool->context = context;
    pool->tasks = tasks;
    pool->limit = limit;
    pool->number = pool->number % REGION_MASK + 1; /* 0 is what a new worker has served */
    /* Leaves of threads that are not there, or may not work, are everybody's. */
    pool->stealing = pool->steal || limit < pool->threads || pool->workers < pool->threads - 1;
    if (pool->workers == 0 || tasks <= 1) {
        take_tasks(pool, 0, 1);
    } else {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->gate, OPEN);
        atomic_fetch_add(&pool->region, 1);
        if (atomic_load(&pool->sleepers)) cry_wake_all(&pool->region);
        take_tasks(pool, 0, pool->stealing);
        wait_for_workers(pool);
    }
    add(&pool->regions, 1);
    add(&pool->inside, cry_nanoseconds() - begun);
}

void cry_run(const cry_team *team, int64_t tasks, cry_task *task, void *context)
{
    cry_pool *pool = team->pool;
    unsigned mode = enter_mode();
    if (pool && tasks > 1 && pool->generation != atomic_load(&cry_fork_generation))
        restart_in_child(pool);
    if (pool && tasks <= (int64_t)TAKEN_MASK) run_region(pool, team->threads, tasks, task, context);
    else
        for (int64_t t = 0; t < tasks; t++) task(context, t, 0);
    leave_mode(mode);
}
