/* All kernels for one instruction set: compiled once for each, exports one table and nothing else. */
#if defined(CRY_ISA_avx512)
#define TILE_ROWS_MAX 12
#define CRY_TABLE cry_kernels_avx512
#elif defined(CRY_ISA_avx2)
#define TILE_ROWS_MAX 6
#define CRY_TABLE cry_kernels_avx2
#else
#define TILE_ROWS_MAX 4
#define CRY_TABLE cry_kernels_portable
#endif

#include "crystalline/kernels.h"
#include "simd.h"
#include "mathfun.h"
#include "matmul.h"
#include "pack.h"
#include "attention.h"
#include "attention_cache.h"
#include "norm.h"
#include "rope.h"
#include "swiglu.h"
#include "embedding.h"
#include "softmax.h"
#include "head.h"
#include "optim.h"
#include "gemv.h"
#include "sampled.h"
#include "momentum.h"
#include "muon.h"

static void exp_span(float *y, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 16) v16_put(y + j, v16_exp(v16_get(x + j, n - j)), n - j);
}

static void log_span(float *y, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 16) v16_put(y + j, v16_log(v16_get_or(x + j, n - j, 1.0f)), n - j);
}

static void exp2_span(float *y, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 16) v16_put(y + j, v16_exp2(v16_get(x + j, n - j)), n - j);
}

extern const cry_kernels CRY_TABLE;
const cry_kernels CRY_TABLE = {
    .abi = CRY_KERNELS_ABI,
    .size = sizeof(cry_kernels),
    .isa = CRY_ISA_NAME,
    .tile_m = TILE_M,
    .tile_n = TILE_N,
    .pack = pack,
    .gemm = gemm,
    .gemm_tree = gemm_tree,
    .gemm_branch = gemm_branch,
    .rmsnorm = rmsnorm,
    .rmsnorm_bwd = rmsnorm_bwd,
    .rope = rope,
    .attention = attention,
    .attention_bwd = attention_bwd,
    .attention_cached = attention_cached,
    .swiglu = swiglu,
    .swiglu_bwd = swiglu_bwd,
    .embedding = embedding,
    .embedding_bwd = embedding_bwd,
    .cross_entropy = cross_entropy,
    .tree_add = tree_add,
    .adamw = adamw,
    .squared_norm = squared_norm,
    .exp = exp_span,
    .log = log_span,
    .exp2 = exp2_span,
    .gemv = gemv,
    .gemv_unpacked = gemv_unpacked,
    .narrow = narrow,
    .widen = widen,
    .rescale = rescale,
    .embedding_packed = embedding_packed,
    .sampled_entropy = sampled_entropy,
    .weighted_bwd = weighted_bwd,
    .adamw_rest = adamw_rest,
    .softmax = softmax,
    .softmax_bwd = softmax_bwd,
    .log_softmax = log_softmax,
    .log_softmax_bwd = log_softmax_bwd,
    .logsumexp = logsumexp,
    .cross_entropy_bwd = cross_entropy_bwd,
    .rmsnorm_far = rmsnorm_far,
    .swiglu_bwd_act = swiglu_bwd_act,
    .head_project = head_project,
    .head_softmax = head_softmax,
    .head_scale = head_scale,
    .head_back = head_back,
    .gemv_across = gemv_across,
    .lion = lion,
    .sgd = sgd,
    .ema = ema,
    .muon = muon,
};
