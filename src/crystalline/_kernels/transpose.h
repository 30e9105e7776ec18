/* A block of 16 x 16 elements of 32 bits, mirrored at its diagonal. */
#ifndef CRY_TRANSPOSE_H
#define CRY_TRANSPOSE_H

#include "simd.h"

#if defined(CRY_ISA_avx512)

/* Neighbouring rows are merged, then pairs of them, then quarters are dealt out. */
CRY_INLINE void v16_transpose(v16 r[16])
{
    __m512 a[16];
    __m512d b[16];
    _Pragma("GCC unroll 8") for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4)
        _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) {
            __m512d x = _mm512_castps_pd(a[i + h]), y = _mm512_castps_pd(a[i + h + 2]);
            b[i + 2 * h] = _mm512_unpacklo_pd(x, y);
            b[i + 2 * h + 1] = _mm512_unpackhi_pd(x, y);
        }
    _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {
        __m512 w = _mm512_castpd_ps(b[c]), x = _mm512_castpd_ps(b[c + 4]);
        __m512 y = _mm512_castpd_ps(b[c + 8]), z = _mm512_castpd_ps(b[c + 12]);
        __m512 wx = _mm512_shuffle_f32x4(w, x, 0x44), yz = _mm512_shuffle_f32x4(y, z, 0x44);
        r[c] = _mm512_shuffle_f32x4(wx, yz, 0x88);
        r[c + 4] = _mm512_shuffle_f32x4(wx, yz, 0xdd);
        wx = _mm512_shuffle_f32x4(w, x, 0xee), yz = _mm512_shuffle_f32x4(y, z, 0xee);
        r[c + 8] = _mm512_shuffle_f32x4(wx, yz, 0x88);
        r[c + 12] = _mm512_shuffle_f32x4(wx, yz, 0xdd);
    }
}

#else

CRY_INLINE void v16_transpose(v16 r[16])
{
    float t[16][16];
    for (int i = 0; i < 16; i++) v16_store(t[i], r[i]);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            float x = t[i][j];
            t[i][j] = t[j][i];
            t[j][i] = x;
        }
    for (int i = 0; i < 16; i++) r[i] = v16_load(t[i]);
}

#endif
#endif
