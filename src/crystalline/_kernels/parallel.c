/* The team's threads.  They carry tasks out; what the tasks are never depends on how many threads
 * there are, or on which of them runs what.
 *
 * A region opens a gate, workers that come in time pass it and take tasks off a counter, and so does
 * the caller.  When no task is left the caller shuts the gate and waits for those inside only: a
 * worker that the system did not let run costs nothing.  Who waits spins for some microseconds and
 * then sleeps.  (OpenMP's team was tried first: it waits for every thread, and spins for
 * milliseconds, which on a machine shared with others made a step 17 times slower.)
 *
 * Denormals are flushed in workers, and in the caller inside a region; its mode comes back.  Nothing
 * is pinned.  Workers take no signals. */
#define _POSIX_C_SOURCE 200809L
#include "parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

enum { SPIN_NANOSECONDS = 50000 };

/* gate: the low half counts workers inside, OPEN tells that more may enter. */
#define OPEN 0x80000000u

struct cry_pool {
    atomic_uint region;   /* counts regions; workers sleep on it.  Written before the gate opens */
    atomic_uint gate;     /* opened with release: pairs with the acquire of a worker's entry */
    atomic_int sleepers;  /* workers that may be asleep on region */
    atomic_int waiting;   /* the caller may be asleep on gate */
    atomic_int stop;
    atomic_llong next;    /* the next task nobody has taken */
    cry_task *task;       /* these four are written while the gate is shut and nobody is inside */
    void *context;
    int64_t tasks;
    int limit;            /* thread numbers below it may take tasks: the team's scratch ends there */
    int threads, workers; /* asked for; running */
    int64_t spin;
    unsigned generation;  /* of forks, when the workers were started */
    pthread_t *handles;
};

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

static void take_tasks(cry_pool *pool, int thread)
{
    for (;;) {
        int64_t t = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (t >= pool->tasks) return;
        pool->task(pool->context, t, thread);
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
    unsigned seen = 0;
    while (!atomic_load(&pool->stop)) {
        wait_while(&pool->region, seen, &pool->sleepers, pool->spin);
        seen = atomic_load(&pool->region);
        if (!enter(pool)) continue;
        if (start.thread < pool->limit) take_tasks(pool, start.thread);
        /* The last one out after the gate was shut wakes the caller. */
        if (atomic_fetch_sub(&pool->gate, 1) == 1 && atomic_load(&pool->waiting))
            cry_wake_all(&pool->gate);
    }
    return 0;
}

static void start_workers(cry_pool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool->workers = 0;
    for (int t = 1; t < pool->threads; t++) {
        worker_start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (worker_start){pool, t};
        if (pthread_create(pool->handles + t - 1, 0, work, start) != 0) {
            free(start);
            break;
        }
        pool->workers++;
    }
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

cry_pool *cry_pool_new(int threads)
{
    if (threads < 1) return 0;
    cry_watch_forks();
    cry_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return 0;
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    if (!pool->handles) {
        free(pool);
        return 0;
    }
    pool->threads = threads;
    /* With more threads than CPUs, who spins keeps another from working. */
    pool->spin = threads <= cry_usable_cpus() ? SPIN_NANOSECONDS : 0;
    start_workers(pool);
    return pool;
}

void cry_pool_free(cry_pool *pool)
{
    if (!pool) return;
    if (pool->generation == atomic_load(&cry_fork_generation)) {
        atomic_store(&pool->stop, 1);
        atomic_fetch_add(&pool->region, 1);
        cry_wake_all(&pool->region);
        for (int i = 0; i < pool->workers; i++) pthread_join(pool->handles[i], 0);
    }
    free(pool->handles);
    free(pool);
}

static void run_region(cry_pool *pool, int limit, int64_t tasks, cry_task *task, void *context)
{
    pool->task = task;
    pool->context = context;
    pool->tasks = tasks;
    pool->limit = limit;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->gate, OPEN);
    atomic_fetch_add(&pool->region, 1);
    if (atomic_load(&pool->sleepers)) cry_wake_all(&pool->region);
    take_tasks(pool, 0);
    unsigned inside = atomic_fetch_and(&pool->gate, ~OPEN) & ~OPEN;
    while (inside) {
        wait_while(&pool->gate, inside, &pool->waiting, pool->spin);
        inside = atomic_load(&pool->gate);
    }
}

void cry_run(const cry_team *team, int64_t tasks, cry_task *task, void *context)
{
    cry_pool *pool = team->pool;
    unsigned mode = enter_mode();
    if (pool && tasks > 1 && pool->generation != atomic_load(&cry_fork_generation))
        restart_in_child(pool);
    if (!pool || pool->workers == 0 || tasks <= 1) {
        for (int64_t t = 0; t < tasks; t++) task(context, t, 0);
    } else {
        run_region(pool, team->threads, tasks, task, context);
    }
    leave_mode(mode);
}

int cry_groups_ok(const int64_t *groups, int64_t rows)
{
    for (int g = 0; g < CRY_GROUPS; g++)
        if (groups[g] > groups[g + 1]) return 0;
    return groups[0] == 0 && groups[CRY_GROUPS] == rows;
}

int cry_branches(cry_branch branches[CRY_GROUPS], const int64_t *groups, int accumulate)
{
    int count = 0, total_begun = accumulate;
    for (int third = 0; third < CRY_GROUPS; third += 3) {
        int first = count;
        for (int g = third; g < third + 3; g++) {
            if (groups[g] == groups[g + 1]) continue;
            branches[count] = (cry_branch){.begin = groups[g], .end = groups[g + 1],
                                           .first_in_q = count == first};
            count++;
        }
        if (count == first) continue;
        branches[count - 1].last_in_q = 1;
        branches[count - 1].starts_total = !total_begun;
        total_begun = 1;
    }
    return count;
}

/* Blocks of `rows` rows by about 512 columns, made smaller until every thread has a few. */
cry_grid cry_cut(const cry_team *team, int64_t m, int64_t n, int64_t rows)
{
    int64_t tile_m = team->kernels->tile_m, tile_n = team->kernels->tile_n;
    cry_grid g = {.rows = rows, .cols = cry_ceil(512, tile_n) * tile_n};
    int64_t wanted = team->threads > 1 ? 4 * team->threads : 1;
    for (;;) {
        g.down = cry_ceil(m, g.rows);
        g.across = cry_ceil(n, g.cols);
        if (g.down * g.across >= wanted) return g;
        if (g.cols > 4 * tile_n) g.cols = cry_ceil(g.cols / tile_n, 2) * tile_n;
        else if (g.rows > tile_m) g.rows = cry_ceil(g.rows / tile_m, 2) * tile_m;
        else if (g.cols > tile_n) g.cols = cry_ceil(g.cols / tile_n, 2) * tile_n;
        else return g;
    }
}

int64_t cry_packed_len(const cry_team *team, int64_t k, int64_t n)
{
    int64_t tile_n = team->kernels->tile_n;
    return cry_ceil(n, tile_n) * tile_n * k;
}

typedef struct pack_job {
    const cry_kernels *kernels;
    float *panels;
    const float *b;
    int64_t ks, ns, k, n;
} pack_job;

static void pack_task(void *context, int64_t task, int thread)
{
    const pack_job *w = context;
    int64_t j = task * w->kernels->tile_n;
    (void)thread;
    w->kernels->pack(w->panels + j * w->k, w->b + j * w->ns, w->ks, w->ns, w->k,
                     cry_smaller(w->kernels->tile_n, w->n - j));
}

void cry_pack(const cry_team *team, float *panels, const float *b, int64_t ks, int64_t ns, int64_t k,
              int64_t n)
{
    pack_job job = {team->kernels, panels, b, ks, ns, k, n};
    cry_run(team, cry_ceil(n, team->kernels->tile_n), pack_task, &job);
}

typedef struct gemm_job {
    const cry_kernels *kernels;
    cry_grid grid;
    float *c;
    const float *init, *a, *panels;
    int64_t ldc, rs, m, n, k;
} gemm_job;

static void gemm_task(void *context, int64_t task, int thread)
{
    const gemm_job *w = context;
    int64_t i = task / w->grid.across * w->grid.rows, j = task % w->grid.across * w->grid.cols;
    (void)thread;
    w->kernels->gemm(w->c + i * w->ldc + j, w->ldc, w->init ? w->init + i * w->ldc + j : 0, w->ldc,
                     w->a + i * w->rs, w->rs, 1, w->panels + j * w->k,
                     cry_smaller(w->grid.rows, w->m - i), cry_smaller(w->grid.cols, w->n - j), w->k);
}

void cry_gemm(const cry_team *team, float *c, int64_t ldc, const float *init, const float *a,
              int64_t rs, const float *panels, int64_t m, int64_t n, int64_t k)
{
    gemm_job job = {team->kernels, cry_cut(team, m, n, 96), c, init, a, panels, ldc, rs, m, n, k};
    cry_run(team, job.grid.down * job.grid.across, gemm_task, &job);
}
