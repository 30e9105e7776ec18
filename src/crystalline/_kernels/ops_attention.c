/* Attention over the team, cut by output.
 *
 * Forward a task is two chunks of queries of one key/value head: the first and the last, the second
 * and the last but one, and so on, which makes tasks equal although late queries see more keys.
 *
 * Backward, chunk j of keys and chunk i >= j of queries give each other their parts; dk and dv want i
 * rising, dq wants j rising.  A task is a whole head, or, where that would be too few tasks, one
 * pair of chunks: the pairs of equal i + j have no output in common, so they make a region of their
 * own, and the regions come with rising i + j.  Both give the same bits. */
#include "tasks.h"

#include <string.h>

typedef struct attention_job {
    const cry_team *team;
    const cry_attention *shape;
    const int64_t *lengths;
    float *out, *lse, *dqkv, *keys, *values;
    const float *qkv, *dout, *given_out, *given_lse;
    int64_t rows, position, capacity;
    int64_t chunk;                       /* queries, forward */
    int64_t sequences, i_and_j, first_j; /* backward by pairs: what is fixed in a region */
} attention_job;

static int shape_ok(const cry_attention *c)
{
    return c->T > 0 && c->K > 0 && c->H > 0 && c->H % c->K == 0 && c->head_dim > 0;
}

enum { BLOCK = 64, CHUNK = 256, STATES = 4, MOST_KEYS = 512, TASKS_PER_THREAD = 4 };

/* Scratch of one thread: see attend and attention_bwd in attention.h.  It does not grow with T. */
int64_t cry_need_attention(const cry_attention *c, int backward)
{
    if (c->K <= 0) return 0; /* the functions refuse it; its need may be asked before */
    int64_t block = BLOCK * 16 * cry_ceil(c->head_dim, 16), scores = BLOCK * BLOCK;
    int64_t share = c->H / c->K, states = share > STATES ? share : STATES;
    if (!backward) return 2 * block + scores + states * (2 * block + 2 * BLOCK);
    return (4 * MOST_KEYS + 5 * CHUNK) / BLOCK * block + 2 * CHUNK + 2 * scores;
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

/* Queries of one chunk; those beyond the length become zero. */
static void forward_chunk(const attention_job *w, int64_t b, int64_t head, int64_t chunk,
                          int thread)
{
    int64_t T = w->shape->T;
    cry_attention c = shape_of(w, b);
    int64_t first = chunk * w->chunk, end = cry_smaller(T, first + w->chunk);
    int64_t seen = cry_smaller(end, c.T), ldo = c.H * c.head_dim, group = ldo / c.K;
    float *out = w->out + b * T * ldo;
    if (first < seen)
        w->team->kernels->attention(out, w->lse + b * c.H * T,
                                    w->qkv + b * T * (c.H + 2 * c.K) * c.head_dim, &c, head, first,
                                    seen, w->team->scratch + thread * w->team->scratch_len);
    clear(out, ldo, head * group, group, first < seen ? seen : first, end);
}

static void attention_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t heads = w->shape->K, chunks = cry_ceil(w->shape->T, w->chunk);
    int64_t pairs = cry_ceil(chunks, 2), early = task % pairs, late = chunks - 1 - early;
    int64_t head = task / pairs % heads, b = task / pairs / heads;
    forward_chunk(w, b, head, late, thread);
    if (early != late) forward_chunk(w, b, head, early, thread);
}

cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv, int64_t B,
                             const cry_attention *shape, const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 0)) return CRY_NO_SCRATCH;
    int64_t heads = B * shape->K, share = shape->H / shape->K, chunk = STATES * BLOCK;
    int64_t enough = TASKS_PER_THREAD * team->threads;
    while (chunk > BLOCK && (chunk * share > STATES * BLOCK ||
                             heads * cry_ceil(shape->T, 2 * chunk) < enough))
        chunk /= 2;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .out = out, .lse = lse,
                         .qkv = qkv, .chunk = chunk};
    cry_run(team, heads * cry_ceil(cry_ceil(shape->T, chunk), 2), attention_task, &job);
    return CRY_OK;
}

/* Queries q .. q_end and keys k .. k_end.  Who has the first keys, or the keys' own queries, also
 * clears what is padding among them. */
static void backward_part(const attention_job *w, int64_t b, int64_t head, int64_t q, int64_t q_end,
                          int64_t k, int64_t k_end, int thread)
{
    int64_t T = w->shape->T;
    cry_attention c = shape_of(w, b);
    int64_t ld = (c.H + 2 * c.K) * c.head_dim, ldo = c.H * c.head_dim, group = ldo / c.K;
    int64_t q_seen = cry_smaller(q_end, c.T), k_seen = cry_smaller(k_end, c.T);
    float *dqkv = w->dqkv + b * T * ld;
    if (q < q_seen)
        w->team->kernels->attention_bwd(dqkv, w->dout + b * T * ldo, w->given_out + b * T * ldo,
                                        w->qkv + b * T * ld, w->given_lse + b * c.H * T, &c, head,
                                        q, q_seen, k, k_seen,
                                        w->team->scratch + thread * w->team->scratch_len);
    if (k == 0) clear(dqkv, ld, head * group, group, q < q_seen ? q_seen : q, q_end);
    if (k != q) return;
    clear(dqkv, ld, (c.H + head) * c.head_dim, c.head_dim, k < k_seen ? k_seen : k, k_end);
    clear(dqkv, ld, (c.H + c.K + head) * c.head_dim, c.head_dim, k < k_seen ? k_seen : k, k_end);
}

static void backward_head_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t heads = w->shape->K, T = w->shape->T;
    for (int64_t k = 0; k < T; k += MOST_KEYS)
        backward_part(w, task / heads, task % heads, k, T, k, cry_smaller(T, k + MOST_KEYS),
                      thread);
}

static void backward_pair_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t heads = w->shape->K, all = heads * w->sequences, j = w->first_j + task / all;
    int64_t q = (w->i_and_j - j) * CHUNK, k = j * CHUNK, T = w->shape->T;
    backward_part(w, task % all / heads, task % heads, q, cry_smaller(T, q + CHUNK), k,
                  cry_smaller(T, k + CHUNK), thread);
}

cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout, const float *out,
                             const float *qkv, const float *lse, int64_t B, const cry_attention *shape,
                             const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 1)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .dqkv = dqkv, .dout = dout,
                         .given_out = out, .qkv = qkv, .given_lse = lse, .sequences = B};
    int64_t heads = B * shape->K, chunks = cry_ceil(shape->T, CHUNK);
    if (chunks == 1 || heads >= TASKS_PER_THREAD * team->threads) {
        cry_run(team, heads, backward_head_task, &job);
        return CRY_OK;
    }
    for (int64_t both = 0; both < 2 * chunks - 1; both++) {
        job.i_and_j = both;
        job.first_j = both < chunks ? 0 : both - chunks + 1;
        cry_run(team, heads * (both / 2 - job.first_j + 1), backward_pair_task, &job);
    }
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
    if (team->scratch_len < cry_need_attention(shape, 0)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .out = out, .qkv = qkv, .keys = keys, .values = values,
                         .shape = shape, .rows = rows, .position = position, .capacity = capacity};
    cry_run(team, shape->K, cached_task, &job);
    return CRY_OK;
}
