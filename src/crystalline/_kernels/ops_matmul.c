/* Matrix products over the team: b packed once, work cut by output. */
#include "tasks.h"

/* Blocks of `rows` rows by about 1024 columns, made smaller until every thread has a few. */
cry_grid cry_cut(const cry_team *team, int64_t m, int64_t n, int64_t rows)
{
    int64_t tile_m = team->kernels->tile_m, tile_n = team->kernels->tile_n;
    cry_grid g = {.rows = rows, .cols = cry_ceil(1024, tile_n) * tile_n};
    int64_t wanted = team->threads > 1 ? 4 * team->threads : 1;
    for (;;) {
        g.down = cry_ceil(m, g.rows);
        g.across = cry_ceil(n, g.cols);
        if (g.down * g.across >= wanted) break;
        if (g.cols > 4 * tile_n) g.cols = cry_ceil(g.cols / tile_n, 2) * tile_n;
        else if (g.rows > tile_m) g.rows = cry_ceil(g.rows / tile_m, 2) * tile_m;
        else if (g.cols > tile_n) g.cols = cry_ceil(g.cols / tile_n, 2) * tile_n;
        else break;
    }
    g.cols = cry_ceil(cry_ceil(n, tile_n), g.across) * tile_n; /* the last as wide as the others */
    g.across = cry_ceil(n, g.cols);
    return g;
}

cry_products cry_float_products(const cry_team *team)
{
    const cry_kernels *k = team->kernels;
    return (cry_products){1, k->pack, k->gemm, k->gemm_tree, k->gemm_branch, k, 0};
}

cry_products cry_bf16_products(const cry_team *team)
{
    const cry_bf16_kernels *k = team->bf16;
    return (cry_products){2, k->pack, k->gemm, k->gemm_tree, k->gemm_branch, team->kernels, k};
}

int64_t cry_packed_len(const cry_team *team, int64_t length, int64_t n)
{
    int64_t tile_n = team->kernels->tile_n;
    return cry_ceil(n, tile_n) * tile_n * length;
}

typedef struct pack_job {
    const cry_products *p;
    float *panels;
    const float *b;
    int64_t ks, ns, k, n, length, tile_n;
    const cry_branch *branches;
    int count;
} pack_job;

static void pack_task(void *context, int64_t task, int thread)
{
    const pack_job *w = context;
    int64_t j = task * w->tile_n;
    (void)thread;
    w->p->pack(w->panels + j * w->length, w->b + j * w->ns, w->ks, w->ns, w->k,
               cry_smaller(w->tile_n, w->n - j));
}

void cry_pack(const cry_team *team, const cry_products *p, float *panels, const float *b, int64_t ks,
              int64_t ns, int64_t k, int64_t n)
{
    pack_job job = {.p = p, .panels = panels, .b = b, .ks = ks, .ns = ns, .k = k, .n = n,
                    .length = cry_ceil(k, p->steps), .tile_n = team->kernels->tile_n};
    cry_run(team, cry_ceil(n, job.tile_n), pack_task, &job);
}

static void pack_groups_task(void *context, int64_t task, int thread)
{
    const pack_job *w = context;
    int64_t j = task / w->count * w->tile_n, n = cry_smaller(w->tile_n, w->n - j);
    const cry_branch *b = w->branches + task % w->count;
    float *panel = w->panels + j * w->length + b->at * w->tile_n;
    const float *from = cry_at(w->p, w->b, b->begin * w->n + j);
    (void)thread;
    if (w->p->narrow)
        w->p->narrow->pack_rows(panel, (const cry_bf16 *)(const void *)from, w->n, b->end - b->begin, n);
    else w->p->pack(panel, from, w->n, 1, b->end - b->begin, n);
}

/* Where the groups begin in a panel, and what packs them. */
static pack_job group_packing(const cry_team *team, const cry_products *p, const float *b, int64_t n,
                              cry_branch *branches, int count)
{
    int64_t length = 0;
    for (int g = 0; g < count; g++) {
        branches[g].at = length;
        length += cry_ceil(branches[g].end - branches[g].begin, p->steps);
    }
    return (pack_job){.p = p, .b = b, .n = n, .length = length, .tile_n = team->kernels->tile_n,
                      .branches = branches, .count = count};
}

int64_t cry_pack_groups(const cry_team *team, const cry_products *p, float *panels, const float *b,
                        int64_t n, cry_branch *branches, int count)
{
    pack_job job = group_packing(team, p, b, n, branches, count);
    job.panels = panels;
    cry_run(team, cry_ceil(n, job.tile_n) * count, pack_groups_task, &job);
    return job.length;
}

typedef struct gemm_job {
    cry_product x;
    cry_grid grid;
    const float *panels;
    float *own_panels;      /* of all threads, `own` floats each, or NULL */
    int64_t own;
    unsigned char *packed;  /* threads that have packed theirs */
} gemm_job;

static void pack_own(const cry_product *x, float *panels, int64_t tile_n)
{
    for (int64_t j = 0; j < x->n; j += tile_n)
        x->p->pack(panels + j * x->k, x->b + j * x->ns, x->ks, x->ns, x->k * x->p->steps,
                   cry_smaller(tile_n, x->n - j));
}

static void gemm_task(void *context, int64_t task, int thread)
{
    const gemm_job *w = context;
    const cry_product *x = &w->x;
    int64_t i = task / w->grid.across * w->grid.rows, j = task % w->grid.across * w->grid.cols;
    int64_t at = i * x->ldc + j, m = cry_smaller(w->grid.rows, x->m - i);
    int64_t n = cry_smaller(w->grid.cols, x->n - j);
    const float *a = x->a + i * x->rs, *panels = w->panels + j * x->k;
    if (w->own_panels) {
        float *own = w->own_panels + thread * w->own;
        if (!w->packed[thread]) pack_own(x, own, x->p->kernels->tile_n);
        w->packed[thread] = 1;
        panels = own;
    }
    if (x->narrow)
        x->p->narrow->gemm_narrow(x->narrow + at, x->ldc, a, x->rs, panels, m, n, x->k);
    else x->p->gemm(x->c + at, x->ldc, x->init ? x->init + at : 0, x->ldc, a, x->rs, 1, panels, m, n, x->k);
    if (x->finish) x->finish->rows(x->finish, i, m);
}

static void run_gemm(const cry_team *team, gemm_job job)
{
    job.grid = cry_cut(team, job.x.m, job.x.n, 384);
    cry_run(team, job.grid.down * job.grid.across, gemm_task, &job);
}

void cry_gemm(const cry_team *team, const cry_products *p, float *c, int64_t ldc, const float *init,
              const float *a, int64_t rs, const float *panels, int64_t m, int64_t n, int64_t k)
{
    run_gemm(team, (gemm_job){.x = {.p = p, .c = c, .ldc = ldc, .init = init, .a = a, .rs = rs,
                                    .m = m, .n = n, .k = k}, .panels = panels});
}

/* Memory that one thread writes is slow for the others to read first.  So a weight that is small beside
 * the rows is packed by each thread for itself, where there is room for that. */
enum { MANY_ROWS = 192, SPHERE_ROWS = 128, OWN_HEIGHT = 48 };

static int many_rows(const cry_team *team, int64_t m) { return m >= MANY_ROWS * (int64_t)team->threads; }

static int room_for_own(const cry_team *team, int64_t length)
{
    int64_t threads = team->threads;
    return threads <= CRY_OWNERS && length <= CRY_OWN_PANELS && threads * length <= team->shared_len;
}

/* Where a task has whole rows, they are those of a sphere as in the operations along rows: what a
 * thread has written there, it finds in its own caches. */
void cry_multiply(const cry_team *team, const cry_product *product)
{
    const cry_product *x = product;
    int64_t length = cry_packed_len(team, x->k, x->n);
    unsigned char packed[CRY_OWNERS] = {0};
    gemm_job job = {.x = *x, .panels = team->shared, .own = length, .packed = packed};
    if (many_rows(team, x->m) && room_for_own(team, length)) job.own_panels = team->shared;
    else cry_pack(team, x->p, team->shared, x->b, x->ks, x->ns, x->k * x->p->steps, x->n);
    if (!job.own_panels && !x->finish) {
        run_gemm(team, job);
        return;
    }
    int64_t rows = cry_sphere_rows(x->m, SPHERE_ROWS);
    job.grid = (cry_grid){.rows = rows, .cols = x->n, .across = 1};
    cry_run(team, cry_ceil(x->m, rows), gemm_task, &job);
}

static int sizes_ok(int64_t R, int64_t N, int64_t K) { return R >= 0 && N > 0 && K > 0; }

int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K)
{
    return cry_packed_len(team, K, N);
}

cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N, int64_t K)
{
    if (!sizes_ok(0, N, K)) return CRY_BAD_SHAPE;
    cry_products p = cry_float_products(team);
    cry_pack(team, &p, panels, w, 1, K, K, N);
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
    cry_products p = cry_float_products(team);
    cry_gemm(team, &p, y, N, init, x, K, panels, R, N, K);
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
    cry_products p = cry_float_products(team);
    cry_multiply(team, &(cry_product){.p = &p, .c = y, .ldc = N, .init = init, .a = x, .rs = K, .b = w,
                                      .ks = 1, .ns = K, .m = R, .n = N, .k = K});
    return CRY_OK;
}

cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w, int64_t R,
                         int64_t N, int64_t K)
{
    if (!sizes_ok(R, N, K)) return CRY_BAD_SHAPE;
    if (R <= CRY_FEW_ROWS) {
        cry_gemv_across(team, dx, dy, w, R, N, K);
        return CRY_OK;
    }
    if (team->shared_len < cry_need_matmul(team, K, N)) return CRY_NO_SCRATCH;
    cry_products p = cry_float_products(team);
    cry_multiply(team, &(cry_product){.p = &p, .c = dx, .ldc = K, .a = dy, .rs = N, .b = w, .ks = K,
                                      .ns = 1, .m = R, .n = K, .k = N});
    return CRY_OK;
}

static void swiglu_rows(const cry_finish *w, int64_t at, int64_t n)
{
    w->kernels->swiglu(w->act + at * w->F, w->gu + 2 * at * w->F, n, w->F);
}

cry_status cry_matmul_swiglu(const cry_team *team, float *gu, float *act, const float *x, const float *w,
                             int64_t R, int64_t F, int64_t K)
{
    if (!many_rows(team, R)) {
        cry_status status = F > 0 ? cry_matmul(team, gu, x, w, 0, R, 2 * F, K) : CRY_BAD_SHAPE;
        return status == CRY_OK ? cry_swiglu(team, act, gu, R, F) : status;
    }
    if (!sizes_ok(R, F, K)) return CRY_BAD_SHAPE;
    if (team->shared_len < cry_need_matmul(team, 2 * F, K)) return CRY_NO_SCRATCH;
    cry_products p = cry_float_products(team);
    cry_finish finish = {swiglu_rows, team->kernels, gu, act, F};
    cry_multiply(team, &(cry_product){.p = &p, .c = gu, .ldc = 2 * F, .a = x, .rs = K, .b = w, .ks = 1,
                                      .ns = K, .m = R, .n = 2 * F, .k = K, .finish = &finish});
    return CRY_OK;
}

static void swiglu_bwd_rows(const cry_finish *w, int64_t at, int64_t n)
{
    float *gu = w->gu + 2 * at * w->F;
    w->kernels->swiglu_bwd_act(gu, w->act + at * w->F, gu, n, w->F);
}

cry_status cry_matmul_dx_swiglu(const cry_team *team, float *gu, float *act, const float *dy,
                                const float *w, int64_t R, int64_t N, int64_t F)
{
    if (!many_rows(team, R)) {
        cry_status status = cry_matmul_dx(team, act, dy, w, R, N, F);
        return status == CRY_OK ? cry_swiglu_bwd_act(team, gu, act, gu, R, F) : status;
    }
    if (!sizes_ok(R, N, F)) return CRY_BAD_SHAPE;
    if (team->shared_len < cry_need_matmul(team, F, N)) return CRY_NO_SCRATCH;
    cry_products p = cry_float_products(team);
    cry_finish finish = {swiglu_bwd_rows, team->kernels, gu, act, F};
    cry_multiply(team, &(cry_product){.p = &p, .c = act, .ldc = F, .a = dy, .rs = N, .b = w, .ks = F,
                                      .ns = 1, .m = R, .n = F, .k = N, .finish = &finish});
    return CRY_OK;
}

/* y(R,n) = x(R,k) b: b, element (t, j) at w[t ks + j ns], is rounded to bf16 on its way into panels. */
static cry_status bf16_product(const cry_team *team, float *y, cry_bf16 *narrow, const cry_bf16 *x,
                               const float *w, const float *init, int64_t ks, int64_t ns, int64_t R,
                               int64_t n, int64_t k)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (!sizes_ok(R, n, k) || k % 2 || (!y) == (!narrow) || (narrow && init)) return CRY_BAD_SHAPE;
    if (team->shared_len < cry_packed_len(team, k / 2, n)) return CRY_NO_SCRATCH;
    cry_products p = cry_bf16_products(team);
    cry_multiply(team, &(cry_product){.p = &p, .c = y, .narrow = narrow, .ldc = n, .init = init,
                                      .a = (const float *)(const void *)x, .rs = k / 2, .b = w,
                                      .ks = ks, .ns = ns, .m = R, .n = n, .k = k / 2});
    return CRY_OK;
}

cry_status cry_matmul_bf16(const cry_team *team, float *y, cry_bf16 *narrow, const cry_bf16 *x,
                           const float *w, const float *init, int64_t R, int64_t N, int64_t K)
{
    return bf16_product(team, y, narrow, x, w, init, 1, K, R, N, K);
}

cry_status cry_matmul_dx_bf16(const cry_team *team, float *dx, cry_bf16 *narrow, const cry_bf16 *dy,
                              const float *w, int64_t R, int64_t N, int64_t K)
{
    return bf16_product(team, dx, narrow, dy, w, 0, K, 1, R, K, N);
}

typedef struct dw_job {
    const cry_products *p;
    cry_grid grid;
    float *dw;
    const float *dy, *panels;
    int64_t N, K;
    cry_branch branches[CRY_GROUPS];
    pack_job pack;
    int64_t own;            /* floats of panels for each thread, or 0 */
    unsigned char *packed;  /* threads that have packed theirs; NULL where every task packs its own */
} dw_job;

static void pack_columns(const dw_job *w, int64_t j, int64_t cols, int thread)
{
    pack_job job = w->pack;
    int64_t end = cry_ceil(cry_smaller(j + cols, w->K), job.tile_n);
    job.panels += thread * w->own;
    for (int64_t t = j / job.tile_n * job.count; t < end * job.count; t++)
        pack_groups_task(&job, t, thread);
}

static void dw_task(void *context, int64_t task, int thread)
{
    const dw_job *w = context;
    int64_t i = task / w->grid.across * w->grid.rows, j = task % w->grid.across * w->grid.cols;
    if (w->pack.panels && !(w->packed && w->packed[thread])) {
        pack_columns(w, j, w->grid.cols, thread);
        if (w->packed) w->packed[thread] = 1;
    }
    w->p->gemm_tree(w->dw + i * w->K + j, w->K, cry_at(w->p, w->dy, i), 1, w->N,
                    w->panels + thread * w->own + j * w->pack.length,
                    cry_smaller(w->grid.rows, w->N - i), cry_smaller(w->grid.cols, w->K - j),
                    w->pack.length, w->branches, w->pack.count);
}

/* Few tokens: each thread packs x for itself and makes some rows of dw, or, where dw is wider than
 * high, packs some columns of x and makes those of dw.  0 where neither pays. */
static int cut_own(const cry_team *team, dw_job *job, unsigned char *packed)
{
    int64_t N = job->N, K = job->K, tile_n = team->kernels->tile_n, threads = team->threads;
    int64_t floats = cry_packed_len(team, job->pack.length, K), panels = cry_ceil(K, tile_n);
    if (threads > CRY_OWNERS) return 0;
    if (N >= OWN_HEIGHT * threads && room_for_own(team, floats)) {
        job->own = floats, job->packed = packed;
        /* Some more tasks than threads, so that one can help another; whole lines of dy. */
        int64_t rows = cry_smaller(OWN_HEIGHT, cry_ceil(cry_ceil(N, 2 * threads), 16) * 16);
        job->grid = (cry_grid){.rows = rows, .cols = K, .down = cry_ceil(N, rows), .across = 1};
    } else if (floats <= 4 * CRY_OWN_PANELS && K > N && panels >= 2 * threads) {
        int64_t cols = cry_ceil(panels, 2 * threads) * tile_n;
        job->grid = (cry_grid){.rows = N, .cols = cols, .down = 1, .across = cry_ceil(K, cols)};
    } else return 0;
    job->pack.panels = team->shared;
    return 1;
}

static cry_status weight_gradient(const cry_team *team, const cry_products *p, float *dw,
                                  const float *dy, const float *x, const int64_t *groups, int64_t R,
                                  int64_t N, int64_t K, int accumulate)
{
    if (!sizes_ok(R, N, K) || R == 0) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    if (team->shared_len < cry_need_matmul(team, K, R)) return CRY_NO_SCRATCH;
    unsigned char packed[CRY_OWNERS] = {0};
    dw_job job = {.p = p, .dw = dw, .dy = dy, .panels = team->shared, .N = N, .K = K};
    int count = cry_branches(job.branches, groups, accumulate);
    job.pack = group_packing(team, p, x, K, job.branches, count);
    if (!cut_own(team, &job, packed)) {
        cry_pack_groups(team, p, team->shared, x, K, job.branches, count);
        job.grid = cry_cut(team, N, K, 48);
    }
    cry_run(team, job.grid.down * job.grid.across, dw_task, &job);
    return CRY_OK;
}

cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
                         const int64_t *groups, int64_t R, int64_t N, int64_t K, int accumulate)
{
    cry_products p = cry_float_products(team);
    return weight_gradient(team, &p, dw, dy, x, groups, R, N, K, accumulate);
}

cry_status cry_matmul_dw_bf16(const cry_team *team, float *dw, const cry_bf16 *dy, const cry_bf16 *x,
                              const int64_t *groups, int64_t R, int64_t N, int64_t K, int accumulate)
{
    if (!team->bf16) return CRY_BAD_ISA;
    cry_products p = cry_bf16_products(team);
    return weight_gradient(team, &p, dw, (const float *)(const void *)dy,
                           (const float *)(const void *)x, groups, R, N, K, accumulate);
}
