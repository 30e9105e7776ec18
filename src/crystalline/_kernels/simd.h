/* One logical vector of 16 floats, v16, for the instruction set this unit is compiled for.
 *
 * Every kernel is written against these one-line functions and nothing else.  Each does the same
 * correctly rounded arithmetic on every instruction set, lane by lane, so the bits of a kernel do
 * not depend on which one runs: one zmm register, two ymm registers, or an array of 16.
 *
 *   max(a, b)   is a > b ? a : b in every lane (b when either is not a number), min alike
 *   round       is to nearest even, valid for |x| < 2^22
 *   scale2(x,n) multiplies by 2^n, rounding once, for integral -150 <= n <= 128 and 1/2 <= |x| < 2
 *   from_low_bits  the float whose sign and exponent are the low 9 bits of x's
 *   stream      stores around the caches, where p is 64-byte aligned; stream_end before others look
 *   sum, maxall combine lanes by the fixed tree 16 > 8 > 4 > 2 > 1 (lane i with lane i + half)
 *   transpose   turns 16 vectors, the rows of a block, into its columns */
#ifndef CRY_SIMD_H
#define CRY_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define CRY_INLINE static inline __attribute__((always_inline))

#if defined(CRY_ISA_avx512)

#include <immintrin.h>
#define CRY_ISA_NAME "avx512"
typedef __m512 v16;
enum { TILE_M = 12, TILE_V = 2 }; /* 12 rows x 32 columns = 24 of 32 zmm */

CRY_INLINE v16 v16_set(float x) { return _mm512_set1_ps(x); }
CRY_INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
CRY_INLINE void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
CRY_INLINE __mmask16 v16_mask(int64_t n) { return (__mmask16)((1u << n) - 1u); }
CRY_INLINE v16 v16_load_n(const float *p, int64_t n, float fill)
{
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), v16_mask(n), p);
}
CRY_INLINE void v16_store_n(float *p, v16 a, int64_t n) { _mm512_mask_storeu_ps(p, v16_mask(n), a); }
CRY_INLINE v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
CRY_INLINE v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
CRY_INLINE v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
CRY_INLINE v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
CRY_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
CRY_INLINE v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
CRY_INLINE v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
CRY_INLINE v16 v16_from_low_bits(v16 a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
CRY_INLINE v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
CRY_INLINE v16 v16_scale2(v16 a, v16 n) { return _mm512_scalef_ps(a, n); }
CRY_INLINE void v16_stream(float *p, v16 a) { _mm512_stream_ps(p, a); }
CRY_INLINE void v16_stream_end(void) { _mm_sfence(); }
/* Where a < b take x, elsewhere y. */
CRY_INLINE v16 v16_if_lt(v16 a, v16 b, v16 x, v16 y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
/* x = 2^e m with 1 <= m < 2, for positive normal x. */
CRY_INLINE v16 v16_exponent(v16 a)
{
    __m512i e = _mm512_srli_epi32(_mm512_castps_si512(a), 23);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(127)));
}
CRY_INLINE v16 v16_mantissa(v16 a)
{
    __m512i m = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x007fffff));
    return _mm512_castsi512_ps(_mm512_or_si512(m, _mm512_set1_epi32(0x3f800000)));
}

/* The first step of the trees below: 16 lanes to 8. */
CRY_INLINE __m256 cry_lower(v16 a) { return _mm512_castps512_ps256(a); }
CRY_INLINE __m256 cry_upper(v16 a) { return cry_lower(_mm512_shuffle_f32x4(a, a, 0x4e)); }
CRY_INLINE __m256 cry_half_sum(v16 a) { return _mm256_add_ps(cry_lower(a), cry_upper(a)); }
CRY_INLINE __m256 cry_half_max(v16 a) { return _mm256_max_ps(cry_lower(a), cry_upper(a)); }
/* The 16 x 16 block in r becomes its transpose. */
CRY_INLINE void v16_transpose(v16 r[16])
{
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 16; i += 8) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
    }
}

#elif defined(CRY_ISA_avx2)

#include <immintrin.h>
#define CRY_ISA_NAME "avx2"
typedef struct { __m256 a, b; } v16;
enum { TILE_M = 6, TILE_V = 1 }; /* 6 rows x 16 columns = 12 of 16 ymm */

CRY_INLINE v16 v16_of(__m256 a, __m256 b) { return (v16){a, b}; }
CRY_INLINE v16 v16_set(float x) { return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
CRY_INLINE v16 v16_load(const float *p) { return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
CRY_INLINE void v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
CRY_INLINE v16 v16_load_n(const float *p, int64_t n, float fill)
{
    float t[16];
    v16_store(t, v16_set(fill));
    memcpy(t, p, (size_t)n * sizeof(float));
    return v16_load(t);
}
CRY_INLINE void v16_store_n(float *p, v16 x, int64_t n)
{
    float t[16];
    v16_store(t, x);
    memcpy(p, t, (size_t)n * sizeof(float));
}
CRY_INLINE v16 v16_add(v16 x, v16 y) { return v16_of(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
CRY_INLINE v16 v16_sub(v16 x, v16 y) { return v16_of(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
CRY_INLINE v16 v16_mul(v16 x, v16 y) { return v16_of(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
CRY_INLINE v16 v16_div(v16 x, v16 y) { return v16_of(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
CRY_INLINE v16 v16_fma(v16 x, v16 y, v16 z)
{
    return v16_of(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
CRY_INLINE v16 v16_sqrt(v16 x) { return v16_of(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)); }
CRY_INLINE v16 v16_max(v16 x, v16 y) { return v16_of(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
/* In two factors, so that both ends of the range are reached; only the second can round. */
CRY_INLINE __m256 cry_scale2(__m256 a, __m256 n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(whole, half);
    a = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
CRY_INLINE v16 v16_scale2(v16 x, v16 n) { return v16_of(cry_scale2(x.a, n.a), cry_scale2(x.b, n.b)); }
CRY_INLINE v16 v16_min(v16 x, v16 y) { return v16_of(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
CRY_INLINE void v16_stream(float *p, v16 x)
{
    _mm256_stream_ps(p, x.a);
    _mm256_stream_ps(p + 8, x.b);
}
CRY_INLINE __m256 cry_from_low_bits(__m256 a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
CRY_INLINE v16 v16_from_low_bits(v16 x)
{
    return v16_of(cry_from_low_bits(x.a), cry_from_low_bits(x.b));
}
CRY_INLINE void v16_stream_end(void) { _mm_sfence(); }
CRY_INLINE v16 v16_if_lt(v16 a, v16 b, v16 x, v16 y)
{
    return v16_of(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                  _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ)));
}
CRY_INLINE __m256 cry_exponent(__m256 a)
{
    __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
CRY_INLINE v16 v16_exponent(v16 x) { return v16_of(cry_exponent(x.a), cry_exponent(x.b)); }
CRY_INLINE __m256 cry_mantissa(__m256 a)
{
    __m256i m = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x007fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(m, _mm256_set1_epi32(0x3f800000)));
}
CRY_INLINE v16 v16_mantissa(v16 x) { return v16_of(cry_mantissa(x.a), cry_mantissa(x.b)); }

CRY_INLINE __m256 cry_half_sum(v16 x) { return _mm256_add_ps(x.a, x.b); }
CRY_INLINE __m256 cry_half_max(v16 x) { return _mm256_max_ps(x.a, x.b); }
CRY_INLINE void cry_transpose8(__m256 r[8])
{
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
        t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
    }
    for (int j = 0; j < 8; j++) r[j] = t[j];
}
CRY_INLINE void v16_transpose(v16 r[16])
{
    __m256 t[4][8]; /* the quarters: upper left, upper right, lower left, lower right */
    for (int i = 0; i < 8; i++) {
        t[0][i] = r[i].a, t[1][i] = r[i].b;
        t[2][i] = r[8 + i].a, t[3][i] = r[8 + i].b;
    }
    for (int i = 0; i < 4; i++) cry_transpose8(t[i]);
    for (int i = 0; i < 8; i++) {
        r[i] = v16_of(t[0][i], t[2][i]);
        r[8 + i] = v16_of(t[1][i], t[3][i]);
    }
}

#else /* portable */

#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "floats must be rounded at every operation: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

#define CRY_ISA_NAME "portable"
typedef struct { float e[16]; } v16;
enum { TILE_M = 4, TILE_V = 1 };

#define CRY_LANES(expression) \
    v16 r; \
    for (int i = 0; i < 16; i++) r.e[i] = (expression); \
    return r

/* The fused multiply-add, rounded once, without needing the instruction.  The product of two floats
 * is exact in double; the sum is rounded to odd there (2Sum gives the error, its sign says which
 * neighbour is nearer zero), and rounding an odd-rounded double to float cannot round twice. */
CRY_INLINE float cry_fma1(float a, float b, float c)
{
    double p = (double)a * (double)b, d = (double)c;
    double s = p + d;
    double t = s - p;
    double e = (p - (s - t)) + (d - t);
    int64_t bits;
    memcpy(&bits, &s, 8);
    /* Inexact and even: step to the odd neighbour on the side of the error. */
    int64_t inexact = ((e > 0.0) | (e < 0.0)) & ~bits & 1; /* false for infinities and NaN */
    int64_t up = ((e > 0.0) == (s > 0.0)) ? 1 : -1;
    bits += inexact ? up : 0;
    memcpy(&s, &bits, 8);
    return (float)s;
}
CRY_INLINE v16 v16_set(float x) { CRY_LANES(x); }
CRY_INLINE v16 v16_load(const float *p) { CRY_LANES(p[i]); }
CRY_INLINE void v16_store(float *p, v16 a) { memcpy(p, a.e, sizeof a.e); }
CRY_INLINE v16 v16_load_n(const float *p, int64_t n, float fill) { CRY_LANES(i < n ? p[i] : fill); }
CRY_INLINE void v16_store_n(float *p, v16 a, int64_t n) { memcpy(p, a.e, (size_t)n * sizeof(float)); }
CRY_INLINE v16 v16_add(v16 a, v16 b) { CRY_LANES(a.e[i] + b.e[i]); }
CRY_INLINE v16 v16_sub(v16 a, v16 b) { CRY_LANES(a.e[i] - b.e[i]); }
CRY_INLINE v16 v16_mul(v16 a, v16 b) { CRY_LANES(a.e[i] * b.e[i]); }
CRY_INLINE v16 v16_div(v16 a, v16 b) { CRY_LANES(a.e[i] / b.e[i]); }
CRY_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { CRY_LANES(cry_fma1(a.e[i], b.e[i], c.e[i])); }
CRY_INLINE v16 v16_sqrt(v16 a) { CRY_LANES(sqrtf(a.e[i])); }
CRY_INLINE v16 v16_max(v16 a, v16 b) { CRY_LANES(a.e[i] > b.e[i] ? a.e[i] : b.e[i]); }
CRY_INLINE int32_t cry_bits(float x)
{
    int32_t i;
    memcpy(&i, &x, 4);
    return i;
}
CRY_INLINE float cry_float(int32_t i)
{
    float x;
    memcpy(&x, &i, 4);
    return x;
}
/* In two factors, as above.  The number is not converted, as it may be none: 2^23 + n has n in its
 * last bits. */
CRY_INLINE float cry_scale2(float a, float n)
{
    int32_t whole = (int32_t)((uint32_t)cry_bits(n + 12582912.0f) - 0x4b400000u), half = whole >> 1;
    a *= cry_float((int32_t)((uint32_t)(half + 127) << 23));
    return a * cry_float((int32_t)((uint32_t)(whole - half + 127) << 23));
}
CRY_INLINE v16 v16_from_low_bits(v16 a)
{
    CRY_LANES(cry_float((int32_t)((uint32_t)cry_bits(a.e[i]) << 23)));
}
CRY_INLINE v16 v16_scale2(v16 a, v16 n) { CRY_LANES(cry_scale2(a.e[i], n.e[i])); }
CRY_INLINE v16 v16_min(v16 a, v16 b) { CRY_LANES(a.e[i] < b.e[i] ? a.e[i] : b.e[i]); }
CRY_INLINE void v16_stream(float *p, v16 a) { v16_store(p, a); }
CRY_INLINE void v16_stream_end(void) {}
CRY_INLINE v16 v16_if_lt(v16 a, v16 b, v16 x, v16 y) { CRY_LANES(a.e[i] < b.e[i] ? x.e[i] : y.e[i]); }
CRY_INLINE v16 v16_exponent(v16 a) { CRY_LANES((float)((int32_t)((uint32_t)cry_bits(a.e[i]) >> 23) - 127)); }
CRY_INLINE v16 v16_mantissa(v16 a)
{
    CRY_LANES(cry_float((cry_bits(a.e[i]) & 0x007fffff) | 0x3f800000));
}

CRY_INLINE void v16_transpose(v16 r[16])
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            float t = r[i].e[j];
            r[i].e[j] = r[j].e[i];
            r[j].e[i] = t;
        }
}

#endif

CRY_INLINE v16 v16_zero(void) { return v16_set(0.0f); }

/* How many of the n floats at p lie before the first address that v16_stream may have. */
CRY_INLINE int64_t v16_stream_head(const float *p, int64_t n)
{
    int64_t head = (int64_t)((64 - ((uintptr_t)p & 63)) & 63) / 4;
    return head < n ? head : n;
}

/* Adding and taking away 1.5 * 2^23 rounds to nearest even with plain additions. */
CRY_INLINE v16 v16_round(v16 a)
{
    v16 magic = v16_set(12582912.0f);
    return v16_sub(v16_add(a, magic), magic);
}

/* Element 0 of an operation taken over all lanes by the tree: 16 > 8 > 4 > 2 > 1. */
#if defined(CRY_ISA_avx512) || defined(CRY_ISA_avx2)
CRY_INLINE float v16_sum(v16 a)
{
    __m256 half = cry_half_sum(a);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

CRY_INLINE float v16_maxall(v16 a)
{
    __m256 half = cry_half_max(a);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
#else
CRY_INLINE float v16_sum(v16 a)
{
    float t[16];
    v16_store(t, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] + t[i + half];
    return t[0];
}

CRY_INLINE float v16_maxall(v16 a)
{
    float t[16];
    v16_store(t, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
    return t[0];
}
#endif

#endif
