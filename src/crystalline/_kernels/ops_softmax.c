/* The softmax family over rows, and the functions it is made of, over the team. */
#include "tasks.h"

typedef struct soft_job {
    const cry_team *team;
    float *out, *out2;
    const float *in, *in2;
    const int32_t *targets;
    int64_t rows, V, span;
    int stream;
} soft_job;

/* A task has so many rows that fetching the next one ahead pays, as long as that leaves a task or
 * more for every one of 144 leaves; and never less than 4096 numbers. */
static void run_soft(soft_job *w, int64_t R, int64_t V, cry_task *task)
{
    int64_t many = cry_smaller((1 << 18) / V, cry_ceil(R, 144)), few = 4096 / V;
    w->rows = R;
    w->V = V;
    w->span = many > few ? many : few > 1 ? few : 1;
    cry_run(w->team, cry_ceil(R, w->span), task, w);
}

#define SPAN_OF(w, task) \
    int64_t at = (task) * (w)->span, n = cry_smaller((w)->span, (w)->rows - at), V = (w)->V; \
    const cry_kernels *kernels = (w)->team->kernels; \
    (void)thread

int64_t cry_need_softmax(int64_t R, int64_t V)
{
    return R > 0 && cry_far(R, V, 512) ? cry_round64(V) : 0;
}

static void softmax_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    float *scratch = w->stream ? w->team->scratch + thread * w->team->scratch_len : 0;
    SPAN_OF(w, task);
    kernels->softmax(w->out + at * V, w->in + at * V, n, V, scratch);
}

cry_status cry_softmax(const cry_team *team, float *y, const float *x, int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = y, .in = x};
    job.stream = y != x && cry_need_softmax(R, V) > 0;
    if (job.stream && team->scratch_len < V) return CRY_NO_SCRATCH;
    run_soft(&job, R, V, softmax_task);
    return CRY_OK;
}

static void softmax_bwd_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->softmax_bwd(w->out + at * V, w->in + at * V, w->in2 + at * V, n, V);
}

cry_status cry_softmax_bwd(const cry_team *team, float *dx, const float *dy, const float *y,
                           int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = dx, .in = dy, .in2 = y};
    run_soft(&job, R, V, softmax_bwd_task);
    return CRY_OK;
}

static void log_softmax_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->log_softmax(w->out + at * V, w->in + at * V, n, V);
}

cry_status cry_log_softmax(const cry_team *team, float *y, const float *x, int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = y, .in = x};
    run_soft(&job, R, V, log_softmax_task);
    return CRY_OK;
}

static void log_softmax_bwd_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->log_softmax_bwd(w->out + at * V, w->in + at * V, w->in2 + at * V, n, V);
}

cry_status cry_log_softmax_bwd(const cry_team *team, float *dx, const float *dy, const float *y,
                               int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = dx, .in = dy, .in2 = y};
    run_soft(&job, R, V, log_softmax_bwd_task);
    return CRY_OK;
}

static void logsumexp_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->logsumexp(w->out + at, w->in + at * V, n, V);
    if (!w->targets) return;
    for (int64_t i = at; i < at + n; i++) /* losses */
        w->out[i] = w->targets[i] < 0 ? 0.0f : w->out[i] - w->in[i * V + w->targets[i]];
}

cry_status cry_logsumexp(const cry_team *team, float *y, const float *x, int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = y, .in = x};
    run_soft(&job, R, V, logsumexp_task);
    return CRY_OK;
}

static int targets_ok(const int32_t *targets, int64_t R, int64_t V)
{
    for (int64_t i = 0; i < R; i++)
        if (targets[i] < -1 || targets[i] >= V) return 0;
    return 1;
}

cry_status cry_cross_entropy(const cry_team *team, float *losses, const float *logits,
                             const int32_t *targets, int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    if (!targets_ok(targets, R, V)) return CRY_BAD_INDEX;
    soft_job job = {.team = team, .out = losses, .in = logits, .targets = targets};
    run_soft(&job, R, V, logsumexp_task);
    return CRY_OK;
}

static void cross_entropy_bwd_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->cross_entropy_bwd(w->out + at * V, w->in2 + at, w->in + at * V, w->targets + at, n, V);
}

cry_status cry_cross_entropy_bwd(const cry_team *team, float *dlogits, const float *dlosses,
                                 const float *logits, const int32_t *targets, int64_t R, int64_t V)
{
    if (R < 0 || V <= 0) return CRY_BAD_SHAPE;
    if (!targets_ok(targets, R, V)) return CRY_BAD_INDEX;
    soft_job job = {.team = team, .out = dlogits, .in = logits, .in2 = dlosses, .targets = targets};
    run_soft(&job, R, V, cross_entropy_bwd_task);
    return CRY_OK;
}

static void exp_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->exp(w->out + at * V, w->in + at * V, n * V);
}

static void log_task(void *context, int64_t task, int thread)
{
    const soft_job *w = context;
    SPAN_OF(w, task);
    kernels->log(w->out + at * V, w->in + at * V, n * V);
}

cry_status cry_exp(const cry_team *team, float *y, const float *x, int64_t n)
{
    if (n < 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = y, .in = x};
    run_soft(&job, n, 1, exp_task);
    return CRY_OK;
}

cry_status cry_log(const cry_team *team, float *y, const float *x, int64_t n)
{
    if (n < 0) return CRY_BAD_SHAPE;
    soft_job job = {.team = team, .out = y, .in = x};
    run_soft(&job, n, 1, log_task);
    return CRY_OK;
}
