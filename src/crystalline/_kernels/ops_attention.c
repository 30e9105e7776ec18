/* Attention over the team, cut by output.
 *
 * Forward a unit of work is two chunks of queries of one key/value head: the first and the last, the
 * second and the last but one, and so on, which makes units equal although late queries see more
 * keys.
 *
 * Backward, chunk j of keys and chunk i >= j of queries give each other their parts; dk and dv want i
 * rising, dq wants j rising.  A unit is a whole head, or, where that would be too few, one pair of
 * chunks: the pairs of equal i + j have no output in common, so they make a region of their own, and
 * the regions come with rising i + j.  Both give the same bits.
 *
 * Where all sequences have T rows a task is a unit.  Windows have any number of rows each, so a task
 * is as many of their units as make an even share of the work. */
#include "tasks.h"

#include <string.h>

typedef struct attention_job attention_job;
struct attention_job {
    const cry_team *team;
    const cry_attention *shape;
    const int64_t *starts, *lengths; /* without starts every sequence has T rows */
    float *out, *lse, *dqkv, *keys, *values;
    const float *qkv, *dout, *given_out, *given_lse;
    int64_t rows, position, capacity;
    int64_t sequences, longest, alike; /* alike: so many of the longest would be as much work */
    int64_t chunk;                     /* queries, forward */
    int64_t i_and_j;                   /* backward by pairs, fixed in a region; otherwise -1 */
    int64_t (*units)(const attention_job *w, int64_t n); /* of a sequence of n rows */
    void (*unit)(const attention_job *w, int64_t b, int64_t unit, int thread);
    int64_t each, tasks;               /* units of every sequence; shares of windows' work */
    int64_t *places;                   /* the work before each window, and all of it */
};

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

static int windows_ok(const int64_t *starts, const int64_t *lengths, int64_t W, int64_t R)
{
    if (W < 0 || starts[0] != 0 || starts[W] != R) return 0;
    for (int64_t b = 0; b < W; b++)
        if (starts[b] > starts[b + 1] || !lengths_ok(lengths ? lengths + b : 0, 1,
                                                     starts[b + 1] - starts[b]))
            return 0;
    return 1;
}

/* Where a sequence begins, the rows of it that count, and all of its rows; it is cut as if it had
 * `cut` of them. */
typedef struct sequence {
    int64_t first, used, rows, cut;
} sequence;

static sequence sequence_at(const attention_job *w, int64_t b)
{
    int64_t T = w->shape->T, first = w->starts ? w->starts[b] : b * T;
    int64_t rows = w->starts ? w->starts[b + 1] - first : T;
    int64_t used = w->lengths ? w->lengths[b] : rows;
    return (sequence){first, used, rows, w->starts ? used : T};
}

static int64_t chunks_of(int64_t n, int64_t chunk) { return n > chunk ? cry_ceil(n, chunk) : 1; }

/* The end of a chunk that begins at `first`: the last one has all that is left. */
static int64_t chunk_end(const sequence *s, int64_t first, int64_t chunk)
{
    return first + chunk < s->cut ? first + chunk : s->rows;
}

/* Columns at .. at + width of rows first .. end become zero. */
static void clear(float *x, int64_t ld, int64_t at, int64_t width, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) memset(x + r * ld + at, 0, (size_t)width * sizeof *x);
}

/* Queries of one chunk; those beyond the length become zero. */
static void forward_chunk(const attention_job *w, const sequence *s, int64_t head, int64_t chunk,
                          int thread)
{
    cry_attention c = *w->shape;
    c.T = s->used;
    int64_t first = chunk * w->chunk, end = chunk_end(s, first, w->chunk);
    int64_t seen = cry_smaller(end, c.T), ldo = c.H * c.head_dim, group = ldo / c.K;
    float *out = w->out + s->first * ldo;
    if (first < seen)
        w->team->kernels->attention(out, w->lse + s->first * c.H,
                                    w->qkv + s->first * (c.H + 2 * c.K) * c.head_dim, &c, head,
                                    first, seen,
                                    w->team->scratch + thread * w->team->scratch_len);
    clear(out, ldo, head * group, group, first < seen ? seen : first, end);
}

static int64_t forward_pairs(const attention_job *w, int64_t n)
{
    return cry_ceil(chunks_of(n, w->chunk), 2);
}

static int64_t forward_units(const attention_job *w, int64_t n)
{
    return w->shape->K * forward_pairs(w, n);
}

static void forward_unit(const attention_job *w, int64_t b, int64_t unit, int thread)
{
    sequence s = sequence_at(w, b);
    int64_t pairs = forward_pairs(w, s.cut), early = unit % pairs, head = unit / pairs;
    int64_t late = chunks_of(s.cut, w->chunk) - 1 - early;
    forward_chunk(w, &s, head, late, thread);
    if (early != late) forward_chunk(w, &s, head, early, thread);
}

/* Queries q .. q_end and keys k .. k_end.  Who has the first keys, or the keys' own queries, also
 * clears what is padding among them. */
static void backward_part(const attention_job *w, const sequence *s, int64_t head, int64_t q,
                          int64_t q_end, int64_t k, int64_t k_end, int thread)
{
    cry_attention c = *w->shape;
    c.T = s->used;
    int64_t ld = (c.H + 2 * c.K) * c.head_dim, ldo = c.H * c.head_dim, group = ldo / c.K;
    int64_t q_seen = cry_smaller(q_end, c.T), k_seen = cry_smaller(k_end, c.T);
    float *dqkv = w->dqkv + s->first * ld;
    if (q < q_seen)
        w->team->kernels->attention_bwd(dqkv, w->dout + s->first * ldo,
                                        w->given_out + s->first * ldo, w->qkv + s->first * ld,
                                        w->given_lse + s->first * c.H, &c, head, q, q_seen, k,
                                        k_seen, w->team->scratch + thread * w->team->scratch_len);
    if (k == 0) clear(dqkv, ld, head * group, group, q < q_seen ? q_seen : q, q_end);
    if (k != q) return;
    clear(dqkv, ld, (c.H + head) * c.head_dim, c.head_dim, k < k_seen ? k_seen : k, k_end);
    clear(dqkv, ld, (c.H + c.K + head) * c.head_dim, c.head_dim, k < k_seen ? k_seen : k, k_end);
}

static int64_t backward_heads(const attention_job *w, int64_t n)
{
    (void)n;
    return w->shape->K;
}

static void backward_head(const attention_job *w, int64_t b, int64_t unit, int thread)
{
    sequence s = sequence_at(w, b);
    int64_t k = 0;
    do {
        backward_part(w, &s, unit, k, s.rows, k, chunk_end(&s, k, MOST_KEYS), thread);
        k += MOST_KEYS;
    } while (k < s.cut);
}

/* Of the pairs with the region's i + j, the first j, and how many there are. */
static int64_t first_pair(const attention_job *w, int64_t n)
{
    int64_t chunks = chunks_of(n, CHUNK);
    return w->i_and_j < chunks ? 0 : w->i_and_j - chunks + 1;
}

static int64_t backward_pairs(const attention_job *w, int64_t n)
{
    int64_t pairs = w->i_and_j / 2 - first_pair(w, n) + 1;
    return pairs > 0 ? w->shape->K * pairs : 0;
}

static void backward_pair(const attention_job *w, int64_t b, int64_t unit, int thread)
{
    sequence s = sequence_at(w, b);
    int64_t j = first_pair(w, s.cut) + unit / w->shape->K;
    int64_t q = (w->i_and_j - j) * CHUNK, k = j * CHUNK;
    backward_part(w, &s, unit % w->shape->K, q, chunk_end(&s, q, CHUNK), k,
                  chunk_end(&s, k, CHUNK), thread);
}

/* --- Units to tasks. */

/* The work of a sequence of n rows, as measured: two thirds of it are rows' at 64, a quarter at 512.
 * A task of 16384 takes some microseconds. */
enum { WORK_OF_ROW = 160, WORK_OF_ANY = 512, LEAST_WORK = 16384 };
static int64_t work_of(int64_t n) { return n * (n + WORK_OF_ROW) + WORK_OF_ANY; }

/* Of it that of the region at hand. */
static int64_t work_now(const attention_job *w, int64_t n)
{
    int64_t chunks = chunks_of(n, CHUNK), pairs = chunks * (chunks + 1) / 2;
    if (w->i_and_j < 0) return work_of(n);
    return cry_ceil(work_of(n) * backward_pairs(w, n), w->shape->K * pairs);
}

static void even_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    w->unit(w, task / w->each, task % w->each, thread);
}

/* Share `task` of the work of all windows: the units that begin in it. */
static void window_task(void *context, int64_t task, int thread)
{
    const attention_job *w = context;
    int64_t all = w->places[w->sequences], b = 0, beyond = w->sequences;
    int64_t from = cry_ceil(all * task, w->tasks), to = cry_ceil(all * (task + 1), w->tasks);
    while (beyond - b > 1) {
        int64_t middle = (b + beyond) / 2;
        if (w->places[middle] <= from) b = middle;
        else beyond = middle;
    }
    for (; b < w->sequences && w->places[b] < to; b++) {
        int64_t at = w->places[b], work = w->places[b + 1] - at;
        if (work == 0) continue;
        int64_t units = w->units(w, sequence_at(w, b).used);
        for (int64_t u = from > at ? cry_ceil((from - at) * units, work) : 0;
             u < units && at + work * u / units < to; u++)
            w->unit(w, b, u, thread);
    }
}

static void run_units(attention_job *w)
{
    if (!w->starts) {
        w->each = w->units(w, w->shape->T);
        cry_run(w->team, w->sequences * w->each, even_task, w);
        return;
    }
    int64_t all = 0, units = 0;
    for (int64_t b = 0; b < w->sequences; b++) {
        int64_t n = sequence_at(w, b).used;
        w->places[b] = all;
        all += work_now(w, n);
        units += w->units(w, n);
    }
    w->places[w->sequences] = all;
    w->tasks = cry_smaller(units, cry_ceil(all * w->shape->K, LEAST_WORK));
    cry_run(w->team, w->tasks, window_task, w);
}

static void run_forward(attention_job *w)
{
    int64_t heads = w->alike * w->shape->K, share = w->shape->H / w->shape->K;
    int64_t enough = TASKS_PER_THREAD * w->team->threads;
    w->chunk = STATES * BLOCK;
    while (w->chunk > BLOCK && (w->chunk * share > STATES * BLOCK ||
                                heads * cry_ceil(w->longest, 2 * w->chunk) < enough))
        w->chunk /= 2;
    w->i_and_j = -1;
    w->units = forward_units;
    w->unit = forward_unit;
    run_units(w);
}

static void run_backward(attention_job *w)
{
    int64_t chunks = chunks_of(w->longest, CHUNK);
    if (chunks == 1 || w->alike * w->shape->K >= TASKS_PER_THREAD * w->team->threads) {
        w->i_and_j = -1;
        w->units = backward_heads;
        w->unit = backward_head;
        run_units(w);
        return;
    }
    w->units = backward_pairs;
    w->unit = backward_pair;
    for (w->i_and_j = 0; w->i_and_j < 2 * chunks - 1; w->i_and_j++) run_units(w);
}

cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv, int64_t B,
                             const cry_attention *shape, const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 0)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .out = out, .lse = lse,
                         .qkv = qkv, .sequences = B, .longest = shape->T, .alike = B};
    run_forward(&job);
    return CRY_OK;
}

cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout, const float *out,
                             const float *qkv, const float *lse, int64_t B, const cry_attention *shape,
                             const int64_t *lengths)
{
    if (B < 0 || !shape_ok(shape) || !lengths_ok(lengths, B, shape->T)) return CRY_BAD_SHAPE;
    if (team->scratch_len < cry_need_attention(shape, 1)) return CRY_NO_SCRATCH;
    attention_job job = {.team = team, .shape = shape, .lengths = lengths, .dqkv = dqkv, .dout = dout,
                         .given_out = out, .qkv = qkv, .given_lse = lse, .sequences = B,
                         .longest = shape->T, .alike = B};
    run_backward(&job);
    return CRY_OK;
}

/* --- Windows. */

int64_t cry_need_windows(int64_t W) { return 2 * (W + 1); }

/* Checks what both directions are given, and measures the windows. */
static cry_status take_windows(attention_job *w, int64_t R, int backward)
{
    if (!shape_ok(w->shape) || R < 0 || !windows_ok(w->starts, w->lengths, w->sequences, R))
        return CRY_BAD_SHAPE;
    if (w->team->scratch_len < cry_need_attention(w->shape, backward) ||
        w->team->shared_len < cry_need_windows(w->sequences))
        return CRY_NO_SCRATCH;
    int64_t all = 0;
    for (int64_t b = 0; b < w->sequences; b++) {
        int64_t n = sequence_at(w, b).used;
        all += work_of(n);
        if (n > w->longest) w->longest = n;
    }
    w->alike = cry_ceil(all, work_of(w->longest));
    w->places = (int64_t *)(void *)w->team->shared;
    return CRY_OK;
}

cry_status cry_attention_windows(const cry_team *team, float *out, float *lse, const float *qkv,
                                 int64_t R, const cry_attention *shape, const int64_t *starts,
                                 const int64_t *lengths, int64_t W)
{
    attention_job job = {.team = team, .shape = shape, .starts = starts, .lengths = lengths,
                         .out = out, .lse = lse, .qkv = qkv, .sequences = W};
    cry_status status = take_windows(&job, R, 0);
    if (status == CRY_OK) run_forward(&job);
    return status;
}

cry_status cry_attention_windows_bwd(const cry_team *team, float *dqkv, const float *dout,
                                     const float *out, const float *qkv, const float *lse, int64_t R,
                                     const cry_attention *shape, const int64_t *starts,
                                     const int64_t *lengths, int64_t W)
{
    attention_job job = {.team = team, .shape = shape, .starts = starts, .lengths = lengths,
                         .dqkv = dqkv, .dout = dout, .given_out = out, .qkv = qkv,
                         .given_lse = lse, .sequences = W};
    cry_status status = take_windows(&job, R, 1);
    if (status == CRY_OK) run_backward(&job);
    return status;
}

/* --- With a cache. */

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
