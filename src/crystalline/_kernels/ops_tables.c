/* Work on the tables of numbers themselves: embedding rows, AdamW, the squared norm. */
#include "tasks.h"

#include <string.h>

typedef struct table_job {
    const cry_team *team;
    float *out;
    const float *in;
    const int32_t *ids, *list;
    const int64_t *groups, *index;
    int64_t rows, D, V;
    int accumulate;
} table_job;

enum { GATHER_ROWS = 64 };

static int ids_ok(const int32_t *ids, int64_t R, int64_t V)
{
    for (int64_t r = 0; r < R; r++)
        if (ids[r] < 0 || ids[r] >= V) return 0;
    return 1;
}

static void embedding_task(void *context, int64_t task, int thread)
{
    const table_job *w = context;
    int64_t at = task * GATHER_ROWS;
    (void)thread;
    w->team->kernels->embedding(w->out + at * w->D, w->in, w->ids + at,
                                cry_smaller(GATHER_ROWS, w->rows - at), w->D);
}

cry_status cry_embedding(const cry_team *team, float *x, const float *w, const int32_t *ids, int64_t R,
                         int64_t D, int64_t V)
{
    if (R < 0 || D <= 0 || V <= 0) return CRY_BAD_SHAPE;
    if (!ids_ok(ids, R, V)) return CRY_BAD_INDEX;
    table_job job = {.team = team, .out = x, .in = w, .ids = ids, .rows = R, .D = D};
    cry_run(team, cry_ceil(R, GATHER_ROWS), embedding_task, &job);
    return CRY_OK;
}

/* A group of the vocabulary owns its rows of dw: V t / 144 .. V (t + 1) / 144, no atomics. */
enum { SPANS = CRY_GROUPS * CRY_GROUPS };

static void embedding_bwd_task(void *context, int64_t task, int thread)
{
    const table_job *w = context;
    (void)thread;
    for (int64_t v = w->V * task / SPANS; v < w->V * (task + 1) / SPANS; v++) {
        int64_t first = v ? w->index[v - 1] : 0, count = w->index[v] - first;
        if (count == 0 && w->accumulate) continue;
        w->team->kernels->embedding_bwd(w->out + v * w->D, w->in, w->list + first, count, w->groups,
                                        w->D, w->accumulate);
    }
}

/* Counting sort: list holds the rows of token 0, then of token 1, ..., each in rising order; index[v]
 * starts as the place of v's first row and ends as the place after its last. */
void cry_sort_by_token(int32_t *list, int64_t *index, const int32_t *ids, int64_t R, int64_t V)
{
    memset(index, 0, (size_t)(V + 1) * sizeof *index);
    for (int64_t r = 0; r < R; r++)
        if (ids[r] >= 0) index[ids[r] + 1]++;
    for (int64_t v = 0; v < V; v++) index[v + 1] += index[v];
    for (int64_t r = 0; r < R; r++)
        if (ids[r] >= 0) list[index[ids[r]]++] = (int32_t)r;
}

cry_status cry_embedding_bwd(const cry_team *team, float *dw, const float *dx, const int32_t *ids,
                             const int64_t *groups, int64_t R, int64_t D, int64_t V, int accumulate,
                             int32_t *list, int64_t *index)
{
    if (R <= 0 || D <= 0 || V <= 0 || R > INT32_MAX) return CRY_BAD_SHAPE; /* list holds int32 */
    if (!cry_groups_ok(groups, R)) return CRY_BAD_GROUPS;
    if (!ids_ok(ids, R, V)) return CRY_BAD_INDEX;
    cry_sort_by_token(list, index, ids, R, V);
    table_job job = {.team = team, .out = dw, .in = dx, .list = list, .index = index,
                     .groups = groups, .D = D, .V = V, .accumulate = accumulate};
    cry_run(team, SPANS, embedding_bwd_task, &job);
    return CRY_OK;
}

typedef struct optim_job {
    const cry_team *team;
    float *p, *m, *v;
    const float *grad;
    int64_t n;
    const cry_adamw *c;
    const int64_t *spans; /* (count,3) */
    int64_t count;
    float sums[SPANS];
} optim_job;

static void adamw_task(void *context, int64_t task, int thread)
{
    const optim_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    (void)thread;
    w->team->kernels->adamw(w->p + a, w->m + a, w->v + a, w->grad + a, b - a, w->c);
}

cry_status cry_adamw_step(const cry_team *team, float *p, float *m, float *v, const float *grad,
                          int64_t n, const cry_adamw *c)
{
    if (n < 0) return CRY_BAD_SHAPE;
    optim_job job = {.team = team, .p = p, .m = m, .v = v, .grad = grad, .n = n, .c = c};
    cry_run(team, SPANS, adamw_task, &job);
    return CRY_OK;
}

static void spans_task(void *context, int64_t task, int thread)
{
    const optim_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    cry_adamw plain = *w->c;
    plain.decay = 1.0f;
    (void)thread;
    for (const int64_t *s = w->spans; s < w->spans + 3 * w->count && s[0] < b; s += 3) {
        int64_t i = s[0] > a ? s[0] : a, end = cry_smaller(s[1], b);
        if (i < end)
            w->team->kernels->adamw(w->p + i, w->m + i, w->v + i, w->grad + i, end - i,
                                    s[2] ? w->c : &plain);
    }
}

cry_status cry_adamw_spans(const cry_team *team, float *p, float *m, float *v, const float *grad,
                           int64_t n, const int64_t *spans, int64_t count, const cry_adamw *c)
{
    int64_t before = 0;
    if (n < 0 || count < 0) return CRY_BAD_SHAPE;
    for (const int64_t *s = spans; s < spans + 3 * count; before = s[1], s += 3)
        if (s[0] < before || s[1] < s[0] || s[1] > n) return CRY_BAD_SHAPE;
    optim_job job = {.team = team, .p = p, .m = m, .v = v, .grad = grad, .n = n, .c = c,
                     .spans = spans, .count = count};
    cry_run(team, SPANS, spans_task, &job);
    return CRY_OK;
}

static void norm_task(void *context, int64_t task, int thread)
{
    optim_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    (void)thread;
    w->sums[task] = w->team->kernels->squared_norm(w->grad + a, b - a);
}

cry_status cry_squared_norm(const cry_team *team, double *sums, const float *x, int64_t n)
{
    if (n < 0) return CRY_BAD_SHAPE;
    optim_job job = {.team = team, .grad = x, .n = n};
    cry_run(team, SPANS, norm_task, &job);
    memset(sums, 0, (CRY_GROUPS + 1) * sizeof *sums);
    for (int i = 0; i < SPANS; i++) {
        sums[i / CRY_GROUPS] += (double)job.sums[i];
        sums[CRY_GROUPS] += (double)job.sums[i];
    }
    return CRY_OK;
}

static void touch_task(void *context, int64_t task, int thread)
{
    optim_job *w = context;
    int64_t a = w->n * task / SPANS, b = w->n * (task + 1) / SPANS;
    (void)thread;
    for (; a < b; a += 1024) w->p[a] = 0.0f; /* floats of a page */
}

cry_status cry_touch(const cry_team *team, float *x, int64_t n)
{
    if (n < 0) return CRY_BAD_SHAPE;
    optim_job job = {.team = team, .p = x, .n = n};
    cry_run(team, SPANS, touch_task, &job);
    return CRY_OK;
}
