/* Attention over the team: a task is one key/value head of one sequence. */
#include "tasks.h"

#include <string.h>

typedef struct attention_job {
    const cry_team *team;
    const cry_attention *shape;
    const int64_t *lengths;
    float *out, *lse, *dqkv, *keys, *values;
    const float *qkv, *dout, *given_out, *given_lse;
    int64_t rows, position, capacity;
} attention_job;

static int shape_ok(const cry_attention *c)
{
    return c->T > 0 && c->K > 0 && c->H > 0 && c->H % c->K == 0 && c->head_dim > 0;
}

/* Scratch of one thread: see the layouts in attention.h. */
enum { SCORES = 48 * 64 };

int64_t cry_need_attention(const cry_attention *c, int backward)
{
    int64_t tp = cry_ceil(c->T, 64) * 64, wide = cry_ceil(c->head_dim, 32) * 32;
    if (!backward) return cry_round64(c->head_dim * tp + c->T * wide + SCORES);
    return cry_round64(2 * c->head_dim * tp + 3 * c->T * wide + cry_round64(c->T) + 2 * SCORES);
}

static int lengths_ok(const int64_t *lengths, int64_t B, int64_t T)
{
    for (int64_t b = 0; lengths && b < B; b++)
        if (lengths[b] < 0 || lengths[b] > T) return 0;
    return 1;
}

/* The shape of sequence b: its own length for T. */
static cry_attention shape_of(const attention_job *w, int64_t b)
{
    cry_attention c = *w->shape;
    if (w->lengths) c.T = w->lengths[b];
    return c;
}

/* Columns at .. at + width of rows first .. end become zero. */
static void clear(float *x, int64_t ld, int64_t at, int64_t width, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) memset(x + r * ld + at, 0, (size_t)width * sizeof *x);
}

static void attention_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t b = task / w->shape->K, head = task % w->shape->K, T = w->shape->T;
    cry_attention c = shape_of(w, b);
    int64_t ld = (c.H + 2 * c.K) * c.head_dim, ldo = c.H * c.head_dim, group = ldo / c.K;
    float *out = w->out + b * T * ldo;
    w->team->kernels->attention(out, w->lse + b * c.H * T, w->qkv + b * T * ld, &c, head,
                                w->team->scratch + thread * w->team->scratch_len);
    clear(out, ldo, head * group, group, c.T, T);
}

cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv, int64_t B,
                             const cry_attention *shape, const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 0)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .out = out, .lse = lse,
                         .qkv = qkv};
    cry_run(team, B * shape->K, attention_task, &job);
    return CRY_OK;
}

static void attention_bwd_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t b = task / w->shape->K, head = task % w->shape->K, T = w->shape->T;
    cry_attention c = shape_of(w, b);
    int64_t ld = (c.H + 2 * c.K) * c.head_dim, ldo = c.H * c.head_dim, group = ldo / c.K;
    float *dqkv = w->dqkv + b * T * ld;
    w->team->kernels->attention_bwd(dqkv, w->dout + b * T * ldo, w->given_out + b * T * ldo,
                                    w->qkv + b * T * ld, w->given_lse + b * c.H * T, &c, head,
                                    w->team->scratch + thread * w->team->scratch_len);
    clear(dqkv, ld, head * group, group, c.T, T);
    clear(dqkv, ld, (c.H + head) * c.head_dim, c.head_dim, c.T, T);
    clear(dqkv, ld, (c.H + c.K + head) * c.head_dim, c.head_dim, c.T, T);
}

cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout, const float *out,
                             const float *qkv, const float *lse, int64_t B, const cry_attention *shape,
                             const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 1)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .dqkv = dqkv, .dout = dout,
                         .given_out = out, .qkv = qkv, .given_lse = lse};
    cry_run(team, B * shape->K, attention_bwd_task, &job);
    return CRY_OK;
}

static void cached_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    w->team->kernels->attention_cached(w->out, w->qkv, w->keys, w->values, w->shape, task, w->rows,
                                       w->position, w->capacity,
                                       w->team->scratch + thread * w->team->scratch_len);
}

cry_status cry_attention_with_cache(const cry_team *team, float *out, const float *qkv, float *keys,
                                    float *values, const cry_attention *shape, int64_t rows,
                                    int64_t position, int64_t capacity)
{
    if (!shape_ok(shape) || rows < 0 || position < 0 || capacity % 64 || rows > capacity ||
        position > capacity - rows)
        return CRY_BAD_SHAPE;
    if (team->scratch_len < SCORES) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .out = out, .qkv = qkv, .keys = keys, .values = values,
                         .shape = shape, .rows = rows, .position = position, .capacity = capacity};
    cry_run(team, shape->K, cached_task, &job);
    return CRY_OK;
}
