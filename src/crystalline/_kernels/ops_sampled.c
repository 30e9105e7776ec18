/* Output projection and sampled cross-entropy.  Each group of tokens has samples of its own, ws are
 * their rows of w.  The three groups of one q of the tree are worked on together:
 *
 *   ws is packed each way                                                  (a task: some classes)
 *   z = h ws^T;  losses and dz from z, in place;  dh = dz_target w[target] + dz ws    (some tokens)
 *   s = dz^T h                                                                       (some classes)
 *   dw[c] += (s + s') + s'' over those of the three that have class c in their samples
 *
 * Then the targets' rows get theirs, token by token as in the embedding's backward. */
#include "tasks.h"

enum { BLOCK_FLOATS = 1 << 20, LEAST_BLOCK = 48, LOSS_ROWS = 8, THIRD = 3 };
enum { SPANS = CRY_GROUPS * CRY_GROUPS };

typedef struct sampled_plan {
    int64_t block; /* tokens of a group at a time, at most */
    int64_t dz_target, sums;                    /* floats of all, */
    int64_t logs, logits, forward, backward, h; /* of each of the three groups, */
    int64_t group, total;                       /* of these together, and in all */
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
    p.dz_target = cry_round64(groups[CRY_GROUPS]);
    p.sums = cry_round64(THIRD * S * D);
    p.logs = cry_round64(S);
    p.logits = cry_round64(p.block * S);
    p.forward = cry_round64(cry_packed_len(team, D, S));
    if (gradient) {
        p.backward = cry_round64(cry_packed_len(team, S, D));
        p.h = cry_round64(cry_packed_len(team, p.block, D));
    }
    p.group = p.logs + p.logits + p.forward + p.backward + p.h;
    p.total = p.dz_target + p.sums + THIRD * p.group;
    return p;
}

int64_t cry_need_head_sampled(const cry_team *team, const int64_t *groups, int64_t D, int64_t S,
                              int gradient)
{
    return plan_sampled(team, groups, D, S, gradient).total;
}

/* One of the groups worked on, and what a block of its tokens is to it. */
typedef struct sampled_group {
    cry_sampled c;
    int64_t begin, end; /* its tokens */
    int64_t at, rows;   /* those of the block */
    float *sums, *sample_log, *logits, *forward, *backward, *h;
} sampled_group;

typedef struct sampled_job {
    const cry_kernels *kernels;
    float *losses, *dz_target, *dh, *dw;
    const float *h;
    const int32_t *targets, *list;
    const int64_t *groups, *index;
    int64_t V, rows, classes, row_tasks, class_tasks; /* of one task; tasks of each group */
    sampled_group g[THIRD];
    int count;
} sampled_job;

/* Some samples' rows of w, gathered where their gradient will be, into panels of either way. */
static void samples_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    const cry_kernels *k = w->kernels;
    const sampled_group *g = w->g + task % w->count;
    int64_t D = g->c.D, S = g->c.S, j = task / w->count * k->tile_n, n = cry_smaller(k->tile_n, S - j);
    float *rows = g->sums + j * D;
    (void)thread;
    for (int64_t i = j; i < j + n; i++) g->sample_log[i] = g->c.log_expected[g->c.samples[i]];
    k->embedding(rows, g->c.w, g->c.samples + j, n, D);
    k->pack(g->forward + j * D, rows, 1, D, D, n);
    for (int64_t i = 0; w->dh && i < D; i += k->tile_n)
        k->pack(g->backward + i * S + j * k->tile_n, rows + i, D, 1, n, cry_smaller(k->tile_n, D - i));
}

/* Some tokens: their losses, dz and dh; and h into the panels that s = dz^T h reads. */
static void tokens_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    const cry_kernels *k = w->kernels;
    const sampled_group *g = w->g + task % w->count;
    int64_t D = g->c.D, S = g->c.S, first = task / w->count * w->rows;
    int64_t m = cry_smaller(w->rows, g->rows - first), at = g->at + first;
    const float *h = w->h + at * D;
    float *z = g->logits + first * S;
    (void)thread;
    if (m <= 0) return;
    k->gemm(z, S, 0, 0, h, D, 1, g->forward, m, S, D);
    for (int64_t i = 0; i < m; i += LOSS_ROWS)
        k->sampled_entropy(w->losses + at + i, w->dz_target + at + i,
                           w->dh ? w->dh + (at + i) * D : 0, z + i * S, h + i * D,
                           w->targets + at + i, cry_smaller(LOSS_ROWS, m - i), &g->c);
    if (!w->dh) return;
    k->gemm(w->dh + at * D, D, w->dh + at * D, D, z, S, 1, g->backward, m, D, S);
    for (int64_t i = 0; i < D; i += k->tile_n)
        k->pack(g->h + i * g->rows + first * k->tile_n, h + i, D, 1, m, cry_smaller(k->tile_n, D - i));
}

/* Some classes: the chain over the group's tokens, which a second block goes on with. */
static void classes_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    const sampled_group *g = w->g + task % w->count;
    int64_t D = g->c.D, S = g->c.S, i = task / w->count * w->classes;
    float *s = g->sums + i * D;
    (void)thread;
    if (g->rows <= 0) return;
    w->kernels->gemm(s, D, g->at > g->begin ? s : 0, D, g->logits + i, 1, S, g->h,
                     cry_smaller(w->classes, S - i), D, g->rows);
}

static int64_t first_from(const cry_sampled *c, int64_t v)
{
    int64_t low = 0, high = c->S;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (c->samples[middle] < v) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* dw of the classes of a span of the vocabulary that any of the groups has sampled. */
static void q_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t at[THIRD], begin = w->V * task / SPANS, end = w->V * (task + 1) / SPANS;
    int64_t D = w->g[0].c.D, S = w->g[0].c.S, starts[CRY_GROUPS + 1];
    for (int g = 0; g <= CRY_GROUPS; g++) starts[g] = cry_smaller(g, THIRD) * S;
    (void)thread;
    for (int g = 0; g < w->count; g++) at[g] = first_from(&w->g[g].c, begin);
    for (;;) {
        int64_t v = end;
        for (int g = 0; g < w->count; g++)
            if (at[g] < S) v = cry_smaller(v, w->g[g].c.samples[at[g]]);
        if (v == end) return;
        int32_t rows[THIRD]; /* of the sums */
        int count = 0;
        for (int g = 0; g < w->count; g++)
            if (at[g] < S && w->g[g].c.samples[at[g]] == v) rows[count++] = (int32_t)(g * S + at[g]++);
        w->kernels->embedding_bwd(w->dw + v * D, w->g[0].sums, rows, count, starts, D, 1);
    }
}

/* The target rows of a span of the vocabulary. */
static void target_task(void *context, int64_t task, int thread)
{
    const sampled_job *w = context;
    int64_t D = w->g[0].c.D;
    (void)thread;
    for (int64_t v = w->V * task / SPANS; v < w->V * (task + 1) / SPANS; v++) {
        int64_t first = v ? w->index[v - 1] : 0, count = w->index[v] - first;
        if (count)
            w->kernels->weighted_bwd(w->dw + v * D, w->h, w->dz_target, w->list + first, count,
                                     w->groups, D);
    }
}

/* The groups of one q, or those of them that have tokens: losses, dh and the samples' part of dw. */
static void run_third(const cry_team *team, const sampled_plan *p, sampled_job *job)
{
    int64_t S = job->g[0].c.S, longest = 0;
    for (int g = 0; g < job->count; g++) {
        int64_t tokens = job->g[g].end - job->g[g].begin;
        longest = tokens > longest ? tokens : longest;
    }
    cry_run(team, job->count * cry_ceil(S, team->kernels->tile_n), samples_task, job);
    for (int64_t done = 0; done < longest; done += p->block) {
        int64_t most = 0;
        for (int g = 0; g < job->count; g++) {
            sampled_group *of = job->g + g;
            of->at = of->begin + done;
            of->rows = cry_smaller(p->block, of->end - of->at);
            most = of->rows > most ? of->rows : most;
        }
        cry_run(team, job->count * cry_ceil(most, job->rows), tokens_task, job);
        if (job->dh) cry_run(team, job->count * cry_ceil(S, job->classes), classes_task, job);
    }
    if (job->dh) cry_run(team, SPANS, q_task, job);
}

static cry_status sampled_ok(const int32_t *targets, const int64_t *groups, const int32_t *samples,
                             int64_t R, int64_t D, int64_t V, int64_t S)
{
    if (R <= 0 || D <= 0 || V <= 0 || S <= 0 || S > V || R > INT32_MAX) return CRY_BAD_SHAPE;
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    for (int64_t i = 0; i < R; i++)
        if (targets[i] < -1 || targets[i] >= V) return CRY_BAD_INDEX;
    for (int g = 0; g < CRY_GROUPS; g++)
        if (!cry_rises(samples + g * S, S, V)) return CRY_BAD_LIST;
    return CRY_OK;
}

static void add_group(sampled_job *job, const sampled_plan *p, float *shared, cry_sampled c,
                      int64_t begin, int64_t end)
{
    sampled_group g = {.c = c, .begin = begin, .end = end};
    g.sums = shared + p->dz_target + job->count * c.S * c.D;
    g.sample_log = shared + p->dz_target + p->sums + job->count * p->group;
    g.logits = g.sample_log + p->logs;
    g.forward = g.logits + p->logits;
    g.backward = g.forward + p->forward;
    g.h = g.backward + p->backward;
    g.c.sample_log = g.sample_log;
    job->g[job->count++] = g;
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
    sampled_job job = {.kernels = team->kernels, .losses = losses, .dz_target = team->shared, .dh = dh,
                       .dw = dw, .h = h, .targets = targets, .list = list, .groups = groups,
                       .index = index, .V = V, .rows = cry_cut(team, THIRD * p.block, 1, 96).rows,
                       .classes = cry_cut(team, THIRD * S, 1, 96).rows};
    for (int first = 0; first < CRY_GROUPS; first += THIRD) {
        job.count = 0;
        for (int g = first; g < first + THIRD; g++)
            if (groups[g] < groups[g + 1])
                add_group(&job, &p, team->shared,
                          (cry_sampled){.w = w, .log_expected = log_expected,
                                        .samples = samples + g * S, .D = D, .S = S, .scale = scale},
                          groups[g], groups[g + 1]);
        if (job.count) run_third(team, &p, &job);
    }
    if (!dw) return CRY_OK;
    cry_sort_by_token(list, index, targets, R, V);
    cry_run(team, SPANS, target_task, &job);
    return CRY_OK;
}
