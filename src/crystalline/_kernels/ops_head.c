/* Output projection and cross-entropy, one block of one group's tokens at a time:
 *
 *   z = h w^T;  losses and dz from z, in place;  dh = dz w;  s += dz^T h;  after the group: tree
 *
 * w is packed once each way for all blocks.  The weight gradient goes through q, one buffer of its
 * size, for the three groups that are being added; a group too large for one block keeps its running
 * chain in s, a second one. */
#include "tasks.h"

enum { BLOCK_FLOATS = 1 << 22, LEAST_BLOCK = 48 }; /* logits of a block: 16 MiB where rows allow */

typedef struct head_plan {
    int64_t block;                            /* rows of one block, at most */
    int64_t forward, backward, h, q, s, total; /* offsets in shared */
    int64_t logits;
} head_plan;

static head_plan plan_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V, int gradient)
{
    head_plan p = {0};
    int64_t most = 0;
    if (V <= 0) return p; /* cry_head refuses it; its need may be asked before */
    for (int g = 0; g < CRY_GROUPS; g++) {
        int64_t rows = groups[g + 1] - groups[g];
        most = rows > most ? rows : most;
    }
    int64_t fitting = BLOCK_FLOATS / V > LEAST_BLOCK ? BLOCK_FLOATS / V : LEAST_BLOCK;
    p.block = cry_smaller(most, fitting);
    p.logits = cry_round64(cry_packed_len(team, D, V));
    p.backward = p.logits + cry_round64(p.block * V);
    p.h = p.backward + (gradient ? cry_round64(cry_packed_len(team, V, D)) : 0);
    p.q = p.h + (gradient ? cry_round64(cry_packed_len(team, p.block, D)) : 0);
    p.s = p.q + (gradient ? cry_round64(V * D) : 0);
    p.total = p.s + (gradient && most > p.block ? cry_round64(V * D) : 0);
    return p;
}

int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V, int gradient)
{
    return plan_head(team, groups, D, V, gradient).total;
}

typedef struct head_job {
    const cry_kernels *kernels;
    cry_grid grid;
    float *losses, *logits, *dw, *q, *s;
    const float *h;
    const int32_t *targets;
    int64_t rows, D, V;
    float scale;
    int gradient, first_block, last_block;
    cry_branch branch;
} head_job;

enum { LOSS_ROWS = 4 };

static void loss_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t i = task * LOSS_ROWS;
    (void)thread;
    w->kernels->cross_entropy(w->losses + i, w->logits + i * w->V, w->targets + i,
                              cry_smaller(LOSS_ROWS, w->rows - i), w->V, w->scale, w->gradient);
}

static void head_dw_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t i = task * w->grid.rows, at = i * w->D;
    (void)thread;
    w->kernels->gemm_branch(w->dw + at, w->q + at, w->s ? w->s + at : 0, w->D, w->logits + i, 1, w->V,
                            w->h, cry_smaller(w->grid.rows, w->V - i), w->D, w->rows, &w->branch,
                            w->first_block, w->last_block);
}

cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                    const float *w, const int32_t *targets, const int64_t *groups, int64_t R,
                    int64_t D, int64_t V, float scale, int accumulate)
{
    if (R <= 0 || D <= 0 || V <= 0 || (!dh) != (!dw)) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    for (int64_t i = 0; i < R; i++)
        if (targets[i] < -1 || targets[i] >= V) return CRY_BAD_INDEX;
    int gradient = dw != 0;
    head_plan p = plan_head(team, groups, D, V, gradient);
    if (team->shared_len < p.total) return CRY_NO_SCRATCH;
    float *shared = team->shared;
    cry_pack(team, shared + p.forward, w, 1, D, D, V);
    if (gradient) cry_pack(team, shared + p.backward, w, D, 1, V, D);

    cry_branch branches[CRY_GROUPS];
    int count = cry_branches(branches, groups, accumulate);
    head_job job = {.kernels = team->kernels, .logits = shared + p.logits, .dw = dw,
                    .q = shared + p.q, .s = p.s < p.total ? shared + p.s : 0, .h = shared + p.h,
                    .D = D, .V = V, .scale = scale, .gradient = gradient};
    job.grid = cry_cut(team, V, 1, 96);
    for (int g = 0; g < count; g++) {
        job.branch = branches[g];
        for (int64_t at = job.branch.begin; at < job.branch.end; at += p.block) {
            job.rows = cry_smaller(p.block, job.branch.end - at);
            job.losses = losses + at;
            job.targets = targets + at;
            job.first_block = at == job.branch.begin;
            job.last_block = at + job.rows == job.branch.end;
            cry_gemm(team, job.logits, V, 0, h + at * D, D, shared + p.forward, job.rows, V, D);
            cry_run(team, cry_ceil(job.rows, LOSS_ROWS), loss_task, &job);
            if (!gradient) continue;
            cry_gemm(team, dh + at * D, D, 0, job.logits, V, shared + p.backward, job.rows, D, V);
            cry_pack(team, shared + p.h, h + at * D, D, 1, job.rows, D);
            cry_run(team, job.grid.down, head_dw_task, &job);
        }
    }
    return CRY_OK;
}
