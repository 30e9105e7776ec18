/* Causal grouped-query attention without a T x T matrix (Rabe and Staats 2021; Dao et al. 2022).
 *
 *   S = scale q k^T,  P = softmax over the keys up to the query's position,  out = P v
 *   dv = P^T dout;  dP = dout v^T;  D = sum(dout out);  dS = scale P (dP - D)
 *   dq = dS k;  dk = dS^T q
 *
 * Powers are of 2: q is multiplied by scale log2(e), once, and lse = ln 2 m + log l comes back to
 * e.  Keys come in blocks of 64 from position 0, with a running maximum m and sum l; blocks wholly
 * behind a query are left out.  A block's sum is taken in 16 lanes, key j in lane j mod 16, and the
 * tree.  Backward computes P again from lse.  Each product is one chain in the order of its inner
 * index (dk and dv: 256 queries of each head in turn), so no cut and no block of queries changes a
 * bit.  Work space does not grow with T.
 *
 * A score of -infinity weighs nothing; a row that sees no other is not a number, and so is one that
 * sees +infinity or not-a-number.  What is not finite can spread to the up to 63 earlier positions
 * of its block of 64, and no further back in time. */
#ifndef CRY_ATTENTION_H
#define CRY_ATTENTION_H

#include "attention_tile.h"

enum {
    FEW_ROWS = 8,      /* so few new rows are not worth transposing the cache's keys */
    ATTEND_STATES = 4, /* blocks of queries at a time, or one of each head */
};

/* Queries of heads that share keys and values, at positions position .. position + rows. */
typedef struct attend_job {
    float *out, *lse; /* lse may be NULL */
    const float *q, *k, *v;
    int64_t ldo, lds, ldq, ldk, ldv;
    int64_t heads, rows, position, head_dim;
    int by_column; /* k(head_dim, ldk) has a key a column, otherwise a row */
    float scale;
    cry_upcoming *next;
} attend_job;

#define LOWEST (-3e38f) /* where a maximum begins */

/* What one block of queries carries from key block to key block. */
typedef struct attend_state {
    float *qt, *o, *m, *l;
} attend_state;

static attend_state state_at(float *scratch, int64_t wide, int64_t index)
{
    float *qt = scratch + index * (2 * BLOCK * wide + 2 * BLOCK);
    float *o = qt + BLOCK * wide, *m = o + BLOCK * wide;
    return (attend_state){qt, o, m, m + BLOCK};
}

CRY_INLINE float power_scale(float scale) { return (float)((double)scale * 1.4426950408889634); }

/* Where fewer than 64 keys are seen: -infinity, up to a multiple of 16 keys, which is returned. */
static int64_t hide_scores(float *s, int64_t keys, int64_t first, int64_t ahead)
{
    int64_t n = keys_seen(keys, first + 16, ahead), k = keys_seen(keys, first + 1, ahead);
    for (; k < n; k++)
        v16_store(s + k * BLOCK, v16_seen(v16_load(s + k * BLOCK), k - first - ahead, -INFINITY));
    for (; k % 16; k++) v16_store(s + k * BLOCK, v16_set(-INFINITY));
    return k;
}

/* s(keys, 64) = 2^(s - m) for 16 queries; m and l run on; shrink is for the sums before. */
static void softmax_block(float *s, float *m, float *l, float *shrink, int64_t n)
{
    v16 before = v16_load(m), top = before, more = before, sum[16];
    for (int64_t k = 0; k < n; k += 2) {
        top = v16_max(v16_load(s + k * BLOCK), top);
        more = v16_max(v16_load(s + (k + 1) * BLOCK), more);
    }
    top = v16_max(top, more);
    for (int i = 0; i < 16; i += TOGETHER) {
        v16 lane[TOGETHER], e[TOGETHER];
        UNROLL for (int r = 0; r < TOGETHER; r++) lane[r] = v16_zero();
        for (float *at = s + i * BLOCK; at < s + n * BLOCK; at += 16 * BLOCK) {
            UNROLL for (int r = 0; r < TOGETHER; r++) e[r] = v16_sub(v16_load(at + r * BLOCK), top);
            v16_exp2_all(e, TOGETHER);
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                v16_store(at + r * BLOCK, e[r]);
                lane[r] = v16_add(lane[r], e[r]);
            }
        }
        UNROLL for (int r = 0; r < TOGETHER; r++) sum[i + r] = lane[r];
    }
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] = v16_add(sum[i], sum[i + half]);
    v16 less = v16_exp2(v16_sub(before, top));
    v16_store(m, top);
    v16_store(l, v16_add(v16_mul(v16_load(l), less), sum[0]));
    v16_store(shrink, less);
}

/* One block of queries meets one block of keys. */
static void attend_block(const attend_state *t, const float *k, const float *v, float *s,
                         int64_t head_dim, int64_t wide, int64_t keys, int64_t queries,
                         int64_t ahead, cry_upcoming *next)
{
    float shrink[BLOCK];
    scores(s, k, t->qt, head_dim, wide, keys, queries, ahead);
    for (int64_t j = 0; j < queries; j += 16) {
        softmax_block(s + j, t->m + j, t->l + j, shrink + j, hide_scores(s + j, keys, j, ahead));
        upcoming_fetch(next, 8);
    }
    by_query(t->o, shrink, s, v, wide, keys, queries, ahead);
}

/* The queries of one block at the start: no key seen. */
static void attend_begin(const attend_state *t, const attend_job *w, const float *q, int64_t rows,
                         int64_t wide)
{
    transpose_rows(t->qt, BLOCK, 0, 0, q, w->ldq, rows, w->head_dim, power_scale(w->scale));
    zero_span(t->o, BLOCK * wide);
    /* m does not begin at -infinity, which less itself is not a number. */
    for (int64_t i = 0; i < BLOCK; i++) t->m[i] = LOWEST, t->l[i] = 0.0f;
}

/* lse = ln 2 m + log l */
static void lse_of(float *lse, const float *m, const float *l, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        v16 log_l = v16_log(v16_get_or(l + i, n - i, 1.0f));
        v16_put(lse + i, v16_fma(v16_get(m + i, n - i), v16_set(0.693147181f), log_l), n - i);
    }
}

static void divide_row(float *out, const float *o, float l, int64_t w)
{
    v16 inverse = v16_set(1.0f / l);
    for (int64_t j = 0; j < w; j += 16)
        v16_put(out + j, v16_mul(v16_get(o + j, w - j), inverse), w - j);
}

/* All of a job, at most ATTEND_STATES blocks of queries or one for each head.  Scratch: a block of
 * keys, one of values, scores, the states. */
static void attend(const attend_job *w, float *scratch)
{
    int64_t dh = w->head_dim, wide = round_up(dh, 16), blocks = (w->rows + BLOCK - 1) / BLOCK;
    float *k = scratch, *v = k + BLOCK * wide, *s = v + BLOCK * wide, *states = s + BLOCK * BLOCK;
    for (int64_t i = 0; i < w->heads * blocks; i++) {
        int64_t q0 = i % blocks * BLOCK;
        attend_state t = state_at(states, wide, i);
        const float *q = w->q + q0 * w->ldq + i / blocks * dh;
        attend_begin(&t, w, q, cry_min(BLOCK, w->rows - q0), wide);
    }
    for (int64_t k0 = 0; k0 < w->position + w->rows; k0 += BLOCK) {
        int64_t keys = cry_min(BLOCK, w->position + w->rows - k0);
        if (w->by_column) transpose_rows(k, wide, 0, 0, w->k + k0, w->ldk, dh, keys, 1.0f);
        else take_rows(k, wide, w->k + k0 * w->ldk, w->ldk, keys, dh);
        take_rows(v, wide, w->v + k0 * w->ldv, w->ldv, keys, dh);
        for (int64_t i = 0; i < w->heads * blocks; i++) {
            int64_t q0 = i % blocks * BLOCK, queries = cry_min(BLOCK, w->rows - q0);
            int64_t ahead = w->position + q0 - k0;
            attend_state t = state_at(states, wide, i);
            if (keys_seen(keys, queries, ahead) > 0)
                attend_block(&t, k, v, s, dh, wide, keys, queries, ahead, w->next);
        }
    }
    for (int64_t i = 0; i < w->heads * blocks; i++) {
        int64_t head = i / blocks, q0 = i % blocks * BLOCK, n = cry_min(BLOCK, w->rows - q0);
        attend_state t = state_at(states, wide, i);
        for (int64_t r = 0; r < n; r++)
            divide_row(w->out + (q0 + r) * w->ldo + head * dh, t.o + r * wide, t.l[r], dh);
        if (w->lse) lse_of(w->lse + head * w->lds + q0, t.m, t.l, n);
    }
}

/* Queries first .. end, as attend has it, of the heads that share a key/value head of one sequence:
 * out(T, H head_dim), lse(H, T). */
static void attention(float *out, float *lse, const float *qkv, const cry_attention *c,
                      int64_t kv_head, int64_t first, int64_t end, float *scratch)
{
    int64_t dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, share = c->H / c->K, h = kv_head * share;
    attend_job w = {.out = out + first * c->H * dh + h * dh, .lse = lse + h * c->T + first,
                    .q = qkv + first * ld + h * dh, .k = qkv + (c->H + kv_head) * dh,
                    .v = qkv + (c->H + c->K + kv_head) * dh, .ldo = c->H * dh, .lds = c->T,
                    .ldq = ld, .ldk = ld, .ldv = ld, .heads = share, .rows = end - first,
                    .position = first, .head_dim = dh, .scale = c->scale};
    cry_upcoming next = {.rows = kv_head + 1 < c->K && first == 0 ? end : 0, .width = share * dh};
    upcoming_add(&next, w.q + share * dh, ld);
    upcoming_add(&next, w.out + share * dh, w.ldo);
    upcoming_add(&next, w.k + dh, ld);
    upcoming_add(&next, w.v + dh, ld);
    w.next = &next;
    attend(&w, scratch);
}

/* --- Backward. */

enum { GRADIENT_KEYS = 8 * BLOCK, GRADIENT_QUERIES = 4 * BLOCK }; /* of one call; at a time */

/* What 256 queries of one head bring: rows in blocks of 64, q and dout also transposed. */
typedef struct query_side {
    float *qt, *dt, *q, *d, *dq, *lse, *delta;
} query_side;

/* Some keys' P and dS for some queries: see gradient_panel. */
typedef struct gradient_job {
    float *p, *ds;
    const float *k, *v;
    int64_t width, wide;
    cry_upcoming *next;
} gradient_job;

/* p(keys, 64) = P and ds(keys, 64) = dS: keys first .. n, one panel of nv vectors of queries from j
 * on, whose first sees the keys up to `from`. */
CRY_INLINE void gradient_panel(const int nv, const gradient_job *w, const query_side *x, int64_t j,
                               int64_t first, int64_t n, int64_t from)
{
    for (int64_t i = first; i < n; i += PART_M) {
        float *p = w->p + i * BLOCK + j, *ds = w->ds + i * BLOCK + j;
        cry_part acc;
        part_zero(acc, nv);
        part_run(acc, nv, w->width, w->k + i * w->wide, w->wide, 1, x->qt + j, BLOCK);
        UNROLL for (int h = 0; h < nv; h++)
            UNROLL for (int r = 0; r < PART_M; r += TOGETHER) {
                v16 e[TOGETHER];
                UNROLL for (int g = 0; g < TOGETHER; g++)
                    e[g] = v16_sub(acc[r + g][h], v16_load(x->lse + j + 16 * h));
                v16_exp2_all(e, TOGETHER);
                UNROLL for (int g = 0; g < TOGETHER; g++)
                    v16_store(p + (r + g) * BLOCK + 16 * h, e[g]);
            }
        if (i + PART_M - 1 > from)
            for (int r = 0; r < PART_M; r++)
                for (int h = 0; h < nv; h++) {
                    float *at = p + r * BLOCK + 16 * h;
                    v16_store(at, v16_seen(v16_load(at), i + r - from - 16 * h, 0.0f));
                }
        upcoming_fetch(w->next, 2);
        part_zero(acc, nv);
        part_run(acc, nv, w->width, w->v + i * w->wide, w->wide, 1, x->dt + j, BLOCK);
        UNROLL for (int r = 0; r < PART_M; r++)
            UNROLL for (int h = 0; h < nv; h++) {
                v16 less = v16_sub(acc[r][h], v16_load(x->delta + j + 16 * h));
                v16_store(ds + r * BLOCK + 16 * h, v16_mul(v16_load(p + r * BLOCK + 16 * h), less));
            }
    }
}

/* As scores. */
static void score_gradient(const gradient_job *w, const query_side *x, int64_t keys,
                           int64_t queries, int64_t ahead)
{
    for (int64_t j = 0; j < queries; j += 16 * PART_V) {
        int64_t n = round_up(keys_seen(keys, j + 16, ahead), PART_M), j2 = j + 16;
        if (PART_V == 1 || j2 >= queries) {
            gradient_panel(1, w, x, j, 0, n, j + ahead);
        } else {
            gradient_panel(PART_V, w, x, j, 0, n, j + ahead);
            gradient_panel(1, w, x, j2, n, keys_seen(keys, j2 + 16, ahead), j2 + ahead);
        }
    }
}

static query_side query_block(const query_side *x, int64_t wide, int64_t q0)
{
    return (query_side){x->qt + q0 * wide, x->dt + q0 * wide, x->q + q0 * wide, x->d + q0 * wide,
                        x->dq + q0 * wide, x->lse + q0, x->delta + q0};
}

/* scale lies in dout's transpose and in D, so that dS has it; delta = scale D, in 16 lanes. */
static void take_queries(const query_side *all, const float *q, int64_t ldq, const float *dout,
                         const float *out, int64_t ldo, const float *lse, int64_t rows, int64_t dh,
                         float scale)
{
    int64_t wide = round_up(dh, 16);
    for (int64_t q0 = 0; q0 < rows; q0 += BLOCK) {
        query_side x = query_block(all, wide, q0);
        int64_t n = cry_min(BLOCK, rows - q0);
        transpose_rows(x.qt, BLOCK, x.q, wide, q + q0 * ldq, ldq, n, dh, power_scale(scale));
        transpose_rows(x.dt, BLOCK, x.d, wide, dout + q0 * ldo, ldo, n, dh, scale);
        for (int64_t i = 0; i < BLOCK; i += 16) {
            v16 z = i < n ? v16_get(lse + q0 + i, n - i) : v16_zero();
            /* log2(e) in two parts: lse may be large. */
            v16 low = v16_mul(z, v16_set(1.92596303e-8f));
            v16_store(x.lse + i, v16_fma(z, v16_set(1.44269502f), low));
            v16_store(x.delta + i, v16_zero());
        }
        for (int64_t i = 0; i < n; i++) {
            v16 sum = v16_zero();
            for (int64_t j = 0; j < wide; j += 16)
                sum = v16_fma(v16_load(x.d + i * wide + j),
                              v16_get(out + (q0 + i) * ldo + j, dh - j), sum);
            x.delta[i] = scale * v16_sum(sum);
        }
    }
}

/* Sums go on from memory, or begin. */
static void take_sums(float *y, int64_t wide, const float *x, int64_t ldx, int64_t rows, int64_t w,
                      int begins)
{
    if (begins) zero_span(y, round_up(rows, PART_M) * wide);
    else take_rows(y, wide, x, ldx, rows, w);
}

/* Where the keys of a call stand, in scratch: rows of k, v, dk and dv. */
typedef struct key_side {
    float *k, *v, *dk, *dv;
} key_side;

/* Rows of queries, the first one `ahead_of_first` positions after the first key, and all keys that
 * they see; two blocks of scores. */
static void meet(const query_side *all, const key_side *y, float *two, int64_t dh, int64_t rows,
                 int64_t all_keys, int64_t ahead_of_first, cry_upcoming *next)
{
    int64_t wide = round_up(dh, 16);
    float *p = two, *ds = two + BLOCK * BLOCK;
    for (int64_t k0 = 0; k0 < cry_min(all_keys, ahead_of_first + rows); k0 += BLOCK)
        for (int64_t q0 = 0; q0 < rows; q0 += BLOCK) {
            int64_t keys = cry_min(BLOCK, all_keys - k0), queries = cry_min(BLOCK, rows - q0);
            int64_t ahead = ahead_of_first + q0 - k0, at = k0 * wide;
            if (ahead < 0) continue;
            query_side x = query_block(all, wide, q0);
            gradient_job w = {p, ds, y->k + at, y->v + at, dh, wide, next};
            score_gradient(&w, &x, keys, queries, ahead);
            by_key(y->dv + at, p, x.d, wide, keys, queries, ahead);
            by_key(y->dk + at, ds, x.q, wide, keys, queries, ahead);
            by_query(x.dq, 0, ds, y->k + at, wide, keys, queries, ahead);
        }
}

/* What queries q_first .. q_end of all heads that share one key/value head, and its keys k_first ..
 * k_end (at most 512), give each other: dqkv(T, (H + 2 K) head_dim).  For equal keys the calls come
 * with rising queries, first the keys' own; for equal queries with rising keys from 0. */
static void attention_bwd(float *dqkv, const float *dout, const float *out, const float *qkv,
                          const float *lse, const cry_attention *c, int64_t kv_head,
                          int64_t q_first, int64_t q_end, int64_t k_first, int64_t k_end,
                          float *scratch)
{
    int64_t dh = c->head_dim, ld = (c->H + 2 * c->K) * dh, ldo = c->H * dh, share = c->H / c->K;
    int64_t wide = round_up(dh, 16), side = GRADIENT_KEYS * wide, block = GRADIENT_QUERIES * wide;
    int64_t keys = k_end - k_first, key_at = k_first * ld + (c->H + kv_head) * dh;
    int64_t value_at = key_at + c->K * dh;
    float *a = scratch + 4 * side, *lses = a + 5 * block, *two = lses + 2 * GRADIENT_QUERIES;
    key_side y = {scratch, scratch + side, scratch + 2 * side, scratch + 3 * side};
    query_side x = {a, a + block, a + 2 * block, a + 3 * block, a + 4 * block, lses,
                    lses + GRADIENT_QUERIES};
    cry_upcoming next = {.rows = kv_head + 1 < c->K && k_end == c->T && k_first == 0 ? c->T : 0,
                         .width = share * dh};
    for (int64_t i = 0; i < 3; i++) { /* of the next head: q, k, v and their gradients */
        int64_t at = i == 0 ? (kv_head + 1) * share * dh : key_at + dh + (i - 1) * c->K * dh;
        upcoming_add(&next, qkv + at, ld);
        upcoming_add(&next, dqkv + at, ld);
    }
    upcoming_add(&next, dout + (kv_head + 1) * share * dh, ldo);
    upcoming_add(&next, out + (kv_head + 1) * share * dh, ldo);
    take_rows(y.k, wide, qkv + key_at, ld, keys, dh);
    take_rows(y.v, wide, qkv + value_at, ld, keys, dh);
    take_sums(y.dk, wide, dqkv + key_at, ld, keys, dh, q_first == k_first);
    take_sums(y.dv, wide, dqkv + value_at, ld, keys, dh, q_first == k_first);
    for (int64_t q0 = q_first; q0 < q_end; q0 += GRADIENT_QUERIES)
        for (int64_t h = kv_head * share; h < (kv_head + 1) * share; h++) {
            int64_t rows = cry_min(GRADIENT_QUERIES, q_end - q0);
            int64_t at = q0 * ld + h * dh, at_out = q0 * ldo + h * dh;
            take_queries(&x, qkv + at, ld, dout + at_out, out + at_out, ldo, lse + h * c->T + q0,
                         rows, dh, c->scale);
            take_sums(x.dq, wide, dqkv + at, ld, rows, dh, k_first == 0);
            meet(&x, &y, two, dh, rows, keys, q0 - k_first, &next);
            put_rows(dqkv + at, ld, x.dq, wide, rows, dh);
        }
    put_rows(dqkv + key_at, ld, y.dk, wide, keys, dh);
    put_rows(dqkv + value_at, ld, y.dv, wide, keys, dh);
}

#endif
