"""Kernels by the clock: pytest bench/ --benchmark-only.  The shapes are those of the seed model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus
from crystalline.decoder.positions import rope_tables

R, D, F, V = 3072, 256, 688, 10000
GROUPS = (np.arange(13) * 256).astype(np.int64)
IDS = np.random.default_rng(0).integers(0, V, R, np.int32)


@pytest.fixture(scope="module")
def team() -> Team:
    return Team(usable_cpus())


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("N", [768, 1376, 10000])
def test_matmul(benchmark: Any, team: Team, N: int) -> None:
    x, w, y = values(R, D), values(N, D), np.empty((R, N), np.float32)
    benchmark(team.matmul, y, x, w)
    benchmark.extra_info["gflops"] = 2e-9 * R * N * D / benchmark.stats["median"]


@pytest.mark.parametrize("rows", [1, 4, 12])
def test_matmul_packed(benchmark: Any, team: Team, rows: int) -> None:
    x, w, y = values(rows, 768), values(2304, 768), np.empty((rows, 2304), np.float32)
    panels = np.empty(team.packed_len(*w.shape), np.float32)
    team.pack_weight(panels, w)
    benchmark(team.matmul_packed, y, x, panels)
    benchmark.extra_info["gflops"] = 2e-9 * y.size * 768 / benchmark.stats["median"]


def test_pack_weight(benchmark: Any, team: Team) -> None:
    w = values(V, D)
    benchmark(team.pack_weight, np.empty(team.packed_len(V, D), np.float32), w)


@pytest.mark.parametrize("N", [768, 1376])
def test_matmul_dx(benchmark: Any, team: Team, N: int) -> None:
    dy, w, dx = values(R, N), values(N, D), np.empty((R, D), np.float32)
    benchmark(team.matmul_dx, dx, dy, w)
    benchmark.extra_info["gflops"] = 2e-9 * R * N * D / benchmark.stats["median"]


@pytest.mark.parametrize("N", [768, 1376])
def test_matmul_dw(benchmark: Any, team: Team, N: int) -> None:
    dy, x, dw = values(R, N), values(R, D), np.empty((N, D), np.float32)
    benchmark(team.matmul_dw, dw, dy, x, GROUPS)
    benchmark.extra_info["gflops"] = 2e-9 * R * N * D / benchmark.stats["median"]


@pytest.mark.parametrize("gradient", [False, True])
def test_head(benchmark: Any, team: Team, gradient: bool) -> None:
    h, w, losses = values(R, D), values(V, D), np.empty(R, np.float32)
    targets = np.arange(R, dtype=np.int32)
    out = (np.empty_like(h), np.empty_like(w)) if gradient else ()
    benchmark(team.head, losses, h, w, targets, GROUPS, *out)
    benchmark.extra_info["gflops"] = (
        (6e-9 if gradient else 2e-9) * R * V * D / benchmark.stats["median"]
    )


@pytest.mark.parametrize(("H", "width"), [(8, 32), (12, 64)])
@pytest.mark.parametrize("T", [256, 1024, 4096])
@pytest.mark.parametrize("backward", [False, True])
def test_attention(
    benchmark: Any, team: Team, T: int, H: int, width: int, backward: bool
) -> None:
    rows, D = max(R, T), H * width
    qkv, out = values(rows, 3 * D), np.empty((rows, D), np.float32)
    lse = np.empty(rows * H, np.float32)
    team.attention(out, lse, qkv, T, H, H)
    if backward:
        benchmark(team.attention_bwd, np.empty_like(qkv), out, out, qkv, lse, T, H, H)
    else:
        benchmark(team.attention, out, lse, qkv, T, H, H)
    # As much arithmetic as a causal half of the products has.
    products = 5 if backward else 2
    work = 1e-9 * products * rows * (T + 1) * D
    benchmark.extra_info["gflops"] = work / benchmark.stats["median"]


@pytest.mark.parametrize("rows", [8, 64, 256])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_windows(benchmark: Any, team: Team, rows: int, backward: bool) -> None:
    """Windows of so many rows each, packed."""
    H, starts = 8, np.arange(0, R + 1, rows)
    qkv, out, lse = values(R, 3 * D), np.empty((R, D), np.float32), np.empty(R * H, np.float32)
    team.attention_windows(out, lse, qkv, starts, H, H)
    if backward:
        dqkv = np.empty_like(qkv)
        benchmark(team.attention_windows_bwd, dqkv, out, out, qkv, lse, starts, H, H)
    else:
        benchmark(team.attention_windows, out, lse, qkv, starts, H, H)


def test_attention_cached(benchmark: Any, team: Team) -> None:
    H, Dh, room = 8, 32, 256
    keys, held = values(H, Dh, room), values(H, room, Dh)
    out, qkv = np.empty((1, D), np.float32), values(1, 3 * D)
    benchmark(team.attention_cached, out, qkv, keys, held, H, room - 1)


def test_rope(benchmark: Any, team: Team) -> None:
    cosine, sine = rope_tables(256, 32, 1e4)
    benchmark(team.rope, values(R, 3 * D), cosine, sine, 16, 256)


def test_rope_of_packed_rows(benchmark: Any, team: Team) -> None:
    positions = np.tile(np.arange(64, dtype=np.int32), R // 64)
    benchmark(team.rope_at, values(R, 3 * D), *rope_tables(64, 32, 1e4), 16, positions)


def test_rmsnorm(benchmark: Any, team: Team) -> None:
    x, w = values(R, D), np.ones(D, np.float32)
    benchmark(team.rmsnorm, np.empty_like(x), np.empty(R, np.float32), x, w, 1e-5)


def test_rmsnorm_bwd(benchmark: Any, team: Team) -> None:
    x, dy, w, dw = values(R, D), values(R, D), np.ones(D, np.float32), np.empty(D, np.float32)
    y, rrms, dx = np.empty_like(x), np.empty(R, np.float32), np.empty_like(x)
    team.rmsnorm(y, rrms, x, w, 1e-5)
    benchmark(team.rmsnorm_bwd, dx, dw, dy, x, w, rrms, GROUPS)


def test_exp(benchmark: Any, team: Team) -> None:
    benchmark(team.exp, np.empty(R * D, np.float32), values(R * D))


def test_exp2(benchmark: Any, team: Team) -> None:
    benchmark(team.exp2, np.empty(R * D, np.float32), values(R * D))


def test_log(benchmark: Any, team: Team) -> None:
    benchmark(team.log, np.empty(R * D, np.float32), np.abs(values(R * D)))


def test_swiglu(benchmark: Any, team: Team) -> None:
    benchmark(team.swiglu, np.empty((R, F), np.float32), values(R, 2 * F))


def test_swiglu_bwd(benchmark: Any, team: Team) -> None:
    gu, dact = values(R, 2 * F), values(R, F)
    benchmark(team.swiglu_bwd, np.empty_like(gu), dact, gu)


def test_swiglu_bwd_act(benchmark: Any, team: Team) -> None:
    gu, act = values(R, 2 * F), values(R, F)
    benchmark(team.swiglu_bwd_act, np.empty_like(gu), act, gu)


def test_matmul_swiglu(benchmark: Any, team: Team) -> None:
    gu, act = np.empty((R, 2 * F), np.float32), np.empty((R, F), np.float32)
    benchmark(team.matmul_swiglu, gu, act, values(R, D), values(2 * F, D))


def test_matmul_dx_swiglu(benchmark: Any, team: Team) -> None:
    gu, act = values(R, 2 * F), np.empty((R, F), np.float32)
    benchmark(team.matmul_dx_swiglu, gu, act, values(R, D), values(D, F))


def test_embedding(benchmark: Any, team: Team) -> None:
    benchmark(team.embedding, np.empty((R, D), np.float32), values(V, D), IDS)


def test_embedding_bwd(benchmark: Any, team: Team) -> None:
    order, index = np.empty(R, np.int32), np.empty(V + 1, np.int64)
    dw, dx = np.empty((V, D), np.float32), values(R, D)
    benchmark(team.embedding_bwd, dw, dx, IDS, GROUPS, order, index)


def test_squared_norm(benchmark: Any, team: Team) -> None:
    benchmark(team.squared_norm, values(5_000_000))


def test_touch(benchmark: Any, team: Team) -> None:
    benchmark(team.touch, values(5_000_000))


def test_softmax(benchmark: Any, team: Team) -> None:
    x = values(R, V)
    benchmark(team.softmax, np.empty_like(x), x)
    benchmark.extra_info["GB/s"] = 2e-9 * x.nbytes / benchmark.stats["median"]


def test_log_softmax(benchmark: Any, team: Team) -> None:
    benchmark(team.log_softmax, np.empty((R, V), np.float32), values(R, V))


def test_softmax_bwd(benchmark: Any, team: Team) -> None:
    y, dy = values(R, V), values(R, V)
    benchmark(team.softmax_bwd, np.empty_like(y), dy, y)


def test_log_softmax_bwd(benchmark: Any, team: Team) -> None:
    y, dy = -np.abs(values(R, V)), values(R, V)
    benchmark(team.log_softmax_bwd, np.empty_like(y), dy, y)


def test_logsumexp(benchmark: Any, team: Team) -> None:
    benchmark(team.logsumexp, np.empty(R, np.float32), values(R, V))


def test_cross_entropy_bwd(benchmark: Any, team: Team) -> None:
    z, targets = values(R, V), np.arange(R, dtype=np.int32)
    benchmark(team.cross_entropy_bwd, np.empty_like(z), np.ones(R, np.float32), z, targets)


ADAMW = {
    "grad_scale": 1.0, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-3, "eps": 1e-8,
    "decay": 0.9999, "root_bias2": 1.0,
}  # fmt: skip


def test_adamw(benchmark: Any, team: Team) -> None:
    benchmark(team.adamw, *(np.abs(values(5_000_000)) for _ in range(4)), **ADAMW)


def test_adamw_spans(benchmark: Any, team: Team) -> None:
    """A model's block, in which now and then 256 numbers do not decay."""
    ends = np.arange(1, 21) * 250_000
    spans = [row for end in ends for row in ((end - 250_000, end - 256, 1), (end - 256, end, 0))]
    arrays = (np.abs(values(5_000_000)) for _ in range(4))
    benchmark(team.adamw_spans, *arrays, np.array(spans, np.int64), **ADAMW)
