/* RMSNorm.  r = 1 / sqrt(mean(x^2) + eps),  y = x r w
 *   dx = residual + r (w dy) - x r^3 mean(x w dy);   dw = sum over tokens of dy x r
 * Means along a row run in 16 lanes; dw is one chain in token order over the span.  Forward takes
 * four rows at a time, so that no row's root and divisions are waited for before the next, and
 * fetches what lies five rows and a KiB behind: only a little ahead of the four that come next.
 * Around the caches two are better: memory has fewer rows to follow. */
#ifndef CRY_NORM_H
#define CRY_NORM_H

#include "operands.h"

enum { NORM_ROWS = 4, NORM_AHEAD = 5, NORM_FURTHER = 256 };

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

/* Rows first .. first + rows; with `ahead` floats that lie so far behind them are fetched: past the
 * last row that is the next span's.  With `far` whole lines of y are written around the caches. */
CRY_INLINE void rmsnorm_some(float *y, float *rrms, const float *x, const float *w, int64_t first,
                             const int rows, int64_t D, float eps, int64_t ahead, const int far)
{
    x += first * D, rrms += first;
    norm_roots(rrms, x, rows, D, eps);
    for (int i = 0; i < rows; i++, x += D) {
        v16 r = v16_set(rrms[i]);
        int64_t at = (first + i) * D, j = far ? v16_stream_head(y + at, D) : 0;
        if (j) value_put(y, at, norm_get(x, r, w, j), j);
        for (; j + 16 <= D; j += 16) {
            /* Into L1, since it is used soon. */
            if (ahead) __builtin_prefetch(x + ahead + j, 0, 3);
            v16 v = norm_get(x + j, r, w + j, 16);
            if (far) v16_stream(y + at + j, v);
            else value_put(y, at + j, v, 16);
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
        rmsnorm_some(y, rrms, x, w, i, NORM_ROWS, D, eps, NORM_AHEAD * D + NORM_FURTHER, 0);
    for (; i < rows; i++) rmsnorm_some(y, rrms, x, w, i, 1, D, eps, 0, 0);
}

/* The same around the caches: for an output that is larger than they are, apart from x. */
static void rmsnorm_far(float *y, float *rrms, const float *x, const float *w, int64_t rows,
                        int64_t D, float eps)
{
    int64_t i = 0;
    for (; i + 2 <= rows; i += 2)
        rmsnorm_some(y, rrms, x, w, i, 2, D, eps, i + 2 + NORM_ROWS <= rows ? NORM_ROWS * D : 0, 1);
    if (i < rows) rmsnorm_some(y, rrms, x, w, i, 1, D, eps, 0, 1);
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
