/* crystalline: the C interface of its kernels.
 *
 * Two layers.  The table `cry_kernels` holds the serial kernels of one instruction set: each works
 * on the span it is given, never allocates, prints, starts threads or fails, and checks nothing.
 * The functions `cry_*` that take a `cry_team` check their arguments, cut the work over threads and
 * return a status.  Arrays are float32, row-major and contiguous unless a stride is named; sizes are
 * counts of elements.  R rows (tokens), D width, V vocabulary, T sequence length, H heads, K key
 * heads, F feed-forward width.  Outputs come first, sizes last, and outputs never overlap inputs
 * unless said.
 *
 * A sum over tokens is shaped by the 12 groups: `groups[g] .. groups[g + 1]` are the rows of group
 * g; inside a group one chain in row order, then the tree q[j] = (s[3j] + s[3j+1]) + s[3j+2],
 * total = ((q[0] + q[1]) + q[2]) + q[3].  A group without rows adds nothing.  With `accumulate` the
 * total starts from what the output holds.  So no result depends on the number of threads. */
#ifndef CRYSTALLINE_KERNELS_H
#define CRYSTALLINE_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CRY_GROUPS 12
#define CRY_API __attribute__((visibility("default")))

typedef enum cry_status {
    CRY_OK = 0,
    CRY_BAD_SHAPE,   /* a size is negative, zero or does not fit another */
    CRY_BAD_GROUPS,  /* group starts do not rise from 0 to the number of rows */
    CRY_BAD_INDEX,   /* a token id or target is outside the vocabulary */
    CRY_NO_SCRATCH,  /* the team's memory is smaller than cry_need_* says, or there is none */
    CRY_BAD_ISA,     /* unknown instruction set, or this CPU lacks it */
} cry_status;

/* One group's place in the fixed tree.  q and the total live in memory between groups. */
typedef struct cry_branch {
    int64_t begin, end; /* rows */
    int first_in_q;     /* this group's sum starts q; otherwise it is added to q */
    int last_in_q;      /* q is complete after this group and goes to the total */
    int starts_total;   /* q becomes the total; otherwise it is added to it */
} cry_branch;

typedef struct cry_adamw {
    float grad_scale, beta1, rest1, beta2, rest2, step_size, eps, decay, root_bias2;
    /* g = grad_scale grad;  m = beta1 m + rest1 g;  v = beta2 v + rest2 g^2;  rest = 1 - beta
     * (taken in double: near 1 the float difference is off by hundreds of roundings)
     * p = decay p - step_size m / (sqrt(v) / root_bias2 + eps) */
} cry_adamw;

typedef struct cry_attention {
    int64_t T, H, K, head_dim; /* sequence length, heads, key/value heads, width of a head */
    float scale;               /* 1 / sqrt(head_dim) */
} cry_attention;

typedef struct cry_kernels {
    const char *isa;
    int64_t tile_m, tile_n; /* rows and columns of the register tile; a packed panel has tile_n columns */

    /* panel(k, tile_n) = b: element (t, j) is b[t ks + j ns], columns n .. tile_n are zero. */
    void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n);
    /* c(m, n) = init + a b.  a(i, t) is a[i rs + t cs]; b is packed in panels of k x tile_n; init
     * (row stride ldi) may be NULL for zero, or c itself. */
    void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k);
    /* c(m, n) over the groups' rows t of a and b, by the fixed tree; panels hold `rows` rows. */
    void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t rows,
                      const cry_branch *branches, int count);
    /* One block of one group: the group's chain runs on in s (m, n) between blocks; at its end the
     * sum goes through q (m, n) to c (m, n), as the branch says.  All have row stride ld. */
    void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block);

    void (*rmsnorm)(float *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                    float eps);
    /* dx = residual + gradient (residual NULL: zero, or dx); dw(D) is set to the span's chain. */
    void (*rmsnorm_bwd)(float *dx, float *dw, const float *residual, const float *dy,
                        const float *x, const float *w, const float *rrms, int64_t rows, int64_t D);
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t rows, int64_t stride,
                 int64_t heads, int64_t head_dim, int64_t position, int64_t T, int inverse);
    void (*attention)(float *out, float *lse, const float *qkv, const cry_attention *shape,
                      int64_t head, float *scratch);
    void (*attention_bwd)(float *dqkv, const float *dout, const float *out, const float *qkv,
                          const float *lse, const cry_attention *shape, int64_t kv_head,
                          float *scratch);
    void (*attention_cached)(float *out, const float *qkv, float *keys, float *values,
                             const cry_attention *shape, int64_t kv_head, int64_t rows,
                             int64_t position, int64_t capacity, float *scratch);
    void (*swiglu)(float *act, const float *gu, int64_t rows, int64_t F);
    void (*swiglu_bwd)(float *dgu, const float *dact, const float *gu, int64_t rows, int64_t F);
    void (*embedding)(float *x, const float *w, const int32_t *ids, int64_t rows, int64_t D);
    /* dw(D) = tree over the `count` rows, rising, at which one token stands. */
    void (*embedding_bwd)(float *dw, const float *dx, const int32_t *list, int64_t count,
                          const int64_t *groups, int64_t D, int accumulate);
    void (*cross_entropy)(float *losses, float *logits, const int32_t *targets, int64_t rows,
                          int64_t V, float scale, int gradient);
    void (*tree_add)(float *out, const float *sums, int64_t n, const cry_branch *branches, int count);
    void (*adamw)(float *p, float *m, float *v, const float *grad, int64_t n, const cry_adamw *c);
    float (*squared_norm)(const float *x, int64_t n);
    void (*exp)(float *y, const float *x, int64_t n);
    void (*log)(float *y, const float *x, int64_t n);
} cry_kernels;

/* The table for `isa` ("portable", "avx2", "avx512"), or for the best one when isa is NULL.  NULL
 * when the name is unknown or this CPU cannot run it. */
CRY_API const cry_kernels *cry_kernels_for(const char *isa);

/* CPUs this process may use: the affinity mask, cut by the cgroup quota along the whole path. */
CRY_API int cry_usable_cpus(void);
/* The threads of a team: the caller's and threads - 1 workers, which sleep when there is nothing to
 * do.  With `cpus` (threads) worker t stays on CPU cpus[t]; the caller is left where it is.  NULL when
 * there is no memory; fewer workers when the system grants no more.  A pool serves one caller at a
 * time.  It survives a fork: the child starts workers of its own when it needs them.  Freeing it
 * ends the workers. */
typedef struct cry_pool cry_pool;
CRY_API cry_pool *cry_pool_new(int threads, const int *cpus);
CRY_API void cry_pool_free(cry_pool *pool);

/* How the work of a region is divided: the 12 spheres have the same number of tasks, or one more.  Of
 * CRY_PARTS parts sphere g has 144 g .. 144 (g + 1), and its leaves (it is one itself while it has no
 * children) divide its tasks by its parts.  No result depends on it.  At first there are 12 leaves, thread t carries t, t + N, ... and
 * stealing is on. */
#define CRY_PARTS 1728
typedef struct cry_arrangement {
    int leaves;           /* 12 .. 1728 */
    const int32_t *begin; /* (leaves + 1) leaf l has parts begin[l] .. begin[l + 1]; rises, 0 .. 1728 */
    const int32_t *owner; /* (leaves) the thread that takes its tasks first */
    const int32_t *order; /* (threads, leaves) all leaves as each thread looks at them, its own first */
    int steal;            /* whether a thread goes on to leaves that are not its own */
} cry_arrangement;
/* Between regions.  CRY_BAD_SHAPE when the above does not hold, CRY_NO_SCRATCH without memory; both
 * change nothing. */
CRY_API cry_status cry_pool_arrange(cry_pool *pool, const cry_arrangement *arrangement);

/* What was done since the pool was made; may be read from any thread, also during a region, but not
 * during cry_pool_arrange.  Times in nanoseconds.  A thread's time in regions that was not busy, it waited: inside - busy. */
typedef struct cry_counts {
    int64_t tasks, stolen, busy; /* stolen: taken by a thread that does not own the leaf */
} cry_counts;
typedef struct cry_statistics {
    int64_t regions, inside;       /* how many, and the time between their beginnings and ends */
    cry_counts spheres[CRY_GROUPS];
    cry_counts *threads;           /* room for all of the pool's */
    int64_t *leaf_busy;            /* room for all leaves; since they were arranged */
} cry_statistics;
CRY_API void cry_pool_statistics(const cry_pool *pool, cry_statistics *to);

/* A team: who works, with which kernels and which memory.  Without a pool the caller works alone.
 * The caller owns the memory: `shared` for all, and `scratch_len` floats for each of `threads` at
 * scratch + thread * scratch_len; 64-byte aligned.  Workers of the pool beyond `threads` stay idle. */
typedef struct cry_team {
    const cry_kernels *kernels;
    int threads;
    cry_pool *pool;
    float *shared, *scratch;
    int64_t shared_len, scratch_len;
} cry_team;

/* Floats needed in `shared` (products of a (., K) and an (N, K) matrix, norms, head), and in
 * `scratch` a thread (attention; with a cache the need of T = 1). */
CRY_API int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K);
CRY_API int64_t cry_need_rmsnorm_bwd(int64_t D);
CRY_API int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                              int gradient);
CRY_API int64_t cry_need_attention(const cry_attention *shape, int backward);

/* y(R,N) = init(R,N) + x(R,K) w(N,K)^T; init may be NULL. */
CRY_API cry_status cry_matmul(const cry_team *team, float *y, const float *x, const float *w,
                              const float *init, int64_t R, int64_t N, int64_t K);
/* dx(R,K) = dy(R,N) w(N,K). */
CRY_API cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w,
                                 int64_t R, int64_t N, int64_t K);
/* dw(N,K) = dy(R,N)^T x(R,K), by the fixed tree. */
CRY_API cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
                                 const int64_t *groups, int64_t R, int64_t N, int64_t K,
                                 int accumulate);
/* panels = w(N,K) packed once, for cry_matmul_packed; cry_need_matmul floats. */
CRY_API cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N,
                                   int64_t K);
CRY_API cry_status cry_matmul_packed(const cry_team *team, float *y, const float *x,
                                     const float *panels, const float *init, int64_t R, int64_t N,
                                     int64_t K);
/* y(R,D) = x r w(D), rrms(R) = r = 1 / sqrt(mean(x^2) + eps). */
CRY_API cry_status cry_rmsnorm(const cry_team *team, float *y, float *rrms, const float *x,
                               const float *w, int64_t R, int64_t D, float eps);
/* dx(R,D) = residual + gradient through the norm (residual NULL: zero, or dx itself); dw(D) by the
 * fixed tree. */
CRY_API cry_status cry_rmsnorm_bwd(const cry_team *team, float *dx, float *dw,
                                   const float *residual, const float *dy, const float *x,
                                   const float *w, const float *rrms,
                                   const int64_t *groups, int64_t R, int64_t D, int accumulate);
/* Turns the first `heads` heads of each row of x (R, stride) in place; row r stands at position
 * position + r mod T of tables cosine, sine (positions, head_dim / 2). */
CRY_API cry_status cry_rope(const cry_team *team, float *x, const float *cosine, const float *sine,
                            int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                            int64_t position, int64_t T, int inverse);
/* out(B T, H head_dim), lse(B, H T) from qkv(B T, (H + 2 K) head_dim), causal.  Of sequence b only
 * the first lengths[b] rows are looked at, out and dqkv of the others become zero, and a head's lse
 * takes lengths[b] places; lengths NULL: T.  Forward and backward are given the same. */
CRY_API cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv,
                                     int64_t B, const cry_attention *shape, const int64_t *lengths);
CRY_API cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout,
                                     const float *out, const float *qkv, const float *lse,
                                     int64_t B, const cry_attention *shape, const int64_t *lengths);
/* Appends `rows` keys and values at `position` to the cache, keys (K, head_dim, capacity) and values
 * (K, capacity, head_dim rounded up to 32), capacity a multiple of 64, both zero at first, and
 * attends from the new rows to all positions up to their own. */
CRY_API cry_status cry_attention_with_cache(const cry_team *team, float *out, const float *qkv,
                                            float *keys, float *values, const cry_attention *shape,
                                            int64_t rows, int64_t position, int64_t capacity);
/* act(R,F) = silu(gate) up, gu(R,2F) = gate then up; dgu may be gu. */
CRY_API cry_status cry_swiglu(const cry_team *team, float *act, const float *gu, int64_t R, int64_t F);
CRY_API cry_status cry_swiglu_bwd(const cry_team *team, float *dgu, const float *dact,
                                  const float *gu, int64_t R, int64_t F);
/* x(R,D) = w(V,D)[ids]. */
CRY_API cry_status cry_embedding(const cry_team *team, float *x, const float *w, const int32_t *ids,
                                 int64_t R, int64_t D, int64_t V);
/* dw(V,D): rows of tokens seen, by the fixed tree; rows of tokens not seen are set to zero, or left
 * alone with accumulate.  list (R) and index (V + 1) are work space. */
CRY_API cry_status cry_embedding_bwd(const cry_team *team, float *dw, const float *dx,
                                     const int32_t *ids, const int64_t *groups, int64_t R, int64_t D,
                                     int64_t V, int accumulate, int32_t *list, int64_t *index);
/* Output projection and full cross-entropy: losses(R) in nats, 0 where the target is -1; with dh and
 * dw not NULL also their gradients, times scale.  Logits exist for one block of tokens at a time. */
CRY_API cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                            const float *w, const int32_t *targets, const int64_t *groups,
                            int64_t R, int64_t D, int64_t V, float scale, int accumulate);
CRY_API cry_status cry_adamw_step(const cry_team *team, float *p, float *m, float *v,
                                  const float *grad, int64_t n, const cry_adamw *c);
/* Sum of squares over 144 fixed spans, 16 lanes each; sums (13) get the 12 spheres' parts, each 12
 * spans, and then the whole, which is added up span by span. */
CRY_API cry_status cry_squared_norm(const cry_team *team, double *sums, const float *x, int64_t n);
/* A zero into every page of fresh memory x(n), by the owners of its spans: the system then puts the
 * page near the thread. */
CRY_API cry_status cry_touch(const cry_team *team, float *x, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
