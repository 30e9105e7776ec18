/* crystalline: the C interface of its kernels.
 *
 * The table `cry_kernels` holds the serial kernels of one instruction set: each works on the span it
 * is given, never allocates, prints, starts threads or fails, and checks nothing.  parallel.h has the
 * same over a team of threads, with arguments checked.  Arrays are float32, row-major and contiguous
 * unless a stride is named; sizes are counts of elements.  R rows (tokens), D width, V vocabulary, T
 * sequence length, H heads, K key heads, F feed-forward width.  Outputs come first, sizes last, and
 * outputs never overlap inputs unless said.
 *
 * Shapes    x(R,D) has R rows of D: element (i, j) is x[i D + j].  Strides count elements.
 * Sizes     counts of rows and entries may be 0; widths (k, D, F, V, head_dim, T, H, K) are 1 or more.
 * Alignment that of the element; work space and panels at multiples of 64 bytes are faster.
 * Aliasing  outputs may share memory with each other or with inputs only where it is said.
 * Bounds    no element outside of the shapes is read or written.
 * Errors    kernels of the table cannot fail: a wrong size, a token outside the vocabulary or a NULL
 *           that is not offered is undefined behaviour.  The functions of parallel.h return a status.
 * Numbers   infinities and NaN go through as the formulas have them.  Denormal numbers are treated
 *           as the caller's floating-point mode says; a team takes and gives zeros for them.
 * Threads   any function may be called from any thread, on memory that no other thread writes.
 * Bits      are the same for all tables, and however rows that no sum runs over are cut into spans.
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
/* Public.  Hidden all the same in what it is linked into: two libraries of one process may each have
 * a version of their own, which must not take each other's place. */
#define CRY_API __attribute__((visibility("hidden")))

/* Counts changes that an old caller would not survive.  What is added at the end of the table is
 * none: that shows in its size. */
#define CRY_KERNELS_ABI 1

typedef enum cry_status {
    CRY_OK = 0,
    CRY_BAD_SHAPE,   /* a size is negative, zero or does not fit another */
    CRY_BAD_GROUPS,  /* group starts do not rise from 0 to the number of rows */
    CRY_BAD_INDEX,   /* a token id or target is outside the vocabulary */
    CRY_NO_SCRATCH,  /* the team's memory is smaller than cry_need_* says, or there is none */
    CRY_BAD_ISA,     /* unknown instruction set, or this CPU lacks it */
    CRY_BAD_LIST,    /* a list of rows does not rise strictly inside its table, or its state is none */
} cry_status;

/* One group's place in the fixed tree, as cry_branches gives it.  q and the total live in memory
 * between groups. */
typedef struct cry_branch {
    int64_t begin, end; /* rows */
    int first_in_q;     /* this group's sum starts q; otherwise it is added to q */
    int last_in_q;      /* q is complete after this group and goes to the total */
    int starts_total;   /* q becomes the total; otherwise it is added to it */
    int64_t at;         /* where the rows begin in packed panels, counted in elements */
} cry_branch;

/* The constants of one AdamW update. */
typedef struct cry_adamw {
    float grad_scale, beta1, rest1, beta2, rest2, step_size, eps, decay, root_bias2;
    /* g = grad_scale grad;  m = beta1 m + rest1 g;  v = beta2 v + rest2 g^2;  rest = 1 - beta
     * (taken in double: near 1 the float difference is off by hundreds of roundings)
     * p = decay p - step_size m / (sqrt(v) / root_bias2 + eps) */
} cry_adamw;

/* The constants of one update with a momentum m: rest is 1 - beta for lion, anything for sgd. */
typedef struct cry_momentum {
    float grad_scale, beta1, rest1, beta2, rest2, step_size, decay;
    /* g = grad_scale grad
     * lion:  u = sign(beta1 m + rest1 g);  m = beta2 m + rest2 g
     * sgd:   m = beta2 m + rest2 g;        u = beta1 m + rest1 g
     * p = decay p - step_size u */
} cry_momentum;

/* One update by Muon: `momentum` is that of sgd, whose u, finite, is brought near the nearest matrix
 * with orthonormal rows or columns by `iterations` odd polynomials of degree 5,
 * coefficients(iterations,3).  More of them than these are refused: rounding, which each multiplies
 * by the slope at zero, blows up after eight or so. */
#define CRY_MUON_ITERATIONS 6
typedef struct cry_muon {
    cry_momentum momentum; /* step_size is not looked at: every matrix has its own */
    int64_t iterations;
    const float *coefficients;
} cry_muon;

/* The shape of attention.  A row of qkv is H queries, K keys and K values of head_dim numbers each;
 * query head h looks at key head h / (H / K), so K divides H. */
typedef struct cry_attention {
    int64_t T, H, K, head_dim; /* sequence length, heads, key/value heads, width of a head */
    float scale;               /* 1 / sqrt(head_dim) */
} cry_attention;

/* How the numbers of a packed weight are kept; int8 has a scale for each row of w(N,K). */
typedef enum cry_format { CRY_FP32 = 0, CRY_BF16, CRY_INT8 } cry_format;
typedef struct cry_weight {
    const void *panels;  /* k x tile_n numbers each, of 4, 2 or 1 bytes */
    const float *scales; /* (N up to a multiple of tile_n), NULL but for int8 */
    cry_format format;
} cry_weight;
/* What the sampled loss compares with: S rising classes, and how often each class is expected there. */
typedef struct cry_sampled {
    const float *w;            /* (V, D) */
    const float *log_expected; /* (V) log of the expected count of a class among the samples */
    const float *sample_log;   /* (S) the same of the samples */
    const int32_t *samples;    /* (S) */
    int64_t D, S;
    float scale;
} cry_sampled;
/* Logits of one block of tokens, as the head_ functions share them: turned over, in panels of tile_n
 * tokens, whose element of word v and token i is z[v tile_n + i]; of the bf16 table two to a
 * float, exponentials in fp16, and once head_scale has been there bf16 in pairs of words,
 * z[(v / 2 tile_n + i) 2 + v mod 2].  Words come in chunks
 * of a multiple of 48, the last one of what is left.  Memory that is only named here is work space. */
#define CRY_HEAD_CHUNK 192
typedef struct cry_logits {
    float *z;               /* (rows / tile_n, V or an even number for bf16, tile_n) */
    float *tops, *sums;     /* (chunks, rows) each; only bf16 has more than one row of sums */
    float *picked;          /* (rows) */
    const int32_t *targets; /* (rows), -1 for none, which those after `tokens` are */
    int64_t tokens, rows;   /* rows: tokens up to a multiple of tile_n */
    int64_t V, D, chunk;    /* chunk: at most CRY_HEAD_CHUNK */
    float scale;
    int gradient;           /* whether one is wanted */
} cry_logits;

/* Append only.  Whoever got it by other ways than cry_kernels_for asks cry_kernels_fit first. */
typedef struct cry_kernels {
    int64_t abi, size; /* CRY_KERNELS_ABI and sizeof(cry_kernels) of the library that made it */
    const char *isa;   /* "portable", "avx2" or "avx512" */
    int64_t tile_m, tile_n; /* rows and columns of the register tile; a packed panel has tile_n columns */

    /* panel(k, tile_n) = b: element (t, j) is b[t ks + j ns], columns n .. tile_n are zero.  n is at
     * most tile_n; ks or ns is 1. */
    void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n);
    /* c(m, n) = init + a b.  a(i, t) is a[i rs + t cs]; b is packed in panels of k x tile_n; init
     * (row stride ldi) may be NULL for zero, or c itself.  Row i of c begins at c + i ldc.  There are
     * ceil(n / tile_n) panels, one behind the other; each element is one chain in the order of t. */
    void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k);
    /* c(m, n) over the groups' rows t of a and b, by the fixed tree; panels are `length` long.  The
     * `count` branches are those of cry_branches; a branch's rows in the panels begin at its `at`.
     * Made with `accumulate` they add to c. */
    void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t length,
                      const cry_branch *branches, int count);
    /* One block of one group: the group's chain runs on in s (m, n) between blocks; at its end the
     * sum goes through q (m, n) to c (m, n), as the branch says.  All have row stride ld.  The k rows
     * of this block stand in a and the panels; first_block and last_block tell whether the group
     * begins and ends with it.  s may be NULL when both hold. */
    void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block);

    /* y(rows,D) = x(rows,D) r w(D), rrms(rows) = r = 1 / sqrt(mean(x^2) + eps). */
    void (*rmsnorm)(float *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                    float eps);
    /* dx = residual + gradient (residual NULL: zero, or dx); dw(D) is set to the span's chain.  dx,
     * residual, dy, x (rows,D); rrms(rows) is what rmsnorm gave. */
    void (*rmsnorm_bwd)(float *dx, float *dw, const float *residual, const float *dy,
                        const float *x, const float *w, const float *rrms, int64_t rows, int64_t D);
    /* Turns the first `heads` heads of head_dim, an even number, in each row of x (rows, stride), in
     * place; row r stands at position + r mod T of the tables cosine, sine (positions, head_dim / 2).
     * `inverse` turns back, as the gradient needs it. */
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t rows, int64_t stride,
                 int64_t heads, int64_t head_dim, int64_t position, int64_t T, int inverse);
    /* One sequence, causal: queries first .. end, at most 64 max(1, 4 K / H), of the H / K heads that
     * share one key head (0 <= kv_head < K) meet the keys up to their own positions.  out(T, H
     * head_dim), lse(H, T), the logarithms of the sums, from qkv(T, (H + 2 K) head_dim).  scratch here
     * and below: as many floats as cry_need_attention (parallel.h) says. */
    void (*attention)(float *out, float *lse, const float *qkv, const cry_attention *shape,
                      int64_t kv_head, int64_t first, int64_t end, float *scratch);
    /* What queries q_first .. q_end and keys k_first .. k_end, at most 512, give each other in dqkv,
     * shaped like qkv, from dout, shaped like out; all begin and, but for the last, end at multiples
     * of 256.  For equal keys calls come with rising queries, first the keys' own; for equal queries
     * with rising keys, first those from 0. */
    void (*attention_bwd)(float *dqkv, const float *dout, const float *out, const float *qkv,
                          const float *lse, const cry_attention *shape, int64_t kv_head,
                          int64_t q_first, int64_t q_end, int64_t k_first, int64_t k_end,
                          float *scratch);
    /* Appends the `rows` keys and values of qkv at `position` to the cache and attends from the new
     * rows to all positions up to their own, for one key head.  keys (K, head_dim, capacity), values
     * (K, capacity, head_dim rounded up to 32), capacity a multiple of 64 with room for them, zero
     * at first.  shape->T is not looked at; scratch: cry_need_attention for T = 1. */
    void (*attention_cached)(float *out, const float *qkv, float *keys, float *values,
                             const cry_attention *shape, int64_t kv_head, int64_t rows,
                             int64_t position, int64_t capacity, float *scratch);
    /* act(rows,F) = silu(gate) up, gu(rows,2F) = gate then up in each row; dgu may be gu. */
    void (*swiglu)(float *act, const float *gu, int64_t rows, int64_t F);
    void (*swiglu_bwd)(float *dgu, const float *dact, const float *gu, int64_t rows, int64_t F);
    /* x(rows,D) = w(V,D)[ids(rows)]. */
    void (*embedding)(float *x, const float *w, const int32_t *ids, int64_t rows, int64_t D);
    /* dw(D) = tree over the `count` rows, rising, at which one token stands: list(count) names rows of
     * dx(R,D), groups are the 13 starts. */
    void (*embedding_bwd)(float *dw, const float *dx, const int32_t *list, int64_t count,
                          const int64_t *groups, int64_t D, int accumulate);
    /* losses(rows) = -log softmax(logits)[target] in nats, 0 where the target is -1.  logits(rows,V)
     * become scale (softmax - one at the target), zeros where there is none, if `gradient` is not 0;
     * else they are spoilt. */
    void (*cross_entropy)(float *losses, float *logits, const int32_t *targets, int64_t rows,
                          int64_t V, float scale, int gradient);
    /* out(n) = the group sums (count, n), added by the tree as the branches say. */
    void (*tree_add)(float *out, const float *sums, int64_t n, const cry_branch *branches, int count);
    /* Updates p, m and v (n) in place by the formula at cry_adamw; grad(n) is read. */
    void (*adamw)(float *p, float *m, float *v, const float *grad, int64_t n, const cry_adamw *c);
    /* The sum of x(n)^2: 16 lanes, combined by halves. */
    float (*squared_norm)(const float *x, int64_t n);
    /* y(n) = exp(x), log(x): within 2 ulp where argument and result are normal numbers; log is for
     * positive ones, infinity and NaN. */
    void (*exp)(float *y, const float *x, int64_t n);
    void (*log)(float *y, const float *x, int64_t n);
    void (*exp2)(float *y, const float *x, int64_t n); /* x <= 127; 0 below -126.5 */

    /* c(m, n) = init + a w^T for few rows; int8: init + scale (a q^T). */
    void (*gemv)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t lda,
                 const cry_weight *weight, int64_t m, int64_t n, int64_t k);
    /* The same with w(n, k) as it lies; far: it is larger than the caches. */
    void (*gemv_unpacked)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a,
                          int64_t lda, const float *w, int64_t m, int64_t n, int64_t k, int far);
    /* to(k, tile_n) and, for int8, scales(tile_n) from a panel; `widen` gives the panel back, int8
     * without its scales; `rescale` is c(m, n) = init + scales c. */
    void (*narrow)(void *to, float *scales, const float *panel, cry_format format, int64_t k);
    void (*widen)(float *panel, const void *packed, cry_format format, int64_t k);
    void (*rescale)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *scales,
                    int64_t m, int64_t n);
    /* x(k) = row id of the packed w(N, k). */
    void (*embedding_packed)(float *x, const cry_weight *weight, int64_t id, int64_t k);
    /* losses(rows); logits(rows,S) = h w[samples]^T become their gradient; dz_target(rows) is that of
     * the targets' own logits and dh(rows,D) = dz_target w[targets].  dh NULL: losses only. */
    void (*sampled_entropy)(float *losses, float *dz_target, float *dh, float *logits, const float *h,
                            const int32_t *targets, int64_t rows, const cry_sampled *c);
    /* As embedding_bwd, but row r of dx counts weight[r] times; always added to dw. */
    void (*weighted_bwd)(float *dw, const float *dx, const float *weight, const int32_t *list,
                         int64_t count, const int64_t *groups, int64_t D);
    /* As `steps` calls of adamw with gradients of zero; past(steps,3) holds each one's decay, step_size
     * and root_bias2, c the rest. */
    void (*adamw_rest)(float *p, float *m, float *v, const float *past, int64_t steps, int64_t n,
                       const cry_adamw *c);

    /* Rows of V numbers; y and dx may be an input, except with scratch (V), by way of which y is
     * written around the caches. */
    void (*softmax)(float *y, const float *x, int64_t rows, int64_t V, float *scratch);
    void (*softmax_bwd)(float *dx, const float *dy, const float *y, int64_t rows, int64_t V);
    void (*log_softmax)(float *y, const float *x, int64_t rows, int64_t V);
    void (*log_softmax_bwd)(float *dx, const float *dy, const float *y, int64_t rows, int64_t V);
    void (*logsumexp)(float *y, const float *x, int64_t rows, int64_t V); /* y(rows) */
    /* dz(rows,V) = (softmax(z) - [j = target]) dloss, zero where the target is -1. */
    void (*cross_entropy_bwd)(float *dz, const float *dlosses, const float *z,
                              const int32_t *targets, int64_t rows, int64_t V);

    /* As rmsnorm, y written around the caches and not x: for an output larger than they are. */
    void (*rmsnorm_far)(float *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                        float eps);
    /* As swiglu_bwd, with dact(rows,F) in act, which becomes once more what swiglu gives. */
    void (*swiglu_bwd_act)(float *dgu, float *act, const float *gu, int64_t rows, int64_t F);
    /* Output projection and cross-entropy in four steps, on cry_logits.  First those of words v ..
     * v + m, m at most a chunk and v a multiple of it, and panels first .. end of tokens: w(V,D);
     * panels of h, packed with ks 1; work: chunk (D + 32) numbers. */
    void (*head_project)(const cry_logits *logits, const float *w, const float *panels, int64_t v,
                         int64_t m, int64_t first, int64_t end, float *work);
    /* Then the losses, from losses[0] on, of the 16 tokens from `at`, a multiple of 16. */
    void (*head_softmax)(float *losses, const cry_logits *logits, int64_t at);
    /* Then the gradient of words v .. v + m of one chunk (v even for bf16), in place, and as dz(m, ld),
     * ld > rows, a zero after each row. */
    void (*head_scale)(float *dz, int64_t ld, const cry_logits *logits, int64_t v, int64_t m);
    /* Then columns d .. d + m of dh for the tokens of panels first .. end.  work: m times
     * tile_n (end - first) + 16. */
    void (*head_back)(float *dh, const cry_logits *logits, const float *w, int64_t d, int64_t m,
                      int64_t first, int64_t end, float *work);
    /* c(m, n) = a w for few rows, w(k, n) as it lies, its rows ldw apart. */
    void (*gemv_across)(float *c, int64_t ldc, const float *a, int64_t lda, const float *w, int64_t ldw,
                        int64_t m, int64_t n, int64_t k);

    /* Updates p and m (n) in place by the formulas at cry_momentum; grad(n) is read. */
    void (*lion)(float *p, float *m, const float *grad, int64_t n, const cry_momentum *c);
    void (*sgd)(float *p, float *m, const float *grad, int64_t n, const cry_momentum *c);
    /* average(n) goes the share `rate` of its way to p(n). */
    void (*ema)(float *average, const float *p, int64_t n, float rate);
    /* Updates the matrix p and its momentum m (rows,columns) from grad; work: cry_muon_floats. */
    void (*muon)(float *p, float *m, const float *grad, int64_t rows, int64_t columns, float step_size,
                 const cry_muon *c, float *work);
} cry_kernels;

/* Floats of work for a matrix in `muon`, with the tile_n of its table: the update, of a high matrix its
 * product too, four squares of the short side, and panels. */
static inline int64_t cry_muon_floats(int64_t tile_n, int64_t rows, int64_t columns)
{
    int64_t high = rows > columns, n = high ? columns : rows, k = high ? rows : columns;
    int64_t whole = (n * k + 15) / 16 * 16, square = (n * n + 15) / 16 * 16;
    int64_t narrow = k * ((n + tile_n - 1) / tile_n * tile_n);
    int64_t wide = n * ((k + tile_n - 1) / tile_n * tile_n);
    return (1 + high) * whole + 4 * square + (narrow > wide ? narrow : wide);
}

/* bf16: the upper half of a float32. */
typedef uint16_t cry_bf16;

/* Products of bf16 operands, summed in float32, and what feeds them; for CPUs with AVX512_BF16.  An
 * element of `a` in gemm and of panels is a pair of neighbours in the sum (an odd last one has a zero
 * beside it), and k counts pairs, so that the functions are called as those of cry_kernels.  Numbers
 * are rounded to the nearest, to even.  Bits depend on no number of threads, but need not be those of
 * another CPU. */
typedef struct cry_bf16_kernels {
    /* b is float32, or bf16 whose rows run along the panel (element (t, j) at b[t ks + j]); k counts
     * single numbers. */
    void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n);
    void (*pack_rows)(float *panel, const cry_bf16 *b, int64_t ks, int64_t k, int64_t n);
    void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k);
    /* c(m, n) = a b, rounded. */
    void (*gemm_narrow)(cry_bf16 *c, int64_t ldc, const float *a, int64_t rs, const float *panels,
                        int64_t m, int64_t n, int64_t k);
    /* As in cry_kernels, with a pointing to bf16, rs 1, or cs 1 and rs even; branches count rows, at
     * and length pairs. */
    void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                      const float *panels, int64_t m, int64_t n, int64_t length,
                      const cry_branch *branches, int count);
    void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                        int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                        const cry_branch *branch, int first_block, int last_block);
    void (*narrow)(cry_bf16 *y, const float *x, int64_t n);
    void (*rmsnorm)(cry_bf16 *y, float *rrms, const float *x, const float *w, int64_t rows, int64_t D,
                    float eps);
    void (*swiglu)(cry_bf16 *act, const cry_bf16 *gu, int64_t rows, int64_t F);
    void (*swiglu_bwd_act)(cry_bf16 *dgu, cry_bf16 *act, const cry_bf16 *gu, int64_t rows, int64_t F);
    void (*widen)(float *y, const cry_bf16 *x, int64_t n); /* exact */
    /* y(rows, stride) = x in float32, its first `heads` heads turned as by rope; the gradient dx is dy
     * with its heads turned back, rounded. */
    void (*rope)(float *y, const cry_bf16 *x, const float *cosine, const float *sine, int64_t rows,
                 int64_t stride, int64_t heads, int64_t head_dim, int64_t position, int64_t T);
    void (*rope_bwd)(cry_bf16 *dx, const float *dy, const float *cosine, const float *sine, int64_t rows,
                     int64_t stride, int64_t heads, int64_t head_dim, int64_t position, int64_t T);
    /* As in cry_kernels; dz and what panels of h hold are bf16. */
    void (*head_project)(const cry_logits *logits, const float *w, const float *panels, int64_t v,
                         int64_t m, int64_t first, int64_t end, float *work);
    /* Then the losses, from losses[0] on, of the 16 tokens from `at`, a multiple of 16. */
    void (*head_softmax)(float *losses, const cry_logits *logits, int64_t at);
    /* Then the gradient of words v .. v + m of one chunk (v even for bf16), in place, and as dz(m, ld),
     * ld > rows, a zero after each row. */
    void (*head_scale)(float *dz, int64_t ld, const cry_logits *logits, int64_t v, int64_t m);
    /* Then columns d .. d + m of dh for the tokens of panels first .. end.  work: m times
     * tile_n (end - first) + 16. */
    void (*head_back)(float *dh, const cry_logits *logits, const float *w, int64_t d, int64_t m,
                      int64_t first, int64_t end, float *work);
} cry_bf16_kernels;

/* The bf16 table, where this CPU can run it and isa is NULL or "avx512"; else NULL. */
CRY_API const cry_bf16_kernels *cry_bf16_for(const char *isa);

/* The table for `isa` ("portable", "avx2", "avx512"), or for the best one when isa is NULL.  NULL
 * when the name is unknown or this CPU cannot run it. */
CRY_API const cry_kernels *cry_kernels_for(const char *isa);

/* Whether a table has at least what this header tells of, in the same way: for tables that another
 * library made, such as the one in the Python capsule "crystalline.cry_kernels". */
static inline int cry_kernels_fit(const cry_kernels *table)
{
    return table->abi == CRY_KERNELS_ABI && table->size >= (int64_t)sizeof(cry_kernels);
}

/* Whether the 13 `groups` rise from 0 to `rows`. */
CRY_API int cry_groups_ok(const int64_t *groups, int64_t rows);
/* The branches of the groups that have rows, for gemm_tree and tree_add; returns how many.  With
 * `accumulate` the total starts from what the output holds. */
CRY_API int cry_branches(cry_branch branches[CRY_GROUPS], const int64_t *groups, int accumulate);

#ifdef __cplusplus
}
#endif
#endif
