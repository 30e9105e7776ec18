/* RMSNorm.  r = 1 / sqrt(mean(x^2) + eps),  y = x r w
 *   dx = residual + r (w dy) - x r^3 mean(x w dy);   dw = sum over tokens of dy x r
 * Means along a row run in 16 lanes; dw is one chain in token order over the span.  Forward
 * takes four rows at a time, so that no row's root and divisions are waited for before the next. */
#ifndef CRY_NORM_H
#define CRY_NORM_H

#include "operands.h"

enum { NORM_ROWS = 4 };

/* Rows first .. first + rows. */
CRY_INLINE void rmsnorm_some(float *y, float *rrms, const float *x, const float *w, int64_t first,
                             const int rows, int64_t D, float eps)
{
    x += first * D, rrms += first;
    v16 s[NORM_ROWS], r[NORM_ROWS];
    for (int i = 0; i < rows; i++) {
        s[i] = v16_zero();
        for (int64_t j = 0; j < D; j += 16) {
            v16 v = v16_get(x + i * D + j, D - j);
            s[i] = v16_fma(v, v, s[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        rrms[i] = 1.0f / sqrtf(v16_sum(s[i]) / (float)D + eps);
        r[i] = v16_set(rrms[i]);
    }
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < D; j += 16) {
            v16 v = v16_mul(v16_get(x + i * D + j, D - j), r[i]);
            value_put(y, (first + i) * D + j, v16_mul(v, v16_get(w + j, D - j)), D - j);
        }
}

/* y(rows,D), rrms(rows) from x(rows,D), w(D). */
static void rmsnorm(float *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                    float eps)
{
    int64_t i = 0;
    for (; i + NORM_ROWS <= rows; i += NORM_ROWS) rmsnorm_some(y, rrms, x, w, i, NORM_ROWS, D, eps);
    for (; i < rows; i++) rmsnorm_some(y, rrms, x, w, i, 1, D, eps);
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
