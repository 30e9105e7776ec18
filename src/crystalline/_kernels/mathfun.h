/* exp and log of a v16, by our own polynomials: the same bits on every instruction set.
 *
 * exp(x) = 2^n e^r,  n = round(x / ln 2),  |r| <= ln 2 / 2,  e^r by Taylor's series to r^7
 * log(x) = e ln 2 + log(1 + f),  1 + f the mantissa in [sqrt(1/2), sqrt 2),
 *          log(1 + f) = 2 atanh(s),  s = f / (2 + f),  by the series in s^2
 * Both are within 2 ulp where argument and result are normal numbers; not-a-number goes through. */
#ifndef CRY_MATHFUN_H
#define CRY_MATHFUN_H

#include "simd.h"

#define CRY_LN2_HI 0.693359375f      /* 355/512: n times it is exact */
#define CRY_LN2_LO (-2.12194440e-4f) /* ln 2 less the above */

CRY_INLINE v16 v16_exp(v16 x)
{
    /* In this order of arguments a not-a-number is kept.  Below -104 the result is 0. */
    x = v16_max(v16_set(-104.0f), x);
    x = v16_if_lt(v16_set(89.0f), x, v16_set(89.0f), x);
    v16 n = v16_round(v16_mul(x, v16_set(1.44269504f)));
    v16 r = v16_fma(n, v16_set(-CRY_LN2_HI), x);
    r = v16_fma(n, v16_set(-CRY_LN2_LO), r);
    v16 p = v16_set(1.0f / 5040.0f);
    p = v16_fma(p, r, v16_set(1.0f / 720.0f));
    p = v16_fma(p, r, v16_set(1.0f / 120.0f));
    p = v16_fma(p, r, v16_set(1.0f / 24.0f));
    p = v16_fma(p, r, v16_set(1.0f / 6.0f));
    p = v16_fma(p, r, v16_set(0.5f));
    p = v16_fma(p, r, v16_set(1.0f));
    p = v16_fma(p, r, v16_set(1.0f));
    /* 2^n in two factors, so that both ends of the range are reached. */
    v16 half = v16_round(v16_mul(n, v16_set(0.5f)));
    return v16_scale2(v16_scale2(p, half), v16_sub(n, half));
}

/* x = 2^x for n vectors of x <= 127; below -126.5 it is 0.  2^r, |r| <= 1/2, by a polynomial of
 * degree 6 whose largest relative error is least.  n vectors go step by step, so that a processor
 * always has independent work before it. */
CRY_INLINE void v16_exp2_all(v16 *x, const int n)
{
    static const float c[6] = {0.00015353362f, 0.0013398874f, 0.009618437f,
                               0.055503324f,   0.24022648f,   0.6931472f};
    /* 1.5 * 2^23 + 127: the sum is rounded to a whole number and ends in the exponent of 2^n. */
    v16 magic = v16_set(12583039.0f), whole[8], p[8];
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) {
        x[i] = v16_max(v16_set(-127.0f), x[i]); /* a not-a-number is kept */
        whole[i] = v16_add(x[i], magic);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) {
        x[i] = v16_sub(x[i], v16_sub(whole[i], magic));
        p[i] = v16_fma(v16_set(c[0]), x[i], v16_set(c[1]));
    }
    _Pragma("GCC unroll 4") for (int k = 2; k < 6; k++)
        _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)
            p[i] = v16_fma(p[i], x[i], v16_set(c[k]));
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) {
        p[i] = v16_fma(p[i], x[i], v16_set(1.0f));
        x[i] = v16_mul(p[i], v16_from_low_bits(whole[i]));
    }
}

CRY_INLINE v16 v16_exp2(v16 x)
{
    v16_exp2_all(&x, 1);
    return x;
}

CRY_INLINE v16 v16_log(v16 x)
{
    v16 e = v16_exponent(x), m = v16_mantissa(x);
    v16 root2 = v16_set(1.41421354f);
    e = v16_if_lt(m, root2, e, v16_add(e, v16_set(1.0f)));
    m = v16_if_lt(m, root2, m, v16_mul(m, v16_set(0.5f)));
    v16 f = v16_sub(m, v16_set(1.0f));
    v16 s = v16_div(f, v16_add(f, v16_set(2.0f)));
    v16 s2 = v16_mul(s, s);
    v16 p = v16_set(2.0f / 9.0f);
    p = v16_fma(p, s2, v16_set(2.0f / 7.0f));
    p = v16_fma(p, s2, v16_set(2.0f / 5.0f));
    p = v16_fma(p, s2, v16_set(2.0f / 3.0f));
    /* 2 atanh(s) = f - s (f - s^2 p): the large part f is added last and exactly. */
    v16 tail = v16_mul(s, v16_sub(f, v16_mul(s2, p)));
    tail = v16_sub(v16_mul(e, v16_set(CRY_LN2_LO)), tail);
    v16 y = v16_fma(e, v16_set(CRY_LN2_HI), v16_add(f, tail));
    return v16_if_lt(x, v16_set(INFINITY), y, x); /* infinity and not-a-number go through */
}

/* Row ends: the first n < 16 elements are read or written, the others count as `fill`. */
CRY_INLINE v16 v16_get_or(const float *p, int64_t n, float fill)
{
    return n >= 16 ? v16_load(p) : v16_load_n(p, n, fill);
}
CRY_INLINE v16 v16_get(const float *p, int64_t n) { return v16_get_or(p, n, 0.0f); }
CRY_INLINE void v16_put(float *p, v16 a, int64_t n)
{
    if (n >= 16) v16_store(p, a);
    else v16_store_n(p, a, n);
}

#endif
