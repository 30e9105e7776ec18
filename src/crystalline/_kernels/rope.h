/* Rotary positions: the pair (x_i, x_(i+h)), h = head_dim / 2, turns by the angle position * w_i.
 *   y_i = x_i cos - x_(i+h) sin,   y_(i+h) = x_(i+h) cos + x_i sin;   backward turns the other way. */
#ifndef CRY_ROPE_H
#define CRY_ROPE_H

#include "mathfun.h"

/* x(rows, stride): the first `heads` heads of each row, in place; tables (positions, head_dim / 2).
 * Row r stands at position + r mod T. */
static void rope(float *x, const float *cosine, const float *sine, int64_t rows, int64_t stride,
                 int64_t heads, int64_t head_dim, int64_t position, int64_t T, int inverse)
{
    int64_t h = head_dim / 2;
    v16 sign = v16_set(inverse ? -1.0f : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        const float *c = cosine + (position + r % T) * h, *s = sine + (position + r % T) * h;
        for (int64_t head = 0; head < heads; head++) {
            float *lo = x + r * stride + head * head_dim, *hi = lo + h;
            for (int64_t j = 0; j < h; j += 16) {
                int64_t n = h - j;
                v16 cv = v16_get(c + j, n), sv = v16_mul(sign, v16_get(s + j, n));
                v16 a = v16_get(lo + j, n), b = v16_get(hi + j, n);
                v16 bs = v16_mul(b, sv), as = v16_mul(a, sv);
                v16_put(lo + j, v16_sub(v16_mul(a, cv), bs), n);
                v16_put(hi + j, v16_fma(b, cv, as), n);
            }
        }
    }
}

#endif
