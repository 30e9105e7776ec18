/* Optimizers with one momentum, Muon, and the running average of weights, over the team. */
#include "tasks.h"

enum { SPANS = CRY_GROUPS * CRY_GROUPS };

typedef struct momentum_job {
    void (*update)(float *, float *, const float *, int64_t, const cry_momentum *);
    float *p, *m;
    const float *grad;
    int64_t n;
    const int64_t *spans; /* (count,3) */
    int64_t count;
    const cry_momentum *c;
} momentum_job;

static void momentum_task(void *context, int64_t task, int thread)
{
    const momentum_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    cry_momentum plain = *w->c;
    plain.decay = 1.0f;
    (void)thread;
    for (const int64_t *s = w->spans; s < w->spans + 3 * w->count && s[0] < b; s += 3) {
        int64_t i = s[0] > a ? s[0] : a, end = cry_smaller(s[1], b);
        if (i < end) w->update(w->p + i, w->m + i, w->grad + i, end - i, s[2] ? w->c : &plain);
    }
}

static cry_status momentum_spans(const cry_team *team, momentum_job job)
{
    int64_t before = 0;
    if (job.n < 0 || job.count < 0) return CRY_BAD_SHAPE;
    for (const int64_t *s = job.spans; s < job.spans + 3 * job.count; before = s[1], s += 3)
        if (s[0] < before || s[1] < s[0] || s[1] > job.n) return CRY_BAD_SHAPE;
    cry_run(team, SPANS, momentum_task, &job);
    return CRY_OK;
}

cry_status cry_lion_spans(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                          const int64_t *spans, int64_t count, const cry_momentum *c)
{
    return momentum_spans(team, (momentum_job){team->kernels->lion, p, m, grad, n, spans, count, c});
}

cry_status cry_sgd_spans(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                         const int64_t *spans, int64_t count, const cry_momentum *c)
{
    return momentum_spans(team, (momentum_job){team->kernels->sgd, p, m, grad, n, spans, count, c});
}

typedef struct ema_job {
    const cry_kernels *kernels;
    float *average;
    const float *p;
    int64_t n;
    float rate;
} ema_job;

static void ema_task(void *context, int64_t task, int thread)
{
    const ema_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    (void)thread;
    w->kernels->ema(w->average + a, w->p + a, b - a, w->rate);
}

cry_status cry_ema(const cry_team *team, float *average, const float *p, int64_t n, float rate)
{
    if (n < 0) return CRY_BAD_SHAPE;
    ema_job job = {team->kernels, average, p, n, rate};
    cry_run(team, SPANS, ema_task, &job);
    return CRY_OK;
}

typedef struct muon_job {
    const cry_team *team;
    float *p, *m;
    const float *grad, *step_sizes;
    const int64_t *matrices; /* (count,3) */
    const cry_muon *c;
} muon_job;

static void muon_task(void *context, int64_t task, int thread)
{
    const muon_job *w = context;
    const int64_t *at = w->matrices + 3 * task;
    w->team->kernels->muon(w->p + at[0], w->m + at[0], w->grad + at[0], at[1], at[2],
                           w->step_sizes[task], w->c,
                           w->team->scratch + thread * w->team->scratch_len);
}

int64_t cry_need_muon(const cry_team *team, const int64_t *matrices, int64_t count)
{
    int64_t need = 0;
    for (const int64_t *at = matrices; at < matrices + 3 * count; at += 3) {
        int64_t own = cry_round64(cry_muon_floats(team->kernels->tile_n, at[1], at[2]));
        if (own > need) need = own;
    }
    return need;
}

cry_status cry_muon_step(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                         const int64_t *matrices, const float *step_sizes, int64_t count,
                         const cry_muon *c)
{
    if (n < 0 || count < 0 || c->iterations < 1 || c->iterations > CRY_MUON_ITERATIONS)
        return CRY_BAD_SHAPE;
    for (const int64_t *at = matrices; at < matrices + 3 * count; at += 3)
        if (at[0] < 0 || at[1] <= 0 || at[2] <= 0 || at[0] > n || at[1] > (n - at[0]) / at[2])
            return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_muon(team, matrices, count)) return CRY_NO_SCRATCH;
    muon_job job = {team, p, m, grad, step_sizes, matrices, c};
    cry_run(team, count, muon_task, &job);
    return CRY_OK;
}
