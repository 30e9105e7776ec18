"""Kernels by the clock: pytest bench/ --benchmark-only.  The shapes are those of the seed model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus

R, D, F, V = 3072, 256, 688, 10000
GROUPS = (np.arange(13) * 256).astype(np.int64)


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


@pytest.mark.parametrize("T", [256, 1024])
@pytest.mark.parametrize("backward", [False, True])
def test_attention(benchmark: Any, team: Team, T: int, backward: bool) -> None:
    qkv, out, lse = values(R, 3 * D), np.empty((R, D), np.float32), np.empty(R * 8, np.float32)
    team.attention(out, lse, qkv, T, 8, 8)
    if backward:
        benchmark(team.attention_bwd, np.empty_like(qkv), out, out, qkv, lse, T, 8, 8)
    else:
        benchmark(team.attention, out, lse, qkv, T, 8, 8)


def test_rmsnorm(benchmark: Any, team: Team) -> None:
    x, w = values(R, D), np.ones(D, np.float32)
    benchmark(team.rmsnorm, np.empty_like(x), np.empty(R, np.float32), x, w, 1e-5)


def test_swiglu(benchmark: Any, team: Team) -> None:
    benchmark(team.swiglu, np.empty((R, F), np.float32), values(R, 2 * F))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(benchmark: Any, team: Team, name: str) -> None:
    x = values(R, V)
    benchmark(getattr(team, name), np.empty_like(x), x)
    benchmark.extra_info["GB/s"] = 2e-9 * x.nbytes / benchmark.stats["median"]


def test_logsumexp(benchmark: Any, team: Team) -> None:
    benchmark(team.logsumexp, np.empty(R, np.float32), values(R, V))


def test_cross_entropy_bwd(benchmark: Any, team: Team) -> None:
    z, targets = values(R, V), np.arange(R, dtype=np.int32)
    benchmark(team.cross_entropy_bwd, np.empty_like(z), np.ones(R, np.float32), z, targets)


def test_adamw(benchmark: Any, team: Team) -> None:
    p, m, v, g = (np.abs(values(5_000_000)) for _ in range(4))
    settings = {
        "grad_scale": 1.0, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-3, "eps": 1e-8,
        "decay": 0.9999, "root_bias2": 1.0,
    }  # fmt: skip
    benchmark(team.adamw, p, m, v, g, **settings)
