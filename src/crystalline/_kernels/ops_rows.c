/* Everything that works along rows, over the team: norms, rotary positions, SwiGLU,
 * embedding.  Rows are cut in small spans; sums over tokens are cut by group or by output. */
#include "tasks.h"

typedef struct rows_job {
    const cry_team *team;
    float *out, *out2, *out3;
    const float *in, *in2, *in3, *in4, *in5;
    const int32_t *positions;
    int64_t rows, D, stride, heads, position, T, span;
    float eps;
    int inverse, far;
    const cry_branch *branches;
} rows_job;

/* Spans of rows so that a task touches about 16 K floats. */
static int64_t row_span(int64_t width) { return width >= 16384 ? 1 : cry_ceil(16384, width); }

static void run_rows(rows_job *w, int64_t R, int64_t width, cry_task *task)
{
    w->rows = R;
    w->span = cry_sphere_rows(R, row_span(width));
    cry_run(w->team, cry_ceil(R, w->span), task, w);
}

#define SPAN_OF(w, task) \
    int64_t at = (task) * (w)->span, n = cry_smaller((w)->span, (w)->rows - at); \
    const cry_kernels *kernels = (w)->team->kernels; \
    (void)thread

static void rmsnorm_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    SPAN_OF(w, task);
    (w->far ? kernels->rmsnorm_far : kernels->rmsnorm)(w->out + at * w->D, w->out2 + at,
                                                       w->in + at * w->D, w->in2, n, w->D, w->eps);
}

cry_status cry_rmsnorm(const cry_team *team, float *y, float *rrms, const float *x, const float *w,
                       int64_t R, int64_t D, float eps)
{
    if (R < 0 || D <= 0) return CRY_BAD_SHAPE;
    rows_job job = {.team = team, .out = y, .out2 = rrms, .in = x, .in2 = w, .D = D, .eps = eps,
                    .far = y != x && cry_far(R, D, 256)};
    /* Long spans have few rows that are not fetched ahead. */
    run_rows(&job, R, job.far ? cry_ceil(D, 8) : D, rmsnorm_task);
    return CRY_OK;
}

int64_t cry_need_rmsnorm_bwd(int64_t D) { return CRY_GROUPS * D; }

static void rmsnorm_bwd_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    const cry_branch *b = w->branches + task;
    int64_t at = b->begin * w->D;
    const float *residual = w->in4 ? w->in4 + at : 0;
    (void)thread;
    w->team->kernels->rmsnorm_bwd(w->out + at, w->team->shared + task * w->D, residual, w->in + at,
                                  w->in2 + at, w->in3, w->in5 + b->begin, b->end - b->begin, w->D);
}

static void dw_tree_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    (void)task, (void)thread;
    w->team->kernels->tree_add(w->out, w->team->shared, w->D, w->branches, (int)w->rows);
}

cry_status cry_rmsnorm_bwd(const cry_team *team, float *dx, float *dw, const float *residual,
                           const float *dy, const float *x, const float *w, const float *rrms,
                           const int64_t *groups, int64_t R, int64_t D, int accumulate)
{
    if (R <= 0 || D <= 0) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    if (team->shared_len < cry_need_rmsnorm_bwd(D)) return CRY_NO_SCRATCH;
    cry_branch branches[CRY_GROUPS];
    int count = cry_branches(branches, groups, accumulate);
    rows_job job = {.team = team, .out = dx, .in = dy, .in2 = x, .in3 = w, .in4 = residual, .D = D,
                    .in5 = rrms, .branches = branches};
    cry_run(team, count, rmsnorm_bwd_task, &job);
    job.out = dw;
    job.rows = count;
    cry_run(team, 1, dw_tree_task, &job); /* as a task, so that it runs in the team's mode */
    return CRY_OK;
}

static void rope_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    SPAN_OF(w, task);
    for (int64_t r = at; r < at + n; r++)
        kernels->rope(w->out + r * w->stride, w->in, w->in2, 1, w->stride, w->heads, w->D,
                      w->positions ? w->positions[r] : w->position + r % w->T, w->T, w->inverse);
}

cry_status cry_rope(const cry_team *team, float *x, const float *cosine, const float *sine, int64_t R,
                    int64_t stride, int64_t heads, int64_t head_dim, int64_t position, int64_t T,
                    int inverse)
{
    if (R < 0 || head_dim <= 0 || head_dim % 2 || heads <= 0 || heads > stride / head_dim || T <= 0 ||
        position < 0)
        return CRY_BAD_SHAPE;
    rows_job job = {.team = team, .out = x, .in = cosine, .in2 = sine, .stride = stride, .D = head_dim,
                    .heads = heads, .position = position, .T = T, .inverse = inverse};
    run_rows(&job, R, heads * head_dim, rope_task);
    return CRY_OK;
}

int cry_positions_ok(const int32_t *positions, int64_t R, int64_t count)
{
    int32_t least = 0, most = 0;
    for (int64_t r = 0; r < R; r++) {
        least = positions[r] < least ? positions[r] : least;
        most = positions[r] > most ? positions[r] : most;
    }
    return least == 0 && (R == 0 || most < count);
}

cry_status cry_rope_at(const cry_team *team, float *x, const float *cosine, const float *sine,
                       int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                       const int32_t *positions, int64_t count, int inverse)
{
    if (R < 0 || head_dim <= 0 || head_dim % 2 || heads <= 0 || heads > stride / head_dim)
        return CRY_BAD_SHAPE;
    if (!cry_positions_ok(positions, R, count)) return CRY_BAD_INDEX;
    rows_job job = {.team = team, .out = x, .in = cosine, .in2 = sine, .stride = stride, .D = head_dim,
                    .heads = heads, .positions = positions, .T = count, .inverse = inverse};
    run_rows(&job, R, heads * head_dim, rope_task);
    return CRY_OK;
}

static void swiglu_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    SPAN_OF(w, task);
    kernels->swiglu(w->out + at * w->D, w->in + 2 * at * w->D, n, w->D);
}

cry_status cry_swiglu(const cry_team *team, float *act, const float *gu, int64_t R, int64_t F)
{
    if (R < 0 || F <= 0) return CRY_BAD_SHAPE;
    rows_job job = {.team = team, .out = act, .in = gu, .D = F};
    run_rows(&job, R, 2 * F, swiglu_task);
    return CRY_OK;
}

static void swiglu_bwd_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    SPAN_OF(w, task);
    kernels->swiglu_bwd(w->out + 2 * at * w->D, w->in + at * w->D, w->in2 + 2 * at * w->D, n, w->D);
}

cry_status cry_swiglu_bwd(const cry_team *team, float *dgu, const float *dact, const float *gu,
                          int64_t R, int64_t F)
{
    if (R < 0 || F <= 0) return CRY_BAD_SHAPE;
    rows_job job = {.team = team, .out = dgu, .in = dact, .in2 = gu, .D = F};
    run_rows(&job, R, 2 * F, swiglu_bwd_task);
    return CRY_OK;
}

static void swiglu_bwd_act_task(void *context, int64_t task, int thread)
{
    rows_job *w = context;
    SPAN_OF(w, task);
    kernels->swiglu_bwd_act(w->out + 2 * at * w->D, w->out2 + at * w->D, w->in + 2 * at * w->D, n, w->D);
}

cry_status cry_swiglu_bwd_act(const cry_team *team, float *dgu, float *act, const float *gu, int64_t R,
                              int64_t F)
{
    if (R < 0 || F <= 0) return CRY_BAD_SHAPE;
    rows_job job = {.team = team, .out = dgu, .out2 = act, .in = gu, .D = F};
    run_rows(&job, R, 2 * F, swiglu_bwd_act_task);
    return CRY_OK;
}
