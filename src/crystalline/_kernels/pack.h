/* Packing the right operand into panels of TILE_N columns, element by element of the sum. */
#ifndef CRY_PACK_H
#define CRY_PACK_H

#include "matmul.h"

/* 16 columns of a panel from rows of b, which are columns of the product: blocks of 16 x 16 are
 * mirrored in registers. */
static void pack_mirrored(float *panel, const float *b, int64_t ns, int64_t k, int64_t n)
{
    for (int64_t t = 0; t < k; t += 16 * OPERAND_STEPS, panel += 16 * TILE_N) {
        v16 r[16];
        int64_t rows = cry_min(16, (k - t + OPERAND_STEPS - 1) / OPERAND_STEPS);
        UNROLL for (int j = 0; j < 16; j++)
            r[j] = j < n ? operand_along(b + j * ns + t, k - t) : v16_zero();
        v16_transpose(r);
        for (int64_t u = 0; u < rows; u++) v16_store(panel + u * TILE_N, r[u]);
    }
}

/* panel = b, element (t, j) at b[t ks + j ns]; ks or ns is 1, n at most TILE_N. */
static void pack(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n)
{
    if (ns != 1) {
        for (int64_t j = 0; j < TILE_N; j += 16) pack_mirrored(panel + j, b + j * ns, ns, k, n - j);
        return;
    }
    for (int64_t t = 0; t < k; t += OPERAND_STEPS, b += OPERAND_STEPS * ks, panel += TILE_N)
        for (int64_t j = 0; j < TILE_N; j += 16)
            v16_store(panel + j, n > j ? operand_across(b + j, ks, k - t, n - j) : v16_zero());
}

#endif
