/* crystalline: the C interface of its kernels.
 *
 * The table `cry_kernels` holds the serial kernels of one instruction set: each works on the span it
 * is given, never allocates, prints, starts threads or fails, and checks nothing.  parallel.h has the
 * same over a team of threads, with arguments checked.  Arrays are float32, row-major and contiguous
 * unless a stride is named; sizes are counts of elements.  R rows (tokens), D width, V vocabulary, T
 * sequence length, H heads, K key heads, F feed-forward width.  Outputs come first, sizes last, and
 * outputs never overlap inputs unless said.
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
} cry_kernels;

/* The table for `isa` ("portable", "avx2", "avx512"), or for the best one when isa is NULL.  NULL
 * when the name is unknown or this CPU cannot run it. */
CRY_API const cry_kernels *cry_kernels_for(const char *isa);

#ifdef __cplusplus
}
#endif
#endif
