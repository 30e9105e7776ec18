/* Products with few rows, as in generation: the time is that of reading the weights once.
 *
 *   c(m,n) = init + a w^T            fp32, bf16: one chain of fma in k order that starts at init
 *   c(m,n) = init + scale (a q^T)    int8: the chain starts at zero; one fma at its end
 *
 * A lane is a column of c, so the chain is that of matmul.h: the same bits, on every instruction set
 * and for any number of rows.  Packed weights lie in panels of k x TILE_N; bf16 and int8 are widened
 * in registers.  A single row has too few chains to hide the latency of fma, so it takes several
 * panels side by side.  Weights that are not packed are turned over 16 x 16 in registers. */
#ifndef CRY_GEMV_H
#define CRY_GEMV_H

#include "crystalline/kernels.h"
#include "matmul.h"
#include "narrow.h"

/* Vectors side by side for one row and for two or three; steps of k per prefetch; bytes ahead. */
#if TILE_ROWS_MAX > 4
enum { GEMV_CHAINS = 8, GEMV_HALF = 4, GEMV_STEP = 4, AHEAD = 2048 };
#else
enum { GEMV_CHAINS = 1, GEMV_HALF = 1, GEMV_STEP = 1, AHEAD = 2048 };
#endif

CRY_INLINE int64_t format_size(const int format)
{
    return format == CRY_FP32 ? 4 : format == CRY_BF16 ? 2 : 1;
}

CRY_INLINE v16 weights_at(const char *p, const int format)
{
    if (format == CRY_FP32) return v16_load((const float *)(const void *)p);
    if (format == CRY_BF16) return v16_from_bf16((const uint16_t *)(const void *)p);
    return v16_from_int8((const int8_t *)(const void *)p);
}

/* One step of t in mr rows and nv vectors, which lie in panels `panel` bytes apart. */
CRY_INLINE void gemv_step(v16 acc[][GEMV_CHAINS], const int mr, const int nv,
                          const float *const row[], int64_t lda, int64_t t, const char *b,
                          int64_t panel, const int format)
{
    v16 w[GEMV_CHAINS];
    UNROLL for (int j = 0; j < nv; j++)
        w[j] = weights_at(b + j / TILE_V * panel + 16 * (j % TILE_V) * format_size(format), format);
    UNROLL for (int i = 0; i < mr; i++) {
        v16 x = v16_set(row[i / 3][i % 3 * lda + t]);
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_fma(x, w[j], acc[i][j]);
    }
}

CRY_INLINE void gemv_run(v16 acc[][GEMV_CHAINS], const int mr, const int nv, const float *a,
                         int64_t lda, const char *b, int64_t k, const int format)
{
    const int64_t step = TILE_N * format_size(format), panel = k * step;
    const float *row[(TILE_M + 2) / 3]; /* every third row: the others are one or two strides away */
    UNROLL for (int i = 0; i < (mr + 2) / 3; i++) row[i] = a + 3 * i * lda;
    int64_t t = 0, ahead = AHEAD;
    for (; t + GEMV_STEP <= k; t += GEMV_STEP) {
        /* Past the end of a panel it is the one in its place among the next panels. */
        if (t * step + AHEAD >= panel) ahead = AHEAD + (nv + TILE_V - 1) / TILE_V * panel - panel;
        UNROLL for (int p = 0; p < nv; p += TILE_V)
            UNROLL for (int line = 0; line < GEMV_STEP * step; line += 64)
                __builtin_prefetch(b + p / TILE_V * panel + ahead + line);
        UNROLL for (int s = 0; s < GEMV_STEP; s++, b += step)
            gemv_step(acc, mr, nv, row, lda, t + s, b, panel, format);
    }
    for (; t < k; t++, b += step) gemv_step(acc, mr, nv, row, lda, t, b, panel, format);
}

/* A vector that n > 0 columns of are inside. */
CRY_INLINE v16 gemv_start(const float *init, int64_t n, const int format)
{
    return init && format != CRY_INT8 ? v16_get(init, n) : v16_zero();
}

CRY_INLINE void gemv_end(float *c, v16 acc, const float *init, const float *scale, int64_t n)
{
    if (scale) acc = v16_fma(acc, v16_load(scale), init ? v16_get(init, n) : v16_zero());
    v16_put(c, acc, n);
}

typedef struct gemv_job {
    float *c;
    const float *init, *a;
    const char *panels;
    const float *scales; /* NULL but for int8 */
    int64_t ldc, ldi, lda, n, k;
} gemv_job;

CRY_INLINE void gemv_panels(const gemv_job *w, const int mr, const int nv, const int format)
{
    v16 acc[TILE_M][GEMV_CHAINS];
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int j = 0; j < nv; j++)
            acc[i][j] = w->n > 16 * j && w->init
                            ? gemv_start(w->init + i * w->ldi + 16 * j, w->n - 16 * j, format)
                            : v16_zero();
    gemv_run(acc, mr, nv, w->a, w->lda, w->panels, w->k, format);
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int j = 0; j < nv; j++)
            if (w->n > 16 * j)
                gemv_end(w->c + i * w->ldc + 16 * j, acc[i][j],
                         w->init ? w->init + i * w->ldi + 16 * j : 0,
                         w->scales ? w->scales + 16 * j : 0, w->n - 16 * j);
}

/* All columns for mr rows: as many panels at once as give enough chains, then fewer. */
CRY_INLINE void gemv_rows(gemv_job w, const int mr, const int format)
{
    const int half = mr < 4 ? GEMV_HALF : TILE_V, wide = mr == 1 ? GEMV_CHAINS : half;
    for (int64_t left = w.n, width; left > 0; left -= width) {
        const int vectors = left >= 16 * wide ? wide : left >= 16 * half ? half : TILE_V;
        width = cry_min(16 * vectors, left);
        w.n = width;
        if (wide > half && vectors == wide) gemv_panels(&w, mr, wide, format);
        else if (half > TILE_V && vectors == half) gemv_panels(&w, mr, half, format);
        else gemv_panels(&w, mr, TILE_V, format);
        w.c += width;
        if (w.init) w.init += width;
        if (w.scales) w.scales += width;
        w.panels += width * w.k * format_size(format);
    }
}

#define GEMV_ROWS(MR) \
    static void gemv_rows_##MR(const gemv_job *w, int format) \
    { \
        if (format == CRY_FP32) gemv_rows(*w, MR, CRY_FP32); \
        else if (format == CRY_BF16) gemv_rows(*w, MR, CRY_BF16); \
        else gemv_rows(*w, MR, CRY_INT8); \
    }
GEMV_ROWS(1) GEMV_ROWS(2) GEMV_ROWS(3) GEMV_ROWS(4)
#if TILE_ROWS_MAX > 4
GEMV_ROWS(5) GEMV_ROWS(6)
#endif
#if TILE_ROWS_MAX > 6
GEMV_ROWS(7) GEMV_ROWS(8) GEMV_ROWS(9) GEMV_ROWS(10) GEMV_ROWS(11) GEMV_ROWS(12)
#endif
#undef GEMV_ROWS

static void (*const gemv_some_rows[TILE_M + 1])(const gemv_job *, int) = {
    0, gemv_rows_1, gemv_rows_2, gemv_rows_3, gemv_rows_4,
#if TILE_ROWS_MAX > 4
    gemv_rows_5, gemv_rows_6,
#endif
#if TILE_ROWS_MAX > 6
    gemv_rows_7, gemv_rows_8, gemv_rows_9, gemv_rows_10, gemv_rows_11, gemv_rows_12,
#endif
};

static void gemv(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t lda,
                 const cry_weight *weight, int64_t m, int64_t n, int64_t k)
{
    gemv_job job = {.c = c, .init = init, .a = a, .panels = weight->panels, .scales = weight->scales,
                    .ldc = ldc, .ldi = ldi, .lda = lda, .n = n, .k = k};
    for (int64_t i = 0; i < m; i += TILE_M) {
        gemv_some_rows[cry_min(TILE_M, m - i)](&job, (int)weight->format);
        job.c += TILE_M * ldc;
        job.a += TILE_M * lda;
        if (init) job.init += TILE_M * ldi;
    }
}

/* --- Into fewer bits and back. */

/* to(k,TILE_N) = panel, rounded to nearest even.  For int8 in units of scales(TILE_N), the largest of
 * a column / 127; a column that is not finite gets not-a-number for its scale. */
static void narrow(void *to, float *scales, const float *panel, cry_format format, int64_t k)
{
    uint16_t *bf16 = to;
    int8_t *int8 = to;
    if (format == CRY_FP32) memcpy(to, panel, (size_t)(k * TILE_N) * sizeof(float));
    if (format == CRY_BF16)
        for (int64_t i = 0; i < k * TILE_N; i++) bf16[i] = to_bf16(panel[i]);
    for (int64_t j = 0; format == CRY_INT8 && j < TILE_N; j += 16) {
        v16 top = v16_zero(), bad = v16_zero(), none = v16_zero();
        for (int64_t t = 0; t < k; t++) {
            v16 w = v16_load(panel + t * TILE_N + j);
            top = v16_max(v16_max(w, v16_sub(none, w)), top);
            bad = v16_add(bad, v16_sub(w, w));
        }
        v16 scale = v16_div(top, v16_set(127.0f));
        scale = v16_if_lt(none, scale, scale, v16_set(1.0f));
        v16_store(scales + j, v16_add(scale, bad));
        for (int64_t t = 0; t < k; t++) {
            float q[16];
            v16 w = v16_round(v16_div(v16_load(panel + t * TILE_N + j), scale));
            w = v16_if_lt(v16_set(-128.0f), w, v16_if_lt(w, v16_set(128.0f), w, none), none);
            v16_store(q, w);
            for (int i = 0; i < 16; i++) int8[t * TILE_N + j + i] = (int8_t)q[i];
        }
    }
}

/* panel(k,TILE_N) of floats, int8 without its scales. */
static void widen(float *panel, const void *from, cry_format format, int64_t k)
{
    const char *p = from;
    for (int64_t i = 0; i < k * TILE_N; i += 16) {
        v16 w = format == CRY_FP32   ? weights_at(p + 4 * i, CRY_FP32)
                : format == CRY_BF16 ? weights_at(p + 2 * i, CRY_BF16)
                                     : weights_at(p + i, CRY_INT8);
        v16_store(panel + i, w);
    }
}

/* c(m,n) = init + scales c: what ends a product with int8. */
static void rescale(float *c, int64_t ldc, const float *init, int64_t ldi, const float *scales,
                    int64_t m, int64_t n)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += 16)
            gemv_end(c + i * ldc + j, v16_get(c + i * ldc + j, n - j),
                     init ? init + i * ldi + j : 0, scales + j, n - j);
}

/* x(k) = row `id` of the weight w(N,k), a column of one of its panels. */
static void embedding_packed(float *x, const cry_weight *weight, int64_t id, int64_t k)
{
    const int64_t at = id / TILE_N * TILE_N * k + id % TILE_N;
    const float *fp32 = weight->panels;
    const uint16_t *bf16 = weight->panels;
    const int8_t *int8 = weight->panels;
    const float scale = weight->scales ? weight->scales[id] : 1.0f;
    for (int64_t t = 0; t < k; t++) {
        const int64_t i = at + t * TILE_N;
        if (weight->format == CRY_FP32) x[t] = fp32[i];
        else if (weight->format == CRY_INT8) x[t] = (float)int8[i] * scale;
        else {
            uint32_t bits = (uint32_t)bf16[i] << 16;
            memcpy(x + t, &bits, 4);
        }
    }
}

/* --- Weights w(n,k) as they lie. */

/* Floats of each row that are turned over, or asked for, ahead; rows added to the sums at a time. */
enum { TURN_K = 64, ACROSS = 8 };

/* From memory the lines of 16 rows must be asked for; from the caches asking only costs time. */
CRY_INLINE void ask_for(const float *w, int64_t ld)
{
    UNROLL for (int r = 0; r < 16; r++) __builtin_prefetch(w + r * ld + TURN_K);
}

/* One row: c(nv vectors) goes through 16 k of 16 nv rows of w in registers. */
CRY_INLINE void gemv_turned(float *c, const float *init, const float *a, const float *w,
                            const int nv, int64_t n, int64_t k, const int far)
{
    v16 acc[2], turned[16];
    UNROLL for (int j = 0; j < nv; j++)
        acc[j] = init ? v16_get(init + 16 * j, n - 16 * j) : v16_zero();
    int64_t t = 0;
    for (; t + 16 <= k && n >= 16 * nv; t += 16)
        UNROLL for (int j = 0; j < nv; j++) {
            const float *block = w + 16 * j * k + t;
            if (far) ask_for(block, k);
            v16_turn(turned, block, k);
            UNROLL for (int s = 0; s < 16; s++)
                acc[j] = v16_fma(v16_set(a[t + s]), turned[s], acc[j]);
        }
    for (; t < k; t += 16)
        UNROLL for (int j = 0; j < nv; j++) {
            int64_t rest = cry_min(16, k - t);
            v16_turn_n(turned, w + 16 * j * k + t, k, cry_min(16, n - 16 * j), rest);
            for (int64_t s = 0; s < rest; s++) acc[j] = v16_fma(v16_set(a[t + s]), turned[s], acc[j]);
        }
    UNROLL for (int j = 0; j < nv; j++) v16_put(c + 16 * j, acc[j], n - 16 * j);
}

/* panel(kb, TILE_N) of rows w(n,k): n at most TILE_N. */
CRY_INLINE void turn_panel(float *panel, const float *w, int64_t k, int64_t kb, int64_t n,
                           const int far)
{
    v16 turned[16];
    for (int64_t j = 0; j < TILE_N; j += 16)
        for (int64_t t = 0; t < kb; t += 16) {
            const float *block = w + j * k + t;
            float *to = panel + t * TILE_N + j;
            int64_t rows = n - j < 16 ? n - j : 16, rest = cry_min(16, kb - t);
            if (rows == 16 && rest == 16) {
                if (far) ask_for(block, k);
                v16_turn(turned, block, k);
                UNROLL for (int s = 0; s < 16; s++) v16_store(to + s * TILE_N, turned[s]);
            } else {
                v16_turn_n(turned, block, k, rows, rest);
                for (int64_t s = 0; s < rest; s++) v16_store(to + s * TILE_N, turned[s]);
            }
        }
}

CRY_INLINE void gemv_turned_row(float *c, const float *init, const float *a, const float *w,
                                int64_t n, int64_t k, const int far)
{
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        gemv_turned(c + j, init ? init + j : 0, a, w + j * k, 2, 32, k, far);
    for (; j < n; j += 16)
        gemv_turned(c + j, init ? init + j : 0, a, w + j * k, 1, cry_min(16, n - j), k, far);
}

/* c(m,n) = init + a w^T for few rows: a piece of w is turned over and used before the next. */
static void gemv_unpacked(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a,
                          int64_t lda, const float *w, int64_t m, int64_t n, int64_t k, int far)
{
    float panel[TURN_K * TILE_N] __attribute__((aligned(64)));
    if (m == 1) {
        if (far) gemv_turned_row(c, init, a, w, n, k, 1);
        else gemv_turned_row(c, init, a, w, n, k, 0);
        return;
    }
    for (int64_t j = 0; j < n; j += TILE_N)
        for (int64_t t = 0; t < k; t += TURN_K) {
            int64_t kb = cry_min(TURN_K, k - t), width = cry_min(TILE_N, n - j);
            const float *from = t ? c : init;
            int64_t ld = t ? ldc : ldi;
            if (far) turn_panel(panel, w + j * k + t, k, kb, width, 1);
            else turn_panel(panel, w + j * k + t, k, kb, width, 0);
            for (int64_t i = 0; i < m; i += TILE_M) {
                gemv_job job = {.c = c + i * ldc + j, .init = from ? from + i * ld + j : 0,
                                .a = a + i * lda + t, .panels = (const char *)panel, .ldc = ldc,
                                .ldi = ld, .lda = lda, .n = width, .k = kb};
                gemv_some_rows[cry_min(TILE_M, m - i)](&job, CRY_FP32);
            }
        }
}

/* c(rows,16) gets the terms t .. t + steps of its sums; with t = 0 they begin. */
CRY_INLINE void gemv_terms(float *c, int64_t ldc, const float *a, int64_t lda, const float *w,
                           int64_t ldw, const int64_t rows, const int steps, int64_t t, int64_t n)
{
    v16 b[ACROSS];
    UNROLL for (int s = 0; s < steps; s++) b[s] = v16_get(w + (t + s) * ldw, n);
    for (int64_t i = 0; i < rows; i++, c += ldc, a += lda) {
        v16 acc = t ? v16_get(c, n) : v16_zero();
        UNROLL for (int s = 0; s < steps; s++) acc = v16_fma(v16_set(a[t + s]), b[s], acc);
        v16_put(c, acc, n);
    }
}

CRY_INLINE void gemv_across_rows(float *c, int64_t ldc, const float *a, int64_t lda, const float *w,
                                 int64_t ldw, const int64_t m, int64_t n, int64_t k)
{
    int64_t t = 0;
    for (; t + ACROSS <= k; t += ACROSS) {
        int64_t j = 0;
        for (; j + 16 <= n; j += 16) gemv_terms(c + j, ldc, a, lda, w + j, ldw, m, ACROSS, t, 16);
        if (j < n) gemv_terms(c + j, ldc, a, lda, w + j, ldw, m, ACROSS, t, n - j);
    }
    for (; t < k; t++)
        for (int64_t j = 0; j < n; j += 16)
            gemv_terms(c + j, ldc, a, lda, w + j, ldw, m, 1, t, n - j);
}

/* c(m,n) = a w for few rows, w(k,n) with rows ldw apart, as it lies: some of its rows at a time, so
 * that memory has few streams and long ones.  The sums wait in c. */
static void gemv_across(float *c, int64_t ldc, const float *a, int64_t lda, const float *w,
                        int64_t ldw, int64_t m, int64_t n, int64_t k)
{
    if (m == 1) gemv_across_rows(c, ldc, a, lda, w, ldw, 1, n, k);
    else gemv_across_rows(c, ldc, a, lda, w, ldw, m, n, k);
}

#endif
