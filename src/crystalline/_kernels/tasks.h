/* Inside the team: running tasks, the shape of the tree, rounding of memory. */
#ifndef CRY_TASKS_H
#define CRY_TASKS_H

#include <stdatomic.h>
#include <stddef.h>

#include "crystalline/parallel.h"
#include "system.h"

/* Task `task` of a loop, on thread `thread` of the team.  Tasks write their own outputs only, so the
 * thread that runs one, and the order they run in, cannot change a result. */
typedef void cry_task(void *context, int64_t task, int thread);

void cry_run(const cry_team *team, int64_t tasks, cry_task *task, void *context);

/* place(tasks): another numbering of the tasks, in which those that a thread takes one after the other
 * are neighbours: what one asks memory for ahead, the next finds. */
void cry_side_by_side(const cry_team *team, int64_t tasks, int32_t *place);

static inline int64_t cry_ceil(int64_t n, int64_t by) { return (n + by - 1) / by; }
static inline int64_t cry_smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cry_round64(int64_t floats) { return cry_ceil(floats, 16) * 16; }

/* Rows of one task, `most` at most.  More than one task are as many for every sphere: its rows are then
 * about the same ones in each operation, and still in the caches of the thread that carries it. */
static inline int64_t cry_sphere_rows(int64_t R, int64_t most)
{
    if (R <= most) return R > 0 ? R : 1;
    return cry_ceil(R, CRY_GROUPS * cry_ceil(R, CRY_GROUPS * most));
}

/* Whether an output (R,V) is written around the caches.  One of 32 MiB would not stay in them, and to
 * be written through them it is first read.  Rows of less than `least` are shorter than that pays:
 * their ends, which are seldom whole lines, count too much. */
static inline int cry_far(int64_t R, int64_t V, int64_t least)
{
    return V >= least && R >= (1 << 23) / V;
}

/* A matrix product cut into a grid of tasks, each some rows by some panels of columns. */
typedef struct cry_grid {
    int64_t rows, cols;         /* of one task */
    int64_t down, across;       /* tasks */
} cry_grid;
cry_grid cry_cut(const cry_team *team, int64_t m, int64_t n, int64_t rows);

/* The products of one kind of operands: float32, or bf16 in pairs.  `steps` numbers of a sum are one
 * element of a panel. */
typedef struct cry_products {
    int64_t steps;
    void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n);
    void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k);
    void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t length,
                      const cry_branch *branches, int count);
    void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block);
    const cry_kernels *kernels;     /* float32 */
    const cry_bf16_kernels *narrow; /* bf16, or NULL */
} cry_products;
cry_products cry_float_products(const cry_team *team);
cry_products cry_bf16_products(const cry_team *team);

/* An array of numbers whose kind the products know: entry i. */
static inline const float *cry_at(const cry_products *p, const float *x, int64_t i)
{
    return p->narrow ? (const float *)(const void *)((const cry_bf16 *)(const void *)x + i) : x + i;
}

/* panels = b (k,n) of float32, element (t, j) at b[t ks + j ns]; each thread packs whole panels. */
void cry_pack(const cry_team *team, const cry_products *p, float *panels, const float *b, int64_t ks,
              int64_t ns, int64_t k, int64_t n);
/* panels = b (., n), rows of numbers of the products' kind, group by group; sets where each group
 * begins in a panel, returns the panels' length. */
int64_t cry_pack_groups(const cry_team *team, const cry_products *p, float *panels, const float *b,
                        int64_t n, cry_branch *branches, int count);
/* Floats of panels with `length` elements a column. */
int64_t cry_packed_len(const cry_team *team, int64_t length, int64_t n);

/* What becomes of n rows of a product from `at` on as soon as they are there, still in the caches. */
typedef struct cry_finish cry_finish;
struct cry_finish {
    void (*rows)(const cry_finish *w, int64_t at, int64_t n);
    const cry_kernels *kernels;
    float *gu, *act;
    int64_t F;
};

/* c(m,n) = init + a b, or as bf16 in `narrow`: a product that packs b, element (t, j) at
 * b[t ks + j ns], on the way. */
typedef struct cry_product {
    const cry_products *p;
    float *c;
    cry_bf16 *narrow;
    const float *init, *a, *b;
    int64_t ldc, rs, ks, ns, m, n, k;
    const cry_finish *finish; /* or NULL */
} cry_product;
void cry_multiply(const cry_team *team, const cry_product *product);

/* c(m,n) = init + a b with packed b, cut over the team; a has k elements a row, row stride rs. */
void cry_gemm(const cry_team *team, const cry_products *p, float *c, int64_t ldc, const float *init,
              const float *a, int64_t rs, const float *panels, int64_t m, int64_t n, int64_t k);

/* Few rows: a task is some columns of y, so that each thread reads long stretches of w. */
enum { CRY_COLUMN_TASKS = 24 }; /* at most */
int64_t cry_columns(const cry_team *team, int64_t N);
void cry_gemv_unpacked(const cry_team *team, float *y, const float *x, const float *w,
                       const float *init, int64_t R, int64_t N, int64_t K);
/* dx(R,K) = dy(R,N) w(N,K). */
void cry_gemv_across(const cry_team *team, float *dx, const float *dy, const float *w, int64_t R,
                     int64_t N, int64_t K);
/* Columns j .. j + n of y(R, ldy) = init + x w^T, by one thread; init may be NULL. */
typedef struct cry_block {
    float *y;
    const float *init, *x;
    int64_t ldy, ldi, R, j, n, K;
} cry_block;
void cry_weight_block(const cry_team *team, const cry_block *block, const cry_weight *weight,
                      float *scratch);
/* Rows r of ids(R) by rising token, those of one token in rising order; -1 counts as no token.  Those
 * of token v are list[index[v - 1] .. index[v]), from 0 for the first. */
void cry_sort_by_token(int32_t *list, int64_t *index, const int32_t *ids, int64_t R, int64_t V);
/* Whether n > 0 indices rise strictly inside 0 .. V - 1: then no two tasks share a row. */
int cry_rises(const int32_t *rows, int64_t n, int64_t V);
/* Whether all positions are inside 0 .. count - 1. */
int cry_positions_ok(const int32_t *positions, int64_t R, int64_t count);

#endif
