/* Matrix products over the team: arguments checked, b packed once, work cut by output. */
#include "tasks.h"

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

static int sizes_ok(int64_t R, int64_t N, int64_t K) { return R >= 0 && N > 0 && K > 0; }

int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K)
{
    return cry_packed_len(team, K, N);
}

cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N, int64_t K)
{
    if (!sizes_ok(0, N, K)) return CRY_BAD_SHAPE;
    cry_pack(team, panels, w, 1, K, K, N);
    return CRY_OK;
}

cry_status cry_matmul_packed(const cry_team *team, float *y, const float *x, const float *panels,
                             const float *init, int64_t R, int64_t N, int64_t K)
{
    if (!sizes_ok(R, N, K)) return CRY_BAD_SHAPE;
    if (R <= CRY_FEW_ROWS) {
        cry_weight weight = {.panels = panels, .format = CRY_FP32};
        return cry_matmul_weight(team, y, x, &weight, init, R, N, K);
    }
    cry_gemm(team, y, N, init, x, K, panels, R, N, K);
    return CRY_OK;
}

cry_status cry_matmul(const cry_team *team, float *y, const float *x, const float *w,
                      const float *init, int64_t R, int64_t N, int64_t K)
{
    if (!sizes_ok(R, N, K)) return CRY_BAD_SHAPE;
    if (R <= CRY_FEW_ROWS) {
        cry_gemv_unpacked(team, y, x, w, init, R, N, K);
        return CRY_OK;
    }
    if (team->shared_len < cry_need_matmul(team, N, K)) return CRY_NO_SCRATCH;
    cry_pack(team, team->shared, w, 1, K, K, N);
    return cry_matmul_packed(team, y, x, team->shared, init, R, N, K);
}

cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w, int64_t R,
                         int64_t N, int64_t K)
{
    if (!sizes_ok(R, N, K)) return CRY_BAD_SHAPE;
    if (team->shared_len < cry_need_matmul(team, K, N)) return CRY_NO_SCRATCH;
    cry_pack(team, team->shared, w, K, 1, N, K);
    cry_gemm(team, dx, K, 0, dy, N, team->shared, R, K, N);
    return CRY_OK;
}

typedef struct dw_job {
    const cry_kernels *kernels;
    cry_grid grid;
    float *dw;
    const float *dy, *panels;
    int64_t R, N, K;
    cry_branch branches[CRY_GROUPS];
    int count;
} dw_job;

static void dw_task(void *context, int64_t task, int thread)
{
    const dw_job *w = context;
    int64_t i = task / w->grid.across * w->grid.rows, j = task % w->grid.across * w->grid.cols;
    (void)thread;
    w->kernels->gemm_tree(w->dw + i * w->K + j, w->K, w->dy + i, 1, w->N, w->panels + j * w->R,
                          cry_smaller(w->grid.rows, w->N - i), cry_smaller(w->grid.cols, w->K - j),
                          w->R, w->branches, w->count);
}

cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
                         const int64_t *groups, int64_t R, int64_t N, int64_t K, int accumulate)
{
    if (!sizes_ok(R, N, K) || R == 0) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    if (team->shared_len < cry_need_matmul(team, K, R)) return CRY_NO_SCRATCH;
    cry_pack(team, team->shared, x, K, 1, R, K);
    dw_job job = {.kernels = team->kernels, .grid = cry_cut(team, N, K, 48), .dw = dw, .dy = dy,
                  .panels = team->shared, .R = R, .N = N, .K = K};
    job.count = cry_branches(job.branches, groups, accumulate);
    cry_run(team, job.grid.down * job.grid.across, dw_task, &job);
    return CRY_OK;
}
