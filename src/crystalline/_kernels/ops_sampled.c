/* Output projection and sampled cross-entropy, one block of one group's tokens at a time:
 *
 *   ws = rows `samples` of w;  z = h ws^T;  losses and dz from z, in place
 *   dh = dz_target w[target] + dz ws;  s += dz^T h;  after the group: tree
 *
 * ws is packed once each way.  Its gradient begins as the rows that dw holds and goes back there;
 * then the targets' rows get theirs, token by token as in the embedding's backward. */
#include "tasks.h"

enum { BLOCK_FLOATS = 1 << 20, LEAST_BLOCK = 48, LOSS_ROWS = 8, GATHER_ROWS = 64 };
enum { SPANS = CRY_GROUPS * CRY_GROUPS };

typedef struct sampled_plan {
    int64_t block; /* rows of one block, at most */
    int64_t ws, logs, dz_target, forward, logits, backward, h, dws, q, s, total; /* in shared */
} sampled_plan;

static sampled_plan plan_sampled(const cry_team *team, const int64_t *groups, int64_t D, int64_t S,
                                 int gradient)
{
    sampled_plan p = {0};
    int64_t most = 0;
    if (S <= 0) return p; /* cry_head_sampled refuses it; its need may be asked before */
    for (int g = 0; g < CRY_GROUPS; g++) {
        int64_t rows = groups[g + 1] - groups[g];
        most = rows > most ? rows : most;
    }
    int64_t fitting = BLOCK_FLOATS / S > LEAST_BLOCK ? BLOCK_FLOATS / S : LEAST_BLOCK;
    p.block = cry_smaller(most, fitting);
    p.logs = cry_round64(S * D);
    p.dz_target = p.logs + cry_round64(S);
    p.forward = p.dz_target + cry_round64(groups[CRY_GROUPS]);
    p.logits = p.forward + cry_round64(cry_packed_len(team, D, S));
    p.backward = p.logits + cry_round64(p.block * S);
    p.h = p.backward + (gradient ? cry_round64(cry_packed_len(team, S, D)) : 0);
    p.dws = p.h + (gradient ? cry_round64(cry_packed_len(team, p.block, D)) : 0);
    p.q = p.dws + (gradient ? cry_round64(S * D) : 0);
    p.s = p.q + (gradient ? cry_round64(S * D) : 0);
    p.total = p.s + (gradient && most > p.block ? cry_round64(S * D) : 0);
    return p;
}

int64_t cry_need_head_sampled(const cry_team *team, const int64_t *groups, int64_t D, int64_t S,
                              int gradient)
{
    return plan_sampled(team, groups, D, S, gradient).total;
}

typedef struct sampled_job {
    const cry_kernels *kernels;
    const cry_products *p;
    cry_grid grid;
    cry_sampled c;
    float *losses, *dz_target, *dh, *logits, *ws, *dws, *dw, *q, *s;
    const float *h, *panels;
    const int32_t *targets, *list;
    const int64_t *groups, *index;
    int64_t rows, V;
    int first_block, last_block;
    cry_branch branch;
} sampled_job;

/* Rows `samples` of w, and of dw where there is one. */
static void gather_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t at = task * GATHER_ROWS, n = cry_smaller(GATHER_ROWS, w->c.S - at);
    (void)thread;
    w->kernels->embedding(w->ws + at * w->c.D, w->c.w, w->c.samples + at, n, w->c.D);
    if (w->dw) w->kernels->embedding(w->dws + at * w->c.D, w->dw, w->c.samples + at, n, w->c.D);
}

static void scatter_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t at = task * GATHER_ROWS, end = cry_smaller(at + GATHER_ROWS, w->c.S);
    static const int32_t first = 0;
    (void)thread;
    for (; at < end; at++)
        w->kernels->embedding(w->dw + w->c.samples[at] * w->c.D, w->dws + at * w->c.D, &first, 1,
                              w->c.D);
}

static void entropy_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t i = task * LOSS_ROWS;
    (void)thread;
    w->kernels->sampled_entropy(w->losses + i, w->dz_target + i, w->dh ? w->dh + i * w->c.D : 0,
                                w->logits + i * w->c.S, w->h + i * w->c.D, w->targets + i,
                                cry_smaller(LOSS_ROWS, w->rows - i), &w->c);
}

static void sampled_dw_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t i = task * w->grid.rows, at = i * w->c.D;
    (void)thread;
    w->kernels->gemm_branch(w->dws + at, w->q + at, w->s ? w->s + at : 0, w->c.D, w->logits + i, 1,
                            w->c.S, w->panels, cry_smaller(w->grid.rows, w->c.S - i), w->c.D, w->rows,
                            &w->branch, w->first_block, w->last_block);
}

/* The target rows of a span of the vocabulary. */
static void target_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    (void)thread;
    for (int64_t v = w->V * task / SPANS; v < w->V * (task + 1) / SPANS; v++) {
        int64_t first = v ? w->index[v - 1] : 0, count = w->index[v] - first;
        if (count)
            w->kernels->weighted_bwd(w->dw + v * w->c.D, w->h, w->dz_target, w->list + first, count,
                                     w->groups, w->c.D);
    }
}

/* One block: losses, dh, and its part of the sampled rows' gradient. */
static void run_block(const cry_team *team, const sampled_plan *p, const sampled_job *all, int64_t at)
{
    int64_t D = all->c.D, S = all->c.S;
    float *shared = team->shared;
    sampled_job job = *all;
    job.rows = cry_smaller(p->block, job.branch.end - at);
    job.first_block = at == job.branch.begin;
    job.last_block = at + job.rows == job.branch.end;
    job.losses += at;
    job.dz_target += at;
    job.targets += at;
    job.h += at * D;
    if (job.dh) job.dh += at * D;
    cry_gemm(team, all->p, job.logits, S, 0, job.h, D, shared + p->forward, job.rows, S, D);
    cry_run(team, cry_ceil(job.rows, LOSS_ROWS), entropy_task, &job);
    if (!job.dh) return;
    cry_gemm(team, all->p, job.dh, D, job.dh, job.logits, S, shared + p->backward, job.rows, D, S);
    cry_pack(team, all->p, shared + p->h, job.h, D, 1, job.rows, D);
    cry_run(team, job.grid.down, sampled_dw_task, &job);
}

static cry_status sampled_ok(const int32_t *targets, const int64_t *groups, const int32_t *samples,
                             int64_t R, int64_t D, int64_t V, int64_t S)
{
    if (R <= 0 || D <= 0 || V <= 0 || S <= 0 || S > V || R > INT32_MAX) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    for (int64_t i = 0; i < R; i++)
        if (targets[i] < -1 || targets[i] >= V) return CRY_BAD_INDEX;
    return cry_rises(samples, S, V) ? CRY_OK : CRY_BAD_LIST;
}

cry_status cry_head_sampled(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                            const float *w, const int32_t *targets, const int64_t *groups,
                            const int32_t *samples, const float *log_expected, int64_t R, int64_t D,
                            int64_t V, int64_t S, float scale, int32_t *list, int64_t *index)
{
    if ((!dh) != (!dw) || (dw && (!list || !index))) return CRY_BAD_SHAPE;
    cry_status status = sampled_ok(targets, groups, samples, R, D, V, S);
    if (status) return status;
    sampled_plan p = plan_sampled(team, groups, D, S, dw != 0);
    if (team->shared_len < p.total) return CRY_NO_SCRATCH;
    float *shared = team->shared, *sample_log = shared + p.logs;
    for (int64_t j = 0; j < S; j++) sample_log[j] = log_expected[samples[j]];
    cry_products products = cry_float_products(team);
    sampled_job job = {
        .kernels = team->kernels, .p = &products, .grid = cry_cut(team, S, 1, 96), .losses = losses,
        .c = {.w = w, .log_expected = log_expected, .sample_log = sample_log, .samples = samples,
              .D = D, .S = S, .scale = scale},
        .dz_target = shared + p.dz_target, .dh = dh, .logits = shared + p.logits,
        .ws = shared + p.ws, .dws = shared + p.dws, .dw = dw, .q = shared + p.q,
        .s = p.s < p.total ? shared + p.s : 0, .h = h, .panels = shared + p.h, .targets = targets,
        .list = list, .groups = groups, .index = index, .V = V};
    cry_run(team, cry_ceil(S, GATHER_ROWS), gather_task, &job);
    cry_pack(team, &products, shared + p.forward, job.ws, 1, D, D, S);
    if (dw) cry_pack(team, &products, shared + p.backward, job.ws, D, 1, S, D);
    cry_branch branches[CRY_GROUPS];
    int count = cry_branches(branches, groups, 1);
    for (int g = 0; g < count; g++) {
        job.branch = branches[g];
        for (int64_t at = job.branch.begin; at < job.branch.end; at += p.block)
            run_block(team, &p, &job, at);
    }
    if (!dw) return CRY_OK;
    cry_run(team, cry_ceil(S, GATHER_ROWS), scatter_task, &job);
    cry_sort_by_token(list, index, targets, R, V);
    cry_run(team, SPANS, target_task, &job);
    return CRY_OK;
}
