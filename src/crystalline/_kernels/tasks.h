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

/* The branches of the groups that have rows; returns how many. */
int cry_branches(cry_branch branches[CRY_GROUPS], const int64_t *groups, int accumulate);
int cry_groups_ok(const int64_t *groups, int64_t rows);

static inline int64_t cry_ceil(int64_t n, int64_t by) { return (n + by - 1) / by; }
static inline int64_t cry_smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cry_round64(int64_t floats) { return cry_ceil(floats, 16) * 16; }

/* A matrix product cut into a grid of tasks, each some rows by some panels of columns. */
typedef struct cry_grid {
    int64_t rows, cols;         /* of one task */
    int64_t down, across;       /* tasks */
} cry_grid;
cry_grid cry_cut(const cry_team *team, int64_t m, int64_t n, int64_t rows);

/* panels = b, element (t, j) at b[t ks + j ns]; each thread packs whole panels. */
void cry_pack(const cry_team *team, float *panels, const float *b, int64_t ks, int64_t ns, int64_t k,
              int64_t n);
int64_t cry_packed_len(const cry_team *team, int64_t k, int64_t n);

/* c(m,n) = init + a b with packed b, cut over the team. */
void cry_gemm(const cry_team *team, float *c, int64_t ldc, const float *init, const float *a,
              int64_t rs, const float *panels, int64_t m, int64_t n, int64_t k);

/* Rows r of ids(R) by rising token, those of one token in rising order; -1 counts as no token.  Those
 * of token v are list[index[v - 1] .. index[v]), from 0 for the first. */
void cry_sort_by_token(int32_t *list, int64_t *index, const int32_t *ids, int64_t R, int64_t V);
/* Whether n > 0 indices rise strictly inside 0 .. V - 1: then no two tasks share a row. */
int cry_rises(const int32_t *rows, int64_t n, int64_t V);

#endif
