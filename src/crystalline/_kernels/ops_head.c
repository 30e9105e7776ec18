/* Output projection and cross-entropy, one block of tokens at a time, by the parts in head.h:
 *
 *   z^T = w h^T;  losses and dz from z, in place;  dw = dz^T h by groups and tree;  dh = dz w
 *
 * w is read where it lies, logits are there for one block.  A block is all of the groups, or a third
 * of them, the three that one branch of the tree adds, so that their sums stay in registers; where that
 * would be too large, it is one group, with a buffer q of dw's size for the running sum of three; and
 * where a group is too large too, a part of it, with a second buffer s for its running chain. */
#include "tasks.h"

#include <string.h>

enum {
    BLOCK_FLOATS = 1 << 24, LEAST_BLOCK = 48, MOST_BLOCK = 1024,
    WORDS = 48,                  /* of one task that makes rows of dw */
    BACK_COLS = 192,             /* of dh that one task makes */
    CHUNK_NUMBERS = CRY_HEAD_CHUNK * 1024, /* of w in a thread's memory, where it must be copied */
};

typedef struct head_plan {
    int64_t block, rows; /* tokens of one block, at most, and up to whole panels */
    int64_t chunk, chunks;
    int whole;           /* every third of the groups is one block, or */
    int all;             /* all of them are */
    /* Offsets in shared; logits are at 0. */
    int64_t tops, sums, picked, targets, h, h_rows, work, work_len, q, s, total;
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

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Floats for one thread: rows of w as they are multiplied, rows of dz, or columns of dh. */
static int64_t work_floats(const head_plan *p, int64_t D, int64_t steps, int gradient)
{
    int64_t copied = steps > 1 || D % 2048 == 0 ? p->chunk * (D + 32) / steps : 0;
    if (!gradient) return cry_round64(copied);
    int64_t dz = WORDS * (p->rows + 32) / steps, dh = BACK_COLS * (p->rows + 16);
    return cry_round64(larger(copied, larger(dz, dh)));
}

static head_plan plan_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                           int gradient, int64_t steps)
{
    head_plan p = {0};
    if (V <= 0 || D <= 0) return p; /* cry_head refuses it; its need may be asked before */
    int64_t tile_n = team->kernels->tile_n, elements = cry_ceil(V, steps), k = cry_ceil(D, steps);
    int64_t fitting = cry_smaller(larger(BLOCK_FLOATS / elements, LEAST_BLOCK), MOST_BLOCK);
    int64_t third = most_rows(groups, 3), group = most_rows(groups, 1);
    p.all = groups[CRY_GROUPS] <= fitting;
    p.whole = third <= fitting;
    p.block = p.all ? groups[CRY_GROUPS] : p.whole ? third : cry_smaller(group, fitting);
    p.rows = cry_ceil(p.block, tile_n) * tile_n;
    p.chunk = larger(cry_smaller(CRY_HEAD_CHUNK, CHUNK_NUMBERS / D / WORDS * WORDS), WORDS);
    p.chunks = cry_ceil(V, p.chunk);
    p.tops = steps > 1 && !gradient ? 0 : cry_round64(p.rows * elements);
    p.sums = p.tops + cry_round64(p.chunks * p.rows);
    p.picked = p.sums + cry_round64((steps > 1 ? p.chunks : 1) * p.rows);
    p.targets = p.picked + cry_round64(p.rows);
    p.h = p.targets + cry_round64(p.rows);
    p.h_rows = p.h + cry_round64(p.rows * k);
    int64_t pairs = cry_ceil(p.block + CRY_GROUPS, steps); /* an odd group has one more */
    p.work = p.h_rows + (gradient ? cry_round64(cry_packed_len(team, pairs, D)) : 0);
    p.work_len = work_floats(&p, D, steps, gradient);
    p.q = p.work + team->threads * p.work_len;
    p.s = p.q + (gradient && !p.whole ? cry_round64(V * D) : 0);
    p.total = p.s + (gradient && group > p.block ? cry_round64(V * D) : 0);
    return p;
}

int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V, int gradient)
{
    int64_t wide = cry_need_head_in(team, groups, D, V, gradient, 0);
    return team->bf16 ? larger(wide, cry_need_head_in(team, groups, D, V, gradient, 1)) : wide;
}

int64_t cry_need_head_in(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                         int gradient, int bf16)
{
    return plan_head(team, groups, D, V, gradient, bf16 ? 2 : 1).total;
}

typedef struct head_job {
    const cry_team *team;
    const cry_products *p;
    const head_plan *plan;
    cry_logits logits;
    cry_grid grid;
    float *losses, *dh, *dw, *q, *s;
    const float *h, *w;
    const int32_t *targets;
    int64_t begin, length; /* the block's first token; of panels of h by groups */
    int64_t across, cols;  /* tasks beside each other, and how much of what lies there each has */
    int count, first, last;
    cry_branch branches[CRY_GROUPS];
} head_job;

static float *work_of(const head_job *w, int thread)
{
    return w->team->shared + w->plan->work + thread * w->plan->work_len;
}

static void project_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t v = task / w->across * w->plan->chunk, first = task % w->across * w->cols;
    int64_t m = cry_smaller(w->plan->chunk, w->logits.V - v);
    int64_t end = cry_smaller(first + w->cols, w->logits.rows / w->team->kernels->tile_n);
    const float *panels = w->team->shared + w->plan->h;
    float *work = work_of(w, thread);
    if (w->p->narrow) w->p->narrow->head_project(&w->logits, w->w, panels, v, m, first, end, work);
    else w->p->kernels->head_project(&w->logits, w->w, panels, v, m, first, end, work);
}

static void softmax_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t at = 16 * task;
    float *losses = w->losses + w->begin + at;
    (void)thread;
    if (w->p->narrow) w->p->narrow->head_softmax(losses, &w->logits, at);
    else w->p->kernels->head_softmax(losses, &w->logits, at);
}

/* Some rows of dw, the last ones first: dh begins with the first words, which are then in the caches. */
static void weight_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    const cry_products *p = w->p;
    int64_t D = w->logits.D, v = (w->grid.down - 1 - task) * w->grid.rows;
    int64_t at = v * D, ld = w->logits.rows + 32;
    int64_t m = cry_smaller(w->grid.rows, w->logits.V - v);
    const float *panels = w->team->shared + w->plan->h_rows;
    float *dz = work_of(w, thread);
    if (p->narrow) p->narrow->head_scale(dz, ld, &w->logits, v, m);
    else p->kernels->head_scale(dz, ld, &w->logits, v, m);
    if (!w->q)
        p->gemm_tree(w->dw + at, D, dz, ld, 1, panels, m, D, w->length, w->branches, w->count);
    else
        p->gemm_branch(w->dw + at, w->q + at, w->s ? w->s + at : 0, D, dz, ld, 1, panels, m, D,
                       w->logits.tokens, w->branches, w->first, w->last);
}

static void back_task(void *context, int64_t task, int thread)
{
    const head_job *w = context;
    int64_t D = w->logits.D, d = task / w->across * w->grid.cols;
    int64_t first = task % w->across * w->cols;
    int64_t end = cry_smaller(first + w->cols, w->logits.rows / w->team->kernels->tile_n);
    int64_t m = cry_smaller(w->grid.cols, D - d);
    float *dh = w->dh + w->begin * D, *work = work_of(w, thread);
    if (w->p->narrow) w->p->narrow->head_back(dh, &w->logits, w->w, d, m, first, end, work);
    else w->p->kernels->head_back(dh, &w->logits, w->w, d, m, first, end, work);
}

/* `down` parts of one side, and panels only cut where those are too few for the threads: w is read
 * again for each cut. */
static void run_cut(head_job *w, int64_t down, cry_task *task)
{
    int64_t panels = w->logits.rows / w->team->kernels->tile_n;
    w->cols = cry_ceil(panels, cry_smaller(cry_ceil(w->team->threads, down), panels));
    w->across = cry_ceil(panels, w->cols);
    cry_run(w->team, down * w->across, task, w);
}

static void run_block(head_job *w)
{
    const cry_products *p = w->p;
    const float *h = cry_at(p, w->h, w->begin * w->logits.D);
    float *shared = w->team->shared;
    int64_t D = w->logits.D, k = D / p->steps, tile_n = w->team->kernels->tile_n;
    int32_t *targets = (int32_t *)(void *)(shared + w->plan->targets);
    w->logits.rows = cry_ceil(w->logits.tokens, tile_n) * tile_n;
    memset(targets, -1, (size_t)w->logits.rows * sizeof *targets);
    memcpy(targets, w->targets + w->begin, (size_t)w->logits.tokens * sizeof *targets);
    cry_products words = cry_float_products(w->team); /* pairs along h are neighbours already */
    cry_pack(w->team, &words, shared + w->plan->h, h, 1, k, k, w->logits.tokens);
    run_cut(w, w->plan->chunks, project_task);
    cry_run(w->team, w->logits.rows / 16, softmax_task, w);
    if (!w->dw) return;
    w->length = cry_pack_groups(w->team, p, shared + w->plan->h_rows, h, D, w->branches, w->count);
    cry_run(w->team, w->grid.down, weight_task, w);
    run_cut(w, cry_ceil(D, w->grid.cols), back_task);
}

/* The rows of `count` branches, whole or in parts, as blocks; branches count rows from the block's. */
static void run_branches(head_job *w, const cry_branch *branches, int count)
{
    int64_t begin = branches[0].begin, end = branches[count - 1].end;
    for (w->begin = begin; w->begin < end; w->begin += w->logits.tokens) {
        w->logits.tokens = cry_smaller(w->plan->block, end - w->begin);
        w->first = w->begin == begin;
        w->last = w->begin + w->logits.tokens == end;
        w->count = count;
        for (int i = 0; i < count; i++) {
            w->branches[i] = branches[i];
            w->branches[i].begin = count > 1 ? branches[i].begin - begin : 0;
            w->branches[i].end = count > 1 ? branches[i].end - begin : w->logits.tokens;
        }
        run_block(w);
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
    head_plan plan = plan_head(team, groups, D, V, dw != 0, products->steps);
    float *shared = team->shared;
    if (team->shared_len < plan.total) return CRY_NO_SCRATCH;
    head_job job = {.team = team, .p = products, .plan = &plan, .losses = losses, .dh = dh, .dw = dw,
                    .q = plan.s > plan.q ? shared + plan.q : 0,
                    .s = plan.total > plan.s ? shared + plan.s : 0, .h = h, .w = w, .targets = targets,
                    .grid = cry_cut(team, V, 1, WORDS)};
    job.grid.cols = cry_ceil(cry_ceil(D, cry_ceil(D, BACK_COLS)), 4) * 4;
    job.logits = (cry_logits){.z = shared, .tops = shared + plan.tops, .sums = shared + plan.sums,
                              .picked = shared + plan.picked, .V = V, .D = D, .chunk = plan.chunk,
                              .targets = (const int32_t *)(const void *)(shared + plan.targets),
                              .scale = scale, .gradient = dw != 0};
    cry_branch branches[CRY_GROUPS];
    int count = cry_branches(branches, groups, accumulate);
    for (int g = 0, together = 1; g < count; g += together) {
        for (together = 1; plan.whole && !branches[g + together - 1].last_in_q;) together++;
        if (plan.all) together = count;
        run_branches(&job, branches + g, together);
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
