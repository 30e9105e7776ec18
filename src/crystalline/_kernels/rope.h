/* Rotary positions: the pair (x_i, x_(i+h)), h = head_dim / 2, turns by the angle position * w_i.
 *   y_i = x_i cos - x_(i+h) sin,   y_(i+h) = x_(i+h) cos + x_i sin;   backward turns the other way. */
#ifndef CRY_ROPE_H
#define CRY_ROPE_H

#include "operands.h"

/* The pair (a, b) turns by the angle of cosine c and sine s. */
CRY_INLINE void rope_pair(v16 *a, v16 *b, v16 c, v16 s)
{
    v16 bs = v16_mul(*b, s), as = v16_mul(*a, s);
    *a = v16_sub(v16_mul(*a, c), bs);
    *b = v16_fma(*b, c, as);
}

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
                rope_pair(&a, &b, cv, sv);
                v16_put(lo + j, a, n);
                v16_put(hi + j, b, n);
            }
        }
    }
}

#if defined(CRY_PAIRS)

CRY_INLINE v16 get_of(const float *p, int64_t at, int64_t n, const int wide)
{
    return wide ? v16_get(p + at, n) : value_get(p, at, n);
}
CRY_INLINE void put_of(float *p, int64_t at, v16 a, int64_t n, const int wide)
{
    if (wide) v16_put(p + at, a, n);
    else value_put(p, at, a, n);
}

/* y(rows, stride) = x with its heads turned, from bf16 to float32, or back by the inverse angle. */
CRY_INLINE void rope_between(float *y, const float *x, const float *cosine, const float *sine,
                             int64_t rows, int64_t stride, int64_t heads, int64_t head_dim,
                             int64_t position, int64_t T, const int inverse)
{
    int64_t h = head_dim / 2;
    v16 sign = v16_set(inverse ? -1.0f : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        const float *c = cosine + (position + r % T) * h, *s = sine + (position + r % T) * h;
        int64_t at = r * stride, end = at + stride;
        for (int64_t head = 0; head < heads; head++, at += head_dim)
            for (int64_t j = 0; j < h; j += 16) {
                int64_t n = h - j;
                v16 cv = v16_get(c + j, n), sv = v16_mul(sign, v16_get(s + j, n));
                v16 a = get_of(x, at + j, n, inverse), b = get_of(x, at + h + j, n, inverse);
                rope_pair(&a, &b, cv, sv);
                put_of(y, at + j, a, n, !inverse);
                put_of(y, at + h + j, b, n, !inverse);
            }
        for (; at < end; at += 16)
            put_of(y, at, get_of(x, at, end - at, inverse), end - at, !inverse);
    }
}

#endif

#endif
