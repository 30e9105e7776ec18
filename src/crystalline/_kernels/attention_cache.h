/* Attention of new rows to a cache: keys stand by column, which suits few queries and a vector of
 * keys.  Each number comes about as in attention.h, in the same order, so the bits are the same. */
#ifndef CRY_ATTENTION_CACHE_H
#define CRY_ATTENTION_CACHE_H

#include "attention.h"

/* The first n of 16 lanes, the others -infinity; n may be anything. */
CRY_INLINE v16 v16_masked(const float *p, int64_t n)
{
    return n <= 0 ? v16_set(-INFINITY) : v16_get_or(p, n, -INFINITY);
}

/* softmax_block for one query: s(n) holds the scores of the keys, of which `seen` count. */
static float softmax_row(float *s, float *m, float *l, int64_t n, int64_t seen)
{
    v16 top = v16_set(*m), sum = v16_zero();
    for (int64_t j = 0; j < n; j += 16) top = v16_max(v16_masked(s + j, seen - j), top);
    float high = v16_maxall(top), shrink[16];
    v16_store(shrink, v16_exp2(v16_set(*m - high)));
    for (int64_t j = 0; j < n; j += 16) {
        v16 e = v16_exp2(v16_sub(v16_masked(s + j, seen - j), v16_set(high)));
        v16_store(s + j, e);
        sum = v16_add(sum, e);
    }
    *m = high;
    *l = *l * shrink[0] + v16_sum(sum);
    return shrink[0];
}

/* attend for at most FEW_ROWS rows and keys by column. */
static void attend_few(const attend_job *w, float *scratch)
{
    int64_t dh = w->head_dim, n = w->rows, wide = round_up(dh, 16), end = w->position + n;
    float m[FEW_ROWS], l[FEW_ROWS], *q = scratch, *o = q + n * wide, *s = o + n * wide;
    v16 scale = v16_set(power_scale(w->scale));
    for (int64_t head = 0; head < w->heads; head++) {
        take_rows(q, wide, w->q + head * dh, w->ldq, n, dh);
        for (int64_t i = 0; i < n * wide; i += 16)
            v16_store(q + i, v16_mul(v16_load(q + i), scale));
        zero_span(o, n * wide);
        for (int64_t i = 0; i < n; i++) m[i] = LOWEST, l[i] = 0.0f;
        for (int64_t k0 = 0; k0 < end; k0 += BLOCK) {
            int64_t keys = cry_min(BLOCK, end - k0);
            gemm_unpacked(s, BLOCK, 0, q, wide, 1, w->k + k0, w->ldk, n, keys, dh);
            for (int64_t i = 0; i < n; i++) {
                int64_t seen = w->position + i + 1 - k0;
                v16 shrink = v16_set(softmax_row(s + i * BLOCK, m + i, l + i, keys, seen));
                for (float *a = o + i * wide; a < o + (i + 1) * wide; a += 16)
                    v16_store(a, v16_mul(v16_load(a), shrink));
            }
            gemm_unpacked(o, wide, o, s, BLOCK, 1, w->v + k0 * w->ldv, w->ldv, n, wide, keys);
        }
        for (int64_t i = 0; i < n; i++)
            divide_row(w->out + i * w->ldo + head * dh, o + i * wide, l[i], dh);
    }
}

/* New rows go to the cache, then attend to all of it: keys (K, head_dim, capacity), values
 * (K, capacity, head_dim rounded up to 32). */
static void attention_cached(float *out, const float *qkv, float *keys, float *values,
                             const cry_attention *c, int64_t kv_head, int64_t rows,
                             int64_t position, int64_t capacity, float *scratch)
{
    int64_t dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, share = c->H / c->K, h = kv_head * share;
    int64_t wide = round_up(dh, 32);
    float *kt = keys + kv_head * dh * capacity, *v = values + kv_head * capacity * wide;
    const float *key = qkv + (c->H + kv_head) * dh, *value = key + c->K * dh;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dh; d++) {
            kt[d * capacity + position + r] = key[r * ld + d];
            v[(position + r) * wide + d] = value[r * ld + d];
        }
    int64_t most = BLOCK * cry_max(1, ATTEND_STATES / share);
    for (int64_t r = 0; r < rows; r += most) {
        cry_upcoming nothing = {.rows = 0};
        attend_job w = {.out = out + r * c->H * dh + h * dh, .q = qkv + r * ld + h * dh, .k = kt,
                        .v = v, .ldo = c->H * dh, .ldq = ld, .ldk = capacity, .ldv = wide,
                        .heads = share, .rows = cry_min(most, rows - r),
                        .position = position + r, .head_dim = dh, .by_column = 1,
                        .scale = c->scale, .next = &nothing};
        if (w.rows > FEW_ROWS) attend(&w, scratch);
        else attend_few(&w, scratch);
    }
}

#endif
