/* Cross-entropy of a row of logits z with target t.  m = max z,  S = sum exp(z - m)
 *   loss = log S + m - z_t;   dz = scale (exp(z - m) / S - [j = t])
 * The maximum is exact, the sum runs in 16 lanes.  A row without a target (-1) has no loss, and its
 * gradient is zero. */
#ifndef CRY_SOFTMAX_H
#define CRY_SOFTMAX_H

#include "mathfun.h"

CRY_INLINE void row_scale(float *y, int64_t V, float factor)
{
    v16 f = v16_set(factor);
    for (int64_t j = 0; j < V; j += 16) v16_put(y + j, v16_mul(v16_get(y + j, V - j), f), V - j);
}

/* losses(rows); logits(rows,V) become their gradient when it is asked for, else are spoilt. */
static void cross_entropy(float *losses, float *logits, const int32_t *targets, int64_t rows,
                          int64_t V, float scale, int gradient)
{
    for (int64_t i = 0; i < rows; i++) {
        float *z = logits + i * V;
        if (targets[i] < 0) {
            losses[i] = 0.0f;
            memset(z, 0, (size_t)V * sizeof(float));
            continue;
        }
        float zt = z[targets[i]];
        v16 top = v16_set(-INFINITY), s = v16_zero();
        for (int64_t j = 0; j < V; j += 16) top = v16_max(v16_get_or(z + j, V - j, -INFINITY), top);
        float m = v16_maxall(top);
        for (int64_t j = 0; j < V; j += 16) {
            v16 e = v16_exp(v16_sub(v16_get_or(z + j, V - j, -INFINITY), v16_set(m)));
            s = v16_add(s, e);
            v16_put(z + j, e, V - j);
        }
        float sum = v16_sum(s), log_sum[16];
        v16_store(log_sum, v16_log(v16_set(sum)));
        losses[i] = (log_sum[0] + m) - zt;
        if (!gradient) continue;
        float factor = scale / sum, at_target = z[targets[i]] * factor - scale;
        row_scale(z, V, factor);
        z[targets[i]] = at_target;
    }
}

/* The family over rows x(rows,V), V >= 1.  m = max x,  S = sum exp(x - m)
 *   softmax      y = exp(x - m) / S                  dx = y (dy - sum y dy)
 *   log_softmax  y = (x - m) - log S                 dx = dy - exp(y) sum dy
 *   logsumexp    y = m + log S                       dx = softmax(x) dy
 * A row is read from memory once: the passes after the first find it in the cache, and fetch the
 * next row while they compute.  Sums run in 16 lanes. */

enum { FETCH_MOST = 1 << 16 }; /* floats of a row that is fetched ahead: more would not stay */

static float row_max(const float *x, int64_t V)
{
    v16 a = v16_set(-INFINITY), b = a, c = a, d = a;
    int64_t j = 0;
    for (; j + 64 <= V; j += 64) {
        a = v16_max(v16_load(x + j), a);
        b = v16_max(v16_load(x + j + 16), b);
        c = v16_max(v16_load(x + j + 32), c);
        d = v16_max(v16_load(x + j + 48), d);
    }
    for (; j < V; j += 16) a = v16_max(v16_get_or(x + j, V - j, -INFINITY), a);
    return v16_maxall(v16_max(v16_max(a, b), v16_max(c, d)));
}

/* The sum of exp(x - m), kept in e(V) if there is one; e may be x. */
static float row_exp_sum(float *e, const float *x, int64_t V, float m, int ahead)
{
    v16 s = v16_zero(), mv = v16_set(m);
    for (int64_t j = 0; j < V; j += 16) {
        v16 v = v16_exp(v16_sub(v16_get_or(x + j, V - j, -INFINITY), mv));
        fetch_ahead(x + j, V, ahead);
        s = v16_add(s, v);
        if (e) v16_put(e + j, v, V - j);
    }
    return v16_sum(s);
}

/* y(V) = e(V) factor, around the caches: whole lines, and what is left at the ends as usual. */
static void row_scale_stream(float *y, const float *e, int64_t V, float factor)
{
    v16 f = v16_set(factor);
    int64_t j = v16_stream_head(y, V);
    if (j) v16_store_n(y, v16_mul(v16_load_n(e, j, 0.0f), f), j);
    for (; j + 16 <= V; j += 16) v16_stream(y + j, v16_mul(v16_load(e + j), f));
    if (j < V) v16_store_n(y + j, v16_mul(v16_load_n(e + j, V - j, 0.0f), f), V - j);
    v16_stream_end();
}

/* Softmax around the caches has three rows at work, so that memory is read and written evenly while
 * exp keeps the processor busy: exp of row x; the maximum of the row after it; and the row before it,
 * whose exp waits in e(V), on its way to y(V). */
typedef struct soft_flow {
    const float *x;
    float *y, *e;          /* y: NULL at the first row */
    int64_t V, head, left; /* head: floats of y before a line; left: floats of x behind this row */
    v16 max, sum, next_max, factor;
} soft_flow;

enum { FLOW_FETCH = 4096 }; /* floats that the reading of the next row is fetched ahead */

/* Columns j .. j + 16 of x; `whole` where they, and as many behind them, are inside the row.  What goes
 * from e to y lies at j or behind: this row has not come there yet. */
CRY_INLINE void soft_flow_step(soft_flow *f, int64_t j, const int whole)
{
    int64_t n = whole ? 16 : f->V - j, at = j + f->head, rest = whole ? 16 : f->V - at;
    const float *next = f->x + f->V + j;
    v16 v = v16_exp(v16_sub(v16_get_or(f->x + j, n, -INFINITY), f->max));
    f->sum = v16_add(f->sum, v);
    if (f->left) f->next_max = v16_max(v16_get_or(next, n, -INFINITY), f->next_max);
    fetch_ahead(next, FLOW_FETCH, j + FLOW_FETCH < f->left);
    if (f->y && rest >= 16) v16_stream(f->y + at, v16_mul(v16_load(f->e + at), f->factor));
    else if (f->y && rest > 0)
        v16_store_n(f->y + at, v16_mul(v16_load_n(f->e + at, rest, 0.0f), f->factor), rest);
    v16_put(f->e + j, v, n);
}

static void softmax_far(float *y, const float *x, int64_t rows, int64_t V, float *e)
{
    soft_flow f = {.e = e, .V = V};
    float max = row_max(x, V), factor = 0.0f;
    for (int64_t i = 0; i < rows; i++, x += V, y += V) {
        f.x = x, f.left = (rows - 1 - i) * V;
        f.y = i ? y - V : 0;
        f.head = i ? v16_stream_head(f.y, V) : 0;
        f.max = v16_set(max), f.factor = v16_set(factor);
        f.sum = v16_zero(), f.next_max = v16_set(-INFINITY);
        if (f.head) v16_put(f.y, v16_mul(v16_get(e, f.head), f.factor), f.head);
        int64_t j = 0;
        for (; j + 32 <= V; j += 16) soft_flow_step(&f, j, 1);
        for (; j < V; j += 16) soft_flow_step(&f, j, 0);
        max = v16_maxall(f.next_max);
        factor = 1.0f / v16_sum(f.sum);
    }
    row_scale_stream(y - V, e, V, factor);
}

/* y(rows,V), which may be x.  With scratch(V) y, then not x, is written around the caches: for an
 * output larger than they are. */
static void softmax(float *y, const float *x, int64_t rows, int64_t V, float *scratch)
{
    if (scratch && rows > 0) {
        softmax_far(y, x, rows, V, scratch);
        return;
    }
    for (int64_t i = 0; i < rows; i++, x += V, y += V) {
        float m = row_max(x, V);
        row_scale(y, V, 1.0f / row_exp_sum(y, x, V, m, V <= FETCH_MOST && i + 1 < rows));
    }
}

/* dx(rows,V), which may be dy or y. */
static void softmax_bwd(float *dx, const float *dy, const float *y, int64_t rows, int64_t V)
{
    for (int64_t i = 0; i < rows; i++, dx += V, dy += V, y += V) {
        v16 s = v16_zero();
        for (int64_t j = 0; j < V; j += 16)
            s = v16_fma(v16_get(y + j, V - j), v16_get(dy + j, V - j), s);
        v16 dot = v16_set(v16_sum(s));
        for (int64_t j = 0; j < V; j += 16) {
            int64_t n = V - j;
            v16_put(dx + j, v16_mul(v16_get(y + j, n), v16_sub(v16_get(dy + j, n), dot)), n);
        }
    }
}

CRY_INLINE float log_of(float x)
{
    float t[16];
    v16_store(t, v16_log(v16_set(x)));
    return t[0];
}

/* y(rows,V), which may be x. */
static void log_softmax(float *y, const float *x, int64_t rows, int64_t V)
{
    for (int64_t i = 0; i < rows; i++, x += V, y += V) {
        float m = row_max(x, V);
        float log_sum = log_of(row_exp_sum(0, x, V, m, V <= FETCH_MOST && i + 1 < rows));
        v16 mv = v16_set(m), lv = v16_set(log_sum);
        for (int64_t j = 0; j < V; j += 16)
            v16_put(y + j, v16_sub(v16_sub(v16_get(x + j, V - j), mv), lv), V - j);
    }
}

/* dx(rows,V), which may be dy or y. */
static void log_softmax_bwd(float *dx, const float *dy, const float *y, int64_t rows, int64_t V)
{
    for (int64_t i = 0; i < rows; i++, dx += V, dy += V, y += V) {
        v16 s = v16_zero();
        for (int64_t j = 0; j < V; j += 16) s = v16_add(s, v16_get(dy + j, V - j));
        v16 back = v16_set(-v16_sum(s));
        for (int64_t j = 0; j < V; j += 16) {
            int64_t n = V - j;
            v16_put(dx + j, v16_fma(v16_exp(v16_get(y + j, n)), back, v16_get(dy + j, n)), n);
        }
    }
}

/* y(rows).  A row of nothing but -infinity has the sum zero, one with infinity an infinite sum. */
static void logsumexp(float *y, const float *x, int64_t rows, int64_t V)
{
    for (int64_t i = 0; i < rows; i++, x += V) {
        float m = row_max(x, V);
        if (!(m - m == 0.0f)) m = 0.0f;
        y[i] = log_of(row_exp_sum(0, x, V, m, V <= FETCH_MOST && i + 1 < rows)) + m;
    }
}

/* dz(rows,V) = (softmax(z) - [j = target]) dloss, which may be z; zero where the target is -1. */
static void cross_entropy_bwd(float *dz, const float *dlosses, const float *z,
                              const int32_t *targets, int64_t rows, int64_t V)
{
    for (int64_t i = 0; i < rows; i++, z += V, dz += V) {
        if (targets[i] < 0) {
            memset(dz, 0, (size_t)V * sizeof(float));
            continue;
        }
        float m = row_max(z, V);
        float sum = row_exp_sum(dz, z, V, m, V <= FETCH_MOST && i + 1 < rows);
        row_scale(dz, V, dlosses[i] / sum);
        dz[targets[i]] -= dlosses[i];
    }
}

#endif
