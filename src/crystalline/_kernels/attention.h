/* Causal grouped-query attention without a T x T matrix (Rabe and Staats 2021; Dao et al. 2022).
 *
 *   S = scale q k^T,  P = softmax over the keys up to the query's position,  out = P v
 *   dv = P^T dout;  dP = dout v^T;  D = sum(dout out);  dS = scale P (dP - D);  dq = dS k;  dk = dS^T q
 *
 * Keys come in blocks of 64 from position 0, with a running maximum m and sum l; a block that lies
 * wholly behind a query changes nothing (of finite values; infinities spread within a block).  Backward computes P again from lse = m + log l.  Each
 * product is one chain in the order of its inner index, so no block of queries changes a bit.
 * Keys (and values, backward) are transposed into scratch: a vector then holds 16 keys. */
#ifndef CRY_ATTENTION_H
#define CRY_ATTENTION_H

#include "mathfun.h"
#include "matmul.h"

enum { Q_BLOCK = 48, KEY_BLOCK = 64 };

CRY_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* x(rows, columns of width w) -> t(w, ld), columns rows .. round up to 64 set to zero. */
static void transpose_rows(float *t, int64_t ld, const float *x, int64_t stride, int64_t rows, int64_t w)
{
    int64_t end = round_up(rows, KEY_BLOCK);
    for (int64_t d = 0; d < w; d++) {
        for (int64_t r = 0; r < rows; r++) t[d * ld + r] = x[r * stride + d];
        for (int64_t r = rows; r < end; r++) t[d * ld + r] = 0.0f;
    }
}

/* x(rows, width w) -> y(rows, wp), columns w .. wp set to zero. */
static void copy_rows(float *y, int64_t wp, const float *x, int64_t stride, int64_t rows, int64_t w)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < wp; j += 16)
            v16_store(y + r * wp + j, j < w ? v16_get(x + r * stride + j, w - j) : v16_zero());
}

/* The first n of 16 lanes, the others -infinity; n may be anything. */
CRY_INLINE v16 v16_masked(const float *p, int64_t n)
{
    return n <= 0 ? v16_set(-INFINITY) : v16_get_or(p, n, -INFINITY);
}

/* One query row of one block of keys: s(n) becomes exp(s - m), of which `seen` keys are visible.
 * Returns the factor by which what was summed before must shrink. */
static float softmax_row(float *s, float *m, float *l, int64_t n, int64_t seen, float scale)
{
    v16 top = v16_set(-INFINITY), sum = v16_zero(), factor = v16_set(scale);
    for (int64_t j = 0; j < n; j += 16) {
        v16 z = v16_masked(s + j, seen - j);
        top = v16_max(v16_mul(z, factor), top);
    }
    float before = *m, high = v16_maxall(top), shrink = 1.0f;
    if (seen > 0 && high > before) {
        float t[16];
        v16_store(t, v16_exp(v16_set(before - high)));
        shrink = t[0];
        *m = high;
    }
    for (int64_t j = 0; j < n; j += 16) {
        v16 z = v16_mul(v16_masked(s + j, seen - j), factor);
        v16 e = seen - j > 0 ? v16_exp(v16_sub(z, v16_set(*m))) : v16_zero();
        v16_store(s + j, e);
        sum = v16_add(sum, e);
    }
    *l = *l * shrink + v16_sum(sum);
    return shrink;
}

/* out(rows, ldo) for one head's queries at positions position .. position + rows.
 * kt(head_dim, ldk) holds keys by column, v(positions, ldv) values by row. */
static void attend(float *out, int64_t ldo, float *lse, const float *q, int64_t ldq, const float *kt,
                   int64_t ldk, const float *v, int64_t ldv, int64_t rows, int64_t position,
                   int64_t head_dim, float scale, float *s)
{
    for (int64_t q0 = 0; q0 < rows; q0 += Q_BLOCK) {
        int64_t nq = cry_min(Q_BLOCK, rows - q0), end = position + q0 + nq;
        float m[Q_BLOCK], l[Q_BLOCK];
        float *o = out + q0 * ldo;
        for (int64_t i = 0; i < nq; i++) m[i] = -INFINITY, l[i] = 0.0f;
        for (int64_t k0 = 0; k0 < end; k0 += KEY_BLOCK) {
            int64_t n = cry_min(KEY_BLOCK, end - k0);
            gemm_unpacked(s, KEY_BLOCK, 0, q + q0 * ldq, ldq, 1, kt + k0, ldk, nq, n, head_dim);
            for (int64_t i = 0; i < nq; i++) {
                int64_t seen = cry_min(n, position + q0 + i + 1 - k0);
                float shrink = softmax_row(s + i * KEY_BLOCK, m + i, l + i, n, seen, scale);
                if (k0 == 0 || shrink == 1.0f) continue;
                for (int64_t j = 0; j < head_dim; j += 16) {
                    v16 a = v16_mul(v16_get(o + i * ldo + j, head_dim - j), v16_set(shrink));
                    v16_put(o + i * ldo + j, a, head_dim - j);
                }
            }
            gemm_unpacked(o, ldo, k0 ? o : 0, s, KEY_BLOCK, 1, v + k0 * ldv, ldv, nq, head_dim, n);
        }
        for (int64_t i = 0; i < nq; i++) {
            v16 inverse = v16_set(1.0f / l[i]);
            for (int64_t j = 0; j < head_dim; j += 16) {
                v16 a = v16_mul(v16_get(o + i * ldo + j, head_dim - j), inverse);
                v16_put(o + i * ldo + j, a, head_dim - j);
            }
        }
        for (int64_t i = 0; lse && i < nq; i += 16) {
            v16 log_l = v16_log(v16_get_or(l + i, nq - i, 1.0f));
            v16_put(lse + q0 + i, v16_add(v16_get(m + i, nq - i), log_l), nq - i);
        }
    }
}

/* All heads that share one key/value head of one sequence; out(T, H head_dim), lse(H, T). */
static void attention(float *out, float *lse, const float *qkv, const cry_attention *c,
                      int64_t kv_head, float *scratch)
{
    int64_t dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, share = c->H / c->K;
    int64_t tp = round_up(c->T, KEY_BLOCK), wide = round_up(dh, 32);
    float *kt = scratch, *v = kt + dh * tp, *s = v + c->T * wide;
    const float *key = qkv + (c->H + kv_head) * dh;
    transpose_rows(kt, tp, key, ld, c->T, dh);
    copy_rows(v, wide, key + c->K * dh, ld, c->T, dh);
    for (int64_t h = kv_head * share; h < (kv_head + 1) * share; h++)
        attend(out + h * dh, c->H * dh, lse + h * c->T, qkv + h * dh, ld, kt, tp, v, wide, c->T, 0,
               dh, c->scale, s);
}

/* New rows go to the cache, then attend to all of it: keys (K, head_dim, capacity), values
 * (K, capacity, head_dim rounded up to 32). */
static void attention_cached(float *out, const float *qkv, float *keys, float *values,
                             const cry_attention *c, int64_t kv_head, int64_t rows, int64_t position,
                             int64_t capacity, float *scratch)
{
    int64_t dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, share = c->H / c->K;
    int64_t wide = round_up(dh, 32);
    float *kt = keys + kv_head * dh * capacity, *v = values + kv_head * capacity * wide;
    const float *key = qkv + (c->H + kv_head) * dh, *value = key + c->K * dh;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dh; d++) {
            kt[d * capacity + position + r] = key[r * ld + d];
            v[(position + r) * wide + d] = value[r * ld + d];
        }
    for (int64_t h = kv_head * share; h < (kv_head + 1) * share; h++)
        attend(out + h * dh, c->H * dh, 0, qkv + h * dh, ld, kt, capacity, v, wide, rows, position,
               dh, c->scale, scratch);
}

/* P and dS of one block: s holds q k^T, dp holds dout v^T; rows see fewer keys near the diagonal. */
static void score_gradient(float *s, float *dp, const float *lse, const float *delta, int64_t nq,
                           int64_t n, int64_t seen, float scale)
{
    v16 factor = v16_set(scale);
    for (int64_t i = 0; i < nq; i++, seen++, s += KEY_BLOCK, dp += KEY_BLOCK)
        for (int64_t j = 0; j < n; j += 16) {
            v16 z = v16_fma(v16_masked(s + j, seen - j), factor, v16_set(-lse[i]));
            v16 p = seen - j > 0 ? v16_exp(z) : v16_zero();
            v16 d = v16_mul(p, v16_mul(factor, v16_sub(v16_load(dp + j), v16_set(delta[i]))));
            v16_store(s + j, p);
            v16_store(dp + j, d);
        }
}

/* One key/value head of one sequence: its part of dqkv(T, (H + 2K) head_dim). */
static void attention_bwd(float *dqkv, const float *dout, const float *out, const float *qkv,
                          const float *lse, const cry_attention *c, int64_t kv_head, float *scratch)
{
    int64_t T = c->T, dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, ldo = c->H * dh;
    int64_t tp = round_up(T, KEY_BLOCK), wide = round_up(dh, 32), share = c->H / c->K;
    float *kt = scratch, *vt = kt + dh * tp, *k = vt + dh * tp, *q = k + T * wide, *d = q + T * wide;
    float *delta = d + T * wide, *s = delta + round_up(T, 16), *dp = s + Q_BLOCK * KEY_BLOCK;
    int64_t key_at = (c->H + kv_head) * dh, value_at = key_at + c->K * dh;
    float *dk = dqkv + key_at, *dv = dqkv + value_at;
    transpose_rows(kt, tp, qkv + key_at, ld, T, dh);
    transpose_rows(vt, tp, qkv + value_at, ld, T, dh);
    copy_rows(k, wide, qkv + key_at, ld, T, dh);
    for (int64_t t = 0; t < T; t++) {
        memset(dk + t * ld, 0, (size_t)dh * sizeof(float));
        memset(dv + t * ld, 0, (size_t)dh * sizeof(float));
    }
    for (int64_t h = kv_head * share; h < (kv_head + 1) * share; h++) {
        float *dq = dqkv + h * dh;
        copy_rows(q, wide, qkv + h * dh, ld, T, dh);
        copy_rows(d, wide, dout + h * dh, ldo, T, dh);
        for (int64_t t = 0; t < T; t++) {
            v16 sum = v16_zero();
            for (int64_t j = 0; j < dh; j += 16)
                sum = v16_fma(v16_load(d + t * wide + j), v16_get(out + t * ldo + h * dh + j, dh - j), sum);
            delta[t] = v16_sum(sum);
        }
        for (int64_t q0 = 0; q0 < T; q0 += Q_BLOCK) {
            int64_t nq = cry_min(Q_BLOCK, T - q0);
            for (int64_t k0 = 0; k0 < q0 + nq; k0 += KEY_BLOCK) {
                int64_t n = cry_min(KEY_BLOCK, q0 + nq - k0);
                gemm_unpacked(s, KEY_BLOCK, 0, q + q0 * wide, wide, 1, kt + k0, tp, nq, n, dh);
                gemm_unpacked(dp, KEY_BLOCK, 0, d + q0 * wide, wide, 1, vt + k0, tp, nq, n, dh);
                score_gradient(s, dp, lse + h * T + q0, delta + q0, nq, n, q0 + 1 - k0, c->scale);
                gemm_unpacked(dv + k0 * ld, ld, dv + k0 * ld, s, 1, KEY_BLOCK, d + q0 * wide, wide, n, dh, nq);
                gemm_unpacked(dk + k0 * ld, ld, dk + k0 * ld, dp, 1, KEY_BLOCK, q + q0 * wide, wide, n, dh, nq);
                gemm_unpacked(dq + q0 * ld, ld, k0 ? dq + q0 * ld : 0, dp, KEY_BLOCK, 1, k + k0 * wide, wide, nq, dh, n);
            }
        }
    }
}

#endif
