/* Work on some rows of a table (V, D), named by a rising list: the optimizer where a step touches few
 * of them. */
#include "tasks.h"

#include <string.h>

enum { SPANS = CRY_GROUPS * CRY_GROUPS };

typedef struct sparse_job {
    const cry_kernels *kernels;
    float *p, *m, *v;
    const float *grad, *past;
    const int32_t *rows;
    int32_t *last;
    int64_t n, D, steps;
    const cry_adamw *c;
    double sums[SPANS];
} sparse_job;

int cry_rises(const int32_t *rows, int64_t n, int64_t V)
{
    for (int64_t i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= V || (i && rows[i] <= rows[i - 1])) return 0;
    return 1;
}

static void adamw_rows_task(void *context, int64_t task, int thread)
{
    const sparse_job *w = context;
    (void)thread;
    for (int64_t i = w->n * task / SPANS; i < w->n * (task + 1) / SPANS; i++) {
        int64_t at = w->rows[i] * w->D;
        w->kernels->adamw(w->p + at, w->m + at, w->v + at, w->grad + at, w->D, w->c);
    }
}

cry_status cry_adamw_rows(const cry_team *team, float *p, float *m, float *v, const float *grad,
                          const int32_t *rows, int64_t n, int64_t V, int64_t D, const cry_adamw *c)
{
    if (n < 0 || D <= 0 || V <= 0) return CRY_BAD_SHAPE;
    if (!cry_rises(rows, n, V)) return CRY_BAD_LIST;
    sparse_job job = {.kernels = team->kernels, .p = p, .m = m, .v = v, .grad = grad, .rows = rows,
                      .n = n, .D = D, .c = c};
    cry_run(team, SPANS, adamw_rows_task, &job);
    return CRY_OK;
}

static void norm_rows_task(void *context, int64_t task, int thread)
{
    sparse_job *w = context;
    double sum = 0.0;
    (void)thread;
    for (int64_t i = w->n * task / SPANS; i < w->n * (task + 1) / SPANS; i++)
        sum += (double)w->kernels->squared_norm(w->grad + w->rows[i] * w->D, w->D);
    w->sums[task] = sum;
}

cry_status cry_squared_norm_rows(const cry_team *team, double *sums, const float *x,
                                 const int32_t *rows, int64_t n, int64_t V, int64_t D)
{
    if (n < 0 || D <= 0 || V <= 0) return CRY_BAD_SHAPE;
    if (!cry_rises(rows, n, V)) return CRY_BAD_LIST;
    sparse_job job = {.kernels = team->kernels, .grad = x, .rows = rows, .n = n, .D = D};
    cry_run(team, SPANS, norm_rows_task, &job);
    memset(sums, 0, (CRY_GROUPS + 1) * sizeof *sums);
    for (int i = 0; i < SPANS; i++) {
        sums[i / CRY_GROUPS] += job.sums[i];
        sums[CRY_GROUPS] += job.sums[i];
    }
    return CRY_OK;
}

static void rest_rows_task(void *context, int64_t task, int thread)
{
    const sparse_job *w = context;
    (void)thread;
    for (int64_t i = w->n * task / SPANS; i < w->n * (task + 1) / SPANS; i++) {
        int32_t *last = w->last + w->rows[i];
        int64_t at = w->rows[i] * w->D;
        if (*last < w->steps)
            w->kernels->adamw_rest(w->p + at, w->m + at, w->v + at, w->past + 3 * (int64_t)*last,
                                   w->steps - *last, w->D, w->c);
        *last = (int32_t)w->steps;
    }
}

cry_status cry_adamw_rest_rows(const cry_team *team, float *p, float *m, float *v, int32_t *last,
                               const float *past, const int32_t *rows, int64_t n, int64_t V,
                               int64_t D, int64_t steps, const cry_adamw *c)
{
    if (n < 0 || D <= 0 || V <= 0 || steps < 0 || steps > INT32_MAX) return CRY_BAD_SHAPE;
    if (!cry_rises(rows, n, V)) return CRY_BAD_LIST;
    for (int64_t i = 0; i < n; i++)
        if (last[rows[i]] < 0 || last[rows[i]] > steps) return CRY_BAD_LIST;
    sparse_job job = {.kernels = team->kernels, .p = p, .m = m, .v = v, .last = last, .past = past,
                      .rows = rows, .n = n, .D = D, .steps = steps, .c = c};
    cry_run(team, SPANS, rest_rows_task, &job);
    return CRY_OK;
}
