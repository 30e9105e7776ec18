/* Matrix products by one register tile of TILE_M rows by TILE_V vectors.
 *
 *   c(m,n) = init + sum over t of a(m,t) b(t,n)
 *
 * Each output element is one chain of fused multiply-adds in the order of t: the accumulator starts
 * at init (or zero), and between blocks of t it rests in c, which loses nothing.  So neither the
 * tile nor the blocking can change a bit.  a is read where it lies (row stride rs, step cs); b is
 * packed into panels of 16 TILE_V columns, so that a block of it streams through the L1 cache.
 *
 * For weight gradients t runs over tokens: one chain per group, group sums by the fixed tree, all
 * inside the tile, so nothing the size of the gradient is kept per group. */
#ifndef CRY_MATMUL_H
#define CRY_MATMUL_H

#include "crystalline/kernels.h"
#include "simd.h"

#define TILE_N (16 * TILE_V)
#define K_BLOCK 256 /* one panel block is 256 x 32 floats = 32 KiB */

#define UNROLL _Pragma("GCC unroll 16")

typedef v16 cry_tile[TILE_M][TILE_V];

/* The heart: acc += a b over k steps, for mr rows and nv vectors, both compile-time constants. */
CRY_INLINE void tile_run(cry_tile acc, const int mr, const int nv, int64_t k, const float *a,
                         int64_t rs, int64_t cs, const float *b, int64_t ldb)
{
    const float *row[(TILE_M + 2) / 3]; /* every third row: the others are one or two strides away */
    UNROLL for (int i = 0; i < (mr + 2) / 3; i++) row[i] = a + 3 * i * rs;
    for (int64_t t = 0; t < k; t++) {
        v16 bv[TILE_V];
        UNROLL for (int j = 0; j < nv; j++) bv[j] = v16_load(b + 16 * j);
        UNROLL for (int i = 0; i < mr; i++) {
            v16 av = v16_set(row[i / 3][(i % 3) * rs]);
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_fma(av, bv[j], acc[i][j]);
        }
        UNROLL for (int i = 0; i < (mr + 2) / 3; i++) row[i] += cs;
        b += ldb;
    }
}

CRY_INLINE void tile_zero(cry_tile acc, const int mr, const int nv)
{
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_zero();
}

/* n columns of the tile are inside the matrix; all of them where n == 16 nv. */
CRY_INLINE void tile_load(cry_tile acc, const int mr, const int nv, const float *c, int64_t ld, int64_t n)
{
    if (n == 16 * nv) {
        UNROLL for (int i = 0; i < mr; i++)
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_load(c + i * ld + 16 * j);
    } else {
        UNROLL for (int i = 0; i < mr; i++)
            UNROLL for (int j = 0; j < nv; j++)
                acc[i][j] = n - 16 * j >= 16 ? v16_load(c + i * ld + 16 * j)
                                             : v16_load_n(c + i * ld + 16 * j, n - 16 * j, 0.0f);
    }
}

CRY_INLINE void tile_store(cry_tile acc, const int mr, const int nv, float *c, int64_t ld, int64_t n)
{
    if (n == 16 * nv) {
        UNROLL for (int i = 0; i < mr; i++)
            UNROLL for (int j = 0; j < nv; j++) v16_store(c + i * ld + 16 * j, acc[i][j]);
    } else {
        UNROLL for (int i = 0; i < mr; i++)
            UNROLL for (int j = 0; j < nv; j++) {
                if (n - 16 * j >= 16) v16_store(c + i * ld + 16 * j, acc[i][j]);
                else v16_store_n(c + i * ld + 16 * j, acc[i][j], n - 16 * j);
            }
    }
}

CRY_INLINE void tile_add(cry_tile acc, const int mr, const int nv, const float *c, int64_t ld, int64_t n)
{
    cry_tile other;
    tile_load(other, mr, nv, c, ld, n);
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = v16_add(other[i][j], acc[i][j]);
}

/* A finished group sum goes through q to the total c, as its branch of the tree says. */
CRY_INLINE void tile_branch(cry_tile acc, const int mr, const int nv, float *c, int64_t ldc, float *q,
                            int64_t ldq, int64_t n, const cry_branch *br)
{
    if (!br->first_in_q) tile_add(acc, mr, nv, q, ldq, n);
    if (!br->last_in_q) {
        tile_store(acc, mr, nv, q, ldq, n);
        return;
    }
    if (!br->starts_total) tile_add(acc, mr, nv, c, ldc, n);
    tile_store(acc, mr, nv, c, ldc, n);
}

/* Everything a tile needs beside its constant size.  One struct serves the three products. */
typedef struct tile_job {
    enum { JOB_CHAIN, JOB_TREE, JOB_BRANCH } kind;
    float *c;
    const float *init, *a, *b;
    float *q, *s;
    int64_t ldc, ldi, rs, cs, ldb, n, k;
    const cry_branch *branches;
    int count, first_block, last_block;
} tile_job;

CRY_INLINE void tile_do(const tile_job *w, const int mr, const int nv)
{
    cry_tile acc;
    if (w->kind == JOB_CHAIN) {
        if (w->init) tile_load(acc, mr, nv, w->init, w->ldi, w->n);
        else tile_zero(acc, mr, nv);
        tile_run(acc, mr, nv, w->k, w->a, w->rs, w->cs, w->b, w->ldb);
        tile_store(acc, mr, nv, w->c, w->ldc, w->n);
    } else if (w->kind == JOB_TREE) {
        float q[TILE_M * TILE_N] __attribute__((aligned(64)));
        for (int g = 0; g < w->count; g++) {
            const cry_branch *br = w->branches + g;
            tile_zero(acc, mr, nv);
            tile_run(acc, mr, nv, br->end - br->begin, w->a + br->begin * w->cs, w->rs, w->cs,
                     w->b + br->begin * TILE_N, TILE_N);
            tile_branch(acc, mr, nv, w->c, w->ldc, q, TILE_N, w->n, br);
        }
    } else {
        if (w->first_block) tile_zero(acc, mr, nv);
        else tile_load(acc, mr, nv, w->s, w->ldc, w->n);
        tile_run(acc, mr, nv, w->k, w->a, w->rs, w->cs, w->b, TILE_N);
        if (w->last_block) tile_branch(acc, mr, nv, w->c, w->ldc, w->q, w->ldc, w->n, w->branches);
        else tile_store(acc, mr, nv, w->s, w->ldc, w->n);
    }
}

#define TILE_ROWS(MR) \
    static void tile_rows_##MR(const tile_job *w) \
    { \
        if (TILE_V > 1 && w->n <= 16) tile_do(w, MR, 1); \
        else tile_do(w, MR, TILE_V); \
    }
TILE_ROWS(1) TILE_ROWS(2) TILE_ROWS(3) TILE_ROWS(4)
#if TILE_ROWS_MAX > 4
TILE_ROWS(5) TILE_ROWS(6)
#endif
#if TILE_ROWS_MAX > 6
TILE_ROWS(7) TILE_ROWS(8) TILE_ROWS(9) TILE_ROWS(10) TILE_ROWS(11) TILE_ROWS(12)
#endif
#undef TILE_ROWS

static void (*const tile_rows[TILE_M + 1])(const tile_job *) = {
    0, tile_rows_1, tile_rows_2, tile_rows_3, tile_rows_4,
#if TILE_ROWS_MAX > 4
    tile_rows_5, tile_rows_6,
#endif
#if TILE_ROWS_MAX > 6
    tile_rows_7, tile_rows_8, tile_rows_9, tile_rows_10, tile_rows_11, tile_rows_12,
#endif
};

CRY_INLINE int64_t cry_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* All rows of one panel of columns: the panel (or its block) stays in L1 meanwhile. */
static void tile_column(tile_job job, int64_t m)
{
    for (int64_t i = 0; i < m; i += TILE_M) {
        tile_rows[cry_min(TILE_M, m - i)](&job);
        job.c += TILE_M * job.ldc;
        job.a += TILE_M * job.rs;
        if (job.init) job.init += TILE_M * job.ldi;
    }
}

static void gemm(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k)
{
    int64_t blocks = (k + K_BLOCK - 1) / K_BLOCK, kb = (k + blocks - 1) / blocks;
    for (int64_t t = 0; t < k; t += kb) {
        for (int64_t j = 0; j < n; j += TILE_N) {
            tile_job job = {.kind = JOB_CHAIN, .c = c + j, .ldc = ldc, .a = a + t * cs, .rs = rs,
                            .cs = cs, .b = panels + j * k + t * TILE_N, .ldb = TILE_N,
                            .n = cry_min(TILE_N, n - j), .k = cry_min(kb, k - t)};
            job.init = t > 0 ? c + j : init ? init + j : 0;
            job.ldi = t > 0 ? ldc : ldi;
            tile_column(job, m);
        }
    }
}

/* c(m,n) = init + a b for a small b(k,n) used where it lies; its rows can be read up to the next
 * multiple of 16 columns (32 where a tile has two vectors and n > 16 are left). */
static void gemm_unpacked(float *c, int64_t ldc, const float *init, const float *a, int64_t rs,
                          int64_t cs, const float *b, int64_t ldb, int64_t m, int64_t n, int64_t k)
{
    for (int64_t j = 0; j < n; j += TILE_N) {
        tile_job job = {.kind = JOB_CHAIN, .c = c + j, .ldc = ldc, .init = init ? init + j : 0,
                        .ldi = ldc, .a = a, .rs = rs, .cs = cs, .b = b + j, .ldb = ldb,
                        .n = cry_min(TILE_N, n - j), .k = k};
        tile_column(job, m);
    }
}

static void gemm_tree(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t rows,
                      const cry_branch *branches, int count)
{
    for (int64_t j = 0; j < n; j += TILE_N) {
        tile_job job = {.kind = JOB_TREE, .c = c + j, .ldc = ldc, .a = a, .rs = rs, .cs = cs,
                        .b = panels + j * rows, .n = cry_min(TILE_N, n - j),
                        .branches = branches, .count = count};
        tile_column(job, m);
    }
}

static void gemm_branch(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block)
{
    /* Few rows at a time over all columns: a's strided lines are read once and stay in L1. */
    for (int64_t i = 0; i < m; i += TILE_M) {
        for (int64_t j = 0; j < n; j += TILE_N) {
            int64_t at = i * ld + j;
            tile_job job = {.kind = JOB_BRANCH, .c = c + at, .ldc = ld, .a = a + i * rs, .rs = rs,
                            .cs = cs, .b = panels + j * k, .q = q + at, .s = s ? s + at : 0,
                            .n = cry_min(TILE_N, n - j), .k = k, .branches = branch,
                            .first_block = first_block, .last_block = last_block};
            tile_rows[cry_min(TILE_M, m - i)](&job);
        }
    }
}

static void pack(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n)
{
    if (ns == 1) { /* rows of b are rows of the panel */
        for (int64_t t = 0; t < k; t++, b += ks, panel += TILE_N)
            for (int64_t j = 0; j < TILE_N; j += 16) {
                int64_t left = n - j;
                v16_store(panel + j, left >= 16 ? v16_load(b + j)
                                     : left > 0 ? v16_load_n(b + j, left, 0.0f) : v16_zero());
            }
        return;
    }
    for (int64_t j = 0; j < TILE_N; j++) /* rows of b are columns: read along, write across */
        for (int64_t t = 0; t < k; t++) panel[t * TILE_N + j] = j < n ? b[t * ks + j * ns] : 0.0f;
}

#endif
