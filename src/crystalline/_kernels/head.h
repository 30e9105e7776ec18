/* The parts of output projection and cross-entropy (ops_head.c): z = h w^T turned over.
 *
 * The logits of a block of tokens lie as the right operand of a product: in panels of TILE_N
 * tokens, word v a row.  So neither w nor their gradient is ever packed: only h is, and w stays where
 * it lies,
 *   z^T = w h^T,   dw = dz^T h,   dh^T = w^T dz^T
 * and what runs along a row of logits runs down a panel, a token in each lane:
 *   m = max z,  S = sum exp(z - m),   loss = log S + m - z_t,
 *   dz = scale (exp(z - m) / S - [v = t])
 * Element v of a token belongs to lane v mod 16 of its sum; lanes meet by the tree 16 > 8 > 4 > 2 > 1.
 *
 * The exponentials are computed twice, for S and for dz: that takes less time than keeping them does.
 *
 * In bf16 no logit is stored: a chunk of words becomes exponentials below its own largest logit, as
 * they leave the product, and one factor for a chunk and token makes them dz.  They are kept in fp16,
 * not bf16, as what is kept is rounded before its factor is known, and dz once more: fp16 has three
 * bits more, and its range is enough for what lies between 0 and the largest.  Sums are of the unrounded ones,
 * and the target's entry is computed from its float32 logit. */
#ifndef CRY_HEAD_H
#define CRY_HEAD_H

#include <float.h>

#include "matmul.h"

/* Steps of the sum for dh between which it is read and written. */
enum { BACK_STEPS = 512 };

/* Where word v of panel p begins. */
CRY_INLINE float *logits_at(const cry_logits *b, int64_t p, int64_t v)
{
    int64_t words = (b->V + OPERAND_STEPS - 1) / OPERAND_STEPS * TILE_N;
    return (float *)operand_at(b->z + p * words, v * TILE_N);
}

CRY_INLINE float *tops_at(const cry_logits *b, int64_t v, int64_t token)
{
    return b->tops + v / b->chunk * b->rows + token;
}

/* 1 in the lanes of tokens that have a target, else 0. */
CRY_INLINE v16 with_target(const int32_t *targets)
{
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = targets[i] < 0 ? 0.0f : 1.0f;
    return v16_load(lanes);
}

CRY_INLINE v16 where(v16 with, v16 a) { return v16_if_lt(v16_zero(), with, a, v16_zero()); }

#if !defined(CRY_PAIRS)

static void logits_done(const cry_logits *b, int64_t p, int64_t v, int64_t m, const float *z)
{
    v16 top[TILE_V];
    for (int j = 0; j < TILE_V; j++) top[j] = v16_set(-INFINITY);
    for (int64_t i = 0; i < m; i++)
        for (int j = 0; j < TILE_V; j++)
            top[j] = v16_max(v16_load(z + i * TILE_N + 16 * j), top[j]);
    for (int j = 0; j < TILE_V; j++) v16_store(tops_at(b, v, p * TILE_N + 16 * j), top[j]);
}

/* The 16 tokens from `at` on: their losses, and what head_scale wants. */
static void head_softmax(float *losses, const cry_logits *b, int64_t at)
{
    const float *z = logits_at(b, at / TILE_N, 0) + at % TILE_N;
    const int32_t *targets = b->targets + at;
    float *picked = b->picked + at;
    v16 top = v16_set(-INFINITY), sums[16], with = with_target(targets);
    for (int64_t v = 0; v < b->V; v += b->chunk) top = v16_max(v16_load(tops_at(b, v, at)), top);
    for (int i = 0; i < 16; i++) {
        sums[i] = v16_zero();
        picked[i] = targets[i] < 0 ? 0.0f : z[targets[i] * TILE_N + i];
    }
    for (int64_t v = 0; v < b->V; v += 16)
        for (int64_t i = 0; i < cry_min(16, b->V - v); i++) {
            __builtin_prefetch(z + (v + i + 24) * TILE_N, 0, 3);
            v16 e = v16_exp(v16_sub(v16_load(z + (v + i) * TILE_N), top));
            sums[i] = v16_add(sums[i], e);
        }
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] = v16_add(sums[i], sums[i + half]);
    v16 own = v16_load(picked), factor = where(with, v16_div(v16_set(b->scale), sums[0]));
    v16 loss = v16_sub(v16_add(v16_log(sums[0]), top), own);
    if (at < b->tokens) v16_put(losses, where(with, loss), b->tokens - at);
    v16_store(b->tops + at, top);
    v16_store(b->sums + at, factor);
    own = v16_mul(v16_exp(v16_sub(own, top)), factor);
    v16_store(picked, v16_sub(own, v16_set(b->scale)));
}

/* dz of rows v .. v + m of panel p, in place and as rows of dz(m, ld).  The next panel's rows, which
 * lie far away, are asked for meanwhile. */
static void scale_panel(float *dz, int64_t ld, const cry_logits *b, int64_t p, int64_t v, int64_t m)
{
    float *z = logits_at(b, p, v);
    const float *next = logits_at(b, p + 1, v);
    v16 top[TILE_V], factor[TILE_V], with[TILE_V];
    for (int j = 0; j < TILE_V; j++) {
        int64_t at = p * TILE_N + 16 * j;
        top[j] = v16_load(b->tops + at), factor[j] = v16_load(b->sums + at);
        with[j] = with_target(b->targets + at);
    }
    for (int64_t i = 0; i < m; i++)
        for (int j = 0; j < TILE_V; j++) {
            int64_t at = i * TILE_N + 16 * j;
            __builtin_prefetch(next + at, 1, 3);
            v16 e = v16_exp(v16_sub(v16_load(z + at), top[j]));
            v16 x = where(with[j], v16_mul(e, factor[j]));
            v16_store(z + at, x);
            v16_store(dz + i * ld + p * TILE_N + 16 * j, x);
        }
}

CRY_INLINE void set_entry(float *rows, int64_t at, float x) { rows[at] = x; }
CRY_INLINE int64_t entry_of(int64_t v, int64_t token) { return v * TILE_N + token; }

#else

#define LOG2_E 1.44269504f
#define LN_2 0.693147182f
#define LEAST_TOP 1e38f /* so that logits of -infinity are as far below as they should be */
/* A chunk's largest exponential is 2^14: with room above for what rounding a huge logit makes of it,
 * and as much below as can be, 28 powers of two with all bits and 10 with fewer. */
#define KEPT_POWER 14
#define KEPT_UNIT 0x1p-14f
#define KEPT_MOST 65504.0f /* of fp16 */

/* Both halves of a panel: their largest of m logits, in units of ln 2. */
CRY_INLINE void panel_max(v16 top[2], const float *z, int64_t m)
{
    v16 next[2];
    for (int j = 0; j < 2; j++) top[j] = next[j] = v16_set(-FLT_MAX);
    for (int64_t i = 0; i < m; i += 2, z += 2 * TILE_N)
        for (int j = 0; j < 2; j++) {
            top[j] = v16_max(v16_load(z + 16 * j), top[j]);
            if (i + 1 < m) next[j] = v16_max(v16_load(z + TILE_N + 16 * j), next[j]);
        }
    for (int j = 0; j < 2; j++)
        top[j] = v16_mul(v16_max(v16_max(top[j], next[j]), v16_set(-LEAST_TOP)), v16_set(LOG2_E));
}

CRY_INLINE void keep(uint16_t *to, v16 x, v16 with)
{
    __mmask16 some = _mm512_cmp_ps_mask(v16_zero(), with, _CMP_LT_OQ);
    x = v16_min(v16_set(KEPT_MOST), x); /* a not-a-number is kept */
    __m256i kept = _mm512_maskz_cvtps_ph(some, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((void *)to, kept);
}

CRY_INLINE v16 kept(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

/* The wide logits of a chunk of words become exponentials, of which the panel keeps fp16. */
static void logits_done(const cry_logits *b, int64_t p, int64_t v, int64_t m, const float *z)
{
    const int32_t *targets = b->targets + p * TILE_N;
    float *tops = tops_at(b, v, p * TILE_N), *all = tops + (b->sums - b->tops);
    uint16_t *to = (uint16_t *)logits_at(b, p, v);
    v16 top[2], sum[2] = {v16_zero(), v16_zero()};
    v16 with[2] = {with_target(targets), with_target(targets + 16)}, below[2];
    panel_max(top, z, m);
    for (int j = 0; j < 2; j++) below[j] = v16_sub(v16_set(KEPT_POWER), top[j]);
    for (int64_t i = 0; i < m; i++) {
        v16 x[2];
        for (int j = 0; j < 2; j++)
            x[j] = v16_fma(v16_load(z + i * TILE_N + 16 * j), v16_set(LOG2_E), below[j]);
        v16_exp2_all(x, 2);
        for (int j = 0; j < 2; j++) sum[j] = v16_add(sum[j], x[j]);
        if (!b->gradient) continue;
        for (int j = 0; j < 2; j++) keep(to + i * TILE_N + 16 * j, x[j], with[j]);
    }
    for (int j = 0; j < 2; j++) {
        v16_store(tops + 16 * j, top[j]);
        v16_store(all + 16 * j, v16_mul(sum[j], v16_set(KEPT_UNIT)));
    }
    for (int64_t i = 0; i < TILE_N; i++)
        if (targets[i] >= v && targets[i] < v + m)
            b->picked[p * TILE_N + i] = z[(targets[i] - v) * TILE_N + i];
}

/* The 16 tokens from `at` on: their losses, and a factor for each chunk instead of its top. */
static void head_softmax(float *losses, const cry_logits *b, int64_t at)
{
    v16 top = v16_set(-INFINITY), sum = v16_zero(), with = with_target(b->targets + at);
    for (int64_t v = 0; v < b->V; v += b->chunk) top = v16_max(v16_load(tops_at(b, v, at)), top);
    for (int64_t v = 0; v < b->V; v += b->chunk) {
        float *own = tops_at(b, v, at);
        v16 below = v16_exp2(v16_sub(v16_load(own), top));
        sum = v16_fma(v16_load(own + (b->sums - b->tops)), below, sum);
        v16_store(own, below);
    }
    v16 factor = where(with, v16_div(v16_set(b->scale), sum)), z = v16_load(b->picked + at);
    top = v16_mul(top, v16_set(LN_2));
    v16 loss = v16_sub(v16_add(v16_log(sum), top), z);
    if (at < b->tokens) v16_put(losses, where(with, loss), b->tokens - at);
    v16 kept_factor = v16_mul(factor, v16_set(KEPT_UNIT));
    for (int64_t v = 0; v < b->V; v += b->chunk) /* `where`: without a target anything may be in it */
        v16_store(tops_at(b, v, at), where(with, v16_mul(v16_load(tops_at(b, v, at)), kept_factor)));
    z = v16_mul(v16_exp(v16_sub(z, top)), factor);
    v16_store(b->picked + at, v16_sub(z, v16_set(b->scale)));
}

CRY_INLINE __m512i narrow_both(v16 low, v16 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* Rows v .. v + m of panel p times their factors: as rows of dz(m, ld), and in place in pairs of
 * words, the last one of an odd number with a zero.  The next panel's are asked for meanwhile. */
static void scale_panel(float *dz, int64_t ld, const cry_logits *b, int64_t p, int64_t v, int64_t m)
{
    float *z = logits_at(b, p, v);
    const float *next = logits_at(b, p + 1, v);
    v16 low = v16_load(tops_at(b, v, p * TILE_N)), high = v16_load(tops_at(b, v, p * TILE_N) + 16);
    for (int64_t i = 0; i < m; i += 2, z += TILE_N, next += TILE_N) {
        for (int u = 0; u < TILE_N; u += 16) __builtin_prefetch(next + u, 1, 3);
        const uint16_t *x = (const uint16_t *)z;
        __m512i odd = _mm512_setzero_si512();
        __m512i even = narrow_both(v16_mul(kept(x), low), v16_mul(kept(x + 16), high));
        x += TILE_N;
        if (i + 1 < m) odd = narrow_both(v16_mul(kept(x), low), v16_mul(kept(x + 16), high));
        uint16_t *row = (uint16_t *)dz + i * ld + p * TILE_N;
        _mm512_storeu_si512((void *)row, even);
        if (i + 1 < m) _mm512_storeu_si512((void *)(row + ld), odd);
        __m512i e = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(even));
        __m512i o = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(odd));
        v16_store(z, paired(e, o));
        e = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(even, 1));
        o = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(odd, 1));
        v16_store(z + 16, paired(e, o));
    }
}

CRY_INLINE void set_entry(float *rows, int64_t at, float x) { value_put(rows, at, v16_set(x), 1); }
/* Of words in pairs. */
CRY_INLINE int64_t entry_of(int64_t v, int64_t token)
{
    return v / 2 * 2 * TILE_N + 2 * token + v % 2;
}

#endif

/* Logits of words v .. v + m, at most one chunk, and panels first .. end of tokens; work has
 * chunk (D + 32) numbers where rows of w must be copied. */
static void head_project(const cry_logits *b, const float *w, const float *panels, int64_t v,
                         int64_t m, int64_t first, int64_t end, float *work)
{
    float wide[OPERAND_NARROW ? CRY_HEAD_CHUNK * TILE_N : 1] __attribute__((aligned(64)));
    int64_t k = b->D / OPERAND_STEPS, rs = k;
    const float *a = w + v * b->D;
    if (OPERAND_NARROW || strides_collide(b->D)) {
        rs += 16;
        for (int64_t i = 0; i < m; i++)
            for (int64_t u = 0; u < b->D; u += 16)
                value_put(work + i * rs, u, v16_get(a + i * b->D + u, b->D - u), b->D - u);
        a = work;
    }
    for (int64_t p = first; p < end; p++) {
        float *z = OPERAND_NARROW ? wide : logits_at(b, p, v);
        gemm(z, TILE_N, 0, 0, a, rs, 1, panels + p * TILE_N * k, m,
             cry_min(TILE_N, b->tokens - p * TILE_N), k);
        logits_done(b, p, v, m, z);
    }
}

/* dz(m, ld), ld > rows: the gradient of words v .. v + m of one chunk, which replaces their
 * exponentials as well.  A zero follows each row. */
static void head_scale(float *dz, int64_t ld, const cry_logits *b, int64_t v, int64_t m)
{
    for (int64_t p = 0; p < b->rows / TILE_N; p++) scale_panel(dz, ld, b, p, v, m);
    for (int64_t i = 0; i < m; i++) value_put(dz, i * ld + b->rows, v16_zero(), 1);
    for (int64_t i = 0; i < b->tokens; i++) {
        int64_t row = b->targets[i] - v;
        if (row < 0 || row >= m) continue;
        set_entry(dz, row * ld + i, b->picked[i]);
        set_entry(logits_at(b, i / TILE_N, v), entry_of(row, i % TILE_N), b->picked[i]);
    }
}

/* Columns of dh from their transpose (m, ld), for n tokens. */
static void turn_back(float *dh, int64_t D, const float *turned, int64_t ld, int64_t m, int64_t n)
{
    for (int64_t i = 0; i < m; i += 16)
        for (int64_t j = 0; j < n; j += 16) {
            v16 r[16];
            UNROLL for (int u = 0; u < 16; u++)
                r[u] = i + u < m ? v16_load(turned + (i + u) * ld + j) : v16_zero();
            v16_transpose(r);
            for (int64_t u = 0; u < cry_min(16, n - j); u++)
                v16_put(dh + (j + u) * D + i, r[u], m - i);
        }
}

/* block(k, M_BLOCK) = m columns of `count` words of w from v on; returns k in elements. */
static int64_t columns_of_w(float *block, const cry_logits *b, const float *w, int64_t v,
                            int64_t count, int64_t m)
{
    int64_t k = 0;
    for (int64_t t = v; t < v + count; t += OPERAND_STEPS, k++) {
        const float *row = w + t * b->D;
        for (int64_t u = 0; u < m; u += 16) {
            v16 words = operand_across(row + u, b->D, v + count - t, m - u);
            v16_put(block + k * M_BLOCK + u, words, m - u);
        }
    }
    return k;
}

/* Columns d .. d + m of dh for the tokens of panels first .. end, each entry one chain over words.
 * work has m (TILE_N (end - first) + 16) floats. */
static void head_back(float *dh, const cry_logits *b, const float *w, int64_t d, int64_t m,
                      int64_t first, int64_t end, float *work)
{
    float block[M_BLOCK * BACK_STEPS] __attribute__((aligned(64)));
    int64_t ld = (end - first) * TILE_N + 16, most = BACK_STEPS * OPERAND_STEPS;
    for (int64_t v = 0; v < b->V; v += most)
        for (int64_t i = 0; i < m; i += M_BLOCK) {
            int64_t rows = cry_min(M_BLOCK, m - i);
            int64_t k = columns_of_w(block, b, w + d + i, v, cry_min(most, b->V - v), rows);
            tile_job job = {.ldc = ld, .ldi = ld, .a = block, .rs = 1, .cs = M_BLOCK, .ldb = TILE_N,
                            .n = TILE_N, .k = k};
            for (int64_t p = first; p < end; p++) {
                job.c = work + i * ld + (p - first) * TILE_N;
                job.init = v > 0 ? job.c : 0;
                job.b = logits_at(b, p, v);
                tile_column(job, rows);
            }
        }
    turn_back(dh + first * TILE_N * b->D + d, b->D, work, ld, m,
              cry_min((end - first) * TILE_N, b->tokens - first * TILE_N));
}

#endif
