/* The block products of attention, and what moves rows into blocks and back.
 *
 * A block is 64 keys by 64 queries, a row a key: s(key, query).  So a vector holds 16 queries,
 * whose maximum, sum and shift need no crossing of lanes, and every product reads one operand by
 * single numbers and the other by vectors as they lie:
 *
 *   s = k q^T     numbers of k(64, wide),  vectors of q^T(width, 64)
 *   o += s^T v    numbers of s,            vectors of v(64, wide);   dq += ds^T k is the same
 *   dv += s d     numbers of s,            vectors of d(64, wide);   dk += ds q is the same
 *
 * wide is the width of a head rounded up to 16, the rest zero.  `ahead` is the position of the
 * block's first query less that of its first key: query j sees the keys up to j + ahead.  What lies
 * behind is not computed, but for the corners of tiles.  For operands in another format part_run
 * and what fills the blocks are what changes. */
#ifndef CRY_ATTENTION_TILE_H
#define CRY_ATTENTION_TILE_H

#include "mathfun.h"
#include "matmul.h"

#if defined(CRY_ISA_avx512)
enum { PART_M = 8, PART_V = 2, TOGETHER = 4 }; /* 16 of 32 zmm: 10 reads for 16 products */
#else
enum { PART_M = 4, PART_V = 1, TOGETHER = 2 }; /* 8 of 16 ymm */
#endif
enum { BLOCK = 64 };

typedef v16 cry_part[PART_M][PART_V];

CRY_INLINE int64_t cry_max(int64_t a, int64_t b) { return a > b ? a : b; }
CRY_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* acc += a b over k steps of PART_M rows and nv vectors; a(i, t) is a[i rs + t cs]. */
CRY_INLINE void part_run(cry_part acc, const int nv, int64_t k, const float *a, const int64_t rs,
                         const int64_t cs, const float *b, const int64_t ldb)
{
    const float *low = a, *high = a + PART_M / 2 * rs;
    for (int64_t t = 0; t < k; t++) {
        v16 bv[PART_V];
        UNROLL for (int j = 0; j < nv; j++) bv[j] = v16_load(b + 16 * j);
        UNROLL for (int i = 0; i < PART_M; i++) {
            v16 av = v16_set(i < PART_M / 2 ? low[i * rs] : high[(i - PART_M / 2) * rs]);
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_fma(av, bv[j], acc[i][j]);
        }
        low += cs;
        high += cs;
        b += ldb;
    }
}

CRY_INLINE void part_zero(cry_part acc, const int nv)
{
    UNROLL for (int i = 0; i < PART_M; i++)
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_zero();
}

CRY_INLINE void part_load(cry_part acc, const int nv, const float *c, int64_t ld)
{
    UNROLL for (int i = 0; i < PART_M; i++)
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_load(c + i * ld + 16 * j);
}

CRY_INLINE void part_store(cry_part acc, const int nv, float *c, int64_t ld)
{
    UNROLL for (int i = 0; i < PART_M; i++)
        UNROLL for (int j = 0; j < nv; j++) v16_store(c + i * ld + 16 * j, acc[i][j]);
}

/* Of n keys, those that some of the queries before `end` see. */
CRY_INLINE int64_t keys_seen(int64_t n, int64_t end, int64_t ahead)
{
    return cry_max(0, cry_min(n, end + ahead));
}

/* s(keys, 64) = k(keys, wide) qt(width, 64): keys first .. n, a panel of nv vectors of queries. */
CRY_INLINE void scores_panel(const int nv, float *s, const float *k, const float *qt, int64_t width,
                             int64_t wide, int64_t first, int64_t n)
{
    for (int64_t i = first; i < n; i += PART_M) {
        cry_part acc;
        part_zero(acc, nv);
        part_run(acc, nv, width, k + i * wide, wide, 1, qt, BLOCK);
        part_store(acc, nv, s + i * BLOCK, BLOCK);
    }
}

/* Where a panel has two vectors, the keys that the first does not see are left to the second. */
static void scores(float *s, const float *k, const float *qt, int64_t width, int64_t wide,
                   int64_t keys, int64_t queries, int64_t ahead)
{
    for (int64_t j = 0; j < queries; j += 16 * PART_V) {
        int64_t n = round_up(keys_seen(keys, j + 16, ahead), PART_M), j2 = j + 16;
        if (PART_V == 1 || j2 >= queries) {
            scores_panel(1, s + j, k, qt + j, width, wide, 0, n);
        } else {
            scores_panel(PART_V, s + j, k, qt + j, width, wide, 0, n);
            scores_panel(1, s + j2, k, qt + j2, width, wide, n, keys_seen(keys, j2 + 16, ahead));
        }
    }
}

/* o(queries, wide) = shrink(queries) o + s^T v, a panel of nv vectors; without shrink o + s^T v. */
CRY_INLINE void by_query_panel(const int nv, float *o, const float *shrink, const float *s,
                               const float *v, int64_t wide, int64_t keys, int64_t queries,
                               int64_t ahead)
{
    for (int64_t i = 0; i < queries; i += PART_M) {
        cry_part acc;
        part_load(acc, nv, o + i * wide, wide);
        if (shrink)
            UNROLL for (int r = 0; r < PART_M; r++)
                UNROLL for (int j = 0; j < nv; j++)
                    acc[r][j] = v16_mul(acc[r][j], v16_set(shrink[i + r]));
        part_run(acc, nv, keys_seen(keys, i + PART_M, ahead), s + i, 1, BLOCK, v, wide);
        part_store(acc, nv, o + i * wide, wide);
    }
}

static void by_query(float *o, const float *shrink, const float *s, const float *v, int64_t wide,
                     int64_t keys, int64_t queries, int64_t ahead)
{
    int64_t j = 0;
    for (; j + 16 * PART_V <= wide; j += 16 * PART_V)
        by_query_panel(PART_V, o + j, shrink, s, v + j, wide, keys, queries, ahead);
    if (j < wide) by_query_panel(1, o + j, shrink, s, v + j, wide, keys, queries, ahead);
}

/* o(keys, wide) += s d, one panel of nv vectors; a key begins with the first query that sees it. */
CRY_INLINE void by_key_panel(const int nv, float *o, const float *s, const float *d, int64_t wide,
                             int64_t keys, int64_t queries, int64_t ahead)
{
    for (int64_t i = 0; i < keys; i += PART_M) {
        int64_t first = cry_max(0, i - ahead);
        if (first >= queries) return;
        cry_part acc;
        part_load(acc, nv, o + i * wide, wide);
        part_run(acc, nv, queries - first, s + i * BLOCK + first, BLOCK, 1, d + first * wide, wide);
        part_store(acc, nv, o + i * wide, wide);
    }
}

static void by_key(float *o, const float *s, const float *d, int64_t wide, int64_t keys,
                   int64_t queries, int64_t ahead)
{
    int64_t j = 0;
    for (; j + 16 * PART_V <= wide; j += 16 * PART_V)
        by_key_panel(PART_V, o + j, s, d + j, wide, keys, queries, ahead);
    if (j < wide) by_key_panel(1, o + j, s, d + j, wide, keys, queries, ahead);
}

/* --- Rows into blocks and back. */

/* Rows that will be wanted next, fetched into the cache a few at a time while others are at work: a
 * head's rows lie far apart, where no processor expects them.  Nothing depends on it but time. */
typedef struct cry_upcoming {
    const float *at[8];
    int64_t step[8];
    int64_t arrays, rows, width;
} cry_upcoming;

CRY_INLINE void upcoming_add(cry_upcoming *u, const float *x, int64_t step)
{
    u->at[u->arrays] = x;
    u->step[u->arrays++] = step;
}

CRY_INLINE void upcoming_fetch(cry_upcoming *u, int64_t rows)
{
    for (; u->rows > 0 && rows > 0; rows--, u->rows--)
        for (int64_t i = 0; i < u->arrays; i++, u->at[i - 1] += u->step[i - 1])
            for (int64_t j = 0; j < u->width; j += 16) __builtin_prefetch(u->at[i] + j, 0, 2);
}

/* t(w, ldt) = factor x(rows, w)^T, zero from column `rows` to the next multiple of 16.  With y also
 * y(rows, ldy) = x, zero beside and below likewise. */
CRY_INLINE void transpose_rows(float *t, int64_t ldt, float *y, int64_t ldy, const float *x,
                               int64_t ldx, int64_t rows, int64_t w, float factor)
{
    v16 times = v16_set(factor);
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t j = 0; j < w; j += 16) {
            v16 a[16];
            UNROLL for (int i = 0; i < 16; i++) {
                a[i] = r + i < rows ? v16_get(x + (r + i) * ldx + j, w - j) : v16_zero();
                if (y) v16_store(y + (r + i) * ldy + j, a[i]);
                a[i] = v16_mul(a[i], times);
            }
            v16_transpose(a);
            if (w - j >= 16) {
                UNROLL for (int i = 0; i < 16; i++) v16_store(t + (j + i) * ldt + r, a[i]);
            } else {
                UNROLL for (int i = 0; i < 16; i++)
                    if (i < w - j) v16_store(t + (j + i) * ldt + r, a[i]);
            }
        }
}

/* y(., wide) = x(rows, w), zero beside and below it up to a full tile. */
static void take_rows(float *y, int64_t wide, const float *x, int64_t ldx, int64_t rows, int64_t w)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < wide; j += 16)
            v16_store(y + r * wide + j, v16_get(x + r * ldx + j, w - j));
    for (int64_t i = rows * wide; i < round_up(rows, PART_M) * wide; i += 16)
        v16_store(y + i, v16_zero());
}

/* y(rows, w) = x(rows, wide). */
static void put_rows(float *y, int64_t ldy, const float *x, int64_t wide, int64_t rows, int64_t w)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < w; j += 16)
            v16_put(y + r * ldy + j, v16_load(x + r * wide + j), w - j);
}

static void zero_span(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) v16_store(x + i, v16_zero());
}

/* Lane j where query j of the vector sees the key, which query `from` is the first to see. */
CRY_INLINE v16 v16_seen(v16 x, int64_t from, float otherwise)
{
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return v16_if_lt(v16_load(lanes), v16_set((float)from), v16_set(otherwise), x);
}

#endif
