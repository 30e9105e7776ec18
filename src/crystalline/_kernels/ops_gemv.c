/* Products of few rows, and weights kept in fewer bits, over the team: work is cut by columns. */
#include "tasks.h"

#include <string.h>

/* Some 24 tasks, so that threads end together, of whole panels: 64 columns are two or four.  A single
 * row is fastest by 128 at a time, where that leaves every thread a few tasks. */
enum { TASKS = CRY_COLUMN_TASKS, UNIT = 64, WIDE = 128, CACHED_FLOATS = 4 << 20 };

int64_t cry_columns(const cry_team *team, int64_t N)
{
    int64_t unit = N >= 3 * WIDE * team->threads ? WIDE : UNIT;
    return cry_ceil(cry_ceil(N, TASKS), unit) * unit;
}

static int64_t size_of(cry_format format)
{
    return format == CRY_FP32 ? 4 : format == CRY_BF16 ? 2 : 1;
}

int64_t cry_weight_bytes(const cry_team *team, cry_format format, int64_t N, int64_t K)
{
    return cry_packed_len(team, K, N) * size_of(format);
}

int64_t cry_weight_scales(const cry_team *team, cry_format format, int64_t N)
{
    return format == CRY_INT8 ? cry_packed_len(team, 1, N) : 0;
}

int64_t cry_need_weight(const cry_team *team, int64_t K)
{
    return cry_round64(K * team->kernels->tile_n);
}

/* The weight from column j of y on; j is a multiple of tile_n. */
static cry_weight columns_from(const cry_weight *w, int64_t j, int64_t K)
{
    cry_weight part = *w;
    part.panels = (const char *)w->panels + j * K * size_of(w->format);
    part.scales = w->scales ? w->scales + j : 0;
    return part;
}

void cry_weight_block(const cry_team *team, const cry_block *b, const cry_weight *weight,
                      float *scratch)
{
    const cry_kernels *kernels = team->kernels;
    float *y = b->y + b->j;
    const float *init = b->init ? b->init + b->j : 0;
    cry_weight part = columns_from(weight, b->j, b->K);
    if (b->R <= CRY_FEW_ROWS) {
        kernels->gemv(y, b->ldy, init, b->ldi, b->x, b->K, &part, b->R, b->n, b->K);
    } else if (part.format == CRY_FP32) {
        kernels->gemm(y, b->ldy, init, b->ldi, b->x, b->K, 1, part.panels, b->R, b->n, b->K);
    } else { /* many rows: a panel is widened once for all of them */
        for (int64_t j = 0; j < b->n; j += kernels->tile_n) {
            int64_t n = cry_smaller(kernels->tile_n, b->n - j);
            const float *from = init ? init + j : 0;
            cry_weight panel = columns_from(&part, j, b->K);
            kernels->widen(scratch, panel.panels, panel.format, b->K);
            kernels->gemm(y + j, b->ldy, panel.scales ? 0 : from, b->ldi, b->x, b->K, 1, scratch,
                          b->R, n, b->K);
            if (panel.scales)
                kernels->rescale(y + j, b->ldy, from, b->ldi, panel.scales, b->R, n);
        }
    }
}

typedef struct few_job {
    const cry_team *team;
    cry_block all;
    const float *plain;
    const cry_weight *weight;
    int64_t columns;
    int32_t place[TASKS];
} few_job;

static cry_block block_of(const few_job *w, int64_t task)
{
    cry_block b = w->all;
    b.j = w->place[task] * w->columns;
    b.n = cry_smaller(w->columns, w->all.n - b.j);
    return b;
}

static void weight_task(void *context, int64_t task, int thread)
{
    const few_job *w = context;
    cry_block b = block_of(w, task);
    cry_weight_block(w->team, &b, w->weight, w->team->scratch + thread * w->team->scratch_len);
}

static void unpacked_task(void *context, int64_t task, int thread)
{
    const few_job *w = context;
    cry_block b = block_of(w, task);
    (void)thread;
    w->team->kernels->gemv_unpacked(b.y + b.j, b.ldy, b.init ? b.init + b.j : 0, b.ldi, b.x, b.K,
                                    w->plain + b.j * b.K, b.R, b.n, b.K,
                                    w->all.n * b.K > CACHED_FLOATS);
}

static few_job job_of(const cry_team *team, float *y, const float *x, const float *init, int64_t R,
                      int64_t N, int64_t K)
{
    return (few_job){.team = team, .columns = cry_columns(team, N),
                     .all = {.y = y, .init = init, .x = x, .ldy = N, .ldi = N, .R = R, .n = N,
                             .K = K}};
}

static void run_few(few_job *w, cry_task *task)
{
    int64_t tasks = cry_ceil(w->all.n, w->columns);
    if (w->all.R == 0) return;
    cry_side_by_side(w->team, tasks, w->place);
    cry_run(w->team, tasks, task, w);
}

void cry_gemv_unpacked(const cry_team *team, float *y, const float *x, const float *w,
                       const float *init, int64_t R, int64_t N, int64_t K)
{
    few_job job = job_of(team, y, x, init, R, N, K);
    job.plain = w;
    run_few(&job, unpacked_task);
}

static void across_task(void *context, int64_t task, int thread)
{
    const few_job *w = context;
    cry_block b = block_of(w, task);
    (void)thread;
    w->team->kernels->gemv_across(b.y + b.j, b.ldy, b.x, b.K, w->plain + b.j, w->all.n, b.R, b.n, b.K);
}

void cry_gemv_across(const cry_team *team, float *dx, const float *dy, const float *w, int64_t R,
                     int64_t N, int64_t K)
{
    few_job job = job_of(team, dx, dy, 0, R, K, N);
    /* A task takes a piece of every row of w, of whole lines, and short ones are slow to fetch. */
    int64_t least = cry_ceil(cry_ceil(K, TASKS), 16) * 16;
    job.columns = least > UNIT ? least : UNIT;
    job.plain = w;
    run_few(&job, across_task);
}

cry_status cry_matmul_weight(const cry_team *team, float *y, const float *x, const cry_weight *weight,
                             const float *init, int64_t R, int64_t N, int64_t K)
{
    if (R < 0 || N <= 0 || K <= 0) return CRY_BAD_SHAPE;
    int widens = R > CRY_FEW_ROWS && weight->format != CRY_FP32;
    if (widens && team->scratch_len < cry_need_weight(team, K)) return CRY_NO_SCRATCH;
    few_job job = job_of(team, y, x, init, R, N, K);
    job.weight = weight;
    run_few(&job, weight_task);
    return CRY_OK;
}

typedef struct narrow_job {
    const cry_team *team;
    char *panels;
    float *scales;
    const float *w;
    cry_format format;
    int64_t N, K;
} narrow_job;

static void narrow_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    const cry_kernels *kernels = w->team->kernels;
    int64_t j = task * kernels->tile_n;
    float *panel = w->team->scratch + thread * w->team->scratch_len;
    kernels->pack(panel, w->w + j * w->K, 1, w->K, w->K, cry_smaller(kernels->tile_n, w->N - j));
    kernels->narrow(w->panels + j * w->K * size_of(w->format), w->scales ? w->scales + j : 0, panel,
                    w->format, w->K);
}

cry_status cry_narrow_weight(const cry_team *team, void *panels, float *scales, const float *w,
                             cry_format format, int64_t N, int64_t K)
{
    if (N <= 0 || K <= 0) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_weight(team, K)) return CRY_NO_SCRATCH;
    narrow_job job = {team, panels, scales, w, format, N, K};
    cry_run(team, cry_ceil(N, team->kernels->tile_n), narrow_task, &job);
    return CRY_OK;
}

typedef struct gather_job {
    const cry_kernels *kernels;
    float *x;
    const cry_weight *weight;
    const int32_t *ids;
    int64_t K;
} gather_job;

static void gather_task(void *context, int64_t task, int thread)
{
    const gather_job *w = context;
    (void)thread;
    w->kernels->embedding_packed(w->x + task * w->K, w->weight, w->ids[task], w->K);
}

cry_status cry_embedding_weight(const cry_team *team, float *x, const cry_weight *weight,
                                const int32_t *ids, int64_t R, int64_t N, int64_t K)
{
    if (R < 0 || N <= 0 || K <= 0) return CRY_BAD_SHAPE;
    for (int64_t r = 0; r < R; r++)
        if (ids[r] < 0 || ids[r] >= N) return CRY_BAD_INDEX;
    gather_job job = {team->kernels, x, weight, ids, K};
    cry_run(team, R, gather_task, &job);
    return CRY_OK;
}
