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
    K_BLOCK = 1024, /* steps of the sum between which c is read and written */
    T_BLOCK = 256, /* the same for weight gradients: a panel block of 32 KiB */
    T_STEPS = T_BLOCK * OPERAND_STEPS,
    BESIDE = 32, /* steps of a tile beside which one of the next block is copied */
    ASKED = 8 * OPERAND_STEPS, /* how many steps before its copy a line is asked for */
    M_BLOCK = 48,  /* columns of a transposed left operand that are taken together */
    N_BLOCK = 256, /* columns of a weight gradient whose group sums are on the stack */
    COPY_ROWS = 48, COPY_LD = K_BLOCK + 16,
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

/* A finished group sum goes through q to the total c, as its branch of the tree says.  Where ldq is 0,
 * q holds one whole tile after another, whose addresses are known here. */
CRY_INLINE void tile_branch(cry_tile acc, const int mr, const int nv, float *c, int64_t ldc, float *q,
                            int64_t ldq, int64_t n, const cry_branch *br)
{
    if (!br->first_in_q && ldq) tile_add(acc, mr, nv, q, ldq, n);
    else if (!br->first_in_q) tile_add(acc, mr, nv, q, TILE_N, 16 * nv);
    if (br->last_in_q) {
        if (!br->starts_total) tile_add(acc, mr, nv, c, ldc, n);
        tile_store(acc, mr, nv, c, ldc, n);
    } else if (ldq) tile_store(acc, mr, nv, q, ldq, n);
    else tile_store(acc, mr, nv, q, TILE_N, 16 * nv);
}

/* k steps of m columns on their way into a block: one element of each every BESIDE steps of the tiles
 * that run meanwhile, which hides the copying among the multiplications. */
typedef struct columns_ahead {
    float *block;
    const float *a;
    int64_t rs, cs, m, k;
    int64_t beside, copied; /* steps that can be copied so, or were */
} columns_ahead;

CRY_INLINE void columns_ask(const columns_ahead *w, int64_t t)
{
    UNROLL for (int s = 0; s < OPERAND_STEPS; s++)
        UNROLL for (int i = 0; i < M_BLOCK; i += 16 * OPERAND_STEPS)
            __builtin_prefetch(operand_at(w->a, (t + s) * w->cs + i), 0, 2);
}

CRY_INLINE void columns_one(columns_ahead *w)
{
    if (w->copied >= w->beside) return;
    operand_step(w->block + w->copied / OPERAND_STEPS * M_BLOCK, operand_at(w->a, w->copied * w->cs),
                 w->cs, M_BLOCK, OPERAND_STEPS);
    columns_ask(w, w->copied + ASKED);
    w->copied += OPERAND_STEPS;
}

static void columns_rest(columns_ahead *w)
{
    if (w->copied < w->k)
        operand_columns(w->block + w->copied / OPERAND_STEPS * M_BLOCK, M_BLOCK,
                        operand_at(w->a, w->copied * w->cs), w->rs, w->cs, w->m, w->k - w->copied);
}

/* Everything a tile needs beside its constant size: acc = init + a b, which goes to c, or by its
 * branch of the tree through q to c. */
typedef struct tile_job {
    float *c, *q;
    const float *init, *a, *b;
    int64_t ldc, ldq, ldi, rs, cs, ldb, n, k;
    const cry_branch *branch;
    int narrow; /* c holds operands, not floats */
    columns_ahead *ahead; /* what is copied meanwhile, or NULL */
} tile_job;

CRY_INLINE void tile_do(const tile_job *w, const int mr, const int nv)
{
    cry_tile acc;
    if (w->init) tile_load(acc, mr, nv, w->init, w->ldi, w->n);
    else tile_zero(acc, mr, nv);
    int64_t some = w->ahead ? BESIDE : w->k;
    for (int64_t t = 0; t < w->k; t += some) {
        tile_run(acc, mr, nv, cry_min(some, w->k - t), w->a + t * w->cs, w->rs, w->cs, w->b + t * w->ldb,
                 w->ldb);
        if (w->ahead) columns_one(w->ahead);
    }
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
 * that the next tile needs are asked for meanwhile, unless its sum only goes to q. */
static void tile_column(tile_job job, int64_t m)
{
    for (int64_t i = 0; i < m; i += TILE_M) {
        int64_t rows = cry_min(TILE_M, m - i);
        int64_t next = i + TILE_M < m ? TILE_M : 0;
        int64_t asked = !job.branch || job.branch->last_in_q ? rows : 0;
        for (int64_t r = next; r < next + asked; r++) {
            __builtin_prefetch(out_at(&job, r * job.ldc), 1, 3);
            if (TILE_V > 1 && job.n > 16) __builtin_prefetch(out_at(&job, r * job.ldc + 16), 1, 3);
        }
        tile_rows[rows](&job);
        job.c = out_at(&job, TILE_M * job.ldc);
        job.a += TILE_M * job.rs;
        if (job.init) job.init += TILE_M * job.ldi;
        if (job.q) job.q += TILE_M * (job.ldq ? job.ldq : TILE_N);
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

/* A weight gradient c(m,n) from packed b and a, whose columns are copied in blocks, over the tokens of
 * the branches.  Running sums are in q between the groups of a branch, in s between the blocks of a
 * group; both lie as c does, or are NULL where nothing need outlast the call.  first, last: whether
 * the first chain begins here, and the last one ends. */
typedef struct tree_job {
    float *c, *q, *s;
    const float *a, *panels;
    int64_t ld, rs, cs, m, n, length;
    const cry_branch *branches;
    int count, first, last;
} tree_job;

/* A block of it: rows i and columns j of c, token t of group g. */
typedef struct tree_place {
    int64_t i, j, t;
    int g;
} tree_place;

static int tree_next(const tree_job *w, tree_place *at)
{
    at->t += T_STEPS;
    if (at->t < w->branches[at->g].end - w->branches[at->g].begin) return 1;
    at->t = 0;
    if (++at->g < w->count) return 1;
    at->g = 0;
    if ((at->j += N_BLOCK) < w->n) return 1;
    at->j = 0;
    return (at->i += M_BLOCK) < w->m;
}

/* Steps that are neighbours are used where they lie. */
static int tree_lies(const tree_job *w) { return w->cs == 1 && w->rs > 1; }

static columns_ahead tree_columns(const tree_job *w, const tree_place *at, float *block)
{
    const cry_branch *b = w->branches + at->g;
    int64_t begin = b->begin + at->t, m = cry_min(M_BLOCK, w->m - at->i);
    int64_t k = cry_min(T_STEPS, b->end - begin);
    return (columns_ahead){block, operand_at(w->a, at->i * w->rs + begin * w->cs), w->rs, w->cs,
                           m, k, m == M_BLOCK && w->rs == 1 ? k / OPERAND_STEPS * OPERAND_STEPS : 0,
                           tree_lies(w) ? k : 0};
}

/* The tiles of one block, whose columns are copied, while those of the next one are. */
static void tree_block(const tree_job *w, const tree_place *at, const columns_ahead *now,
                       columns_ahead *next, float *own_q, float *own_s)
{
    const cry_branch *b = w->branches + at->g;
    int starts = at->t == 0 && (at->g > 0 || w->first);
    int ends = at->t + T_STEPS >= b->end - b->begin && (at->g + 1 < w->count || w->last);
    int64_t offset = at->i * w->ld + at->j, n = cry_min(N_BLOCK, w->n - at->j);
    float *q = w->q ? w->q + offset : own_q, *s = w->s ? w->s + offset : own_s;
    const float *panels = w->panels + at->j * w->length + (b->at + at->t / OPERAND_STEPS) * TILE_N;
    int lies = tree_lies(w);
    tile_job job = {.a = lies ? now->a : now->block, .rs = lies ? w->rs / OPERAND_STEPS : 1,
                    .cs = lies ? 1 : M_BLOCK, .ldb = TILE_N, .ahead = lies ? 0 : next,
                    .k = (now->k + OPERAND_STEPS - 1) / OPERAND_STEPS, .branch = ends ? b : 0,
                    .ldq = w->q ? w->ld : 0, .ldi = w->s ? w->ld : N_BLOCK};
    job.ldc = ends ? w->ld : job.ldi;
    if (next->beside)
        for (int64_t t = 0; t < ASKED; t += OPERAND_STEPS) columns_ask(next, t);
    for (int64_t j = 0; j < n; j += TILE_N) {
        job.c = ends ? w->c + offset + j : s + j;
        job.q = w->q ? q + j : q + j * M_BLOCK;
        job.init = starts ? 0 : s + j;
        job.b = panels + j * w->length;
        job.n = cry_min(TILE_N, n - j);
        tile_column(job, now->m);
    }
    columns_rest(next);
}

static void tree_run(const tree_job *w)
{
    float q[M_BLOCK * N_BLOCK] __attribute__((aligned(64)));
    float s[M_BLOCK * N_BLOCK] __attribute__((aligned(64)));
    float blocks[2][M_BLOCK * T_BLOCK] __attribute__((aligned(64)));
    tree_place at = {0, 0, 0, 0}, then = at;
    columns_ahead now = tree_columns(w, &at, blocks[0]), next;
    columns_rest(&now);
    for (int more = 1, turn = 1; more; at = then, now = next, turn = !turn) {
        more = tree_next(w, &then);
        next = more ? tree_columns(w, &then, blocks[turn]) : (columns_ahead){.k = 0};
        tree_block(w, &at, &now, &next, q, s);
    }
}

static void gemm_tree(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t length,
                      const cry_branch *branches, int count)
{
    tree_job job = {c, 0, 0, a, panels, ldc, rs, cs, m, n, length, branches, count, 1, 1};
    if (m > 0 && n > 0 && count > 0) tree_run(&job);
}

static void gemm_branch(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block)
{
    int64_t length = (k + OPERAND_STEPS - 1) / OPERAND_STEPS;
    cry_branch part = *branch;
    part.begin = part.at = 0, part.end = k;
    tree_job job = {c, q, s, a, panels, ld, rs, cs, m, n, length, &part, 1, first_block, last_block};
    if (m > 0 && n > 0) tree_run(&job);
}

#endif
