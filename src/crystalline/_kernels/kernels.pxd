# The C interface, as far as the package itself calls it.  See include/crystalline/kernels.h.
from libc.stdint cimport int32_t, int64_t

cdef extern from "crystalline/kernels.h" nogil:
    ctypedef enum cry_status:
        CRY_OK, CRY_BAD_SHAPE, CRY_BAD_GROUPS, CRY_BAD_INDEX, CRY_NO_SCRATCH, CRY_BAD_ISA
    ctypedef struct cry_adamw:
        float grad_scale, beta1, rest1, beta2, rest2, step_size, eps, decay, root_bias2
    ctypedef struct cry_attention:
        int64_t T, H, K, head_dim
        float scale
    ctypedef struct cry_kernels:
        const char *isa
        int64_t tile_m, tile_n

    const cry_kernels *cry_kernels_for(const char *isa)

cdef extern from "crystalline/parallel.h" nogil:
    int cry_usable_cpus()
    ctypedef struct cry_pool:
        pass
    ctypedef struct cry_team:
        const cry_kernels *kernels
        int threads
        cry_pool *pool
        float *shared
        float *scratch
        int64_t shared_len
        int64_t scratch_len
    cry_pool *cry_pool_new(int threads, const int *cpus)
    void cry_pool_free(cry_pool *pool)
    ctypedef struct cry_arrangement:
        int leaves
        const int32_t *begin
        const int32_t *owner
        const int32_t *order
        int steal
    cry_status cry_pool_arrange(cry_pool *pool, const cry_arrangement *arrangement)
    ctypedef struct cry_counts:
        int64_t tasks, stolen, busy
    ctypedef struct cry_statistics:
        int64_t regions, inside
        cry_counts spheres[12]
        cry_counts *threads
        int64_t *leaf_busy
    void cry_pool_statistics(const cry_pool *pool, cry_statistics *to)
    int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K)
    int64_t cry_need_rmsnorm_bwd(int64_t D)
    int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
                          int gradient)
    int64_t cry_need_attention(const cry_attention *shape, int backward)
    cry_status cry_matmul(const cry_team *team, float *y, const float *x, const float *w,
                          const float *init, int64_t R, int64_t N, int64_t K)
    cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w,
                             int64_t R, int64_t N, int64_t K)
    cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
                             const int64_t *groups, int64_t R, int64_t N, int64_t K,
                             int accumulate)
    cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N,
                               int64_t K)
    cry_status cry_matmul_packed(const cry_team *team, float *y, const float *x,
                                 const float *panels, const float *init, int64_t R, int64_t N,
                                 int64_t K)
    cry_status cry_rmsnorm(const cry_team *team, float *y, float *rrms, const float *x,
                           const float *w, int64_t R, int64_t D, float eps)
    cry_status cry_rmsnorm_bwd(const cry_team *team, float *dx, float *dw, const float *residual,
                               const float *dy, const float *x, const float *w, const float *rrms,
                               const int64_t *groups, int64_t R, int64_t D, int accumulate)
    cry_status cry_rope(const cry_team *team, float *x, const float *cosine, const float *sine,
                        int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
                        int64_t position, int64_t T, int inverse)
    cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv,
                                 int64_t B, const cry_attention *shape,
                                 const int64_t *lengths)
    cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout,
                                 const float *out, const float *qkv, const float *lse, int64_t B,
                                 const cry_attention *shape, const int64_t *lengths)
    cry_status cry_attention_with_cache(const cry_team *team, float *out, const float *qkv,
                                        float *keys, float *values, const cry_attention *shape,
                                        int64_t rows, int64_t position, int64_t capacity)
    cry_status cry_swiglu(const cry_team *team, float *act, const float *gu, int64_t R, int64_t F)
    cry_status cry_swiglu_bwd(const cry_team *team, float *dgu, const float *dact,
                              const float *gu, int64_t R, int64_t F)
    cry_status cry_embedding(const cry_team *team, float *x, const float *w, const int32_t *ids,
                             int64_t R, int64_t D, int64_t V)
    cry_status cry_embedding_bwd(const cry_team *team, float *dw, const float *dx,
                                 const int32_t *ids, const int64_t *groups, int64_t R, int64_t D,
                                 int64_t V, int accumulate, int32_t *list, int64_t *index)
    cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw, const float *h,
                        const float *w, const int32_t *targets, const int64_t *groups, int64_t R,
                        int64_t D, int64_t V, float scale, int accumulate)
    cry_status cry_adamw_step(const cry_team *team, float *p, float *m, float *v,
                              const float *grad, int64_t n, const cry_adamw *c)
    cry_status cry_squared_norm(const cry_team *team, double *sums, const float *x, int64_t n)
    cry_status cry_touch(const cry_team *team, float *x, int64_t n)
    int64_t cry_need_softmax(int64_t R, int64_t V)
    cry_status cry_softmax(const cry_team *team, float *y, const float *x, int64_t R, int64_t V)
    cry_status cry_softmax_bwd(const cry_team *team, float *dx, const float *dy, const float *y,
                               int64_t R, int64_t V)
    cry_status cry_log_softmax(const cry_team *team, float *y, const float *x, int64_t R,
                               int64_t V)
    cry_status cry_log_softmax_bwd(const cry_team *team, float *dx, const float *dy,
                                   const float *y, int64_t R, int64_t V)
    cry_status cry_logsumexp(const cry_team *team, float *y, const float *x, int64_t R, int64_t V)
    cry_status cry_cross_entropy(const cry_team *team, float *losses, const float *logits,
                                 const int32_t *targets, int64_t R, int64_t V)
    cry_status cry_cross_entropy_bwd(const cry_team *team, float *dlogits, const float *dlosses,
                                     const float *logits, const int32_t *targets, int64_t R,
                                     int64_t V)
    cry_status cry_exp(const cry_team *team, float *y, const float *x, int64_t n)
    cry_status cry_log(const cry_team *team, float *y, const float *x, int64_t n)

cdef extern from "system.h" nogil:
    int cry_quota_cpus(const char *root)
    int cry_pin(int cpu)
    int cry_interleave(void *memory, int64_t bytes, const int32_t *nodes, int count)
