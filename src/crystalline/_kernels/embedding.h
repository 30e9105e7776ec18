/* Embedding.  x[r] = w[ids[r]];   dw[v] = sum of dx[r] over the rows r where token v stands. */
#ifndef CRY_EMBEDDING_H
#define CRY_EMBEDDING_H

#include "crystalline/kernels.h"
#include "mathfun.h"

/* x(rows,D) from w(V,D). */
static void embedding(float *x, const float *w, const int32_t *ids, int64_t rows, int64_t D)
{
    for (int64_t r = 0; r < rows; r++) memcpy(x + r * D, w + ids[r] * D, (size_t)D * sizeof(float));
}

/* dw(D) of one token, whose rows are list[0..count), rising.  In each group a chain in row order,
 * then the fixed tree; a group in which the token does not stand adds nothing.
 * With `weight` row r counts weight[r] times. */
CRY_INLINE void token_sum(float *dw, const float *dx, const float *weight, const int32_t *list,
                          int64_t count, const int64_t *groups, int64_t D, int accumulate)
{
    for (int64_t j = 0; j < D; j += 16) {
        int64_t n = D - j, at = 0;
        v16 total = accumulate ? v16_get(dw + j, n) : v16_zero();
        for (int third = 0; third < CRY_GROUPS; third += 3) {
            v16 q = v16_zero();
            int64_t before = at;
            for (int g = third; g < third + 3; g++) {
                int64_t first = at;
                v16 s = v16_zero();
                for (; at < count && list[at] < groups[g + 1]; at++) {
                    v16 x = v16_get(dx + list[at] * D + j, n);
                    s = weight ? v16_fma(v16_set(weight[list[at]]), x, s) : v16_add(s, x);
                }
                if (at > first) q = first > before ? v16_add(q, s) : s;
            }
            if (at > before) total = v16_add(total, q);
        }
        v16_put(dw + j, total, n);
    }
}

static void embedding_bwd(float *dw, const float *dx, const int32_t *list, int64_t count,
                          const int64_t *groups, int64_t D, int accumulate)
{
    token_sum(dw, dx, NULL, list, count, groups, D, accumulate);
}

static void weighted_bwd(float *dw, const float *dx, const float *weight, const int32_t *list,
                         int64_t count, const int64_t *groups, int64_t D)
{
    token_sum(dw, dx, weight, list, count, groups, D, 1);
}

/* out(n) = sums(group, n) by the fixed tree. */
static void tree_add(float *out, const float *sums, int64_t n, const cry_branch *branches, int count)
{
    for (int64_t j = 0; j < n; j += 16) {
        int64_t left = n - j;
        v16 q = v16_zero();
        for (int g = 0; g < count; g++) {
            v16 s = v16_get(sums + g * n + j, left);
            q = branches[g].first_in_q ? s : v16_add(q, s);
            if (!branches[g].last_in_q) continue;
            v16_put(out + j, branches[g].starts_total ? q : v16_add(v16_get(out + j, left), q), left);
        }
    }
}

#endif
