/* RMSNorm.  r = 1 / sqrt(mean(x^2) + eps),  y = x r w
 *   dx = residual + r (w dy) - x r^3 mean(x w dy);   dw = sum over tokens of dy x r
 * Means along a row run in 16 lanes; dw is one chain in token order over the span.  Forward takes
 * four rows at a time, so that no row's root and divisions are waited for before the next, and
 * fetches the four after them.  Around the caches memory alone is waited for, and row by row does. */
#ifndef CRY_NORM_H
#define CRY_NORM_H

#include "operands.h"

enum { NORM_ROWS = 4 };

/* r(rows) of x(rows,D); rows is NORM_ROWS at most. */
CRY_INLINE void norm_roots(float *r, const float *x, const int rows, int64_t D, float eps)
{
    v16 s[NORM_ROWS];
    for (int i = 0; i < rows; i++) s[i] = v16_zero();
    int64_t j = 0;
    for (; j + 16 <= D; j += 16)
        for (int i = 0; i < rows; i++) {
            v16 v = v16_load(x + i * D + j);
            s[i] = v16_fma(v, v, s[i]);
        }
    if (j < D)
        for (int i = 0; i < rows; i++) {
            v16 v = v16_load_n(x + i * D + j, D - j, 0.0f);
            s[i] = v16_fma(v, v, s[i]);
        }
    for (int i = 0; i < rows; i++) r[i] = 1.0f / sqrtf(v16_sum(s[i]) / (float)D + eps);
}

CRY_INLINE v16 norm_get(const float *x, v16 r, const float *w, int64_t n)
{
    return v16_mul(v16_mul(v16_get(x, n), r), v16_get(w, n));
}

/* Rows first .. first + rows; `ahead` where as many follow. */
CRY_INLINE void rmsnorm_some(float *y, float *rrms, const float *x, const float *w, int64_t first,
                             const int rows, int64_t D, float eps, int ahead)
{
    x += first * D, rrms += first;
    norm_roots(rrms, x, rows, D, eps);
    for (int i = 0; i < rows; i++, x += D) {
        v16 r = v16_set(rrms[i]);
        int64_t j = 0, at = (first + i) * D;
        for (; j + 16 <= D; j += 16) {
            if (ahead) __builtin_prefetch(x + rows * D + j, 0, 3); /* it is used soon */
            value_put(y, at + j, norm_get(x + j, r, w + j, 16), 16);
        }
        if (j < D) value_put(y, at + j, norm_get(x + j, r, w + j, D - j), D - j);
    }
}

/* y(rows,D), rrms(rows) from x(rows,D), w(D). */
static void rmsnorm(float *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                    float eps)
{
    int64_t i = 0;
    for (; i + NORM_ROWS <= rows; i += NORM_ROWS)
        rmsnorm_some(y, rrms, x, w, i, NORM_ROWS, D, eps, i + 2 * NORM_ROWS <= rows);
    for (; i < rows; i++) rmsnorm_some(y, rrms, x, w, i, 1, D, eps, 0);
}

/* The same around the caches: for an output that is larger than they are, apart from x. */
static void rmsnorm_far(float *y, float *rrms, const float *x, const float *w, int64_t rows,
                        int64_t D, float eps)
{
    for (int64_t i = 0; i < rows; i++, x += D, y += D) {
        norm_roots(rrms + i, x, 1, D, eps);
        v16 r = v16_set(rrms[i]);
        int64_t head = v16_stream_head(y, D), j = head;
        if (head) v16_put(y, norm_get(x, r, w, head), head);
        for (; j + 16 <= D; j += 16) {
            fetch_ahead(x + j, NORM_ROWS * D, i + NORM_ROWS < rows);
            v16_stream(y + j, norm_get(x + j, r, w + j, 16));
        }
        if (j < D) v16_put(y + j, norm_get(x + j, r, w + j, D - j), D - j);
    }
    v16_stream_end();
}

/* dx(rows,D), dw(D) from dy(rows,D). */
static void rmsnorm_bwd(float *dx, float *dw, const float *residual, const float *dy, const float *x,
                        const float *w, const float *rrms, int64_t rows, int64_t D)
{
    memset(dw, 0, (size_t)D * sizeof(float));
    for (int64_t i = 0; i < rows; i++, dx += D, dy += D, x += D) {
        v16 s = v16_zero();
        for (int64_t j = 0; j < D; j += 16) {
            v16 g = v16_mul(v16_get(w + j, D - j), v16_get(dy + j, D - j));
            s = v16_fma(v16_get(x + j, D - j), g, s);
        }
        float r = rrms[i];
        v16 rv = v16_set(r), back = v16_set(-(r * r * r * (v16_sum(s) / (float)D)));
        for (int64_t j = 0; j < D; j += 16) {
            int64_t n = D - j;
            v16 xv = v16_get(x + j, n), d = v16_get(dy + j, n);
            v16 base = residual ? v16_get(residual + j, n) : v16_zero();
            v16 g = v16_fma(xv, back, v16_mul(rv, v16_mul(v16_get(w + j, n), d)));
            v16_put(dx + j, v16_add(base, g), n);
            v16_put(dw + j, v16_fma(d, v16_mul(xv, rv), v16_get(dw + j, n)), n);
        }
        if (residual) residual += D;
    }
}

#endif
