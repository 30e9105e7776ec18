/* Matrix products by one register tile of TILE_M rows by TILE_V vectors.
 *
 *   c(m,n) = init + sum over t of a(m,t) b(t,n)
 *
 * Each output element is one chain of fused multiply-adds in the order of t: the accumulator starts
 * at init (or zero), and between blocks of t it rests in memory, which loses nothing.  So neither the
 * tile nor the blocking can change a bit.  a is read where it lies (row stride rs, step cs); b is
 * packed into panels of 16 TILE_V columns, so that a block of it stays in the L1 cache.
 *
 * For weight gradients t runs over tokens: one chain per group, group sums by the fixed tree, all
 * inside the tile, so nothing the size of the gradient is kept per group.
 *
 * operands.h says what an element of a and b is: one float, or (unit bf16.c) two bf16 numbers that
 * are neighbours in t, which one instruction multiplies and adds.  k counts elements. */
#ifndef CRY_MATMUL_H
#define CRY_MATMUL_H

#include "crystalline/kernels.h"
#include "operands.h"
#include "simd.h"

#define TILE_N (16 * TILE_V)
enum {
    K_BLOCK = 512, /* steps of the sum between which c is read and written */
    T_BLOCK = 256, /* the same for weight gradients: a panel block of 32 KiB */
    M_BLOCK = 48,  /* columns of a transposed left operand that are taken together */
    N_BLOCK = 256, /* columns of a weight gradient whose group sums are on the stack */
    COPY_ROWS = 96, COPY_LD = K_BLOCK + 16,
};

#define UNROLL _Pragma("GCC unroll 16")

CRY_INLINE int64_t cry_min(int64_t a, int64_t b) { return a < b ? a : b; }

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
            v16 av = operand_set(row[i / 3] + (i % 3) * rs);
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = operand_fma(av, bv[j], acc[i][j]);
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

/* As tile_store, each number rounded to half its width; c and ld count those. */
CRY_INLINE void tile_store_narrow(cry_tile acc, const int mr, const int nv, float *c, int64_t ld, int64_t n)
{
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int j = 0; j < nv; j++)
            value_put(c, i * ld + 16 * j, acc[i][j], n - 16 * j);
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

/* Everything a tile needs beside its constant size: acc = init + a b, which goes to c, or by its
 * branch of the tree through q to c. */
typedef struct tile_job {
    float *c, *q;
    const float *init, *a, *b;
    int64_t ldc, ldq, ldi, rs, cs, ldb, n, k;
    const cry_branch *branch;
    int narrow; /* c holds operands, not floats */
    /* What will be read next: each tile asks for `rows_ahead` rows of it, `width` numbers each. */
    const float *ahead;
    int64_t ahead_stride, rows_ahead, width;
} tile_job;

CRY_INLINE void tile_do(const tile_job *w, const int mr, const int nv)
{
    cry_tile acc;
    if (w->init) tile_load(acc, mr, nv, w->init, w->ldi, w->n);
    else tile_zero(acc, mr, nv);
    tile_run(acc, mr, nv, w->k, w->a, w->rs, w->cs, w->b, w->ldb);
    if (w->branch) tile_branch(acc, mr, nv, w->c, w->ldc, w->q, w->ldq, w->n, w->branch);
    else if (OPERAND_NARROW && w->narrow) tile_store_narrow(acc, mr, nv, w->c, w->ldc, w->n);
    else tile_store(acc, mr, nv, w->c, w->ldc, w->n);
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

/* Entry `offset` of where a job writes. */
CRY_INLINE float *out_at(const tile_job *w, int64_t offset)
{
    return OPERAND_NARROW && w->narrow ? (float *)((uint16_t *)w->c + offset) : w->c + offset;
}

/* All rows of one panel of columns: the panel (or its block) stays in L1 meanwhile.  The lines of c
 * that the next tile needs are asked for meanwhile. */
static void tile_column(tile_job job, int64_t m)
{
    for (int64_t i = 0; i < m; i += TILE_M) {
        int64_t rows = cry_min(TILE_M, m - i);
        int64_t next = i + TILE_M < m ? TILE_M : 0;
        for (int64_t r = next; r < next + rows; r++) {
            __builtin_prefetch(out_at(&job, r * job.ldc), 1, 3);
            if (TILE_V > 1 && job.n > 16) __builtin_prefetch(out_at(&job, r * job.ldc + 16), 1, 3);
        }
        for (int64_t r = 0; r < job.rows_ahead; r++) {
            for (int64_t u = 0; u < job.width; u += 16 * OPERAND_STEPS)
                __builtin_prefetch(operand_at(job.ahead, u), 0, 2);
            job.ahead = operand_at(job.ahead, job.ahead_stride);
        }
        tile_rows[rows](&job);
        job.c = out_at(&job, TILE_M * job.ldc);
        job.a += TILE_M * job.rs;
        if (job.init) job.init += TILE_M * job.ldi;
        if (job.q) job.q += TILE_M * job.ldq;
    }
}

/* Rows of a whose stride is a multiple of 8 KiB fall into the same few sets of the caches and drive
 * each other out: they are copied first. */
CRY_INLINE int strides_collide(int64_t rs) { return rs * 4 % 8192 == 0; }

/* One block of k steps of all rows and columns. */
static void gemm_block(tile_job job, float *c, const float *init, const float *panels, int64_t length,
                       int64_t m, int64_t n)
{
    for (int64_t j = 0; j < n; j += TILE_N) {
        job.c = c + j;
        job.init = init ? init + j : 0;
        job.b = panels + j * length;
        job.n = cry_min(TILE_N, n - j);
        tile_column(job, m);
    }
}

/* As gemm_block, the rows of a copied together first, some at a time. */
static void gemm_copied(tile_job job, float *c, const float *init, const float *panels, int64_t length,
                        int64_t m, int64_t n)
{
    float copy[COPY_ROWS * COPY_LD] __attribute__((aligned(64)));
    const float *a = job.a;
    int64_t rs = job.rs;
    job.a = copy, job.rs = COPY_LD;
    for (int64_t i = 0; i < m; i += COPY_ROWS) {
        int64_t rows = cry_min(COPY_ROWS, m - i);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t u = 0; u < job.k; u += 16)
                v16_put(copy + r * COPY_LD + u, v16_get(a + (i + r) * rs + u, job.k - u), job.k - u);
        gemm_block(job, c + i * job.ldc, init ? init + i * job.ldi : 0, panels, length, rows, n);
    }
}

static void gemm(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k)
{
    int64_t blocks = (k + K_BLOCK - 1) / K_BLOCK, kb = (k + blocks - 1) / blocks;
    int copies = cs == 1 && m > TILE_M && n > TILE_N && strides_collide(rs);
    for (int64_t t = 0; t < k; t += kb) {
        tile_job job = {.ldc = ldc, .a = a + t * cs, .rs = rs, .cs = cs, .ldb = TILE_N,
                        .k = cry_min(kb, k - t), .ldi = t > 0 ? ldc : ldi};
        const float *from = t > 0 ? c : init, *b = panels + t * TILE_N;
        if (copies) gemm_copied(job, c, from, b, k, m, n);
        else gemm_block(job, c, from, b, k, m, n);
    }
}

/* c(m,n) = init + a b for a small b(k,n) used where it lies; its rows can be read up to the next
 * multiple of 16 columns (32 where a tile has two vectors and n > 16 are left). */
static void gemm_unpacked(float *c, int64_t ldc, const float *init, const float *a, int64_t rs,
                          int64_t cs, const float *b, int64_t ldb, int64_t m, int64_t n, int64_t k)
{
    for (int64_t j = 0; j < n; j += TILE_N) {
        tile_job job = {.c = c + j, .ldc = ldc, .init = init ? init + j : 0, .ldi = ldc, .a = a,
                        .rs = rs, .cs = cs, .b = b + j, .ldb = ldb, .n = cry_min(TILE_N, n - j),
                        .k = k};
        tile_column(job, m);
    }
}

/* Where the running sums of a weight gradient are: q between the groups of a branch, s between the
 * blocks of a group. */
typedef struct tree_sums {
    float *q, *s;
    int64_t ldq, lds;
} tree_sums;

/* A block of the left operand of a weight gradient: k tokens of m columns, and where the next one is. */
typedef struct tree_part {
    const float *a, *next;
    int64_t rs, cs, m, k;
} tree_part;

/* One block of tokens of one group: sums start at zero or from s, and go to s, or by the branch to c. */
static void tree_block(tile_job job, tree_part part, const float *panels, int64_t length, int64_t n,
                       tree_sums sums, int starts)
{
    float block[M_BLOCK * T_BLOCK] __attribute__((aligned(64)));
    float *c = job.c;
    int64_t down = (part.m + TILE_M - 1) / TILE_M, tiles = down * ((n + TILE_N - 1) / TILE_N);
    job.a = block, job.rs = 1, job.cs = M_BLOCK, job.ldb = TILE_N;
    job.ldi = sums.lds, job.ldq = sums.ldq;
    if (part.cs == 1 && part.rs > 1) { /* steps are neighbours: they are used where they lie */
        job.a = part.a, job.rs = part.rs / OPERAND_STEPS, job.cs = 1;
        job.k = (part.k + OPERAND_STEPS - 1) / OPERAND_STEPS;
    } else {
        job.k = operand_columns(block, M_BLOCK, part.a, part.rs, part.cs, part.m, part.k);
        job.ahead_stride = part.cs, job.width = part.m, job.rows_ahead = (part.k + tiles - 1) / tiles;
    }
    if (!job.branch) job.ldc = sums.lds;
    for (int64_t j = 0; j < n; j += TILE_N) {
        job.c = job.branch ? c + j : sums.s + j;
        job.q = job.branch ? sums.q + j : 0;
        job.init = starts ? 0 : sums.s + j;
        job.b = panels + j * length;
        job.n = cry_min(TILE_N, n - j);
        job.ahead = operand_at(part.next, j / TILE_N * down * job.rows_ahead * part.cs);
        tile_column(job, part.m);
    }
}

/* One group's chain, block by block, by its branch into c.  first, last: whether the chain begins and
 * ends here, or comes from and goes on in s.  part.k counts all of its tokens. */
static void tree_chain(float *c, int64_t ldc, tree_sums sums, tree_part part, const float *panels,
                       int64_t length, int64_t n, const cry_branch *branch, int first, int last)
{
    const int64_t most = T_BLOCK * OPERAND_STEPS;
    for (int64_t t = 0; t < part.k; t += most) {
        int ends = t + most >= part.k;
        tile_job job = {.c = c, .ldc = ldc, .branch = last && ends ? branch : 0};
        tree_part now = part;
        now.a = operand_at(part.a, t * part.cs);
        now.k = cry_min(most, part.k - t);
        if (!ends) now.next = operand_at(now.a, most * part.cs);
        tree_block(job, now, panels + t / OPERAND_STEPS * TILE_N, length, n, sums, first && t == 0);
    }
}

static void gemm_tree(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t length,
                      const cry_branch *branches, int count)
{
    float q[M_BLOCK * N_BLOCK] __attribute__((aligned(64)));
    float s[M_BLOCK * N_BLOCK] __attribute__((aligned(64)));
    const tree_sums sums = {q, s, N_BLOCK, N_BLOCK};
    for (int64_t i = 0; i < m; i += M_BLOCK)
        for (int64_t j = 0; j < n; j += N_BLOCK)
            for (int g = 0; g < count; g++) {
                const cry_branch *b = branches + g;
                int64_t after = g + 1 < count ? i * rs + b[1].begin * cs
                                              : (i + M_BLOCK) * rs + branches->begin * cs;
                tree_part part = {operand_at(a, i * rs + b->begin * cs), operand_at(a, after), rs, cs,
                                  cry_min(M_BLOCK, m - i), b->end - b->begin};
                tree_chain(c + i * ldc + j, ldc, sums, part, panels + j * length + b->at * TILE_N,
                           length, cry_min(N_BLOCK, n - j), b, 1, 1);
            }
}

static void gemm_branch(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block)
{
    float own[M_BLOCK * N_BLOCK] __attribute__((aligned(64)));
    int64_t length = (k + OPERAND_STEPS - 1) / OPERAND_STEPS;
    for (int64_t i = 0; i < m; i += M_BLOCK)
        for (int64_t j = 0; j < n; j += N_BLOCK) {
            int64_t at = i * ld + j;
            tree_sums sums = {q + at, s ? s + at : own, ld, s ? ld : N_BLOCK};
            tree_part part = {operand_at(a, i * rs), operand_at(a, (i + M_BLOCK) * rs), rs, cs,
                              cry_min(M_BLOCK, m - i), k};
            tree_chain(c + at, ld, sums, part, panels + j * length, length, cry_min(N_BLOCK, n - j),
                       branch, first_block, last_block);
        }
}

#endif
