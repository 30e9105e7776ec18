# The C interface for Cython: `from crystalline.kernels cimport cry_kernels_for, cry_team, ...`.
# What each does stands in crystalline/kernels.h and crystalline/parallel.h, in the folder that
# crystalline.get_include() names.  These are declarations only: nothing is imported at run time.
from libc.stdint cimport int32_t, int64_t, uint16_t

cdef extern from "crystalline/kernels.h" nogil:
    enum: CRY_GROUPS
    enum: CRY_KERNELS_ABI
    ctypedef enum cry_status:
        CRY_OK, CRY_BAD_SHAPE, CRY_BAD_GROUPS, CRY_BAD_INDEX, CRY_NO_SCRATCH, CRY_BAD_ISA, CRY_BAD_LIST
    ctypedef struct cry_branch:
        int64_t begin, end
        int first_in_q
        int last_in_q
        int starts_total
        int64_t at
    ctypedef struct cry_adamw:
        float grad_scale, beta1, rest1, beta2, rest2, step_size, eps, decay, root_bias2
    ctypedef struct cry_momentum:
        float grad_scale, beta1, rest1, beta2, rest2, step_size, decay
    enum: CRY_MUON_ITERATIONS
    ctypedef struct cry_muon:
        cry_momentum momentum
        int64_t iterations
        const float *coefficients
    ctypedef struct cry_attention:
        int64_t T, H, K, head_dim
        float scale
    ctypedef enum cry_format:
        CRY_FP32, CRY_BF16, CRY_INT8
    ctypedef struct cry_weight:
        const void *panels
        const float *scales
        cry_format format
    ctypedef struct cry_sampled:
        const float *w
        const float *log_expected
        const float *sample_log
        const int32_t *samples
        int64_t D, S
        float scale
    enum: CRY_HEAD_CHUNK
    ctypedef struct cry_logits:
        float *z
        float *tops
        float *sums
        float *picked
        const int32_t *targets
        int64_t tokens, rows
        int64_t V, D, chunk
        float scale
        int gradient
    ctypedef struct cry_kernels:
        int64_t abi, size
        const char *isa
        int64_t tile_m, tile_n
        void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k,
                 int64_t n) noexcept nogil
        void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a,
                 int64_t rs, int64_t cs, const float *panels, int64_t m, int64_t n,
                 int64_t k) noexcept nogil
        void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                 const float *panels, int64_t m, int64_t n, int64_t length,
                 const cry_branch *branches, int count) noexcept nogil
        void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                 const cry_branch *branch, int first_block, int last_block) noexcept nogil
        void (*rmsnorm)(float *y, float *rrms, const float *x, const float *w, int64_t rows,
                 int64_t D, float eps) noexcept nogil
        void (*rmsnorm_bwd)(float *dx, float *dw, const float *residual, const float *dy,
                 const float *x, const float *w, const float *rrms, int64_t rows,
                 int64_t D) noexcept nogil
        void (*rope)(float *x, const float *cosine, const float *sine, int64_t rows,
                 int64_t stride, int64_t heads, int64_t head_dim, int64_t position, int64_t T,
                 int inverse) noexcept nogil
        void (*attention)(float *out, float *lse, const float *qkv, const cry_attention *shape,
                 int64_t kv_head, int64_t first, int64_t end, float *scratch) noexcept nogil
        void (*attention_bwd)(float *dqkv, const float *dout, const float *out, const float *qkv,
                 const float *lse, const cry_attention *shape, int64_t kv_head, int64_t q_first,
                 int64_t q_end, int64_t k_first, int64_t k_end, float *scratch) noexcept nogil
        void (*attention_cached)(float *out, const float *qkv, float *keys, float *values,
                 const cry_attention *shape, int64_t kv_head, int64_t rows, int64_t position,
                 int64_t capacity, float *scratch) noexcept nogil
        void (*swiglu)(float *act, const float *gu, int64_t rows, int64_t F) noexcept nogil
        void (*swiglu_bwd)(float *dgu, const float *dact, const float *gu, int64_t rows,
                 int64_t F) noexcept nogil
        void (*embedding)(float *x, const float *w, const int32_t *ids, int64_t rows,
                 int64_t D) noexcept nogil
        void (*embedding_bwd)(float *dw, const float *dx, const int32_t *list, int64_t count,
                 const int64_t *groups, int64_t D, int accumulate) noexcept nogil
        void (*cross_entropy)(float *losses, float *logits, const int32_t *targets, int64_t rows,
                 int64_t V, float scale, int gradient) noexcept nogil
        void (*tree_add)(float *out, const float *sums, int64_t n, const cry_branch *branches,
                 int count) noexcept nogil
        void (*adamw)(float *p, float *m, float *v, const float *grad, int64_t n,
                 const cry_adamw *c) noexcept nogil
        float (*squared_norm)(const float *x, int64_t n) noexcept nogil
        void (*exp)(float *y, const float *x, int64_t n) noexcept nogil
        void (*log)(float *y, const float *x, int64_t n) noexcept nogil
        void (*exp2)(float *y, const float *x, int64_t n) noexcept nogil
        void (*gemv)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a,
                 int64_t lda, const cry_weight *weight, int64_t m, int64_t n,
                 int64_t k) noexcept nogil
        void (*gemv_unpacked)(float *c, int64_t ldc, const float *init, int64_t ldi,
                 const float *a, int64_t lda, const float *w, int64_t m, int64_t n, int64_t k,
                 int far) noexcept nogil
        void (*narrow)(void *to, float *scales, const float *panel, cry_format format,
                 int64_t k) noexcept nogil
        void (*widen)(float *panel, const void *packed, cry_format format,
                 int64_t k) noexcept nogil
        void (*rescale)(float *c, int64_t ldc, const float *init, int64_t ldi,
                 const float *scales, int64_t m, int64_t n) noexcept nogil
        void (*embedding_packed)(float *x, const cry_weight *weight, int64_t id,
                 int64_t k) noexcept nogil
        void (*sampled_entropy)(float *losses, float *dz_target, float *dh, float *logits,
                 const float *h, const int32_t *targets, int64_t rows,
                 const cry_sampled *c) noexcept nogil
        void (*weighted_bwd)(float *dw, const float *dx, const float *weight,
                 const int32_t *list, int64_t count, const int64_t *groups,
                 int64_t D) noexcept nogil
        void (*adamw_rest)(float *p, float *m, float *v, const float *past, int64_t steps,
                 int64_t n, const cry_adamw *c) noexcept nogil
        void (*softmax)(float *y, const float *x, int64_t rows, int64_t V,
                 float *scratch) noexcept nogil
        void (*softmax_bwd)(float *dx, const float *dy, const float *y, int64_t rows,
                 int64_t V) noexcept nogil
        void (*log_softmax)(float *y, const float *x, int64_t rows, int64_t V) noexcept nogil
        void (*log_softmax_bwd)(float *dx, const float *dy, const float *y, int64_t rows,
                 int64_t V) noexcept nogil
        void (*logsumexp)(float *y, const float *x, int64_t rows, int64_t V) noexcept nogil
        void (*cross_entropy_bwd)(float *dz, const float *dlosses, const float *z,
                 const int32_t *targets, int64_t rows, int64_t V) noexcept nogil
        void (*rmsnorm_far)(float *y, float *rrms, const float *x, const float *w, int64_t rows,
                 int64_t D, float eps) noexcept nogil
        void (*swiglu_bwd_act)(float *dgu, float *act, const float *gu, int64_t rows,
                 int64_t F) noexcept nogil
        void (*head_project)(const cry_logits *logits, const float *w, const float *panels,
                 int64_t v, int64_t m, int64_t first, int64_t end, float *work) noexcept nogil
        void (*head_softmax)(float *losses, const cry_logits *logits, int64_t at) noexcept nogil
        void (*head_scale)(float *dz, int64_t ld, const cry_logits *logits, int64_t v,
                 int64_t m) noexcept nogil
        void (*head_back)(float *dh, const cry_logits *logits, const float *w, int64_t d,
                 int64_t m, int64_t first, int64_t end, float *work) noexcept nogil
        void (*gemv_across)(float *c, int64_t ldc, const float *a, int64_t lda, const float *w,
                 int64_t ldw, int64_t m, int64_t n, int64_t k) noexcept nogil
        void (*lion)(float *p, float *m, const float *grad, int64_t n,
                 const cry_momentum *c) noexcept nogil
        void (*sgd)(float *p, float *m, const float *grad, int64_t n,
                 const cry_momentum *c) noexcept nogil
        void (*ema)(float *average, const float *p, int64_t n, float rate) noexcept nogil
        void (*muon)(float *p, float *m, const float *grad, int64_t rows, int64_t columns,
                 float step_size, const cry_muon *c, float *work) noexcept nogil
    int64_t cry_muon_floats(int64_t tile_n, int64_t rows, int64_t columns)
    ctypedef uint16_t cry_bf16
    ctypedef struct cry_bf16_kernels:
        void (*pack)(float *panel, const float *b, int64_t ks, int64_t ns, int64_t k,
                 int64_t n) noexcept nogil
        void (*pack_rows)(float *panel, const cry_bf16 *b, int64_t ks, int64_t k,
                 int64_t n) noexcept nogil
        void (*gemm)(float *c, int64_t ldc, const float *init, int64_t ldi, const float *a,
                 int64_t rs, int64_t cs, const float *panels, int64_t m, int64_t n,
                 int64_t k) noexcept nogil
        void (*gemm_narrow)(cry_bf16 *c, int64_t ldc, const float *a, int64_t rs,
                 const float *panels, int64_t m, int64_t n, int64_t k) noexcept nogil
        void (*gemm_tree)(float *c, int64_t ldc, const float *a, int64_t rs, int64_t cs,
                 const float *panels, int64_t m, int64_t n, int64_t length,
                 const cry_branch *branches, int count) noexcept nogil
        void (*gemm_branch)(float *c, float *q, float *s, int64_t ld, const float *a, int64_t rs,
                 int64_t cs, const float *panels, int64_t m, int64_t n, int64_t k,
                 const cry_branch *branch, int first_block, int last_block) noexcept nogil
        void (*narrow)(cry_bf16 *y, const float *x, int64_t n) noexcept nogil
        void (*rmsnorm)(cry_bf16 *y, float *rrms, const float *x, const float *w, int64_t rows,
                 int64_t D, float eps) noexcept nogil
        void (*swiglu)(cry_bf16 *act, const cry_bf16 *gu, int64_t rows, int64_t F) noexcept nogil
        void (*swiglu_bwd_act)(cry_bf16 *dgu, cry_bf16 *act, const cry_bf16 *gu, int64_t rows,
                 int64_t F) noexcept nogil
        void (*widen)(float *y, const cry_bf16 *x, int64_t n) noexcept nogil
        void (*rope)(float *y, const cry_bf16 *x, const float *cosine, const float *sine,
                 int64_t rows, int64_t stride, int64_t heads, int64_t head_dim, int64_t position,
                 int64_t T) noexcept nogil
        void (*rope_bwd)(cry_bf16 *dx, const float *dy, const float *cosine, const float *sine,
                 int64_t rows, int64_t stride, int64_t heads, int64_t head_dim, int64_t position,
                 int64_t T) noexcept nogil
        void (*head_project)(const cry_logits *logits, const float *w, const float *panels,
                 int64_t v, int64_t m, int64_t first, int64_t end, float *work) noexcept nogil
        void (*head_softmax)(float *losses, const cry_logits *logits, int64_t at) noexcept nogil
        void (*head_scale)(float *dz, int64_t ld, const cry_logits *logits, int64_t v,
                 int64_t m) noexcept nogil
        void (*head_back)(float *dh, const cry_logits *logits, const float *w, int64_t d,
                 int64_t m, int64_t first, int64_t end, float *work) noexcept nogil
    const cry_bf16_kernels *cry_bf16_for(const char *isa)
    const cry_kernels *cry_kernels_for(const char *isa)
    int cry_kernels_fit(const cry_kernels *table)
    int cry_groups_ok(const int64_t *groups, int64_t rows)
    int cry_branches(cry_branch branches[CRY_GROUPS], const int64_t *groups, int accumulate)

cdef extern from "crystalline/parallel.h" nogil:
    int cry_usable_cpus()
    ctypedef struct cry_pool:
        pass
    cry_pool *cry_pool_new(int threads, const int *cpus)
    void cry_pool_free(cry_pool *pool)
    enum: CRY_PARTS
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
        cry_counts spheres[CRY_GROUPS]
        cry_counts *threads
        int64_t *leaf_busy
    void cry_pool_statistics(const cry_pool *pool, cry_statistics *to)
    ctypedef struct cry_team:
        const cry_kernels *kernels
        int threads
        cry_pool *pool
        float *shared
        float *scratch
        int64_t shared_len, scratch_len
        const cry_bf16_kernels *bf16
    int64_t cry_need_matmul(const cry_team *team, int64_t N, int64_t K)
    enum: CRY_OWN_PANELS
    enum: CRY_OWNERS
    int64_t cry_need_rmsnorm_bwd(int64_t D)
    int64_t cry_need_head(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
             int gradient)
    int64_t cry_need_attention(const cry_attention *shape, int backward)
    cry_status cry_matmul(const cry_team *team, float *y, const float *x, const float *w,
             const float *init, int64_t R, int64_t N, int64_t K)
    cry_status cry_matmul_dx(const cry_team *team, float *dx, const float *dy, const float *w,
             int64_t R, int64_t N, int64_t K)
    cry_status cry_matmul_dw(const cry_team *team, float *dw, const float *dy, const float *x,
             const int64_t *groups, int64_t R, int64_t N, int64_t K, int accumulate)
    cry_status cry_pack_weight(const cry_team *team, float *panels, const float *w, int64_t N,
             int64_t K)
    cry_status cry_matmul_packed(const cry_team *team, float *y, const float *x,
             const float *panels, const float *init, int64_t R, int64_t N, int64_t K)
    cry_status cry_rmsnorm(const cry_team *team, float *y, float *rrms, const float *x,
             const float *w, int64_t R, int64_t D, float eps)
    cry_status cry_rmsnorm_bwd(const cry_team *team, float *dx, float *dw, const float *residual,
             const float *dy, const float *x, const float *w, const float *rrms,
             const int64_t *groups, int64_t R, int64_t D, int accumulate)
    cry_status cry_rope(const cry_team *team, float *x, const float *cosine, const float *sine,
             int64_t R, int64_t stride, int64_t heads, int64_t head_dim, int64_t position,
             int64_t T, int inverse)
    cry_status cry_attention_fwd(const cry_team *team, float *out, float *lse, const float *qkv,
             int64_t B, const cry_attention *shape, const int64_t *lengths)
    cry_status cry_attention_bwd(const cry_team *team, float *dqkv, const float *dout,
             const float *out, const float *qkv, const float *lse, int64_t B,
             const cry_attention *shape, const int64_t *lengths)
    cry_status cry_attention_with_cache(const cry_team *team, float *out, const float *qkv,
             float *keys, float *values, const cry_attention *shape, int64_t rows,
             int64_t position, int64_t capacity)
    cry_status cry_swiglu(const cry_team *team, float *act, const float *gu, int64_t R, int64_t F)
    cry_status cry_swiglu_bwd(const cry_team *team, float *dgu, const float *dact,
             const float *gu, int64_t R, int64_t F)
    cry_status cry_swiglu_bwd_act(const cry_team *team, float *dgu, float *act, const float *gu,
             int64_t R, int64_t F)
    cry_status cry_matmul_swiglu(const cry_team *team, float *gu, float *act, const float *x,
             const float *w, int64_t R, int64_t F, int64_t K)
    cry_status cry_matmul_dx_swiglu(const cry_team *team, float *gu, float *act, const float *dy,
             const float *w, int64_t R, int64_t N, int64_t F)
    cry_status cry_to_bf16(const cry_team *team, cry_bf16 *y, const float *x, int64_t n)
    cry_status cry_matmul_bf16(const cry_team *team, float *y, cry_bf16 *narrow,
             const cry_bf16 *x, const float *w, const float *init, int64_t R, int64_t N,
             int64_t K)
    cry_status cry_matmul_dx_bf16(const cry_team *team, float *dx, cry_bf16 *narrow,
             const cry_bf16 *dy, const float *w, int64_t R, int64_t N, int64_t K)
    cry_status cry_matmul_dw_bf16(const cry_team *team, float *dw, const cry_bf16 *dy,
             const cry_bf16 *x, const int64_t *groups, int64_t R, int64_t N, int64_t K,
             int accumulate)
    cry_status cry_rmsnorm_bf16(const cry_team *team, cry_bf16 *y, float *rrms, const float *x,
             const float *w, int64_t R, int64_t D, float eps)
    cry_status cry_swiglu_bf16(const cry_team *team, cry_bf16 *act, const cry_bf16 *gu,
             int64_t R, int64_t F)
    cry_status cry_swiglu_bwd_act_bf16(const cry_team *team, cry_bf16 *dgu, cry_bf16 *act,
             const cry_bf16 *gu, int64_t R, int64_t F)
    cry_status cry_from_bf16(const cry_team *team, float *y, const cry_bf16 *x, int64_t n)
    cry_status cry_rope_bf16(const cry_team *team, float *y, const cry_bf16 *x,
             const float *cosine, const float *sine, int64_t R, int64_t stride, int64_t heads,
             int64_t head_dim, int64_t T)
    cry_status cry_rope_bwd_bf16(const cry_team *team, cry_bf16 *dx, const float *dy,
             const float *cosine, const float *sine, int64_t R, int64_t stride, int64_t heads,
             int64_t head_dim, int64_t T)
    cry_status cry_embedding(const cry_team *team, float *x, const float *w, const int32_t *ids,
             int64_t R, int64_t D, int64_t V)
    cry_status cry_embedding_bwd(const cry_team *team, float *dw, const float *dx,
             const int32_t *ids, const int64_t *groups, int64_t R, int64_t D, int64_t V,
             int accumulate, int32_t *list, int64_t *index)
    cry_status cry_head(const cry_team *team, float *losses, float *dh, float *dw,
             const float *h, const float *w, const int32_t *targets, const int64_t *groups,
             int64_t R, int64_t D, int64_t V, float scale, int accumulate)
    cry_status cry_head_bf16(const cry_team *team, float *losses, float *dh, float *dw,
             const cry_bf16 *h, const float *w, const int32_t *targets, const int64_t *groups,
             int64_t R, int64_t D, int64_t V, float scale, int accumulate)
    cry_status cry_adamw_step(const cry_team *team, float *p, float *m, float *v,
             const float *grad, int64_t n, const cry_adamw *c)
    cry_status cry_adamw_spans(const cry_team *team, float *p, float *m, float *v,
             const float *grad, int64_t n, const int64_t *spans, int64_t count,
             const cry_adamw *c)
    cry_status cry_squared_norm(const cry_team *team, double *sums, const float *x, int64_t n)
    cry_status cry_touch(const cry_team *team, float *x, int64_t n)
    enum: CRY_FEW_ROWS
    int64_t cry_weight_bytes(const cry_team *team, cry_format format, int64_t N, int64_t K)
    int64_t cry_weight_scales(const cry_team *team, cry_format format, int64_t N)
    int64_t cry_need_weight(const cry_team *team, int64_t K)
    cry_status cry_narrow_weight(const cry_team *team, void *panels, float *scales,
             const float *w, cry_format format, int64_t N, int64_t K)
    cry_status cry_matmul_weight(const cry_team *team, float *y, const float *x,
             const cry_weight *weight, const float *init, int64_t R, int64_t N, int64_t K)
    cry_status cry_embedding_weight(const cry_team *team, float *x, const cry_weight *weight,
             const int32_t *ids, int64_t R, int64_t N, int64_t K)
    ctypedef struct cry_layer:
        const float *norm
        const float *norm2
        cry_weight qkv, out, gate, up, down
    ctypedef struct cry_decoder:
        int64_t layers, D, F, V, positions
        cry_attention shape
        float eps
        const float *cosine
        const float *sine
        const cry_layer *layer
        const float *norm
        cry_weight embedding
    ctypedef struct cry_sequence:
        float *keys
        float *values
        int64_t rows, position, capacity
    int64_t cry_need_decode(const cry_decoder *decoder, int64_t R)
    int64_t cry_need_decode_scratch(const cry_team *team, const cry_decoder *decoder, int64_t R)
    cry_status cry_decode(const cry_team *team, float *h, const cry_decoder *decoder,
             const int32_t *ids, const cry_sequence *sequences, int64_t B)
    int64_t cry_need_head_sampled(const cry_team *team, const int64_t *groups, int64_t D,
             int64_t S, int gradient)
    int64_t cry_need_head_in(const cry_team *team, const int64_t *groups, int64_t D, int64_t V,
             int gradient, int bf16)
    cry_status cry_head_sampled(const cry_team *team, float *losses, float *dh, float *dw,
             const float *h, const float *w, const int32_t *targets, const int64_t *groups,
             const int32_t *samples, const float *log_expected, int64_t R, int64_t D, int64_t V,
             int64_t S, float scale, int32_t *list, int64_t *index)
    cry_status cry_adamw_rows(const cry_team *team, float *p, float *m, float *v,
             const float *grad, const int32_t *rows, int64_t n, int64_t V, int64_t D,
             const cry_adamw *c)
    cry_status cry_squared_norm_rows(const cry_team *team, double *sums, const float *x,
             const int32_t *rows, int64_t n, int64_t V, int64_t D)
    cry_status cry_adamw_rest_rows(const cry_team *team, float *p, float *m, float *v,
             int32_t *last, const float *past, const int32_t *rows, int64_t n, int64_t V,
             int64_t D, int64_t steps, const cry_adamw *c)
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
             const float *logits, const int32_t *targets, int64_t R, int64_t V)
    cry_status cry_exp(const cry_team *team, float *y, const float *x, int64_t n)
    cry_status cry_log(const cry_team *team, float *y, const float *x, int64_t n)
    cry_status cry_lion_spans(const cry_team *team, float *p, float *m, const float *grad,
             int64_t n, const int64_t *spans, int64_t count, const cry_momentum *c)
    cry_status cry_sgd_spans(const cry_team *team, float *p, float *m, const float *grad,
             int64_t n, const int64_t *spans, int64_t count, const cry_momentum *c)
    cry_status cry_ema(const cry_team *team, float *average, const float *p, int64_t n,
             float rate)
    int64_t cry_need_muon(const cry_team *team, const int64_t *matrices, int64_t count)
    cry_status cry_muon_step(const cry_team *team, float *p, float *m, const float *grad,
             int64_t n, const int64_t *matrices, const float *step_sizes, int64_t count,
             const cry_muon *c)
    int64_t cry_need_windows(int64_t W)
    cry_status cry_attention_windows(const cry_team *team, float *out, float *lse,
             const float *qkv, int64_t R, const cry_attention *shape, const int64_t *starts,
             const int64_t *lengths, int64_t W)
    cry_status cry_attention_windows_bwd(const cry_team *team, float *dqkv, const float *dout,
             const float *out, const float *qkv, const float *lse, int64_t R,
             const cry_attention *shape, const int64_t *starts, const int64_t *lengths,
             int64_t W)
    cry_status cry_rope_at(const cry_team *team, float *x, const float *cosine,
             const float *sine, int64_t R, int64_t stride, int64_t heads, int64_t head_dim,
             const int32_t *positions, int64_t count, int inverse)
    cry_status cry_rope_at_bf16(const cry_team *team, float *y, const cry_bf16 *x,
             const float *cosine, const float *sine, int64_t R, int64_t stride, int64_t heads,
             int64_t head_dim, const int32_t *positions, int64_t count)
    cry_status cry_rope_bwd_at_bf16(const cry_team *team, cry_bf16 *dx, const float *dy,
             const float *cosine, const float *sine, int64_t R, int64_t stride, int64_t heads,
             int64_t head_dim, const int32_t *positions, int64_t count)
