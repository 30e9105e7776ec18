/* What an element of a packed matrix is: here one float.
 *
 * With CRY_PAIRS (unit bf16.c) it is 32 bits that hold two bf16 numbers, neighbours in the direction
 * of the sum, the earlier one in the low half; OPERAND_STEPS of the sum are then one instruction. */
#ifndef CRY_OPERANDS_H
#define CRY_OPERANDS_H

#include "mathfun.h"

#if !defined(CRY_PAIRS)

enum { OPERAND_STEPS = 1, OPERAND_NARROW = 0 };

CRY_INLINE v16 operand_fma(v16 a, v16 b, v16 c) { return v16_fma(a, b, c); }

CRY_INLINE const float *operand_at(const float *a, int64_t offset) { return a + offset; }
CRY_INLINE v16 operand_set(const float *a) { return v16_set(*a); }

/* to(m) = one element of each of m columns that are neighbours; `left` steps of the sum exist. */
CRY_INLINE void operand_step(float *to, const float *a, int64_t cs, int64_t m, int64_t left)
{
    (void)cs, (void)left;
    for (int64_t i = 0; i < m; i += 16) v16_put(to + i, v16_get(a + i, m - i), m - i);
}

/* block(k, ld) = the m columns of k steps of a. */
static void operand_columns(float *block, int64_t ld, const float *a, int64_t rs, int64_t cs,
                            int64_t m, int64_t k)
{
    for (int64_t t = 0; t < k; t++, block += ld, a += cs)
        if (rs == 1) operand_step(block, a, cs, m, 1);
        else
            for (int64_t i = 0; i < m; i++) block[i] = a[i * rs];
}

/* Rows t of b, 16 columns of it from one address, as elements. */
CRY_INLINE v16 operand_across(const float *b, int64_t ks, int64_t left, int64_t n)
{
    (void)ks, (void)left;
    return v16_get(b, n);
}
/* 16 elements of the sum from one address, where n steps of it exist. */
CRY_INLINE v16 operand_along(const float *b, int64_t n) { return v16_get(b, n); }

/* Entries at .. at + 16 (n of them) of an activation: floats here, bf16 with CRY_PAIRS. */
CRY_INLINE v16 value_get(const float *p, int64_t at, int64_t n) { return v16_get(p + at, n); }
CRY_INLINE void value_put(float *p, int64_t at, v16 a, int64_t n) { v16_put(p + at, a, n); }

#else

enum { OPERAND_STEPS = 2, OPERAND_NARROW = 1 };

CRY_INLINE v16 operand_fma(v16 a, v16 b, v16 c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

CRY_INLINE const float *operand_at(const float *a, int64_t offset)
{
    return (const float *)((const uint16_t *)a + offset);
}

/* A pair for every lane.  It lies at the address of a bf16, which need not be one of a float. */
CRY_INLINE v16 operand_set(const float *a)
{
    float pair;
    memcpy(&pair, (const void *)a, sizeof pair);
    return v16_set(pair);
}

/* 16 floats, rounded to bf16 (to nearest, even), each in the low half of 32 bits. */
CRY_INLINE __m512i narrowed(v16 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

CRY_INLINE v16 paired(__m512i low, __m512i high)
{
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* n < 16 of 16 numbers of bf16, each in the low half of 32 bits. */
CRY_INLINE __m512i widened(const uint16_t *p, int64_t n)
{
    if (n >= 16) return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return n <= 0 ? _mm512_setzero_si512()
                  : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(v16_mask(n), p));
}

CRY_INLINE void operand_step(float *to, const float *a, int64_t cs, int64_t m, int64_t left)
{
    const uint16_t *x = (const uint16_t *)a;
    for (int64_t i = 0; i < m; i += 16) {
        __m512i high = left > 1 ? widened(x + cs + i, m - i) : _mm512_setzero_si512();
        v16_put(to + i, paired(widened(x + i, m - i), high), m - i);
    }
}

static void operand_columns(float *block, int64_t ld, const float *a, int64_t rs, int64_t cs,
                            int64_t m, int64_t k)
{
    (void)rs; /* 1: columns of a are neighbours */
    for (int64_t t = 0; t < k; t += 2, block += ld)
        operand_step(block, operand_at(a, t * cs), cs, m, k - t);
}

CRY_INLINE v16 operand_across(const float *b, int64_t ks, int64_t left, int64_t n)
{
    __m512i high = left > 1 ? narrowed(v16_get(b + ks, n)) : _mm512_setzero_si512();
    return paired(narrowed(v16_get(b, n)), high);
}
CRY_INLINE v16 operand_along(const float *b, int64_t n)
{
    v16 low = v16_get(b, n), high = n > 16 ? v16_get(b + 16, n - 16) : v16_zero();
    return (v16)_mm512_cvtne2ps_pbh(high, low);
}

CRY_INLINE v16 value_get(const float *p, int64_t at, int64_t n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(widened((const uint16_t *)p + at, n), 16));
}
CRY_INLINE void value_put(float *p, int64_t at, v16 a, int64_t n)
{
    uint16_t *to = (uint16_t *)p + at;
    if (n >= 16) _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(a));
    else _mm256_mask_storeu_epi16(to, v16_mask(n), (__m256i)_mm512_cvtneps_pbh(a));
}

#endif

#endif
