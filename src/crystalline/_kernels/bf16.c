/* Products of bf16 operands: the kernels of matmul.h and a few others, compiled once more with pairs
 * for elements (operands.h).  Exports one table and nothing else. */
#define CRY_PAIRS
#define TILE_ROWS_MAX 12

#include "crystalline/kernels.h"
#include "operands.h"
#include "matmul.h"
#include "pack.h"
#include "norm.h"
#include "rope.h"
#include "swiglu.h"
#include "head.h"

/* The headers' arrays of activations are float *; here they hold bf16. */
static float *as(cry_bf16 *p) { return (float *)(void *)p; }
static const float *from(const cry_bf16 *p) { return (const float *)(const void *)p; }

static void pack_rows(float *panel, const cry_bf16 *b, int64_t ks, int64_t k, int64_t n)
{
    for (int64_t t = 0; t < k; t += 2, b += 2 * ks, panel += TILE_N)
        for (int64_t j = 0; j < TILE_N; j += 16) {
            __m512i high = t + 1 < k ? widened(b + ks + j, n - j) : _mm512_setzero_si512();
            v16_store(panel + j, paired(widened(b + j, n - j), high));
        }
}

/* Each tile runs over the whole sum: what is rounded cannot rest between blocks of it. */
static void gemm_narrow(cry_bf16 *c, int64_t ldc, const float *a, int64_t rs, const float *panels,
                        int64_t m, int64_t n, int64_t k)
{
    for (int64_t j = 0; j < n; j += TILE_N) {
        tile_job job = {.c = as(c + j), .narrow = 1, .ldc = ldc, .a = a, .rs = rs, .cs = 1,
                        .b = panels + j * k, .ldb = TILE_N, .n = cry_min(TILE_N, n - j), .k = k};
        tile_column(job, m);
    }
}

static void narrow(cry_bf16 *y, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 16) value_put(as(y), j, v16_get(x + j, n - j), n - j);
}

static void rmsnorm_narrow(cry_bf16 *y, float *rrms, const float *x, const float *w, int64_t rows,
                           int64_t D, float eps)
{
    rmsnorm(as(y), rrms, x, w, rows, D, eps);
}

static void swiglu_narrow(cry_bf16 *act, const cry_bf16 *gu, int64_t rows, int64_t F)
{
    swiglu(as(act), from(gu), rows, F);
}

static void swiglu_bwd_act_narrow(cry_bf16 *dgu, cry_bf16 *act, const cry_bf16 *gu, int64_t rows,
                                  int64_t F)
{
    swiglu_bwd_act(as(dgu), as(act), from(gu), rows, F);
}

static void widen(float *y, const cry_bf16 *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 16) v16_put(y + j, value_get(from(x), j, n - j), n - j);
}

static void rope_wide(float *y, const cry_bf16 *x, const float *cosine, const float *sine, int64_t rows,
                      int64_t stride, int64_t heads, int64_t head_dim, int64_t position, int64_t T)
{
    rope_between(y, from(x), cosine, sine, rows, stride, heads, head_dim, position, T, 0);
}

static void rope_bwd_narrow(cry_bf16 *dx, const float *dy, const float *cosine, const float *sine,
                            int64_t rows, int64_t stride, int64_t heads, int64_t head_dim,
                            int64_t position, int64_t T)
{
    rope_between(as(dx), dy, cosine, sine, rows, stride, heads, head_dim, position, T, 1);
}

extern const cry_bf16_kernels cry_kernels_bf16;
const cry_bf16_kernels cry_kernels_bf16 = {
    .pack = pack,
    .pack_rows = pack_rows,
    .gemm = gemm,
    .gemm_narrow = gemm_narrow,
    .gemm_tree = gemm_tree,
    .gemm_branch = gemm_branch,
    .narrow = narrow,
    .rmsnorm = rmsnorm_narrow,
    .swiglu = swiglu_narrow,
    .swiglu_bwd_act = swiglu_bwd_act_narrow,
    .widen = widen,
    .rope = rope_wide,
    .rope_bwd = rope_bwd_narrow,
    .head_project = head_project,
    .head_softmax = head_softmax,
    .head_scale = head_scale,
    .head_back = head_back,
};
