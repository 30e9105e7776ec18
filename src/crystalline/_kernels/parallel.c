/* The team: the only file that knows OpenMP.  It carries tasks out on some threads; what the tasks
 * are never depends on how many.  Denormals are flushed inside team threads, the caller's mode comes
 * back; nothing is pinned.  A parallel region in a forked child would hang in libgomp once the parent
 * had run one, so there the team runs on the calling thread alone. */
#include "parallel.h"

#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

static atomic_int team_has_run, forked_after;
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    if (atomic_load(&team_has_run)) atomic_store(&forked_after, 1);
}
static void watch_forks(void) { pthread_atfork(0, 0, in_child); }

int cry_single_threaded_by_fork(void) { return atomic_load(&forked_after); }

/* Flush denormals from here on; returns the mode to be restored. */
static unsigned enter_mode(void)
{
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040u); /* flush to zero, denormals are zero */
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

void cry_run(const cry_team *team, int64_t tasks, cry_task *task, void *context)
{
    int threads = (int)cry_smaller(team->threads, tasks);
    if (threads <= 1 || cry_single_threaded_by_fork()) {
        unsigned mode = enter_mode();
        for (int64_t t = 0; t < tasks; t++) task(context, t, 0);
        leave_mode(mode);
        return;
    }
    pthread_once(&watch_once, watch_forks);
    atomic_store(&team_has_run, 1);
    atomic_llong next = 0; /* the next task nobody has taken */
#pragma omp parallel num_threads(threads)
    {
        unsigned mode = enter_mode();
        int thread = omp_get_thread_num();
        for (;;) {
            int64_t t = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed);
            if (t >= tasks) break;
            task(context, t, thread);
        }
        leave_mode(mode);
    }
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
