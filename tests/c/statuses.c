/* What the team's functions refuse: the status that the header names, and not a number written. */
#include <stdio.h>
#include <stdlib.h>

#include "crystalline/parallel.h"

enum { R = 12, D = 4, V = 5, ROOM = 4096, MANY = CRY_FEW_ROWS + 1,
       TALL = 400 };

static float out[3][ROOM], in[ROOM];
static int32_t ids[R], wrong[R], list[R];
static int64_t index_of[V + 1], groups[CRY_GROUPS + 1], uneven[CRY_GROUPS + 1];
static int failed;

/* Every output holds what it held. */
static int untouched(void)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < ROOM; j++)
            if (!(out[i][j] > 6.0f && out[i][j] < 8.0f)) return 0;
    return 1;
}

static void refused(const char *what, cry_status got, cry_status due)
{
    if (got == due && untouched()) return;
    printf("%s: status %d, due %d, outputs %s\n", what, (int)got, (int)due,
           untouched() ? "untouched" : "written");
    failed = 1;
}

static void products(const cry_team *t, const cry_team *poor)
{
    float *y = out[0];
    refused("matmul", cry_matmul(t, y, in, in, 0, -1, V, D), CRY_BAD_SHAPE);
    refused("matmul", cry_matmul(t, y, in, in, 0, R, 0, D), CRY_BAD_SHAPE);
    refused("matmul", cry_matmul(poor, y, in, in, 0, MANY, V, D), CRY_NO_SCRATCH);
    refused("matmul_dx", cry_matmul_dx(t, y, in, in, R, V, 0), CRY_BAD_SHAPE);
    refused("matmul_dx", cry_matmul_dx(poor, y, in, in, MANY, V, D), CRY_NO_SCRATCH);
    refused("matmul_dw", cry_matmul_dw(t, y, in, in, groups, 0, V, D, 0), CRY_BAD_SHAPE);
    refused("matmul_dw", cry_matmul_dw(t, y, in, in, uneven, R, V, D, 0), CRY_BAD_GROUPS);
    refused("matmul_dw", cry_matmul_dw(poor, y, in, in, groups, R, V, D, 0), CRY_NO_SCRATCH);
    refused("swiglu", cry_matmul_swiglu(t, y, out[1], in, in, R, 0, D), CRY_BAD_SHAPE);
    refused("dx_swiglu", cry_matmul_dx_swiglu(t, y, out[1], in, in, R, 0, D), CRY_BAD_SHAPE);
    for (int64_t r = MANY; r <= TALL; r += TALL - MANY) {
        refused("swiglu", cry_matmul_swiglu(t, y, out[1], in, in, r, 0, D), CRY_BAD_SHAPE);
        refused("swiglu", cry_matmul_swiglu(t, y, out[1], in, in, r, V, -1), CRY_BAD_SHAPE);
        refused("swiglu", cry_matmul_swiglu(poor, y, out[1], in, in, r, V, D), CRY_NO_SCRATCH);
        refused("dx_swiglu", cry_matmul_dx_swiglu(t, y, out[1], in, in, r, 0, D), CRY_BAD_SHAPE);
        refused("dx_swiglu", cry_matmul_dx_swiglu(poor, y, out[1], in, in, r, V, D), CRY_NO_SCRATCH);
    }
    refused("pack_weight", cry_pack_weight(t, y, in, 0, D), CRY_BAD_SHAPE);
    refused("matmul_packed", cry_matmul_packed(t, y, in, in, 0, R, V, -1), CRY_BAD_SHAPE);
}

static void rows(const cry_team *t, const cry_team *poor)
{
    float *y = out[0], *z = out[1];
    refused("rmsnorm", cry_rmsnorm(t, y, z, in, in, R, 0, 0.0f), CRY_BAD_SHAPE);
    refused("rmsnorm_bwd", cry_rmsnorm_bwd(t, y, z, 0, in, in, in, in, groups, 0, D, 0),
            CRY_BAD_SHAPE);
    refused("rmsnorm_bwd", cry_rmsnorm_bwd(t, y, z, 0, in, in, in, in, uneven, R, D, 0),
            CRY_BAD_GROUPS);
    refused("rmsnorm_bwd", cry_rmsnorm_bwd(poor, y, z, 0, in, in, in, in, groups, R, D, 0),
            CRY_NO_SCRATCH);
    refused("rope", cry_rope(t, y, in, in, R, 8, 2, 3, 0, 4, 0), CRY_BAD_SHAPE);
    refused("rope", cry_rope(t, y, in, in, R, 8, 3, 4, 0, 4, 0), CRY_BAD_SHAPE);
    refused("rope", cry_rope(t, y, in, in, R, 8, 2, 4, -1, 4, 0), CRY_BAD_SHAPE);
    refused("swiglu", cry_swiglu(t, y, in, R, 0), CRY_BAD_SHAPE);
    refused("swiglu_bwd", cry_swiglu_bwd(t, y, in, in, -1, D), CRY_BAD_SHAPE);
    refused("swiglu_bwd_act", cry_swiglu_bwd_act(t, y, z, in, R, 0), CRY_BAD_SHAPE);
}

static void attention(const cry_team *t, const cry_team *poor)
{
    float *y = out[0], *z = out[1], *k = out[2];
    cry_attention fits = {6, 4, 2, 4, 0.5f}, uneven_heads = {6, 4, 3, 4, 0.5f};
    cry_attention no_heads = {6, 0, 0, 4, 0.5f};
    int64_t long_one[2] = {6, 7};
    if (cry_need_attention(&no_heads, 0) || cry_need_attention(&no_heads, 1)) failed = 1;
    refused("fwd", cry_attention_fwd(t, y, z, in, 2, &uneven_heads, 0), CRY_BAD_SHAPE);
    refused("fwd", cry_attention_fwd(t, y, z, in, 2, &fits, long_one), CRY_BAD_SHAPE);
    refused("fwd", cry_attention_fwd(poor, y, z, in, 2, &fits, 0), CRY_NO_SCRATCH);
    refused("bwd", cry_attention_bwd(t, y, in, in, in, in, -1, &fits, 0), CRY_BAD_SHAPE);
    refused("bwd", cry_attention_bwd(poor, y, in, in, in, in, 2, &fits, 0), CRY_NO_SCRATCH);
    refused("cache", cry_attention_with_cache(t, y, in, k, z, &fits, 2, 63, 64), CRY_BAD_SHAPE);
    refused("cache", cry_attention_with_cache(t, y, in, k, z, &fits, 2, 0, 65), CRY_BAD_SHAPE);
    refused("cache", cry_attention_with_cache(poor, y, in, k, z, &fits, 2, 0, 64), CRY_NO_SCRATCH);
}

static void windows(const cry_team *t, const cry_team *poor)
{
    float *y = out[0], *z = out[1];
    cry_attention fits = {1, 4, 2, 4, 0.5f}, uneven_heads = {1, 4, 3, 4, 0.5f};
    int64_t good[3] = {0, 5, R}, lengths[2] = {5, 8}, less[2] = {-1, 7}, *none = 0;
    int64_t bad[4][3] = {{1, 5, R}, {0, 5, R - 1}, {0, R + 1, R}, {0, -1, R}};
    for (int i = 0; i < 4; i++) {
        const int64_t *at = bad[i];
        refused("windows", cry_attention_windows(t, y, z, in, R, &fits, at, none, 2), CRY_BAD_SHAPE);
        refused("windows_bwd", cry_attention_windows_bwd(t, y, in, in, in, in, R, &fits, at, none, 2),
                CRY_BAD_SHAPE);
    }
    refused("windows", cry_attention_windows(t, y, z, in, R, &fits, good, lengths, 2), CRY_BAD_SHAPE);
    refused("windows", cry_attention_windows(t, y, z, in, R, &fits, good, less, 2), CRY_BAD_SHAPE);
    refused("windows", cry_attention_windows(t, y, z, in, R, &fits, good, none, -1), CRY_BAD_SHAPE);
    refused("windows", cry_attention_windows(t, y, z, in, R, &uneven_heads, good, none, 2),
            CRY_BAD_SHAPE);
    refused("windows", cry_attention_windows(poor, y, z, in, R, &fits, good, none, 2), CRY_NO_SCRATCH);
    cry_team less_shared = *t;
    less_shared.shared_len = cry_need_windows(2) - 1;
    refused("windows_bwd",
            cry_attention_windows_bwd(&less_shared, y, in, in, in, in, R, &fits, good, none, 2),
            CRY_NO_SCRATCH);
    refused("rope_at", cry_rope_at(t, y, in, in, R, 8, 2, 3, ids, V, 0), CRY_BAD_SHAPE);
    refused("rope_at", cry_rope_at(t, y, in, in, R, 8, 3, 4, ids, V, 0), CRY_BAD_SHAPE);
    refused("rope_at", cry_rope_at(t, y, in, in, R, 8, 2, 4, wrong, V, 0), CRY_BAD_INDEX);
    refused("rope_at", cry_rope_at(t, y, in, in, R, 8, 2, 4, ids, 0, 0), CRY_BAD_INDEX);
    refused("rope_at_bf16", cry_rope_at_bf16(t, y, 0, in, in, R, 8, 2, 4, ids, V), CRY_BAD_ISA);
    refused("rope_bwd_at_bf16", cry_rope_bwd_at_bf16(t, 0, y, in, in, R, 8, 2, 4, ids, V), CRY_BAD_ISA);
}

static void tables(const cry_team *t, const cry_team *poor)
{
    float *y = out[0], *z = out[1], *l = out[2];
    cry_adamw c = {0};
    double sums[CRY_GROUPS + 1];
    refused("embedding", cry_embedding(t, y, in, ids, R, D, 0), CRY_BAD_SHAPE);
    refused("embedding", cry_embedding(t, y, in, wrong, R, D, V), CRY_BAD_INDEX);
    refused("embedding_bwd", cry_embedding_bwd(t, y, in, ids, groups, 0, D, V, 0, list, index_of),
            CRY_BAD_SHAPE);
    refused("embedding_bwd", cry_embedding_bwd(t, y, in, ids, uneven, R, D, V, 0, list, index_of),
            CRY_BAD_GROUPS);
    refused("embedding_bwd", cry_embedding_bwd(t, y, in, wrong, groups, R, D, V, 0, list, index_of),
            CRY_BAD_INDEX);
    refused("head", cry_head(t, l, y, 0, in, in, ids, groups, R, D, V, 1.0f, 0), CRY_BAD_SHAPE);
    refused("head", cry_head(t, l, y, z, in, in, ids, uneven, R, D, V, 1.0f, 0), CRY_BAD_GROUPS);
    refused("head", cry_head(t, l, y, z, in, in, wrong, groups, R, D, V, 1.0f, 0), CRY_BAD_INDEX);
    refused("head", cry_head(poor, l, y, z, in, in, ids, groups, R, D, V, 1.0f, 0), CRY_NO_SCRATCH);
    refused("adamw", cry_adamw_step(t, y, z, l, in, -1, &c), CRY_BAD_SHAPE);
    int64_t spans[6] = {0, 2, 1, 1, 3, 0};
    refused("adamw_spans", cry_adamw_spans(t, y, z, l, in, 3, spans, 2, &c), CRY_BAD_SHAPE);
    refused("adamw_spans", cry_adamw_spans(t, y, z, l, in, 1, spans, 1, &c), CRY_BAD_SHAPE);
    refused("squared_norm", cry_squared_norm(t, sums, in, -1), CRY_BAD_SHAPE);
    refused("touch", cry_touch(t, y, -1), CRY_BAD_SHAPE);
}

static void some_rows(const cry_team *t)
{
    float *y = out[0], *z = out[1], *l = out[2];
    cry_adamw c = {0};
    double sums[CRY_GROUPS + 1];
    refused("adamw_rows", cry_adamw_rows(t, y, z, l, in, ids, 1, 0, D, &c), CRY_BAD_SHAPE);
    refused("adamw_rows", cry_adamw_rows(t, y, z, l, in, wrong, R, V, D, &c), CRY_BAD_LIST);
    refused("norm_rows", cry_squared_norm_rows(t, sums, in, ids, 0, -1, D), CRY_BAD_SHAPE);
    refused("rest_rows", cry_adamw_rest_rows(t, y, z, l, list, in, ids, 1, -1, D, 0, &c),
            CRY_BAD_SHAPE);
}

static void momenta(const cry_team *t, const cry_team *poor)
{
    float *y = out[0], *z = out[1];
    const float steps[2] = {0};
    cry_momentum c = {0};
    cry_muon none = {.iterations = 0}, one = {.iterations = 1, .coefficients = in};
    int64_t spans[6] = {0, 2, 1, 1, 3, 0}, outside[3] = {1, 2, 3}, flat[3] = {0, 0, 3};
    int64_t matrix[3] = {0, 2, 3};
    refused("lion", cry_lion_spans(t, y, z, in, 3, spans, 2, &c), CRY_BAD_SHAPE);
    refused("sgd", cry_sgd_spans(t, y, z, in, 1, spans, 1, &c), CRY_BAD_SHAPE);
    refused("ema", cry_ema(t, y, in, -1, 0.1f), CRY_BAD_SHAPE);
    refused("muon", cry_muon_step(t, y, z, in, 6, matrix, steps, 1, &none), CRY_BAD_SHAPE);
    refused("muon", cry_muon_step(t, y, z, in, 6, outside, steps, 1, &one), CRY_BAD_SHAPE);
    refused("muon", cry_muon_step(t, y, z, in, 6, flat, steps, 1, &one), CRY_BAD_SHAPE);
    refused("muon", cry_muon_step(poor, y, z, in, 6, matrix, steps, 1, &one), CRY_NO_SCRATCH);
}

static void decoding(const cry_team *t)
{
    cry_layer layer = {0};
    cry_decoder d = {.layers = 1, .D = D, .F = D, .V = V, .positions = 64,
                     .shape = {1, 2, 1, 2, 1.0f}, .layer = &layer};
    cry_sequence one = {.keys = out[1], .values = out[2], .rows = 2, .position = 63, .capacity = 64};
    refused("decode", cry_decode(t, out[0], &d, ids, &one, -1), CRY_BAD_SHAPE);
    refused("decode", cry_decode(t, out[0], &d, ids, &one, 1), CRY_BAD_SHAPE);
    one.position = 0;
    cry_sequence both[2] = {one, one};
    refused("decode", cry_decode(t, out[0], &d, ids, both, 2), CRY_BAD_LIST);
}

int main(void)
{
    cry_pool *pool = cry_pool_new(2, 0);
    cry_team poor = {.kernels = cry_kernels_for(0), .threads = 2, .pool = pool}, team = poor;
    team.shared_len = team.scratch_len = 1 << 20;
    team.shared = calloc(3 << 20, sizeof(float));
    if (!team.shared || !pool) return 1;
    team.scratch = team.shared + (1 << 20);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < ROOM; j++) out[i][j] = 7.0f;
    for (int g = 0; g <= CRY_GROUPS; g++) groups[g] = uneven[g] = R * g / CRY_GROUPS;
    uneven[5] = 9;
    wrong[R - 1] = V;
    products(&team, &poor);
    rows(&team, &poor);
    attention(&team, &poor);
    windows(&team, &poor);
    tables(&team, &poor);
    some_rows(&team);
    momenta(&team, &poor);
    decoding(&team);
    if (cry_head(&team, out[2], out[0], out[1], in, in, ids, groups, R, D, V, 1.0f, 0) != CRY_OK)
        failed = 1; /* or all of this would have been refused for another reason */
    if (untouched()) failed = 1;
    cry_pool_free(pool);
    free(team.shared);
    if (!failed) printf("done\n");
    return failed;
}
