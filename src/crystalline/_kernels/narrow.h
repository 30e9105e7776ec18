/* Sixteen weights of fewer bits as one vector of floats, and a square of floats turned over.
 *
 * bf16 is the upper half of a float; int8 is a whole number from -127 to 127.  Widening either is
 * exact, so a product with them has the same bits on every instruction set. */
#ifndef CRY_NARROW_H
#define CRY_NARROW_H

#include "mathfun.h"

#if defined(CRY_ISA_avx512)

CRY_INLINE v16 v16_from_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
CRY_INLINE v16 v16_from_int8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}

/* Sixteen rows of a stride.  Left to itself the compiler keeps an address for each and has registers
 * for none: here two bases and four strides reach all of them. */
typedef struct cry_rows {
    const char *low, *high; /* rows 0 and 8 */
    int64_t one, three, five, seven;
} cry_rows;

CRY_INLINE cry_rows rows_of(const float *w, int64_t ld)
{
    int64_t one = 4 * ld;
    cry_rows r = {(const char *)w, (const char *)w + 8 * one, one, 3 * one, 5 * one, 7 * one};
    __asm__("" : "+r"(r.low), "+r"(r.high), "+r"(r.one), "+r"(r.three), "+r"(r.five), "+r"(r.seven));
    return r;
}
CRY_INLINE const float *row_at(const cry_rows *r, const int i)
{
    const char *base = i < 8 ? r->low : r->high;
    const int64_t at[8] = {0, r->one, 2 * r->one, r->three, 4 * r->one, r->five, 2 * r->three,
                           r->seven};
    return (const float *)(const void *)(base + at[i % 8]);
}

/* Eight floats of rows i and i + 4 from column t on.  A masked load goes through any port, where
 * shuffles have two; one of eight floats takes half the loads of four each. */
CRY_INLINE v16 v16_halves(const cry_rows *r, const int i, const int t)
{
    v16 low = _mm512_castps256_ps512(_mm256_loadu_ps(row_at(r, i) + t));
    return _mm512_mask_broadcast_f32x8(low, 0xff00, _mm256_loadu_ps(row_at(r, i + 4) + t));
}

/* Rows i .. i + 8, columns t .. t + 8: to[c] has column t + c of rows i .. i + 4, column t + c + 4 of
 * these, then both of the next four rows. */
CRY_INLINE void v16_turn_fours(v16 to[4], const cry_rows *r, const int i, const int t)
{
    v16 a = v16_halves(r, i, t), b = v16_halves(r, i + 1, t);
    v16 c = v16_halves(r, i + 2, t), d = v16_halves(r, i + 3, t);
    __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    __m512d high2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    to[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
    to[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
    to[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
    to[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
}

/* to[t] lane j = w[j ld + t]. */
CRY_INLINE void v16_turn(v16 to[16], const float *w, int64_t ld)
{
    const cry_rows r = rows_of(w, ld);
    _Pragma("GCC unroll 2") for (int t = 0; t < 16; t += 8) {
        v16 upper[4], lower[4];
        v16_turn_fours(upper, &r, 0, t);
        v16_turn_fours(lower, &r, 8, t);
        _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {
            to[t + c] = _mm512_shuffle_f32x4(upper[c], lower[c], 0x88);
            to[t + c + 4] = _mm512_shuffle_f32x4(upper[c], lower[c], 0xdd);
        }
    }
}

#elif defined(CRY_ISA_avx2)

CRY_INLINE v16 v16_from_bf16(const uint16_t *p)
{
    __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p + 8)));
    return v16_of(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                  _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)));
}
CRY_INLINE v16 v16_from_int8(const int8_t *p)
{
    return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))),
                  _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8)))));
}

CRY_INLINE __m256 cry_halves(const float *w, int64_t ld)
{
    __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(w));
    return _mm256_insertf128_ps(low, _mm_loadu_ps(w + 4 * ld), 1);
}

/* Four columns of eight rows. */
CRY_INLINE void cry_turn8(__m256 to[4], const float *w, int64_t ld)
{
    __m256 a = cry_halves(w, ld), b = cry_halves(w + ld, ld);
    __m256 c = cry_halves(w + 2 * ld, ld), d = cry_halves(w + 3 * ld, ld);
    __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
    __m256d high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
    __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
    __m256d high2 = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
    to[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2));
    to[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2));
    to[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2));
    to[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2));
}

/* to[t] lane j = w[j ld + t]. */
CRY_INLINE void v16_turn(v16 to[16], const float *w, int64_t ld)
{
    for (int t = 0; t < 16; t += 4) {
        __m256 upper[4], lower[4];
        cry_turn8(upper, w + t, ld);
        cry_turn8(lower, w + 8 * ld + t, ld);
        for (int i = 0; i < 4; i++) to[t + i] = v16_of(upper[i], lower[i]);
    }
}

#else

CRY_INLINE v16 v16_from_bf16(const uint16_t *p)
{
    CRY_LANES(cry_float((int32_t)((uint32_t)p[i] << 16)));
}
CRY_INLINE v16 v16_from_int8(const int8_t *p) { CRY_LANES((float)p[i]); }

/* to[t] lane j = w[j ld + t]. */
CRY_INLINE void v16_turn(v16 to[16], const float *w, int64_t ld)
{
    for (int t = 0; t < 16; t++)
        for (int j = 0; j < 16; j++) to[t].e[j] = w[j * ld + t];
}

#endif

/* As v16_turn, for the `columns` and `rows` that are there; other lanes are zero. */
CRY_INLINE void v16_turn_n(v16 to[16], const float *w, int64_t ld, int64_t rows, int64_t columns)
{
    for (int64_t t = 0; t < columns; t++) {
        float lanes[16] = {0.0f};
        for (int64_t j = 0; j < rows; j++) lanes[j] = w[j * ld + t];
        to[t] = v16_load(lanes);
    }
}

/* The nearest bf16, ties to even; not-a-number stays one. */
CRY_INLINE uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
