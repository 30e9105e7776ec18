/* What works along rows and hands on bf16, over the team. */
#include "tasks.h"

typedef struct narrow_job {
    const cry_team *team;
    cry_bf16 *out, *out2;
    float *rrms, *wide;
    const float *x, *w, *sine;
    const cry_bf16 *in;
    const int32_t *positions;
    int64_t rows, width, span, heads, head_dim, T;
    float eps;
} narrow_job;

/* Spans of rows of about 16 K numbers. */
static void run_spans(narrow_job *job, cry_task *task)
{
    job->span = cry_sphere_rows(job->rows, cry_ceil(16384, job->width));
    if (job->width == 1) job->span = cry_round64(job->span); /* whole vectors */
    cry_run(job->team, cry_ceil(job->rows, job->span), task, job);
}

#define SPAN_OF(w, task) \
    int64_t at = (task) * (w)->span, n = cry_smaller((w)->span, (w)->rows - at), width = (w)->width; \
    const cry_bf16_kernels *kernels = (w)->team->bf16; \
    (void)thread

static void narrow_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    kernels->narrow(w->out + at * width, w->x + at * width, n * width);
}

cry_status cry_to_bf16(const cry_team *team, cry_bf16 *y, const float *x, int64_t n)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (n < 0) return CRY_BAD_SHAPE;
    narrow_job job = {.team = team, .out = y, .x = x, .rows = n, .width = 1};
    run_spans(&job, narrow_task);
    return CRY_OK;
}

static void rmsnorm_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    kernels->rmsnorm(w->out + at * width, w->rrms + at, w->x + at * width, w->w, n, width, w->eps);
}

cry_status cry_rmsnorm_bf16(const cry_team *team, cry_bf16 *y, float *rrms, const float *x,
                            const float *w, int64_t R, int64_t D, float eps)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (R < 0 || D <= 0) return CRY_BAD_SHAPE;
    narrow_job job = {.team = team, .out = y, .rrms = rrms, .x = x, .w = w, .rows = R, .width = D,
                      .eps = eps};
    run_spans(&job, rmsnorm_task);
    return CRY_OK;
}

static void swiglu_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    kernels->swiglu(w->out + at * width, w->in + 2 * at * width, n, width);
}

cry_status cry_swiglu_bf16(const cry_team *team, cry_bf16 *act, const cry_bf16 *gu, int64_t R, int64_t F)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (R < 0 || F <= 0) return CRY_BAD_SHAPE;
    narrow_job job = {.team = team, .out = act, .in = gu, .rows = R, .width = F};
    run_spans(&job, swiglu_task);
    return CRY_OK;
}

static void swiglu_bwd_act_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    kernels->swiglu_bwd_act(w->out + 2 * at * width, w->out2 + at * width, w->in + 2 * at * width, n, width);
}

cry_status cry_swiglu_bwd_act_bf16(const cry_team *team, cry_bf16 *dgu, cry_bf16 *act,
                                   const cry_bf16 *gu, int64_t R, int64_t F)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (R < 0 || F <= 0) return CRY_BAD_SHAPE;
    narrow_job job = {.team = team, .out = dgu, .out2 = act, .in = gu, .rows = R, .width = F};
    run_spans(&job, swiglu_bwd_act_task);
    return CRY_OK;
}

static void widen_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    kernels->widen(w->wide + at * width, w->in + at * width, n * width);
}

cry_status cry_from_bf16(const cry_team *team, float *y, const cry_bf16 *x, int64_t n)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (n < 0) return CRY_BAD_SHAPE;
    narrow_job job = {.team = team, .wide = y, .in = x, .rows = n, .width = 1};
    run_spans(&job, widen_task);
    return CRY_OK;
}

/* Row by row: each stands at its own position. */
static void rope_task(void *context, int64_t task, int thread)
{
    const narrow_job *w = context;
    SPAN_OF(w, task);
    for (int64_t r = at; r < at + n; r++) {
        int64_t place = w->positions ? w->positions[r] : r % w->T, i = r * width;
        if (w->in)
            kernels->rope(w->wide + i, w->in + i, w->w, w->sine, 1, width, w->heads, w->head_dim, place, w->T);
        else
            kernels->rope_bwd(w->out + i, w->x + i, w->w, w->sine, 1, width, w->heads, w->head_dim, place,
                              w->T);
    }
}

static cry_status rope(const cry_team *team, narrow_job job)
{
    if (!team->bf16) return CRY_BAD_ISA;
    if (job.rows < 0 || job.head_dim <= 0 || job.head_dim % 2 || job.heads <= 0 ||
        job.heads > job.width / job.head_dim || job.T <= 0)
        return CRY_BAD_SHAPE;
    run_spans(&job, rope_task);
    return CRY_OK;
}

cry_status cry_rope_bf16(const cry_team *team, float *y, const cry_bf16 *x, const float *cosine,
                         const float *sine, int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                         int64_t T)
{
    return rope(team, (narrow_job){.team = team, .wide = y, .in = x, .w = cosine, .sine = sine,
                                   .rows = R, .width = stride, .heads = heads, .head_dim = head_dim,
                                   .T = T});
}

cry_status cry_rope_bwd_bf16(const cry_team *team, cry_bf16 *dx, const float *dy, const float *cosine,
                             const float *sine, int64_t R, int64_t stride, int64_t heads,
                             int64_t head_dim, int64_t T)
{
    return rope(team, (narrow_job){.team = team, .out = dx, .x = dy, .w = cosine, .sine = sine,
                                   .rows = R, .width = stride, .heads = heads, .head_dim = head_dim,
                                   .T = T});
}

/* At positions, of which the tables have T. */
static cry_status rope_at(const cry_team *team, narrow_job job)
{
    if (team->bf16 && job.rows >= 0 && !cry_positions_ok(job.positions, job.rows, job.T))
        return CRY_BAD_INDEX;
    return rope(team, job);
}

cry_status cry_rope_at_bf16(const cry_team *team, float *y, const cry_bf16 *x, const float *cosine,
                            const float *sine, int64_t R, int64_t stride, int64_t heads,
                            int64_t head_dim, const int32_t *positions, int64_t count)
{
    return rope_at(team, (narrow_job){.team = team, .wide = y, .in = x, .w = cosine, .sine = sine,
                                      .rows = R, .width = stride, .heads = heads,
                                      .head_dim = head_dim, .positions = positions, .T = count});
}

cry_status cry_rope_bwd_at_bf16(const cry_team *team, cry_bf16 *dx, const float *dy,
                                const float *cosine, const float *sine, int64_t R, int64_t stride,
                                int64_t heads, int64_t head_dim, const int32_t *positions,
                                int64_t count)
{
    return rope_at(team, (narrow_job){.team = team, .out = dx, .x = dy, .w = cosine, .sine = sine,
                                      .rows = R, .width = stride, .heads = heads,
                                      .head_dim = head_dim, .positions = positions, .T = count});
}
