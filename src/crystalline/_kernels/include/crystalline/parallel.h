/* crystalline: the kernels over a team of threads.
 *
 * The functions `cry_*` that take a `cry_team` check their arguments, cut the work over the team and
 * return a status; words and rules are those of kernels.h.
 *
 * Statuses  CRY_BAD_SHAPE from every one of them where a size is negative, a width is zero, or what
 *           stands at the function does not hold; further ones are named there.  Nothing has been
 *           written when a function returns another status than CRY_OK.  Not checked: whether arrays
 *           are as long as the shapes say and what may be NULL (only what is offered).
 * Rows      R may be 0 (then nothing is done), but not where sums over tokens are taken: those refuse
 *           it.
 * Groups    `groups` are the 13 starts of the 12 groups, rising from 0 to R; CRY_BAD_GROUPS otherwise.
 *           With `accumulate` a sum over tokens is added to what its output holds.
 * Memory    CRY_NO_SCRATCH where team->shared_len or scratch_len is less than the cry_need_* named.
 * Calls     return when all is done.  One team, and one pool, serves one caller at a time.
 * Bits      do not depend on the number of threads or on the arrangement. */
#ifndef CRYSTALLINE_PARALLEL_H
#define CRYSTALLINE_PARALLEL_H

#include "crystalline/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CPUs this process may use: the affinity mask, cut by the cgroup quota along the whole path; 1 or
 * more. */
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
 * children) divide its tasks by its parts.  No result depends on it.  At first there are 12 leaves,
 * thread t carries t, t + N, ... and stealing is on. */
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
 * during cry_pool_arrange.  Times in nanoseconds.  A thread's time in regions that was not busy, it
 * waited: inside - busy. */
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
 * scratch + thread * scratch_len; 64-byte aligned.  Workers of the pool beyond `threads` stay idle;
 * `threads`, from 1 on, is no more than the pool was made for.  What the memory holds between calls is
 * of no interest.  All of it may be NULL and 0 where no function that needs it is called. */
typedef struct cry_team {
    const cry_kernels *kernels;
    int threads;
    cry_pool *pool;
    float *shared, *scratch;
    int64_t shared_len, scratch_len;
    const cry_bf16_kernels *bf16; /* NULL: the functions on bf16 return CRY_BAD_ISA */
} cry_team;

/* Floats needed in `shared` (products of a (., K) and an (N, K) matrix, norms, head), and in
 * `scratch` a thread (attention; with a cache the need of T = 1).  Of the team its kernels are looked
 * at, and for the head its number of threads. */
CRY_API int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K);
/* Where a product of many rows needs no more floats than this, threads are no more than that, and
 * `shared` has so much for each of them, every thread packs for itself, which is faster. */
#define CRY_OWN_PANELS 131072
#define CRY_OWNERS 64
CRY_API int64_t cry_need_rmsnorm_bwd(int64_t D);
CRY_API int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                              int gradient);
CRY_API int64_t cry_need_attention(const cry_attention *shape, int backward);

/* y(R,N) = init(R,N) + x(R,K) w(N,K)^T; init may be NULL for zero, or y itself.  Needs,
 * for more than CRY_FEW_ROWS rows, cry_need_matmul(N, K): CRY_NO_SCRATCH. */
CRY_API cry_status cry_matmul(const cry_team *team, float *y, const float *x, const float *w,
                              const float *init, int64_t R, int64_t N, int64_t K);
/* dx(R,K) = dy(R,N) w(N,K).  Needs, for more than CRY_FEW_ROWS rows, cry_need_matmul(K, N):
 * CRY_NO_SCRATCH. */
CRY_API cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w,
                                 int64_t R, int64_t N, int64_t K);
/* dw(N,K) = dy(R,N)^T x(R,K), by the fixed tree.  Needs cry_need_matmul(K, R): CRY_NO_SCRATCH,
 * CRY_BAD_GROUPS. */
CRY_API cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
                                 const int64_t *groups, int64_t R, int64_t N, int64_t K,
                                 int accumulate);
/* panels = w(N,K) packed once, for cry_matmul_packed with kernels of the same instruction set;
 * cry_need_matmul(N, K) floats, which the caller provides.  Needs no memory of the team. */
CRY_API cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N,
                                   int64_t K);
/* cry_matmul with a weight packed before: the same bits, and no memory of the team. */
CRY_API cry_status cry_matmul_packed(const cry_team *team, float *y, const float *x,
                                     const float *panels, const float *init, int64_t R, int64_t N,
                                     int64_t K);
/* y(R,D) = x r w(D), rrms(R) = r = 1 / sqrt(mean(x^2) + eps). */
CRY_API cry_status cry_rmsnorm(const cry_team *team, float *y, float *rrms, const float *x,
                               const float *w, int64_t R, int64_t D, float eps);
/* dx(R,D) = residual + gradient through the norm (residual NULL: zero, or dx itself); dw(D) by the
 * fixed tree.  dy, x and residual are (R,D), rrms(R) is what cry_rmsnorm gave.  Needs
 * cry_need_rmsnorm_bwd(D): CRY_NO_SCRATCH, CRY_BAD_GROUPS. */
CRY_API cry_status cry_rmsnorm_bwd(const cry_team *team, float *dx, float *dw,
                                   const float *residual, const float *dy, const float *x,
                                   const float *w, const float *rrms,
                                   const int64_t *groups, int64_t R, int64_t D, int accumulate);
/* Turns the first `heads` heads of each row of x (R, stride) in place; row r stands at position
 * position + r mod T of tables cosine, sine (positions, head_dim / 2), which must reach so far: that
 * is not checked.  `inverse` turns back, as the gradient needs it.  CRY_BAD_SHAPE also where head_dim
 * is odd, the heads are wider than the stride, or position is negative. */
CRY_API cry_status cry_rope(const cry_team *team, float *x, const float *cosine, const float *sine,
                            int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                            int64_t position, int64_t T, int inverse);
/* out(B T, H head_dim), lse(B, H T) from qkv(B T, (H + 2 K) head_dim), causal.  Of sequence b only
 * the first lengths[b] rows are looked at, out and dqkv of the others become zero, and a head's lse
 * takes lengths[b] places; lengths NULL: T.  Forward and backward are given the same; dqkv is shaped
 * like qkv, dout like out.  B may be 0.  CRY_BAD_SHAPE also where K does not divide H or a length is
 * outside 0 .. T.  Need cry_need_attention(shape, backward) a thread: CRY_NO_SCRATCH. */
CRY_API cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv,
                                     int64_t B, const cry_attention *shape, const int64_t *lengths);
CRY_API cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout,
                                     const float *out, const float *qkv, const float *lse,
                                     int64_t B, const cry_attention *shape, const int64_t *lengths);
/* Appends `rows` keys and values at `position` to the cache, keys (K, head_dim, capacity) and values
 * (K, capacity, head_dim rounded up to 32), capacity a multiple of 64, both zero at first, and
 * attends from the new rows to all positions up to their own: out(rows, H head_dim), qkv(rows,
 * (H + 2 K) head_dim).  shape->T is 1 or more and not looked at otherwise.  CRY_BAD_SHAPE also where
 * the rows do not fit into the capacity.  Needs cry_need_attention of T = 1 a thread: CRY_NO_SCRATCH. */
CRY_API cry_status cry_attention_with_cache(const cry_team *team, float *out, const float *qkv,
                                            float *keys, float *values, const cry_attention *shape,
                                            int64_t rows, int64_t position, int64_t capacity);
/* act(R,F) = silu(gate) up, gu(R,2F) = gate then up in each row; dgu(R,2F) from dact(R,F) may be gu. */
CRY_API cry_status cry_swiglu(const cry_team *team, float *act, const float *gu, int64_t R, int64_t F);
CRY_API cry_status cry_swiglu_bwd(const cry_team *team, float *dgu, const float *dact,
                                  const float *gu, int64_t R, int64_t F);
/* As cry_swiglu_bwd, with dact in act(R,F), which becomes once more what cry_swiglu gives. */
CRY_API cry_status cry_swiglu_bwd_act(const cry_team *team, float *dgu, float *act, const float *gu,
                                      int64_t R, int64_t F);
/* cry_matmul and cry_swiglu in one: gu(R,2F) = x(R,K) w(2F,K)^T, act(R,F) = silu(gate) up.  The same
 * bits.  Needs, for more than CRY_FEW_ROWS rows, cry_need_matmul(2F, K): CRY_NO_SCRATCH. */
CRY_API cry_status cry_matmul_swiglu(const cry_team *team, float *gu, float *act, const float *x,
                                     const float *w, int64_t R, int64_t F, int64_t K);
/* cry_matmul_dx and cry_swiglu_bwd_act in one: of dact = dy(R,N) w(N,F) the gradient of gu(R,2F) takes
 * the place of gu, and act(R,F) = silu(gate) up.  The same bits.  Needs, for more than CRY_FEW_ROWS
 * rows, cry_need_matmul(F, N): CRY_NO_SCRATCH. */
CRY_API cry_status cry_matmul_dx_swiglu(const cry_team *team, float *gu, float *act, const float *dy,
                                        const float *w, int64_t R, int64_t N, int64_t F);
/* On bf16 what stands above on float32, for an even number of terms of a sum (K forward, N for dx):
 * operands in bf16, w rounded to it, sums in float32.  The result goes to y, or rounded to `narrow`;
 * the other is NULL, and with `narrow` init is NULL too: CRY_BAD_SHAPE.  They need what those on
 * float32 need for many rows. */
CRY_API cry_status cry_to_bf16(const cry_team *team, cry_bf16 *y, const float *x, int64_t n);
CRY_API cry_status cry_matmul_bf16(const cry_team *team, float *y, cry_bf16 *narrow,
                                   const cry_bf16 *x, const float *w, const float *init, int64_t R,
                                   int64_t N, int64_t K);
CRY_API cry_status cry_matmul_dx_bf16(const cry_team *team, float *dx, cry_bf16 *narrow,
                                      const cry_bf16 *dy, const float *w, int64_t R, int64_t N,
                                      int64_t K);
CRY_API cry_status cry_matmul_dw_bf16(const cry_team *team, float *dw, const cry_bf16 *dy,
                                      const cry_bf16 *x, const int64_t *groups, int64_t R, int64_t N,
                                      int64_t K, int accumulate);
CRY_API cry_status cry_rmsnorm_bf16(const cry_team *team, cry_bf16 *y, float *rrms, const float *x,
                                    const float *w, int64_t R, int64_t D, float eps);
CRY_API cry_status cry_swiglu_bf16(const cry_team *team, cry_bf16 *act, const cry_bf16 *gu, int64_t R,
                                   int64_t F);
CRY_API cry_status cry_swiglu_bwd_act_bf16(const cry_team *team, cry_bf16 *dgu, cry_bf16 *act,
                                           const cry_bf16 *gu, int64_t R, int64_t F);
/* y(n) = x(n), exactly. */
CRY_API cry_status cry_from_bf16(const cry_team *team, float *y, const cry_bf16 *x, int64_t n);
/* y(R, stride) = x in float32, with its heads turned as cry_rope turns them from position 0 on; the
 * gradient dx is dy with its heads turned back, in bf16. */
CRY_API cry_status cry_rope_bf16(const cry_team *team, float *y, const cry_bf16 *x,
                                 const float *cosine, const float *sine, int64_t R, int64_t stride,
                                 int64_t heads, int64_t head_dim, int64_t T);
CRY_API cry_status cry_rope_bwd_bf16(const cry_team *team, cry_bf16 *dx, const float *dy,
                                     const float *cosine, const float *sine, int64_t R,
                                     int64_t stride, int64_t heads, int64_t head_dim,
                                     int64_t T);
/* x(R,D) = w(V,D)[ids(R)].  CRY_BAD_INDEX where an id is outside 0 .. V - 1. */
CRY_API cry_status cry_embedding(const cry_team *team, float *x, const float *w, const int32_t *ids,
                                 int64_t R, int64_t D, int64_t V);
/* dw(V,D): rows of tokens seen, by the fixed tree; rows of tokens not seen are set to zero, or left
 * alone with accumulate.  dx is (R,D); list (R) and index (V + 1) are work space and overlap nothing.
 * CRY_BAD_INDEX where an id is outside 0 .. V - 1, CRY_BAD_GROUPS. */
CRY_API cry_status cry_embedding_bwd(const cry_team *team, float *dw, const float *dx,
                                     const int32_t *ids, const int64_t *groups, int64_t R, int64_t D,
                                     int64_t V, int accumulate, int32_t *list, int64_t *index);
/* Output projection and full cross-entropy: losses(R) in nats, 0 where the target is -1; with dh and
 * dw not NULL also their gradients, times scale.  Logits exist for one block of tokens at a time.
 * h and dh are (R,D), w and dw (V,D), targets (R).  `accumulate` is for dw.  CRY_BAD_SHAPE also where
 * one of dh and dw is NULL and the other not; CRY_BAD_INDEX where a target is outside -1 .. V - 1;
 * CRY_BAD_GROUPS.  Needs cry_need_head(groups, D, V, dw != NULL): CRY_NO_SCRATCH. */
CRY_API cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                            const float *w, const int32_t *targets, const int64_t *groups,
                            int64_t R, int64_t D, int64_t V, float scale, int accumulate);
/* As cry_head, with h (and w, the logits' gradient) in bf16, D even; needs what cry_head needs. */
CRY_API cry_status cry_head_bf16(const cry_team *team, float *losses, float *dh, float *dw,
                                 const cry_bf16 *h, const float *w, const int32_t *targets,
                                 const int64_t *groups, int64_t R, int64_t D, int64_t V, float scale,
                                 int accumulate);
/* Updates p, m and v (n) in place by the formula at cry_adamw, from grad(n); n may be 0. */
CRY_API cry_status cry_adamw_step(const cry_team *team, float *p, float *m, float *v,
                                  const float *grad, int64_t n, const cry_adamw *c);
/* cry_adamw_step for entries begin .. end of each of spans(count,3), which rise inside 0 .. n: begin,
 * end, and whether decay touches them (else it is taken as 1). */
CRY_API cry_status cry_adamw_spans(const cry_team *team, float *p, float *m, float *v,
                                   const float *grad, int64_t n, const int64_t *spans, int64_t count,
                                   const cry_adamw *c);
/* Sum of squares over 144 fixed spans, 16 lanes each; sums (13) get the 12 spheres' parts, each 12
 * spans, and then the whole, which is added up span by span.  n may be 0. */
CRY_API cry_status cry_squared_norm(const cry_team *team, double *sums, const float *x, int64_t n);
/* A zero into every page of fresh memory x(n), by the owners of its spans: the system then puts the
 * page near the thread.  n may be 0. */
CRY_API cry_status cry_touch(const cry_team *team, float *x, int64_t n);

/* Inference, with weights packed in any format.  Up to CRY_FEW_ROWS rows a product is limited by the
 * reading of its weight, and is cut for that. */
#define CRY_FEW_ROWS 16
/* Bytes of the panels of w(N,K), and floats of its scales (0 unless int8). */
CRY_API int64_t cry_weight_bytes(const cry_team *team, cry_format format, int64_t N, int64_t K);
CRY_API int64_t cry_weight_scales(const cry_team *team, cry_format format, int64_t N);
/* Floats needed in `scratch` a thread, by packing and by products. */
CRY_API int64_t cry_need_weight(const cry_team *team, int64_t K);
CRY_API cry_status cry_narrow_weight(const cry_team *team, void *panels, float *scales,
                                     const float *w, cry_format format, int64_t N, int64_t K);
/* y(R,N) = init(R,N) + x(R,K) w(N,K)^T; init may be NULL, and must not be y for int8. */
CRY_API cry_status cry_matmul_weight(const cry_team *team, float *y, const float *x,
                                     const cry_weight *weight, const float *init, int64_t R,
                                     int64_t N, int64_t K);
/* x(R,K) = w(N,K)[ids]. */
CRY_API cry_status cry_embedding_weight(const cry_team *team, float *x, const cry_weight *weight,
                                        const int32_t *ids, int64_t R, int64_t N, int64_t K);

typedef struct cry_layer {
    const float *norm, *norm2; /* gains (D) before attention and before the feed-forward part */
    cry_weight qkv, out, gate, up, down;
} cry_layer;
typedef struct cry_decoder {
    int64_t layers, D, F, V, positions;
    cry_attention shape;         /* its T is not used */
    float eps;
    const float *cosine, *sine;  /* (positions, head_dim / 2) */
    const cry_layer *layer;
    const float *norm;           /* (D) after the last layer */
    cry_weight embedding;        /* (V, D) */
} cry_decoder;
/* New tokens of one sequence, and its cache: keys (layers, K, head_dim, capacity), values (layers, K,
 * capacity, head_dim rounded up to 32), capacity a multiple of 64. */
typedef struct cry_sequence {
    float *keys, *values;
    int64_t rows, position, capacity;
} cry_sequence;
/* Floats of work space for R rows in all: in `shared`, and in `scratch` a thread. */
CRY_API int64_t cry_need_decode(const cry_decoder *decoder, int64_t R);
CRY_API int64_t cry_need_decode_scratch(const cry_team *team, const cry_decoder *decoder, int64_t R);
/* h(R,D), the normed last hidden state of all new tokens, sequence after sequence, whose keys and
 * values join the caches.  The same bits however the tokens are divided into calls and batches.
 * CRY_BAD_LIST where two sequences have one cache. */
CRY_API cry_status cry_decode(const cry_team *team, float *h, const cry_decoder *decoder,
                              const int32_t *ids, const cry_sequence *sequences, int64_t B);

/* As cry_head, over S sampled classes and each token's own target, logits less log_expected(V)
 * (sampled.h has the formula).  samples(12,S): the classes of each group, rising in each row.
 * dh(R,D) is set; to dw(V,D) the gradient is added, in the rows `samples` and `targets` only.
 * list(R) and index(V + 1) are work space; without dh and dw they are not looked at.  The need is in
 * `shared`. */
CRY_API int64_t cry_need_head_sampled(const cry_team *team, const int64_t *groups, int64_t D,
                                      int64_t S, int gradient);

/* What cry_need_head asks for in one precision alone: all that a caller of only that one needs. */
CRY_API int64_t cry_need_head_in(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                                 int gradient, int bf16);
CRY_API cry_status cry_head_sampled(const cry_team *team, float *losses, float *dh, float *dw,
                                    const float *h, const float *w, const int32_t *targets,
                                    const int64_t *groups, const int32_t *samples,
                                    const float *log_expected, int64_t R, int64_t D, int64_t V,
                                    int64_t S, float scale, int32_t *list, int64_t *index);
/* Of tables (V,D) only the n rising `rows`; all others are neither read nor written.  Of the norm,
 * the list is cut in 144 spans and each adds its rows' 16-lane sums in order. */
CRY_API cry_status cry_adamw_rows(const cry_team *team, float *p, float *m, float *v,
                                  const float *grad, const int32_t *rows, int64_t n, int64_t V,
                                  int64_t D, const cry_adamw *c);
CRY_API cry_status cry_squared_norm_rows(const cry_team *team, double *sums, const float *x,
                                         const int32_t *rows, int64_t n, int64_t V, int64_t D);
/* The updates that rows have missed, in which their gradient was zero: row r takes those of past
 * (steps,3) from last[r] on, in order, and last[r] becomes steps.  past holds decay, step_size and
 * root_bias2 of each, c the rest; the bits are those of cry_adamw_step at each of them. */
CRY_API cry_status cry_adamw_rest_rows(const cry_team *team, float *p, float *m, float *v,
                                       int32_t *last, const float *past, const int32_t *rows,
                                       int64_t n, int64_t V, int64_t D, int64_t steps,
                                       const cry_adamw *c);
/* The softmax family over rows x(R,V); y and dx may be an input.  With large outputs scratch is
 * needed: cry_need_softmax floats a thread. */
CRY_API int64_t cry_need_softmax(int64_t R, int64_t V);
CRY_API cry_status cry_softmax(const cry_team *team, float *y, const float *x, int64_t R, int64_t V);
CRY_API cry_status cry_softmax_bwd(const cry_team *team, float *dx, const float *dy, const float *y,
                                   int64_t R, int64_t V);
CRY_API cry_status cry_log_softmax(const cry_team *team, float *y, const float *x, int64_t R,
                                   int64_t V);
CRY_API cry_status cry_log_softmax_bwd(const cry_team *team, float *dx, const float *dy,
                                       const float *y, int64_t R, int64_t V);
/* y(R) = log of the sum of exp over each row. */
CRY_API cry_status cry_logsumexp(const cry_team *team, float *y, const float *x, int64_t R, int64_t V);
/* losses(R) = logsumexp - logit of the target, 0 where the target is -1; dlogits(R,V), which may be
 * logits, from dlosses(R). */
CRY_API cry_status cry_cross_entropy(const cry_team *team, float *losses, const float *logits,
                                     const int32_t *targets, int64_t R, int64_t V);
CRY_API cry_status cry_cross_entropy_bwd(const cry_team *team, float *dlogits, const float *dlosses,
                                         const float *logits, const int32_t *targets, int64_t R,
                                         int64_t V);
/* y(n) = exp(x) or log(x), within 2 ulp; y may be x. */
CRY_API cry_status cry_exp(const cry_team *team, float *y, const float *x, int64_t n);
CRY_API cry_status cry_log(const cry_team *team, float *y, const float *x, int64_t n);
/* Updates p and m (n) by the formulas at cry_momentum, from grad(n), where the rising spans(count,3)
 * say, as in cry_adamw_spans. */
CRY_API cry_status cry_lion_spans(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                                  const int64_t *spans, int64_t count, const cry_momentum *c);
CRY_API cry_status cry_sgd_spans(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                                 const int64_t *spans, int64_t count, const cry_momentum *c);
/* average(n) += rate (p(n) - average); n may be 0. */
CRY_API cry_status cry_ema(const cry_team *team, float *average, const float *p, int64_t n, float rate);
/* Updates the matrices that lie in p, m, grad (n) at matrices(count,3) (begin, rows, columns), which do
 * not overlap, each with its step_sizes(count) and by one thread, in cry_need_muon floats of scratch. */
CRY_API int64_t cry_need_muon(const cry_team *team, const int64_t *matrices, int64_t count);
CRY_API cry_status cry_muon_step(const cry_team *team, float *p, float *m, const float *grad, int64_t n,
                                 const int64_t *matrices, const float *step_sizes, int64_t count,
                                 const cry_muon *c);

/* Rows in windows (packed documents): window w of W is rows starts[w] .. starts[w + 1] of R, and
 * starts(W + 1) rise from 0 to R.  Each is to attention what a sequence is to cry_attention_fwd and
 * cry_attention_bwd, with the same bits: of the first lengths[w] rows (NULL: all), its lse from place
 * starts[w] H on.  shape->T is 1 or more and not looked at otherwise.  CRY_BAD_SHAPE also where a
 * length is more than the window's rows.  Need cry_need_attention a thread and cry_need_windows in
 * `shared`: CRY_NO_SCRATCH. */
CRY_API int64_t cry_need_windows(int64_t W);
CRY_API cry_status cry_attention_windows(const cry_team *team, float *out, float *lse,
                                         const float *qkv, int64_t R, const cry_attention *shape,
                                         const int64_t *starts, const int64_t *lengths, int64_t W);
CRY_API cry_status cry_attention_windows_bwd(const cry_team *team, float *dqkv, const float *dout,
                                             const float *out, const float *qkv, const float *lse,
                                             int64_t R, const cry_attention *shape,
                                             const int64_t *starts, const int64_t *lengths,
                                             int64_t W);
/* As cry_rope, cry_rope_bf16 and cry_rope_bwd_bf16 for row r at positions(R)[r] of the tables'
 * `count`: CRY_BAD_INDEX where one is outside 0 .. count - 1. */
CRY_API cry_status cry_rope_at(const cry_team *team, float *x, const float *cosine, const float *sine,
                               int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                               const int32_t *positions, int64_t count, int inverse);
CRY_API cry_status cry_rope_at_bf16(const cry_team *team, float *y, const cry_bf16 *x,
                                    const float *cosine, const float *sine, int64_t R,
                                    int64_t stride, int64_t heads, int64_t head_dim,
                                    const int32_t *positions, int64_t count);
CRY_API cry_status cry_rope_bwd_at_bf16(const cry_team *team, cry_bf16 *dx, const float *dy,
                                        const float *cosine, const float *sine, int64_t R,
                                        int64_t stride, int64_t heads, int64_t head_dim,
                                        const int32_t *positions, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
