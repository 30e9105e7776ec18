/* Output projection and cross-entropy, one block of tokens at a time:
 *
 *   z = h w^T;  losses and dz from z, in place;  dh = dz w;  dw = dz^T h by groups and tree
 *
 * w is packed once each way.  A block is a third of the groups, the three that one branch of
 * the tree adds, so that their sums stay in registers; where that would be too large, it is one group,
 * with one buffer q of dw's size for the running sum of three; and where a group is too large too, a part
 * of it, with a second buffer s for its running chain. */
#include "tasks.h"

#include <string.h>

enum { BLOCK_FLOATS = 1 << 24, LEAST_BLOCK = 48, LOSS_ROWS = 4 };

typedef struct head_plan {
    int64_t block;                              /* rows of one block, at most */
    int whole;                                  /* every third of the groups is one block */
    int64_t backward, logits, h, q, s, total;   /* offsets in shared; forward panels are at 0 */
} head_plan;

static int64_t most_rows(const int64_t *groups, int together)
{
    int64_t most = 0;
    for (int g = 0; g < CRY_GROUPS; g += together) {
        int64_t rows = groups[g + together] - groups[g];
        most = rows > most ? rows : most;
    }
    return most;
}

static head_plan plan_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V, int gradient)
{
    head_plan p = {0};
    if (V <= 0) return p; /* cry_head refuses it; its need may be asked before */
    int64_t fitting = BLOCK_FLOATS / V > LEAST_BLOCK ? BLOCK_FLOATS / V : LEAST_BLOCK;
    int64_t third = most_rows(groups, 3), group = most_rows(groups, 1);
    p.whole = third <= fitting;
    p.block = p.whole ? third : cry_smaller(group, fitting);
    p.backward = cry_round64(cry_packed_len(team, D, V));
    p.logits = p.backward + (gradient ? cry_round64(cry_packed_len(team, V, D)) : 0);
    p.h = p.logits + cry_round64(p.block * V) + 16; /* a bf16 zero may follow the last row */
    p.q = p.h + (gradient ? cry_round64(cry_packed_len(team, p.block, D)) : 0);
    p.s = p.q + (gradient && !p.whole ? cry_round64(V * D) : 0);
    p.total = p.s + (gradient && group > p.block ? cry_round64(V * D) : 0);
    return p;
}

int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V, int gradient)
{
    return plan_head(team, groups, D, V, gradient).total;
}

typedef struct head_job {
    const cry_team *team;
    const cry_products *p;
    cry_grid grid;
    float *losses, *logits, *dh, *dw, *q, *s;
    const float *h, *forward, *backward, *panels;
    const int32_t *targets;
    int64_t begin, rows, D, V, length; /* the block's rows */
    float scale;
    int gradient, count, first, last;
    cry_branch branches[3];
} head_job;

static void loss_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t at = task * LOSS_ROWS, row = w->begin + at, n = cry_smaller(LOSS_ROWS, w->rows - at);
    float *z = w->logits + at * w->V;
    (void)thread;
    if (w->p->narrow)
        w->p->narrow->cross_entropy(w->losses + row, z, w->targets + row, n, w->V, w->scale, w->gradient);
    else
        w->p->kernels->cross_entropy(w->losses + row, z, w->targets + row, n, w->V, w->scale, w->gradient);
}

/* Some rows of dw.  A gradient in bf16 lies in the first half of each row of logits. */
static void weight_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    const cry_products *p = w->p;
    int64_t i = task * w->grid.rows, at = i * w->D, m = cry_smaller(w->grid.rows, w->V - i);
    const float *dz = cry_at(p, w->logits, i);
    (void)thread;
    if (!w->q)
        p->gemm_tree(w->dw + at, w->D, dz, 1, w->V * p->steps, w->panels, m, w->D, w->length,
                     w->branches, w->count);
    else
        p->gemm_branch(w->dw + at, w->q + at, w->s ? w->s + at : 0, w->D, dz, 1, w->V * p->steps,
                       w->panels, m, w->D, w->rows, w->branches, w->first, w->last);
}

static void run_block(head_job *w, float *panels)
{
    const cry_products *p = w->p;
    int64_t D = cry_ceil(w->D, p->steps), V = cry_ceil(w->V, p->steps);
    cry_gemm(w->team, p, w->logits, w->V, 0, cry_at(p, w->h, w->begin * w->D), D, w->forward, w->rows,
             w->V, D);
    cry_run(w->team, cry_ceil(w->rows, LOSS_ROWS), loss_task, w);
    if (!w->gradient) return;
    cry_gemm(w->team, p, w->dh + w->begin * w->D, w->D, 0, w->logits, w->V, w->backward, w->rows, w->D, V);
    w->length = cry_pack_groups(w->team, w->p, panels, cry_at(w->p, w->h, w->begin * w->D), w->D,
                                w->branches, w->count);
    w->panels = panels;
    cry_run(w->team, w->grid.down, weight_task, w);
}

/* The rows of `count` branches, whole or in parts, as blocks; branches count rows from the block's. */
static void run_branches(head_job *w, const head_plan *plan, float *panels, const cry_branch *branches,
                         int count)
{
    int64_t begin = branches[0].begin, end = branches[count - 1].end;
    for (w->begin = begin; w->begin < end; w->begin += w->rows) {
        w->rows = cry_smaller(plan->block, end - w->begin);
        w->first = w->begin == begin;
        w->last = w->begin + w->rows == end;
        w->count = count;
        for (int i = 0; i < count; i++) {
            w->branches[i] = branches[i];
            w->branches[i].begin = count > 1 ? branches[i].begin - begin : 0;
            w->branches[i].end = count > 1 ? branches[i].end - begin : w->rows;
        }
        run_block(w, panels);
    }
}

static cry_status head(const cry_team *team, const cry_products *products, float *losses, float *dh,
                       float *dw, const float *h, const float *w, const int32_t *targets,
                       const int64_t *groups, int64_t R, int64_t D, int64_t V, float scale, int accumulate)
{
    if (R <= 0 || D <= 0 || V <= 0 || D % products->steps || (!dh) != (!dw)) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    for (int64_t i = 0; i < R; i++)
        if (targets[i] < -1 || targets[i] >= V) return CRY_BAD_INDEX;
    head_plan plan = plan_head(team, groups, D, V, dw != 0);
    float *shared = team->shared;
    if (team->shared_len < plan.total) return CRY_NO_SCRATCH;
    cry_pack(team, products, shared, w, 1, D, D, V);
    if (dw) cry_pack(team, products, shared + plan.backward, w, D, 1, V, D);

    head_job job = {.team = team, .p = products, .losses = losses, .logits = shared + plan.logits,
                    .dh = dh, .dw = dw, .q = plan.s > plan.q ? shared + plan.q : 0,
                    .s = plan.total > plan.s ? shared + plan.s : 0, .h = h, .forward = shared,
                    .backward = shared + plan.backward, .targets = targets, .D = D, .V = V,
                    .scale = scale, .gradient = dw != 0, .grid = cry_cut(team, V, 1, 48)};
    cry_branch branches[CRY_GROUPS];
    int count = cry_branches(branches, groups, accumulate);
    for (int g = 0, together = 1; g < count; g += together) {
        for (together = 1; plan.whole && !branches[g + together - 1].last_in_q;) together++;
        run_branches(&job, &plan, shared + plan.h, branches + g, together);
    }
    return CRY_OK;
}

cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                    const float *w, const int32_t *targets, const int64_t *groups, int64_t R,
                    int64_t D, int64_t V, float scale, int accumulate)
{
    cry_products p = cry_float_products(team);
    return head(team, &p, losses, dh, dw, h, w, targets, groups, R, D, V, scale, accumulate);
}

cry_status cry_head_bf16(const cry_team *team, float *losses, float *dh, float *dw, const cry_bf16 *h,
                         const float *w, const int32_t *targets, const int64_t *groups, int64_t R,
                         int64_t D, int64_t V, float scale, int accumulate)
{
    if (!team->bf16) return CRY_BAD_ISA;
    cry_products p = cry_bf16_products(team);
    return head(team, &p, losses, dh, dw, (const float *)(const void *)h, w, targets, groups, R, D, V,
                scale, accumulate);
}
